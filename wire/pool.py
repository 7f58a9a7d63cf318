"""Messages of the pool: one msgpack map each, over ZeroMQ, on the controller's port (9123). See docs/protocol.md.

Servers and clients are DEALERs, the controller is a ROUTER. Every map has `v`, `type` and `id`; an answer repeats the
`id` of its request. Both ends ask: the controller may send a registered server a request at any time. Unknown fields
are ignored, fields out of bounds refused with a sentence. What is sent often is `array_like`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from wire.control import U16, U31, U32, Defaults, RatioPolicy, Text

VERSION = 1
DEFAULT_PORT = 9123
MAX_MESSAGE_BYTES = 1 << 20
HEARTBEAT_S = 1.0
LEASE_S = 5.0

Name = Annotated[str, Meta(min_length=1, max_length=255)]
AllocationId = Annotated[str, Meta(min_length=1, max_length=64)]
SessionId = Annotated[str, Meta(min_length=1, max_length=64)]
Key = Annotated[str, Meta(max_length=256)]
# A pod's service-account token (a JWT); the shim's ORION_TOKEN_BYTES and settings.TOKEN_BYTES_MOST are its bound too.
PodToken = Annotated[str, Meta(max_length=8192)]
Percent = Annotated[int, Meta(ge=0, le=100)]
Mib = Annotated[int, Meta(ge=0, le=1 << 30)]
Ordinal = Annotated[int, Meta(ge=0, lt=64)]
Big = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class _Message(msgspec.Struct, tag_field="type", kw_only=True):
    id: U32
    v: int = VERSION


# ------------------------------------------------------------------------------------------------- servers


class PoolGpu(msgspec.Struct, array_like=True, kw_only=True):
    """A GPU that a server offers. `capacity_mib`: what vGPUs can have of it; the node's own is not in it."""

    ordinal: Ordinal
    uuid: Annotated[str, Meta(max_length=64)]
    name: Annotated[str, Meta(max_length=255)]
    total_mib: Mib
    capacity_mib: Mib
    max_vgpus: Annotated[int, Meta(ge=1, le=100)]
    ratio_percent: Annotated[int, Meta(ge=1, le=10000)] = 100  # above 100 where ratios may be overcommitted


class Held(msgspec.Struct, array_like=True, kw_only=True):
    """An allocation as its server has it: what a controller needs that has forgotten it."""

    allocation: AllocationId
    group: Text
    ordinals: Annotated[list[Ordinal], Meta(min_length=1, max_length=64)]
    gmem_mib: Mib
    ratio: Percent
    ratio_policy: Literal["", "hard", "elastic"]
    shared: bool


class SessionReport(msgspec.Struct, array_like=True, kw_only=True):
    """A client process on a server."""

    session: SessionId
    allocation: Annotated[str, Meta(max_length=64)]  # empty: attached without a controller
    pid: U31
    uid: U32
    host: Text
    program: Text
    transport: Annotated[str, Meta(max_length=16)]
    since_s: Annotated[float, Meta(ge=0, le=1e12)]
    group: Text = ""


class VgpuReport(msgspec.Struct, array_like=True, kw_only=True):
    """A vGPU on a server: limits and use."""

    vgpu: Name
    allocation: Annotated[str, Meta(max_length=64)]
    ordinal: Ordinal
    quota_mib: Mib
    used_mib: Mib
    ratio: Percent
    ratio_policy: RatioPolicy
    achieved_percent: Annotated[float, Meta(ge=0, le=1e6)]  # of the GPU, over the last second
    throttled_ms: Big
    launches: Big
    sessions: U31
    group: Text = ""


class GpuReport(msgspec.Struct, array_like=True, kw_only=True):
    """What a GPU does now; None: the device does not tell."""

    ordinal: Ordinal
    used_mib: Mib
    utilization_percent: Percent | None = None
    temperature_c: Annotated[int, Meta(ge=-100, le=300)] | None = None
    power_w: Annotated[int, Meta(ge=0, le=100000)] | None = None
    health: Annotated[str, Meta(max_length=200)] = ""  # empty: well; else what is wrong


class Register(_Message, tag="register", kw_only=True):
    """A server joins, or comes back: all that it offers and all that it holds. `server` is its name in the pool;
    `instance` changes with each start; `address` is where clients find it (host:port)."""

    server: Name
    instance: Annotated[str, Meta(min_length=8, max_length=64)]
    address: Name
    public_key: Annotated[str, Meta(max_length=40)] = ""  # CurveZMQ's, z85; empty: not encrypted
    version: Text = ""
    wire: tuple[U16, U16]
    host: Text = ""  # boot id
    node: Text = ""  # name of the machine
    driver: Text = ""
    device_kind: Annotated[str, Meta(max_length=16)] = ""  # "nvidia" or "softgpu"
    key: Key = ""  # the pool's server key
    gpus: Annotated[list[PoolGpu], Meta(max_length=64)]
    held: Annotated[list[Held], Meta(max_length=16384)] = []
    sessions: Annotated[list[SessionReport], Meta(max_length=16384)] = []
    defaults: Defaults | None = None
    draining: bool = False


class Registered(_Message, tag="registered", kw_only=True):
    """Welcome. `draining`: what the controller wants of it. `now_s`: its clock, by which tickets expire."""

    controller: Text
    ticket_key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    now_s: float
    heartbeat_s: float = HEARTBEAT_S
    lease_s: float = LEASE_S
    draining: bool = False


class Heartbeat(_Message, tag="heartbeat", kw_only=True):
    """Each second, and at once when a session begins or ends. None: as last told. Answered where it `asks`: each answer
    of a controller costs it more than the question."""

    server: Name
    instance: Annotated[str, Meta(min_length=8, max_length=64)]
    gpus: Annotated[list[GpuReport], Meta(max_length=64)] = []
    # Those that have changed; `is_whole`: all there are.
    is_whole: bool = True
    vgpus: Annotated[list[VgpuReport], Meta(max_length=16384)] | None = None
    sessions: Annotated[list[SessionReport], Meta(max_length=16384)] | None = None
    draining: bool = False
    asks: bool = True


class HeartbeatOk(_Message, tag="heartbeat_ok", kw_only=True):
    now_s: float


class Unknown(_Message, tag="unknown", kw_only=True):
    """The controller does not know this server or this instance: register."""


class Leave(_Message, tag="leave", kw_only=True):
    """A server goes in good order; its sessions have ended."""

    server: Name
    instance: Annotated[str, Meta(min_length=8, max_length=64)]


# ------------------------------------------------------------------------------------------------- to servers


class ResizeAllocation(_Message, tag="resize_allocation", kw_only=True):
    """New limits for an allocation's vGPUs on this server, all or none. None: as it is."""

    allocation: AllocationId
    gmem_mib: Mib | None = None
    ratio: Percent | None = None
    ratio_policy: RatioPolicy | None = None
    shrink: Literal["refuse", "block"] = "refuse"


class EndSessions(_Message, tag="end_sessions", kw_only=True):
    """Ends one session, or all of an allocation."""

    allocation: Annotated[str, Meta(max_length=64)] = ""
    session: Annotated[str, Meta(max_length=64)] = ""
    reason: Text = ""


class SetDraining(_Message, tag="set_draining", kw_only=True):
    draining: bool


class Done(_Message, tag="done", kw_only=True):
    """In force."""


# ------------------------------------------------------------------------------------------------- clients


class Allocate(_Message, tag="allocate", kw_only=True):
    """A client process asks for vGPUs. 0 and "": the pool's default."""

    wire: tuple[U16, U16]
    client: Text = ""
    pid: U31 = 0
    uid: U32 = 0
    host: Text = ""  # boot id
    node: Text = ""  # name of the machine
    program: Text = ""
    vgpu: Annotated[int, Meta(ge=0, le=64)] = 1
    gmem_mib: U31 = 0
    ratio: U31 = 0
    ratio_policy: Literal["", "hard", "elastic"] = ""
    group: Annotated[str, Meta(max_length=255)] = ""
    res_group: Annotated[str, Meta(max_length=16)] = ""  # "BOX": the processes of the group share the allocation
    cross_node: bool = True
    reserved: bool = False
    rule: Annotated[str, Meta(max_length=32)] = ""  # "", "local-first", "binpack", "spread"
    wait_s: Annotated[float, Meta(ge=0, le=86400)] = 0.0  # how long it would wait in the queue
    key: Key = ""  # the pool's client key
    token: PodToken = ""  # proves the pod whose uid `group` is
    pod: Annotated[dict[Annotated[str, Meta(max_length=16)], Text], Meta(max_length=8)] = {}  # name, uid, namespace


class ServerTicket(msgspec.Struct, kw_only=True):
    """Where some of the vGPUs are; attach to each with its ticket."""

    server: Name
    address: Name
    public_key: Annotated[str, Meta(max_length=40)] = ""
    ticket: Annotated[bytes, Meta(max_length=2048)]


class Allocated(_Message, tag="allocated", kw_only=True):
    """The vGPUs, in the order in which the program counts devices."""

    allocation: AllocationId
    servers: Annotated[list[ServerTicket], Meta(min_length=1, max_length=64)]
    attach_within_s: float


class Queued(_Message, tag="queued", kw_only=True):
    """Not yet: `allocated` or `error` follows with the same id. The client stays in the queue while it asks again
    (`still_waiting`) within LEASE_S."""

    position: U31  # from 1
    reason: Text
    ticket: U31


class StillWaiting(_Message, tag="still_waiting", kw_only=True):
    """Answered by `queued`, `allocated` or `error`: on the connection that was given the ticket."""

    ticket: U31


class GiveUp(_Message, tag="give_up", kw_only=True):
    """Waits no more, or does not come for its allocation: heard on the connection that was given them. No answer."""

    ticket: U31 = 0
    allocation: Annotated[str, Meta(max_length=64)] = ""
    key: Key = ""


class Lookup(_Message, tag="lookup", kw_only=True):
    """For management tools in a client's environment: what its group or its process has."""

    group: Annotated[str, Meta(max_length=255)] = ""
    host: Text = ""
    uid: U32 = 0
    pid: U31 = 0
    key: Key = ""
    token: PodToken = ""  # as in Allocate


class LookedUp(_Message, tag="looked_up", kw_only=True):
    """The servers on which there is something of it; each tells the rest (`stats`). `whole_pool`: the pool's totals,
    as in /api/v1/summary."""

    servers: Annotated[list[Name], Meta(max_length=64)]
    public_keys: Annotated[list[Annotated[str, Meta(max_length=40)]], Meta(max_length=64)] = []  # by position
    stats_keys: Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=64)] = []  # `key` of `stats`
    totals: dict[str, Any] = {}


class NotLeader(_Message, tag="not_leader", kw_only=True):
    """Another replica decides at present; `leader` is its address, or empty."""

    leader: Annotated[str, Meta(max_length=255)] = ""


class Error(_Message, tag="error", kw_only=True):
    code: Annotated[int, Meta(gt=0, lt=1000)]  # a CUresult
    message: Text
    hint: Text = ""


ToController = Register | Heartbeat | Leave | Allocate | StillWaiting | GiveUp | Lookup | Done | Error
ToServer = Registered | HeartbeatOk | Unknown | ResizeAllocation | EndSessions | SetDraining | NotLeader | Error
ToClient = Allocated | Queued | LookedUp | NotLeader | Error
