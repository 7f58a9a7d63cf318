"""Control messages: one msgpack map each, over ZeroMQ. See docs/protocol.md.

Unknown fields are ignored. An unknown `v`, an unequal wire major, a field out of bounds: refused with a sentence, which
`ControlError` carries together with the CUresult for the client.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from wire.gen_wire_version import MAJOR, MINOR

VERSION = 1
MAX_MESSAGE_BYTES = 1 << 20
CUDA_ERROR_INVALID_VALUE = 1
CUDA_ERROR_SYSTEM_DRIVER_MISMATCH = 803

U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U31 = Annotated[int, Meta(ge=0, le=0x7FFFFFFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
I32 = Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)]
I63 = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Bytes63 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Address = Annotated[int, Meta(ge=0, lt=1 << 47, multiple_of=1 << 21)]
Ordinal = Annotated[int, Meta(ge=0, lt=64)]
Text = Annotated[str, Meta(max_length=400)]
Token = Annotated[bytes, Meta(min_length=32, max_length=32)]
SessionId = Annotated[str, Meta(min_length=1, max_length=64)]
Transport = Literal["shm", "tcp"]
RatioPolicy = Literal["hard", "elastic"]
ClientKey = Annotated[str, Meta(max_length=128)]
AdminToken = Annotated[str, Meta(max_length=128)]


WIRE_VERSION: tuple[int, int] = (MAJOR, MINOR)


class ControlError(Exception):
    """A message that is not accepted. `request_id` is None when not even the id could be read."""

    def __init__(
        self, message: str, hint: str = "", code: int = CUDA_ERROR_INVALID_VALUE, request_id: int | None = None
    ):
        super().__init__(message)
        self.hint, self.code, self.request_id = hint, code, request_id


class _Message(msgspec.Struct, tag_field="type", kw_only=True):
    id: U32
    v: int = VERSION


class Attach(_Message, tag="attach", kw_only=True):
    """A client process asks for a worker."""

    wire: tuple[U16, U16]
    client: Text = ""
    pid: U31 = 0
    uid: U32 = 0
    host: Text = ""
    program: Text = ""
    transports: Annotated[list[Transport], Meta(min_length=1, max_length=8)]
    # Kinds of tcp lanes that the client knows, best first: "raw" (plain sockets), "zmq".
    lanes: Annotated[list[Annotated[str, Meta(max_length=16)]], Meta(max_length=8)] = []
    vgpu: Annotated[int, Meta(ge=0, le=64)] = 0
    gmem_mib: U31 = 0
    ratio: U31 = 0
    ratio_policy: Literal["", "hard", "elastic"] = ""
    group: Text = ""
    res_group: Text = ""  # "BOX": the sessions of `group` share one vGPU on each GPU
    ticket: Annotated[bytes, Meta(max_length=2048)] = b""  # of the pool's controller (wire/ticket.py)
    # UCX's lanes: "any" where the client wants them whatever carries them, "rdma" where both sides must have a device.
    ucx: Annotated[str, Meta(max_length=16)] = ""
    # Encrypted lanes: what the client wants, and the ciphers that it can use, best first. Where control is not
    # encrypted it names none: their keys come from the token, which control carries.
    encrypt: Literal["auto", "on", "off"] = "auto"
    ciphers: Annotated[list[Annotated[str, Meta(max_length=32)]], Meta(max_length=8)] = []
    key: ClientKey = ""  # what a server with --client-key-file asks of its clients
    env: Annotated[dict[Annotated[str, Meta(max_length=64)], Text], Meta(max_length=64)] = {}


class Device(msgspec.Struct, kw_only=True):
    ordinal: Ordinal
    name: Annotated[str, Meta(max_length=255)]
    uuid: Annotated[bytes, Meta(min_length=16, max_length=16)]
    pci_bus_id: Annotated[str, Meta(max_length=31)]
    total_bytes: Bytes63
    attributes: Annotated[dict[U16, I32], Meta(max_length=512)]
    priority_range: tuple[I32, I32]
    primary_flags: U32 = 0
    slot_bytes: Bytes63
    # For each device of the server: [whether kernels reach its memory, cuDeviceGetP2PAttribute 1, 2, ...].
    peers: Annotated[list[Annotated[list[I32], Meta(max_length=16)]], Meta(max_length=64)] = []


# Microseconds of the server's part of an attach, by name: what a client shows with its statistics.
Stages = Annotated[dict[Annotated[str, Meta(max_length=19)], U32], Meta(max_length=16)]


class Attached(_Message, tag="attached", kw_only=True):
    session: SessionId
    token: Token
    wire: tuple[U16, U16]
    server: Text
    device_name_kind: Literal["nvidia", "softgpu"]
    driver_version: U31
    runtime_validated: bool = False
    shm_socket: Annotated[str, Meta(max_length=107)] = ""
    tcp_ops: Text = ""
    tcp_bulk: Text = ""
    cipher: Annotated[str, Meta(max_length=32)] = ""  # of plain TCP lanes; empty: they are not encrypted
    ucx: Text = ""  # endpoint of UCX's lanes, offered beside the plain ones; never encrypted
    ucx_refused: Annotated[str, Meta(max_length=200)] = ""  # why there are none, where the client asked
    warm: bool = False  # whether a worker was ready when the request came
    stages: Stages = {}
    devices: Annotated[list[Device], Meta(max_length=64)]


class DeviceSlot(msgspec.Struct, kw_only=True):
    ordinal: Ordinal
    base: Address
    bytes: Annotated[int, Meta(gt=0, le=1 << 40, multiple_of=1 << 21)]


class Bind(_Message, tag="bind", kw_only=True):
    session: SessionId
    token: Token
    transport: Transport
    host_base: Address
    devices: Annotated[list[DeviceSlot], Meta(max_length=64)]


class Bound(_Message, tag="bound", kw_only=True):
    stages: Stages = {}


class Conflict(_Message, tag="conflict", kw_only=True):
    host: bool
    devices: Annotated[list[Ordinal], Meta(max_length=64)]


class Detach(_Message, tag="detach", kw_only=True):
    """A client gives back a session that it does not need. Nobody waits for an answer; there is none."""

    session: SessionId
    token: Token


class Stats(_Message, tag="stats", kw_only=True):
    """Who uses what. `telemetry`: the management library asks, for the process that the other fields name: it gets the
    devices that this process has or would get, what they tell about themselves, and the sessions of its user alone."""

    telemetry: bool = False
    pid: U31 = 0
    uid: U32 = 0
    host: Text = ""
    vgpu: Annotated[int, Meta(ge=0, le=64)] = 0
    gmem_mib: U31 = 0
    group: Text = ""
    res_group: Text = ""
    key: ClientKey = ""  # as in Attach


class GpuStats(msgspec.Struct, kw_only=True):
    ordinal: Ordinal
    name: Text
    uuid: Annotated[bytes, Meta(min_length=16, max_length=16)]
    total_bytes: Bytes63
    used_bytes: Bytes63
    pci_bus_id: Annotated[str, Meta(max_length=31)] = ""
    # What vGPUs can have and have: memory (the node's own is not in it), and the sum of their ratios.
    capacity_bytes: Bytes63 = 0
    given_bytes: Bytes63 = 0
    given_percent: U31 = 0
    # What the device tells about itself, by name with its unit; and, for each device of `gpus`, how it is reached:
    # [topology level, P2P status by capability...].
    metrics: Annotated[dict[Annotated[str, Meta(max_length=64)], Bytes63], Meta(max_length=64)] = {}
    peers: Annotated[list[Annotated[list[U32], Meta(max_length=8)]], Meta(max_length=64)] = []


class SessionStats(msgspec.Struct, kw_only=True):
    session: SessionId
    pid: U31
    program: Text
    transport: str
    devices: list[Ordinal]
    used_bytes: Bytes63
    since: float
    used_by_device: dict[Ordinal, Bytes63] = {}
    # Counters of the worker's engine, by name with their unit (docs/statistics.md).
    engine: Annotated[dict[Annotated[str, Meta(max_length=64)], Bytes63], Meta(max_length=64)] = {}


class VgpuStats(msgspec.Struct, kw_only=True):
    """A vGPU: what it may use, and what its sessions have used since it was made."""

    vgpu: Text
    gpu: Ordinal
    group: Text = ""
    shared: bool = False  # by the sessions of the group
    sessions: list[SessionId] = []
    pids: list[U31] = []
    since: float = 0.0
    quota_bytes: Bytes63 = 0  # 0: none
    used_bytes: Bytes63 = 0
    out_bytes: Bytes63 = 0  # of it, what lies in host memory alone
    kind_bytes: Annotated[dict[Annotated[str, Meta(max_length=32)], Bytes63], Meta(max_length=32)] = {}
    pinned_bytes: Bytes63 = 0
    ratio: Annotated[int, Meta(ge=0, le=100)] = 0  # percent; 0: none
    policy: RatioPolicy = "hard"
    achieved_1s: float = 0.0  # share of the GPU, 0 to 1
    achieved_10s: float = 0.0
    spent_ns: Bytes63 = 0
    throttled_ns: Bytes63 = 0
    works: Bytes63 = 0
    turns: Bytes63 = 0


class Defaults(msgspec.Struct, kw_only=True):
    """What a vGPU gets whose client does not ask for something else."""

    vgpu_count: U31 = 0
    policy: RatioPolicy = "hard"
    overcommit_ratio: bool = False


class ImageStats(msgspec.Struct, kw_only=True):
    """The server's cache of images, since it started."""

    count: U31 = 0
    size_bytes: Bytes63 = 0
    bound_bytes: Bytes63 = 0
    hits: Bytes63 = 0
    misses: Bytes63 = 0
    refused_proofs: Bytes63 = 0
    uploads: Bytes63 = 0
    uploaded_bytes: Bytes63 = 0
    evicted: Bytes63 = 0


class StatsAnswer(_Message, tag="stats", kw_only=True):
    server: Text
    name: Text
    driver: Text = ""  # the GPU driver's version; empty when there is none
    driver_version: U31 = 0  # the CUDA version that it serves
    gpus: Annotated[list[GpuStats], Meta(max_length=64)]
    sessions: Annotated[list[SessionStats], Meta(max_length=4096)]
    images: ImageStats | None = None
    vgpus: Annotated[list[VgpuStats], Meta(max_length=16384)] = []
    defaults: Defaults | None = None


class Resize(_Message, tag="resize", kw_only=True):
    """New limits for running vGPUs: those of a group, a session, a client's process id, or one by its name."""

    token: AdminToken = ""
    target: Text
    gpu: Ordinal | None = None  # of the target's vGPUs, the one on this GPU
    gmem_mib: I63 | None = None
    ratio: I63 | None = None
    policy: RatioPolicy | None = None
    shrink: Literal["refuse", "block"] = "refuse"


class Resized(_Message, tag="resized", kw_only=True):
    """The vGPUs of the target as they are now; the programs in them have met the new limits already."""

    vgpus: Annotated[list[VgpuStats], Meta(max_length=16384)]


class Configure(_Message, tag="configure", kw_only=True):
    """What later vGPUs get by default; None: as it is."""

    token: AdminToken = ""
    vgpu_count: I63 | None = None
    policy: RatioPolicy | None = None
    overcommit_ratio: bool | None = None


class Configured(_Message, tag="configured", kw_only=True):
    defaults: Defaults


class Drain(_Message, tag="drain", kw_only=True):
    token: AdminToken = ""


class Drained(_Message, tag="drained", kw_only=True):
    pass


class Error(_Message, tag="error", kw_only=True):
    code: Annotated[int, Meta(gt=0, lt=1000)]
    message: Text
    hint: Text = ""


Request = Attach | Bind | Detach | Stats | Drain | Resize | Configure
Answer = Attached | Bound | Conflict | StatsAnswer | Drained | Resized | Configured | Error

_encoder = msgspec.msgpack.Encoder()
Decoded = TypeVar("Decoded")


@cache
def boot_id() -> str:
    """Names this boot of this host: equal on both ends means that shared memory may work."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def encode(message: Request | Answer) -> bytes:
    return _encoder.encode(message)


def decode_request(data: bytes) -> Request:
    """The request in `data`, every field within its bounds; ControlError otherwise."""
    request = _decode(data, _request_decoder)
    if isinstance(request, Attach) and request.wire[0] != WIRE_VERSION[0]:
        raise ControlError(
            f"the client speaks wire {request.wire[0]}.{request.wire[1]}, "
            f"this server {WIRE_VERSION[0]}.{WIRE_VERSION[1]}",
            "install the same release on both sides",
            CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
            request.id,
        )
    return request


def decode_answer(data: bytes) -> Answer:
    """The answer in `data`; ControlError when it is not one."""
    return _decode(data, _answer_decoder)


_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answer_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


class _Head(msgspec.Struct):
    v: Any = None
    id: Any = None


_head_decoder = msgspec.msgpack.Decoder(_Head)


def _decode(data: bytes, decoder: msgspec.msgpack.Decoder[Decoded]) -> Decoded:
    if len(data) > MAX_MESSAGE_BYTES:
        raise ControlError(f"a control message of {len(data)} bytes: at most {MAX_MESSAGE_BYTES} are accepted")
    try:
        head = _head_decoder.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise ControlError(f"not a control message: {error}", "is this the control port of an orion-server?") from error
    request_id = head.id if isinstance(head.id, int) and 0 <= head.id <= 0xFFFFFFFF else None
    if head.v != VERSION:
        raise ControlError(
            f"control protocol version {head.v!r:.40} is not understood, only {VERSION}",
            "install the same release on both sides",
            CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
            request_id,
        )
    try:
        return decoder.decode(data)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ControlError(f"bad control message: {error}", request_id=request_id) from error
