"""Every driver function that a recorded run of PyTorch, JAX, CuPy, Triton or NCCL called (data/) is implemented."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
GENERATED = HERE.parents[1] / "shim" / "src" / "gen"


def recorded_functions() -> list[str]:
    with (HERE / "data" / "driver_calls_by_workload.csv").open(newline="") as lines:
        names = [row["symbol"] for row in csv.DictReader(lines)]
    return [name for name in names if not name.startswith("table:")]


def names_in(file: str) -> set[str]:
    return set(re.findall(r"\bcu[A-Z]\w*", (GENERATED / file).read_text()))


def test_the_record_was_read() -> None:
    assert len(recorded_functions()) > 90


@pytest.mark.parametrize("function", recorded_functions())
def test_is_handed_out_and_not_refused(function: str) -> None:
    assert function in names_in("gen_procaddr.c")
    assert function not in names_in("gen_stubs.c")
