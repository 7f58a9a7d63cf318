"""The session itself: codes 1 to 9."""

from wire.spec.ops.definition import op

op(1, "NOP", "", "", "does nothing; a null engine's measure")
op(2, "PING", "value:u64", "reply express", "answers with its value", reply="value:u64")
op(3, "DETACH", "", "", "the client leaves in good order; ops after it are dropped")
op(
    4,
    "DEVICE_OUTPUT",
    "flush:u32 pad:u32",
    "reply express",
    "what kernels of finished work have printed; flush != 0 makes the driver write what the header's context has first."
    " The bytes follow the reply, stdout's first; more = 1: there are others, 2: the driver has not written yet",
    reply="stdout_bytes:u32 stderr_bytes:u32 more:u32 pad:u32",
)
