"""Writes the PTX of some Numba kernels into the folder given as the argument. Needs numba-cuda and CUDA's NVVM."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from numba import cuda, float32, float64, int32, uint32

TILE = 8


def vecadd(a, b, c):
    i = cuda.grid(1)
    if i < c.size:
        c[i] = a[i] + b[i]


def matmul(a, b, c):
    sa = cuda.shared.array((TILE, TILE), float32)
    sb = cuda.shared.array((TILE, TILE), float32)
    x, y = cuda.grid(2)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    total = float32(0.0)
    for k in range(a.shape[1] // TILE):
        sa[ty, tx] = a[y, tx + k * TILE]
        sb[ty, tx] = b[ty + k * TILE, x]
        cuda.syncthreads()
        for j in range(TILE):
            total += sa[ty, j] * sb[j, tx]
        cuda.syncthreads()
    c[y, x] = total


def warp_sum(a, out):
    i = cuda.grid(1)
    v = a[i]
    for k in (16, 8, 4, 2, 1):
        v += cuda.shfl_down_sync(0xFFFFFFFF, v, k)
    if cuda.threadIdx.x % 32 == 0:
        cuda.atomic.add(out, 0, v)


def atomics(values, counts, top, total):
    i = cuda.grid(1)
    if i < values.size:
        cuda.atomic.add(counts, values[i] % 10, 1)
        cuda.atomic.max(top, 0, values[i])
        cuda.atomic.add(total, 0, float64(values[i]))


def maths(x, out):
    i = cuda.grid(1)
    if i < x.size:
        out[0, i] = math.sin(x[i])
        out[1, i] = math.exp(x[i])
        out[2, i] = math.log(abs(x[i]) + 1.0)
        out[3, i] = math.sqrt(abs(x[i]))
        out[4, i] = math.atan2(x[i], 2.0)
        out[5, i] = abs(x[i]) ** 1.5
        out[6, i] = math.lgamma(abs(x[i]) + 0.5)


def printing(n):
    if cuda.threadIdx.x == 0:
        print("n is", n, 2.5)


KERNELS = {
    vecadd: (float32[:], float32[:], float32[:]),
    matmul: (float32[:, ::1], float32[:, ::1], float32[:, ::1]),
    warp_sum: (int32[:], int32[:]),
    atomics: (uint32[:], int32[:], uint32[:], float64[:]),
    maths: (float64[:], float64[:, ::1]),
    printing: (int32,),
}


def main() -> None:
    folder = Path(sys.argv[1])
    for kernel, signature in KERNELS.items():
        ptx, _ = cuda.compile_ptx(kernel, signature, cc=(8, 0))
        (folder / f"numba_{kernel.__name__}.ptx").write_text(ptx)


if __name__ == "__main__":
    main()
