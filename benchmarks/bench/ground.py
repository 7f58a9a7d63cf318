"""Where the tasks of a command run: servers and compiled programs, each made when the first task needs it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks import rows
from benchmarks.bench.model import BARE, Cell, Impossible, Options, Row, Task
from benchmarks.bench.runner import TaskError
from benchmarks.places import Outcome, Places
from benchmarks.programs import NoCompiler, compile_program
from orion_client.libraries import LibrariesMissing

Done = Callable[[Cell, Row], None]
# Rows in which each step goes to the server and back: none can be faster than an emulated link.
WAITS = ("launch_and_sync", "copy_d2h_4b", "reply")
KEPT = ("unit", "better", "what", "value", "low", "high", "samples", "digest", "exact", "rtol", "clean", "device")


def rounded(value: Any) -> Any:
    """Six significant digits: more than a clock gives, and a line of the file that can be read."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value


class Ground:
    """Use as a context: what was started is stopped at its end."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._running = contextlib.ExitStack()
        self._places: dict[str, Places] = {}
        self._programs: dict[str, Path] = {}
        self._folder: Path | None = None

    def __enter__(self) -> Ground:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._running.close()

    def places(
        self, name: str = "server", options: tuple[str, ...] = (), environment: Mapping[str, str] | None = None,
        device: str | None = None,
    ) -> Places:  # fmt: skip
        """A server of that name with these options; started once, and logged beside the rows."""
        if name not in self._places:
            places = Places(
                device or self.options.device,
                tuple(self.options.places),
                self.options.out / f"{name}.log",
                options,
                environment or {},
            )
            try:
                self._places[name] = self._running.enter_context(places)
            except (RuntimeError, OSError, LibrariesMissing) as error:
                # Without a server no row can be measured, and each would tell the same.
                hint = (
                    "\nIt needs the extra of servers: pip install 'orion-vgpu[gpu]'" if "pycuda" in str(error) else ""
                )
                raise Impossible(f"{str(error).strip()}{hint}") from None
        return self._places[name]

    def program(self, name: str) -> Path:
        """A program of benchmarks/native, compiled."""
        if self._folder is None:
            self._folder = Path(self._running.enter_context(tempfile.TemporaryDirectory(prefix="orion-bench-")))
        if name not in self._programs:
            try:
                self._programs[name] = compile_program(name, self._folder)
            except (NoCompiler, subprocess.CalledProcessError) as error:
                raise TaskError(str(error), whole=True) from None
        return self._programs[name]

    def run(self, places: Places, place: str, command: list[str], timeout_s: float, **more: Any) -> Outcome:
        """Runs a client; its failure is the task's."""
        try:
            outcome = places.run(place, command, timeout_s, **more)
        except (RuntimeError, LibrariesMissing) as error:
            raise TaskError("orion-server did not start again", str(error)) from None
        if not outcome.good:
            raise TaskError(outcome.failure, outcome.stderr)
        return outcome

    def bare(self, name: str, *arguments: str) -> Row:
        """A floor program: no server, no driver, one JSON object."""
        program = self.program(name)
        try:
            done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=120, check=True)
            return dict(json.loads(done.stdout))
        except (subprocess.SubprocessError, ValueError) as error:
            raise TaskError(f"{name}: {error}", whole=True) from None

    def rows_task(self, cells: tuple[Cell, ...]) -> Task:
        """Rows of benchmarks.rows in one process; all cells have one place and one network."""
        place, network = cells[0].place, cells[0].network

        def run(left: tuple[Cell, ...], done: Done) -> None:
            by_name = {cell.row: cell for cell in left}

            def on_line(line: str) -> None:
                if line.startswith("{"):
                    told = json.loads(line)
                    row = {name: rounded(told[name]) for name in KEPT if name in told}
                    if network is not None and told["name"] in WAITS and told["value"] < 0.9 * network.rtt_us:
                        row = {"error": f"{told['value']:.3g} us is less than the link's round trip: not emulated"}
                    done(by_name[told["name"]], row)

            command = [sys.executable, "-m", "benchmarks.rows", *by_name]
            extra = network.environment() if network is not None else {}
            timeout_s = self.options.timeout_s * len(left)
            self.run(self.places(), place, command, timeout_s, extra=extra, on_line=on_line)

        return Task(cells, run)


# The bare floors: unit, which way is better, what.
FLOORS = {
    "ring_push": ("ns", "lower", "a message into the bare ring"),
    "ring_drain": ("ns", "lower", "a message through the bare ring, until it is taken out"),
    "shm_spin_rtt": ("us", "lower", "two words in shared memory, both sides spinning"),
    "shm_futex_rtt": ("us", "lower", "two words in shared memory, both sides asleep"),
    "tcp_rtt": ("us", "lower", "64 bytes each way over loopback TCP, blocking sockets"),
}
STREAMS = {
    "tcp_1_fixed": "loopback TCP, 1 stream, the same 1 MiB again and again",
    "tcp_1_cycling": "loopback TCP, 1 stream through a large buffer",
    "tcp_4_fixed": "loopback TCP, 4 streams, the same 1 MiB again and again",
    "tcp_4_cycling": "loopback TCP, 4 streams through a large buffer",
}


def floors_task(ground: Ground, command: str, repeat: int) -> Task:
    cells = tuple(Cell(command, name, BARE, repeat) for name in FLOORS)

    def run(left: tuple[Cell, ...], done: Done) -> None:
        told = ground.bare("floors", "0.5")
        for cell in left:
            unit, better, what = FLOORS[cell.row]
            done(cell, {"unit": unit, "better": better, "what": what, "value": told[f"{cell.row}_{unit}"]})

    return Task(cells, run)


def streams_task(ground: Ground, command: str, repeat: int, seconds: float) -> Task:
    cells = tuple(Cell(command, name, BARE, repeat, settings=f"{seconds:g} s") for name in STREAMS)

    def run(left: tuple[Cell, ...], done: Done) -> None:
        told = ground.bare("tcp_stream", f"{seconds:g}")
        for cell in left:
            value, low, high = told[cell.row]
            done(cell, {"unit": "GB/s", "better": "higher", "what": STREAMS[cell.row], "value": value, "low": low,
                        "high": high})  # fmt: skip

    return Task(cells, run)


def known(name: str) -> bool:
    return rows.find(name) is not None
