"""Programs that launch on several streams from several threads: natively, and over shm with 0 to 8 launchers.

    python3 -m benchmarks.launcher_session --device nvidia --out DIR [--launchers 0,2,4,8]

A launcher is a thread of the engine's that makes the driver's calls for launches (ORION_ENGINE_LAUNCHERS of
orion-server, docs/decisions/0013). DIR gets launchers.json and a table: nanoseconds for each launch of one to eight
threads with a stream each, until the device had finished. Exit status 0: every launch was counted everywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.launch_facts import build
from benchmarks.machine import describe
from benchmarks.places import NATIVE, Places, say

ROWS = "own_stream_unbroken"
SETTING = "ORION_ENGINE_LAUNCHERS"
Rows = dict[str, dict[str, Any]]


def run(places: Places, place: str, program: Path, out: Path, samples: int) -> Rows:
    command = [sys.executable, "-m", "benchmarks.launch_facts", "--program", str(program), "--only", ROWS]
    outcome = places.run(place, [*command, "--samples", str(samples), "--out", str(out)], 60)
    if not out.exists():
        say(f"{place}: {outcome.failure}\n{outcome.stderr[-2000:]}")
        return {}
    return {row["name"]: row for row in json.loads(out.read_text())["rows"]}


def table(told: dict[str, Rows]) -> str:
    lines = [f"{'ns per launch, finished':32}" + "".join(f"{place:>12}" for place in told)]
    for name in told[NATIVE]:
        cells = [rows[name]["total_ns"]["median"] if name in rows else float("nan") for rows in told.values()]
        lines.append(f"{name:32}" + "".join(f"{cell:12.0f}" for cell in cells))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["nvidia", "softgpu"], required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--launchers", default="0,2,4,8", help="comma-separated numbers (default 0,2,4,8)")
    parser.add_argument("--samples", type=int, default=11, help="of each row (default 11)")
    arguments = parser.parse_args(argv)
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    program = out / "launch_facts"
    build(program)
    told: dict[str, Rows] = {}
    with Places(arguments.device, (NATIVE,), out / "server.log") as places:
        told[NATIVE] = run(places, NATIVE, program, out / "native.json", arguments.samples)
    for count in arguments.launchers.split(","):
        os.environ[SETTING] = count
        options = ("--log-level", "info")
        with Places(arguments.device, ("shm",), out / f"server.{count}.log", options) as places:
            told[f"shm, {count}"] = run(places, "shm", program, out / f"shm.{count}.json", arguments.samples)
    os.environ.pop(SETTING)
    text = table(told)
    (out / "launchers.json").write_text(
        json.dumps({"machine": describe("benchmarks.launcher_session"), "rows": told, "table": text.splitlines()})
    )
    print(text)
    good = all(rows and all(row["whole"] for row in rows.values()) for rows in told.values())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
