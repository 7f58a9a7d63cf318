"""The programs of `benchmarks.memory_session`: one that takes memory until it is refused, and one whose memory must
survive being moved. Each answers lines of its standard input with one JSON object.

    python3 -m benchmarks.memory_program take ROW       `full`, then for each line: `freed`
    python3 -m benchmarks.memory_program keep MIB       `ready`, then for each line: what it says
    python3 -m benchmarks.memory_program copies MIB     page-locked copies, both ways, in bytes per second

Whatever libcuda.so.1 the environment gives is used; nothing but the standard library is needed.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.driver import BUMP_PTX, Driver
from benchmarks.gpu_facts import AllocationProperties

MIB = 1 << 20
OUT_OF_MEMORY = 2
STACK_SIZE, MALLOC_HEAP_SIZE = 0, 2
RACERS = 8
GLOBAL_PTX = b""".version 7.0
.target sm_70
.address_size 64
.visible .global .align 8 .b8 big[33554432];
\0"""
# 64 KiB of local memory for each thread that the device can hold.
LOCAL_PTX = b""".version 7.0
.target sm_70
.address_size 64
.visible .entry deep(.param .u64 out)
{ .reg .u64 %rd<3>; .reg .u32 %r<2>;
  .local .align 8 .b8 room[65536];
  ld.param.u64 %rd1, [out];
  mov.u64 %rd2, room;
  st.local.u64 [%rd2], %rd1;
  ld.local.u32 %r1, [%rd2];
  st.global.u32 [%rd1], %r1;
  ret; }
\0"""
# Word i of a block becomes word i * 5 + i + salt, and the sum of all words is added to `sum`.
STEP_PTX = b""".version 7.0
.target sm_70
.address_size 64
.visible .entry step(.param .u64 block, .param .u64 sum, .param .u32 words, .param .u32 salt)
{ .reg .u64 %rd<8>; .reg .u32 %r<12>; .reg .pred %p;
  ld.param.u64 %rd1, [block]; ld.param.u64 %rd2, [sum]; ld.param.u32 %r1, [words]; ld.param.u32 %r2, [salt];
  mov.u32 %r3, %ctaid.x; mov.u32 %r4, %ntid.x; mov.u32 %r5, %tid.x; mad.lo.u32 %r6, %r3, %r4, %r5;
  mov.u32 %r7, %nctaid.x; mul.lo.u32 %r8, %r7, %r4; mov.u64 %rd3, 0;
again:
  setp.ge.u32 %p, %r6, %r1;
  @%p bra done;
  mul.wide.u32 %rd4, %r6, 4; add.u64 %rd5, %rd1, %rd4;
  ld.global.u32 %r9, [%rd5]; mad.lo.u32 %r10, %r9, 5, %r6; add.u32 %r11, %r10, %r2; st.global.u32 [%rd5], %r11;
  cvt.u64.u32 %rd6, %r11; add.u64 %rd3, %rd3, %rd6; add.u32 %r6, %r6, %r8;
  bra again;
done:
  atom.global.add.u64 %rd7, [%rd2], %rd3;
  ret; }
\0"""


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def info(cu: Driver) -> dict[str, int]:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    cu("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return {"free_bytes": free.value, "total_bytes": total.value}


# ---------------------------------------------------------------------------------------------------- rows of a quota
class Taker:
    """Takes memory in one way until the driver refuses; `most` calls at most."""

    def __init__(self, cu: Driver) -> None:
        self.cu = cu
        self.undo: list[Callable[[], Any]] = []
        self.code = 0

    def call(self, name: str, *args: Any) -> bool:
        self.code = getattr(self.cu.lib, name)(*args)
        return self.code == 0

    def until_refused(self, take: Callable[[], bool], most: int = 4096) -> int:
        """Calls that succeeded."""
        count = 0
        while count < most and take():
            count += 1
        return count

    # Each row: one attempt; False when it was refused.
    def buffer(self, size_bytes: int = 2 * MIB) -> bool:
        address = ctypes.c_uint64()
        if not self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size_bytes)):
            return False
        self.undo.append(lambda: self.cu("cuMemFree_v2", address))
        return True

    def pitched(self) -> bool:
        address, pitch = ctypes.c_uint64(), ctypes.c_size_t()
        size = (ctypes.c_size_t(4000), ctypes.c_size_t(1000), 4)
        if not self.call("cuMemAllocPitch_v2", ctypes.byref(address), ctypes.byref(pitch), *size):
            return False
        self.undo.append(lambda: self.cu("cuMemFree_v2", address))
        return True

    def managed(self) -> bool:
        address = ctypes.c_uint64()
        if not self.call("cuMemAllocManaged", ctypes.byref(address), ctypes.c_size_t(4 * MIB), 1):
            return False
        self.undo.append(lambda: self.cu("cuMemFree_v2", address))
        # It takes its place when a kernel may use it first; here that is page-locked host memory.
        if not hasattr(self, "bump"):
            self.bump = self.cu.kernel(BUMP_PTX, b"bump")
        amount = ctypes.c_uint32(1)
        arguments = (ctypes.c_void_p * 2)(ctypes.addressof(address), ctypes.addressof(amount))
        if not self.call("cuLaunchKernel", self.bump, 1, 1, 1, 1, 1, 1, 0, None, arguments, None):
            return False
        return self.call("cuCtxSynchronize")

    def array(self) -> bool:
        description = (ctypes.c_uint64 * 3)(1024, 1024, 0x20 | 4 << 32)  # width, height, FLOAT with four channels
        array = ctypes.c_void_p()
        if not self.call("cuArrayCreate_v2", ctypes.byref(array), description):
            return False
        self.undo.append(lambda: self.cu("cuArrayDestroy", array))
        return True

    def virtual(self) -> bool:
        properties, handle = AllocationProperties(), ctypes.c_uint64()
        properties.type, properties.location_type = 1, 1  # pinned, on device 0
        if not self.call("cuMemCreate", ctypes.byref(handle), ctypes.c_size_t(4 * MIB), ctypes.byref(properties), 0):
            return False
        self.undo.append(lambda: self.cu("cuMemRelease", handle))
        return True

    def pool(self) -> bool:
        address = ctypes.c_uint64()
        if not self.call("cuMemAllocAsync", ctypes.byref(address), ctypes.c_size_t(4 * MIB), None):
            return False
        self.undo.append(lambda: self.cu("cuMemFreeAsync", address, None))
        return True

    def pinned(self) -> bool:
        address = ctypes.c_void_p()
        if not self.call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(4 * MIB), 0):
            return False
        self.undo.append(lambda: self.cu("cuMemFreeHost", address))
        return True

    def module(self) -> bool:
        module, address, size = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_size_t()
        if not self.call("cuModuleLoadData", ctypes.byref(module), GLOBAL_PTX):
            return False
        self.undo.append(lambda: self.cu("cuModuleUnload", module))
        # A module that is loaded lazily takes its memory here.
        return self.call("cuModuleGetGlobal_v2", ctypes.byref(address), ctypes.byref(size), module, b"big")

    def context(self) -> bool:
        context = ctypes.c_void_p()
        if not self.call("cuCtxCreate_v2", ctypes.byref(context), 0, 0):
            return False
        self.undo.append(lambda: self.cu("cuCtxDestroy_v2", context))
        return True

    def heap(self) -> bool:
        size = ctypes.c_size_t()
        self.cu("cuCtxGetLimit", ctypes.byref(size), MALLOC_HEAP_SIZE)
        # Takes its memory when the first kernel that may use it is loaded, or at once: either is counted.
        return self.call("cuCtxSetLimit", MALLOC_HEAP_SIZE, ctypes.c_size_t(size.value * 2))

    def stack(self) -> bool:
        size = ctypes.c_size_t()
        self.cu("cuCtxGetLimit", ctypes.byref(size), STACK_SIZE)
        return self.call("cuCtxSetLimit", STACK_SIZE, ctypes.c_size_t(size.value * 2))

    def local(self) -> bool:
        function, out = self.cu.kernel(LOCAL_PTX, b"deep"), self.cu.allocate(8)
        self.undo.append(lambda: self.cu("cuMemFree_v2", out))
        argument = (ctypes.c_void_p * 1)(ctypes.addressof(out))
        shape = (1, 1, 1, 1, 1, 1, 0, None)
        if not self.call("cuLaunchKernel", function, *shape, argument, None):
            return False
        return self.call("cuCtxSynchronize")

    def race(self) -> bool:
        """Eight threads at a time take pieces of 2 MiB: none may get what another has been promised."""
        takers = [Taker(self.cu) for _ in range(RACERS)]

        def go(taker: Taker) -> None:
            self.cu("cuCtxSetCurrent", self.cu.context)
            taker.until_refused(taker.buffer)

        threads = [threading.Thread(target=go, args=(taker,)) for taker in takers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for taker in takers:
            self.undo += taker.undo
        self.code = takers[0].code if all(t.code == takers[0].code for t in takers) else -1
        return False


ROWS = ("buffer", "pitched", "managed", "array", "virtual", "pool", "pinned", "module", "context", "heap", "stack",
        "local", "race")  # fmt: skip


def take(row: str) -> None:
    cu = Driver()
    taker = Taker(cu)
    before = info(cu)
    count = taker.until_refused(getattr(taker, row), 4096 if row not in ("local",) else 1)
    tell(state="full", code=taker.code, count=count, calls_undone=len(taker.undo), before=before, **info(cu))
    free_bytes = info(cu)["free_bytes"] // (2 * MIB) * (2 * MIB)
    rest = Taker(cu)
    sys.stdin.readline()
    # What is told to be free can be had.
    got_free = free_bytes == 0 or rest.buffer(free_bytes)
    for step in reversed(taker.undo + rest.undo):
        step()
    if row in ("heap", "stack"):
        limit = STACK_SIZE if row == "stack" else MALLOC_HEAP_SIZE
        cu("cuCtxSetLimit", limit, ctypes.c_size_t(1024 if row == "stack" else 8 * MIB))
    if row == "pool":
        cu("cuCtxSynchronize")
        pool = ctypes.c_void_p()
        cu("cuDeviceGetDefaultMemPool", ctypes.byref(pool), 0)
        cu("cuMemPoolTrimTo", pool, ctypes.c_size_t(0))
    tell(state="freed", free_was_there=got_free, **info(cu))
    sys.stdin.readline()


# ---------------------------------------------------------------------------------------------------- moved memory
class Kept:
    """Blocks of device memory that every step rewrites as a whole; their sum is what a step is known by."""

    BLOCK_BYTES = 64 * MIB

    def __init__(self, size_mib: int) -> None:
        self.cu = cu = Driver()
        self.function, self.stream = cu.kernel(STEP_PTX, b"step"), cu.stream()
        self.sum = cu.allocate(8)
        self.blocks = [cu.allocate(self.BLOCK_BYTES) for _ in range(size_mib * MIB // self.BLOCK_BYTES)]
        self.steps = 0
        for block in self.blocks:
            cu("cuMemsetD32_v2", block, ctypes.c_uint(0x9E3779B9), ctypes.c_size_t(self.BLOCK_BYTES // 4))
        cu("cuCtxSynchronize")

    def step(self) -> str:
        """Rewrites all blocks; the sum of all words in hexadecimal."""
        cu, self.steps = self.cu, self.steps + 1
        cu("cuMemsetD8Async", self.sum, 0, ctypes.c_size_t(8), self.stream)
        words, salt = ctypes.c_uint32(self.BLOCK_BYTES // 4), ctypes.c_uint32(self.steps)
        for block in self.blocks:
            pointers = [ctypes.addressof(a) for a in (block, self.sum, words, salt)]
            arguments = (ctypes.c_void_p * 4)(*pointers)
            cu("cuLaunchKernel", self.function, 256, 1, 1, 256, 1, 1, 0, self.stream, arguments, None)
        total = ctypes.c_uint64()
        cu("cuStreamSynchronize", self.stream)
        cu("cuMemcpyDtoH_v2", ctypes.byref(total), self.sum, ctypes.c_size_t(8))
        return f"{total.value:016x}"

    def touch(self) -> float:
        """Seconds until the least work on the device is done: it must be there, whole."""
        began = time.perf_counter()
        self.cu("cuMemsetD8Async", self.sum, 0, ctypes.c_size_t(8), self.stream)
        self.cu("cuStreamSynchronize", self.stream)
        return time.perf_counter() - began


def keep(size_mib: int) -> None:
    kept = Kept(size_mib)
    tell(state="ready", bytes=len(kept.blocks) * Kept.BLOCK_BYTES)
    for line in sys.stdin:
        word, _, argument = line.strip().partition(" ")
        if word == "touch":
            tell(seconds=kept.touch())
        elif word == "steps":  # one digest for each
            tell(sums=[kept.step() for _ in range(int(argument))])
        elif word == "until":  # steps until that CLOCK_MONOTONIC time
            sums = []
            while time.monotonic() < float(argument):
                sums.append(kept.step())
            tell(sums=sums)
        else:
            tell(error=f"what is {word!r}?")


def fresh() -> None:
    """Whether memory of another process can be read: takes all that is free, and looks."""
    cu = Driver()
    size_bytes = 8 * MIB
    page, zeros, dirty, pieces = (ctypes.c_uint8 * size_bytes)(), bytes(size_bytes), 0, 0
    while info(cu)["free_bytes"] >= size_bytes:
        block = cu.allocate(size_bytes)
        cu("cuMemcpyDtoH_v2", page, block, ctypes.c_size_t(size_bytes))
        dirty, pieces = dirty + (bytes(page) != zeros), pieces + 1
    tell(dirty_pieces=dirty, pieces=pieces, piece_bytes=size_bytes)


def copies(size_mib: int) -> None:
    cu = Driver()
    size = ctypes.c_size_t(size_mib * MIB)
    device, host = cu.allocate(size.value), cu.host_allocate(size.value)
    stream = cu.stream()
    rates: dict[str, int] = {}
    for name, call, ends in (
        ("d2h", "cuMemcpyDtoHAsync_v2", (ctypes.c_void_p(host), device)),
        ("h2d", "cuMemcpyHtoDAsync_v2", (device, ctypes.c_void_p(host))),
    ):
        took_s = []
        for _ in range(5):
            began = time.perf_counter()
            cu(call, *ends, size, stream)
            cu("cuStreamSynchronize", stream)
            took_s.append(time.perf_counter() - began)
        rates[f"{name}_bytes_per_s"] = round(size.value / sorted(took_s)[2])
    tell(**rates, **info(cu))


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "take":
        take(rest[0])
    elif what == "fresh":
        fresh()
    elif what == "keep":
        keep(int(rest[0]))
    else:
        copies(int(rest[0]))
