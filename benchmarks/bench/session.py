"""One command from options to an exit status: what `orion-bench` and its plain twin share."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from benchmarks.bench.ground import Ground
from benchmarks.bench.model import Cell, Observer, Options, Row
from benchmarks.bench.plans import COMMANDS as COMMANDS
from benchmarks.bench.runner import run_tasks
from benchmarks.bench.store import Store
from benchmarks.bench.summary import Line, as_json, good, summarise
from benchmarks.machine import fingerprint
from benchmarks.places import say

OK, WRONG, USAGE, INTERRUPTED = 0, 1, 2, 130
SOFTGPU_WORDS = (
    "No GPU: softgpu, a software GPU, stands in for one, and `native` is softgpu inside the program. "
    "These numbers check the path; they are no GPU timings."
)


@dataclass
class Result:
    """What a command has to say. `status`: 0, or 1 when a row failed, a digest differs or rows were not reached."""

    command: str
    run: Row
    lines: list[Line]
    not_reached: list[Cell]

    @property
    def status(self) -> int:
        return OK if good(self.lines) and not self.not_reached else WRONG

    def record(self) -> Row:
        """For machines."""
        out: Row = {"command": self.command, "run": self.run, "good": self.status == OK, "rows": as_json(self.lines)}
        if self.run.get("device") == "softgpu":
            out["note"] = SOFTGPU_WORDS
        if self.not_reached:
            out["not_reached"] = [cell.record() for cell in self.not_reached]
        return out


class Lines:
    """An observer for logs: a line a row on standard error."""

    def __init__(self) -> None:
        self._cells = self._done = 0

    def begin(self, command: str, cells: int, saved: int) -> None:
        self._cells, self._done = cells, saved
        say(f"{command}: {cells} rows, {saved} of them saved before" if saved else f"{command}: {cells} rows")

    def now(self, label: str) -> None:
        pass

    def row(self, cell: Cell, row: Row) -> None:
        self._done += 1
        said = f"{row['value']:.4g} {row.get('unit', '')}" if "value" in row else f"FAILED: {row['error']}"
        say(f"{self._done}/{self._cells} {cell.label}: {said}")
        if row.get("tail"):
            print(row["tail"][-600:], file=sys.stderr)

    def end(self) -> None:
        pass


def measure(command: str, options: Options, observer: Observer) -> Result:
    """Runs a command. Raises Impossible where it cannot run at all."""
    if not options.run:
        options.run = fingerprint(options.device)
    store = Store(options.out)
    with Ground(options) as ground:
        tasks = COMMANDS[command].tasks(ground)
        measured = run_tasks(tasks, options, store, observer, command)
    return Result(command, options.run, summarise(measured.rows), measured.not_reached)


def failures(lines: list[Line]) -> list[str]:
    """A sentence for each thing that is wrong."""
    out = []
    for line in lines:
        for label, entry in line.entries.items():
            where = f"{line.command} {line.name}" + (f", {line.clients} clients" if line.clients != 1 else "")
            if entry.error:
                out.append(f"{where} over {label} failed: {entry.error}")
            elif entry.bad:
                out.append(f"{where} over {label}: the digest is {entry.verdict}: its result is not the native one")
    return out


def resume_words(options: Options) -> str:
    """How to go on: the same command finds what is saved."""
    return (
        f"What was measured is saved in {options.out}. Go on where this stopped, with the same command:\n  {options.by}"
    )
