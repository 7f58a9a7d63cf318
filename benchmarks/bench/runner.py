"""Runs the tasks of a command: passes over what is saved, saves each row when it comes, ends in good order."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks.bench.model import BARE, Cell, Observer, Options, Row, Task
from benchmarks.bench.store import Store


class TaskError(Exception):
    """A task could not measure its next cell; the message is kept as the row's error. `whole`: it cannot measure the
    cells behind that one either, and is not asked again."""

    def __init__(self, message: str, tail: str = "", whole: bool = False) -> None:
        super().__init__(message)
        self.tail, self.whole = tail, whole


@dataclass
class Measured:
    """The rows of a command, saved and new, in the order of its plan; and the cells that were not reached."""

    rows: list[Row] = field(default_factory=list)
    not_reached: list[Cell] = field(default_factory=list)


def identity(cell: Cell, options: Options) -> Row:
    """The row of a cell without its values."""
    row = cell.record()
    if cell.place not in ("native", "shm", BARE):
        row["tcp_lanes"] = os.environ.get("ORION_TCP_LANES", "default")
    row["run"] = options.run
    return row


def run_tasks(tasks: Iterable[Task], options: Options, store: Store, observer: Observer, command: str) -> Measured:
    tasks = list(tasks)
    measured: dict[Cell, Row] = {}
    for task in tasks:
        for cell in task.cells:
            saved = store.get(identity(cell, options))
            if saved is not None:
                measured[cell] = saved
    ordered = [cell for task in tasks for cell in task.cells]
    observer.begin(command, len(ordered), len(measured))
    deadline = None if options.budget_s is None else time.monotonic() + options.budget_s

    def done(cell: Cell, values: Row) -> None:
        row = {
            **identity(cell, options),
            **values,
            "by": options.by,
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        store.add(row)
        measured[cell] = row
        observer.row(cell, row)

    out_of_time = False
    try:
        for task in tasks:
            while not out_of_time:
                left = tuple(cell for cell in task.cells if cell not in measured)
                if not left:
                    break
                if deadline is not None and time.monotonic() >= deadline:
                    out_of_time = True
                    break
                observer.now(left[0].label)
                try:
                    task.run(left, done)
                    failure = TaskError("the program ended without it")
                except TaskError as error:
                    failure = error
                missing = [cell for cell in left if cell not in measured]
                for cell in missing if failure.whole else missing[:1]:
                    done(cell, {"error": str(failure), **({"tail": failure.tail[-2000:]} if failure.tail else {})})
    finally:
        observer.end()
    return Measured(
        [measured[cell] for cell in ordered if cell in measured], [cell for cell in ordered if cell not in measured]
    )
