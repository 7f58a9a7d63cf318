"""Whose memory is where, in simulated time: residency.c is real, workers and copies are arithmetic."""

from __future__ import annotations

import ctypes
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from model import MS, library, u64

GIB = 1 << 30
HERE, LEAVING, GONE, RETURNING = 1, 2, 3, 4
NOTHING, RETURN, ALLOW, LEAVE, REFUSE = range(5)
SECOND = 1000 * MS


class Seat(ctypes.Structure):
    """residency_seat"""

    _fields_ = [
        ("place", ctypes.c_int),
        ("granted_bytes", ctypes.c_uint64),
        ("fixed_bytes", ctypes.c_uint64),
        ("asked_bytes", ctypes.c_uint64),
        ("wants", ctypes.c_bool),
        ("holds", ctypes.c_bool),
        ("stays", ctypes.c_bool),
        ("since_ns", ctypes.c_uint64),
        ("move_ns", ctypes.c_uint64),
        ("used_ns", ctypes.c_uint64),
        ("waits_ns", ctypes.c_uint64),
    ]


class Step(ctypes.Structure):
    """residency_step"""

    _fields_ = [("action", ctypes.c_int), ("seat", ctypes.c_uint32), ("again_ns", ctypes.c_uint64)]


class Gpu:
    """A GPU of `capacity` bytes whose seats are here, empty."""

    def __init__(self, capacity: int, *granted: int) -> None:
        self.lib = library()
        self.lib.residency_next.restype = Step
        self.lib.residency_may_run.restype = ctypes.c_bool
        self.p = ctypes.c_void_p(self.lib.residency_new(u64(capacity), len(granted)))
        self.seats = [Seat.from_address(self.lib.residency_seat_of(self.p, i)) for i in range(len(granted))]
        for seat, size in zip(self.seats, granted, strict=True):
            seat.place, seat.granted_bytes = HERE, size

    def next(self, now_ns: int) -> tuple[int, int, int]:
        step = self.lib.residency_next(self.p, u64(now_ns))
        return step.action, step.seat, step.again_ns

    def may_run(self, seat: int, now_ns: int) -> bool:
        return bool(self.lib.residency_may_run(self.p, seat, u64(now_ns)))

    def promised(self) -> int:
        return int(self.lib.residency_promised(self.p))


def gone(seat: Seat) -> None:
    seat.place = GONE


def test_nothing_moves_while_all_fits():
    gpu = Gpu(80 * GIB, 30 * GIB, 30 * GIB)
    gpu.seats[0].wants = gpu.seats[1].wants = True
    assert gpu.next(SECOND)[0] == NOTHING
    gpu.seats[0].asked_bytes = 20 * GIB
    assert gpu.next(SECOND)[:2] == (ALLOW, 0)


def test_the_idle_one_that_was_used_longest_ago_goes_first():
    gpu = Gpu(80 * GIB, 30 * GIB, 25 * GIB, 20 * GIB)
    gpu.seats[0].asked_bytes = 10 * GIB
    gpu.seats[1].used_ns, gpu.seats[2].used_ns = 9 * SECOND, 5 * SECOND
    assert gpu.next(10 * SECOND)[:2] == (LEAVE, 2)
    gpu.seats[2].place = LEAVING
    assert gpu.next(10 * SECOND)[0] == NOTHING  # what is on its way is enough
    gpu.seats[0].asked_bytes = 40 * GIB
    assert gpu.next(10 * SECOND)[:2] == (LEAVE, 1)


def test_one_at_work_stays_for_its_time_then_makes_room():
    gpu = Gpu(80 * GIB, 50 * GIB, 50 * GIB)
    busy, late = gpu.seats
    busy.wants = busy.holds = late.wants = True
    busy.since_ns, busy.move_ns = 10 * SECOND, 600 * MS
    gone(late)
    action, _, again_ns = gpu.next(10 * SECOND + MS)
    assert (action, again_ns) == (NOTHING, 10 * SECOND + 2400 * MS)  # four times what its coming took
    assert gpu.may_run(0, again_ns - MS) and not gpu.may_run(0, again_ns)  # no other turn then
    assert gpu.next(again_ns)[0] == NOTHING
    busy.holds = False
    assert gpu.next(again_ns)[:2] == (LEAVE, 0)
    gone(busy)
    assert gpu.next(again_ns + MS)[:2] == (RETURN, 1)


def test_whoever_has_waited_longest_is_served_first_however_much_it_needs():
    gpu = Gpu(80 * GIB, 60 * GIB, 70 * GIB, 5 * GIB)
    for seat in gpu.seats[1:]:
        gone(seat)
    gpu.seats[0].wants = True
    gpu.seats[0].since_ns = 10 * SECOND
    gpu.seats[1].wants = True
    assert gpu.next(10 * SECOND)[0] == NOTHING
    gpu.seats[2].wants = True  # it would fit, but another has waited longer
    assert gpu.next(10 * SECOND + MS)[0] == NOTHING
    assert gpu.next(11 * SECOND)[:2] == (LEAVE, 0)


def test_what_cannot_ever_fit_is_refused_not_awaited():
    gpu = Gpu(80 * GIB, 30 * GIB, 40 * GIB)
    gpu.seats[1].fixed_bytes = 40 * GIB  # arrays, say
    gpu.seats[0].asked_bytes = 20 * GIB
    assert gpu.next(SECOND)[:2] == (REFUSE, 0)


def test_one_that_could_not_leave_is_not_asked_again_at_once():
    gpu = Gpu(80 * GIB, 50 * GIB, 30 * GIB)
    gpu.seats[0].asked_bytes = 10 * GIB
    gpu.seats[1].stays, gpu.seats[1].since_ns = True, 10 * SECOND
    assert gpu.next(10 * SECOND + MS)[0] == NOTHING
    assert gpu.next(12 * SECOND)[:2] == (LEAVE, 1)


@pytest.mark.parametrize("seed", range(6))
def test_tenants_that_all_work_take_turns_and_never_have_more_than_there_is(seed: int):
    dice = random.Random(seed)
    capacity = 80 * GIB
    sizes = [dice.randrange(20, 60) * GIB for _ in range(4)]
    gpu = Gpu(capacity, *sizes)
    for seat in gpu.seats:
        gone(seat)
        seat.wants = True
    here_ns = [0] * len(sizes)
    moves = 0
    done_at: dict[int, tuple[int, int]] = {}
    for now_ms in range(1, 120_000):
        now_ns = now_ms * MS
        for index, (at_ms, place) in list(done_at.items()):
            if now_ms >= at_ms:
                gpu.seats[index].place = place
                if place == HERE:
                    gpu.seats[index].move_ns = now_ns - gpu.seats[index].since_ns
                gpu.seats[index].since_ns = now_ns
                del done_at[index]
        for _ in range(20):
            action, index, _ = gpu.next(now_ns)
            if action == NOTHING:
                break
            assert action in (RETURN, LEAVE)
            moves += 1
            seat = gpu.seats[index]
            seat.place = RETURNING if action == RETURN else LEAVING
            seat.since_ns = now_ns
            done_at[index] = (now_ms + sizes[index] // GIB * 25, HERE if action == RETURN else GONE)  # 40 GB/s
        assert gpu.promised() <= capacity
        for index, seat in enumerate(gpu.seats):
            here_ns[index] += seat.place == HERE
    assert min(here_ns) > 0.1 * 120_000  # four of which seldom two fit, each at least a quarter of its time on the way
    assert moves < 120 * len(sizes)
