"""What is measured where: the identity of a row, and the options and reports of a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Row = dict[str, Any]


class Impossible(Exception):
    """The command cannot run here; the message says why and what to do."""


class Unknown(Impossible):
    """The user asked for rows that do not exist."""


NATIVE, BARE = "native", "bare"
DEFAULT_OUT = Path("orion-bench-results")
ROWS_FILE = "rows.jsonl"


@dataclass(frozen=True)
class Network:
    """An emulated link: round-trip time in microseconds, bandwidth in Gbit/s."""

    rtt_us: float
    gbit: float

    @property
    def label(self) -> str:
        return f"{self.rtt_us:g} us, {self.gbit:g} Gbit/s"

    def environment(self) -> dict[str, str]:
        return {"ORION_EMULATE_RTT_US": f"{self.rtt_us:g}", "ORION_EMULATE_GBIT": f"{self.gbit:g}"}

    def record(self) -> dict[str, float]:
        return {"rtt_us": self.rtt_us, "gbit": self.gbit}


@dataclass(frozen=True)
class Cell:
    """One row in one place, once. `place` is native, shm, tcp, or bare: a floor without any of Orion."""

    command: str
    row: str
    place: str
    repeat: int = 0
    network: Network | None = None
    clients: int = 1
    # What else the row depends on, seconds of load for example: rows with other settings are no repeats of this one.
    settings: str = ""

    def record(self) -> Row:
        kept: Row = {"command": self.command, "row": self.row, "place": self.place, "repeat": self.repeat}
        if self.network is not None:
            kept["network"] = self.network.record()
        if self.clients != 1:
            kept["clients"] = self.clients
        if self.settings:
            kept["settings"] = self.settings
        return kept

    @property
    def label(self) -> str:
        parts = [self.row, self.place]
        if self.network is not None:
            parts.append(self.network.label)
        if self.clients != 1:
            parts.append(f"{self.clients} clients")
        return " ".join(parts)


IDENTITY = ("command", "row", "place", "repeat", "network", "clients", "settings", "tcp_lanes", "run")


def key_of(row: Row) -> str:
    """Equal for two rows of the same cell, measured with the same code on the same machine."""
    return json.dumps({name: row[name] for name in IDENTITY if row.get(name)}, sort_keys=True)


@dataclass(frozen=True)
class Task:
    """Cells that one call of `run` measures, each told by `done(cell, row)` as soon as it is there.

    A task that ends without having told them all has failed: the first cell that is missing is told as its error.
    """

    cells: tuple[Cell, ...]
    run: Callable[[tuple[Cell, ...], Callable[[Cell, Row], None]], None]


class Observer(Protocol):
    """Is told how far a command is: progress bars on a terminal, lines elsewhere."""

    def begin(self, command: str, cells: int, saved: int) -> None: ...

    def now(self, label: str) -> None: ...

    def row(self, cell: Cell, row: Row) -> None: ...

    def end(self) -> None: ...


@dataclass
class Options:
    """What the user asked for. `device` is resolved: nvidia or softgpu."""

    device: str
    out: Path = DEFAULT_OUT
    full: bool = False
    places: tuple[str, ...] = (NATIVE, "shm", "tcp")
    repeats: int | None = None
    rows: tuple[str, ...] = ()
    sizes_bytes: tuple[int, ...] = ()
    clients: tuple[int, ...] = ()
    networks: tuple[Network, ...] = ()
    seconds: float | None = None
    timeout_s: float = 120.0
    # No new row is begun after that many seconds; None: as long as it takes.
    budget_s: float | None = None
    run: Row = field(default_factory=dict)
    # The command line, as the rows tell it.
    by: str = ""

    @property
    def remote(self) -> tuple[str, ...]:
        return tuple(place for place in self.places if place != NATIVE)
