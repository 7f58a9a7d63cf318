"""A client that does one step for each line of its stdin and prints the CUresult: the tests do harm between steps.

A step with a value is written `step=value`.
"""

from __future__ import annotations

import ctypes
import os
import sys

cuda = ctypes.CDLL("libcuda.so.1")
context = ctypes.c_void_p()
pointer = ctypes.c_uint64()
BYTES = 32 << 20
KERNELS = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry victim() { ret; }
.visible .entry bystander() { ret; }
"""
module = ctypes.c_void_p()
streams: list[ctypes.c_void_p] = []


def attach() -> int:
    return cuda.cuInit(0) or cuda.cuCtxCreate_v2(ctypes.byref(context), 0, 0)


def allocate() -> int:
    return cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(BYTES))


def fill() -> int:
    return cuda.cuMemsetD8_v2(pointer, ctypes.c_ubyte(7), ctypes.c_size_t(BYTES))


def read() -> int:
    host = (ctypes.c_ubyte * 16)()
    result = cuda.cuMemcpyDtoH_v2(host, pointer, ctypes.c_size_t(16))
    return result if result else (0 if bytes(host) == b"\7" * 16 else -1)


def copies() -> int:
    """Copies back and forth, without an end but the first failure."""
    host = (ctypes.c_ubyte * BYTES)()
    while True:
        to_device = cuda.cuMemcpyHtoD_v2(pointer, host, ctypes.c_size_t(BYTES))
        result = to_device or cuda.cuMemcpyDtoH_v2(host, pointer, ctypes.c_size_t(BYTES))
        if result:
            return result


def round_trip() -> int:
    """Half of the memory there and back, with its bytes compared."""
    sent = os.urandom(BYTES // 2)  # no two pieces are alike
    back = ctypes.create_string_buffer(len(sent))
    size = ctypes.c_size_t(len(sent))
    result = cuda.cuMemcpyHtoD_v2(pointer, sent, size) or cuda.cuMemcpyDtoH_v2(back, pointer, size)
    return result if result else (0 if back.raw == sent else -1)


def free() -> int:
    return cuda.cuMemFree_v2(pointer)


def allocate_more(size: str) -> int:
    return cuda.cuMemAlloc_v2(ctypes.byref(ctypes.c_uint64()), ctypes.c_size_t(int(size)))


def launch(name: str) -> int:
    function = ctypes.c_void_p()
    if not module:
        result = cuda.cuModuleLoadData(ctypes.byref(module), KERNELS)
        if result:
            return result
    result = cuda.cuModuleGetFunction(ctypes.byref(function), module, name.encode())
    return result or cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, None, None)


def copy(size: str) -> int:
    """On a new stream, which the later steps name by its number. Returns before the copy is done."""
    streams.append(ctypes.c_void_p())
    pinned = ctypes.c_void_p()
    result = cuda.cuStreamCreate(ctypes.byref(streams[-1]), 1) or cuda.cuMemHostAlloc(
        ctypes.byref(pinned), ctypes.c_size_t(int(size)), 0
    )
    return result or cuda.cuMemcpyHtoDAsync_v2(pointer, pinned, ctypes.c_size_t(int(size)), streams[-1])


def wait(stream: str) -> int:
    return cuda.cuStreamSynchronize(streams[int(stream)])


def query(stream: str) -> int:
    return cuda.cuStreamQuery(streams[int(stream)])


def fork() -> int:
    """What a forked child of an initialised parent gets."""
    pid = os.fork()
    if pid == 0:
        other = ctypes.c_uint64()
        os._exit(cuda.cuMemAlloc_v2(ctypes.byref(other), ctypes.c_size_t(4096)))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


STEPS = {
    "attach": attach,
    "allocate": allocate,
    "fill": fill,
    "read": read,
    "copies": copies,
    "round_trip": round_trip,
    "free": free,
    "fork": fork,
    "sync": cuda.cuCtxSynchronize,
    "allocate_more": allocate_more,
    "launch": launch,
    "copy": copy,
    "wait": wait,
    "query": query,
}
for line in sys.stdin:
    name, *value = line.strip().split("=")
    print(STEPS[name](*value), flush=True)
