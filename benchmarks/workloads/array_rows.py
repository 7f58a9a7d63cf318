"""JAX and CuPy."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.measure import median_time, nothing
from benchmarks.workloads.registry import Result, workload

TWICE = (
    'extern "C" __global__ void twice(float* a, int n)'
    "{int i = blockIdx.x*blockDim.x+threadIdx.x; if (i < n) a[i] *= 2;}"
)


@workload("us", "lower", "jitted gradient of a 512x512 layer", rtol=1e-3)
def jax_grad_step() -> Result:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    import jax.numpy as jnp

    gradient = jax.jit(jax.grad(lambda a, b: jnp.tanh(a @ b).sum()))
    x = jnp.linspace(-1, 1, 512 * 512, dtype=jnp.float32).reshape(512, 512)
    digest = float(jnp.abs(gradient(x, x)).sum())
    last: Any = None

    def step() -> None:
        nonlocal last
        last = gradient(x, x)

    seconds = median_time(step, lambda: last.block_until_ready(), 7, 200)
    return seconds * 1e6, digest


@workload("ms", "lower", "elementwise, matmul, FFT, sort, RawKernel on 1M elements", rtol=1e-5)
def cupy_mix() -> Result:
    import cupy as cp

    twice = cp.RawKernel(TWICE, "twice")
    a = cp.linspace(0, 1, 1 << 20, dtype=cp.float32)

    def step() -> float:
        b = cp.sin(a) * 2 + a
        square = b.reshape(1024, 1024)
        product = square @ square
        twice((4096,), (256,), (b, cp.int32(1 << 20)))
        return float(product.sum()) + float(cp.abs(cp.fft.fft(b)).sum()) + float(cp.sort(b)[1 << 19])

    digest = step()
    seconds = median_time(step, nothing, 5, 10)
    return seconds * 1e3, digest
