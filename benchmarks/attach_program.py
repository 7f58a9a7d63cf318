"""A fresh process that times its own steps to the first result of a GPU: what benchmarks.attach_stages runs.

    python3 benchmarks/attach_program.py driver|torch STARTED_NS

STARTED_NS is CLOCK_MONOTONIC when the process was asked for. Prints one JSON object: milliseconds of each step, and the
result. Imports nothing of its own before it has to, so that it measures the driver and not Python.
"""

import time

BEGAN_NS = time.monotonic_ns()


class Steps:
    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self._from_ns = BEGAN_NS

    def lap(self, name: str) -> None:
        now_ns = time.monotonic_ns()
        self.ms[name] = (now_ns - self._from_ns) / 1e6
        self._from_ns = now_ns


def driver(steps: Steps) -> float:
    """The smallest program of the driver API: a module, a kernel, four bytes back."""
    import ctypes

    from benchmarks.driver import BUMP_PTX

    steps.lap("import")
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: object) -> None:
        result = getattr(cuda, name)(*arguments)
        if result:
            raise SystemExit(f"{name} -> {result}")

    steps.lap("dlopen")
    call("cuInit", 0)
    steps.lap("cuInit")
    context, module, function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
    call("cuCtxSetCurrent", context)
    steps.lap("context")
    call("cuModuleLoadData", ctypes.byref(module), BUMP_PTX)
    call("cuModuleGetFunction", ctypes.byref(function), module, b"bump")
    steps.lap("module")
    counter, out = ctypes.c_uint64(), ctypes.c_uint32()
    call("cuMemAlloc_v2", ctypes.byref(counter), ctypes.c_size_t(4))
    call("cuMemsetD8_v2", counter, 0, ctypes.c_size_t(4))
    steps.lap("memory")
    amount = ctypes.c_uint32(1)
    parameters = (ctypes.c_void_p * 2)(ctypes.addressof(counter), ctypes.addressof(amount))
    call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, None, parameters, None)
    call("cuCtxSynchronize")
    steps.lap("kernel")
    call("cuMemcpyDtoH_v2", ctypes.byref(out), counter, ctypes.c_size_t(4))
    steps.lap("read")
    return out.value


def torch(steps: Steps) -> float:
    """The row attach_first_kernel of the suite, in steps."""
    import torch as framework

    framework.manual_seed(0)
    steps.lap("import")
    framework.cuda.init()
    steps.lap("cuda.init")
    x = framework.ones(64, 64, device="cuda")
    steps.lap("tensor")
    y = x @ x
    steps.lap("matmul")
    total = y.sum()
    steps.lap("sum")
    value = float(total.item())
    steps.lap("item")
    return value


def main() -> None:
    import json
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    steps = Steps()
    steps.lap("python")
    result = {"driver": driver, "torch": torch}[sys.argv[1]](steps)
    from benchmarks.rows import traces_of_a_local_driver

    clean = not traces_of_a_local_driver()
    row = {"start_ms": (BEGAN_NS - int(sys.argv[2])) / 1e6, "ms": steps.ms, "result": result, "clean": clean}
    print(json.dumps({**row, "ended_ns": time.monotonic_ns()}), flush=True)


if __name__ == "__main__":
    main()
