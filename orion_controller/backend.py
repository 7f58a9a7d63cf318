"""What the REST API asks of the pool, and what the store keeps of it: the seams between the controller's parts.

`Backend` is implemented by service.py; api/ and the old API of the product use nothing else. `AllocationRecord` is what
a restarted controller needs to know of an allocation besides what the servers report.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

import msgspec

from orion_controller.api import models, pod_models


class ServiceError(Exception):
    """A request that is refused: an HTTP status, a word for programs, a sentence, and what to do."""

    def __init__(self, status: int, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.hint = hint


class AllocationRecord(msgspec.Struct, kw_only=True):
    """An allocation in the store."""

    id: str
    group: str
    shared: bool
    reserved: bool
    gmem_mib: int
    ratio_percent: int
    policy: Literal["", "hard", "elastic"]
    places: list[tuple[str, int]]  # (server, ordinal) of each vGPU, in device order
    owner: str
    program: str
    host: str = ""
    uid: int = 0
    was_used: bool = False  # a session has attached: it is no reservation any more
    since_s: float
    expires_s: float | None = None
    slot: str = ""  # CONTAINER/NUMBER: a part of a pod, whose uid is the group
    cluster: str = ""  # of such a part: the cluster that its pod is in
    asked: tuple[int, int, int] = (0, 0, 0)  # of such a part: vGPUs, MiB and percent as its environment says them


class Backend(Protocol):
    """Reads answer at once from memory. Changes are in force (or refused with ServiceError) when they return; `user`
    goes into the audit trail."""

    @property
    def is_leader(self) -> bool: ...

    @property
    def leader_url(self) -> str:
        """Where the leading replica serves HTTP; empty when unknown or when it is this one."""
        ...

    def summary(self) -> models.Summary: ...
    def nodes(self) -> list[models.Node]: ...
    def gpus(self, node: str = "") -> list[models.Gpu]: ...
    def vgpus(self, node: str = "", group: str = "") -> list[models.Vgpu]: ...
    def groups(self) -> list[models.Group]: ...
    def sessions(self, node: str = "", group: str = "") -> list[models.Session]: ...
    def pods(self) -> Iterator[pod_models.Pod]:
        """Made one by one: there may be tens of thousands."""
        ...

    def queue(self) -> list[models.Waiting]: ...
    def limits(self) -> list[models.Limits]: ...
    def history(self, scope: str) -> models.History: ...
    async def events(self, after: int = 0, limit: int = 200, audit: bool = False) -> list[models.Event]:
        """The newest `limit` after the id, oldest first. `audit`: only what a user did."""
        ...

    async def patch_group(self, group_id: str, change: models.PatchGroup, user: str) -> models.Group: ...
    async def end_group(self, group_id: str, user: str) -> None: ...
    async def end_session(self, session_id: str, user: str) -> None: ...
    async def forget_node(self, node: str, user: str) -> None:
        """Takes a server off the list that is lost and will not come back."""
        ...

    async def set_draining(self, node: str, draining: bool, user: str) -> models.Node: ...
    async def reserve(self, wish: models.Reserve, user: str) -> models.Group: ...
    async def reserve_pods(self, wishes: list[pod_models.PodWish], user: str) -> list[pod_models.PodOutcome]:
        """One outcome for each wish; what is reserved is in the store."""
        ...

    async def release_pods(self, gone: pod_models.PodsGone, user: str) -> pod_models.PodsReleased: ...
    async def set_limits(self, group: str, limits: models.LimitsBody | None, user: str) -> models.Limits | None: ...
    def note(
        self, level: Literal["info", "warning", "error"], kind: str, subject: str, message: str, user: str
    ) -> None:
        """Writes an event, for instance that somebody has logged in."""
        ...
