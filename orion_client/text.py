"""Plain text for people: names that cannot steer a terminal, sizes, ages, aligned columns."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import IO

from rich.cells import cell_len

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


def printable(text: str) -> str:
    """A name that a client chose, without what would steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def mib(count_bytes: int) -> str:
    """Bytes, in MiB as GPU tools show memory."""
    return f"{count_bytes / (1 << 20):,.0f} MiB"


def age(seconds: float) -> str:
    """A time that has passed, in its two largest units at most."""
    whole = max(0, int(seconds))
    for unit, length, below, name in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if whole >= unit:
            rest = whole % unit // length
            return f"{whole // unit}{below}{rest}{name}" if rest and whole // unit < 10 else f"{whole // unit}{below}"
    return f"{whole}s"


def wants_colour(stream: IO[str] | None = None) -> bool:
    """Only terminals, and only where nobody has forbidden it (https://no-color.org)."""
    out = stream or sys.stdout
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def coloured(text: str, colour: str, wanted: bool) -> str:
    """`text` in a colour of _COLOURS; unchanged without one."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if wanted and colour else text


def aligned(
    rows: Sequence[Sequence[str]], right: Sequence[bool], colours: Sequence[Sequence[str]] | None = None
) -> list[str]:
    """Lines with columns two spaces apart; no spaces at the ends. `right[i]`: column i is set to the right."""
    widths = [max((cell_len(row[i]) for row in rows), default=0) for i in range(len(right))]
    lines = []
    for number, row in enumerate(rows):
        cells = []
        for i, cell in enumerate(row):
            padding = " " * (widths[i] - cell_len(cell))
            shown = coloured(cell, colours[number][i], True) if colours else cell
            cells.append(padding + shown if right[i] else shown + padding)
        lines.append("  ".join(cells).rstrip())
    return lines
