"""What a workload is, how it is timed, and the row that it becomes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import Counted, interpreter_ns

Result = tuple[float, float]
Body = Callable[[], Result]


@dataclass(frozen=True)
class Workload:
    """`body` returns the measured value and a digest of the result.

    Two runs agree when their digests are equal (`exact`), or differ by at most `rtol` of the first one.
    """

    name: str
    unit: str
    better: str
    metric: str
    exact: bool
    rtol: float
    body: Body


WORKLOADS: dict[str, Workload] = {}


def workload(unit: str, better: str, metric: str = "", rtol: float | None = None) -> Callable[[Body], Body]:
    """Registers a function under its own name; without `rtol` its digest is exact."""

    def register(body: Body) -> Body:
        name = body.__name__
        WORKLOADS[name] = Workload(name, unit, better, metric, rtol is None, rtol or 0.0, body)
        return body

    return register


def agree(base: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows have the same result. NaN agrees with nothing."""
    if base["exact"]:
        return bool(base["digest"] == other["digest"])
    return bool(abs(base["digest"] - other["digest"]) <= base["rtol"] * abs(base["digest"]))


def fraction(base: dict[str, Any], other: dict[str, Any]) -> float:
    """1.0 = as fast as the base, more is better, whichever way the unit points."""
    if base["better"] == "higher":
        return float(other["value"] / base["value"])
    return float(base["value"] / other["value"])


def run_here(name: str) -> dict[str, Any]:
    """Runs one workload in this process."""
    chosen = WORKLOADS[name]
    before_ns = interpreter_ns()
    value, digest = chosen.body()
    row: dict[str, Any] = {
        "name": name,
        "unit": chosen.unit,
        "better": chosen.better,
        "metric": chosen.metric,
        "value": value,
        "digest": digest,
        "exact": chosen.exact,
        "rtol": chosen.rtol,
        "interpreter_ns": [round(before_ns, 2), round(interpreter_ns(), 2)],
    }
    if Counted.steps:
        row["counted_steps"] = Counted.steps
    if Counted.engine:
        row["engine"] = Counted.engine
    return row


def load_rows(path: str) -> dict[str, dict[str, Any]]:
    """Rows by name from a file of JSON lines."""
    with open(path) as lines:
        return {row["name"]: row for row in map(json.loads, filter(str.strip, lines))}
