"""Modules and kernels: codes 60 to 69."""

from wire.spec.ops.definition import op

op(
    60,
    "MODULE_LOAD",
    "module:u32 option_count:u32 image_off:u64 image_bytes:u64 log_off:u64 info_log_bytes:u32 error_log_bytes:u32",
    "reply drains bulk_in charges",
    "cuModuleLoadDataEx of the image in the host arena; logs go to the arena at log_off",
    tail="option_count pairs of u32 option, u32 value (options without pointers)",
    reply="info_log_bytes:u32 error_log_bytes:u32 function_count:u32 pad:u32",
)
op(61, "MODULE_UNLOAD", "module:u32", "drains", "cuModuleUnload")
op(
    62,
    "MODULE_GET_FUNCTION",
    "module:u32 function:u32",
    "reply charges",
    "binds a client-minted function index; answers attributes and parameter layout",
    tail="name, not terminated",
    reply="attribute_count:u32 param_count:u32",
)
op(
    63,
    "MODULE_GET_GLOBAL",
    "module:u32",
    "reply",
    "cuModuleGetGlobal",
    tail="name, not terminated",
    reply="device_address:u64 size_bytes:u64 managed:u32 pad:u32",
)
op(64, "FUNCTION_SET_ATTRIBUTE", "function:u32 attribute:i32 value:i32 pad:u32", "reply", "cuFuncSetAttribute")
op(65, "FUNCTION_SET_CACHE_CONFIG", "function:u32 config:u32", "", "cuFuncSetCacheConfig")
op(
    66,
    "OCCUPANCY_BLOCKS",
    "function:u32 block_size:i32 dynamic_shared_bytes:u64 occupancy_flags:u32 pad:u32",
    "reply",
    "cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags",
    reply="blocks:i32 pad:u32",
)
op(
    67,
    "OCCUPANCY_SHARED",
    "function:u32 blocks:i32 block_size:i32 pad:u32",
    "reply",
    "cuOccupancyAvailableDynamicSMemPerBlock",
    reply="size_bytes:u64",
)
op(
    68,
    "LINK",
    "input_count:u32 option_count:u32 inputs_off:u64 inputs_bytes:u64 out_off:u64 out_bytes:u64 log_off:u64 "
    "info_log_bytes:u32 error_log_bytes:u32",
    "reply drains bulk_in",
    "cuLink*: inputs in the arena as (u32 type, u32 name_bytes, u64 bytes, name, data, padded to 8)...",
    tail="option_count pairs of u32 option, u32 value",
    reply="image_bytes:u64 info_log_bytes:u32 error_log_bytes:u32",
)
op(
    69,
    "FUNCTION_GET_ATTRIBUTES",
    "function:u32",
    "reply",
    "the attributes again, after a set",
    reply="attribute_count:u32 pad:u32",
)
