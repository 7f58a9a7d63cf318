"""Contexts, whose index is in the header: codes 10 to 19."""

from wire.spec.ops.definition import op

op(
    10,
    "CTX_PRIMARY",
    "device:u32 ctx_flags:u32",
    "reply",
    "binds the header's context index to a device's primary context",
    reply="api_version:u32 ctx_flags:u32 id:u64",
)
op(
    11,
    "CTX_CREATE",
    "device:u32 ctx_flags:u32",
    "reply charges",
    "makes an ordinary context",
    reply="api_version:u32 ctx_flags:u32 id:u64",
)
op(12, "CTX_DESTROY", "", "reply drains", "destroys an ordinary context or gives up the primary binding")
op(13, "CTX_RESET", "", "reply drains", "frees all that the context's ledger holds (primary reset), keeps the context")
op(14, "CTX_SET_LIMIT", "limit:u32 pad:u32 value:u64", "reply drains charges", "cuCtxSetLimit")
op(15, "CTX_GET_LIMIT", "limit:u32", "reply", "cuCtxGetLimit", reply="value:u64")
op(16, "CTX_SET_CACHE_CONFIG", "config:u32", "", "cuCtxSetCacheConfig")
op(17, "CTX_ENABLE_PEER", "peer_context:u32", "reply", "cuCtxEnablePeerAccess")
op(18, "CTX_DISABLE_PEER", "peer_context:u32", "reply", "cuCtxDisablePeerAccess")
op(
    19,
    "CTX_GET_RESOURCE",
    "device:u32 resource_type:u32",
    "reply",
    "cuCtxGetDevResource of the header's context, cuDeviceGetDevResource of the device without one; SMs only (type 1)",
    reply="sm_count:u32 least_sm_count:u32 sm_alignment:u32 pad:u32",
)
