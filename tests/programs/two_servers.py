"""Allocates on two devices and checks that no address comes twice nor lies in memory that the process has mapped."""

from __future__ import annotations

import ctypes
import itertools
import random
import sys
from pathlib import Path

cuda = ctypes.CDLL("libcuda.so.1")


def check(result: int, what: str) -> None:
    if result != 0:
        sys.exit(f"{what} returned {result}")


def readable_ranges() -> list[tuple[int, int]]:
    """The process's memory, without the inaccessible reservations that Orion itself holds for devices."""
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions = line.split()[:2]
        if permissions.startswith("---"):
            continue
        first, end = (int(part, 16) for part in span.split("-"))
        ranges.append((first, end))
    return ranges


def overlapping(spans: list[tuple[int, int]]) -> tuple[int, int] | None:
    spans = sorted(spans)
    for (_, end), (start, _) in itertools.pairwise(spans):
        if start < end:
            return start, end
    return None


def fill_across(contexts: list[ctypes.c_void_p]) -> None:
    """A fill of one server's page-locked memory on the other's stream, which is held by a value in its own."""
    words, size = ctypes.c_void_p(), 4096
    flag = ctypes.c_uint64()
    streams = [ctypes.c_void_p(), ctypes.c_void_p()]
    check(cuda.cuCtxSetCurrent(contexts[0]), "cuCtxSetCurrent")
    check(cuda.cuMemHostAlloc(ctypes.byref(words), ctypes.c_size_t(size), 1), "cuMemHostAlloc")
    host = (ctypes.c_ubyte * size).from_address(words.value or 0)
    ctypes.memset(words, 1, size)
    check(cuda.cuCtxSetCurrent(contexts[1]), "cuCtxSetCurrent")
    for stream in streams:
        check(cuda.cuStreamCreate(ctypes.byref(stream), 1), "cuStreamCreate")
    check(cuda.cuMemAlloc_v2(ctypes.byref(flag), ctypes.c_size_t(4)), "cuMemAlloc")
    check(cuda.cuMemsetD8_v2(flag, ctypes.c_ubyte(0), ctypes.c_size_t(4)), "cuMemsetD8")
    check(cuda.cuCtxSynchronize(), "cuCtxSynchronize")
    check(cuda.cuStreamWaitValue32_v2(streams[0], flag, 1, 0), "cuStreamWaitValue32")
    address = ctypes.c_uint64(words.value or 0)
    check(cuda.cuMemsetD8Async(address, ctypes.c_ubyte(7), ctypes.c_size_t(size - 1), streams[0]), "cuMemsetD8Async")
    if set(host) != {1}:
        sys.exit("the fill did not wait for its stream")
    check(cuda.cuStreamWriteValue32_v2(streams[1], flag, 1, 0), "cuStreamWriteValue32")
    check(cuda.cuStreamSynchronize(streams[0]), "cuStreamSynchronize")
    if bytes(host) != bytes([7]) * (size - 1) + b"\1":
        sys.exit("the fill is wrong")
    check(cuda.cuMemFreeHost(words), "cuMemFreeHost")


def main() -> None:
    count = int(sys.argv[1])
    check(cuda.cuInit(0), "cuInit")
    devices = ctypes.c_int()
    check(cuda.cuDeviceGetCount(ctypes.byref(devices)), "cuDeviceGetCount")
    if devices.value != 2:
        sys.exit(f"{devices.value} devices, 2 expected")
    contexts = []
    for ordinal in range(2):
        context = ctypes.c_void_p()
        check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), ordinal), "cuDevicePrimaryCtxRetain")
        contexts.append(context)
    random.seed(1)
    live: list[tuple[int, int, int]] = []
    for i in range(count):
        ordinal = i % 2
        check(cuda.cuCtxSetCurrent(contexts[ordinal]), "cuCtxSetCurrent")
        size = random.choice([1, 256, 4096, 65536, 300_000])
        pointer = ctypes.c_uint64()
        check(cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size)), f"allocation {i}")
        live.append((pointer.value, size, ordinal))
        if i % 10 == 9:  # some are freed, so that addresses are used again while others live
            address, _, owner = live.pop(random.randrange(len(live)))
            check(cuda.cuCtxSetCurrent(contexts[owner]), "cuCtxSetCurrent")
            check(cuda.cuMemFree_v2(ctypes.c_uint64(address)), "cuMemFree")
    spans = [(address, address + size) for address, size, _ in live]
    clash = overlapping(spans)
    if clash:
        sys.exit(f"two allocations overlap at {clash[0]:#x}")
    clash = overlapping(spans + readable_ranges())
    if clash:
        sys.exit(f"an allocation lies in the process's own memory at {clash[0]:#x}")
    # The bytes are apart too: one pattern for each device, each read back from the other's last.
    for ordinal in range(2):
        address = next(a for a, size, owner in live if owner == ordinal and size >= 4096)
        check(cuda.cuCtxSetCurrent(contexts[ordinal]), "cuCtxSetCurrent")
        check(
            cuda.cuMemsetD8_v2(ctypes.c_uint64(address), ctypes.c_ubyte(0x10 + ordinal), ctypes.c_size_t(4096)), "set"
        )
    for ordinal in range(2):
        address = next(a for a, size, owner in live if owner == ordinal and size >= 4096)
        host = (ctypes.c_ubyte * 4096)()
        check(cuda.cuCtxSetCurrent(contexts[ordinal]), "cuCtxSetCurrent")
        check(cuda.cuMemcpyDtoH_v2(host, ctypes.c_uint64(address), ctypes.c_size_t(4096)), "cuMemcpyDtoH")
        if set(host) != {0x10 + ordinal}:
            sys.exit(f"device {ordinal} holds wrong bytes")
    fill_across(contexts)
    print(f"{count} allocations on 2 devices")


main()
