"""The rows: small programs that use only the driver API, each run in a process of its own.

    python3 -m benchmarks.rows NAME            one JSON row
    python3 -m benchmarks.rows --list

A row has name, unit, better ("higher" or "lower"), value and digest, a number computed from the data that came back.
The digest must be the native one, bit for bit. `clean` says whether this process could have used a local NVIDIA
driver: it looks at its own mappings and descriptors after the work is done.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.driver import BUMP_PTX, Driver
from benchmarks.measure import median_time, nothing

COPY_BYTES = 1 << 28
PATTERN_BYTES = 1 << 20
BOUNCE_BYTES = 1 << 16


@dataclass
class Row:
    name: str
    unit: str
    better: str
    what: str
    value: float
    digest: int
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


def copy_row(cu: Driver, size_bytes: int, pinned: bool, to_device: bool) -> tuple[float, int]:
    """Median seconds of one synchronous copy, and the checksum of what went to the device and came back."""
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
    return median_time(up if to_device else down, nothing, 7, max(1, min(500, COPY_BYTES // size_bytes))), digest


def large_copy(pinned: bool, to_device: bool) -> Callable[[Driver], tuple[float, int]]:
    def run(cu: Driver) -> tuple[float, int]:
        seconds, digest = copy_row(cu, COPY_BYTES, pinned, to_device)
        return COPY_BYTES / seconds / 1e9, digest

    return run


def small_copy(cu: Driver) -> tuple[float, int]:
    seconds, digest = copy_row(cu, 4, False, False)
    return seconds * 1e6, digest


def bounce(cu: Driver) -> tuple[float, int]:
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
    seconds = median_time(step, nothing, 9, 50)
    out = (ctypes.c_char * BOUNCE_BYTES)()
    cu("cuMemcpyDtoH_v2", ctypes.byref(out), target, size)
    return seconds * 1e6, zlib.crc32(out)


def bump(cu: Driver) -> tuple[Any, ctypes.c_uint64]:
    function = cu.kernel(BUMP_PTX, b"bump")
    counter = cu.allocate(4)
    cu("cuMemsetD8_v2", counter, 0, ctypes.c_size_t(4))
    return cu.launcher(function, None, counter, ctypes.c_uint32(1)), counter


def launch_pipelined(cu: Driver) -> tuple[float, int]:
    launch, counter = bump(cu)
    seconds = median_time(launch, lambda: cu("cuCtxSynchronize"), 9, 2000)
    return seconds * 1e6, cu.read_u32(counter)


def launch_and_sync(cu: Driver) -> tuple[float, int]:
    launch, counter = bump(cu)

    def step() -> None:
        launch()
        cu("cuCtxSynchronize")

    seconds = median_time(step, nothing, 9, 500)
    return seconds * 1e6, cu.read_u32(counter)


def event_query(cu: Driver) -> tuple[float, int]:
    launch, counter = bump(cu)
    event = ctypes.c_void_p()
    cu("cuEventCreate", ctypes.byref(event), 2)
    launch()
    cu("cuEventRecord", event, None)
    cu("cuCtxSynchronize")
    seconds = median_time(lambda: cu("cuEventQuery", event), nothing, 9, 2000)
    return seconds * 1e6, cu.read_u32(counter)


ROWS: dict[str, tuple[str, str, str, Callable[[Driver], tuple[float, int]]]] = {
    "copy_h2d_pageable": ("GB/s", "higher", "256 MiB, pageable", large_copy(False, True)),
    "copy_d2h_pageable": ("GB/s", "higher", "256 MiB, pageable", large_copy(False, False)),
    "copy_h2d_pinned": ("GB/s", "higher", "256 MiB, page-locked", large_copy(True, True)),
    "copy_d2h_pinned": ("GB/s", "higher", "256 MiB, page-locked", large_copy(True, False)),
    "copy_d2h_4b": ("us", "lower", "4 bytes, device to host, synchronous", small_copy),
    "copy_bounce_pinned": ("us", "lower", "64 KiB down and up through one page-locked buffer", bounce),
    "launch_pipelined": ("us", "lower", "launch of a tiny kernel, drained every 2000", launch_pipelined),
    "launch_and_sync": ("us", "lower", "launch of a tiny kernel and cuCtxSynchronize", launch_and_sync),
    "event_query": ("us", "lower", "cuEventQuery on a finished event", event_query),
}

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
    if len(names) != 1 or names[0] not in ROWS:
        print(f"usage: python3 -m benchmarks.rows NAME, one of: {' '.join(ROWS)}", file=sys.stderr)
        return 2
    unit, better, what, run = ROWS[names[0]]
    cu = Driver()
    value, digest = run(cu)
    traces = traces_of_a_local_driver()
    row = Row(names[0], unit, better, what, value, digest, cu.device_name(), not traces)
    print(json.dumps(asdict(row)))
    if traces and os.environ.get("ORION_BENCH_REMOTE"):
        print(f"this client could have used the local driver: {traces}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
