"""The rows: small programs that use only the driver API, run in a process apart.

    python3 -m benchmarks.rows NAME [NAME ...]     one JSON row a line, each as soon as it is measured
    python3 -m benchmarks.rows --list

A row has name, unit, better ("higher" or "lower"), value (a median), low and high (10th and 90th percentile), samples
and digest, a number computed from the data that came back. The digest must be the native one, bit for bit. `clean` says
whether this process could have used a local NVIDIA driver: it looks at its own mappings and descriptors after the work
is done. The first group of each measurement is a warm-up and counts for nothing.

The four large copies take any size: `copy_h2d_pinned@4096` copies 4096 bytes.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.driver import BUMP_PTX, Driver
from benchmarks.measure import nothing, spread, timed_groups

COPY_BYTES = 1 << 28
PATTERN_BYTES = 1 << 20
BOUNCE_BYTES = 1 << 16
MAX_COPY_BYTES = 1 << 32
MAX_GROUP_S = 0.25
SIZED = re.compile(r"copy_(h2d|d2h)_(pageable|pinned)@([1-9]\d*)")

# What was measured, a value a group in the row's unit, and the digest.
Measured = tuple[list[float], int]


@dataclass(frozen=True)
class Kind:
    unit: str
    better: str
    what: str
    run: Callable[[Driver], Measured]


@dataclass
class Row:
    name: str
    unit: str
    better: str
    what: str
    value: float
    low: float
    high: float
    digest: int
    samples: list[float] = field(default_factory=list)
    device: str = ""
    clean: bool = True
    exact: bool = True


def fill_pattern(address: int, size_bytes: int) -> None:
    """Bytes that depend on their position, and each MiB stamped with its offset: a piece in a wrong place shows."""
    block = bytes((i * 131 + (i >> 8) * 29 + 7) & 0xFF for i in range(min(size_bytes, PATTERN_BYTES)))
    for offset in range(0, size_bytes, len(block)):
        piece = block[: size_bytes - offset]
        if len(piece) >= 8:
            piece = offset.to_bytes(8, "little") + piece[8:]
        ctypes.memmove(address + offset, piece, len(piece))


def crc(address: int, size_bytes: int) -> int:
    return zlib.crc32((ctypes.c_char * size_bytes).from_address(address))


def copy_row(cu: Driver, size_bytes: int, pinned: bool, to_device: bool) -> Measured:
    """Seconds of one synchronous copy, a value a group, and the checksum of what went to the device and came back."""
    device = cu.allocate(size_bytes)
    buffer = None if pinned else (ctypes.c_char * size_bytes)()
    address = cu.host_allocate(size_bytes) if buffer is None else ctypes.addressof(buffer)
    fill_pattern(address, size_bytes)
    size, host = ctypes.c_size_t(size_bytes), ctypes.c_void_p(address)

    def up() -> None:
        cu("cuMemcpyHtoD_v2", device, host, size)

    def down() -> None:
        cu("cuMemcpyDtoH_v2", host, device, size)

    up()
    ctypes.memset(address, 0, size_bytes)
    down()
    digest = crc(address, size_bytes)
    step = up if to_device else down
    start = time.perf_counter()
    step()
    # As many as the bytes allow, fewer where a copy takes long: a slow path must not make the row a long one.
    slow = int(MAX_GROUP_S / (time.perf_counter() - start))
    each = max(1, min(500, COPY_BYTES // size_bytes, slow))
    times = timed_groups(step, nothing, 7, each, warm_up=True)
    cu("cuMemFree_v2", device)
    if buffer is None:
        cu("cuMemFreeHost", host)
    return times, digest


def copy_rate(size_bytes: int, pinned: bool, to_device: bool) -> Callable[[Driver], Measured]:
    def run(cu: Driver) -> Measured:
        times, digest = copy_row(cu, size_bytes, pinned, to_device)
        return [size_bytes / seconds / 1e9 for seconds in times], digest

    return run


def small_copy(cu: Driver) -> Measured:
    times, digest = copy_row(cu, 4, False, False)
    return in_us(times), digest


def in_us(times: list[float]) -> list[float]:
    return [seconds * 1e6 for seconds in times]


def bounce(cu: Driver) -> Measured:
    """A page-locked buffer that the stream fills and reads back, with no wait between: the client's bytes are stale."""
    source, target = cu.allocate(BOUNCE_BYTES), cu.allocate(BOUNCE_BYTES)
    stream = cu.stream(1)
    host = ctypes.c_void_p(cu.host_allocate(BOUNCE_BYTES))
    size = ctypes.c_size_t(BOUNCE_BYTES)
    rounds = [0]

    def step() -> None:
        rounds[0] += 1
        cu("cuMemsetD8Async", source, rounds[0] & 0xFF, size, stream)
        cu("cuMemcpyDtoHAsync_v2", host, source, size, stream)
        cu("cuMemcpyHtoDAsync_v2", target, host, size, stream)
        cu("cuStreamSynchronize", stream)

    step()
    times = timed_groups(step, nothing, 9, 50, warm_up=True)
    out = (ctypes.c_char * BOUNCE_BYTES)()
    cu("cuMemcpyDtoH_v2", ctypes.byref(out), target, size)
    return in_us(times), zlib.crc32(out)


def bump(cu: Driver) -> tuple[Any, ctypes.c_uint64]:
    function = cu.kernel(BUMP_PTX, b"bump")
    counter = cu.allocate(4)
    cu("cuMemsetD8_v2", counter, 0, ctypes.c_size_t(4))
    return cu.launcher(function, None, counter, ctypes.c_uint32(1)), counter


def launch_pipelined(cu: Driver) -> Measured:
    launch, counter = bump(cu)
    times = timed_groups(launch, lambda: cu("cuCtxSynchronize"), 9, 2000, warm_up=True)
    return in_us(times), cu.read_u32(counter)


def launch_and_sync(cu: Driver) -> Measured:
    launch, counter = bump(cu)

    def step() -> None:
        launch()
        cu("cuCtxSynchronize")

    times = timed_groups(step, nothing, 9, 500, warm_up=True)
    return in_us(times), cu.read_u32(counter)


def event_query(cu: Driver) -> Measured:
    launch, counter = bump(cu)
    event = ctypes.c_void_p()
    cu("cuEventCreate", ctypes.byref(event), 2)
    launch()
    cu("cuEventRecord", event, None)
    cu("cuCtxSynchronize")
    times = timed_groups(lambda: cu("cuEventQuery", event), nothing, 9, 2000, warm_up=True)
    return in_us(times), cu.read_u32(counter)


def stream_query(cu: Driver) -> Measured:
    launch, counter = bump(cu)
    stream = cu.stream(1)
    launch()
    cu("cuCtxSynchronize")
    times = timed_groups(lambda: cu("cuStreamQuery", stream), nothing, 9, 2000, warm_up=True)
    return in_us(times), cu.read_u32(counter)


def reply(cu: Driver) -> Measured:
    """The smallest question that only the server can answer, asked while the GPU is idle."""
    launch, counter = bump(cu)
    launch()
    cu("cuCtxSynchronize")
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    times = timed_groups(
        lambda: cu("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total)), nothing, 9, 500, warm_up=True
    )
    return in_us(times), cu.read_u32(counter)


ROWS: dict[str, Kind] = {
    "copy_h2d_pageable": Kind("GB/s", "higher", "256 MiB, pageable", copy_rate(COPY_BYTES, False, True)),
    "copy_d2h_pageable": Kind("GB/s", "higher", "256 MiB, pageable", copy_rate(COPY_BYTES, False, False)),
    "copy_h2d_pinned": Kind("GB/s", "higher", "256 MiB, page-locked", copy_rate(COPY_BYTES, True, True)),
    "copy_d2h_pinned": Kind("GB/s", "higher", "256 MiB, page-locked", copy_rate(COPY_BYTES, True, False)),
    "copy_d2h_4b": Kind("us", "lower", "4 bytes, device to host, synchronous", small_copy),
    "copy_bounce_pinned": Kind("us", "lower", "64 KiB down and up through one page-locked buffer", bounce),
    "launch_pipelined": Kind("us", "lower", "launch of a tiny kernel, drained every 2000", launch_pipelined),
    "launch_and_sync": Kind("us", "lower", "launch of a tiny kernel and cuCtxSynchronize", launch_and_sync),
    "event_query": Kind("us", "lower", "cuEventQuery on a finished event", event_query),
    "stream_query": Kind("us", "lower", "cuStreamQuery on an idle stream", stream_query),
    "reply": Kind("us", "lower", "cuMemGetInfo: a question that only the server answers", reply),
}


def find(name: str) -> Kind | None:
    """The row of that name, or of a copy with a size behind `@`; None where there is none."""
    sized = SIZED.fullmatch(name)
    if sized is None:
        return ROWS.get(name)
    direction, memory, size_bytes = sized[1], sized[2], int(sized[3])
    if size_bytes > MAX_COPY_BYTES:
        return None
    kind = "page-locked" if memory == "pinned" else memory
    run = copy_rate(size_bytes, memory == "pinned", direction == "h2d")
    return Kind("GB/s", "higher", f"{size_bytes} bytes, {kind}", run)


# Checksums of a native run on an H100 (driver 580.159.04), kept so that a machine without a GPU can compare too.
NATIVE_DIGESTS = {
    "copy_h2d_pageable": 2514697044,
    "copy_d2h_pageable": 2514697044,
    "copy_h2d_pinned": 2514697044,
    "copy_d2h_pinned": 2514697044,
    "copy_d2h_4b": 361796858,
    "copy_bounce_pinned": 1317148246,
    "launch_pipelined": 18000,
    "launch_and_sync": 4500,
    "event_query": 1,
    "stream_query": 1,
    "reply": 1,
}


def traces_of_a_local_driver() -> list[str]:
    """What in this process belongs to a local NVIDIA driver: mapped libraries and open device nodes."""
    found = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[5] if len(line.split(maxsplit=5)) > 5 else ""
        name = os.path.basename(path)
        if name.startswith(("libcuda.so", "libnvidia-")) and not is_ours(path):
            found.add(path)
        if path.startswith("/dev/nvidia"):
            found.add(path)
    for fd in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(fd)
        except OSError:
            continue
        if target.startswith("/dev/nvidia"):
            found.add(target)
    return sorted(found)


def is_ours(path: str) -> bool:
    """The shim reads ORION_SERVER; no NVIDIA library has that string."""
    try:
        return b"ORION_SERVER" in Path(path).read_bytes()
    except OSError:
        return False


def main(argv: list[str] | None = None) -> int:
    names = sys.argv[1:] if argv is None else argv
    if names == ["--list"]:
        print("\n".join(ROWS))
        return 0
    kinds = [(name, find(name)) for name in names]
    if not names or any(kind is None for _, kind in kinds):
        print(f"usage: python3 -m benchmarks.rows NAME..., each one of: {' '.join(ROWS)}", file=sys.stderr)
        return 2
    cu = Driver()
    for name, kind in kinds:
        assert kind is not None
        values, digest = kind.run(cu)
        told = spread(values)
        traces = traces_of_a_local_driver()
        row = Row(name, kind.unit, kind.better, kind.what, told.median, told.low, told.high, digest, values,
                  cu.device_name(), not traces)  # fmt: skip
        print(json.dumps(asdict(row)), flush=True)
        if traces and os.environ.get("ORION_BENCH_REMOTE"):
            print(f"this client could have used the local driver: {traces}", file=sys.stderr)
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
