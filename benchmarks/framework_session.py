"""Programs of frameworks (tests/programs/frameworks) natively, then on a server over shm and over tcp.

    python3 -m benchmarks.framework_session --device nvidia --out DIR
    python3 -m benchmarks.framework_session --device nvidia --out DIR --only ptx_only,torch_profiler --places native,shm

DIR gets frameworks.json (every row, and the end of the output of the programs that failed) and frameworks.txt, the
table. Each program takes no arguments and prints one JSON line: `digest` must be the native one, `info` is kept but not
compared, `clean` says that the process saw no local driver. A failed program stops nothing. Exit status 0: every
program ran everywhere, with the native digest, in clients that saw no driver.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.machine import describe
from benchmarks.places import NATIVE, Places, parse_places, say
from benchmarks.suite_session import Row, Runs, judge, text_of, verdict

PROGRAMS = Path(__file__).resolve().parent.parent / "tests" / "programs" / "frameworks"
NOT_A_PROGRAM = "report"


def programs_in(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != NOT_A_PROGRAM}


def told(stdout: str) -> Row:
    """The one JSON line; what a library prints beside it is no matter."""
    lines = [line for line in stdout.splitlines() if line.startswith("{")]
    if len(lines) != 1:
        raise ValueError(f"{len(lines)} JSON lines on standard output, not one")
    answer = json.loads(lines[0])
    if not isinstance(answer.get("digest"), dict) or not isinstance(answer.get("clean"), bool):
        raise ValueError("the JSON line lacks digest or clean")
    return {"digest": answer["digest"], "info": answer.get("info", {}), "clean": answer["clean"]}


def run_row(places: Places, place: str, python: str, name: str, program: Path, timeout_s: float) -> Row:
    """One program in one place; `value`, as in the other sessions' rows, is there only when it ran to a result."""
    extra = {} if place == NATIVE else {"ORION_REMOTE": "1"}
    outcome = places.run(place, [python, str(program)], timeout_s, extra)
    row: Row = {"name": name, **outcome.record()}
    if outcome.good:
        try:
            row.update(told(outcome.stdout), value=row["seconds"], unit="s", exact=True)
        except ValueError as error:
            row.update(error=str(error), tail=outcome.stdout[-1000:] + outcome.stderr[-1000:])
    return row


def different(base: Row, row: Row) -> dict[str, list[Any]]:
    """What of the digest is not native: [native, here]."""
    names = sorted(base["digest"].keys() | row["digest"].keys())
    pairs = {name: [base["digest"].get(name), row["digest"].get(name)] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def table(runs: Runs, names: list[str]) -> Table:
    shown = Table(title="Programs of frameworks: seconds from start to end, and the result beside the native one")
    shown.add_column("program")
    for place in runs:
        shown.add_column(f"{place} (s)", justify="right")
        if place != NATIVE:
            shown.add_column("result")
    for name in names:
        base = runs.get(NATIVE, {}).get(name)
        cells = [name]
        for place, rows in runs.items():
            row = rows.get(name, {})
            cells.append(f"{row['value']:.1f}" if "value" in row else row.get("error", "-"))
            if place != NATIVE:
                cells.append(verdict(base, row) if row else "not run")
        shown.add_row(*cells)
    return shown


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["nvidia", "softgpu"], required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for frameworks.json, .txt and server logs")
    parser.add_argument("--only", default="", help="comma-separated programs (default: all)")
    parser.add_argument("--places", default="native,shm,tcp", help="comma-separated, default native,shm,tcp")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for each process (default 120)")
    parser.add_argument("--python", default=sys.executable, help="the programs' Python (default: this one)")
    parser.add_argument("--programs", type=Path, default=PROGRAMS, metavar="FOLDER", help="other programs")
    arguments = parser.parse_args(argv)
    programs = programs_in(arguments.programs.resolve())
    names = [name for name in arguments.only.split(",") if name] or list(programs)
    unknown = sorted(set(names) - set(programs))
    if unknown or not names:
        parser.error(f"no such program: {' '.join(unknown)}" if unknown else f"no program in {arguments.programs}")
    # Native first, or there is nothing to compare with.
    where = tuple(sorted(parse_places(arguments.places), key=lambda place: place != NATIVE))
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    runs: Runs = {place: {} for place in where}
    answer: dict[str, Any] = {"machine": describe("benchmarks.framework_session"), "rows": runs}
    shown = ""
    with Places(arguments.device, where, arguments.out / "server.log") as places:
        for name in names:
            for place in where:
                row = run_row(places, place, arguments.python, name, programs[name], arguments.timeout)
                runs[place][name] = row
                base = None if place == NATIVE else runs.get(NATIVE, {}).get(name)
                said = verdict(base, row) if place != NATIVE or "value" not in row else "ran"
                if said == "DIFFERENT" and base is not None:
                    row["different"] = different(base, row)
                more = row.get("error") or row.get("different") or row["info"]
                say(f"{name} {place}: {said} {more} ({row['seconds']} s)")
                # After every row: whatever stops the session, what was found is there.
                shown = text_of(table(runs, names))
                answer.update(good=judge(runs, names), table=shown.splitlines(), server_restarts=places.restarts)
                answer["seconds"] = round(time.monotonic() - started, 1)
                (arguments.out / "frameworks.json").write_text(json.dumps(answer, indent=1))
                (arguments.out / "frameworks.txt").write_text(shown)
    print(shown)
    return 0 if answer["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
