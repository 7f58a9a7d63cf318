"""What is saved is not measured again; what failed, or was measured elsewhere, is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.bench.model import Cell, Options, Row, Task
from benchmarks.bench.runner import TaskError, run_tasks
from benchmarks.bench.store import Store, newest, read_rows
from benchmarks.places import run_limited

CELLS = tuple(Cell("latency", name, "shm") for name in ("a", "b", "c"))
Done = Callable[[Cell, Row], None]


class Silent:
    def begin(self, command: str, cells: int, saved: int) -> None: ...
    def now(self, label: str) -> None: ...
    def row(self, cell: Cell, row: Row) -> None: ...
    def end(self) -> None: ...


class Lab:
    """A task that counts what it is asked for; cells in `fails` have no result."""

    def __init__(self, fails: tuple[str, ...] = (), whole: bool = False) -> None:
        self.asked: list[str] = []
        self.fails, self.whole = fails, whole

    def run(self, left: tuple[Cell, ...], done: Done) -> None:
        for cell in left:
            self.asked.append(cell.row)
            if cell.row in self.fails:
                raise TaskError("it broke", "the tail", self.whole)
            done(cell, {"value": 1.0})


def options(folder: Path, commit: str = "one", **more: object) -> Options:
    return Options("softgpu", folder, run={"commit": commit}, **more)  # type: ignore[arg-type]


def measure(lab: Lab, folder: Path, commit: str = "one", **more: object) -> list[Row]:
    told = options(folder, commit, **more)
    return run_tasks([Task(CELLS, lab.run)], told, Store(folder), Silent(), "latency").rows


def test_a_second_start_measures_nothing(tmp_path: Path) -> None:
    first, second = Lab(), Lab()
    rows = measure(first, tmp_path)
    assert first.asked == ["a", "b", "c"] and len(rows) == 3
    assert measure(second, tmp_path) == rows
    assert second.asked == []


def test_only_what_is_missing_is_measured(tmp_path: Path) -> None:
    measure(Lab(), tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    lab = Lab()
    assert len(measure(lab, tmp_path)) == 3 and lab.asked == ["c"]


def test_rows_of_another_commit_are_measured_again(tmp_path: Path) -> None:
    measure(Lab(), tmp_path)
    lab = Lab()
    measure(lab, tmp_path, commit="two")
    assert lab.asked == ["a", "b", "c"] and len(list(read_rows(tmp_path))) == 6


def test_the_lanes_of_tcp_are_part_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = (Cell("latency", "a", "tcp"),)
    labs = [Lab(), Lab(), Lab()]
    for lab, lanes in zip(labs, ("raw", "zmq", "raw")):
        monkeypatch.setenv("ORION_TCP_LANES", lanes)
        run_tasks([Task(cells, lab.run)], options(tmp_path), Store(tmp_path), Silent(), "latency")
    assert [lab.asked for lab in labs] == [["a"], ["a"], []]
    assert [row["tcp_lanes"] for row in read_rows(tmp_path)] == ["raw", "zmq"]


def test_a_line_that_was_cut_off_costs_that_row_alone(tmp_path: Path) -> None:
    measure(Lab(), tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    lab = Lab()
    assert len(measure(lab, tmp_path)) == 3 and lab.asked == ["c"]
    assert [row["row"] for row in read_rows(path)] == ["a", "b", "c"]


def test_a_failure_costs_its_row_and_is_tried_again(tmp_path: Path) -> None:
    lab = Lab(fails=("b",))
    rows = measure(lab, tmp_path)
    assert lab.asked == ["a", "b", "c"] and [row.get("error") for row in rows] == [None, "it broke", None]
    assert rows[1]["tail"] == "the tail"
    again = Lab()
    assert all("value" in row for row in measure(again, tmp_path)) and again.asked == ["b"]
    assert all("value" in row for row in newest(read_rows(tmp_path)))


def test_what_cannot_work_is_asked_once(tmp_path: Path) -> None:
    lab = Lab(fails=("a",), whole=True)
    rows = measure(lab, tmp_path)
    assert lab.asked == ["a"] and [row["error"] for row in rows] == ["it broke"] * 3


def test_a_task_that_forgets_a_row_ends(tmp_path: Path) -> None:
    def forgets(left: tuple[Cell, ...], done: Done) -> None:
        if left[0].row == "a":
            done(left[0], {"value": 1.0})

    rows = run_tasks([Task(CELLS, forgets)], options(tmp_path), Store(tmp_path), Silent(), "latency").rows
    assert ["error" in row for row in rows] == [False, True, True]


def test_without_time_nothing_is_begun_and_that_is_told(tmp_path: Path) -> None:
    lab = Lab()
    told = options(tmp_path, budget_s=0.0)
    measured = run_tasks([Task(CELLS, lab.run)], told, Store(tmp_path), Silent(), "latency")
    assert lab.asked == [] and measured.not_reached == list(CELLS)


def test_an_interruption_leaves_what_was_measured(tmp_path: Path) -> None:
    def interrupted(left: tuple[Cell, ...], done: Done) -> None:
        done(left[0], {"value": 1.0})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks([Task(CELLS, interrupted)], options(tmp_path), Store(tmp_path), Silent(), "latency")
    assert [json.loads(line)["row"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == ["a"]


def test_lines_come_while_the_program_runs() -> None:
    seen: list[str] = []
    outcome = run_limited(["sh", "-c", "echo one; echo two; echo three >&2; exit 3"], {}, 30, on_line=seen.append)
    assert seen == ["one\n", "two\n"] and outcome.stdout == "one\ntwo\n"
    assert (outcome.code, outcome.stderr) == (3, "three\n")


def test_an_interrupted_wait_ends_the_program(tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        (tmp_path / "pid").write_text(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_limited(["sh", "-c", "echo $$; exec sleep 600"], {"PATH": "/usr/bin:/bin"}, 600, on_line=interrupt)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()
