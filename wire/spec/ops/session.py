"""The session itself: codes 1 to 9."""

from wire.spec.ops.definition import op

op(1, "NOP", "", "", "does nothing; a null engine's measure")
op(2, "PING", "value:u64", "reply express", "answers with its value", reply="value:u64")
op(3, "DETACH", "", "", "the client leaves in good order; ops after it are dropped")
