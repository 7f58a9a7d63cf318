"""Arrays, textures, surfaces and tensor maps: codes 190 to 229."""

from wire.spec.ops.definition import op

op(
    190,
    "TENSOR_MAP_ENCODE",
    "kind:u32 data_type:u32 rank:u32 interleave:u32 swizzle:u32 l2_promotion:u32 oob_fill:u32 channels_per_pixel:u32 "
    "pixels_per_column:u32 mode:u32 address:u64",
    "reply express",
    "cuTensorMapEncodeTiled (kind 0), Im2col (1), Im2colWide (2), without a context when header.context is 0; the map "
    "follows the reply; address_at: byte offset at which it holds the address and nothing else, 0xffffffff: not proven",
    tail="u64 dimensions[5], u64 strides[4], u32 box[5], u32 element_strides[5], i32 lower[3], i32 upper[3]",
    reply="address_at:u32 pad:u32",
)
op(
    191,
    "TENSOR_MAP_REPLACE_ADDRESS",
    "address:u64",
    "reply express",
    "cuTensorMapReplaceAddress of the map in the tail; the new map is the reply",
    tail="the map, 128 bytes",
)
