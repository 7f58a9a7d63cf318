"""How a loop is timed, and how its calls are counted."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable
from typing import Any


class Counted:
    """Steps of this process whose calls the client library has counted (ORION_STATS, docs/statistics.md)."""

    steps = 0


def nothing() -> None:
    pass


def median_time(step: Callable[[], Any], finish: Callable[[], Any], groups: int, each: int = 1) -> float:
    """Median over `groups` of the seconds of one of `each` steps that end with `finish`.

    Where calls are counted, that is done in the last group alone: counting costs time, and the median of the others
    does not show it.
    """
    library = ctypes.CDLL("libcuda.so.1") if os.environ.get("ORION_STATS") else None
    if library is not None:
        library.cuProfilerStop()
    times = []
    for group in range(groups):
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
    return statistics.median(times)
