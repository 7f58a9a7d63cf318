"""What JAX programs do, on a device that computes nothing: prints `ok NAME` or what went wrong for each step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def gpu() -> None:
    assert jax.devices()[0].platform == "gpu", jax.devices()


def loss(weights: jax.Array, inputs: jax.Array) -> jax.Array:
    return jnp.tanh(inputs @ weights).sum()


def convolution() -> jax.Array:
    return jax.lax.conv(jnp.zeros((4, 3, 32, 32)), jnp.zeros((8, 3, 3, 3)), (1, 1), "SAME")


def scan() -> jax.Array:
    return jax.lax.scan(lambda carry, x: (carry + x, carry), jnp.zeros(8), jnp.zeros((10, 8)))[0]


STEPS: dict[str, Callable[[], object]] = {
    "device": gpu,
    "jit": lambda: jax.jit(lambda x: x * 2 + 1)(jnp.zeros(1000)),
    "grad": lambda: jax.jit(jax.grad(loss))(jnp.zeros((64, 8)), jnp.zeros((4, 64))),
    "matmul bfloat16": lambda: jnp.zeros((256, 256), jnp.bfloat16) @ jnp.zeros((256, 256), jnp.bfloat16),
    "convolution": convolution,
    "fft": lambda: jnp.fft.fft(jnp.zeros((64, 256))),
    "cholesky": lambda: jnp.linalg.cholesky(jnp.eye(32)),
    "sort": lambda: jnp.sort(jnp.zeros(10_000)),
    "random": lambda: jax.random.normal(jax.random.key(1), (1000,)),
    "scan": scan,
    "copies": lambda: np.asarray(jax.device_put(np.arange(100_000, dtype=np.float32))),
}
for name, step in STEPS.items():
    try:
        jax.block_until_ready(step())
        print("ok", name, flush=True)
    except Exception as error:
        print("failed", name, str(error).replace("\n", " ")[:500], flush=True)
print("ok end")
