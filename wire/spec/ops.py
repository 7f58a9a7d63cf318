"""Operations of the ring.

One entry for each operation: its number (stable, never reused), fixed fields, what its tail is, and flags that the
engine's admission and parking are generated from. Field types: u16, u32, u64, i32, f32. A field named `*_off` is an
offset into the host arena; `device_*` is a device address that the worker checks against its own map.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SIZES = {"u16": 2, "i32": 4, "u32": 4, "f32": 4, "u64": 8}

FLAGS = {
    "reply": "the client waits for the reply slot; without it the op is one-way and must have no outputs",
    "express": "travels in the express ring and never waits behind throttled or bulk work",
    "drains": "would block inside the driver while kernels run: parked until its context is idle",
    "work": "GPU work: admitted by the ratio, counted against queue depth, ordered on its stream",
    "stream": "ordered on header.stream without being GPU work",
    "bulk_in": "reads host arena bytes that travel ahead of it",
    "bulk_out": "writes host arena bytes that must be delivered before a later completion word",
}


@dataclass(frozen=True)
class Op:
    """One operation: `code` is its stable number; `fields` are (name, type); `tail` says what follows them."""

    name: str
    code: int
    fields: tuple[tuple[str, str], ...]
    flags: frozenset[str]
    doc: str
    tail: str = ""
    reply: str = ""
    sizes: dict[str, int] = field(default_factory=dict, compare=False)


OPS: list[Op] = []


def _op(code: int, name: str, fields: str, flags: str, doc: str, tail: str = "", reply: str = "") -> None:
    pairs = []
    for item in fields.split():
        field_name, kind = item.split(":")
        if kind not in SIZES:
            raise ValueError(f"{name}.{field_name}: unknown type {kind}")
        pairs.append((field_name, kind))
    flag_set = frozenset(flags.split())
    unknown = flag_set - FLAGS.keys()
    if unknown:
        raise ValueError(f"{name}: unknown flags {sorted(unknown)}")
    if reply and "reply" not in flag_set:
        raise ValueError(f"{name}: an operation with outputs must be a reply")
    OPS.append(Op(name, code, tuple(pairs), flag_set, doc, tail, reply))


# session
_op(1, "NOP", "", "", "does nothing; a null engine's measure")
_op(2, "PING", "value:u64", "reply express", "answers with its value", reply="value:u64")
_op(3, "DETACH", "", "", "the client leaves in good order; ops after it are dropped")
# contexts (context index is in the header)
_op(
    10,
    "CTX_PRIMARY",
    "device:u32 ctx_flags:u32",
    "reply",
    "binds the header's context index to a device's primary context",
    reply="api_version:u32 ctx_flags:u32 id:u64",
)
_op(
    11,
    "CTX_CREATE",
    "device:u32 ctx_flags:u32",
    "reply",
    "makes an ordinary context",
    reply="api_version:u32 ctx_flags:u32 id:u64",
)
_op(12, "CTX_DESTROY", "", "reply drains", "destroys an ordinary context or gives up the primary binding")
_op(13, "CTX_RESET", "", "reply drains", "frees all that the context's ledger holds (primary reset), keeps the context")
_op(14, "CTX_SET_LIMIT", "limit:u32 pad:u32 value:u64", "reply drains", "cuCtxSetLimit")
_op(15, "CTX_GET_LIMIT", "limit:u32", "reply", "cuCtxGetLimit", reply="value:u64")
_op(16, "CTX_SET_CACHE_CONFIG", "config:u32", "", "cuCtxSetCacheConfig")
_op(17, "CTX_ENABLE_PEER", "peer_context:u32", "reply", "cuCtxEnablePeerAccess")
_op(18, "CTX_DISABLE_PEER", "peer_context:u32", "reply", "cuCtxDisablePeerAccess")
# streams (stream index is in the header)
_op(20, "STREAM_CREATE", "stream_flags:u32 priority:i32", "", "cuStreamCreateWithPriority with a client-minted index")
_op(21, "STREAM_DESTROY", "", "stream", "cuStreamDestroy; pending work goes on")
_op(
    22,
    "MARK",
    "word:u32 pad:u32 value:u64",
    "stream",
    "when all earlier work of the stream is done, words[word] = value",
)
_op(23, "STREAM_WAIT_EVENT", "event:u32 wait_flags:u32", "stream", "cuStreamWaitEvent")
_op(
    24,
    "STREAM_WRITE_VALUE",
    "device_address:u64 value:u64 write_flags:u32 width_bytes:u32",
    "work",
    "the program's own cuStreamWriteValue32/64",
)
_op(
    25,
    "STREAM_WAIT_VALUE",
    "device_address:u64 value:u64 wait_flags:u32 width_bytes:u32",
    "work",
    "the program's own cuStreamWaitValue32/64",
)
_op(
    26,
    "HOST_FUNCTION",
    "callback:u32 pad:u32 generation:u64 word:u32 pad2:u32 value:u64",
    "stream",
    "when earlier work is done: words[word] = value tells the client to run the function; the stream is parked until "
    "client_words[callback] >= generation",
)
# events
_op(30, "EVENT_CREATE", "event:u32 event_flags:u32", "", "cuEventCreate with a client-minted index")
_op(31, "EVENT_DESTROY", "event:u32", "stream", "cuEventDestroy")
_op(
    32,
    "EVENT_RECORD",
    "event:u32 record_flags:u32 word:u32 pad:u32 value:u64",
    "stream",
    "cuEventRecordWithFlags; word != 0: also a marker, placed just behind the record",
)
_op(
    33,
    "EVENT_ELAPSED",
    "start:u32 end:u32",
    "reply",
    "cuEventElapsedTime; 600 just after the marker is retried in the engine",
    reply="milliseconds:f32",
)
# device memory. Addresses are chosen by the client inside the agreed slot.
_op(
    40,
    "MEM_MAP",
    "device_address:u64 size_bytes:u64",
    "reply express",
    "backs [device_address, +size_bytes), both multiples of 2 MiB, with memory of header.context's device",
)
_op(
    41,
    "MEM_FREE",
    "device_address:u64 size_bytes:u64 unmap:u32 pad:u32",
    "",
    "counts into words[FREES_DONE], in order, once all work issued before it is done; "
    "unmap != 0 gives the range back first",
)
_op(42, "MEM_INFO", "", "reply express", "cuMemGetInfo", reply="free_bytes:u64 total_bytes:u64")
_op(
    43,
    "HOST_REGISTER",
    "arena_off:u64 size_bytes:u64 register_flags:u32 pad:u32",
    "reply express",
    "registers pinned memory: a page-aligned part of the host arena",
)
_op(44, "HOST_UNREGISTER", "arena_off:u64 size_bytes:u64", "reply drains", "gives it back")
# copies. Host sides are always host arena offsets.
_op(
    50, "COPY_H2D", "device_dst:u64 src_off:u64 size_bytes:u64", "work bulk_in", "host arena to device on header.stream"
)
_op(51, "COPY_D2H", "src:u64 dst_off:u64 size_bytes:u64", "work bulk_out", "device to host arena on header.stream")
_op(52, "COPY_D2D", "device_dst:u64 src:u64 size_bytes:u64", "work", "device to device on header.stream")
_op(
    53,
    "COPY_PEER",
    "device_dst:u64 src:u64 size_bytes:u64 dst_context:u32 src_context:u32",
    "work",
    "cuMemcpyPeerAsync",
)
_op(
    54,
    "COPY_3D",
    "src_x_bytes:u64 src_y:u64 src_z:u64 dst_x_bytes:u64 dst_y:u64 dst_z:u64 width_bytes:u64 height:u64 depth:u64 "
    "src_address:u64 src_pitch:u64 src_height:u64 dst_address:u64 dst_pitch:u64 dst_height:u64 "
    "src_kind:u32 dst_kind:u32 src_context:u32 dst_context:u32",
    "work bulk_in bulk_out",
    "2D and 3D copies between host arena (kind 1, address = offset) and device (kind 2)",
)
_op(
    55,
    "MEMSET",
    "device_dst:u64 pitch:u64 width:u64 height:u64 value:u32 element_bytes:u32",
    "work",
    "1D (height 1) and 2D fills of 1, 2 or 4 byte elements",
)
_op(56, "COPY_H2D_INLINE", "device_dst:u64", "work", "small host data in the tail", tail="the bytes, at most 4096")
# modules and kernels
_op(
    60,
    "MODULE_LOAD",
    "module:u32 option_count:u32 image_off:u64 image_bytes:u64 log_off:u64 info_log_bytes:u32 error_log_bytes:u32",
    "reply drains bulk_in",
    "cuModuleLoadDataEx of the image in the host arena; logs go to the arena at log_off",
    tail="option_count pairs of u32 option, u32 value (options without pointers)",
    reply="info_log_bytes:u32 error_log_bytes:u32 function_count:u32 pad:u32",
)
_op(61, "MODULE_UNLOAD", "module:u32", "drains", "cuModuleUnload")
_op(
    62,
    "MODULE_GET_FUNCTION",
    "module:u32 function:u32",
    "reply",
    "binds a client-minted function index; answers attributes and parameter layout",
    tail="name, not terminated",
    reply="attribute_count:u32 param_count:u32",
)
_op(
    63,
    "MODULE_GET_GLOBAL",
    "module:u32",
    "reply",
    "cuModuleGetGlobal",
    tail="name, not terminated",
    reply="device_address:u64 size_bytes:u64",
)
_op(64, "FUNCTION_SET_ATTRIBUTE", "function:u32 attribute:i32 value:i32 pad:u32", "reply", "cuFuncSetAttribute")
_op(65, "FUNCTION_SET_CACHE_CONFIG", "function:u32 config:u32", "", "cuFuncSetCacheConfig")
_op(
    66,
    "OCCUPANCY_BLOCKS",
    "function:u32 block_size:i32 dynamic_shared_bytes:u64 occupancy_flags:u32 pad:u32",
    "reply",
    "cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags",
    reply="blocks:i32 pad:u32",
)
_op(
    67,
    "OCCUPANCY_SHARED",
    "function:u32 blocks:i32 block_size:i32 pad:u32",
    "reply",
    "cuOccupancyAvailableDynamicSMemPerBlock",
    reply="size_bytes:u64",
)
_op(
    68,
    "LINK",
    "input_count:u32 option_count:u32 inputs_off:u64 inputs_bytes:u64 out_off:u64 out_bytes:u64 log_off:u64 "
    "info_log_bytes:u32 error_log_bytes:u32",
    "reply drains bulk_in",
    "cuLink*: inputs in the arena as (u32 type, u32 name_bytes, u64 bytes, name, data, padded to 8)...",
    tail="option_count pairs of u32 option, u32 value",
    reply="image_bytes:u64 info_log_bytes:u32 error_log_bytes:u32",
)
_op(
    69,
    "FUNCTION_GET_ATTRIBUTES",
    "function:u32",
    "reply",
    "the attributes again, after a set",
    reply="attribute_count:u32 pad:u32",
)
# launches
_op(
    70,
    "LAUNCH",
    "function:u32 launch_flags:u32 grid_x:u32 grid_y:u32 grid_z:u32 block_x:u32 block_y:u32 block_z:u32 "
    "dynamic_shared_bytes:u32 param_bytes:u32",
    "work",
    "cuLaunchKernel; launch_flags bit 0: cooperative",
    tail="param_bytes of packed parameters",
)
_op(
    71,
    "LAUNCH_EX",
    "function:u32 attribute_count:u32 grid_x:u32 grid_y:u32 grid_z:u32 block_x:u32 block_y:u32 block_z:u32 "
    "dynamic_shared_bytes:u32 param_bytes:u32",
    "work",
    "cuLaunchKernelEx",
    tail="attribute_count x (u32 id, u32 pad, 64 bytes of value), then the parameters",
)
