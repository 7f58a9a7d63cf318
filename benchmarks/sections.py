"""Programs made of named sections: `PROGRAM --list` prints `name [mark...]`, `PROGRAM name...` runs those, and a line
`-- name` starts the output of each."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.places import Outcome

ENDED_BY_ITSELF = (0, 1)


@dataclass(frozen=True)
class Section:
    """Marks: `last` leaves the process without a usable device, `hardware` needs a GPU, `shm` is not for tcp."""

    name: str
    marks: frozenset[str] = frozenset()


def listed(program: Path) -> list[Section]:
    text = subprocess.run([program, "--list"], check=True, capture_output=True, text=True, timeout=20).stdout
    return [Section(words[0], frozenset(words[1:])) for words in map(str.split, text.splitlines()) if words]


def possible(sections: list[Section], device: str, place: str) -> list[Section]:
    barred = {"hardware"} if device == "softgpu" else {"ours"} if place == "native" else set()
    return [section for section in sections if not barred & section.marks]


def outcomes(
    sections: list[Section], run: Callable[[list[str]], Outcome], each: bool
) -> Iterator[tuple[list[Section], Outcome]]:
    """Runs all sections in one process, as long as that ends by itself; after a crash or a time limit each in its own,
    to find the one. Sections marked `last` always have their own."""
    alone = [section for section in sections if "last" in section.marks]
    together = [section for section in sections if "last" not in section.marks]
    if together and not each:
        outcome = run([section.name for section in together])
        if outcome.code in ENDED_BY_ITSELF:
            yield together, outcome
            together = []
    for section in [*together, *alone]:
        yield [section], run([section.name])


def by_section(sections: list[Section], outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Each line of the output with the section that printed it; a process that did not end by itself adds a FAIL line
    to its last one."""
    current = sections[0].name
    for line in outcome.stdout.splitlines():
        if line.startswith("-- "):
            current = line[3:].strip()
        else:
            yield current, line
    if outcome.code not in ENDED_BY_ITSELF:
        yield current, f"FAIL {outcome.failure}; {outcome.stderr[-1200:]}"
