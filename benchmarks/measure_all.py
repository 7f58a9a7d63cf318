"""`orion-bench`'s measurements with nothing but the standard library on the client's side: for GPU machines without a
package registry.

    python3 -m benchmarks.measure_all latency copy launch attach scale network --quick --out DIR
    python3 -m benchmarks.measure_all --quick --device nvidia --out DIR --budget 500        all of them
    python3 -m benchmarks.measure_all slices --rows pair_30_70_2ms --seconds 31 --out DIR

DIR/rows.jsonl gets a row a line, each as soon as it is measured; started again with the same DIR it measures what is
missing. `orion-bench report --out DIR` makes the page, there or elsewhere. Exit status: 0, 1 when a row failed, a
digest differs or the time was over before the last row, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

from benchmarks.bench.model import NATIVE, Impossible, Options, Unknown
from benchmarks.bench.session import (
    COMMANDS,
    INTERRUPTED,
    OK,
    SOFTGPU_WORDS,
    WRONG,
    Lines,
    failures,
    measure,
    resume_words,
)
from benchmarks.bench.tables import plain, tables_of
from benchmarks.machine import choose_device
from benchmarks.places import parse_places, say

# Without the programs, which have a session of their own (benchmarks.suite_session) on such machines, and without
# slices, which take one for themselves.
STANDARD = ("latency", "launch", "copy", "scale", "attach", "network")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "commands", nargs="*", metavar="COMMAND", help=f"of: {' '.join(COMMANDS)} (default: all but slices and suite)"
    )
    parser.add_argument("--device", choices=["auto", "nvidia", "softgpu"], default="auto")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows.jsonl, tables and server logs")
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--quick", action="store_true", help="the grid that decides (default)")
    depth.add_argument("--full", action="store_true", help="the whole grid")
    parser.add_argument("--transports", default="native,shm,tcp", help="comma-separated, default native,shm,tcp")
    parser.add_argument("--rows", default="", help="only these rows of one command, comma-separated")
    parser.add_argument("--seconds", type=float, help="seconds of each load, where a command has loads")
    parser.add_argument("--repeats", type=int, help="how often everything is measured")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for each row (default 120)")
    parser.add_argument("--budget", type=float, help="seconds; no row is begun after them")
    parser.add_argument("--json", action="store_true", help="print the summaries as JSON, one object a line")
    arguments = parser.parse_args(argv)
    names = tuple(arguments.commands) or STANDARD
    unknown = [name for name in names if name not in COMMANDS]
    if unknown:
        parser.error(f"no such command: {' '.join(unknown)}")
    try:
        places = parse_places(arguments.transports)
    except ValueError as error:
        parser.error(str(error))
    if arguments.repeats is not None and arguments.repeats < 1:
        parser.error("--repeats takes 1 or more")
    rows = tuple(filter(None, arguments.rows.split(",")))
    if rows and len(names) != 1:
        parser.error("--rows are those of one command")
    if arguments.seconds is not None and not 0.05 <= arguments.seconds <= 600:
        parser.error("--seconds takes 0.05 to 600")
    if NATIVE not in places:
        say("no native rows: nothing is a fraction of them")
    options = Options(device=choose_device(arguments.device), out=arguments.out, full=arguments.full, places=places,
                      repeats=arguments.repeats, timeout_s=arguments.timeout, rows=rows,
                      seconds=arguments.seconds)  # fmt: skip
    told = sys.argv[1:] if argv is None else argv
    options.by = shlex.join(["python3", "-m", "benchmarks.measure_all", *told])
    if options.device == "softgpu":
        say(SOFTGPU_WORDS)
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    status, shown = OK, []
    try:
        for name in names:
            if arguments.budget is not None:
                options.budget_s = max(0.0, arguments.budget - (time.monotonic() - started))
            try:
                result = measure(name, options, Lines())
            except Unknown as error:
                parser.error(f"{name}: {error}")
            except Impossible as error:
                say(f"{name}: {error}")
                status = WRONG
                continue
            status = max(status, result.status)
            shown += [plain(table) for table in tables_of(result.lines, name)]
            (options.out / "tables.txt").write_text("\n".join(shown))
            if arguments.json:
                print(json.dumps(result.record()), flush=True)
            else:
                print("\n".join(plain(table) for table in tables_of(result.lines, name)), flush=True)
            for sentence in failures(result.lines):
                say(f"WRONG: {sentence}")
            if result.not_reached:
                say(f"{name}: {len(result.not_reached)} rows were not reached in the time given")
    except KeyboardInterrupt:
        print(resume_words(options), file=sys.stderr)
        return INTERRUPTED
    return status


if __name__ == "__main__":
    sys.exit(main())
