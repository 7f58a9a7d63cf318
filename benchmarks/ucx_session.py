"""UCX on a GPU machine without an RDMA network: its tcp, in a worker whose UCX has CUDA support and in one whose UCX
has none, both asked for copies straight to device memory.

    python3 tools/fetch_ucx.py --copy-to FOLDER
    python3 -m benchmarks.ucx_session --device nvidia --ucx FOLDER --out DIR

FOLDER holds a UCX with CUDA support (lib/libucp.so.0, lib/ucx/libuct_cuda.so.0). The driver-API rows run natively, over
plain TCP lanes, ZeroMQ's, and UCX's, each with its digest, large copies in several sizes, in turns; before them
tests/programs/direct.py over UCX, which checks bytes and order. DIR gets ucx.json and the servers' logs. Exit status 0:
every row ran everywhere with the native digest, the program found nothing, and the worker said what it should of where
copies go. What it cannot show is RDMA: without it copies go through host memory, for UCX would need CUDA at both ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.places import NATIVE, Outcome, Places, say
from benchmarks.rows import NATIVE_DIGESTS

MIB = 1 << 20
KINDS = ("copy_h2d_pageable", "copy_d2h_pageable", "copy_h2d_pinned", "copy_d2h_pinned")
OTHERS = tuple(name for name in NATIVE_DIGESTS if name not in KINDS)
SIZES = (MIB, 16 * MIB, 256 * MIB)
LIMIT_S = 28.0


@dataclass(frozen=True)
class Way:
    name: str
    place: str
    client: Mapping[str, str] = field(default_factory=dict)
    server: Mapping[str, str] = field(default_factory=dict)
    says: str = ""  # a part of the worker's line
    warns: str = ""  # on a GPU


def ways(folder: Path, out: Path) -> list[Way]:
    """A UCX without its modules has no CUDA, as the client's, whose libcuda is the client library."""
    whole, plain = folder.resolve() / "lib", (out / "plain-ucx").resolve()
    plain.mkdir(parents=True, exist_ok=True)
    for library in whole.glob("*.so*"):
        shutil.copy(library, plain)
    client = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo", "ORION_UCX_TEST_LIBRARIES": str(plain)}
    server = {"UCX_NET_DEVICES": "lo", "ORION_UCX_DIRECT": "on"}
    # UCX looks for its modules beside its libraries.
    cuda = {**server, "UCX_TLS": "tcp,self,cuda_copy", "LD_LIBRARY_PATH": joined(str(whole))}
    none = {**server, "UCX_TLS": "tcp,self", "LD_LIBRARY_PATH": joined(str(plain))}
    refused = "UCX cannot use device memory, whose copies go through pinned host memory: it has no CUDA support"
    return [
        Way(NATIVE, NATIVE),
        Way("tcp", "tcp", {"ORION_TCP_LANES": "raw"}),
        Way("zmq", "tcp", {"ORION_TCP_LANES": "zmq"}),
        Way("ucx", "ucx", client, cuda, "through pinned host memory: this is no RDMA"),
        Way("ucx_without_cuda", "ucx", client, none, "straight to and from device memory", refused),
    ]


def joined(first: str, *more: str) -> str:
    return ":".join(filter(None, [first, *more, os.environ.get("LD_LIBRARY_PATH", "")]))


def run(places: Places, way: Way, command: list[str], timeout_s: float) -> Outcome:
    extra = dict(way.client)
    libraries = extra.pop("ORION_UCX_TEST_LIBRARIES", "")
    if libraries:
        extra["LD_LIBRARY_PATH"] = ":".join(
            filter(None, [places.environment(way.place).get("LD_LIBRARY_PATH", ""), libraries])
        )
    return places.run(way.place, [sys.executable, *command], timeout_s, extra)


def check_bytes_and_order(places: Places, way: Way) -> str:
    """What tests/programs/direct.py finds wrong."""
    outcome = run(places, way, ["tests/programs/direct.py"], LIMIT_S)
    if not outcome.good:
        return f"{outcome.failure}: {outcome.stderr[-1500:]}"
    return "; ".join(f"{step}: {found}" for step, found in json.loads(outcome.stdout).items() if found)


def run_rows(places: Places, way: Way, names: list[str], timeout_s: float) -> dict[str, Any]:
    """Rows by name; those that did not come have an error."""
    outcome = run(places, way, ["-m", "benchmarks.rows", *names], timeout_s)
    rows: dict[str, Any] = {}
    for line in outcome.stdout.splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            rows[row["name"]] = {k: row[k] for k in ("unit", "value", "low", "high", "digest", "clean")}
    for name in names:
        rows.setdefault(name, {"error": outcome.failure, "tail": outcome.stderr[-1500:]})
    return rows


def wrong(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Every row that failed or whose digest is not the native one of the same run."""
    native = rows[NATIVE]
    found = []
    for way, told in rows.items():
        for name, row in told.items():
            known = NATIVE_DIGESTS.get(name, native.get(name, {}).get("digest"))
            if "error" in row:
                found.append(f"{name} over {way}: {row['error']}")
            elif row["digest"] != known:
                found.append(f"{name} over {way}: digest {row['digest']}, natively {known}")
            elif way != NATIVE and not row["clean"]:
                found.append(f"{name} over {way}: the client could have used the local driver")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["nvidia", "softgpu"], required=True)
    parser.add_argument("--ucx", type=Path, default=os.environ.get("ORION_UCX_FOLDER", "."))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=2, help="of the copies (default 2)")
    parser.add_argument("--budget", type=float, default=90, help="seconds; no row is begun after them (default 90)")
    arguments = parser.parse_args(argv)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    found: list[str] = []
    skipped: list[str] = []
    rows: dict[str, dict[str, Any]] = {}
    lines: dict[str, str] = {}
    record: dict[str, Any] = {"rows": rows, "lines": lines, "wrong": found, "skipped": skipped}
    if not (Path(arguments.ucx) / "lib" / "libucp.so.0").exists():
        parser.error(f"{arguments.ucx} has no lib/libucp.so.0: name a folder with --ucx or ORION_UCX_FOLDER")
    with contextlib.ExitStack() as stack:
        running = {}
        for way in ways(Path(arguments.ucx), out):
            places = Places(
                arguments.device, (way.place,), out / f"{way.name}.log", ("--log-level", "info"), way.server
            )
            running[way.name] = (way, stack.enter_context(places))
        copies = [f"{kind}@{size}" for size in SIZES for kind in KINDS]
        for way, places in running.values():
            if way.place == "ucx":
                wrong_bytes = check_bytes_and_order(places, way)
                say(f"{way.name}: bytes and order: {wrong_bytes or 'right'}")
                found += [f"bytes and order over {way.name}: {wrong_bytes}"] if wrong_bytes else []
        jobs = [list(OTHERS), *[copies] * arguments.repeats]
        for number, names in enumerate(jobs):
            for way, places in running.values():
                if time.monotonic() - began > arguments.budget:
                    skipped.append(f"{way.name}, part {number}")
                    if number < 2:  # the repeats may be missing
                        found.append(f"no time for {way.name}, part {number}")
                    continue
                told = run_rows(places, way, names, LIMIT_S)
                say(f"{way.name}: {sum('error' not in row for row in told.values())} of {len(names)} rows")
                kept = rows.setdefault(way.name, {})
                for name, row in told.items():
                    values = [*kept.get(name, {}).get("values", []), *([row["value"]] if "value" in row else [])]
                    kept[name] = {**row, "values": values}
        record["machine"] = describe("benchmarks.ucx_session")
    for way, _ in running.values():
        log = (out / f"{way.name}.log").read_text() if way.place != NATIVE else ""
        lines[way.name] = next((line for line in log.splitlines() if "lanes over UCX" in line), "")
        if way.says not in lines[way.name]:
            found.append(f"{way.name}: its worker does not say {way.says!r} but {lines[way.name]!r}")
        if arguments.device == "nvidia" and way.warns not in log:
            found.append(f"{way.name}: its worker does not warn: {way.warns}")
    found += wrong(rows)
    record["seconds"] = round(time.monotonic() - began, 1)
    (out / "ucx.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({way: {name: row.get("value") for name, row in told.items()} for way, told in rows.items()}))
    for sentence in found:
        say(f"WRONG: {sentence}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
