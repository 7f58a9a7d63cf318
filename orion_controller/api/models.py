"""What the REST API speaks: the shapes of /api/v1, from which the OpenAPI document is made.

The portal and orionctl build on these alone. Sizes are MiB, times Unix seconds, shares percent of one GPU.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Policy = Literal["hard", "elastic"]
Role = Literal["viewer", "operator"]
NodeState = Literal["ready", "draining", "lost"]
GroupState = Literal["reserved", "active", "idle"]


class Summary(msgspec.Struct, kw_only=True):
    """The pool in numbers."""

    nodes: int
    nodes_ready: int
    nodes_draining: int
    nodes_lost: int
    gpus: int
    vgpus: int  # given out
    vgpus_free: int  # of the default size that would still fit
    memory_mib: int  # that vGPUs can have
    memory_given_mib: int
    memory_used_mib: int
    ratio_given_percent: int  # sum over the pool
    ratio_percent: int  # that can be given
    utilization_percent: float | None  # mean over the GPUs that tell it
    sessions: int
    groups: int
    queue: int
    controller: str
    leader: bool
    version: str
    since_s: float


class Gpu(msgspec.Struct, kw_only=True):
    """A physical GPU."""

    node: str
    ordinal: int
    uuid: str
    name: str
    total_mib: int
    capacity_mib: int
    given_mib: int
    used_mib: int
    ratio_given_percent: int
    ratio_percent: int
    vgpus: int
    max_vgpus: int
    utilization_percent: int | None = None
    temperature_c: int | None = None
    power_w: int | None = None
    health: str = ""  # empty: well


class Node(msgspec.Struct, kw_only=True):
    """A server of the pool."""

    name: str
    address: str
    state: NodeState
    version: str
    driver: str
    device_kind: str
    gpus: int
    vgpus: int
    sessions: int
    memory_mib: int
    memory_given_mib: int
    memory_used_mib: int
    utilization_percent: float | None
    last_heartbeat_s: float
    since_s: float


class Vgpu(msgspec.Struct, kw_only=True):
    """A slice of a GPU that is given out. `vgpu`: its name on its server, empty until a program has attached."""

    id: str  # ALLOCATION/INDEX
    vgpu: str
    node: str
    ordinal: int
    group: str  # id of the group
    quota_mib: int
    used_mib: int
    ratio_percent: int
    policy: Policy
    achieved_percent: float
    throttled_ms: int
    launches: int
    sessions: int


class Group(msgspec.Struct, kw_only=True):
    """An allocation: the vGPUs that belong together. `id` names it in the API; `group` is ORION_GROUP_ID."""

    id: str
    group: str
    state: GroupState
    shared: bool
    reserved: bool
    vgpus: int
    nodes: list[str]
    gmem_mib: int  # of each vGPU
    ratio_percent: int
    policy: Policy
    used_mib: int
    achieved_percent: float  # mean over its vGPUs
    sessions: int
    program: str
    owner: str  # "uid@machine", or "namespace/pod"
    since_s: float
    expires_s: float | None = None  # a reservation for which nobody has come yet, or an idle one


class Session(msgspec.Struct, kw_only=True):
    """A client process on a server ("task")."""

    id: str
    node: str
    group: str  # id of the group
    group_name: str
    pid: int
    uid: int
    host: str
    program: str
    transport: str
    since_s: float


class Waiting(msgspec.Struct, kw_only=True):
    """A request in the queue."""

    position: int
    group: str
    vgpus: int
    gmem_mib: int
    ratio_percent: int
    owner: str
    program: str
    since_s: float
    reason: str


class Event(msgspec.Struct, kw_only=True):
    """Something that happened. `user`: who did it, for the audit trail; empty: nobody, it happened by itself."""

    id: int
    at_s: float
    level: Literal["info", "warning", "error"]
    kind: str  # "node.registered", "node.lost", "group.allocated", "group.resized", "group.ended", "user.login", ...
    subject: str  # what it happened to
    message: str
    user: str = ""


class Limits(msgspec.Struct, kw_only=True):
    """What a group name may have together; null: no limit. The group "*" is for all that have none of their own."""

    group: str
    vgpus: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    gmem_mib: Annotated[int, Meta(ge=0, le=1 << 40)] | None = None
    ratio_percent: Annotated[int, Meta(ge=0, le=1 << 30)] | None = None


class LimitsBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    vgpus: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    gmem_mib: Annotated[int, Meta(ge=0, le=1 << 40)] | None = None
    ratio_percent: Annotated[int, Meta(ge=0, le=1 << 30)] | None = None


class Series(msgspec.Struct, kw_only=True):
    """One line of a plot: values at equal steps; null where nothing is known."""

    name: str
    unit: str
    values: list[float | None]


class History(msgspec.Struct, kw_only=True):
    """The last hour. `scope`: "pool", "node/NAME", "gpu/NODE/ORDINAL" or "group/ID"."""

    scope: str
    start_s: float
    step_s: float
    series: list[Series]


class PatchGroup(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """New limits for running programs; null: as it is. `shrink`: a quota below what is used is refused, or set so that
    new allocations fail until usage has fallen."""

    gmem_mib: Annotated[int, Meta(ge=1, le=1 << 30)] | None = None
    ratio_percent: Annotated[int, Meta(ge=1, le=100)] | None = None
    policy: Policy | None = None
    shrink: Literal["refuse", "block"] = "refuse"


class PatchNode(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    draining: bool


class Reserve(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """vGPUs for a group that will come: what a scheduler asks for. It expires unless somebody comes."""

    group: Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]
    vgpus: Annotated[int, Meta(ge=1, le=64)] = 1
    gmem_mib: Annotated[int, Meta(ge=0, le=1 << 30)] = 0
    ratio_percent: Annotated[int, Meta(ge=0, le=100)] = 0
    node: Annotated[str, Meta(max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""  # near this machine
    cross_node: bool = True
    rule: Literal["", "local-first", "binpack", "spread"] = ""
    ttl_s: Annotated[float, Meta(gt=0, le=86400)] = 300.0


class Login(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    user: Annotated[str, Meta(min_length=1, max_length=64)]
    password: Annotated[str, Meta(min_length=1, max_length=256)]


class LoggedIn(msgspec.Struct, kw_only=True):
    """`token` goes into `Authorization: Bearer TOKEN`; browsers also get it as a cookie that scripts cannot read."""

    user: str
    role: Role
    token: str
    expires_s: float


class Me(msgspec.Struct, kw_only=True):
    user: str
    role: Role


class ApiError(msgspec.Struct, kw_only=True):
    """Every refusal: `code` is a word for programs ("not_found", "no_room", "below_usage", ...)."""

    code: str
    message: str
    hint: str = ""
