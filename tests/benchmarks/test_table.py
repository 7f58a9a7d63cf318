"""The table: fractions point the right way, and a wrong digest or a local driver cannot pass for a result."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.table import fraction, medians, render


def row(value: float, digest: int = 7, better: str = "lower", **more: Any) -> dict[str, Any]:
    return {"name": "r", "unit": "us", "better": better, "value": value, "digest": digest, "clean": True, **more}


@pytest.mark.parametrize(("better", "native", "other", "expected"), [("lower", 2, 4, 0.5), ("higher", 2, 4, 2.0)])
def test_a_larger_fraction_is_always_better(better: str, native: float, other: float, expected: float) -> None:
    assert fraction(row(native, better=better), row(other, better=better)) == expected


def test_the_median_of_the_repeats_counts() -> None:
    assert medians([row(1), row(100), row(3)])["r"]["value"] == 3


def test_equal_runs_are_good() -> None:
    text, good = render({"native": [row(2)], "shm": [row(1)]})
    assert good and "2.000 same" in text


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ([row(1, digest=8)], "DIFFERS"),
        ([row(1), row(1, digest=8)], "DIFFERS"),
        ([row(1, clean=False)], "LOCAL GPU"),
        ([{"name": "r", "error": "exit 1", "tail": ""}], "failed"),
        ([], "failed"),
    ],
)
def test_anything_wrong_is_said_and_is_not_good(other: list[dict[str, Any]], word: str) -> None:
    text, good = render({"native": [row(2)], "shm": other})
    assert not good and word in text


def test_a_failed_native_run_is_not_good() -> None:
    assert not render({"native": [{"name": "r", "error": "exit 1", "tail": ""}], "shm": [row(1)]})[1]
