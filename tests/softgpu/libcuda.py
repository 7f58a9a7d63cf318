"""The driver API through ctypes, as far as the tests of softgpu need it.

SOFTGPU_LIBCUDA names the library under test; most tests also hold on a real driver (SOFTGPU_LIBCUDA=libcuda.so.1).
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import subprocess
import sys
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_ulonglong, c_void_p
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]

SUCCESS = 0
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NOT_INITIALIZED = 3
NO_DEVICE = 100
INVALID_DEVICE = 101
INVALID_IMAGE = 200
INVALID_CONTEXT = 201
NO_BINARY_FOR_GPU = 209
UNSUPPORTED_LIMIT = 215
INVALID_PTX = 218
UNSUPPORTED_PTX_VERSION = 222
FILE_NOT_FOUND = 301
INVALID_HANDLE = 400
NOT_FOUND = 500
NOT_READY = 600
ILLEGAL_ADDRESS = 700
CONTEXT_IS_DESTROYED = 709
HOST_MEMORY_ALREADY_REGISTERED = 712
HOST_MEMORY_NOT_REGISTERED = 713
LAUNCH_OUT_OF_RESOURCES = 701
COOPERATIVE_LAUNCH_TOO_LARGE = 720
NOT_PERMITTED = 800
NOT_SUPPORTED = 801

MIB = 1 << 20
GRANULARITY = 2 * MIB

PTX = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .global .align 4 .u32 counter = 41;
.visible .entry bump(.param .u64 p, .param .u32 n)
{ .reg .u64 %rd<2>; .reg .u32 %r<3>;
  ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [n];
  atom.global.add.u32 %r2, [%rd1], %r1;
  ret; }
.visible .entry store(.param .u64 p, .param .u32 n)
{ .reg .u64 %rd<2>; .reg .u32 %r<2>;
  ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [n];
  st.global.u32 [%rd1], %r1;
  ret; }
.visible .entry await_flag(.param .u64 p)
{ .reg .u64 %rd<2>; .reg .u32 %r<2>; .reg .pred %p<2>;
  ld.param.u64 %rd1, [p];
LOOP:
  ld.volatile.global.u32 %r1, [%rd1];
  setp.eq.u32 %p1, %r1, 0;
  @%p1 bra LOOP;
  ret; }
.visible .entry nothing()
{ ret; }
.visible .entry bounded(.param .u64 p) .maxntid 64, 1, 1
{ ret; }
.visible .entry required(.param .u64 p) .reqntid 32, 2, 1
{ ret; }
.visible .entry mixed(.param .u32 a, .param .u64 b, .param .u8 c, .param .align 8 .b8 d[24])
{ .reg .u64 %rd<3>; .reg .u32 %r<2>;
  ld.param.u32 %r1, [a]; ld.param.u64 %rd1, [b]; ld.param.u64 %rd2, [d+16];
  st.global.u32 [%rd1], %r1;
  st.global.u64 [%rd1+8], %rd2;
  ret; }
.visible .entry shared_user(.param .u64 p)
{ .reg .u64 %rd<2>; .reg .u32 %r<2>;
  .shared .align 4 .b8 buffer[1024];
  mov.u32 %r1, 7;
  st.shared.u32 [buffer+1020], %r1;
  ret; }
"""


class CudaError(Exception):
    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} returned {code}")
        self.code = code


def library_path() -> str:
    return os.environ.get("SOFTGPU_LIBCUDA") or str(ROOT / "build" / "softgpu" / "libcuda.so.1")


def is_softgpu() -> bool:
    return "/" in library_path()


class Cuda:
    """Calls by name; `call` raises on an error, `code` returns it."""

    def __init__(self) -> None:
        self.lib = ctypes.CDLL(library_path())

    def code(self, name: str, *args: Any) -> int:
        result: int = getattr(self.lib, name)(*args)
        return result

    def call(self, name: str, *args: Any) -> None:
        result = self.code(name, *args)
        if result != SUCCESS:
            raise CudaError(name, result)

    def get(self, kind: type, name: str, *args: Any) -> Any:
        """The value that a call writes through its first parameter."""
        out = kind()
        self.call(name, byref(out), *args)
        return out.value

    def get_of(self, kind: type, name: str, handle: Any) -> Any:
        """The value that a call writes through its second parameter."""
        out = kind()
        self.call(name, handle, byref(out))
        return out.value

    # --- short forms for what nearly every test does ---
    def context(self, device: int = 0) -> c_void_p:
        out = c_void_p()
        self.call("cuCtxCreate_v2", byref(out), 0, device)
        return out

    def alloc(self, size: int) -> c_uint64:
        out = c_uint64()
        self.call("cuMemAlloc_v2", byref(out), c_size_t(size))
        return out

    def host_alloc(self, size: int) -> int:
        return int(self.get(c_void_p, "cuMemHostAlloc", c_size_t(size), 0))

    def stream(self, flags: int = 1) -> c_void_p:
        out = c_void_p()
        self.call("cuStreamCreate", byref(out), flags)
        return out

    def event(self, flags: int = 0) -> c_void_p:
        out = c_void_p()
        self.call("cuEventCreate", byref(out), flags)
        return out

    def module(self, image: bytes = PTX) -> c_void_p:
        out = c_void_p()
        self.call("cuModuleLoadData", byref(out), c_char_p(image))
        return out

    def function(self, module: c_void_p, name: bytes) -> c_void_p:
        out = c_void_p()
        self.call("cuModuleGetFunction", byref(out), module, name)
        return out

    def read(self, address: int | c_uint64, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        self.call("cuMemcpyDtoH_v2", buffer, device_pointer(address), c_size_t(size))
        return buffer.raw

    def read_u32(self, address: int | c_uint64) -> int:
        return int.from_bytes(self.read(address, 4), "little")

    def write(self, address: int | c_uint64, data: bytes) -> None:
        self.call("cuMemcpyHtoD_v2", device_pointer(address), data, c_size_t(len(data)))

    def launch_code(
        self,
        function: c_void_p,
        args: list[Any],
        grid: tuple[int, int, int] = (1, 1, 1),
        block: tuple[int, int, int] = (1, 1, 1),
        shared: int = 0,
        stream: c_void_p | None = None,
    ) -> int:
        params = (c_void_p * max(len(args), 1))(*[ctypes.addressof(a) for a in args])
        return self.code("cuLaunchKernel", function, *grid, *block, shared, stream, params, None)

    def launch(self, function: c_void_p, args: list[Any], **options: Any) -> None:
        result = self.launch_code(function, args, **options)
        if result != SUCCESS:
            raise CudaError("cuLaunchKernel", result)


def device_pointer(address: int | c_uint64) -> c_uint64:
    return address if isinstance(address, c_uint64) else c_uint64(address)


class AllocationProp(ctypes.Structure):
    _fields_ = [
        ("type", c_int),
        ("handle_types", c_int),
        ("location_type", c_int),
        ("location_id", c_int),
        ("win32", c_void_p),
        ("flags", c_uint64),
    ]


def pinned_on(device: int = 0, handle_types: int = 0) -> AllocationProp:
    return AllocationProp(1, handle_types, 1, device, None, 0)


class AccessDesc(ctypes.Structure):
    _fields_ = [("location_type", c_int), ("location_id", c_int), ("flags", c_int)]


class Memcpy2D(ctypes.Structure):
    _fields_ = [
        ("src_x", c_size_t), ("src_y", c_size_t), ("src_type", c_int), ("src_host", c_void_p),
        ("src_device", c_uint64), ("src_array", c_void_p), ("src_pitch", c_size_t),
        ("dst_x", c_size_t), ("dst_y", c_size_t), ("dst_type", c_int), ("dst_host", c_void_p),
        ("dst_device", c_uint64), ("dst_array", c_void_p), ("dst_pitch", c_size_t),
        ("width", c_size_t), ("height", c_size_t),
    ]  # fmt: skip


class Memcpy3D(ctypes.Structure):
    _fields_ = [
        ("src_x", c_size_t), ("src_y", c_size_t), ("src_z", c_size_t), ("src_lod", c_size_t), ("src_type", c_int),
        ("src_host", c_void_p), ("src_device", c_uint64), ("src_array", c_void_p), ("src_context", c_void_p),
        ("src_pitch", c_size_t), ("src_height", c_size_t),
        ("dst_x", c_size_t), ("dst_y", c_size_t), ("dst_z", c_size_t), ("dst_lod", c_size_t), ("dst_type", c_int),
        ("dst_host", c_void_p), ("dst_device", c_uint64), ("dst_array", c_void_p), ("dst_context", c_void_p),
        ("dst_pitch", c_size_t), ("dst_height", c_size_t),
        ("width", c_size_t), ("height", c_size_t), ("depth", c_size_t),
    ]  # fmt: skip


HOST, DEVICE, ARRAY, UNIFIED = 1, 2, 3, 4

PRELUDE = """
import ctypes, os, sys, threading, time
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from tests.softgpu.libcuda import *
cu = Cuda()
"""


def run_child(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a process of its own: for faults, and for settings read when the driver starts."""
    two = {"SOFTGPU_DEVICES": "2", "SOFTGPU_MEMORY_MIB": "1024"}  # as in this process; what the caller set wins
    full_env = {**two, **os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + code], env=full_env, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def check_child(code: str, **env: str) -> str:
    done = run_child(code, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


__all__ = [name for name in globals() if not name.startswith("_")]
_ = (c_uint, c_uint32, c_ulonglong)
