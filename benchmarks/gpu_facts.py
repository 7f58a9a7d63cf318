"""What the design rests on and a driver must confirm: agreed addresses, markers written by the GPU, NULL-stream order.

    python3 -m benchmarks.gpu_facts            one JSON object; exit 1 when a fact does not hold

Runs natively (NVIDIA's or softgpu's libcuda). Nothing here is a timing claim: times are kept for the record only.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
import time
from typing import Any

from benchmarks.driver import BUMP_PTX, SPIN_PTX, Driver

ARENA_ADDRESS = 0x100000000000
SLOT_ADDRESS = 0x200000000000
TIB = 1 << 40
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]


class AllocationProperties(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location_type", ctypes.c_int),
        ("location_id", ctypes.c_int),
        ("metadata", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    ]


class AccessDescriptor(ctypes.Structure):
    _fields_ = [("location_type", ctypes.c_int), ("location_id", ctypes.c_int), ("flags", ctypes.c_int)]


def map_memfd(address: int, size_bytes: int) -> int:
    fd = os.memfd_create("orion-facts")
    os.ftruncate(fd, size_bytes)
    map_fixed_noreplace = 0x100000
    got = libc.mmap(address, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | map_fixed_noreplace, fd, 0)
    if got != address:
        raise RuntimeError(f"mmap at {address:#x}: {os.strerror(ctypes.get_errno())}")
    return address


def reserve(cu: Driver, facts: dict[str, Any]) -> int:
    rows = []
    first = 0
    for i in range(8):
        for size in (160 << 30, 512 << 30):
            got = ctypes.c_uint64()
            want = SLOT_ADDRESS + i * TIB
            rc = cu.lib.cuMemAddressReserve(ctypes.byref(got), ctypes.c_size_t(size), ctypes.c_size_t(0),
                                            ctypes.c_uint64(want), ctypes.c_uint64(0))  # fmt: skip
            rows.append({"want": hex(want), "gib": size >> 30, "rc": rc, "got": hex(got.value)})
            if rc == 0 and got.value == want and not first:
                first = want
            elif rc == 0:
                cu("cuMemAddressFree", got, ctypes.c_size_t(size))
    facts["address_reserve"] = rows
    return first


def vmm(cu: Driver, base: int, facts: dict[str, Any]) -> None:
    chunk = 2 << 20
    props = AllocationProperties(type=1, location_type=1, location_id=0)
    access = AccessDescriptor(1, 0, 3)
    granularity = ctypes.c_size_t()
    cu("cuMemGetAllocationGranularity", ctypes.byref(granularity), ctypes.byref(props), 0)
    facts["granularity_bytes"] = granularity.value
    times: dict[str, float] = {"create": 0, "map": 0, "access": 0, "unmap": 0, "release": 0}
    for i in range(32):
        handle = ctypes.c_uint64()
        t = [time.perf_counter()]
        cu("cuMemCreate", ctypes.byref(handle), ctypes.c_size_t(chunk), ctypes.byref(props), ctypes.c_uint64(0))
        t.append(time.perf_counter())
        cu(
            "cuMemMap",
            ctypes.c_uint64(base + i * chunk),
            ctypes.c_size_t(chunk),
            ctypes.c_size_t(0),
            handle,
            ctypes.c_uint64(0),
        )
        t.append(time.perf_counter())
        cu(
            "cuMemSetAccess",
            ctypes.c_uint64(base + i * chunk),
            ctypes.c_size_t(chunk),
            ctypes.byref(access),
            ctypes.c_size_t(1),
        )
        t.append(time.perf_counter())
        cu("cuMemsetD8_v2", ctypes.c_uint64(base + i * chunk), 7, ctypes.c_size_t(chunk))
        cu("cuCtxSynchronize")
        t.append(time.perf_counter())
        cu("cuMemUnmap", ctypes.c_uint64(base + i * chunk), ctypes.c_size_t(chunk))
        t.append(time.perf_counter())
        cu("cuMemRelease", handle)
        t.append(time.perf_counter())
        for name, j in (("create", 0), ("map", 1), ("access", 2), ("unmap", 4), ("release", 5)):
            times[name] += (t[j + 1] - t[j]) / 32
    facts["vmm_2mib_us"] = {k: round(v * 1e6, 1) for k, v in times.items()}


# Of CUdevice_attribute.
GPUDIRECT_ATTRIBUTES = {
    "vmm_with_rdma": 110,
    "rdma": 116,
    "flush_options": 117,
    "writes_ordering": 118,
    "dma_buf": 124,
}


def gpudirect(cu: Driver, facts: dict[str, Any]) -> None:
    """What the driver says of device memory that a network device is to reach. No network device is asked."""
    told: dict[str, Any] = {}
    for name, number in GPUDIRECT_ATTRIBUTES.items():
        value = ctypes.c_int()
        told[name] = cu.lib.cuDeviceGetAttribute(ctypes.byref(value), number, 0) or value.value
    bytes_ = ctypes.c_size_t(2 << 20)
    props = AllocationProperties(type=1, location_type=1, location_id=0)
    props.flags[1] = 1  # gpuDirectRDMACapable
    access = AccessDescriptor(1, 0, 3)
    handle, at, no = ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_uint64(0)
    told["create_rc"] = cu.lib.cuMemCreate(ctypes.byref(handle), bytes_, ctypes.byref(props), no)
    if told["create_rc"] == 0:
        cu("cuMemAddressReserve", ctypes.byref(at), bytes_, ctypes.c_size_t(0), no, no)
        cu("cuMemMap", at, bytes_, ctypes.c_size_t(0), handle, no)
        cu("cuMemSetAccess", at, bytes_, ctypes.byref(access), ctypes.c_size_t(1))
        cu("cuMemsetD8_v2", at, 7, bytes_)
        word = ctypes.c_uint32()
        cu("cuMemcpyDtoH_v2", ctypes.byref(word), at, ctypes.c_size_t(4))
        told["memory_works"] = word.value == 0x07070707
        told["flush_rc"] = cu.lib.cuFlushGPUDirectRDMAWrites(0, 100)  # the current context's, to the owner
        fd = ctypes.c_int(-1)
        told["dma_buf_rc"] = cu.lib.cuMemGetHandleForAddressRange(ctypes.byref(fd), at, bytes_, 1, no)
        if fd.value >= 0:
            os.close(fd.value)
        cu("cuMemUnmap", at, bytes_)
        cu("cuMemRelease", handle)
        cu("cuMemAddressFree", at, bytes_)
    facts["gpudirect"] = told


def arena(cu: Driver, facts: dict[str, Any]) -> int:
    size = 64 << 20
    address = map_memfd(ARENA_ADDRESS, size)
    t = time.perf_counter()
    cu("cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(size), 3)  # PORTABLE | DEVICEMAP
    facts["register_64mib_ms"] = round((time.perf_counter() - t) * 1e3, 2)
    device = ctypes.c_uint64()
    cu("cuMemHostGetDevicePointer_v2", ctypes.byref(device), ctypes.c_void_p(address), 0)
    facts["registered_device_pointer_equals_host"] = device.value == address
    return address


def markers(cu: Driver, page: int, facts: dict[str, Any]) -> None:
    word = ctypes.c_uint64.from_address(page)
    word2 = ctypes.c_uint64.from_address(page + 64)
    counter = cu.allocate(4)
    cu("cuMemsetD8_v2", counter, 0, ctypes.c_size_t(4))
    spin = cu.kernel(SPIN_PTX, b"spin")
    softgpu = cu.device_name().startswith("softgpu")
    cycles = ctypes.c_uint64(20_000_000 if softgpu else 100_000_000)  # some 60 ms on an H100
    write = cu.lib.cuStreamWriteValue64_v2

    # A marker on a private blocking stream waits for NULL's work ...
    private = cu.stream(0)
    other = cu.stream(0)
    cu.launcher(spin, None, counter, cycles)()
    early = write(private, ctypes.c_uint64(page), ctypes.c_uint64(1), 0)
    facts["private_stream_marker_rc"] = early
    facts["private_stream_marker_waits_for_null"] = word.value == 0
    cu("cuCtxSynchronize")
    facts["private_stream_marker_written"] = word.value == 1
    # ... and not for another blocking stream's.
    cu.launcher(spin, other, counter, cycles)()
    write(private, ctypes.c_uint64(page), ctypes.c_uint64(2), 0)
    deadline = time.perf_counter() + 0.03
    while word.value != 2 and time.perf_counter() < deadline:
        pass
    facts["private_stream_marker_passes_other_blocking_stream"] = word.value == 2
    # A marker on NULL does wait for it.
    write(None, ctypes.c_uint64(page + 64), ctypes.c_uint64(1), 0)
    facts["null_marker_waits_for_blocking_stream"] = word2.value == 0
    cu("cuCtxSynchronize")
    facts["null_marker_written"] = word2.value == 1
    # Two kernels of two non-blocking streams do overlap a third stream's marker.
    loud = cu.stream(1)
    cu.launcher(spin, loud, counter, cycles)()
    write(private, ctypes.c_uint64(page), ctypes.c_uint64(3), 0)
    deadline = time.perf_counter() + 0.03
    while word.value != 3 and time.perf_counter() < deadline:
        pass
    facts["marker_passes_non_blocking_stream"] = word.value == 3
    cu("cuCtxSynchronize")


def payloads(cu: Driver, page: int, rounds: int, facts: dict[str, Any]) -> None:
    """Data copied before a marker is there when the marker is: the CPU looks as soon as it sees the marker."""
    word = ctypes.c_uint64.from_address(page + 128)
    stream = cu.stream(1)
    stale = {}
    base = 0
    for size, count in ((4, rounds), (256 << 10, rounds // 10)):
        device = cu.allocate(size)
        host = page + (1 << 20)
        last = ctypes.c_uint32.from_address(host + size - 4)
        first = ctypes.c_uint32.from_address(host)
        bad = 0
        size_t, host_p, word_p = ctypes.c_size_t(size), ctypes.c_void_p(host), ctypes.c_uint64(page + 128)
        for i in range(1, count + 1):
            cu.lib.cuMemsetD32Async(device, i, ctypes.c_size_t(size // 4), stream)
            cu.lib.cuMemcpyDtoHAsync_v2(host_p, device, size_t, stream)
            cu("cuStreamWriteValue64_v2", stream, word_p, ctypes.c_uint64(base + i), 0)
            deadline = time.perf_counter() + 5
            while word.value < base + i:
                if time.perf_counter() > deadline:
                    raise RuntimeError(f"marker {base + i} of {size} bytes never came: {word.value}")
            bad += last.value != i or first.value != i
        stale[str(size)] = {"rounds": count, "stale": bad}
        base += count
    facts["payload_behind_marker"] = stale


def main() -> int:
    cu = Driver()
    facts: dict[str, Any] = {"device": cu.device_name(), "driver": cu.driver_version()}
    rounds = 300 if facts["device"].startswith("softgpu") else 100_000
    base = reserve(cu, facts)
    facts["slot"] = hex(base)

    def step(name: str, run: Any, *args: Any) -> Any:
        print(f"{name} ...", file=sys.stderr, flush=True)
        return run(cu, *args, facts)

    if base:
        step("vmm", vmm, base)
    step("gpudirect", gpudirect)
    page = step("arena", arena)
    step("markers", markers, page)
    step("payloads", payloads, page, rounds)
    bump = cu.kernel(BUMP_PTX, b"bump")
    counter, one = cu.allocate(4), ctypes.c_uint32(1)
    cu("cuMemsetD8_v2", counter, 0, ctypes.c_size_t(4))
    launch = cu.launcher(bump, None, counter, one)
    for _ in range(100):
        launch()
    facts["bump"] = cu.read_u32(counter)
    holds = bool(
        base
        and facts["registered_device_pointer_equals_host"]
        and facts["private_stream_marker_waits_for_null"]
        and facts["private_stream_marker_passes_other_blocking_stream"]
        and facts["bump"] == 100
        and not any(row["stale"] for row in facts["payload_behind_marker"].values())
    )
    facts["holds"] = holds
    print(json.dumps(facts))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
