"""Launches: codes 70 to 79."""

from wire.spec.ops.definition import op

op(
    70,
    "LAUNCH",
    "function:u32 launch_flags:u32 grid_x:u32 grid_y:u32 grid_z:u32 block_x:u32 block_y:u32 block_z:u32 "
    "dynamic_shared_bytes:u32 param_bytes:u32",
    "work gpu_time charges",
    "cuLaunchKernel; launch_flags bit 0: cooperative",
    tail="param_bytes of packed parameters",
)
op(
    71,
    "LAUNCH_EX",
    "function:u32 attribute_count:u32 grid_x:u32 grid_y:u32 grid_z:u32 block_x:u32 block_y:u32 block_z:u32 "
    "dynamic_shared_bytes:u32 param_bytes:u32",
    "work gpu_time charges",
    "cuLaunchKernelEx",
    tail="attribute_count x (u32 id, u32 pad, 64 bytes of value), then the parameters",
)
