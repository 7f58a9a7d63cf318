"""Adds two vectors on a GPU with Numba and checks the result against numpy.

An ordinary Numba-CUDA program: nothing in it knows of Orion.
"""

import sys

import numpy as np
from numba import cuda


@cuda.jit
def add(a, b, out):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = a[i] + b[i]


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    random = np.random.default_rng(0)
    a = random.random(count, dtype=np.float32)
    b = random.random(count, dtype=np.float32)

    device_a, device_b = cuda.to_device(a), cuda.to_device(b)
    device_out = cuda.device_array_like(a)
    threads = 256
    add[(count + threads - 1) // threads, threads](device_a, device_b, device_out)
    out = device_out.copy_to_host()

    name = cuda.get_current_device().name
    name = name.decode() if isinstance(name, bytes) else name
    if not np.array_equal(out, a + b):
        print(f"WRONG: {np.count_nonzero(out != a + b)} of {count} elements differ from numpy, on {name}")
        return 1
    print(f"{count} elements added on {name}: equal to numpy, sum {float(out.sum(dtype=np.float64)):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
