"""Contexts: creation, stacks, the primary context, and handles after their end."""

from __future__ import annotations

import threading
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p

from tests.softgpu import libcuda
from tests.softgpu.libcuda import Cuda, check_child


def current(cu: Cuda) -> int | None:
    out = c_void_p()
    cu.call("cuCtxGetCurrent", byref(out))
    return out.value


def test_stack(driver: Cuda) -> None:
    first = driver.context()
    second = driver.context()
    assert current(driver) == second.value
    popped = c_void_p()
    driver.call("cuCtxPopCurrent_v2", byref(popped))
    assert popped.value == second.value
    assert current(driver) == first.value
    driver.call("cuCtxPushCurrent_v2", second)
    driver.call("cuCtxDestroy_v2", second)  # pops itself
    assert current(driver) == first.value
    driver.call("cuCtxSetCurrent", None)
    assert current(driver) is None
    assert driver.code("cuCtxPopCurrent_v2", byref(popped)) == libcuda.INVALID_CONTEXT
    driver.call("cuCtxDestroy_v2", first)


def test_destroyed_context_current_elsewhere(driver: Cuda) -> None:
    context = driver.context()
    seen: list[int] = []
    go, gone = threading.Event(), threading.Event()

    def other() -> None:
        driver.call("cuCtxSetCurrent", context)
        go.set()
        gone.wait()
        seen.append(driver.code("cuCtxSynchronize"))

    thread = threading.Thread(target=other)
    thread.start()
    go.wait()
    driver.call("cuCtxDestroy_v2", context)
    gone.set()
    thread.join()
    assert seen == [libcuda.CONTEXT_IS_DESTROYED]


def test_bad_arguments(driver: Cuda) -> None:
    out = c_void_p()
    assert driver.code("cuCtxCreate_v2", byref(out), 0, 99) == libcuda.INVALID_DEVICE
    assert driver.code("cuCtxCreate_v2", None, 0, 0) == libcuda.INVALID_VALUE
    assert driver.code("cuCtxCreate_v2", byref(out), 0x1000, 0) == libcuda.INVALID_VALUE


def test_limits_and_configuration(cu: Cuda) -> None:
    assert cu.get(c_size_t, "cuCtxGetLimit", 0) == 1024
    cu.call("cuCtxSetLimit", 0, c_size_t(2048))
    assert cu.get(c_size_t, "cuCtxGetLimit", 0) == 2048
    assert cu.code("cuCtxGetLimit", byref(c_size_t()), 77) == libcuda.INVALID_VALUE
    cu.call("cuCtxSetCacheConfig", 2)
    assert cu.get(c_int, "cuCtxGetCacheConfig") == 2
    least, greatest = c_int(9), c_int(9)
    cu.call("cuCtxGetStreamPriorityRange", byref(least), byref(greatest))
    assert least.value == 0 and greatest.value < 0
    assert cu.get(c_int, "cuCtxGetDevice") == 0


def test_ids_are_unique(driver: Cuda) -> None:
    ids = set()
    for _ in range(3):
        context = driver.context()
        ident = c_uint64()
        driver.call("cuCtxGetId", context, byref(ident))
        ids.add(ident.value)
        driver.call("cuCtxDestroy_v2", context)
    assert len(ids) == 3


def test_primary_context_life() -> None:
    check_child("""
cu.call("cuInit", 0)
flags, active = c_uint(), c_int()
def state():
    cu.call("cuDevicePrimaryCtxGetState", 0, byref(flags), byref(active))
    return flags.value, active.value
assert state() == (0, 0)
assert cu.code("cuDevicePrimaryCtxRelease_v2", 0) == INVALID_CONTEXT
cu.call("cuDevicePrimaryCtxSetFlags_v2", 0, 4)
a, b = c_void_p(), c_void_p()
cu.call("cuDevicePrimaryCtxRetain", byref(a), 0)
cu.call("cuDevicePrimaryCtxRetain", byref(b), 0)
assert a.value == b.value and state() == (4, 1)
cu.call("cuCtxSetCurrent", a)
before = cu.get(c_size_t, "cuMemGetInfo_v2", byref(c_size_t()))
cu.alloc(8 * MIB)
stream = cu.stream()
cu.call("cuDevicePrimaryCtxReset_v2", 0)
assert state()[1] == 0
assert cu.code("cuCtxSynchronize") == CONTEXT_IS_DESTROYED
cu.call("cuDevicePrimaryCtxRetain", byref(b), 0)
assert a.value == b.value and state()[1] == 1
assert cu.get(c_size_t, "cuMemGetInfo_v2", byref(c_size_t())) == before
for left in (1, 1, 0):
    cu.call("cuDevicePrimaryCtxRelease_v2", 0)
    assert state()[1] == left
assert cu.code("cuCtxSynchronize") == CONTEXT_IS_DESTROYED
c = c_void_p()
cu.call("cuDevicePrimaryCtxRetain", byref(c), 0)
cu.call("cuCtxSynchronize")
cu.call("cuDevicePrimaryCtxRelease_v2", 0)
""")


def test_primary_context_cannot_be_destroyed(driver: Cuda) -> None:
    context = c_void_p()
    driver.call("cuDevicePrimaryCtxRetain", byref(context), 0)
    assert driver.code("cuCtxDestroy_v2", context) == libcuda.INVALID_CONTEXT
    driver.call("cuDevicePrimaryCtxRelease_v2", 0)


def test_destroy_frees_memory(driver: Cuda) -> None:
    outer = driver.context()
    before = driver.get(c_size_t, "cuMemGetInfo_v2", byref(c_size_t()))
    inner = driver.context()
    driver.alloc(64 * libcuda.MIB)
    driver.module()
    driver.call("cuCtxDestroy_v2", inner)
    assert driver.get(c_size_t, "cuMemGetInfo_v2", byref(c_size_t())) == before
    driver.call("cuCtxDestroy_v2", outer)


def test_api_versions_and_flags(cu: Cuda) -> None:
    version = c_uint()
    cu.call("cuCtxGetApiVersion", None, byref(version))
    assert version.value >= 3010
    assert cu.get(c_uint, "cuCtxGetFlags") & 7 == 0
