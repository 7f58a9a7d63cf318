"""The union of intervals (orion_server/engine/timeline.c), against a union that remembers everything."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent.parent
ENGINE = ROOT / "orion_server" / "engine"
SPANS = 64


class Span(ctypes.Structure):
    _fields_ = (("from_ms", ctypes.c_double), ("to_ms", ctypes.c_double), ("busy_ms", ctypes.c_double))


class Timeline(ctypes.Structure):
    _fields_ = (("spans", Span * SPANS), ("count", ctypes.c_uint32))

    def add(self, begin_ms: float, end_ms: float) -> float:
        return float(library().timeline_add(ctypes.byref(self), ctypes.c_double(begin_ms), ctypes.c_double(end_ms)))

    def move(self, by_ms: float) -> None:
        library().timeline_move_origin(ctypes.byref(self), ctypes.c_double(by_ms))


@cache
def library() -> Any:
    source = ENGINE / "timeline.c"
    target = ROOT / "build" / "engine_tests" / "libtimeline.so"
    if not target.exists() or target.stat().st_mtime < max(source.stat().st_mtime, Path(__file__).stat().st_mtime):
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(f".{os.getpid()}")
        command = ["gcc", "-std=c11", "-O1", "-shared", "-fPIC", f"-I{ENGINE}", str(source), "-o", str(fresh)]
        subprocess.run(command, check=True)
        fresh.replace(target)
    loaded = ctypes.CDLL(str(target))
    loaded.timeline_add.restype = ctypes.c_double
    loaded.timeline_move_origin.restype = None
    return loaded


def union_ms(intervals: list[tuple[float, float]]) -> float:
    total, until = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def intervals(most: int, reach: int) -> st.SearchStrategy[list[tuple[float, float]]]:
    one = st.tuples(st.integers(-reach, reach), st.integers(1, reach // 4)).map(lambda p: (p[0], p[0] + p[1]))
    return st.lists(one, min_size=1, max_size=most)


@settings(max_examples=300, deadline=None)
@given(intervals(SPANS, 1000))
def test_the_sum_is_the_union_in_any_order(given_ms: list[tuple[float, float]]) -> None:
    timeline = Timeline()
    assert sum(timeline.add(*one) for one in given_ms) == union_ms(given_ms)


@settings(max_examples=100, deadline=None)
@given(intervals(SPANS, 1000), st.integers(0, SPANS), st.integers(1, 100000))
def test_a_later_origin_changes_no_sum(given_ms: list[tuple[float, float]], at: int, by_ms: int) -> None:
    timeline = Timeline()
    total = sum(timeline.add(*one) for one in given_ms[:at])
    timeline.move(by_ms)
    total += sum(timeline.add(begin - by_ms, end - by_ms) for begin, end in given_ms[at:])
    assert total == union_ms(given_ms)


@settings(max_examples=100, deadline=None)
@given(intervals(1000, 100000))
def test_more_than_can_be_remembered_is_charged_once_all_the_same(given_ms: list[tuple[float, float]]) -> None:
    timeline = Timeline()
    total = sum(timeline.add(*one) for one in given_ms)
    assert timeline.count <= SPANS
    spans = timeline.spans[: timeline.count]
    assert all(a.to_ms < b.from_ms for a, b in itertools.pairwise(spans))
    assert abs(sum(s.busy_ms for s in spans) - total) < 1e-6 * total
    assert all(s.busy_ms <= (s.to_ms - s.from_ms) * (1 + 1e-9) for s in spans)
    # One that covers everything brings the sum to the whole, whatever was joined before.
    assert abs(total + timeline.add(-300000, 300000) - 600000) < 1e-3


def test_a_long_kernel_beside_a_thousand_short_ones() -> None:
    timeline = Timeline()
    short_ms = sum(timeline.add(i * 0.1, i * 0.1 + 0.005) for i in range(1000))
    assert abs(short_ms - 5) < 1e-6
    assert abs(timeline.add(0, 100) - 95) < 1e-6


def test_nothing_and_less_than_nothing_is_not_charged() -> None:
    timeline = Timeline()
    assert timeline.add(5, 5) == timeline.add(7, 6) == timeline.add(float("nan"), 6) == 0
    assert timeline.count == 0
