"""Several clients on one GPU at the same time (native/crowd.c): prepared, and let go together, phase by phase."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks.bench.ground import Done, Ground, rounded
from benchmarks.bench.model import Cell, Row, Task
from benchmarks.bench.runner import TaskError

# In the last phase one client waits for each of its launches while all others launch without a pause.
PHASES = ("launch", "copy_h2d", "copy_d2h", "sync")
CROWD_ROWS = {
    "launch_rate": ("launches/s", "higher", "launches of all clients together"),
    "launch_fairness": ("", "higher", "the slowest client's launches as a share of the fastest's"),
    "copy_h2d": ("GB/s", "higher", "page-locked copies of 16 MiB to the device, all clients together"),
    "copy_d2h": ("GB/s", "higher", "page-locked copies of 16 MiB from the device, all clients together"),
    "sync_under_load": ("us", "lower", "launch and wait of one client while the others launch"),
}
# All clients come at once and each worker needs a context: how long that takes is measured by `attach`, not here.
ATTACH_TIMEOUT_MS = "60000"


@dataclass
class Client:
    """A process that tells lines; they come through a queue, so that a silent one can be given up."""

    process: subprocess.Popen[str]
    lines: queue.Queue[str | None] = field(default_factory=queue.Queue)
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._read_errors, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.strip())
        self.lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    def next(self, deadline: float) -> str:
        try:
            line = self.lines.get(timeout=max(0.001, deadline - time.monotonic()))
        except queue.Empty:
            raise TaskError("a client gave no answer in time", "".join(self.errors), whole=True) from None
        if line is None:
            self.process.wait()
            raise TaskError(f"a client ended with {self.process.returncode}", "".join(self.errors), whole=True)
        return line

    def go(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("go\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def run_crowd(command: list[list[str]], environment: dict[str, str], timeout_s: float) -> list[list[dict[str, Any]]]:
    """Runs all commands at once; for each phase what each client told."""
    clients: list[Client] = []
    deadline = time.monotonic() + timeout_s
    try:
        for one in command:
            process = subprocess.Popen(
                one, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                start_new_session=True,
            )  # fmt: skip
            clients.append(Client(process))
        told = []
        for _ in PHASES:
            for client in clients:
                while (line := client.next(deadline)) != "ready":
                    raise TaskError(f"unexpected: {line}", whole=True)
            for client in clients:
                client.go()
            told.append([json.loads(client.next(deadline)) for client in clients])
        return told
    except OSError as error:
        raise TaskError(str(error), whole=True) from None
    finally:
        for client in clients:
            client.stop()


def crowd_row(name: str, told: list[list[dict[str, Any]]]) -> Row:
    """One row of what all clients told in all phases. Its digest is the number of wrong bytes and lost kernels."""
    unit, better, what = CROWD_ROWS[name]
    row: Row = {"unit": unit, "better": better, "what": what, "exact": True}
    launch, up, down, sync = told
    if name == "sync_under_load":
        prober = sync[0]
        row |= {"value": prober["median_us"], "low": prober["p10_us"], "high": prober["p90_us"],
                "p99": prober["p99_us"], "digest": sum(client["digest"] for client in sync)}  # fmt: skip
        return row
    phase, field_name = {
        "launch_rate": (launch, "per_second"),
        "launch_fairness": (launch, "per_second"),
        "copy_h2d": (up, "gb_per_second"),
        "copy_d2h": (down, "gb_per_second"),
    }[name]
    rates = [client[field_name] for client in phase]
    if name == "launch_fairness":
        row["value"] = min(rates) / max(rates)
    else:
        # All that was done by the time that it took together: a client that was held up until the others were through
        # adds its work and its delay.
        seconds = max(client["ended"] for client in phase) - min(client["began"] for client in phase)
        row["value"] = sum(client[field_name] * (client["ended"] - client["began"]) for client in phase) / seconds
    row |= {"each": rounded(rates), "digest": sum(client["digest"] for client in phase)}
    return row


def crowd_task(ground: Ground, place: str, clients: int, repeat: int, seconds: float) -> Task:
    settings = f"{seconds:g} s"
    cells = tuple(Cell("scale", name, place, repeat, clients=clients, settings=settings) for name in CROWD_ROWS)

    def run(left: tuple[Cell, ...], done: Done) -> None:
        places = ground.places()
        program = str(ground.program("crowd"))
        commands = [[program, f"{seconds:g}", *PHASES]]
        commands += [[program, f"{seconds:g}", *PHASES[:-1], "launch"]] * (clients - 1)
        told = run_crowd(
            [places.command(place, command) for command in commands],
            {**places.environment(place), "ORION_ATTACH_TIMEOUT_MS": ATTACH_TIMEOUT_MS},
            ground.options.timeout_s + 4 * seconds,
        )
        for cell in left:
            row = crowd_row(cell.row, told)
            done(cell, {name: rounded(value) for name, value in row.items()})

    return Task(cells, run)
