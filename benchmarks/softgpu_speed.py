"""softgpu against numpy in the same run: a vector addition and a tiled product of 512 x 512 matrices.

    cmake -S softgpu -B build/softgpu && cmake --build build/softgpu -j2
    python benchmarks/softgpu_speed.py [--out benchmarks/results/softgpu_speed.json]

Rates are of this machine's processor; they say nothing about a GPU. Each figure is the best of some runs, those of
softgpu and of numpy in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from softgpu.tests import vm  # noqa: E402

ELEMENTS = 1 << 24
SIZE = 512
TARGETS = {"vector_add": 0.20, "matmul_512": 0.018}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(ours: Callable[[], object], theirs: Callable[[], object], runs: int) -> tuple[float, float]:
    """Best seconds of both, taken in turns."""
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(runs)]
    return min(p[0] for p in pairs), min(p[1] for p in pairs)


def measure(runs: int) -> dict[str, dict[str, float]]:
    ptx = (ROOT / "softgpu" / "tests" / "ptx" / "basic.ptx").read_text()
    machine = vm.Machine(ptx)
    rng = np.random.default_rng(1)
    out: dict[str, dict[str, float]] = {}
    a, b = (rng.random(ELEMENTS, np.float32) for _ in range(2))
    c = np.empty_like(a)
    x, y, z = machine.buffer(a), machine.buffer(b), machine.buffer(c)
    ours, theirs = compare(
        lambda: machine.run("vecadd", ELEMENTS // 256, 256, x, y, z, ELEMENTS), lambda: np.add(a, b, out=c), runs
    )
    assert np.array_equal(z.get(), c)
    out["vector_add"] = {"softgpu_gb_per_s": 12e-9 * ELEMENTS / ours, "numpy_gb_per_s": 12e-9 * ELEMENTS / theirs}
    m, n = (rng.random((SIZE, SIZE), np.float32) for _ in range(2))
    p, q, r = machine.buffer(m), machine.buffer(n), machine.buffer(np.zeros_like(m))
    tiles = SIZE // 16
    ours, theirs = compare(lambda: machine.run("matmul", (tiles, tiles), (16, 16), p, q, r, SIZE), lambda: m @ n, runs)
    assert np.allclose(r.get(), m @ n, rtol=1e-4)
    flops = 2e-9 * SIZE**3
    out["matmul_512"] = {"softgpu_gflop_per_s": flops / ours, "numpy_gflop_per_s": flops / theirs}
    for name, row in out.items():
        first, second = list(row.values())
        row["ratio"] = first / second
        row["target_ratio"] = TARGETS[name]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    machine = {"processors": os.cpu_count(), "load_before": os.getloadavg()[0], "machine": platform.machine()}
    result = {"machine": machine, "results": measure(args.runs)}
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
