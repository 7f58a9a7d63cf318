"""Virtual memory management and stream-ordered pools."""

from __future__ import annotations

import ctypes
import os
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p

import pytest

from tests.softgpu import libcuda
from tests.softgpu.libcuda import GRANULARITY, MIB, AccessDesc, Cuda, pinned_on

READ_WRITE = 3


def reserve(cu: Cuda, size: int, hint: int = 0) -> int:
    return int(cu.get(c_uint64, "cuMemAddressReserve", c_size_t(size), c_size_t(0), c_uint64(hint), c_ulonglong(0)))


def create(cu: Cuda, size: int, device: int = 0, handle_types: int = 0) -> c_uint64:
    return c_uint64(
        cu.get(c_uint64, "cuMemCreate", c_size_t(size), byref(pinned_on(device, handle_types)), c_ulonglong(0))
    )


def map_at(cu: Cuda, address: int, size: int, handle: c_uint64, offset: int = 0) -> int:
    return cu.code("cuMemMap", c_uint64(address), c_size_t(size), c_size_t(offset), handle, c_ulonglong(0))


def grant(cu: Cuda, address: int, size: int, device: int = 0, flags: int = READ_WRITE) -> int:
    desc = AccessDesc(1, device, flags)
    return cu.code("cuMemSetAccess", c_uint64(address), c_size_t(size), byref(desc), c_size_t(1))


def test_map_write_unmap(cu: Cuda, bump: c_void_p) -> None:
    assert cu.get(c_size_t, "cuMemGetAllocationGranularity", byref(pinned_on()), 0) == GRANULARITY
    size = 2 * GRANULARITY
    address = reserve(cu, size)
    handle = create(cu, size)
    assert map_at(cu, address, size, handle) == libcuda.SUCCESS
    assert grant(cu, address, size) == libcuda.SUCCESS
    cu.call("cuMemsetD32_v2", c_uint64(address), 40, c_size_t(size // 4))
    cu.launch(bump, [c_uint64(address + size - 4), c_uint(2)])
    cu.call("cuCtxSynchronize")
    assert cu.read_u32(address + size - 4) == 42
    flags = c_ulonglong()
    cu.call("cuMemGetAccess", byref(flags), byref((c_int * 2)(1, 0)), c_uint64(address))
    assert flags.value == READ_WRITE
    cu.call("cuMemRelease", handle)  # the mapping keeps the memory
    assert cu.read_u32(address) == 40
    assert cu.code("cuMemAddressFree", c_uint64(address), c_size_t(size)) == libcuda.INVALID_VALUE
    cu.call("cuMemUnmap", c_uint64(address), c_size_t(size))
    cu.call("cuMemAddressFree", c_uint64(address), c_size_t(size))


def test_reserve_honours_a_free_hint(cu: Cuda) -> None:
    size = 8 * GRANULARITY
    first = reserve(cu, size)
    cu.call("cuMemAddressFree", c_uint64(first), c_size_t(size))
    assert reserve(cu, size, hint=first) == first
    elsewhere = reserve(cu, size, hint=first)  # taken now
    assert elsewhere != first and elsewhere % GRANULARITY == 0
    for address in (first, elsewhere):
        cu.call("cuMemAddressFree", c_uint64(address), c_size_t(size))


def test_reserve_alignment(cu: Cuda) -> None:
    address = cu.get(
        c_uint64, "cuMemAddressReserve", c_size_t(GRANULARITY), c_size_t(1 << 30), c_uint64(0), c_ulonglong(0)
    )
    assert address % (1 << 30) == 0
    cu.call("cuMemAddressFree", c_uint64(address), c_size_t(GRANULARITY))


def test_two_mappings_of_one_memory(cu: Cuda) -> None:
    handle = create(cu, 2 * GRANULARITY)
    first, second = reserve(cu, 2 * GRANULARITY), reserve(cu, GRANULARITY)
    assert map_at(cu, first, 2 * GRANULARITY, handle) == libcuda.SUCCESS
    code = map_at(cu, second, GRANULARITY, handle, offset=GRANULARITY)
    if code != libcuda.SUCCESS:
        pytest.skip("this driver maps from the start only")
    assert grant(cu, first, 2 * GRANULARITY) == grant(cu, second, GRANULARITY) == libcuda.SUCCESS
    cu.write(first + GRANULARITY + 8, b"shared!!")
    assert cu.read(second + 8, 8) == b"shared!!"
    retained = c_uint64(cu.get(c_uint64, "cuMemRetainAllocationHandle", c_void_p(second)))
    assert retained.value == handle.value
    cu.call("cuMemUnmap", c_uint64(first), c_size_t(2 * GRANULARITY))
    cu.call("cuMemUnmap", c_uint64(second), c_size_t(GRANULARITY))
    cu.call("cuMemRelease", retained)
    cu.call("cuMemRelease", handle)
    assert cu.code("cuMemRelease", handle) == libcuda.INVALID_VALUE


@pytest.mark.softgpu_only
def test_copy_over_neighbouring_mappings(cu: Cuda) -> None:
    address = reserve(cu, 2 * GRANULARITY)
    for i in range(2):
        handle = create(cu, GRANULARITY)
        assert map_at(cu, address + i * GRANULARITY, GRANULARITY, handle) == libcuda.SUCCESS
        cu.call("cuMemRelease", handle)
    buffer = ctypes.create_string_buffer(64)
    across = c_uint64(address + GRANULARITY - 32)
    assert cu.code("cuMemcpyDtoH_v2", buffer, across, c_size_t(64)) == libcuda.INVALID_VALUE  # no access yet
    assert grant(cu, address, 2 * GRANULARITY) == libcuda.SUCCESS
    cu.write(across, bytes(range(64)))
    assert cu.read(across, 64) == bytes(range(64))
    cu.call("cuMemUnmap", c_uint64(address), c_size_t(2 * GRANULARITY))
    cu.call("cuMemAddressFree", c_uint64(address), c_size_t(2 * GRANULARITY))


def test_bad_arguments(cu: Cuda) -> None:
    out = c_uint64()
    none = c_ulonglong(0)
    for size, align in ((0, 0), (4096, 0), (GRANULARITY, 3)):
        assert (
            cu.code("cuMemAddressReserve", byref(out), c_size_t(size), c_size_t(align), c_uint64(0), none)
            == libcuda.INVALID_VALUE
        ), (size, align)
    prop = pinned_on()
    assert cu.code("cuMemCreate", byref(out), c_size_t(4096), byref(prop), none) == libcuda.INVALID_VALUE
    assert cu.code("cuMemCreate", byref(out), c_size_t(1 << 50), byref(prop), none) == libcuda.OUT_OF_MEMORY
    address = reserve(cu, GRANULARITY)
    handle = create(cu, GRANULARITY)
    assert map_at(cu, address, 2 * GRANULARITY, handle) == libcuda.NOT_SUPPORTED
    assert map_at(cu, address + 4096, GRANULARITY, handle) == libcuda.INVALID_VALUE
    assert map_at(cu, address, GRANULARITY, handle) == libcuda.SUCCESS
    assert map_at(cu, address, GRANULARITY, handle) == libcuda.INVALID_VALUE
    cu.call("cuMemUnmap", c_uint64(address), c_size_t(GRANULARITY))
    assert (
        cu.code("cuMemUnmap", c_uint64(address), c_size_t(GRANULARITY)) == libcuda.SUCCESS
    )  # nothing is mapped: nothing to do
    cu.call("cuMemRelease", handle)
    cu.call("cuMemAddressFree", c_uint64(address), c_size_t(GRANULARITY))
    assert cu.code("cuMemAddressFree", c_uint64(address), c_size_t(GRANULARITY)) == libcuda.INVALID_VALUE


@pytest.mark.softgpu_only
def test_physical_memory_counts_against_the_quota(cu: Cuda) -> None:
    handles = [create(cu, 256 * MIB) for _ in range(3)]
    out = c_uint64()
    prop = pinned_on()
    args = (c_size_t(512 * MIB), byref(prop), c_ulonglong(0))
    assert cu.code("cuMemCreate", byref(out), *args) == libcuda.OUT_OF_MEMORY
    cu.call("cuMemRelease", handles.pop())
    cu.call("cuMemRelease", handles.pop())
    handles.append(c_uint64(cu.get(c_uint64, "cuMemCreate", *args)))
    for handle in handles:
        cu.call("cuMemRelease", handle)


def test_export_and_import(cu: Cuda) -> None:
    handle = create(cu, GRANULARITY, handle_types=1)
    fd = cu.get(c_int, "cuMemExportToShareableHandle", handle, 1, c_ulonglong(0))
    again = c_uint64(cu.get(c_uint64, "cuMemImportFromShareableHandle", c_void_p(fd), 1))
    os.close(fd)
    first, second = reserve(cu, GRANULARITY), reserve(cu, GRANULARITY)
    for address, source in ((first, handle), (second, again)):
        assert map_at(cu, address, GRANULARITY, source) == libcuda.SUCCESS
        assert grant(cu, address, GRANULARITY) == libcuda.SUCCESS
    cu.write(first, b"one memory")
    assert cu.read(second, 10) == b"one memory"
    for address, source in ((first, handle), (second, again)):
        cu.call("cuMemUnmap", c_uint64(address), c_size_t(GRANULARITY))
        cu.call("cuMemRelease", source)


@pytest.mark.softgpu_only
def test_foreign_descriptors_are_not_imported(cu: Cuda) -> None:
    out = c_uint64()
    fd = os.memfd_create("foreign")
    os.ftruncate(fd, GRANULARITY)  # not sealed: it could shrink under a kernel
    assert cu.code("cuMemImportFromShareableHandle", byref(out), c_void_p(fd), 1) == libcuda.INVALID_VALUE
    assert cu.code("cuMemImportFromShareableHandle", byref(out), c_void_p(9999), 1) == libcuda.INVALID_VALUE
    os.close(fd)


class TestPools:
    def used(self, cu: Cuda, pool: c_void_p) -> int:
        out = c_uint64()
        cu.call("cuMemPoolGetAttribute", pool, 7, byref(out))
        return out.value

    def default(self, cu: Cuda) -> c_void_p:
        return c_void_p(cu.get(c_void_p, "cuDeviceGetDefaultMemPool", 0))

    def test_alloc_and_free_in_stream_order(self, cu: Cuda, bump: c_void_p) -> None:
        stream = cu.stream()
        pool = self.default(cu)
        before = self.used(cu, pool)
        address = c_uint64(cu.get(c_uint64, "cuMemAllocAsync", c_size_t(1 << 20), stream))
        cu.call("cuMemsetD32Async", address, 1, c_size_t(1), stream)
        cu.launch(bump, [address, c_uint(4)], stream=stream)
        host = cu.host_alloc(4)
        cu.call("cuMemcpyDtoHAsync_v2", c_void_p(host), address, c_size_t(4), stream)
        cu.call("cuMemFreeAsync", address, stream)
        cu.call("cuStreamSynchronize", stream)
        assert ctypes.c_uint32.from_address(host).value == 5
        assert self.used(cu, pool) == before
        assert cu.code("cuMemFreeAsync", address, stream) == libcuda.INVALID_VALUE

    @pytest.mark.softgpu_only
    def test_double_free_while_queued(self, cu: Cuda) -> None:
        stream = cu.stream()
        flag = cu.host_alloc(4)
        ctypes.c_uint32.from_address(flag).value = 0
        address = c_uint64(cu.get(c_uint64, "cuMemAllocAsync", c_size_t(64), stream))
        cu.call("cuStreamWaitValue32_v2", stream, c_uint64(flag), 1, 1)
        cu.call("cuMemFreeAsync", address, stream)
        assert cu.code("cuMemFreeAsync", address, stream) == libcuda.INVALID_VALUE
        assert cu.code("cuMemFree_v2", address) == libcuda.INVALID_VALUE
        ctypes.c_uint32.from_address(flag).value = 1
        cu.call("cuStreamSynchronize", stream)

    def test_own_pool(self, cu: Cuda) -> None:
        props = (ctypes.c_char * 88)()
        ctypes.memmove(props, bytes(pinned_on())[:16], 16)
        pool = c_void_p(cu.get(c_void_p, "cuMemPoolCreate", byref(props)))
        stream = cu.stream()
        address = c_uint64(cu.get(c_uint64, "cuMemAllocFromPoolAsync", c_size_t(4096), pool, stream))
        assert self.used(cu, pool) >= 4096
        owner = c_void_p()
        cu.call("cuPointerGetAttribute", byref(owner), 17, address)
        assert owner.value == pool.value
        threshold = c_uint64(123456)
        cu.call("cuMemPoolSetAttribute", pool, 4, byref(threshold))
        threshold.value = 0
        cu.call("cuMemPoolGetAttribute", pool, 4, byref(threshold))
        assert threshold.value == 123456
        cu.call("cuMemFreeAsync", address, stream)
        cu.call("cuStreamSynchronize", stream)
        assert self.used(cu, pool) == 0
        cu.call("cuMemPoolDestroy", pool)
        out = c_uint64()
        assert cu.code("cuMemAllocFromPoolAsync", byref(out), c_size_t(4), pool, stream) == libcuda.INVALID_VALUE

    def test_out_of_memory(self, cu: Cuda) -> None:
        out = c_uint64()
        assert cu.code("cuMemAllocAsync", byref(out), c_size_t(1 << 50), cu.stream()) == libcuda.OUT_OF_MEMORY
