"""What a small CUDA program asks of a libcudart, given by path: prints `name code` for each call, then leaves."""

from __future__ import annotations

import ctypes
import sys

runtime = ctypes.CDLL(sys.argv[1])
TO_DEVICE, TO_HOST = 1, 2
failed = False


def call(name: str, *arguments: object) -> None:
    global failed
    code = getattr(runtime, name)(*arguments)
    failed = failed or code != 0
    print(name, code, flush=True)


def round_trip(seed: int) -> None:
    memory = ctypes.c_void_p()
    there = bytes((seed + i) % 251 for i in range(100_000))
    back = ctypes.create_string_buffer(len(there))
    call("cudaMalloc", ctypes.byref(memory), ctypes.c_size_t(len(there)))
    call("cudaMemcpy", memory, there, ctypes.c_size_t(len(there)), TO_DEVICE)
    call("cudaMemcpy", back, memory, ctypes.c_size_t(len(there)), TO_HOST)
    print("round_trip", 0 if back.raw == there else 1)
    call("cudaFree", memory)


count = ctypes.c_int()
call("cudaGetDeviceCount", ctypes.byref(count))
if failed:
    sys.exit(1)
call("cudaSetDevice", 0)
call("cudaFree", None)
round_trip(1)
stream = ctypes.c_void_p()
call("cudaStreamCreate", ctypes.byref(stream))
call("cudaStreamSynchronize", stream)
call("cudaStreamDestroy", stream)
call("cudaDeviceSynchronize")
call("cudaDeviceReset")
round_trip(2)  # after the reset the runtime must have forgotten its state
call("cudaDeviceSynchronize")
print("devices", 0 if count.value >= 1 else 1)
