"""How a loop is timed, how its calls are counted, and how what was measured is summed up."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


class Counted:
    """Steps of this process whose calls the client library has counted (ORION_STATS, docs/statistics.md), and what the
    engine of its session did in the groups that were timed."""

    steps = 0
    engine: dict[str, float] | None = None


def engine_counters() -> dict[str, int]:
    """Of this process's session, as its server tells; empty where there is none."""
    server = os.environ.get("ORION_SERVER")
    if not server or "ORION_BENCH_REMOTE" not in os.environ:
        return {}
    from orion_client.control_client import ServerUnreachable, stats

    try:
        own = [session.engine for session in stats(server).sessions if session.pid == os.getpid()]
    except ServerUnreachable:
        return {}
    return own[0] if len(own) == 1 else {}


def engine_share(before: dict[str, int], after: dict[str, int], seconds: float) -> dict[str, float] | None:
    """Which part of `seconds` the engine's thread was busy, between two readings, and a launch's ns inside the driver.

    The readings themselves take longer than some loops, and the engine is idle then: its own clock would show less.
    """
    if not before or not after or seconds <= 0:
        return None
    change = {name: after[name] - before.get(name, 0) for name in after}
    share = {"busy": round(change["busy_ns"] / seconds / 1e9, 4), "launches": float(change["launches"])}
    if change["launches_timed"]:
        share["driver_launch_ns"] = round(change["launches_timed_ns"] / change["launches_timed"], 1)
    return share


def nothing() -> None:
    pass


def interpreter_ns() -> float:
    """What a step of a Python loop takes now: the least of a few milliseconds. A CPU that shares its core with another
    guest's work is half as fast, for seconds at a time, and every row that Python bounds is then as well."""
    least = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(5000):
            nothing()
        least = min(least, time.perf_counter() - start)
    return least / 5000 * 1e9


@dataclass(frozen=True)
class Spread:
    """Median, and the 10th and 90th percentile, in the unit of the values."""

    median: float
    low: float
    high: float


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of the values lie, interpolated between neighbours."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), percentile(values, 0.1), percentile(values, 0.9))


def timed_groups(
    step: Callable[[], Any], finish: Callable[[], Any], groups: int, each: int = 1, warm_up: bool = False
) -> list[float]:
    """For each group the seconds of one of its `each` steps, which end with `finish`.

    `warm_up`: the first group is run and not told. Where calls are counted, that is done in the last group alone:
    counting costs time, and the median of the others does not show it. What the engine did is read before that one.
    """
    library = ctypes.CDLL("libcuda.so.1") if os.environ.get("ORION_STATS") else None
    if library is not None:
        library.cuProfilerStop()
    times: list[float] = []
    before = engine_counters() if library is not None else {}
    for group in range(groups):
        if library is not None and group and group == groups - 1:
            Counted.engine = engine_share(before, engine_counters(), sum(times) * each)
        if library is not None and group == groups - 1:
            library.cuProfilerStart()
            Counted.steps = each
        start = time.perf_counter()
        for _ in range(each):
            step()
        finish()
        times.append((time.perf_counter() - start) / each)
    if library is not None:
        library.cuProfilerStop()
    return times[1:] if warm_up and groups > 1 else times


def median_time(step: Callable[[], Any], finish: Callable[[], Any], groups: int, each: int = 1) -> float:
    """Median over `groups` of the seconds of one step; for programs that have warmed up by themselves."""
    return statistics.median(timed_groups(step, finish, groups, each))
