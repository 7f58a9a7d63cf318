"""Initialisation, devices, names of errors, symbols and cuGetProcAddress."""

from __future__ import annotations

import ctypes
import pathlib
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p

import pytest

from tests.softgpu import libcuda
from tests.softgpu.libcuda import Cuda, check_child

SYMBOLS = (pathlib.Path(__file__).parent / "data" / "cuda_13_0_symbols.txt").read_text().split()


def test_every_function_of_the_api_is_exported(driver: Cuda) -> None:
    missing = [name for name in SYMBOLS if not hasattr(driver.lib, name)]
    assert missing == []
    assert len(SYMBOLS) > 600


@pytest.mark.softgpu_only
def test_unsupported_functions_say_so(driver: Cuda) -> None:
    for name in ("cuGreenCtxCreate", "cuImportExternalMemory", "cuTexRefCreate", "cuMulticastCreate"):
        assert driver.code(name, None, None, None, None) == libcuda.NOT_SUPPORTED, name


@pytest.mark.softgpu_only
def test_device_is_honest_about_itself(driver: Cuda) -> None:
    name = ctypes.create_string_buffer(64)
    driver.call("cuDeviceGetName", name, 64, 0)
    assert name.value == b"softgpu (CPU)"
    assert driver.get(c_int, "cuDriverGetVersion") == 13000
    assert driver.get(c_int, "cuDeviceGetAttribute", 75, 0) == 8
    assert driver.get(c_int, "cuDeviceGetAttribute", 76, 0) == 0
    assert driver.get(c_size_t, "cuDeviceTotalMem_v2", 0) == 1024 * libcuda.MIB


@pytest.mark.softgpu_only
def test_two_devices_are_distinct(driver: Cuda) -> None:
    assert driver.get(c_int, "cuDeviceGetCount") == 2
    uuids, buses = set(), set()
    for device in range(2):
        uuid = ctypes.create_string_buffer(16)
        driver.call("cuDeviceGetUuid_v2", uuid, device)
        uuids.add(uuid.raw)
        text = ctypes.create_string_buffer(32)
        driver.call("cuDeviceGetPCIBusId", text, 32, device)
        buses.add(text.value)
        assert driver.get(c_int, "cuDeviceGetByPCIBusId", text) == device
    assert len(uuids) == len(buses) == 2
    assert driver.get(c_int, "cuDeviceCanAccessPeer", 0, 1) == 1
    assert driver.get(c_int, "cuDeviceCanAccessPeer", 0, 0) == 0


def test_bad_device_arguments(driver: Cuda) -> None:
    out = c_int()
    assert driver.code("cuDeviceGet", byref(out), 99) == libcuda.INVALID_DEVICE
    assert driver.code("cuDeviceGet", byref(out), -1) == libcuda.INVALID_DEVICE
    assert driver.code("cuDeviceGet", None, 0) == libcuda.INVALID_VALUE
    assert driver.code("cuDeviceGetAttribute", byref(out), 100000, 0) == libcuda.INVALID_VALUE
    assert driver.code("cuDeviceGetAttribute", byref(out), 1, 99) == libcuda.INVALID_DEVICE
    assert driver.code("cuInit", 1) == libcuda.INVALID_VALUE


def test_attributes_agree_with_limits(driver: Cuda) -> None:
    assert driver.get(c_int, "cuDeviceGetAttribute", 1, 0) == 1024
    assert driver.get(c_int, "cuDeviceGetAttribute", 10, 0) == 32
    assert driver.get(c_int, "cuDeviceGetAttribute", 41, 0) == 1
    assert driver.get(c_int, "cuDeviceGetAttribute", 102, 0) == 1
    for attribute in range(1, 147):
        assert driver.code("cuDeviceGetAttribute", byref(c_int()), attribute, 0) == libcuda.SUCCESS, attribute


def test_before_init_nothing_works() -> None:
    check_child("""
n = c_int()
assert cu.code("cuDeviceGetCount", byref(n)) == NOT_INITIALIZED
assert cu.code("cuCtxSynchronize") == NOT_INITIALIZED
assert cu.code("cuDriverGetVersion", byref(n)) == SUCCESS
cu.call("cuInit", 0)
assert cu.code("cuCtxSynchronize") == INVALID_CONTEXT
assert cu.code("cuMemAlloc_v2", byref(c_uint64()), c_size_t(4)) == INVALID_CONTEXT
""")


@pytest.mark.softgpu_only
@pytest.mark.parametrize(
    ("env", "count"),
    [
        ({"SOFTGPU_DEVICES": "3"}, 3),
        ({"SOFTGPU_DEVICES": "3", "CUDA_VISIBLE_DEVICES": "2,0"}, 2),
        ({"SOFTGPU_DEVICES": "3", "CUDA_VISIBLE_DEVICES": "1,9,0"}, 1),
        ({"SOFTGPU_DEVICES": "3", "CUDA_VISIBLE_DEVICES": "GPU-736f6674-6770-752d-6370-750000000001"}, 1),
    ],
)
def test_visible_devices(env: dict[str, str], count: int) -> None:
    check_child(f"cu.call('cuInit', 0)\nassert cu.get(c_int, 'cuDeviceGetCount') == {count}", **env)


@pytest.mark.softgpu_only
def test_settings() -> None:
    check_child("assert cu.code('cuInit', 0) == NO_DEVICE", CUDA_VISIBLE_DEVICES="")
    check_child("assert cu.code('cuInit', 0) == NO_DEVICE", SOFTGPU_DEVICES="0")
    check_child(
        "cu.call('cuInit', 0)\nassert cu.get(c_int, 'cuDeviceGetAttribute', 75, 0) == 9\n"
        "assert cu.get(c_size_t, 'cuDeviceTotalMem_v2', 0) == 64 * MIB",
        SOFTGPU_CC="9.0",
        SOFTGPU_MEMORY_MIB="64",
    )


def test_forked_child_is_not_initialised() -> None:
    check_child("""
cu.call("cuInit", 0)
context = cu.context()
pid = os.fork()
if pid == 0:
    ok = cu.code("cuCtxSynchronize") == NOT_INITIALIZED and cu.code("cuInit", 0) == NOT_INITIALIZED
    os._exit(0 if ok else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
cu.call("cuCtxSynchronize")
""")


def test_error_names(driver: Cuda) -> None:
    text = c_char_p()
    driver.call("cuGetErrorName", 700, byref(text))
    assert text.value == b"CUDA_ERROR_ILLEGAL_ADDRESS"
    driver.call("cuGetErrorString", 2, byref(text))
    assert text.value == b"out of memory"
    assert driver.code("cuGetErrorName", 12345, byref(text)) == libcuda.INVALID_VALUE
    assert text.value is None


class TestGetProcAddress:
    def look_up(self, driver: Cuda, name: bytes, version: int, flags: int = 0) -> tuple[int, int, int]:
        pointer, status = c_void_p(), c_int(-1)
        code = driver.code("cuGetProcAddress_v2", name, byref(pointer), version, ctypes.c_uint64(flags), byref(status))
        return code, pointer.value or 0, status.value

    def symbol(self, driver: Cuda, name: str) -> int:
        return ctypes.cast(getattr(driver.lib, name), c_void_p).value or 0

    def test_probe_with_an_empty_name(self, driver: Cuda) -> None:
        pointer = c_void_p(1)
        driver.call("cuGetProcAddress_v2", b"", byref(pointer), 0, ctypes.c_uint64(0), None)
        assert pointer.value is None
        assert driver.code("cuGetProcAddress", b"", byref(pointer), 0, ctypes.c_uint64(0)) == libcuda.NOT_FOUND

    def test_unknown_and_too_old(self, driver: Cuda) -> None:
        assert self.look_up(driver, b"cuNoSuchThing", 12000) == (libcuda.SUCCESS, 0, 1)
        assert self.look_up(driver, b"cuMemAllocAsync", 9000) == (libcuda.SUCCESS, 0, 2)

    @pytest.mark.softgpu_only
    def test_version_picks_the_abi(self, driver: Cuda) -> None:
        for name, version, symbol in [
            (b"cuMemAlloc", 3020, "cuMemAlloc_v2"),
            (b"cuMemAlloc", 2000, "cuMemAlloc"),
            (b"cuCtxCreate", 3020, "cuCtxCreate_v2"),
            (b"cuCtxCreate", 11040, "cuCtxCreate_v3"),
            (b"cuCtxGetDevice", 2000, "cuCtxGetDevice"),
            (b"cuCtxGetDevice", 13000, "cuCtxGetDevice_v2"),
            (b"cuGetProcAddress", 11030, "cuGetProcAddress"),
            (b"cuGetProcAddress", 12000, "cuGetProcAddress_v2"),
        ]:
            code, pointer, status = self.look_up(driver, name, version)
            assert (code, status) == (0, 0)
            assert pointer == self.symbol(driver, symbol), (name, version)

    @pytest.mark.softgpu_only
    def test_per_thread_default_stream(self, driver: Cuda) -> None:
        assert self.look_up(driver, b"cuLaunchKernel", 13000, 2)[1] == self.symbol(driver, "cuLaunchKernel_ptsz")
        assert self.look_up(driver, b"cuLaunchKernel", 13000, 1)[1] == self.symbol(driver, "cuLaunchKernel")
        assert self.look_up(driver, b"cuMemcpyHtoD", 13000, 2)[1] == self.symbol(driver, "cuMemcpyHtoD_v2_ptds")
        assert self.look_up(driver, b"cuMemAlloc", 13000, 2)[1] == self.symbol(driver, "cuMemAlloc_v2")

    @pytest.mark.softgpu_only
    def test_newer_than_the_driver(self, driver: Cuda) -> None:
        assert self.look_up(driver, b"cuInit", 99000)[0] == libcuda.INVALID_VALUE


def test_unknown_export_table_is_refused(driver: Cuda) -> None:
    table = c_void_p(1)
    assert driver.code("cuGetExportTable", byref(table), bytes(16)) == libcuda.INVALID_VALUE
