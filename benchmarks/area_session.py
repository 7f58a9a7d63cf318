"""Builds every tests/programs/*_api.c and runs it natively, then on a server over shm and over tcp.

    python3 -m benchmarks.area_session --device nvidia --out DIR

DIR gets areas.json: for each program and place the number of checks, the sections that failed with their FAIL lines,
and the notes (values that nothing promises) in which a place differs from native. Sections run in one process, as long
as that ends by itself; after a crash or a time limit each runs in its own, to find the one. Sections that leave the
context unusable always have a process of their own. Exit status 0: no check failed anywhere.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.places import NATIVE, Outcome, Places, parse_places, say
from benchmarks.sections import Section, by_section, listed, outcomes, possible
from benchmarks.session import DRIVER_API_SECTIONS

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "tests" / "programs"
MOST_LINES = 40


@dataclass
class Result:
    checks: int = 0
    failed: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def take(self, sections: list[Section], outcome: Outcome) -> None:
        """Adds what one process printed: `-- section` lines divide it."""
        self.seconds += outcome.seconds
        for section, line in by_section(sections, outcome):
            if line.startswith("ok "):
                self.checks += 1
            elif line.startswith("FAIL"):
                self.checks += 1
                self.failed.setdefault(section, []).append(line)
            elif line.startswith("note "):
                self.notes.append(f"{section}: {line[5:]}")

    def record(self, native: Result | None) -> dict[str, Any]:
        failures = sum(map(len, self.failed.values()))
        kept: dict[str, Any] = {"checks": self.checks, "failures": failures, "seconds": round(self.seconds, 1)}
        if self.failed:
            kept["failed"] = {name: lines[:MOST_LINES] for name, lines in self.failed.items()}
        if native is not None:
            different = sorted(set(self.notes) - set(native.notes))
            if different:
                kept["notes_not_native"] = different[:MOST_LINES]
        elif self.notes:
            kept["notes"] = self.notes
        return kept


def build(folder: Path, names: list[str]) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    built = {}
    for source in sorted(SOURCES.glob("*_api.c")):
        if names and source.stem not in names:
            continue
        program = folder / source.stem
        command = ["gcc", "-O1", "-std=gnu11", f"-I{ROOT / 'wire' / 'include'}", str(source), "-o", str(program)]
        done = subprocess.run([*command, "-ldl", "-lpthread"], capture_output=True, text=True, check=False)
        if done.returncode:
            say(f"{source.name} does not build: {done.stderr[-1500:]}")
            continue
        built[source.stem] = program
    return built


def sections_of(name: str, program: Path) -> list[Section]:
    if name == "driver_api":
        marks = {"fault": {"last"}}
        return [Section(s, frozenset(marks.get(s, set()))) for s in DRIVER_API_SECTIONS]
    return listed(program)


def run_program(
    places: Places, place: str, program: Path, sections: list[Section], timeout_s: float, each: bool
) -> Result:
    result = Result()

    def process(names: list[str]) -> Outcome:
        return places.run(place, [str(program), *names], timeout_s)

    for chosen, outcome in outcomes(sections, process, each):
        result.take(chosen, outcome)
    return result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["nvidia", "softgpu"], required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for areas.json and server logs")
    parser.add_argument("--only", default="", help="comma-separated programs, for example driver_api,graph_api")
    parser.add_argument("--places", default="native,shm,tcp", help="comma-separated, default native,shm,tcp")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for each process (default 60)")
    parser.add_argument("--each", action="store_true", help="a process for every section")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    where = parse_places(arguments.places)
    started = time.monotonic()
    answer: dict[str, Any] = {"machine": describe("benchmarks.area_session"), "programs": {}}
    names = [name for name in arguments.only.split(",") if name]
    programs = build(ROOT / "build" / "tests" / "session", names)
    if not programs:
        parser.error("no program was built")
    good = True
    with Places(arguments.device, where, arguments.out / "server.log") as places:
        for name, program in programs.items():
            sections = sections_of(name, program)
            results: dict[str, Result] = {}
            for place in where:
                chosen = possible(sections, arguments.device, place)
                if not chosen:
                    continue
                results[place] = run_program(places, place, program, chosen, arguments.timeout, arguments.each)
                good &= not results[place].failed
                record = results[place].record(results.get(NATIVE) if place != NATIVE else None)
                answer["programs"].setdefault(name, {})[place] = record
                failed = record.get("failed", {})
                say(f"{name} {place}: {record['checks']} checks, {record['failures']} failures {list(failed)}")
                for lines in failed.values():
                    for line in lines[:6]:
                        say(f"    {line}")
                answer["seconds"] = round(time.monotonic() - started, 1)
                answer["good"] = good
                (arguments.out / "areas.json").write_text(json.dumps(answer, indent=1))
    print(f"{len(programs)} programs: {'all checks passed everywhere' if good else 'FAILED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
