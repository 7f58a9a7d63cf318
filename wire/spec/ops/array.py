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
op(
    192,
    "ARRAY_CREATE",
    "array:u32 array_flags:u32 format:u32 channels:u32 width:u64 height:u64 depth:u64",
    "reply charges",
    "cuArray3DCreate with a client-minted index",
)
op(193, "ARRAY_DESTROY", "array:u32", "drains", "cuArrayDestroy")
op(
    194,
    "MIPMAP_CREATE",
    "mipmap:u32 array_flags:u32 format:u32 channels:u32 width:u64 height:u64 depth:u64 levels:u32 pad:u32",
    "reply charges",
    "cuMipmappedArrayCreate with a client-minted index of its own kind",
)
op(195, "MIPMAP_DESTROY", "mipmap:u32", "drains", "cuMipmappedArrayDestroy; its levels' indices end too")
op(
    196,
    "ARRAY_VIEW",
    "array:u32 source:u32 kind:u32 number:u32",
    "reply",
    "binds an array index to a level of mipmap `source` (kind 0) or a plane of array `source` (kind 1), for as long as "
    "the source lives",
    reply="width:u64 height:u64 depth:u64 format:u32 channels:u32 array_flags:u32 pad:u32",
)
op(
    197,
    "TEXTURE_CREATE",
    "object:u32 surface:u32 resource:u32 array:u32 format:u32 channels:u32 device_address:u64 size_bytes:u64 "
    "width:u64 height:u64 pitch_bytes:u64",
    "reply",
    "cuTexObjectCreate or, surface != 0, cuSurfObjectCreate under a client-minted index; `resource` is a "
    "CUresourcetype, `array` the index of the array or mipmap; the handle is the driver's, because kernels take it",
    tail="textures: u32 address_mode[3], filter, flags, anisotropy, mipmap_filter, f32 bias, min, max, border[4]; "
    "then, with a view: u64 width, height, depth, u32 format, first_level, last_level, first_layer, last_layer, 0",
    reply="handle:u64",
)
op(198, "TEXTURE_DESTROY", "object:u32", "", "cuTexObjectDestroy or cuSurfObjectDestroy")
