"""Saved rows: one JSON object a line, appended when it is measured and never rewritten.

Whatever ends a session, the rows before it stay; a line that was cut off in the middle is passed over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.bench.model import ROWS_FILE, Row, key_of


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, or of every *.jsonl in a folder."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    for file in files:
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and "command" in row and "row" in row and "place" in row:
                yield row


def newest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each cell, in the order in which the cells first came."""
    kept: dict[str, Row] = {}
    for row in rows:
        kept[key_of(row)] = row
    return list(kept.values())


class Store:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / ROWS_FILE
        self._rows = {key_of(row): row for row in read_rows(self.path)} if self.path.exists() else {}
        self._end_a_broken_line()

    def _end_a_broken_line(self) -> None:
        if self.path.exists() and (text := self.path.read_bytes()) and not text.endswith(b"\n"):
            with open(self.path, "ab") as file:
                file.write(b"\n")

    def get(self, row: Row) -> Row | None:
        """The saved row of the same cell, if it succeeded: what failed is measured again."""
        saved = self._rows.get(key_of(row))
        return saved if saved is not None and "error" not in saved else None

    def add(self, row: Row) -> None:
        """One write, so that a row is there whole or not at all."""
        self._rows[key_of(row)] = row
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (json.dumps(row, allow_nan=False) + "\n").encode())
        finally:
            os.close(descriptor)
