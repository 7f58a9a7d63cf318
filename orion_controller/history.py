"""The last hour of the pool, its servers, GPUs and groups, for plots. In memory; no clock: the caller samples.

One sample every STEP_S. A GPU costs 5 bytes a sample, 3.6 KB an hour; a group the same, and only the newest
GROUPS_MOST are kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEP_S = 5.0
SAMPLES = 720
GROUPS_MOST = 4096
_UNKNOWN = 255


class Table:
    """Rings of (percent, MiB) samples, one row a name; rows of names that are gone are given away again."""

    def __init__(self, rows_most: int | None = None) -> None:
        self._rows_most = rows_most
        self._row_of: dict[str, int] = {}
        self._free: list[int] = []
        self._percent: NDArray[np.uint8] = np.full((0, SAMPLES), _UNKNOWN, np.uint8)
        self._mib: NDArray[np.uint32] = np.zeros((0, SAMPLES), np.uint32)

    def put(self, at: int, samples: dict[str, tuple[float | None, int]]) -> None:
        """Sample number `at` of everything there is; what is not named is gone."""
        column = at % SAMPLES
        for name in [name for name in self._row_of if name not in samples]:
            self._free.append(self._row_of.pop(name))
        rows, percents, mibs = [], [], []
        for name, (percent, mib) in samples.items():
            row = self._row_of.get(name)
            if row is None:
                row = self._new_row(name)
                if row is None:
                    continue
            rows.append(row)
            percents.append(_UNKNOWN if percent is None else min(254, max(0, round(percent))))
            mibs.append(min(mib, 0xFFFFFFFF))
        self._percent[rows, column] = percents
        self._mib[rows, column] = mibs

    def _new_row(self, name: str) -> int | None:
        if self._rows_most is not None and len(self._row_of) >= self._rows_most:
            return None
        if not self._free:
            first = len(self._percent)
            more = max(64, first // 2)
            self._percent = np.vstack([self._percent, np.full((more, SAMPLES), _UNKNOWN, np.uint8)])
            self._mib = np.vstack([self._mib, np.zeros((more, SAMPLES), np.uint32)])
            self._free = list(range(first + more - 1, first - 1, -1))
        row = self._free.pop()
        self._row_of[name] = row
        self._percent[row] = _UNKNOWN
        self._mib[row] = 0
        return row

    def read(self, name: str, at: int, count: int) -> tuple[list[float | None], list[float | None]] | None:
        """The `count` samples up to number `at`, oldest first."""
        row = self._row_of.get(name)
        if row is None:
            return None
        columns = [(at - count + 1 + i) % SAMPLES for i in range(count)]
        percent = [None if v == _UNKNOWN else float(v) for v in self._percent[row, columns]]
        return percent, [float(v) for v in self._mib[row, columns]]


class History:
    """Samples of everything; `at` counts them."""

    POOL = ("utilization", "memory_used", "memory_given", "vgpus", "sessions", "queue")
    UNITS = ("%", "MiB", "MiB", "", "", "")

    def __init__(self) -> None:
        self.count = 0
        self.last_wall_s = 0.0
        self._pool = np.full((len(self.POOL), SAMPLES), np.nan)
        self.gpus = Table()
        self.nodes = Table()
        self.groups = Table(GROUPS_MOST)

    def put(
        self,
        wall_s: float,
        pool: tuple[float | None, ...],
        nodes: dict[str, tuple[float | None, int]],
        gpus: dict[str, tuple[float | None, int]],
        groups: dict[str, tuple[float | None, int]],
    ) -> None:
        """One sample of all. `pool`: values in the order of POOL."""
        self._pool[:, self.count % SAMPLES] = [np.nan if value is None else value for value in pool]
        for table, samples in ((self.nodes, nodes), (self.gpus, gpus), (self.groups, groups)):
            table.put(self.count, samples)
        self.count += 1
        self.last_wall_s = wall_s

    def pool_series(self) -> list[tuple[str, str, list[float | None]]]:
        """(name, unit, values), oldest first."""
        columns = [(self.count - self.length + i) % SAMPLES for i in range(self.length)]
        rows = self._pool[:, columns]
        return [
            (name, unit, [None if np.isnan(v) else float(v) for v in row])
            for name, unit, row in zip(self.POOL, self.UNITS, rows, strict=True)
        ]

    @property
    def length(self) -> int:
        """Samples that there are."""
        return min(self.count, SAMPLES)

    @property
    def start_s(self) -> float:
        """When the oldest sample was taken."""
        return self.last_wall_s - STEP_S * max(0, self.length - 1)
