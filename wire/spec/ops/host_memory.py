"""Managed, mapped and registered host memory: codes 170 to 189."""

from wire.spec.ops.definition import op

op(
    170,
    "HOST_COHERENT",
    "arena_off:u64 size_bytes:u64",
    "",
    "over a network: from now on the worker keeps what the client knows of this registered range, until it is "
    "unregistered",
)
op(
    171,
    "HOST_PUBLISH",
    "arena_off:u64 size_bytes:u64",
    "stream",
    "over a network, and of variables: when the stream's earlier work is done, what it has changed in this coherent "
    "range is sent (or stored in the arena), ahead of every later completion word",
)
op(
    172,
    "HOST_VARIABLE",
    "arena_off:u64 size_bytes:u64 address:u64",
    "reply",
    "whole pages of the arena stand for those of a managed variable at `address`, as LIBRARY_LOOKUP or "
    "MODULE_GET_GLOBAL has told it: a coherent range whose bytes kernels find there; its content precedes the reply",
)
op(
    173,
    "HOST_VARIABLE_END",
    "arena_off:u64 size_bytes:u64",
    "reply",
    "ends a HOST_VARIABLE, after all that was parked before it",
)
op(
    174,
    "HOST_PULL",
    "arena_off:u64 size_bytes:u64",
    "",
    "over shared memory: what the client has changed in the arena's pages of a variable goes to where kernels find it",
)
op(
    180,
    "HOST_REGISTER_AT",
    "arena_off:u64 size_bytes:u64 address:u64",
    "reply express charges",
    "like HOST_REGISTER, and the worker has the same pages at `address` too, where the program has them and where "
    "kernels find them; 208 when something else lies there; HOST_UNREGISTER ends both",
)
