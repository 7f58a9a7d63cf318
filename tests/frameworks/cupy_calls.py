"""What CuPy programs do, on a device that computes nothing: prints `ok NAME` or what went wrong for each step."""

from __future__ import annotations

from collections.abc import Callable

import cupy as cp
import numpy as np

SOURCE = r"""
extern "C" __global__ void twice(float *x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] = 2 * x[i];
}
"""


def raw_kernel() -> None:
    cp.RawKernel(SOURCE, "twice")((4,), (64,), (cp.zeros(256, cp.float32), np.int32(256)))


def raw_module() -> None:
    kernel = cp.RawModule(code=SOURCE).get_function("twice")
    kernel((4,), (64,), (cp.zeros(256, cp.float32), np.int32(256)))
    assert kernel.max_threads_per_block > 0


def streams_and_events() -> None:
    stream, before, after = cp.cuda.Stream(non_blocking=True), cp.cuda.Event(), cp.cuda.Event()
    with stream:
        before.record()
        cp.zeros(64) + 1
        after.record()
    cp.cuda.Stream.null.wait_event(after)
    after.synchronize()
    cp.cuda.get_elapsed_time(before, after)


def pinned_copy() -> None:
    pinned = cp.cuda.alloc_pinned_memory(4096)
    host = np.frombuffer(pinned, np.float32, 1024)
    cp.empty(1024, cp.float32).set(host)


def stream_ordered_pool() -> None:
    pool = cp.cuda.MemoryAsyncPool()
    with cp.cuda.using_allocator(pool.malloc):
        cp.zeros(1 << 20)


def graph() -> None:
    stream, array = cp.cuda.Stream(non_blocking=True), cp.zeros(64)
    with stream:
        array += 1
        stream.begin_capture()
        array += 1
        captured = stream.end_capture()
    captured.launch(stream)
    stream.synchronize()


def memory_info() -> None:
    free, total = cp.cuda.runtime.memGetInfo()
    assert 0 < free <= total
    cp.get_default_memory_pool().free_all_blocks()


STEPS: dict[str, Callable[[], object]] = {
    "device": lambda: cp.cuda.runtime.getDeviceProperties(0),
    "elementwise": lambda: cp.zeros(1000, cp.float32) * 2 + 1,
    "reduction": lambda: cp.zeros(1000).sum(),
    "copies": lambda: cp.arange(100_000).get(),
    "raw kernel": raw_kernel,
    "raw module": raw_module,
    "matmul": lambda: cp.zeros((128, 128), cp.float32) @ cp.zeros((128, 128), cp.float32),
    "fft": lambda: cp.fft.fft(cp.zeros((64, 256), cp.complex64)),
    "sort": lambda: cp.sort(cp.zeros(10_000)),
    "streams": streams_and_events,
    "pinned copies": pinned_copy,
    "stream-ordered pool": stream_ordered_pool,
    "graph": graph,
    "memory": memory_info,
}
for name, step in STEPS.items():
    try:
        step()
        cp.cuda.Device().synchronize()
        print("ok", name, flush=True)
    except Exception as error:
        print("failed", name, str(error).replace("\n", " "), flush=True)
print("ok end")
