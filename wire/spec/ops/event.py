"""Events: codes 30 to 39."""

from wire.spec.ops.definition import op

op(30, "EVENT_CREATE", "event:u32 event_flags:u32", "", "cuEventCreate with a client-minted index")
op(31, "EVENT_DESTROY", "event:u32", "stream", "cuEventDestroy")
op(
    32,
    "EVENT_RECORD",
    "event:u32 record_flags:u32 word:u32 pad:u32 value:u64",
    "stream",
    "cuEventRecordWithFlags; word != 0: also a marker, placed just behind the record",
)
op(
    33,
    "EVENT_ELAPSED",
    "start:u32 end:u32",
    "reply",
    "cuEventElapsedTime; 600 just after the marker is retried in the engine",
    reply="milliseconds:f32",
)
op(
    34,
    "EVENT_ISSUED",
    "event:u32 pad:u32",
    "reply",
    "answered when the driver has every record of and wait for the event that precede it in the ring",
)
op(
    35,
    "EVENT_QUERY",
    "event:u32 wait:u32",
    "reply express",
    "cuEventQuery in the driver, for events that other processes record too; wait != 0: an incomplete event is not "
    "answered at once, but within a second",
)
