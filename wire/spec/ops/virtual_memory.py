"""Virtual memory and stream-ordered pools: codes 130 to 134.

Reservations are the client's business: the whole slot is reserved at bind. A pool is made of the same operations.
"""

from wire.spec.ops.definition import op

op(
    130,
    "VMM_CREATE",
    "memory:u32 device:u32 size_bytes:u64 handle_types:u32 alloc_flags:u32",
    "reply express charges",
    "cuMemCreate on the device (its ordinal on the server) under a client-minted index; "
    "alloc_flags: compression | gpu_direct_rdma << 8 | usage << 16",
)
op(
    131,
    "VMM_RELEASE",
    "memory:u32 pad:u32",
    "",
    "gives it back: sent when no handle is held and nothing is mapped any more",
)
op(
    132,
    "VMM_MAP",
    "device_address:u64 size_bytes:u64 offset_bytes:u64 memory:u32 pad:u32",
    "",
    "maps a part of the memory at an address inside a slot, both multiples of 2 MiB",
)
op(
    133,
    "VMM_UNMAP",
    "device_address:u64 size_bytes:u64",
    "",
    "unmaps whole mappings. It waits for no work, as natively",
)
op(
    134,
    "VMM_SET_ACCESS",
    "device_address:u64 size_bytes:u64 count:u32 pad:u32",
    "",
    "cuMemSetAccess over whole mappings",
    tail="count times location type:u32 id:i32 access flags:u32 pad:u32; ids of devices are ordinals on the server",
)
