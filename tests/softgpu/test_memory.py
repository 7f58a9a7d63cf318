"""Allocation, host memory, registration, copies, fills and pointer attributes."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p

import pytest

from tests.softgpu import libcuda
from tests.softgpu.libcuda import DEVICE, HOST, MIB, UNIFIED, Cuda, Memcpy2D, Memcpy3D, check_child


def free_bytes(cu: Cuda) -> int:
    return int(cu.get(c_size_t, "cuMemGetInfo_v2", byref(c_size_t())))


def test_alloc_and_free(cu: Cuda) -> None:
    before = free_bytes(cu)
    address = cu.alloc(10 * MIB)
    assert free_bytes(cu) <= before - 10 * MIB
    base, size = c_uint64(), c_size_t()
    cu.call("cuMemGetAddressRange_v2", byref(base), byref(size), c_uint64(address.value + 12345))
    assert (base.value, size.value) == (address.value, 10 * MIB)
    cu.call("cuMemFree_v2", address)
    assert free_bytes(cu) == before
    assert cu.code("cuMemFree_v2", address) == libcuda.INVALID_VALUE
    cu.call("cuMemFree_v2", c_uint64(0))


def test_bad_allocations(cu: Cuda) -> None:
    out = c_uint64()
    assert cu.code("cuMemAlloc_v2", byref(out), c_size_t(0)) == libcuda.INVALID_VALUE
    assert cu.code("cuMemAlloc_v2", None, c_size_t(4)) == libcuda.INVALID_VALUE
    assert cu.code("cuMemAlloc_v2", byref(out), c_size_t(1 << 60)) == libcuda.OUT_OF_MEMORY
    assert cu.code("cuMemAllocManaged", byref(out), c_size_t(16), 0) == libcuda.INVALID_VALUE
    inside = cu.alloc(4096)
    assert cu.code("cuMemFree_v2", c_uint64(inside.value + 16)) == libcuda.INVALID_VALUE
    assert cu.code("cuMemGetAddressRange_v2", byref(out), None, c_uint64(64)) == libcuda.NOT_FOUND


@pytest.mark.softgpu_only
def test_memory_ends_at_the_quota(cu: Cuda) -> None:
    taken = []
    out = c_uint64()
    while (code := cu.code("cuMemAlloc_v2", byref(out), c_size_t(100 * MIB))) == libcuda.SUCCESS:
        taken.append(out.value)
    assert code == libcuda.OUT_OF_MEMORY
    assert len(taken) == 10  # of 1024 MiB
    assert cu.code("cuMemAlloc_v2", byref(out), c_size_t(100 * MIB)) == libcuda.OUT_OF_MEMORY
    cu.call("cuMemFree_v2", c_uint64(taken[3]))
    assert cu.get(c_uint64, "cuMemAlloc_v2", c_size_t(100 * MIB)) == taken[3]


def test_allocations_do_not_overlap(cu: Cuda) -> None:
    spans = []
    for i in range(200):
        size = 1 + i * 37
        spans.append((cu.alloc(size).value, size))
    spans.sort()
    for (a, size), (b, _) in itertools.pairwise(spans):
        assert a % 256 == 0
        assert a + size <= b


def test_pitch(cu: Cuda) -> None:
    address, pitch = c_uint64(), c_size_t()
    cu.call("cuMemAllocPitch_v2", byref(address), byref(pitch), c_size_t(1000), c_size_t(10), 4)
    assert pitch.value >= 1000 and pitch.value % 256 == 0
    assert cu.code(
        "cuMemAllocPitch_v2", byref(address), byref(pitch), c_size_t(1000), c_size_t(10), 3
    ) == libcuda.INVALID_VALUE  # fmt: skip


def test_round_trip_and_bounds(cu: Cuda) -> None:
    data = os.urandom(1 << 16)
    address = cu.alloc(len(data))
    cu.write(address, data)
    assert cu.read(address, len(data)) == data
    other = cu.alloc(len(data))
    cu.call("cuMemcpyDtoD_v2", other, address, c_size_t(len(data)))
    assert cu.read(other, len(data)) == data
    outside = cu.get(c_uint64, "cuMemAlloc_v2", c_size_t(512))
    cu.call("cuMemFree_v2", c_uint64(outside))
    buffer = ctypes.create_string_buffer(512)
    assert cu.code("cuMemcpyDtoH_v2", buffer, c_uint64(64), c_size_t(4)) == libcuda.INVALID_VALUE
    assert cu.code("cuMemcpyHtoD_v2", c_uint64(0), buffer, c_size_t(4)) == libcuda.INVALID_VALUE
    cu.call("cuMemcpyDtoH_v2", buffer, address, c_size_t(0))


@pytest.mark.softgpu_only
def test_copy_past_the_end_is_refused(cu: Cuda) -> None:
    address = cu.alloc(1000)
    buffer = ctypes.create_string_buffer(2000)
    assert cu.code("cuMemcpyDtoH_v2", buffer, address, c_size_t(1001)) == libcuda.INVALID_VALUE
    assert cu.code("cuMemcpyHtoD_v2", address, buffer, c_size_t(1 << 63)) == libcuda.INVALID_VALUE
    assert cu.code("cuMemsetD8_v2", address, 0, c_size_t(1001)) == libcuda.INVALID_VALUE


def test_generic_copy_finds_the_direction(cu: Cuda) -> None:
    source = ctypes.create_string_buffer(b"0123456789", 10)
    target = ctypes.create_string_buffer(10)
    address = cu.alloc(10)
    cu.call("cuMemcpy", address, c_uint64(ctypes.addressof(source)), c_size_t(10))
    cu.call("cuMemcpy", c_uint64(ctypes.addressof(target)), address, c_size_t(10))
    assert target.raw == b"0123456789"


@pytest.mark.parametrize(("name", "size", "value"), [("D8", 1, 0xA5), ("D16", 2, 0xBEEF), ("D32", 4, 0xDEADBEEF)])
def test_fill(cu: Cuda, name: str, size: int, value: int) -> None:
    address = cu.alloc(4096)
    stream = cu.stream()
    cu.call("cuMemsetD8_v2", address, 0, c_size_t(4096))
    cu.call(f"cuMemset{name}_v2", address, value, c_size_t(10))
    cu.call("cuCtxSynchronize")
    cu.call(f"cuMemset{name}Async", c_uint64(address.value + 64), value, c_size_t(3), stream)
    cu.call("cuStreamSynchronize", stream)
    cu.call(f"cuMemsetD2{name}_v2", c_uint64(address.value + 1024), c_size_t(128), value, c_size_t(5), c_size_t(4))
    raw = cu.read(address, 4096)
    unit = value.to_bytes(size, "little")
    expected = bytearray(4096)
    expected[: 10 * size] = unit * 10
    expected[64 : 64 + 3 * size] = unit * 3
    for row in range(4):
        expected[1024 + row * 128 : 1024 + row * 128 + 5 * size] = unit * 5
    assert raw == bytes(expected)
    if size > 1:
        assert cu.code(f"cuMemset{name}_v2", c_uint64(address.value + 1), 0, c_size_t(1)) == libcuda.INVALID_VALUE


def test_two_dimensional_copy(cu: Cuda) -> None:
    pitch, width, height = 512, 100, 7
    device = cu.alloc(pitch * 16)
    cu.call("cuMemsetD8_v2", device, 0, c_size_t(pitch * 16))
    source = os.urandom(width * height)
    copy = Memcpy2D(
        src_type=HOST, src_host=ctypes.cast(ctypes.c_char_p(source), c_void_p), src_pitch=width,
        dst_type=DEVICE, dst_device=device.value, dst_pitch=pitch, dst_x=20, dst_y=3, width=width, height=height,
    )  # fmt: skip
    cu.call("cuMemcpy2D_v2", byref(copy))
    raw = cu.read(device, pitch * 16)
    for row in range(height):
        at = (row + 3) * pitch + 20
        assert raw[at : at + width] == source[row * width : (row + 1) * width]
    assert raw[3 * pitch + 19] == 0 and raw[3 * pitch + 20 + width] == 0
    back = ctypes.create_string_buffer(width * height)
    copy = Memcpy2D(
        src_type=UNIFIED, src_device=device.value, src_pitch=pitch, src_x=20, src_y=3,
        dst_type=HOST, dst_host=ctypes.addressof(back), dst_pitch=width, width=width, height=height,
    )  # fmt: skip
    cu.call("cuMemcpy2DUnaligned_v2", byref(copy))
    assert back.raw == source
    copy.src_pitch = 10  # less than a row
    assert cu.code("cuMemcpy2D_v2", byref(copy)) == libcuda.INVALID_VALUE
    copy.src_type = 9
    assert cu.code("cuMemcpy2D_v2", byref(copy)) == libcuda.INVALID_VALUE


def test_three_dimensional_copy(cu: Cuda) -> None:
    width, height, depth = 16, 3, 4
    source = os.urandom(width * height * depth)
    device = cu.alloc(64 * 8 * 8)
    copy = Memcpy3D(
        src_type=HOST, src_host=ctypes.cast(ctypes.c_char_p(source), c_void_p), src_pitch=width, src_height=height,
        dst_type=DEVICE, dst_device=device.value, dst_pitch=64, dst_height=8, dst_x=5, dst_y=2, dst_z=1,
        width=width, height=height, depth=depth,
    )  # fmt: skip
    cu.call("cuMemcpy3D_v2", byref(copy))
    raw = cu.read(device, 64 * 8 * 8)
    for z in range(depth):
        for y in range(height):
            at = ((z + 1) * 8 + y + 2) * 64 + 5
            start = (z * height + y) * width
            assert raw[at : at + width] == source[start : start + width]


@pytest.mark.softgpu_only
def test_box_that_overflows_is_refused(cu: Cuda) -> None:
    device = cu.alloc(4096)
    buffer = ctypes.create_string_buffer(4096)
    huge = (1 << 64) - 1
    for field in ("src_pitch", "src_height", "src_z", "src_y", "src_x", "width", "height", "depth"):
        copy = Memcpy3D(
            src_type=DEVICE, src_device=device.value, src_pitch=64, src_height=4,
            dst_type=HOST, dst_host=ctypes.addressof(buffer), dst_pitch=64, dst_height=4, width=16, height=2, depth=2,
        )  # fmt: skip
        setattr(copy, field, huge)
        assert cu.code("cuMemcpy3D_v2", byref(copy)) == libcuda.INVALID_VALUE, field


def test_pinned_memory(cu: Cuda) -> None:
    address = cu.host_alloc(8192)
    assert cu.get(c_uint64, "cuMemHostGetDevicePointer_v2", c_void_p(address), 0) == address
    assert cu.get(c_uint, "cuMemHostGetFlags", c_void_p(address)) & 2
    ctypes.memset(address, 7, 8192)
    device = cu.alloc(8192)
    cu.call("cuMemcpyHtoD_v2", device, c_void_p(address), c_size_t(8192))
    assert cu.read(device, 8192) == b"\x07" * 8192
    assert cu.code("cuMemFreeHost", c_void_p(address + 64)) == libcuda.INVALID_VALUE
    cu.call("cuMemFreeHost", c_void_p(address))
    assert cu.code("cuMemFreeHost", c_void_p(address)) == libcuda.INVALID_VALUE


def test_register_shared_memory(cu: Cuda) -> None:
    fd = os.memfd_create("test")
    os.ftruncate(fd, 1 << 16)
    shared = mmap.mmap(fd, 1 << 16)
    address = ctypes.addressof(ctypes.c_char.from_buffer(shared))
    cu.call("cuMemHostRegister_v2", c_void_p(address), c_size_t(1 << 16), 2)
    assert cu.code("cuMemHostRegister_v2", c_void_p(address), c_size_t(4096), 2) == (
        libcuda.HOST_MEMORY_ALREADY_REGISTERED
    )
    assert cu.get(c_uint64, "cuMemHostGetDevicePointer_v2", c_void_p(address), 0) == address
    cu.call("cuMemsetD32_v2", c_uint64(address + 4096), 0x01020304, c_size_t(2))
    cu.call("cuCtxSynchronize")
    assert os.pread(fd, 8, 4096) == b"\x04\x03\x02\x01" * 2
    cu.call("cuMemHostUnregister", c_void_p(address))
    assert cu.code("cuMemHostUnregister", c_void_p(address)) == libcuda.HOST_MEMORY_NOT_REGISTERED
    assert cu.code("cuMemHostGetDevicePointer_v2", byref(c_uint64()), c_void_p(address), 0) == libcuda.INVALID_VALUE


def test_bad_registrations(cu: Cuda) -> None:
    assert cu.code("cuMemHostRegister_v2", None, c_size_t(4096), 0) == libcuda.INVALID_VALUE
    assert cu.code("cuMemHostRegister_v2", c_void_p(4096), c_size_t(4096), 0) == libcuda.INVALID_VALUE
    buffer = ctypes.create_string_buffer(4096)
    assert cu.code("cuMemHostRegister_v2", buffer, c_size_t(0), 0) == libcuda.INVALID_VALUE


@pytest.mark.softgpu_only
def test_read_only_memory_is_not_registered(cu: Cuda) -> None:
    fd = os.memfd_create("test")
    os.ftruncate(fd, 4096)
    libc = ctypes.CDLL(None)
    libc.mmap.restype = c_void_p
    address = libc.mmap(None, c_size_t(4096), mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0))
    assert cu.code("cuMemHostRegister_v2", c_void_p(address), c_size_t(4096), 0) == libcuda.INVALID_VALUE
    assert cu.code("cuMemHostRegister_v2", c_void_p(address), c_size_t(4096), 8) == libcuda.NOT_SUPPORTED


def test_managed_memory_is_shared(cu: Cuda, bump: c_void_p) -> None:
    address = cu.get(c_uint64, "cuMemAllocManaged", c_size_t(4096), 1)
    ctypes.c_uint32.from_address(address).value = 5
    cu.launch(bump, [c_uint64(address), c_uint(3)], block=(4, 1, 1))
    cu.call("cuCtxSynchronize")
    assert ctypes.c_uint32.from_address(address).value == 17
    managed = ctypes.c_bool()
    cu.call("cuPointerGetAttribute", byref(managed), 8, c_uint64(address))
    assert managed.value
    cu.call("cuMemFree_v2", c_uint64(address))


def test_pointer_attributes(cu: Cuda) -> None:
    context = cu.get(c_void_p, "cuCtxGetCurrent")
    device = cu.alloc(4096)
    host = cu.host_alloc(4096)
    for address, kind in ((device.value, DEVICE), (host, HOST)):
        inside = c_uint64(address + 100)
        out = c_uint64()
        cu.call("cuPointerGetAttribute", byref(out), 1, inside)
        assert out.value == context
        memory_type, ordinal = c_uint(), c_int(9)
        cu.call("cuPointerGetAttribute", byref(memory_type), 2, inside)
        assert memory_type.value == kind
        cu.call("cuPointerGetAttribute", byref(ordinal), 9, inside)
        assert ordinal.value == 0
        cu.call("cuPointerGetAttribute", byref(out), 11, inside)
        assert out.value == address
        cu.call("cuPointerGetAttribute", byref(out), 12, inside)
        assert out.value == 4096
    out = c_uint64()
    assert cu.code("cuPointerGetAttribute", byref(out), 4, device) == libcuda.INVALID_VALUE
    assert cu.code("cuPointerGetAttribute", byref(out), 2, c_uint64(64)) == libcuda.INVALID_VALUE
    assert cu.code("cuPointerGetAttribute", byref(out), 999, device) == libcuda.INVALID_VALUE


def test_pointer_attributes_of_plain_host_memory(cu: Cuda) -> None:
    memory_type, ordinal, start = c_uint(7), c_int(7), c_uint64(7)
    attributes = (c_int * 3)(2, 9, 11)
    data = (c_void_p * 3)(*[ctypes.addressof(x) for x in (memory_type, ordinal, start)])
    cu.call("cuPointerGetAttributes", 3, attributes, data, c_uint64(64))
    assert (memory_type.value, ordinal.value, start.value) == (0, -2, 7)


def test_peer_copy_and_access(driver: Cuda) -> None:
    if driver.get(c_int, "cuDeviceGetCount") < 2:
        pytest.skip("one device")
    first, second = driver.context(0), driver.context(1)
    driver.call("cuCtxSetCurrent", second)
    there = driver.alloc(4096)
    driver.call("cuMemsetD8_v2", there, 3, c_size_t(4096))
    driver.call("cuCtxSynchronize")
    driver.call("cuCtxSetCurrent", first)
    here = driver.alloc(4096)
    driver.call("cuMemcpyPeer", here, first, there, second, c_size_t(4096))
    assert driver.read(here, 4096) == b"\x03" * 4096
    assert driver.code("cuCtxDisablePeerAccess", second) == 705
    driver.call("cuCtxEnablePeerAccess", second, 0)
    assert driver.code("cuCtxEnablePeerAccess", second, 0) == 704
    module = driver.module()
    driver.launch(driver.function(module, b"store"), [there, c_uint(77)])
    driver.call("cuCtxSynchronize")
    assert driver.read_u32(there) == 77
    driver.call("cuCtxDisablePeerAccess", second)
    driver.call("cuCtxDestroy_v2", first)
    driver.call("cuCtxDestroy_v2", second)


@pytest.mark.softgpu_only
def test_peer_memory_is_hidden_without_access() -> None:
    check_child("""
cu.call("cuInit", 0)
second = cu.context(1)
there = cu.alloc(64)
first = cu.context(0)
cu.launch(cu.function(cu.module(), b"store"), [there, c_uint(1)])
assert cu.code("cuCtxSynchronize") == ILLEGAL_ADDRESS
""")
