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
