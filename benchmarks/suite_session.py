"""The workloads natively, then on a server over shm and over tcp, on one machine: a table of fractions.

    python3 -m benchmarks.suite_session --device nvidia --out DIR
    python3 -m benchmarks.suite_session --device nvidia --out DIR --only bert_infer_bs1,cupy_mix --transports shm
    python3 -m benchmarks.suite_session --device nvidia --out DIR --skip-native --native-from OLD/suite.json

DIR gets suite.json (every row, and the end of the error output of those that failed) and suite.txt, the table. A failed
row stops nothing. Exit status 0: every row ran everywhere, with the native digest, in clients that saw no driver.
`waits` is how often a step of the measured loop had to wait for the server, `engine` the part of that loop in which the
engine's thread was busy: a row with a small one is not held up by the engine.

Each row runs in all places before the next one does. With `--repeats` over 1 it does so that often, the median counts,
and waits are counted in a further run of their own: counting costs time in rows that Python bounds. `python` is how
fast the interpreter was beside the native runs, outside the row: on a machine that others use too it may be half as
fast for seconds, in any place, and a row that Python bounds is then as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import describe
from benchmarks.places import NATIVE, TRANSPORTS, Places, parse_places, say
from benchmarks.workloads.__main__ import ORDER
from benchmarks.workloads.registry import agree, fraction

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]
Runs = dict[str, dict[str, Row]]


def run_row(places: Places, place: str, name: str, timeout_s: float, out: Path, count: bool = True) -> Row:
    """One workload in one place. With `count` the client library's statistics are kept beside the row."""
    counted = out / f"stats.{name}.{place}.json"
    extra = {"ORION_STATS": f"json:{counted.resolve()}"} if count and place != NATIVE else {}
    command = [sys.executable, "-m", "benchmarks.workloads", "--in-process", name]
    outcome = places.run(place, command, timeout_s, extra)
    lines = [line for line in outcome.stdout.splitlines() if line.startswith('{"name"')]
    row: Row = {"name": name}
    if lines:
        row.update(json.loads(lines[-1]))
    row["seconds"] = round(outcome.seconds, 2)
    if not outcome.good or not lines:
        row.pop("value", None)
        row.update(outcome.record())
        row.setdefault("error", "no row on standard output")
    if extra:
        row["counted"] = True
    if counted.exists():
        try:
            row.update(waits_of(json.loads(counted.read_text()), row.get("counted_steps", 0)))
        except (ValueError, KeyError) as error:
            row["waits_error"] = f"{type(error).__name__}: {error}"
        counted.unlink()
    return row


COUNTED = ("counted", "counted_steps", "waits", "calls", "waits_per_step", "waits_error", "engine")


def merged(repeats: list[Row]) -> Row:
    """One row of several runs: the median, all values, and what was counted in one of them. A run that failed, that saw
    a driver where the first did not, or whose result is another one, is the row."""
    first = repeats[0]
    for row in repeats:
        if "value" not in row or row.get("clean", True) != first.get("clean", True) or not agree(first, row):
            return row
    timed = [row for row in repeats if "counted" not in row] or repeats
    values = [row["value"] for row in timed]
    out = {**timed[0], "value": statistics.median(values), "seconds": round(sum(row["seconds"] for row in repeats), 2),
           "interpreter_ns": [ns for row in timed for ns in row["interpreter_ns"]]}  # fmt: skip
    if len(values) > 1:
        out["values"] = values
    for row in repeats:
        out.update({name: row[name] for name in COUNTED if name in row})
    return out


def interpreter_part(base: Row | None, row: Row) -> str:
    """How fast the interpreter was outside the row, of what it was in the native one."""
    if not base or not base.get("interpreter_ns") or not row.get("interpreter_ns"):
        return "-"
    return f"{statistics.median(base['interpreter_ns']) / statistics.median(row['interpreter_ns']):.2f}"


def waits_of(told: dict[str, Any], steps: int) -> Row:
    """What of the statistics stays: waits for each step of the measured loop, and which functions waited."""
    waits = {name: counted["waits"] for name, counted in told["functions"].items() if counted["waits"]}
    out: Row = {"waits": dict(sorted(waits.items(), key=lambda item: -item[1])), "calls": told["total"]["calls"]}
    if steps:
        out["waits_per_step"] = told["total"]["waits"] / steps
    return out


def verdict(base: Row | None, row: Row) -> str:
    if "value" not in row:
        return "failed"
    if not row.get("clean", True):
        return "LOCAL GPU"
    if base is None or "value" not in base:
        return "no native"
    return "same" if agree(base, row) else "DIFFERENT"


def judge(runs: Runs, names: list[str]) -> bool:
    """Whether every row ran everywhere with the native result."""
    native = runs.get(NATIVE, {})
    good = all("value" in native.get(name, {}) for name in names)
    for place, rows in runs.items():
        if place != NATIVE:
            good &= all(verdict(native.get(name), rows.get(name, {})) == "same" for name in names)
    return good


def table(runs: Runs, names: list[str]) -> Table:
    # Here and not above: `orion-bench`'s plain twin measures with run_row where rich may be missing.
    from rich.table import Table

    shown = Table(title="Fractions of native: 1.00 = as fast, more is better")
    shown.add_column("row")
    shown.add_column("unit")
    shown.add_column("native", justify="right")
    others = [place for place in runs if place != NATIVE]
    for place in others:
        shown.add_column(place, justify="right")
        shown.add_column("fraction", justify="right")
        shown.add_column("digest")
        shown.add_column("waits", justify="right")
        shown.add_column("engine", justify="right")
        shown.add_column("python", justify="right")
    for name in names:
        base = runs.get(NATIVE, {}).get(name)
        native_value = f"{base['value']:.4g}" if base and "value" in base else "failed" if base else "-"
        unit = next((rows[name]["unit"] for rows in runs.values() if "unit" in rows.get(name, {})), "")
        cells = [name, unit, native_value]
        for place in others:
            row = runs[place].get(name, {})
            said = verdict(base, row)
            if "value" not in row:
                cells += [row.get("error", "-"), "-", said, "-", "-", "-"]
                continue
            ratio = f"{fraction(base, row):.2f}" if base and "value" in base else "-"
            waits = f"{row['waits_per_step']:.2f}" if "waits_per_step" in row else "-"
            busy = f"{row['engine']['busy']:.0%}" if "engine" in row else "-"
            cells += [f"{row['value']:.4g}", ratio, said, waits, busy, interpreter_part(base, row)]
        shown.add_row(*cells)
    return shown


def text_of(shown: Table) -> str:
    from rich.console import Console

    console = Console(width=40 + 60 * (len(shown.columns) // 6 + 1), record=True, file=open("/dev/null", "w"))
    console.print(shown)
    return console.export_text()


class Session:
    def __init__(self, device: str, out: Path, timeout_s: float) -> None:
        self.device, self.out, self.timeout_s = device, out, timeout_s
        self.result: dict[str, Any] = {"machine": describe("benchmarks.suite_session"), "rows": {}}

    def save(self, names: list[str]) -> str:
        """Called after every run: whatever stops the session, what was measured is there."""
        text = text_of(table(self.result["rows"], names))
        self.result["good"] = judge(self.result["rows"], names)
        self.result["table"] = text.splitlines()
        (self.out / "suite.json").write_text(json.dumps(self.result, indent=1))
        (self.out / "suite.txt").write_text(text)
        return text

    def measure(self, places: Places, where: tuple[str, ...], name: str, names: list[str], repeats: int) -> None:
        """One row of `names` in all places, by turns, so that a machine that changes changes all of them."""
        runs: Runs = self.result["rows"]
        kept: dict[str, list[Row]] = {place: [] for place in where}
        for repeat in range(repeats + (repeats > 1)):
            for place in where:
                counts = repeat == repeats or repeats == 1
                if place == NATIVE and repeat == repeats:
                    continue
                row = run_row(places, place, name, self.timeout_s, self.out, counts)
                kept[place].append(row)
                runs[place][name] = merged(kept[place])
                said = f"{row['value']:.4g} {row['unit']}" if "value" in row else f"FAILED: {row['error']}"
                base = None if place == NATIVE else runs.get(NATIVE, {}).get(name)
                say(f"{name} {place}: {said} {verdict(base, row) if place != NATIVE else ''} ({row['seconds']} s)")
                self.save(names)

    def go(self, names: list[str], where: tuple[str, ...], native: dict[str, Row] | None, repeats: int) -> int:
        started = time.monotonic()
        runs: Runs = self.result["rows"]
        if native is not None:
            runs[NATIVE] = {name: native[name] for name in names if name in native}
        for place in where:
            runs.setdefault(place, {})
        with Places(self.device, where, self.out / "server.log") as places:
            for name in names:
                self.measure(places, where, name, names, repeats)
            self.result["server_restarts"] = places.restarts
        self.result["seconds"] = round(time.monotonic() - started, 1)
        print(self.save(names))
        return 0 if self.result["good"] else 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["nvidia", "softgpu"], required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for suite.json, suite.txt and server logs")
    parser.add_argument("--only", "--rows", default="", help="comma-separated rows (default: all)")
    parser.add_argument("--transports", default="shm,tcp", help="comma-separated, default shm,tcp")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each row in each place (default 1)")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for each row (default 120)")
    parser.add_argument("--skip-native", action="store_true", help="no native run")
    parser.add_argument("--native-from", type=Path, metavar="FILE", help="native rows from an older suite.json")
    arguments = parser.parse_args(argv)
    names = [name for name in arguments.only.split(",") if name] or list(ORDER)
    unknown = sorted(set(names) - set(ORDER))
    if unknown:
        parser.error(f"no such row: {' '.join(unknown)}")
    if arguments.repeats < 1:
        parser.error("--repeats takes 1 or more")
    where = parse_places(arguments.transports) if arguments.transports else ()
    if not set(where) <= set(TRANSPORTS):
        parser.error("--transports takes shm and tcp")
    native: dict[str, Row] | None = None
    if arguments.native_from:
        native = json.loads(arguments.native_from.read_text())["rows"][NATIVE]
    if not arguments.skip_native and native is None:
        where = (NATIVE, *where)
    arguments.out.mkdir(parents=True, exist_ok=True)
    return Session(arguments.device, arguments.out, arguments.timeout).go(names, where, native, arguments.repeats)


if __name__ == "__main__":
    sys.exit(main())
