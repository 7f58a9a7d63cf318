"""What a scheduler of pods speaks: the shapes of /api/v1/pods."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from orion_controller.api.models import GroupState, Policy

_NAME = Meta(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")
Name = Annotated[str, _NAME]
MaybeName = Annotated[str, Meta(max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")]
Refusal = Literal["", "no_room", "never", "not_ready", "refused"]
CANDIDATES_MOST = 15_000
PODS_MOST = 256


class PodPlace(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A GPU of a server."""

    node: Name
    ordinal: Annotated[int, Meta(ge=0, le=1 << 20)]


class PodContainer(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a container has been promised: `count` parts of `vgpus` vGPUs each; a process attaches to one part. Sizes
    are of each vGPU, 0: the pool's default. `places`: the GPU of each vGPU where somebody else has chosen them, with a
    `count` of 1; empty: the pool chooses."""

    name: Name
    vgpus: Annotated[int, Meta(ge=1, le=64)] = 1
    count: Annotated[int, Meta(ge=1, le=64)] = 1
    gmem_mib: Annotated[int, Meta(ge=0, le=1 << 30)] = 0
    ratio_percent: Annotated[int, Meta(ge=0, le=100)] = 0
    policy: Policy | None = None
    places: Annotated[list[PodPlace], Meta(max_length=64)] = []


class PodWish(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """All of a pod's vGPUs, or none. Asked for again it stays as it is, and `ttl_s` begins anew (0: until released).
    `candidates`: nodes that it may run on, its vGPUs go near one of them where there is room; `node`: where it will
    run, they move there if they can. `cluster`: which one the pod is in, for who compares them with its pods later.
    `check`: nothing is reserved, only whether it could ever be. `provisional`: only who asks again keeps it; it is not
    stored, and a controller that starts does not know of it."""

    uid: Name
    namespace: Name
    name: Name
    containers: Annotated[list[PodContainer], Meta(min_length=1, max_length=64)]
    rule: Literal["", "local-first", "binpack", "spread"] = ""
    cross_node: bool = True
    node: MaybeName = ""
    candidates: Annotated[list[Annotated[str, Meta(max_length=255)]], Meta(max_length=CANDIDATES_MOST)] = []
    cluster: MaybeName = ""
    ttl_s: Annotated[float, Meta(ge=0, le=86400)] = 60.0
    check: bool = False
    provisional: bool = False


class PodWishes(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    pods: Annotated[list[PodWish], Meta(min_length=1, max_length=PODS_MOST)]


class PodPart(msgspec.Struct, kw_only=True):
    """vGPUs that a process of a container attaches to. `group`: their id in the API; `nodes`: of each vGPU."""

    container: str
    group: str
    gmem_mib: int
    ratio_percent: int
    nodes: list[str]
    ordinals: list[int]
    sessions: int


class PodOutcome(msgspec.Struct, kw_only=True):
    """`refusal` empty: the vGPUs are the pod's, and `parts` says where. no_room: later perhaps; never: not in this
    pool; not_ready: the controller has just started and does not know yet."""

    uid: str
    refusal: Refusal = ""
    message: str = ""
    parts: list[PodPart] = []


class PodOutcomes(msgspec.Struct, kw_only=True):
    """In the order of the wishes."""

    pods: list[PodOutcome]


class PodsGone(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Pods that have ended, been deleted or are not to be bound after all. `unless_used`: those with programs stay."""

    uids: Annotated[list[Name], Meta(min_length=1, max_length=1000)]
    reason: Annotated[str, Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = "its pod is gone"
    unless_used: bool = False


class PodsReleased(msgspec.Struct, kw_only=True):
    """`kept`: those whose programs could not be ended yet, that are in use, or whose server has not come back since the
    controller's start; ask again."""

    released: list[str]
    kept: list[str]


class Pod(msgspec.Struct, kw_only=True):
    """A pod that has vGPUs. `expires_s`: unless it is bound or a program comes before. `lost`: some of its vGPUs are on
    a server that is away. `cluster`: as whoever reserved them has named it; empty: not at all."""

    uid: str
    namespace: str
    name: str
    state: GroupState
    parts: list[PodPart]
    vgpus: int
    nodes: list[str]
    sessions: int
    since_s: float
    expires_s: float | None = None
    lost: bool = False
    cluster: str = ""
