"""softgpu against numpy in the same run: a vector addition and a tiled product of 512 x 512 matrices.

    cmake -S softgpu -B build/softgpu && cmake --build build/softgpu -j2
    python -m benchmarks.softgpu_speed [--out OUT.json]

Rates are of this machine's processor; they say nothing about a GPU. Each figure is the best of some runs, those of
softgpu and of numpy in turns. softgpu uses one thread for each processor, numpy one for the addition and the threads of
its BLAS for the product. Both builds of softgpu's handlers run, each in a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.machine import describe  # noqa: E402

ELEMENTS = 1 << 24
SIZE = 512
TARGETS = {"vector_add": 0.20, "matmul_512": 0.018}


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds, and those of all processors that the process had."""
    start, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - used


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], runs: int, work: float, unit: str
) -> dict[str, Any]:
    """Best rates of both, taken in turns. `work` is what one call does, in `unit` times seconds."""
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(runs)]
    wall, used, numpy_wall = (min(column) for column in zip(*[(a[0], a[1], b[0]) for a, b in pairs], strict=True))
    return {
        f"softgpu_{unit}": work / wall,
        f"numpy_{unit}": work / numpy_wall,
        "ratio": numpy_wall / wall,
        # What the ratio would be with all processors to itself: where others work too, wall time says little.
        "ratio_by_processor_time": numpy_wall / (used / (os.cpu_count() or 1)),
    }


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


def measure(runs: int) -> dict[str, Any]:
    """Of the build of softgpu that SOFTGPU_ISA chooses."""
    from softgpu.tests import vm

    ptx = (ROOT / "softgpu" / "tests" / "ptx" / "basic.ptx").read_text()
    machine = vm.Machine(ptx)
    rng = np.random.default_rng(1)
    out: dict[str, Any] = {}
    a, b = (rng.random(ELEMENTS, np.float32) for _ in range(2))
    c = np.empty_like(a)
    x, y, z = machine.buffer(a), machine.buffer(b), machine.buffer(c)
    out["vector_add"] = compare(
        lambda: machine.run("vecadd", ELEMENTS // 256, 256, x, y, z, ELEMENTS),
        lambda: np.add(a, b, out=c),
        runs,
        12e-9 * ELEMENTS,
        "gb_per_s",
    )
    assert digest(z.get()) == digest(c)
    m, n = (rng.random((SIZE, SIZE), np.float32) for _ in range(2))
    p, q, r = machine.buffer(m), machine.buffer(n), machine.buffer(np.zeros_like(m))
    tiles = SIZE // 16
    out["matmul_512"] = compare(
        lambda: machine.run("matmul", (tiles, tiles), (16, 16), p, q, r, SIZE),
        lambda: m @ n,
        runs,
        2e-9 * SIZE**3,
        "gflop_per_s",
    )
    assert np.allclose(r.get(), m @ n, rtol=1e-4)  # BLAS adds in another order
    for name, row in out.items():
        row["target_ratio"] = TARGETS[name]
        row["digest"] = digest(z.get() if name == "vector_add" else r.get())
    return {"build": vm.LIB.sgt_instruction_set().decode(), "results": out}


def of_build(isa: str, runs: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.softgpu_speed", "--one-build", "--runs", str(runs)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"SOFTGPU_ISA": isa}, check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--one-build", action="store_true", help="only the build that SOFTGPU_ISA chooses")
    args = parser.parse_args()
    if args.one_build:
        print(json.dumps(measure(args.runs)))
        return
    load = os.getloadavg()[0]
    builds = [of_build("", args.runs), of_build("baseline", args.runs)]
    kernels = builds[0]["results"]
    for name in kernels:
        assert kernels[name]["digest"] == builds[1]["results"][name]["digest"], f"the builds differ in {name}"
    result = describe("benchmarks.softgpu_speed") | {
        "load_before": round(load, 1),
        "load_after": round(os.getloadavg()[0], 1),
        "builds": builds,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
