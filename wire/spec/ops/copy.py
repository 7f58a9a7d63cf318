"""Copies and fills, whose host sides are always host arena offsets: codes 50 to 59."""

from wire.spec.ops.definition import op

op(50, "COPY_H2D", "device_dst:u64 src_off:u64 size_bytes:u64", "work bulk_in", "host arena to device on header.stream")
op(51, "COPY_D2H", "src:u64 dst_off:u64 size_bytes:u64", "work bulk_out", "device to host arena on header.stream")
op(52, "COPY_D2D", "device_dst:u64 src:u64 size_bytes:u64", "work gpu_time", "device to device on header.stream")
op(
    53,
    "COPY_PEER",
    "device_dst:u64 src:u64 size_bytes:u64 dst_context:u32 src_context:u32",
    "work gpu_time",
    "cuMemcpyPeerAsync",
)
op(
    54,
    "COPY_3D",
    "src_x_bytes:u64 src_y:u64 src_z:u64 dst_x_bytes:u64 dst_y:u64 dst_z:u64 width_bytes:u64 height:u64 depth:u64 "
    "src_address:u64 src_pitch:u64 src_height:u64 dst_address:u64 dst_pitch:u64 dst_height:u64 "
    "src_kind:u32 dst_kind:u32 src_context:u32 dst_context:u32",
    "work bulk_in bulk_out gpu_time",
    "2D and 3D copies between host arena (kind 1, address = offset), device (kind 2) and arrays (kind 3, address = "
    "index)",
)
op(
    55,
    "MEMSET",
    "device_dst:u64 pitch:u64 width:u64 height:u64 value:u32 element_bytes:u32",
    "work gpu_time",
    "1D (height 1) and 2D fills of 1, 2 or 4 byte elements",
)
op(56, "COPY_H2D_INLINE", "device_dst:u64", "work", "small host data in the tail", tail="the bytes, at most 4096")
