"""Turns on the GPU, in the worker: the test is orion-server on a real seat, the engine is real, softgpu is the GPU."""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from seat import NO_LIMIT, Seat
from session import CHUNK, HOST_BASE, WORD_CONTEXT_ERROR, Session

from wire.spec.ops import OPS

MS = 1_000_000
FLAG = 32 << 20
SPIN_PTX = b""".version 7.0
.target sm_70
.address_size 64
.visible .entry spin(.param .u64 counter, .param .u32 rounds)
{ .reg .u64 %rd<2>; .reg .u32 %r<4>; .reg .pred %p;
  ld.param.u64 %rd1, [counter]; ld.param.u32 %r1, [rounds]; mov.u32 %r2, 0;
again:
  add.u32 %r2, %r2, 1; setp.lt.u32 %p, %r2, %r1; @%p bra again;
  atom.global.add.u32 %r3, [%rd1], 1;
  ret; }
"""
SPIN, ADD, HOLD = 11, 1, 2


class Server(Seat):
    """Gives and takes turns of device 0."""

    def __init__(self) -> None:
        super().__init__()
        self[0, "is_limited"] = 1

    def give(self, budget_ns: int = NO_LIMIT) -> int:
        self[0, "budget_ns"] = budget_ns
        self[0, "grant"] += 1
        self.wake()
        return self[0, "grant"]

    def recall(self) -> None:
        self[0, "recalled"] = self[0, "grant"]
        self.wake()

    def is_held(self) -> bool:
        return self[0, "grant"] != self[0, "returned"]

    def serve(self, done: Callable[[], bool], budget_ns: int = 1000 * MS, timeout_s: float = 60) -> int:
        """Gives a turn whenever one is wanted, until it is done. How many."""
        turns, deadline_s = 0, time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < deadline_s
            if self[0, "wants"] and not self.is_held():
                self.give(budget_ns)
                turns += 1
            time.sleep(0.0005)
        return turns

    def sync(self, s: Session, stream: int = 1, budget_ns: int = 1000 * MS) -> int:
        """Serves until the stream's work is done, and the turn given back. How many turns that took."""
        word, value = s.mark(stream)
        turns = self.serve(lambda: s.wait_word(word, value, timeout_ms=0), budget_ns)
        self.until(0, "returned", self[0, "grant"])
        return turns


def prepare(s: Session, streams: int = 2) -> int:
    """A context, kernels, streams and a page of zeroes; all of it needs no turn but the zeroes."""
    s.open()
    address = s.map(2)
    assert s.load()[0] == 0
    s.function(b"add", ADD)
    s.function(b"hold", HOLD)
    assert s.load(SPIN_PTX, module=2)[0] == 0
    s.function(b"spin", SPIN, module=2)
    for stream in range(1, streams + 1):
        s.push("STREAM_CREATE", stream=stream, stream_flags=1)
    return address


def zero(s: Session, address: int, stream: int = 0) -> None:
    s.push("MEMSET", device_dst=address, width=CHUNK, height=1, element_bytes=1, stream=stream)


def spin(s: Session, address: int, rounds: int = 2000, stream: int = 1) -> None:
    s.launch(SPIN, struct.pack("<QI", address, rounds), stream=stream)


def count(s: Session, address: int, stream: int = 1) -> int:
    s.push("COPY_D2H", src=address, dst_off=0, size_bytes=4, stream=stream)
    s.sync(stream)
    return int(struct.unpack("<I", s.read_host(0, 4))[0])


def settled(s: Session) -> None:
    """What was pushed has been looked at."""
    assert s.call("PING", value=1)[0] == 0
    time.sleep(0.02)
    assert s.call("PING", value=2)[0] == 0


@isolated
def test_nothing_runs_without_a_turn_and_everything_with_one() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        zero(s, address, stream=1)
        for _ in range(10):
            spin(s, address)
        word, value = s.mark(1)
        server.until(0, "wants", 1)
        settled(s)
        assert s.stats().parked_now == 12 and server[0, "works"] == 0
        assert not s.wait_word(word, value, timeout_ms=30)
        server.give()
        assert s.wait_word(word, value)
        assert count(s, address) == 10
        assert server[0, "works"] == 11 and server[0, "wants"] == 0


@isolated
def test_without_a_limit_no_turn_is_needed() -> None:
    server = Server()
    server[0, "is_limited"] = 0
    with Session(seat=server.fds) as s:
        address = prepare(s)
        zero(s, address)
        s.sync()
        spin(s, address)
        assert count(s, address) == 1
        assert server[0, "works"] == 0
        server[0, "is_limited"] = 1  # and it may begin at any time
        server.wake()
        settled(s)
        spin(s, address)
        server.until(0, "wants", 1)
        server.give()
        assert count(s, address) == 2


@isolated
def test_a_turn_with_a_budget_is_given_back_when_nothing_comes_any_more() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        zero(s, address, stream=1)
        spin(s, address)
        assert server.sync(s) == 1
        assert count(s, address) == 1
        assert server[0, "wants"] == 0 and server[0, "in_flight_ns"] == 0 and server[0, "spent_ns"] > 0
        spin(s, address)
        server.until(0, "wants", 1)
        settled(s)
        assert server[0, "works"] == 2


@isolated
def test_a_turn_without_a_limit_is_kept_until_it_is_recalled() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        grant = server.give()
        zero(s, address, stream=1)
        s.sync(1)
        settled(s)
        assert server.is_held()
        server.recall()
        server.until(0, "returned", grant)
        spin(s, address)
        server.until(0, "wants", 1)
        server.give()
        assert count(s, address) == 1


@isolated
def test_a_budget_that_is_used_up_ends_the_turn_and_the_rest_wants_another() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        zero(s, address, stream=1)
        server.give(NO_LIMIT)
        for _ in range(4):  # how long it takes is known from here on
            spin(s, address, 200_000)
        s.sync(1)
        server.recall()
        server.until(0, "returned", 1)
        before_ns = server[0, "spent_ns"]
        one_ns = before_ns / 5
        for _ in range(40):
            spin(s, address, 200_000)
        assert 4 <= server.sync(s, budget_ns=int(4 * one_ns)) <= 41
        assert count(s, address) == 44
        assert server[0, "spent_ns"] > before_ns


@isolated
def test_a_budget_may_grow_while_a_turn_lasts() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        zero(s, address, stream=1)
        for _ in range(30):
            spin(s, address, 100_000)
        word, value = s.mark(1)
        grant = server.give(2 * MS)
        while not s.wait_word(word, value, timeout_ms=5):
            if server[0, "returned"] == grant:
                grant = server.give(2 * MS)
            else:
                server[0, "budget_ns"] += 2 * MS
                server.wake()
        assert count(s, address) == 30


@isolated
def test_one_that_was_never_measured_goes_alone() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        zero(s, address, stream=1)
        for grid in range(1, 9):  # each grid is another kernel to the meter
            s.launch(SPIN, struct.pack("<QI", address, 3000), stream=1, grid_x=grid)
        server.sync(s)
        assert count(s, address) == sum(range(1, 9))
        assert server[0, "cold_works"] == 9
        for grid in range(1, 9):
            s.launch(SPIN, struct.pack("<QI", address, 3000), stream=1, grid_x=grid)
        server.sync(s)
        assert count(s, address) == 2 * sum(range(1, 9))
        assert server[0, "cold_works"] == 9


@isolated
def test_all_that_is_no_gpu_time_goes_on_while_work_waits() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        s.write_host(4096, b"\5\0\0\0")
        spin(s, address, stream=1)
        server.until(0, "wants", 1)
        s.push("COPY_H2D", device_dst=address, src_off=4096, size_bytes=4, stream=2)
        assert count(s, address, stream=2) == 5  # copies to and from the host, and a wait
        s.push("EVENT_CREATE", event=3, event_flags=2)
        s.push("EVENT_RECORD", event=3, stream=2)
        assert s.call("MEM_MAP", device_address=address + 8 * CHUNK, size_bytes=CHUNK)[0] == 0
        s.push("MEM_FREE", device_address=address + 8 * CHUNK, size_bytes=CHUNK, unmap=1)
        assert s.call("MEM_INFO")[0] == 0 and s.call("PING", value=1)[0] == 0
        assert s.call("EVENT_QUERY", event=3, wait=0)[0] in (0, 600)
        s.sync(2)
        assert server[0, "works"] == 0
        server.give()
        assert count(s, address) == 6


@isolated
def test_every_kind_of_gpu_work_waits() -> None:
    gated = {op.name for op in OPS if "gpu_time" in op.flags}
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s, streams=8)
        server.give()
        zero(s, address)
        s.sync()
        server.recall()
        server.until(0, "returned", 1)
        device = {"src_kind": 2, "dst_kind": 2, "src_context": 1, "dst_context": 1}
        shape = dict.fromkeys(("width_bytes", "src_pitch", "dst_pitch"), 64)
        shape |= dict.fromkeys(("height", "depth", "src_height", "dst_height"), 1)
        pushes = {
            "LAUNCH": lambda: spin(s, address, stream=1),
            "LAUNCH_EX": lambda: s.push(
                "LAUNCH_EX", struct.pack("<QI", address, 10), stream=2, function=SPIN, param_bytes=12,
                **{f"{kind}_{axis}": 1 for kind in ("grid", "block") for axis in "xyz"}),
            "MEMSET": lambda: zero(s, address + CHUNK, stream=3),
            "COPY_D2D": lambda: s.push("COPY_D2D", device_dst=address + 256, src=address + 512, size_bytes=64,
                                       stream=4),
            "COPY_PEER": lambda: s.push("COPY_PEER", device_dst=address + 256, src=address + 512, size_bytes=64,
                                        dst_context=1, src_context=1, stream=5),
            "COPY_3D": lambda: s.push("COPY_3D", src_address=address + 512, dst_address=address + 256, stream=6,
                                      **device, **shape),
            "GRAPH_LAUNCH": lambda: s.push("GRAPH_LAUNCH", exec=1, stream=7),
        }  # fmt: skip
        assert set(pushes) == gated  # a new kind of GPU work needs a row here
        for parked, push in enumerate(pushes.values(), 1):
            push()
            settled(s)
            assert s.stats().parked_now == parked
        assert server[0, "wants"] == 1
        server.give()
        for stream in range(1, 8):
            s.sync(stream)
        assert count(s, address) == 2


@isolated
def test_copies_of_rows_to_the_host_wait_for_nobody() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        shape = dict.fromkeys(("width_bytes", "src_pitch", "dst_pitch"), 64)
        shape |= dict.fromkeys(("height", "depth", "src_height", "dst_height", "src_context", "dst_context"), 1)
        s.push("COPY_3D", src_kind=2, dst_kind=1, src_address=address, dst_address=0, stream=1, **shape)
        s.sync(1)
        assert server[0, "wants"] == 0


@isolated
def test_what_is_measured_grows_with_what_is_done() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        zero(s, address, stream=1)
        server.sync(s)

        def spent(launches: int, rounds: int) -> int:
            before = server[0, "spent_ns"]
            for _ in range(launches):
                spin(s, address, rounds)
            server.sync(s, budget_ns=100_000 * MS)
            return server[0, "spent_ns"] - before

        spent(1, 400_000)
        # Time on other work of a busy machine counts as well: it makes all longer, so the shortest is compared.
        short = min(spent(4, 400_000) for _ in range(10))
        assert spent(40, 400_000) > 4 * short
        assert spent(4, 4_000_000) > 4 * short


@isolated
def test_streams_at_the_same_time_are_not_charged_twice() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s, streams=4)
        zero(s, address, stream=1)
        server.sync(s)
        before_ns, began_ns = server[0, "spent_ns"], time.monotonic_ns()
        for i in range(40):
            spin(s, address, 100_000, stream=i % 4 + 1)
        for stream in range(1, 5):
            server.sync(s, stream)
        took_ns = time.monotonic_ns() - began_ns
        assert 0 < server[0, "spent_ns"] - before_ns < 1.1 * took_ns  # the union cannot be longer than the whole


@isolated
def test_tiny_turns_change_no_result() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s, streams=3)
        zero(s, address, stream=1)
        s.push("EVENT_CREATE", event=1, event_flags=2)
        total = [0, 0, 0]
        for step in range(150):
            stream = step % 3 + 1
            s.launch(ADD, struct.pack("<QI", address + 256 * stream, step), stream=stream)
            total[stream - 1] += step
            if step == 0:
                s.push("EVENT_RECORD", event=1, stream=1)
                for other in (2, 3):
                    s.push("STREAM_WAIT_EVENT", event=1, stream=other)
        marks = [s.mark(stream) for stream in (1, 2, 3)]
        while not all(s.wait_word(word, value, timeout_ms=1) for word, value in marks):
            if not server.is_held():
                server.give(1)
        assert [count(s, address + 256 * stream, stream) for stream in (1, 2, 3)] == total


@isolated
def test_ten_thousand_launches_that_wait_do_not_stop_questions() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        zero(s, address, stream=1)
        for _ in range(3000):
            s.launch(ADD, struct.pack("<QI", address, 1), stream=1)
        settled(s)
        assert s.stats().parked_now <= 1024 + 64
        assert s.call("MEM_INFO")[0] == 0
        server.give()
        assert count(s, address) == 3000


@isolated
def test_a_fault_in_a_turn_gives_it_back() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        prepare(s)
        s.function(b"fault", 5)
        s.launch(5, b"", stream=1)
        server.serve(lambda: s.word(WORD_CONTEXT_ERROR + 1) != 0)
        server.until(0, "returned", server[0, "grant"])
        assert server[0, "in_flight_ns"] == 0


@isolated
def test_a_long_kernel_keeps_its_turn_and_says_what_it_was() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        zero(s, address, stream=1)
        server.sync(s)
        s.write_host(FLAG, struct.pack("<I", 0))
        s.launch(HOLD, struct.pack("<Q", HOST_BASE + FLAG), stream=1)
        spin(s, address)
        server.until(0, "wants", 1)
        before, grant = server[0, "returned"], server.give(5 * MS)
        settled(s)
        server.recall()
        settled(s)
        assert server.is_held()
        assert server[0, "returned"] == before
        time.sleep(0.1)
        s.write_host(FLAG, struct.pack("<I", 1))
        server.until(0, "returned", grant)
        assert server[0, "spent_ns"] > 100 * MS
        server.until(0, "wants", 1)
        server.give()
        assert count(s, address) == 1


@isolated
def test_time_in_which_work_waits_is_counted() -> None:
    server = Server()
    with Session(seat=server.fds) as s:
        address = prepare(s)
        zero(s, address, stream=1)
        server.until(0, "wants", 1)
        time.sleep(0.05)
        server.give()
        s.sync(1)
        server.until(0, "throttled_ns", 50 * MS)
        waited_ns = server[0, "throttled_ns"]
        spin(s, address)
        assert count(s, address) == 1
        settled(s)
        assert server[0, "throttled_ns"] == waited_ns


if __name__ == "__main__":
    main(globals())
