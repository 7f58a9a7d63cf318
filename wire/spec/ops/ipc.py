"""Memory and events that processes of one tenant share on one server: codes 135 to 149.

A token stands for memory or an event of a worker; orion-server keeps the memory's descriptor or the driver's handle of
the event under it and gives it to workers of the same host, user and group. It ends with what it stands for.
"""

from wire.spec.ops.definition import op

op(
    135,
    "SHARE_EXPORT",
    "memory:u32 pad:u32 device_address:u64",
    "reply",
    "a token for memory of VMM_CREATE or SHARE_IMPORT; memory 0: for the range of MEM_MAP that holds the address, "
    "which lies offset_bytes behind its start",
    reply="token_0:u64 token_1:u64 offset_bytes:u64 size_bytes:u64",
)
op(
    136,
    "SHARE_IMPORT",
    "memory:u32 pad:u32 token_0:u64 token_1:u64",
    "reply",
    "binds a client-minted index to what a token stands for, as VMM_CREATE does; device: its ordinal on the server",
    reply="size_bytes:u64 device:u32 pad:u32",
)
op(
    137,
    "EVENT_EXPORT",
    "event:u32 pad:u32",
    "reply",
    "a token for an event that was created for several processes; answered when its earlier records are issued",
    reply="token_0:u64 token_1:u64",
)
op(
    138,
    "EVENT_IMPORT",
    "event:u32 pad:u32 token_0:u64 token_1:u64",
    "reply",
    "binds a client-minted index to the event that a token stands for, as EVENT_CREATE does",
)
