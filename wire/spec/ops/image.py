"""Images kept by content, libraries and kernels: codes 230 to 249.

An image is offered by its SHA-256 and size under a client-minted index, uploaded where nobody has it, and consumed by
the load that names it. `image` 0xffffffff: the image stands in the host arena instead (small ones).
"""

from wire.spec.ops.definition import op

_HASH = "{0}_0:u64 {0}_1:u64 {0}_2:u64 {0}_3:u64"

op(
    230,
    "IMAGE_OFFER",
    "image:u32 pad:u32 size_bytes:u64 " + _HASH.format("hash"),
    "reply",
    "opens image index `image`; state 0: upload it, 1: it is there, 2: prove possession with IMAGE_PROVE",
    reply="state:u32 pad:u32 " + _HASH.format("nonce"),
)
op(
    231,
    "IMAGE_PROVE",
    "image:u32 pad:u32 " + _HASH.format("proof"),
    "reply",
    "SHA-256 of nonce and image; state as in IMAGE_OFFER, never 2",
    reply="state:u32 pad:u32",
)
op(
    232,
    "IMAGE_DATA",
    "image:u32 pad:u32 at:u64 arena_off:u64 size_bytes:u64",
    "reply bulk_in",
    "the image's bytes [at, +size_bytes), in order and without gaps",
)
op(233, "IMAGE_DROP", "image:u32", "", "gives the index back unused")
op(
    234,
    "IMAGE_MODULE_LOAD",
    "module:u32 image:u32 log_off:u64 info_log_bytes:u32 error_log_bytes:u32 option_count:u32 pad:u32",
    "reply drains charges",
    "MODULE_LOAD of an offered image, whose index is free afterwards",
    tail="option_count pairs of u32 option, u32 value (options without pointers)",
    reply="info_log_bytes:u32 error_log_bytes:u32 function_count:u32 pad:u32",
)
op(
    235,
    "LIBRARY_LOAD",
    "library:u32 image:u32 image_off:u64 image_bytes:u64 log_off:u64 info_log_bytes:u32 error_log_bytes:u32 "
    "option_count:u32 pad:u32",
    "reply bulk_in charges",
    "cuLibraryLoadData; needs no context; an image index is free afterwards",
    tail="option_count pairs of u32 option, u32 value (options without pointers)",
    reply="info_log_bytes:u32 error_log_bytes:u32",
)
op(236, "LIBRARY_UNLOAD", "library:u32", "drains", "cuLibraryUnload, and all modules, functions and kernels of it")
op(
    237,
    "LIBRARY_GET_KERNEL",
    "library:u32 kernel:u32",
    "reply",
    "binds a client-minted kernel index",
    tail="name, not terminated",
)
op(
    238,
    "LIBRARY_GET_MODULE",
    "library:u32 module:u32",
    "reply drains charges",
    "binds a client-minted module index to the library's module in header.context",
    reply="function_count:u32 pad:u32",
)
op(
    239,
    "LIBRARY_NAMES",
    "library:u32 skip:u32",
    "reply",
    "names of its kernels from number `skip` on, as many as fit: u16 bytes, then the name",
    reply="total:u32 count:u32",
)
op(
    240,
    "MODULE_NAMES",
    "module:u32 skip:u32",
    "reply",
    "names of its functions, as LIBRARY_NAMES",
    reply="total:u32 count:u32",
)
op(
    241,
    "KERNEL_FUNCTION",
    "kernel:u32 module:u32 function:u32 pad:u32",
    "reply charges",
    "cuKernelGetFunction in header.context; `module`: the library's there; answers as MODULE_GET_FUNCTION",
    reply="attribute_count:u32 param_count:u32",
)
op(
    242,
    "KERNEL_GET_ATTRIBUTES",
    "kernel:u32 device:u32",
    "reply",
    "attributes on a device",
    reply="attribute_count:u32 pad:u32",
)
op(
    243,
    "KERNEL_GET_PARAMS",
    "kernel:u32",
    "reply",
    "parameter layout, asked in header.context: pairs of u32 offset, u32 size",
    reply="param_count:u32 pad:u32",
)
op(
    244,
    "KERNEL_SET_ATTRIBUTE",
    "kernel:u32 attribute:i32 value:i32 device:u32",
    "reply",
    "cuKernelSetAttribute",
)
op(245, "KERNEL_SET_CACHE_CONFIG", "kernel:u32 config:u32 device:u32 pad:u32", "", "cuKernelSetCacheConfig")
op(
    246,
    "LIBRARY_LOOKUP",
    "library:u32 kind:u32",
    "reply",
    "kind 0: cuLibraryGetManaged, which needs no context; 1: cuLibraryGetUnifiedFunction",
    tail="name, not terminated",
    reply="address:u64 size_bytes:u64",
)
op(
    247,
    "OCCUPANCY_CLUSTERS",
    "function:u32 kind:u32 grid_x:u32 grid_y:u32 grid_z:u32 block_x:u32 block_y:u32 block_z:u32 "
    "dynamic_shared_bytes:u32 attribute_count:u32",
    "reply",
    "kind 0: cuOccupancyMaxActiveClusters, 1: cuOccupancyMaxPotentialClusterSize",
    tail="attributes as in LAUNCH_EX",
    reply="value:i32 pad:u32",
)
