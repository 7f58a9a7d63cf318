"""Device memory, at addresses that the client chooses inside the agreed slot, and pinned memory: codes 40 to 49."""

from wire.spec.ops.definition import op

op(
    40,
    "MEM_MAP",
    "device_address:u64 size_bytes:u64",
    "reply express charges",
    "backs [device_address, +size_bytes), both multiples of 2 MiB, with memory of header.context's device",
)
op(
    41,
    "MEM_FREE",
    "device_address:u64 size_bytes:u64 unmap:u32 pad:u32",
    "",
    "counts into words[FREES_DONE], in order, once all work issued before it is done; "
    "unmap != 0 gives the range back first",
)
op(42, "MEM_INFO", "", "reply express", "cuMemGetInfo", reply="free_bytes:u64 total_bytes:u64")
op(
    43,
    "HOST_REGISTER",
    "arena_off:u64 size_bytes:u64 register_flags:u32 pad:u32",
    "reply express charges",
    "registers pinned memory: a page-aligned part of the host arena",
)
op(
    45,
    "DEVICE_MEMORY",
    "device:u32 pad:u32",
    "reply express",
    "what the slice has of a device now; needs no context; quota_bytes 0: no quota",
    reply="quota_bytes:u64 free_bytes:u64",
)
op(44, "HOST_UNREGISTER", "arena_off:u64 size_bytes:u64", "reply drains", "gives it back")
