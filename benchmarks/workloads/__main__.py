"""Real GPU workloads, run as separate processes so that each sees the CUDA driver that the environment gives it.

    python3 -m benchmarks.workloads --list
    python3 -m benchmarks.workloads NAME [NAME ...]            run, one JSON object a line on standard output
    python3 -m benchmarks.workloads all
    python3 -m benchmarks.workloads --compare A.jsonl B.jsonl  B as a fraction of A, and whether the digests agree

Every row has: name, metric, unit, better ("higher" or "lower"), value, and digest, a number computed from the
workload's result with fixed seeds: the digest under remoting must equal the native one (bit for bit where "exact" is
true, else within "rtol"). A process that finds traces of a local driver in itself although ORION_BENCH_REMOTE is set
fails. Run once natively, then once with the shim in the environment, on the same machine and GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.rows import traces_of_a_local_driver
from benchmarks.workloads import array_rows, driver_rows, torch_rows  # noqa: F401  (they register themselves)
from benchmarks.workloads.registry import WORKLOADS, agree, fraction, load_rows, run_here

ROOT = Path(__file__).resolve().parents[2]
ORDER = (
    "resnet50_train_bs64 resnet50_train_bs256 gpt2_decode_eager bert_infer_bs1 cuda_graph_replay jax_grad_step "
    "cupy_mix torch_compile copy_h2d_pageable copy_d2h_pageable copy_h2d_pinned copy_d2h_pinned copy_d2h_4b "
    "copy_bounce_pinned launch_pipelined launch_and_sync event_query attach_first_kernel"
).split()
driver_rows.register()


def in_process(name: str) -> int:
    row = run_here(name)
    traces = traces_of_a_local_driver()
    row["clean"] = not traces
    print(json.dumps(row), flush=True)
    if traces and os.environ.get("ORION_BENCH_REMOTE"):
        print(f"this client could have used the local driver: {traces}", file=sys.stderr)
        return 3
    return 0


def run_apart(name: str, timeout_s: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.workloads", "--in-process", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {"name": name, "error": f"no answer in {timeout_s:g} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"name": name, "error": f"exit {done.returncode}", "tail": done.stderr[-600:]}
    return dict(json.loads(lines[-1]))


def compare(base_path: str, other_path: str) -> int:
    base, other = load_rows(base_path), load_rows(other_path)
    bad = 0
    print(f"{'workload':24} {'unit':10} {'base':>12} {'other':>12} {'fraction':>9}  digest")
    for name, row in base.items():
        if "value" not in row:
            print(f"{name:24} FAILED in the base run: {row.get('error')}")
            bad += 1
            continue
        start = f"{name:24} {row['unit']:10} {row['value']:12.4g}"
        against = other.get(name, {})
        if "value" not in against:
            print(f"{start} {'-':>12} {'-':>9}  MISSING")
            bad += 1
            continue
        same = agree(row, against)
        bad += not same
        print(f"{start} {against['value']:12.4g} {fraction(row, against):9.3f}  {'same' if same else 'DIFFERENT'}")
    return 1 if bad else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows to run; none or `all` for every one")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for each row (default 120)")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two files of rows")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.list:
        print("\n".join(ORDER))
        return 0
    if arguments.compare:
        return compare(*arguments.compare)
    names = ORDER if arguments.names in ([], ["all"]) else arguments.names
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown:
        parser.error(f"no such row: {' '.join(unknown)} (--list shows them)")
    if arguments.in_process:
        return in_process(names[0])
    failed = 0
    for name in names:
        row = run_apart(name, arguments.timeout)
        failed += "value" not in row
        print(json.dumps(row), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
