"""The workload suite: rows, comparison, verdicts, and a whole session with softgpu in the place of the GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure import engine_share
from benchmarks.rows import NATIVE_DIGESTS
from benchmarks.suite_session import judge, main, merged, table, text_of, verdict
from benchmarks.workloads.__main__ import ORDER, compare
from benchmarks.workloads.driver_rows import LEFT_OUT
from benchmarks.workloads.registry import WORKLOADS, agree, fraction


def row(value: float = 2.0, digest: float = 7, **more: Any) -> dict[str, Any]:
    base = {"name": "r", "unit": "us", "better": "lower", "exact": True, "rtol": 0.0, "clean": True}
    return {**base, "value": value, "digest": digest, **more}


def test_every_workload_is_listed_once() -> None:
    assert sorted(ORDER) == sorted(WORKLOADS)
    assert WORKLOADS.keys() > NATIVE_DIGESTS.keys() - set(LEFT_OUT)


@pytest.mark.parametrize(
    ("base", "other", "same"),
    [
        (row(digest=7), row(digest=7), True),
        (row(digest=7), row(digest=7.0001), False),
        (row(digest=100, exact=False, rtol=0.01), row(digest=101), True),
        (row(digest=-100, exact=False, rtol=0.01), row(digest=-101), True),
        (row(digest=100, exact=False, rtol=0.01), row(digest=102), False),
        (row(digest=100, exact=False, rtol=0.01), row(digest=float("nan")), False),
        (row(digest=float("nan")), row(digest=float("nan")), False),
    ],
)
def test_digests_agree(base: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    assert agree(base, other) is same


def test_the_engines_share_is_of_the_measured_time() -> None:
    before = {"busy_ns": 100, "launches": 5, "launches_timed": 1, "launches_timed_ns": 3000}
    after = {"busy_ns": 500_000_100, "launches": 133, "launches_timed": 3, "launches_timed_ns": 11000}
    assert engine_share(before, after, 2.0) == {"busy": 0.25, "launches": 128, "driver_launch_ns": 4000}
    assert engine_share(before, {**after, "launches_timed": 1}, 2.0) == {"busy": 0.25, "launches": 128}
    assert engine_share({}, after, 2.0) is None


def test_fraction_points_up() -> None:
    assert fraction(row(2), row(4)) == 0.5
    assert fraction(row(2, better="higher"), row(4)) == 2.0


@pytest.mark.parametrize(
    ("base", "other", "word"),
    [
        (row(), row(), "same"),
        (row(), row(digest=8), "DIFFERENT"),
        (row(), row(clean=False), "LOCAL GPU"),
        (row(), {"name": "r", "error": "exit 1"}, "failed"),
        ({"name": "r", "error": "exit 1"}, row(), "no native"),
        (None, row(), "no native"),
    ],
)
def test_verdicts(base: dict[str, Any] | None, other: dict[str, Any], word: str) -> None:
    assert verdict(base, other) == word
    runs = {"native": {"r": base} if base else {}, "shm": {"r": other}}
    assert judge(runs, ["r"]) is (word == "same")
    if word != "same":
        assert word in text_of(table(runs, ["r"]))


def test_compare_counts_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, other = tmp_path / "a", tmp_path / "b"
    base.write_text("\n".join(json.dumps(row(name=n)) for n in "xy"))
    other.write_text(json.dumps(row(4.0, name="x")) + "\n")
    assert compare(str(base), str(base)) == 0
    assert compare(str(base), str(other)) == 1
    shown = capsys.readouterr().out
    assert "MISSING" in shown and "0.500  same" in shown


def test_a_whole_session(tmp_path: Path) -> None:
    rows = "copy_d2h_4b,event_query,launch_and_sync"
    assert main(["--device", "softgpu", "--out", str(tmp_path), "--only", rows]) == 0
    kept = json.loads((tmp_path / "suite.json").read_text())
    assert list(kept["rows"]) == ["native", "shm", "tcp"]
    for place in kept["rows"].values():
        assert {name: r["digest"] for name, r in place.items()} == {n: NATIVE_DIGESTS[n] for n in rows.split(",")}
    # The measured loop alone is counted: one launch and one synchronisation in each of 500 steps.
    counted = kept["rows"]["shm"]["launch_and_sync"]
    assert counted["counted_steps"] == 500 and 1000 <= counted["calls"] <= 1002
    assert 0 <= counted["waits_per_step"] <= 1 and set(counted["waits"]) <= {"cuCtxSynchronize"}  # 0: done when asked
    counted = kept["rows"]["tcp"]["launch_and_sync"]
    assert 0 < counted["waits_per_step"] <= 1 and list(counted["waits"]) == ["cuCtxSynchronize"]
    assert "waits" not in kept["rows"]["native"]["launch_and_sync"]
    # The engine's part is read over the groups that were timed: eight of 500 launches before the one that is counted.
    for transport in ("shm", "tcp"):
        engine = kept["rows"][transport]["launch_and_sync"]["engine"]
        assert engine["launches"] == 8 * 500 and 0 < engine["busy"] <= 1 and engine["driver_launch_ns"] > 0
    assert "engine" not in kept["rows"]["native"]["launch_and_sync"]
    # A second one on the native rows of the first, with a row that those lack: everything else is still measured.
    older = ["--native-from", str(tmp_path / "suite.json"), "--transports", "shm"]
    again = tmp_path / "again"
    assert main(["--device", "softgpu", "--out", str(again), "--only", f"copy_bounce_pinned,{rows}", *older]) == 1
    shown = (again / "suite.txt").read_text()
    assert shown.count("same") == 3 and "no native" in shown


def test_repeats_are_timed_by_turns_and_counted_apart(tmp_path: Path) -> None:
    wanted = ["--only", "event_query", "--transports", "shm", "--repeats", "2"]
    assert main(["--device", "softgpu", "--out", str(tmp_path), *wanted]) == 0
    kept = json.loads((tmp_path / "suite.json").read_text())["rows"]
    for place in ("native", "shm"):
        found = kept[place]["event_query"]
        assert len(found["values"]) == 2 and sum(found["values"]) / 2 == pytest.approx(found["value"])
        assert len(found["interpreter_ns"]) == 4 and all(ns > 0 for ns in found["interpreter_ns"])
    assert kept["shm"]["event_query"]["calls"] >= 2000 and "calls" not in kept["native"]["event_query"]


def test_several_runs_become_one_row() -> None:
    timed = [row(value, interpreter_ns=[20, 30], seconds=1) for value in (3.0, 1.0, 2.0)]
    counted = row(9.0, interpreter_ns=[20, 20], seconds=1, counted=True, waits_per_step=0.5)
    found = merged([*timed, counted])
    assert (found["value"], found["values"], found["waits_per_step"], found["seconds"]) == (
        2.0,
        [3.0, 1.0, 2.0],
        0.5,
        4,
    )
    assert found["interpreter_ns"] == [20, 30] * 3
    other = row(1.0, digest=8, interpreter_ns=[20, 20], seconds=1)
    assert merged([*timed, other, counted]) is other
    seen = row(1.0, clean=False, interpreter_ns=[20, 20], seconds=1)
    assert merged([*timed, seen]) is seen
    failed = {"name": "r", "error": "exit 1", "seconds": 1}
    assert merged([timed[0], failed]) is failed


def test_a_row_that_fails_says_why_and_stops_nothing(tmp_path: Path) -> None:
    assert main(["--device", "softgpu", "--out", str(tmp_path), "--only", "launch_pipelined", "--timeout", "0.01"]) == 1
    kept = json.loads((tmp_path / "suite.json").read_text())["rows"]
    assert [kept[place]["launch_pipelined"]["exit"] for place in ("native", "shm", "tcp")] == [None] * 3
    assert "no end in" in kept["shm"]["launch_pipelined"]["error"]
