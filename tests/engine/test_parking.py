"""Order: what waits, what goes on meanwhile, and what a fault ends."""

from __future__ import annotations

import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from session import (
    CHUNK,
    HOST_BASE,
    WORD_CONTEXT_ERROR,
    WORD_DYNAMIC,
    WORD_FREES_DONE,
    WORD_SESSION_ERROR,
    Session,
    lib,
)

FLAG = 32 << 20  # a word in staging that the `hold` kernel polls


def held(s: Session, streams: int = 3) -> int:
    """A context with non-blocking streams and a kernel that runs on stream 1 until `release`."""
    s.open()
    a = s.map(4)
    assert s.load()[0] == 0
    s.function(b"add", 1)
    s.function(b"hold", 2)
    for stream in range(1, streams + 1):
        s.push("STREAM_CREATE", stream=stream, stream_flags=1)
    s.push("MEMSET", device_dst=a, width=CHUNK, height=1, element_bytes=1)
    s.sync()
    s.write_host(FLAG, struct.pack("<I", 0))
    s.launch(2, struct.pack("<Q", HOST_BASE + FLAG), stream=1)
    return a


def release(s: Session) -> None:
    s.write_host(FLAG, struct.pack("<I", 1))


@isolated
def test_a_full_stream_does_not_stop_others() -> None:
    with Session() as s:
        a = held(s)
        for _ in range(2000):
            s.launch(1, struct.pack("<QI", a, 1), stream=1)
        s.launch(1, struct.pack("<QI", a + 64, 1), stream=2)
        s.sync(2)  # the engine is not stuck in the driver
        assert s.stats().parked_now > 1000
        release(s)
        s.push("COPY_D2H", stream=1, src=a, dst_off=0, size_bytes=4)
        s.sync(1)
        assert struct.unpack("<I", s.read_host(0, 4)) == (2000,)


@isolated
def test_a_load_waits_for_idle_and_holds_nobody() -> None:
    with Session() as s:
        a = held(s)
        s.write_host(1 << 20, b"")
        sequence = s.ask("MODULE_LOAD", module=2, image_off=1 << 20, image_bytes=900, slot=3)
        s.launch(1, struct.pack("<QI", a, 1), stream=2)
        s.sync(2)
        assert s.stats().parked_now == 1
        release(s)
        assert s.answer(sequence, slot=3)[0] == 0


@isolated
def test_unload_waits_for_parked_launches() -> None:
    with Session() as s:
        a = held(s)
        for _ in range(1500):
            s.launch(1, struct.pack("<QI", a, 1), stream=1)
        s.push("MODULE_UNLOAD", module=1)
        s.launch(1, struct.pack("<QI", a, 1), stream=2)
        s.sync(2)
        release(s)
        s.push("COPY_D2H", stream=1, src=a, dst_off=0, size_bytes=4)
        s.sync(1)
        assert struct.unpack("<I", s.read_host(0, 4)) == (1501,)
        assert s.call("FUNCTION_GET_ATTRIBUTES", function=1)[0] == 400
        assert s.late_error()[0] == 0


@isolated
def test_host_function_parks_its_stream_and_dependents() -> None:
    with Session() as s:
        a = held(s)
        release(s)
        s.sync(1)
        s.push("EVENT_CREATE", event=1)
        s.push("MEMSET", stream=1, device_dst=a, width=1, height=1, value=1, element_bytes=4)
        s.push("HOST_FUNCTION", stream=1, callback=7, generation=1, word=WORD_DYNAMIC + 9, value=1)
        s.push("COPY_D2H", stream=1, src=a, dst_off=0, size_bytes=4)
        s.push("EVENT_RECORD", stream=1, event=1)
        s.push("STREAM_WAIT_EVENT", stream=2, event=1)  # depends on a parked record
        after = s.mark(2)
        s.push("MEMSET", stream=3, device_dst=a + 64, width=1, height=1, value=1, element_bytes=4)
        s.sync(3)  # a stranger goes on
        assert s.wait_word(WORD_DYNAMIC + 9, 1)
        assert not s.wait_word(*after, timeout_ms=100)
        s.push("MEM_FREE", device_address=a, size_bytes=CHUNK, unmap=0)
        assert not s.wait_word(WORD_FREES_DONE, 1, 50)  # the parked copy reads this memory
        s.client.client_set_client_word(s.segment, 7, 1)
        assert s.wait_word(*after)
        assert s.wait_word(WORD_FREES_DONE, 1)
        assert struct.unpack("<I", s.read_host(0, 4)) == (1,)


@isolated
def test_no_operation_names_an_event_of_the_engines_own() -> None:
    spare = (1 << 20) + 1
    with Session() as s:
        held(s)
        release(s)
        s.sync(1)
        s.push("EVENT_CREATE", event=1)
        s.push("EVENT_RECORD", stream=1, event=1)
        s.sync(1)
        s.push("HOST_FUNCTION", stream=1, callback=7, generation=1, word=WORD_DYNAMIC + 9, value=1)
        s.push("EVENT_RECORD", stream=1, event=1)
        assert s.wait_word(WORD_DYNAMIC + 9, 1)
        s.push("EVENT_RECORD", stream=2, event=1)  # takes the event over: the parked record keeps a spare one
        s.sync(2)
        assert s.call("EVENT_ELAPSED", start=1, end=1)[0] == 0
        assert s.call("EVENT_ELAPSED", start=spare, end=1)[0] == 400
        assert s.call("EVENT_ELAPSED", start=1, end=spare)[0] == 400
        s.client.client_set_client_word(s.segment, 7, 1)
        s.sync(1)
        assert s.late_error()[0] == 0


@isolated
def test_null_stream_holds_and_is_held_by_blocking_streams() -> None:
    with Session() as s:
        a = held(s)
        release(s)
        s.push("STREAM_CREATE", stream=5, stream_flags=0)
        s.push("HOST_FUNCTION", stream=5, callback=1, generation=1, word=WORD_DYNAMIC + 1, value=1)
        s.push("MEMSET", device_dst=a, width=1, height=1, value=3, element_bytes=4)  # NULL, behind the blocking stream
        null = s.mark()
        s.push("STREAM_CREATE", stream=6, stream_flags=0)
        s.push("MEMSET", stream=6, device_dst=a + 64, width=1, height=1, value=4, element_bytes=4)
        blocking = s.mark(6)
        s.push("MEMSET", stream=2, device_dst=a + 128, width=1, height=1, value=4, element_bytes=4)
        s.sync(2)
        assert s.wait_word(WORD_DYNAMIC + 1, 1)
        assert not s.wait_word(*null, timeout_ms=50)
        assert not s.wait_word(*blocking, timeout_ms=50)  # behind NULL's parked work
        s.client.client_set_client_word(s.segment, 1, 1)
        assert s.wait_word(*null)
        assert s.wait_word(*blocking)


@isolated
def test_free_waits_for_running_work() -> None:
    with Session() as s:
        held(s)
        b = s.map(1, at=100)
        s.push("MEM_FREE", device_address=b, size_bytes=CHUNK, unmap=1)
        s.push("MEMSET", stream=2, device_dst=HOST_BASE, width=1, height=1, element_bytes=4)
        s.sync(2)
        assert not s.wait_word(WORD_FREES_DONE, 1, 100)
        assert s.stats().mapped_bytes[0] == 5 * CHUNK
        release(s)
        assert s.wait_word(WORD_FREES_DONE, 1)
        assert s.stats().mapped_bytes[0] == 4 * CHUNK


@isolated
def test_allocation_during_a_running_kernel_is_served() -> None:
    with Session() as s:
        held(s)
        s.map(1, at=200)
        s.map(1, at=201)
        release(s)
        s.sync(1)


@isolated
def test_a_destroyed_stream_index_is_created_again_in_order() -> None:
    with Session() as s:
        a = held(s)
        for _ in range(1200):
            s.launch(1, struct.pack("<QI", a, 1), stream=1)
        s.push("STREAM_DESTROY", stream=1)
        s.push("STREAM_CREATE", stream=1, stream_flags=1)
        s.push("MEMSET", stream=1, device_dst=a + 64, width=1, height=1, value=4, element_bytes=4)
        release(s)
        s.sync(1)
        assert s.late_error()[0] == 0


@isolated
def test_a_fault_is_told_and_ends_waiting() -> None:
    with Session(devices=2) as s:
        s.open()
        s.open(2, 1)
        a = s.map()
        s.load()
        s.function(b"fault", 3)
        s.push("STREAM_CREATE", stream=1, stream_flags=1)
        s.push("MEM_FREE", device_address=a, size_bytes=CHUNK, unmap=0)
        s.launch(3, b"", stream=1)
        s.mark(1)
        assert s.wait_word(WORD_CONTEXT_ERROR + 1, 1)
        assert s.word(WORD_CONTEXT_ERROR + 1) == 700
        assert s.call("MEM_INFO")[0] == 700
        assert s.call("CTX_RESET")[0] == 700  # not mended: the worker is replaced
        assert s.wait_word(WORD_FREES_DONE, 1)
        assert s.stats().fatal_result == 700
        assert s.late_error()[0] == 0  # it is the context's, not this thread's
        assert s.call("MEM_INFO", context=2)[0] == 0  # the other device's context is usable


@isolated
def test_client_loss_while_everything_waits() -> None:
    with Session() as s:
        a = held(s)
        for _ in range(3000):
            s.launch(1, struct.pack("<QI", a, 1), stream=1)
        s.push("MEM_FREE", device_address=a, size_bytes=4 * CHUNK, unmap=1)
        s.push("HOST_FUNCTION", stream=2, callback=1, generation=1, word=WORD_DYNAMIC + 1, value=1)
        assert s.wait_word(WORD_DYNAMIC + 1, 1)
        lib.orion_engine_client_lost(s.engine)
        assert s.ended() == lib.ORION_END_CLIENT_LOST
        release(s)  # softgpu cannot kill a running kernel; ending must not depend on it


@isolated
def test_a_client_that_dies_between_reserve_and_commit() -> None:
    with Session() as s:
        a = held(s)
        s.client.client_reserve(s.segment, 2)
        assert s.call("PING", value=3)[0] == 0  # express goes on
        deadline = time.monotonic() + 10
        while s.stats().commit_gaps == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        s.push("MEM_FREE", device_address=a, size_bytes=4 * CHUNK, unmap=1)  # behind the gap: never executed
        lib.orion_engine_client_lost(s.engine)
        assert s.ended() == lib.ORION_END_CLIENT_LOST
        assert s.stats().commit_gaps == 1
        release(s)


@isolated
def test_a_ring_full_of_parked_work_holds_its_producer_only() -> None:
    with Session() as s:
        a = held(s)
        for _ in range(9000):  # beyond what is parked: the rest stays in the ring
            s.launch(1, struct.pack("<QI", a, 1), stream=1)
        assert s.call("PING", value=3)[0] == 0  # express does not stand behind it
        assert s.stats().parked_now == 8192
        release(s)
        s.push("COPY_D2H", stream=1, src=a, dst_off=0, size_bytes=4)
        s.sync(1, timeout_ms=60000)
        assert struct.unpack("<I", s.read_host(0, 4)) == (9000,)


@isolated
def test_late_errors_belong_to_the_thread_and_leave_the_context_usable() -> None:
    with Session() as s:
        a = held(s)
        release(s)
        s.push("COPY_H2D", thread=5, device_dst=1 << 20, src_off=0, size_bytes=16)
        s.push("COPY_H2D", thread=5, device_dst=a, src_off=200 << 20, size_bytes=16)  # not registered
        s.push("LAUNCH", thread=6, function=999)
        s.push("LAUNCH", b"1234", thread=6, function=1, param_bytes=4, **dict.fromkeys(("grid_x", "block_x"), 1))
        s.sync()
        assert s.late_error(5) == (2, 50, 1)
        assert s.late_error(6) == (2, 70, 1)
        assert s.late_error(0)[0] == 0
        assert s.word(WORD_CONTEXT_ERROR + 1) == 0 and s.word(WORD_SESSION_ERROR) == 0
        started = time.monotonic()
        s.sync()
        assert time.monotonic() - started < 10


if __name__ == "__main__":
    main(globals())
