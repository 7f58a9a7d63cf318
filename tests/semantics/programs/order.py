"""Records, waits and the order between streams."""

from __future__ import annotations

import time
from ctypes import byref, c_float, c_size_t, c_uint64, c_ulonglong, c_void_p

from tests.semantics.tools import NON_BLOCKING, NOT_READY, PER_THREAD, Program, Thread, equal, until


def query_is_about_the_record(p: Program) -> None:
    """Work that comes after a record, and never ends before the query, must not hold the event back."""
    for asked_before in (False, True):
        stream, event, counter = p.cu.stream(NON_BLOCKING), p.cu.event(2), p.counter()
        if asked_before:
            p.cu.call("cuEventRecord", event, stream)
            p.cu.call("cuEventSynchronize", event)
        spin = p.prepare_spin()
        p.add(counter, stream)
        p.cu.call("cuEventRecord", event, stream)
        spin.start(stream)
        until(lambda event=event: p.cu.code("cuEventQuery", event) == 0, "the record is complete")  # type: ignore[misc]
        p.cu.call("cuEventSynchronize", event)
        equal(p.query(stream), NOT_READY)
        spin.release()
        p.sync(stream)


def synchronize_is_about_the_record(p: Program) -> None:
    stream, event = p.cu.stream(NON_BLOCKING), p.cu.event(2)
    p.cu.call("cuEventRecord", event, stream)
    gate = p.gate(stream)
    p.cu.call("cuEventSynchronize", event)
    equal(p.query(stream), NOT_READY)
    gate.open()
    p.sync(stream)


def wait_event_orders_streams(p: Program) -> None:
    first, second = p.cu.stream(NON_BLOCKING), p.cu.stream(NON_BLOCKING)
    event, counter = p.cu.event(2), p.counter()
    gate = p.gate(first)
    p.set(counter, 40, first)
    p.cu.call("cuEventRecord", event, first)
    p.cu.call("cuStreamWaitEvent", second, event, 0)
    p.add(counter, second, 2)
    equal(p.query(second), NOT_READY)
    gate.open()
    p.sync(second)
    equal(p.cu.read_u32(counter), 42)


def wait_means_the_record_before_it(p: Program) -> None:
    """A later record of the event neither holds nor frees an earlier wait."""
    held, free, waiting = (p.cu.stream(NON_BLOCKING) for _ in range(3))
    event, counter, spin = p.cu.event(2), p.counter(), p.prepare_spin()
    p.cu.call("cuEventRecord", event, free)
    p.cu.call("cuStreamWaitEvent", waiting, event, 0)
    p.add(counter, waiting)
    spin.start(held)
    p.cu.call("cuEventRecord", event, held)
    p.sync(waiting)
    equal(p.cu.code("cuEventQuery", event), NOT_READY)
    p.cu.call("cuStreamWaitEvent", waiting, event, 0)
    p.add(counter, waiting)
    p.cu.call("cuEventRecord", event, free)
    p.cu.call("cuEventSynchronize", event)
    equal(p.query(waiting), NOT_READY)
    spin.release()
    p.sync(waiting)
    equal(p.cu.read_u32(counter), 2)


def record_again_is_the_new_record(p: Program) -> None:
    held, free, event = p.cu.stream(NON_BLOCKING), p.cu.stream(NON_BLOCKING), p.cu.event(2)
    spin = p.spin(held)
    p.cu.call("cuEventRecord", event, held)
    equal(p.cu.code("cuEventQuery", event), NOT_READY)
    p.cu.call("cuEventRecord", event, free)
    p.cu.call("cuEventSynchronize", event)
    equal(p.cu.code("cuEventQuery", event), 0)
    spin.release()
    p.sync(held)


def record_again_behind_a_host_function(p: Program) -> None:
    held, free, event = p.cu.stream(NON_BLOCKING), p.cu.stream(NON_BLOCKING), p.cu.event(2)
    gate = p.gate(held)
    p.cu.call("cuEventRecord", event, held)
    equal(p.cu.code("cuEventQuery", event), NOT_READY)
    p.cu.call("cuEventRecord", event, free)
    p.cu.call("cuEventSynchronize", event)
    equal(p.cu.code("cuEventQuery", event), 0)
    gate.open()
    p.sync(held)


def waits_keep_their_record_behind_a_host_function(p: Program) -> None:
    """Records of one event on a held stream, a free one and a held one: each wait is about the record before it."""
    held, free, first, second = (p.cu.stream(NON_BLOCKING) for _ in range(4))
    event, counter = p.cu.event(2), p.counter()
    gate = p.gate(held)
    p.add(counter, held, 100)
    p.cu.call("cuEventRecord", event, held)
    p.cu.call("cuStreamWaitEvent", first, event, 0)
    p.add(counter, first)
    p.cu.call("cuEventRecord", event, free)
    p.cu.call("cuStreamWaitEvent", second, event, 0)
    p.add(counter, second, 10)
    p.sync(second)
    equal(p.cu.read_u32(counter), 10)
    equal(p.query(first), NOT_READY)
    p.cu.call("cuEventDestroy_v2", event)
    again = p.cu.event(2)
    p.cu.call("cuEventRecord", again, free)
    p.cu.call("cuEventSynchronize", again)
    equal(p.query(first), NOT_READY)
    gate.open()
    p.sync(first)
    equal(p.cu.read_u32(counter), 111)


def first_query_of_done_work_says_so(p: Program) -> None:
    """Nobody has waited for or asked about the stream; its work is done (the counter shows it)."""
    reader, word = p.cu.stream(NON_BLOCKING), c_uint64()

    def count(counter: c_uint64) -> int:
        p.cu.call("cuMemcpyDtoHAsync_v2", byref(word), counter, c_size_t(8), reader)
        p.sync(reader)
        return word.value

    for stream in (p.cu.stream(NON_BLOCKING), p.cu.stream(0), None):
        counter = p.counter()
        p.add(counter, stream)
        until(lambda counter=counter: count(counter) == 1, "added")  # type: ignore[misc]
        time.sleep(0.05)  # the kernel has stored; its end follows
        equal(p.query(stream), 0)
        equal(p.query(stream), 0)


def null_waits_for_blocking_streams(p: Program) -> None:
    blocking, other, counter = p.cu.stream(0), p.cu.stream(NON_BLOCKING), p.counter()
    gate = p.gate(blocking)
    p.add(counter, None)
    p.add(counter, other, 10)
    p.sync(other)
    equal(p.query(None), NOT_READY)
    gate.open()
    p.sync(None)
    equal(p.cu.read_u32(counter), 11)


def blocking_streams_wait_for_null(p: Program) -> None:
    blocking, other = p.cu.stream(0), p.cu.stream(NON_BLOCKING)
    flag, counter = p.counter(), p.counter()
    gate = p.gate(None)
    p.set(flag, 1, blocking)
    p.add(counter, other)
    p.sync(other)
    equal(p.query(blocking), NOT_READY)
    gate.open()
    p.sync(blocking)
    until(lambda: p.query(None) == 0, "the NULL stream is seen idle")
    equal(p.cu.read_u32(flag), 1)


def per_thread_streams_are_apart(p: Program) -> None:
    counter, ids = p.counter(), []
    gate = p.gate(PER_THREAD)
    p.add(counter, PER_THREAD, 100)

    def other() -> None:
        ids.append(p.cu.get_of(c_ulonglong, "cuStreamGetId", PER_THREAD))
        p.add(counter, PER_THREAD)
        p.sync(PER_THREAD)
        equal(p.query(PER_THREAD), 0)

    Thread(p, other).join()
    equal(p.query(PER_THREAD), NOT_READY)
    mine = p.cu.get_of(c_ulonglong, "cuStreamGetId", PER_THREAD)
    assert mine not in ids
    gate.open()
    p.sync(PER_THREAD)
    equal(p.cu.read_u32(counter), 101)


def destroyed_stream_is_waited_for(p: Program) -> None:
    counter, gates = p.counter(), []
    for flags in (0, NON_BLOCKING):
        stream = p.cu.stream(flags)
        gates.append(p.gate(stream))
        p.add(counter, stream)
        p.cu.call("cuStreamDestroy_v2", stream)

    def open_all() -> None:
        for gate in gates:
            gate.entered.wait(5)
            gate.open()

    opener = Thread(p, open_all)
    p.cu.call("cuCtxSynchronize")
    equal(p.cu.read_u32(counter), 2)
    opener.join()


def elapsed_time_codes(p: Program) -> None:
    stream, milliseconds = p.cu.stream(NON_BLOCKING), c_float()
    start, end, untimed = p.cu.event(), p.cu.event(), p.cu.event(2)

    def elapsed(first: c_void_p, second: c_void_p) -> int:
        return p.cu.code("cuEventElapsedTime", byref(milliseconds), first, second)

    equal(elapsed(start, end), 400)
    p.cu.call("cuEventRecord", start, stream)
    equal(elapsed(start, end), 400)
    gate = p.gate(stream)
    p.cu.call("cuEventRecord", end, stream)
    p.cu.call("cuEventRecord", untimed, stream)
    equal(elapsed(start, untimed), 400)
    equal(elapsed(start, end), NOT_READY)
    gate.open()
    p.cu.call("cuEventSynchronize", end)
    for _ in range(50):  # 600 just after the word would be told here
        equal(elapsed(start, end), 0)
        p.cu.call("cuEventRecord", end, stream)
        p.cu.call("cuEventSynchronize", end)
    assert milliseconds.value >= 0


def another_thread_goes_on(p: Program) -> None:
    """While one thread waits for a stream, another launches and waits on its own."""
    held, own, counter = p.cu.stream(NON_BLOCKING), p.cu.stream(NON_BLOCKING), p.counter()
    spin = p.spin(held)
    waiter = Thread(p, lambda: p.sync(held))
    for _ in range(200):
        p.add(counter, own)
        p.sync(own)
    assert waiter.alive()
    spin.release()
    waiter.join()
    equal(p.cu.read_u32(counter), 200)


def deep_queue_holds_nobody_else(p: Program) -> None:
    """5000 launches behind a held stream: natively the launching thread may block, another stream never does."""
    held, own = p.cu.stream(NON_BLOCKING), p.cu.stream(NON_BLOCKING)
    deep, counter = p.counter(), p.counter()
    gate = p.gate(held)

    def launch() -> None:
        for _ in range(5000):
            p.add(deep, held)

    launcher = Thread(p, launch)
    for _ in range(300):
        p.add(counter, own)
        p.sync(own)
    equal(p.query(held), NOT_READY)
    gate.open()
    launcher.join()
    p.sync(held)
    equal((p.cu.read_u32(deep), p.cu.read_u32(counter)), (5000, 300))


def marker_shows_the_bytes_before_it(p: Program) -> None:
    """What a copy brings is there whenever its event is complete, whatever the size."""
    stream, event = p.cu.stream(NON_BLOCKING), p.cu.event(2)
    size = 256 << 10
    source, host = p.cu.alloc(size), p.cu.host_alloc(size)
    words = (c_uint64 * (size // 8)).from_address(host)
    for turn in range(1, 401):
        bytes_now = 4 if turn % 2 else size
        p.set(source, turn, stream, bytes_now // 4)
        p.cu.call("cuMemcpyDtoHAsync_v2", c_void_p(host), source, c_size_t(bytes_now), stream)
        p.cu.call("cuEventRecord", event, stream)
        until(lambda: p.cu.code("cuEventQuery", event) == 0, "the copy's event")
        equal(words[0] & 0xFFFFFFFF, turn)
        if bytes_now == size:
            equal(words[-1], turn << 32 | turn)


PROGRAMS = [
    query_is_about_the_record, synchronize_is_about_the_record, wait_event_orders_streams,
    wait_means_the_record_before_it, record_again_is_the_new_record,
    record_again_behind_a_host_function, waits_keep_their_record_behind_a_host_function,
    first_query_of_done_work_says_so, null_waits_for_blocking_streams,
    blocking_streams_wait_for_null, per_thread_streams_are_apart, destroyed_stream_is_waited_for, elapsed_time_codes,
    another_thread_goes_on, deep_queue_holds_nobody_else, marker_shows_the_bytes_before_it,
]  # fmt: skip
