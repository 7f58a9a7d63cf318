"""Does on two devices what it is told: one step per line on stdin, its CUresult (or count) per line on stdout.

Numbers behind a step's name are devices: `copy S T` copies from device S to the other one on the stream of device T,
`wait T E` has the stream of device T wait for the event of device E."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable

cuda = ctypes.CDLL("libcuda.so.1")
SIZE = 32 << 20
Pointer = ctypes.c_uint64
HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

contexts = [ctypes.c_void_p(), ctypes.c_void_p()]
memory = [Pointer(), Pointer()]
streams = [ctypes.c_void_p(), ctypes.c_void_p()]
events = [ctypes.c_void_p(), ctypes.c_void_p()]
host = (ctypes.c_ubyte * SIZE)()
opened, begun = threading.Event(), threading.Event()


def hold(_: int) -> None:
    begun.set()
    opened.wait()


hold_function = HOST_FUNCTION(hold)


def on(device: int, call: Callable[[], int]) -> int:
    result = int(cuda.cuCtxSetCurrent(contexts[device]))
    return result if result != 0 else int(call())


def attach() -> int:
    result = int(cuda.cuInit(0))
    for device in range(2):
        if result == 0:
            result = int(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(contexts[device]), device))
        for call in (
            lambda d=device: cuda.cuMemAlloc_v2(ctypes.byref(memory[d]), ctypes.c_size_t(SIZE)),
            lambda d=device: cuda.cuStreamCreate(ctypes.byref(streams[d]), 1),
            lambda d=device: cuda.cuEventCreate(ctypes.byref(events[d]), 2),
            lambda d=device: cuda.cuMemsetD8_v2(memory[d], ctypes.c_ubyte(d + 1), ctypes.c_size_t(SIZE)),
            cuda.cuCtxSynchronize,
        ):
            if result == 0:
                result = on(device, call)
    return result


def read(device: int) -> int:
    """The bytes of the last fill, if the first and last one are equal; a negative CUresult otherwise."""
    result = on(device, lambda: cuda.cuMemcpyDtoH_v2(host, memory[device], ctypes.c_size_t(SIZE)))
    return -result if result != 0 else host[0] if host[0] == host[SIZE - 1] else -1000


def fill(device: int) -> int:
    def call() -> int:
        return int(cuda.cuMemsetD8Async(memory[device], ctypes.c_ubyte(77), ctypes.c_size_t(SIZE), streams[device]))

    return on(device, call)


def copy(source: int, stream: int) -> int:
    other = 1 - source
    return int(
        cuda.cuMemcpyPeerAsync(
            memory[other], contexts[other], memory[source], contexts[source], ctypes.c_size_t(SIZE), streams[stream]
        )
    )


def count() -> int:
    devices = ctypes.c_int()
    result = int(cuda.cuDeviceGetCount(ctypes.byref(devices)))
    return devices.value if result == 0 else -result


def release() -> int:
    # One that began when the interpreter is on its way out would have none to run in.
    begun.wait(3)
    opened.set()
    return 0


def step(line: str) -> int:
    name, *numbers = line.split()
    n = [int(number) for number in numbers]
    steps: dict[str, Callable[[], int]] = {
        "attach": attach,
        "count": count,
        "release": release,
        "hold": lambda: int(cuda.cuLaunchHostFunc(streams[n[0]], hold_function, None)),
        "fill": lambda: fill(n[0]),
        "read": lambda: read(n[0]),
        "copy": lambda: copy(n[0], n[1]),  # source's device, stream's device
        "peer": lambda: int(
            cuda.cuMemcpyPeer(memory[1 - n[0]], contexts[1 - n[0]], memory[n[0]], contexts[n[0]], ctypes.c_size_t(SIZE))
        ),
        "sync": lambda: int(cuda.cuStreamSynchronize(streams[n[0]])),
        "record": lambda: int(cuda.cuEventRecord(events[n[0]], streams[n[0]])),
        "wait": lambda: int(cuda.cuStreamWaitEvent(streams[n[0]], events[n[1]], 0)),  # stream's device, event's
        "free": lambda: int(cuda.cuMemFree_v2(memory[n[0]])),
    }
    return steps[name]()


for line in sys.stdin:
    print(step(line), flush=True)
opened.set()
