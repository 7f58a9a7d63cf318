"""NVIDIA's cuda-samples, unmodified: builds what the toolkit here can build, runs it natively, then remotely, and
reports the counts.

    python3 -m benchmarks.cuda_samples ~/cuda-samples --out DIR
    python3 -m benchmarks.cuda_samples ~/cuda-samples --out DIR --filter '0_Introduction/*' --transports shm
    python3 -m benchmarks.cuda_samples ~/cuda-samples --out DIR --arch 90 --build-only     on a machine without a GPU

PATH is a checkout with CMakeLists.txt (12.8 and later) or Makefiles (older) for each sample; it is only read. Arguments
and samples to leave out come from its test_args.json where it has one. Each program runs alone, in the folder where it
was built, with a time limit, and ends as pass (exit 0), waived (exit 2: it cannot run on this machine), fail or
timeout. A remote client sees neither driver nor device nodes.

`same`: the program ended as it did natively and printed the same, but for numbers that change from run to run (times,
rates, addresses). Where two native runs print different things, only the end counts. DIR gets samples.json (every row,
with the last lines of what differs), samples.txt (the table), work/ (the builds, used again by the next run) and logs/.
Exit status 0: programs ran, and all are the same everywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import fnmatch
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.machine import describe, output
from benchmarks.masking import digest, masked
from benchmarks.places import NATIVE, Outcome, Places, parse_places, say
from benchmarks.samples_build import (
    Builder,
    Built,
    Sample,
    device_architecture,
    find_samples,
    find_toolkit,
    mirror,
)
from benchmarks.suite_session import text_of

WAIVED = 2
OUTCOMES = ("pass", "waived", "fail", "timeout")
SAME, OUTCOME_DIFFERS, OUTPUT_DIFFERS = "same", "outcome differs", "output differs"
SOFTGPU_ARCHITECTURE = "80-virtual"  # PTX, the only code that it runs
TAIL_LINES, DIFFERENT_LINES = 12, 20
Row = dict[str, Any]


def outcome_class(outcome: Outcome) -> str:
    return {None: "timeout", 0: "pass", WAIVED: "waived"}.get(outcome.code, "fail")


@dataclass(frozen=True)
class Task:
    """One start of a program. `name` is the sample's, with what tells it from the sample's other ones."""

    name: str
    program: Path
    arguments: tuple[str, ...] = ()


@dataclass
class Arguments:
    """The checkout's own list of programs that need arguments, or a display: {program: {args | runs | skip}}."""

    known: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Arguments:
        if not file.is_file():
            return cls()
        known = json.loads(file.read_text())
        if not isinstance(known, dict) or not all(isinstance(entry, dict) for entry in known.values()):
            raise ValueError(f"{file} is no object of objects")
        return cls(known)

    def left_out(self, program: str) -> bool:
        return bool(self.known.get(program, {}).get("skip"))

    def runs(self, program: str) -> list[tuple[str, ...]]:
        entry = self.known.get(program, {})
        runs = [run for run in entry.get("runs", [entry]) if not run.get("skip")]
        return [tuple(map(str, run.get("args", []))) for run in runs]


def tasks_of(built: Built, arguments: Arguments) -> Iterator[Task]:
    for program in built.programs:
        runs = arguments.runs(program.name)
        for number, given in enumerate(runs, 1):
            name = built.sample.name
            if len(built.programs) > 1:
                name += f":{program.name}"
            if len(runs) > 1:
                name += f"#{number}"
            yield Task(name, program, given)


def verdict(native: Row, row: Row) -> str:
    if native["outcome"] != row["outcome"]:
        return OUTCOME_DIFFERS
    # What a program had printed when it was stopped says when that was.
    comparable = native["steady"] and native["outcome"] != "timeout"
    return OUTPUT_DIFFERS if comparable and native["digest"] != row["digest"] else SAME


class Report:
    """Lines on standard error; on a terminal a bar below them."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True)

    def line(self, text: str) -> None:
        if self.console.is_terminal:
            self.console.print(f"[{time.strftime('%H:%M:%S')}] {text}", markup=False, highlight=False)
        else:
            say(text)

    @contextlib.contextmanager
    def counted(self, what: str, total: int) -> Iterator[Any]:
        with self.progress:
            task = self.progress.add_task(what, total=total)
            yield lambda: self.progress.advance(task)
            self.progress.remove_task(task)


class Session:
    def __init__(self, options: argparse.Namespace, where: tuple[str, ...]) -> None:
        self.options, self.where, self.report = options, where, Report()
        self.checkout: Path = options.path.resolve()
        self.out: Path = options.out.resolve()
        self.toolkit = find_toolkit()
        self.architecture: str = options.arch or (
            SOFTGPU_ARCHITECTURE if options.device == "softgpu" else device_architecture()
        )
        self.answer: dict[str, Any] = {
            "machine": describe("benchmarks.cuda_samples"),
            "device": options.device,
            "checkout": {
                "path": str(self.checkout),
                "commit": output("git", "-C", str(self.checkout), "rev-parse", "HEAD"),
            },
            "toolkit": self.toolkit.version(),
            "architecture": self.architecture,
            "make_variables": options.make_variable,
            "not_built": {},
            "left_out": [],
            "programs": {},
        }
        self.rows: dict[str, dict[str, Row]] = self.answer["programs"]

    def save(self) -> None:
        self.answer.update(summary(self.answer, self.where))
        (self.out / "samples.json").write_text(json.dumps(self.answer, indent=1))
        (self.out / "samples.txt").write_text(self.text())

    def text(self) -> str:
        return text_of(counts_table(self.answer, self.where)) + listing(self.answer, self.where)

    def build(self, samples: list[Sample]) -> list[Built]:
        work = self.out / "work"
        mirror(self.checkout, work, samples)
        more = tuple(self.options.make_variable)
        builder = Builder(work, self.out / "logs", self.toolkit, self.architecture, self.options.build_timeout, more)
        builder.prepare()
        done: dict[str, Built] = {}
        with self.report.counted("building", len(samples)) as advance, ThreadPoolExecutor(self.options.jobs) as pool:
            for future in as_completed([pool.submit(builder.build, sample) for sample in samples]):
                built = future.result()
                done[built.sample.name] = built
                advance()
                if built.reason:
                    self.report.line(f"{built.sample.name}: not built: {built.reason}")
        self.answer["samples"] = len(samples)
        self.answer["built"] = sum(not built.reason for built in done.values())
        self.answer["build_seconds"] = round(sum(built.seconds for built in done.values()), 1)
        self.answer["not_built"] = {name: done[name].reason for name in sorted(done) if done[name].reason}
        return [done[name] for name in sorted(done) if not done[name].reason]

    def run_once(self, places: Places, place: str, task: Task) -> tuple[Row, list[str]]:
        paths = [places.environment(place).get("LD_LIBRARY_PATH", ""), *self.toolkit.library_folders]
        extra = {"LD_LIBRARY_PATH": ":".join(filter(None, paths))}
        command = [str(task.program), *task.arguments]
        outcome = places.run(place, command, self.options.timeout, extra, task.program.parent)
        lines = masked(outcome.stdout)
        row: Row = {"outcome": outcome_class(outcome), "exit": outcome.code, "seconds": round(outcome.seconds, 2)}
        row.update(digest=digest(lines), lines=len(lines))
        tail = [*outcome.stdout.splitlines()[-TAIL_LINES:], *outcome.stderr.splitlines()[-TAIL_LINES:]]
        row["tail"] = [line[:300] for line in tail]
        return row, lines

    def run_task(self, places: Places, task: Task) -> dict[str, Row]:
        """Native first, twice: what a program prints is compared only where it prints it again."""
        native, native_lines = self.run_once(places, NATIVE, task)
        native["steady"] = True
        if native["outcome"] != "timeout":
            again, _ = self.run_once(places, NATIVE, task)
            native["steady"] = (again["outcome"], again["digest"]) == (native["outcome"], native["digest"])
        rows = {NATIVE: native}
        for place in self.where:
            row, lines = self.run_once(places, place, task)
            row["verdict"] = verdict(native, row)
            if row["verdict"] != SAME:
                delta = difflib.unified_diff(native_lines, lines, NATIVE, place, lineterm="", n=0)
                row["different"] = [line[:300] for line in delta][: DIFFERENT_LINES + 2]
            rows[place] = row
        for row in rows.values():
            if row["outcome"] in {"pass", "waived"} and row.get("verdict", SAME) == SAME:
                del row["tail"]
        return rows

    def run(self, tasks: list[Task]) -> None:
        started = time.monotonic()
        log = self.out / "logs" / "server.log"
        with (
            Places(self.options.device, (NATIVE, *self.where), log) as places,
            self.report.counted("running", len(tasks)) as advance,
        ):
            for task in tasks:
                self.rows[task.name] = rows = self.run_task(places, task)
                advance()
                said = [
                    f"{place} {row['outcome']}, {row.get('verdict', 'to compare with')}" for place, row in rows.items()
                ]
                self.report.line(f"{task.name}: {'; '.join(said)}")
                # After every one: whatever stops the session, what was found is there.
                self.answer["server_restarts"] = places.restarts
                self.answer["run_seconds"] = round(time.monotonic() - started, 1)
                self.save()

    def resumed(self) -> None:
        """Rows of an earlier run of the same commit into the same folder."""
        with contextlib.suppress(OSError, ValueError):
            before = json.loads((self.out / "samples.json").read_text())
            if before["machine"]["commit"] == self.answer["machine"]["commit"]:
                wanted = {NATIVE, *self.where}
                self.rows.update({name: rows for name, rows in before["programs"].items() if wanted <= rows.keys()})

    def go(self) -> int:
        pattern = self.options.filter
        samples = [s for s in find_samples(self.checkout) if any(fnmatch.fnmatch(n, pattern) for n in names_of(s))]
        if not samples:
            self.report.line(f"no sample in {self.checkout} is named like {pattern}")
            return 2
        arguments = Arguments.read(self.options.arguments or self.checkout / "test_args.json")
        self.out.mkdir(parents=True, exist_ok=True)
        built = self.build(samples)
        if not self.options.build_only:
            if self.options.resume:
                self.resumed()
            self.answer["left_out"] = sorted(
                f"{b.sample.name}:{program.name}"
                for b in built
                for program in b.programs
                if arguments.left_out(program.name)
            )
            for one in built:
                one.programs = [program for program in one.programs if not arguments.left_out(program.name)]
            tasks = [task for one in built for task in tasks_of(one, arguments)]
            self.rows = self.answer["programs"] = {t.name: self.rows[t.name] for t in tasks if t.name in self.rows}
            self.run([task for task in tasks if task.name not in self.rows])
        self.save()
        print(json.dumps(self.answer, indent=1) if self.options.json else self.text())
        return 0 if self.answer["good"] or (self.options.build_only and built) else 1


def names_of(sample: Sample) -> list[str]:
    """What a pattern may match: the whole path, the path without its first folder, the last folder alone."""
    parts = Path(sample.name).parts
    return [sample.name, "/".join(parts[1:]), parts[-1]]


def summary(answer: dict[str, Any], where: tuple[str, ...]) -> dict[str, Any]:
    rows = answer["programs"]
    counts: dict[str, dict[str, int]] = {}
    for place in (NATIVE, *where):
        here = [of[place] for of in rows.values()]
        outcomes, verdicts = Counter(r["outcome"] for r in here), Counter(r.get("verdict") for r in here)
        counts[place] = {name: outcomes[name] for name in OUTCOMES}
        if place != NATIVE:
            counts[place].update({name: verdicts[name] for name in (SAME, OUTCOME_DIFFERS, OUTPUT_DIFFERS)})
    unsteady = sorted(name for name, of in rows.items() if not of[NATIVE]["steady"])
    good = bool(rows) and all(counts[place][SAME] == len(rows) for place in where)
    return {"counts": counts, "unsteady": unsteady, "good": good}


def counts_table(answer: dict[str, Any], where: tuple[str, ...]) -> Table:
    title = f"cuda-samples: {answer['built']} of {answer['samples']} built, {len(answer['programs'])} programs run"
    shown = Table(title=title)
    columns = (*OUTCOMES, SAME, OUTCOME_DIFFERS, OUTPUT_DIFFERS)
    for name in ("place", *columns):
        shown.add_column(name, justify="left" if name == "place" else "right")
    for place in (NATIVE, *where):
        counts = answer["counts"][place]
        shown.add_row(place, *(str(counts.get(name, "")) for name in columns))
    return shown


def listing(answer: dict[str, Any], where: tuple[str, ...]) -> str:
    """What is not as it should be, name by name."""
    lines = [f"not built: {name}: {reason}" for name, reason in answer["not_built"].items()]
    lines += [f"left out by the checkout's own list: {name}" for name in answer["left_out"]]
    lines += [f"prints something else each time, only the end is compared: {name}" for name in answer["unsteady"]]
    for name, rows in answer["programs"].items():
        native = rows[NATIVE]
        if native["outcome"] in {"fail", "timeout"}:
            lines.append(f"natively {native['outcome']} (exit {native['exit']}): {name}")
            lines += [f"    {line}" for line in native.get("tail", [])[-3:]]
        for place in where:
            row = rows[place]
            if row["verdict"] == SAME:
                continue
            lines.append(f"{row['verdict']}: {name} over {place}: {native['outcome']} -> {row['outcome']}")
            shown = row["different"][2:8] if row["verdict"] == OUTPUT_DIFFERS else row["tail"]
            lines += [f"    {line}" for line in shown]
    return "".join(f"{line}\n" for line in lines)


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, tuple[str, ...]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="PATH", help="a checkout of cuda-samples")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for results, builds and logs")
    parser.add_argument("--device", choices=["nvidia", "softgpu"], default="nvidia", help="default nvidia")
    parser.add_argument("--transports", default="shm,tcp", help="comma-separated, default shm,tcp")
    parser.add_argument("--filter", default="*", metavar="GLOB", help="samples: by path, or by the last folder's name")
    parser.add_argument("--timeout", type=float, default=60, metavar="S", help="for each run (default 60 s)")
    parser.add_argument("--build-timeout", type=float, default=600, metavar="S", help="for each sample (default 600 s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="samples built at a time (default: CPUs)")
    parser.add_argument("--arch", help="90, or 80-virtual for PTX (default: the first GPU's; softgpu: 80-virtual)")
    parser.add_argument("--make-variable", action="append", default=[], metavar="NAME=VALUE",
                        help="for samples with a Makefile, may be repeated; older ones need "
                             "'ALL_CCFLAGS=-m64 --threads 0 -std=c++17' with CUDA 13")  # fmt: skip
    parser.add_argument("--arguments", type=Path, metavar="FILE", help="default: test_args.json of the checkout")
    parser.add_argument("--build-only", action="store_true", help="build and stop; exit status 0 if anything was built")
    parser.add_argument("--resume", action="store_true", help="keep the rows that DIR has of this commit")
    parser.add_argument("--json", action="store_true", help="samples.json on standard output, in place of the table")
    options = parser.parse_args(argv)
    if not options.path.is_dir():
        parser.error(f"{options.path} is no folder")
    if options.out.resolve().is_relative_to(options.path.resolve()):
        parser.error("--out lies inside the checkout, which is only read")
    if options.jobs < 1 or options.timeout <= 0 or options.build_timeout <= 0:
        parser.error("--jobs, --timeout and --build-timeout are above 0")
    try:
        where = tuple(place for place in parse_places(options.transports) if place != NATIVE)
    except ValueError as error:
        parser.error(str(error))
    return options, where


def main(argv: list[str] | None = None) -> int:
    options, where = parse(argv)
    try:
        return Session(options, where).go()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
