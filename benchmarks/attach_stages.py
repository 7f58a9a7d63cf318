"""Where the time goes between a fresh process and its first result, natively and on a server over shm and tcp.

    python3 -m benchmarks.attach_stages --device nvidia --out DIR               the driver API alone
    python3 -m benchmarks.attach_stages --device nvidia --out DIR --torch       and the suite's attach_first_kernel
    python3 -m benchmarks.attach_stages --device softgpu [--null-engine]        anywhere: a check of the path

Runs every program --runs times in each place, in turn, and prints a table of medians in ms: the program's own steps
(`total` is what the row attach_first_kernel measures), then for the remote places what the client library and the
server tell of the attach (docs/statistics.md), and the functions that took longest. `--gap 0` has the next process come
at once, while the next worker still starts. DIR gets attach.json and the server's log, which has the stages of each
session too. Clients of a GPU run see no driver (benchmarks.isolation).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.places import NATIVE, Places, parse_places, say

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "benchmarks" / "attach_program.py"
NOT_COUNTED = ("python", "import")
FUNCTIONS_SHOWN = 12
EXPECTED = {"driver": 1, "torch": 262144.0}
# PyTorch sets it before cuInit; a client that does so must get a warm worker all the same.
LAZY = {"CUDA_MODULE_LOADING": "LAZY"}

Run = dict[str, Any]


def run_once(places: Places, place: str, program: str, timeout_s: float, folder: Path) -> Run:
    """One process. `program` may be driver-lazy: driver, with the variable that PyTorch sets."""
    file = folder / "stats.json"
    file.unlink(missing_ok=True)
    extra = {} if place == NATIVE else {"ORION_STATS": f"json:{file}"}
    if program.endswith("-lazy"):
        extra |= LAZY
    name = program.removesuffix("-lazy")
    asked_ns = time.monotonic_ns()
    outcome = places.run(place, [sys.executable, str(PROGRAM), name, str(asked_ns)], timeout_s, extra)
    over_ns = time.monotonic_ns()
    lines = [line for line in outcome.stdout.splitlines() if line.startswith("{")]
    if not outcome.good or not lines:
        return {"error": outcome.failure, "tail": (outcome.stdout + outcome.stderr)[-800:]}
    row: Run = json.loads(lines[-1])
    row["ms"]["total"] = sum(ms for step, ms in row["ms"].items() if step not in NOT_COUNTED)
    row["ms"]["exit"] = (over_ns - row.pop("ended_ns")) / 1e6
    row["ms"] = {"start": row.pop("start_ms"), **row["ms"]}
    if row["result"] != EXPECTED[name]:
        row["error"] = f"result {row['result']}"
    if place != NATIVE:
        if not row["clean"] and places.device == "nvidia":
            row["error"] = "this client could have used the local driver"
        told = json.loads(file.read_text())
        row |= {key: told.get(key) for key in ("attach", "images", "functions")}
    return row


def attach_steps(run: Run) -> dict[str, float]:
    """What one process's statistics say of its attach, flat, in ms."""
    attach = run["attach"]
    (server,) = attach["servers"]
    steps = {"attach: config": attach["config_ns"] / 1e6}
    steps |= {f"attach: {name}": ns / 1e6 for name, ns in server["stages_ns"].items()}
    steps |= {f"  server: {name}": ns / 1e6 for name, ns in server["server_ns"].items()}
    steps["attach: total"] = attach["total_ns"] / 1e6
    steps["cold workers"] = 0.0 if server["warm"] else 1.0
    steps["images: hash"] = run["images"]["hash_ns"] / 1e6
    return steps


def medians(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Median of each step over the runs that have it, in the order of first appearance."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for step, value in row.items():
            found.setdefault(step, []).append(value)
    return {step: statistics.median(values) for step, values in found.items()}


def summary(runs: list[Run]) -> dict[str, Any]:
    """Medians of one program in one place."""
    good = [run for run in runs if "error" not in run]
    out: dict[str, Any] = {"runs": len(good), "failed": len(runs) - len(good), "ms": medians(r["ms"] for r in good)}
    remote = [run for run in good if "attach" in run]
    if remote:
        attaches = [attach_steps(run) for run in remote]
        out["attach"] = medians(attaches)
        out["attach"]["cold workers"] = sum(steps["cold workers"] for steps in attaches)
        out["images"] = {key: [run["images"][key] for run in remote] for key in ("known_bytes", "uploaded_bytes",
                                                                                 "small_bytes")}  # fmt: skip
        names = {name for run in remote for name in run["functions"]}
        figures = {
            name: medians(
                {"ms": f["total_ns"] / 1e6, "calls": f["calls"], "waits": f["waits"], "at": f["first_at_ns"] / 1e6}
                for f in (run["functions"].get(name) for run in remote)
                if f is not None
            )
            for name in names
        }
        longest = sorted(figures.items(), key=lambda item: -item[1]["ms"])
        out["functions"] = dict(longest)
    return out


def cell(value: float | None) -> str:
    return f"{value:10.2f}" if value is not None else f"{'-':>10}"


def render(program: str, results: dict[str, dict[str, Any]]) -> str:
    """The table of one program; `results` by place."""
    lines = [f"{program}: medians in ms" + "".join(
        f"; {place}: {r['runs']} runs, {r['failed']} failed" for place, r in results.items()
    )]  # fmt: skip
    lines.append(f"{'step':28}" + "".join(f"{place:>10}" for place in results))
    for part in ("ms", "attach"):
        steps = dict.fromkeys(step for r in results.values() for step in r.get(part, {}))
        lines += [f"{step:28}" + "".join(cell(r.get(part, {}).get(step)) for r in results.values()) for step in steps]
    native = results.get(NATIVE, {}).get("ms", {}).get("total")
    if native:
        fractions = [f"{place} {native / r['ms']['total']:.2f}" for place, r in results.items()
                     if place != NATIVE and r["ms"].get("total")]  # fmt: skip
        lines.append("fraction of native (total): " + ", ".join(fractions))
    for place, r in results.items():
        if "functions" not in r:
            continue
        sent = ", ".join(f"{key} {values[0]} then {max(values[1:], default=0)}" for key, values in r["images"].items())
        lines.append(f"{place}: images of the first run, then the most of a later one: {sent}")
        for name, f in list(r["functions"].items())[:FUNCTIONS_SHOWN]:
            lines.append(
                f"  {name:44} {f['calls']:6.0f} calls {f['waits']:5.0f} waits {f['ms']:9.2f} ms, first at {f['at']:.1f}"
            )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["nvidia", "softgpu"], default="softgpu")
    parser.add_argument("--runs", type=int, default=7, help="processes of each program in each place (default 7)")
    parser.add_argument("--gap", type=float, default=2.0, help="seconds between processes (default 2)")
    parser.add_argument("--places", default="native,shm,tcp", help="default native,shm,tcp")
    parser.add_argument("--torch", action="store_true", help="also the PyTorch program of attach_first_kernel")
    parser.add_argument("--warm", type=int, help="the server's --warm")
    parser.add_argument("--null-engine", action="store_true", help="a server without any device (no native place)")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for each process (default 120)")
    parser.add_argument("--out", type=Path, help="folder for attach.json and the server's log")
    parser.add_argument("--json", action="store_true", help="print the medians as JSON instead of the table")
    arguments = parser.parse_args(argv)
    names = parse_places(arguments.places)
    programs = ["driver", "driver-lazy", *(["torch"] if arguments.torch else [])]
    options = ["--log-level", "debug"]
    if arguments.null_engine:
        names = tuple(place for place in names if place != NATIVE)
        options.append("--null-engine")
    if arguments.warm is not None:
        options += ["--warm", str(arguments.warm)]
    runs: dict[str, dict[str, list[Run]]] = {program: {place: [] for place in names} for program in programs}
    with tempfile.TemporaryDirectory(prefix="orion-attach-") as scratch:
        out = (arguments.out or Path(scratch)).resolve()
        out.mkdir(parents=True, exist_ok=True)
        with Places(arguments.device, names, out / "server.log", tuple(options)) as places:
            for number in range(arguments.runs):
                for program in programs:
                    for place in names:
                        time.sleep(arguments.gap)
                        row = run_once(places, place, program, arguments.timeout, out)
                        if arguments.null_engine and row.get("error", "").startswith("result"):
                            del row["error"]  # nothing is computed there
                        runs[program][place].append(row)
                        said = f"{row['ms']['total']:.1f} ms" if "ms" in row else ""
                        say(f"{number} {program} {place}: {said} {row.get('error', '')} {row.get('tail', '')[-300:]}")
        results = {program: {place: summary(r) for place, r in by.items()} for program, by in runs.items()}
        whole = {"machine": describe("benchmarks.attach_stages"), "results": results, "runs": runs}
        (out / "attach.json").write_text(json.dumps(whole, indent=1))
    if arguments.json:
        print(json.dumps({"machine": whole["machine"], "results": results}))
    else:
        print("\n\n".join(render(program, by) for program, by in results.items()))
    return 1 if any(r["failed"] or not r["runs"] for by in results.values() for r in by.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
