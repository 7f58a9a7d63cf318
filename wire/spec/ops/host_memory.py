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
    "over a network: when the stream's earlier work is done, what it has changed in this coherent range is sent, ahead "
    "of every later completion word",
)
op(
    180,
    "HOST_REGISTER_AT",
    "arena_off:u64 size_bytes:u64 address:u64",
    "reply express",
    "like HOST_REGISTER, and the worker has the same pages at `address` too, where the program has them and where "
    "kernels find them; 208 when something else lies there; HOST_UNREGISTER ends both",
)
