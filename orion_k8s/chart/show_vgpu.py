"""Prints the vGPUs that this container has, as any CUDA program sees them: the driver API through ctypes, no more."""

from __future__ import annotations

import ctypes
import sys

MIB = 1 << 20


def main() -> int:
    cuda = ctypes.CDLL("libcuda.so.1")
    code = cuda.cuInit(0)
    if code:
        print(f"there is no vGPU here: cuInit said {code}; the line above says why", file=sys.stderr)
        return 1
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    for ordinal in range(count.value):
        name = ctypes.create_string_buffer(128)
        memory = ctypes.c_size_t()
        cuda.cuDeviceGetName(name, len(name), ordinal)
        cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), ordinal)
        print(f"vGPU {ordinal}: {name.value.decode()}, {memory.value // MIB} MiB")
    return 0 if count.value else 1


if __name__ == "__main__":
    sys.exit(main())
