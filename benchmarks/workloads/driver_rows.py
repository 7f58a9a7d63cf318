"""The driver API through ctypes: the programs of benchmarks.rows under the names and metrics of this suite."""

from __future__ import annotations

from benchmarks import rows
from benchmarks.driver import Driver
from benchmarks.workloads.registry import WORKLOADS, Body, Result, Workload

METRICS = {
    "copy_bounce_pinned": (
        "64 KiB down and up through one page-locked buffer on one stream, then the sum of what came back"
    ),
    "launch_pipelined": "launch of a tiny kernel, drained every 2000 (includes the ctypes call)",
}


def body(name: str) -> Body:
    def run() -> Result:
        return rows.ROWS[name][3](Driver())

    return run


def register() -> None:
    for name, (unit, better, what, _) in rows.ROWS.items():
        WORKLOADS[name] = Workload(name, unit, better, METRICS.get(name, what), True, 0.0, body(name))
