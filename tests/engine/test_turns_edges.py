"""Turns where streams overlap, wait for one another, or are not what an operation says; limits that come and go."""

from __future__ import annotations

import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from seat import NO_LIMIT
from session import HOST_BASE, Session
from test_turns import ADD, FLAG, HOLD, MS, Server, count, prepare, settled, spin, zero

ENGINE_BEAT = 3
ENDLESS = 1_000_000 * MS


def hold(s: Session, stream: int = 1, until: bool = False) -> None:
    """A kernel that runs until the flag is set (`until`: it is set already)."""
    s.write_host(FLAG, struct.pack("<I", int(until)))
    s.launch(HOLD, struct.pack("<Q", HOST_BASE + FLAG), stream=stream)


def release(s: Session) -> None:
    s.write_host(FLAG, struct.pack("<I", 1))


def add(s: Session, address: int, stream: int) -> None:
    s.launch(ADD, struct.pack("<QI", address, 1), stream=stream)


def learn(s: Session, server: Server, address: int) -> None:
    """Everything that the tests launch has an estimate, and no turn is held."""
    zero(s, address, stream=1)
    hold(s, until=True)
    add(s, address, stream=1)
    spin(s, address, 50_000)
    spin(s, address, 20_000)
    server.sync(s)


@isolated
def test_a_kernel_is_charged_although_others_begin_and_end_while_it_runs() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        learn(s, server, address)
        before_ns = server[0, "spent_ns"]
        hold(s, stream=1)
        server.until(0, "wants", 1)
        server.give(ENDLESS)
        began_ns = time.monotonic_ns()
        while time.monotonic_ns() - began_ns < 200 * MS:
            add(s, address, stream=2)
            s.sync(2)
        ran_ns = time.monotonic_ns() - began_ns
        release(s)
        s.sync(1)
        server.until(0, "returned", server[0, "grant"])
        assert server[0, "spent_ns"] - before_ns > 0.9 * ran_ns


@isolated
def test_a_stream_of_another_context_is_refused_and_nothing_breaks() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        learn(s, server, address)
        assert s.call("CTX_CREATE", context=2)[0] == 0
        server.give()
        hold(s, stream=2)
        for _ in range(50):
            add(s, address, stream=1)
            s.launch(ADD, struct.pack("<QI", address, 1), stream=1, context=2)
        release(s)
        assert count(s, address) == 53
        assert s.late_error()[2] == 400
        server.recall()
        server.until(0, "returned", server[0, "grant"])
        assert server[0, "in_flight_ns"] == 0


@isolated
def test_measuring_on_null_holds_no_blocking_stream() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        learn(s, server, address)
        for stream in (3, 4):
            s.push("STREAM_CREATE", stream=stream, stream_flags=0)
        add(s, address, stream=0)  # both wait for a turn, so that they are issued one right after the other
        s.push("STREAM_WAIT_VALUE", device_address=address + 64, value=1, width_bytes=4, stream=3)
        server.until(0, "wants", 1)
        settled(s)
        server.give(ENDLESS)
        settled(s)
        s.push("STREAM_WRITE_VALUE", device_address=address + 64, value=1, width_bytes=4, stream=4)
        s.sync(4)
        s.sync(3)
        assert count(s, address) == 4


@isolated
def test_what_waits_for_a_word_does_not_take_the_turn_of_what_writes_it() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s, streams=3)
        learn(s, server, address)
        s.push("EVENT_CREATE", event=1, event_flags=2)
        for value in range(1, 11):
            s.push("STREAM_WAIT_VALUE", device_address=address + 64, value=value, width_bytes=4, stream=1)
            s.push("EVENT_RECORD", event=1, stream=1)
            s.push("STREAM_WAIT_EVENT", event=1, stream=3)
            for stream in (1, 3):  # both are behind the wait, and more than may run ahead
                for _ in range(8):
                    spin(s, address, 50_000, stream=stream)
            add(s, address, stream=2)
            s.push("STREAM_WRITE_VALUE", device_address=address + 64, value=value, width_bytes=4, stream=2)
            for stream in (1, 3):
                server.sync(s, stream, budget_ns=5 * MS)
        assert count(s, address) == 3 + 10 * 17


@isolated
def test_a_turn_lasts_as_long_as_what_it_has_put_on_null() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        learn(s, server, address)
        s.push("STREAM_CREATE", stream=3, stream_flags=0)
        for budget_ns in (NO_LIMIT, ENDLESS):
            hold(s, stream=0)
            server.until(0, "wants", 1)
            grant = server.give(budget_ns)
            settled(s)
            server.recall()
            settled(s)
            assert server.is_held()
            release(s)
            server.until(0, "returned", grant)
            s.sync(0)


@isolated
def test_one_that_was_never_measured_gets_its_turn_among_many_that_were() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        learn(s, server, address)
        for _ in range(900):
            spin(s, address, 50_000, stream=2)
        s.launch(ADD, struct.pack("<QI", address, 1), stream=1, grid_x=7)
        cold, many = s.mark(1), s.mark(2)
        server.until(0, "wants", 1)
        server.give(ENDLESS)
        assert s.wait_word(*cold, timeout_ms=60000)
        assert server[0, "works"] < 500
        assert s.wait_word(*many, timeout_ms=60000)
        assert count(s, address) == 910


@isolated
def test_many_streams_with_more_than_may_wait_go_on() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s, streams=12)
        learn(s, server, address)
        for launch in range(2400):
            spin(s, address, 20_000, stream=launch % 12 + 1)
        for stream in range(1, 13):
            server.sync(s, stream)
        assert count(s, address) == 2403


@isolated
def test_few_that_were_never_measured_run_ahead_of_a_recall() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        prepare(s)
        server.give()
        hold(s)
        for _ in range(200):
            s.launch(HOLD, struct.pack("<Q", HOST_BASE + FLAG), stream=1)
        settled(s)
        ahead = server[0, "works"]
        assert 1 < ahead <= 16
        server.recall()
        settled(s)
        release(s)
        server.until(0, "returned", 1)
        assert server[0, "works"] == server[0, "cold_works"] == ahead
        server.give()
        s.sync(1)


@isolated
def test_work_that_waits_for_its_own_turn_to_go_on_is_not_throttled() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        server.give()
        zero(s, address, stream=1)
        for _ in range(4):
            spin(s, address, 400_000)
            s.sync(1)
        for _ in range(100):  # more than may run ahead
            spin(s, address, 400_000)
        assert count(s, address) == 104
        settled(s)
        assert server[0, "throttled_ns"] == 0


@isolated
def test_a_limit_that_ends_ends_the_turn() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        learn(s, server, address)
        grant = server.give()
        hold(s)
        settled(s)
        server[0, "is_limited"] = 0
        server.wake()
        server.until(0, "returned", grant)
        release(s)
        s.sync(1)
        spin(s, address)
        assert count(s, address) == 4
        before_ns = server[0, "spent_ns"]
        time.sleep(0.3)
        server[0, "recalled"] = server[0, "grant"]
        server[0, "is_limited"] = 1
        server.wake()
        settled(s)
        spin(s, address)
        server.sync(s)
        assert count(s, address) == 5
        assert server[0, "spent_ns"] - before_ns < 290 * MS  # nothing of the time between


@isolated
def test_what_the_server_writes_without_a_limit_keeps_nobody_awake() -> None:
    server = Server()
    server[0, "is_limited"] = 0
    with Session(seat=server.fds) as s:
        prepare(s)
        server.give(5 * MS)
        settled(s)
        before = s.word(ENGINE_BEAT)
        time.sleep(0.5)
        assert s.word(ENGINE_BEAT) - before < 1000


if __name__ == "__main__":
    main(globals())
