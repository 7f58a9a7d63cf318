"""The driver API through ctypes: the programs of benchmarks.rows under the names and metrics of this suite."""

from __future__ import annotations

import statistics

from benchmarks import rows
from benchmarks.driver import Driver
from benchmarks.workloads.registry import WORKLOADS, Body, Result, Workload

METRICS = {
    "copy_bounce_pinned": (
        "64 KiB down and up through one page-locked buffer on one stream, then the sum of what came back"
    ),
    "launch_pipelined": "launch of a tiny kernel, drained every 2000 (includes the ctypes call)",
}


# Rows that `orion-bench latency` has besides, and no program's speed hangs on.
LEFT_OUT = ("stream_query", "reply")


def body(kind: rows.Kind) -> Body:
    def run() -> Result:
        values, digest = kind.run(Driver())
        return statistics.median(values), digest

    return run


def register() -> None:
    for name, kind in rows.ROWS.items():
        if name not in LEFT_OUT:
            WORKLOADS[name] = Workload(
                name, kind.unit, kind.better, METRICS.get(name, kind.what), True, 0.0, body(kind)
            )
