"""Streams, whose index is in the header: codes 20 to 29."""

from wire.spec.ops.definition import op

op(20, "STREAM_CREATE", "stream_flags:u32 priority:i32", "", "cuStreamCreateWithPriority with a client-minted index")
op(21, "STREAM_DESTROY", "", "stream", "cuStreamDestroy; pending work goes on")
op(
    22,
    "MARK",
    "word:u32 pad:u32 value:u64",
    "stream",
    "when all earlier work of the stream is done, words[word] = value",
)
op(23, "STREAM_WAIT_EVENT", "event:u32 wait_flags:u32", "stream", "cuStreamWaitEvent")
op(
    24,
    "STREAM_WRITE_VALUE",
    "device_address:u64 value:u64 write_flags:u32 width_bytes:u32",
    "work",
    "the program's own cuStreamWriteValue32/64",
)
op(
    25,
    "STREAM_WAIT_VALUE",
    "device_address:u64 value:u64 wait_flags:u32 width_bytes:u32",
    "work",
    "the program's own cuStreamWaitValue32/64",
)
op(
    26,
    "HOST_FUNCTION",
    "callback:u32 pad:u32 generation:u64 word:u32 pad2:u32 value:u64",
    "stream",
    "when earlier work is done: words[word] = value tells the client to run the function; the stream is parked until "
    "client_words[callback] >= generation",
)
op(
    27,
    "STREAM_QUERY",
    "word:u32 pad:u32 value:u64",
    "reply express",
    "asks the driver whether the stream is idle, once its marker (word, value) has been executed; 600 at once while "
    "the stream is held",
)
