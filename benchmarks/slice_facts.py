"""What slices rest on and only a driver can tell: is fresh memory clean, what do moves cost, what does memory go for?

    python3 -m benchmarks.slice_facts            one JSON object; exit 1 when fresh memory shows another process's data

Runs natively (NVIDIA's or softgpu's libcuda). Sections: `fresh_memory` (after a process was killed that had filled the
device), `moves` (what taking memory off the device and back costs, by way of registering host memory), `charges` (how
free memory changes with contexts, limits, modules and graphs, and whether NVML tells it by process), `events` (what a
pair of timed events costs and tells). Times are for the record; nothing here passes or fails by them.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.driver import BUMP_PTX, SPIN_PTX, Driver
from benchmarks.gpu_facts import AccessDescriptor, AllocationProperties
from benchmarks.machine import describe

MIB, GIB = 1 << 20, 1 << 30
PATTERN = 0xA5C31E77
MADV_HUGEPAGE = 14
MOVE_BYTES = 512 * MIB
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def free_bytes(cu: Driver) -> int:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    cu("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value


def took_us(call: Callable[..., object], *arguments: Any) -> float:
    began = time.perf_counter()
    call(*arguments)
    return round((time.perf_counter() - began) * 1e6, 1)


# ---------------------------------------------------------------------------------------------------- fresh memory
def fill_and_wait() -> None:
    """The process that is killed: fills what it can get with a pattern."""
    cu = Driver()
    pieces = 0
    most = max(1, (free_bytes(cu) - GIB // 2) // (256 * MIB)) if free_bytes(cu) > GIB else 1
    while pieces < most:
        piece = cu.allocate(256 * MIB if most > 1 else free_bytes(cu) // 2)
        count = (256 * MIB if most > 1 else free_bytes(cu) // 4) // 4
        cu("cuMemsetD32_v2", piece, ctypes.c_uint(PATTERN), ctypes.c_size_t(count))
        pieces += 1
    cu("cuCtxSynchronize")
    print(pieces, flush=True)
    signal.pause()


def fresh_memory() -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.slice_facts", "fill"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    filled = child.stdout.readline().strip()
    child.send_signal(signal.SIGKILL)
    child.wait()
    began = time.perf_counter()
    cu = Driver()
    size = 256 * MIB if free_bytes(cu) > GIB else free_bytes(cu) // 2
    host = (ctypes.c_uint32 * (MIB // 4))()
    looked = dirty = seen = 0
    while free_bytes(cu) > size + GIB // 2 or not looked:
        piece = cu.allocate(size)
        for offset in range(0, size - MIB + 1, 32 * MIB):
            cu("cuMemcpyDtoH_v2", host, ctypes.c_uint64(piece.value + offset), ctypes.c_size_t(MIB))
            looked += MIB
            words = bytes(host)
            dirty += len(words) - words.count(0)
            seen += words.count(PATTERN.to_bytes(4, "little"))
    return {"filled_pieces": int(filled or 0), "looked_at_bytes": looked, "bytes_not_zero": dirty,
            "words_of_the_other": seen, "took_s": round(time.perf_counter() - began, 2)}  # fmt: skip


# ---------------------------------------------------------------------------------------------------- moves
def host_memory(size: int, huge: bool, touch: bool) -> int:
    address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if huge:
        libc.madvise(address, size, MADV_HUGEPAGE)
    if touch:
        ctypes.memset(address, 1, size)
    return int(address)


class Physical:
    """Device memory by the calls of virtual memory management, at one address."""

    def __init__(self, cu: Driver, size: int) -> None:
        self.cu, self.size, self.handle, self.address = cu, size, ctypes.c_uint64(), ctypes.c_uint64()
        cu("cuMemAddressReserve", ctypes.byref(self.address), ctypes.c_size_t(size), ctypes.c_size_t(0),
           ctypes.c_uint64(0), ctypes.c_ulonglong(0))  # fmt: skip

    def come(self) -> dict[str, float]:
        properties = AllocationProperties(type=1, location_type=1, location_id=0)
        access = AccessDescriptor(location_type=1, location_id=0, flags=3)
        size, address, handle = ctypes.c_size_t(self.size), self.address, ctypes.byref(self.handle)
        calls = {
            "create_us": ("cuMemCreate", handle, size, ctypes.byref(properties), ctypes.c_ulonglong(0)),
            "map_us": ("cuMemMap", address, size, ctypes.c_size_t(0), self.handle, ctypes.c_ulonglong(0)),
            "access_us": ("cuMemSetAccess", address, size, ctypes.byref(access), ctypes.c_size_t(1)),
        }  # fmt: skip
        return {name: took_us(self.cu, *call) for name, call in calls.items()}

    def go(self) -> dict[str, float]:
        return {
            "unmap_us": took_us(self.cu, "cuMemUnmap", self.address, ctypes.c_size_t(self.size)),
            "release_us": took_us(self.cu, "cuMemRelease", self.handle),
        }


def moves() -> dict[str, Any]:
    cu = Driver()
    stream = cu.stream()
    size = min(MOVE_BYTES, free_bytes(cu) // 4 // (2 * MIB) * 2 * MIB)
    found: dict[str, Any] = {"bytes": size}
    memory = Physical(cu, size)
    found["come"] = memory.come()
    for name, huge, touch in (("pages", False, False), ("pages_touched", False, True), ("huge", True, False),
                              ("huge_touched", True, True)):  # fmt: skip
        row: dict[str, float] = {}
        began = time.perf_counter()
        address = host_memory(size, huge, touch)
        row["memory_us"] = round((time.perf_counter() - began) * 1e6, 1)
        row["register_us"] = took_us(cu, "cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(size), 1)

        def copy(out: bool, host: int = address) -> None:
            if out:
                cu("cuMemcpyDtoHAsync_v2", ctypes.c_void_p(host), memory.address, ctypes.c_size_t(size), stream)
            else:
                cu("cuMemcpyHtoDAsync_v2", memory.address, ctypes.c_void_p(host), ctypes.c_size_t(size), stream)
            cu("cuStreamSynchronize", stream)

        for direction in (True, False):
            copy(direction)
            best = min(took_us(copy, direction) for _ in range(3))
            row["out_gb_s" if direction else "in_gb_s"] = round(size / best / 1e3, 2)
        row["unregister_us"] = took_us(cu, "cuMemHostUnregister", ctypes.c_void_p(address))
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
        found[name] = row
    found["go"] = memory.go()
    small = [Physical(cu, 2 * MIB) for _ in range(64)]
    found["small"] = {"pieces": len(small), "bytes": 2 * MIB}
    for step in ("come", "go"):
        rows = [getattr(piece, step)() for piece in small]
        found["small"] |= {name: round(sum(row[name] for row in rows) / len(rows), 1) for name in rows[0]}
    return found


# ---------------------------------------------------------------------------------------------------- charges
def nvml_own_bytes() -> dict[str, Any]:
    """What NVML says of this process's memory, if it knows it by the pid that it has here."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return {"error": "no libnvidia-ml.so.1"}

    class Process(ctypes.Structure):
        _fields_ = [("pid", ctypes.c_uint), ("used", ctypes.c_ulonglong), ("gpu_instance", ctypes.c_uint),
                    ("compute_instance", ctypes.c_uint)]  # fmt: skip

    device, count = ctypes.c_void_p(), ctypes.c_uint(64)
    rows = (Process * 64)()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)):
        return {"error": "NVML does not start"}
    spent = took_us(lambda: nvml.nvmlDeviceGetComputeRunningProcesses_v3(device, ctypes.byref(count), rows))
    pids = [rows[i].pid for i in range(min(count.value, 64))]
    own = [rows[i].used for i in range(min(count.value, 64)) if rows[i].pid == os.getpid()]
    return {"processes": len(pids), "own_bytes": own[0] if own else None, "took_us": spent}


def charges() -> dict[str, Any]:
    cu = Driver()
    found: dict[str, Any] = {"nvml_before": nvml_own_bytes()}

    def delta(name: str, call: Callable[[], object]) -> None:
        before = free_bytes(cu)
        try:
            call()
        except RuntimeError as error:
            found[name] = str(error)
            return
        found[name] = before - free_bytes(cu)

    module, other, graph, executable = (ctypes.c_void_p() for _ in range(4))
    delta("nothing", lambda: None)
    delta("buffer_1_byte", lambda: cu.allocate(1))
    delta("buffer_64_mib", lambda: cu.allocate(64 * MIB))
    delta("module", lambda: cu("cuModuleLoadData", ctypes.byref(module), BUMP_PTX))
    function = cu.kernel(BUMP_PTX, b"bump")
    counter = cu.allocate(4)

    def run_once() -> None:
        cu.launcher(function, None, counter, ctypes.c_uint(1))()
        cu("cuCtxSynchronize")

    def run_graph() -> None:
        cu("cuGraphLaunch", executable, stream)
        cu("cuStreamSynchronize", stream)

    delta("first_launch", run_once)
    delta("stack_64_kib", lambda: cu("cuCtxSetLimit", 0, ctypes.c_size_t(64 << 10)))
    delta("printf_64_mib", lambda: cu("cuCtxSetLimit", 1, ctypes.c_size_t(64 * MIB)))
    delta("heap_256_mib", lambda: cu("cuCtxSetLimit", 2, ctypes.c_size_t(256 * MIB)))
    delta("launch_after_limits", run_once)
    delta("stack_1_kib", lambda: cu("cuCtxSetLimit", 0, ctypes.c_size_t(1 << 10)))
    delta("context", lambda: cu("cuCtxCreate_v2", ctypes.byref(other), 0, 0))
    delta("context_end", lambda: cu("cuCtxDestroy_v2", other))
    cu("cuCtxSetCurrent", cu.context)
    stream = cu.stream()
    cu("cuStreamBeginCapture_v2", stream, 2)
    for _ in range(200):
        cu.launcher(function, stream, counter, ctypes.c_uint(1))()
    cu("cuStreamEndCapture", stream, ctypes.byref(graph))
    delta("graph_instantiate", lambda: cu("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph,
                                          ctypes.c_ulonglong(0)))  # fmt: skip
    delta("graph_launch", run_graph)
    delta("graph_end", lambda: cu("cuGraphExecDestroy", executable))
    found["nvml_after"] = nvml_own_bytes()
    return found


# ---------------------------------------------------------------------------------------------------- events
def events() -> dict[str, Any]:
    cu = Driver()
    stream, counter = cu.stream(), cu.allocate(8)
    pairs = [(ctypes.c_void_p(), ctypes.c_void_p()) for _ in range(200)]
    for pair in pairs:
        for event in pair:
            cu("cuEventCreate", ctypes.byref(event), 0)
    found: dict[str, Any] = {}
    function = cu.kernel(SPIN_PTX, b"spin")
    for cycles in (0, 20_000, 200_000, 2_000_000):
        run = cu.launcher(function, stream, counter, ctypes.c_uint64(cycles))
        run()
        cu("cuStreamSynchronize", stream)
        chosen = pairs[: 200 if cycles < 2_000_000 else 20]
        began = time.perf_counter()
        for start, end in chosen:
            cu("cuEventRecord", start, stream)
            run()
            cu("cuEventRecord", end, stream)
        issued = time.perf_counter() - began
        cu("cuStreamSynchronize", stream)
        whole = time.perf_counter() - began
        times = []
        for start, end in chosen:
            ms = ctypes.c_float()
            cu("cuEventElapsedTime", ctypes.byref(ms), start, end)
            times.append(ms.value * 1e3)
        first, last = chosen[0][0], chosen[-1][1]
        ms = ctypes.c_float()
        cu("cuEventElapsedTime", ctypes.byref(ms), first, last)
        times.sort()
        found[f"spin_{cycles}"] = {
            "median_us": round(times[len(times) // 2], 2), "p10_us": round(times[len(times) // 10], 2),
            "sum_of_first_to_last": round(sum(times) / (ms.value * 1e3), 4),
            "issue_us": round(issued / len(chosen) * 1e6, 2), "whole_us": round(whole / len(chosen) * 1e6, 2),
        }  # fmt: skip
    ms = ctypes.c_float()
    start, end = pairs[0]

    def read_elapsed() -> None:
        for _ in range(1000):
            cu("cuEventElapsedTime", ctypes.byref(ms), start, end)

    found["elapsed_us"] = round(took_us(read_elapsed) / 1000, 3)
    return found


def main() -> None:
    if sys.argv[1:] == ["fill"]:
        fill_and_wait()
        return
    facts: dict[str, Any] = {"machine": describe("benchmarks.slice_facts")}
    if len(sys.argv) > 1:
        facts = globals()[sys.argv[1]]()  # a section, in a process of its own
        print(json.dumps(facts))
        return
    for section in ("fresh_memory", "moves", "charges", "events"):
        done = subprocess.run([sys.executable, "-m", "benchmarks.slice_facts", section], capture_output=True, text=True)
        facts[section] = json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr.strip()[-500:]}
    print(json.dumps(facts))
    sys.exit(bool(facts["fresh_memory"].get("words_of_the_other", 1)))


if __name__ == "__main__":
    main()
