"""The CUDA driver API through ctypes, as much as the benchmarks need: no package but the standard library.

Whatever libcuda.so.1 the environment gives is measured: NVIDIA's, softgpu's, or Orion's shim.
"""

from __future__ import annotations

import ctypes
from typing import Any

BUMP_PTX = b""".version 7.0
.target sm_70
.address_size 64
.visible .entry bump(.param .u64 counter, .param .u32 amount)
{ .reg .u64 %rd<2>; .reg .u32 %r<3>;
  ld.param.u64 %rd1, [counter]; ld.param.u32 %r1, [amount];
  atom.global.add.u32 %r2, [%rd1], %r1;
  ret; }
\0"""

# Spins until `cycles` of %clock64 have passed, then adds 1 to the counter.
SPIN_PTX = b""".version 7.0
.target sm_70
.address_size 64
.visible .entry spin(.param .u64 counter, .param .u64 cycles)
{ .reg .u64 %rd<6>; .reg .u32 %r<2>; .reg .pred %p;
  ld.param.u64 %rd1, [counter]; ld.param.u64 %rd2, [cycles];
  mov.u64 %rd3, %clock64;
again:
  mov.u64 %rd4, %clock64; sub.u64 %rd5, %rd4, %rd3; setp.lt.u64 %p, %rd5, %rd2;
  @%p bra again;
  atom.global.add.u32 %r1, [%rd1], 1;
  ret; }
\0"""


class Driver:
    """libcuda with every non-zero result turned into an exception, and device 0's primary context current."""

    def __init__(self) -> None:
        self.lib = ctypes.CDLL("libcuda.so.1")
        self("cuInit", 0)
        self.context = ctypes.c_void_p()
        self("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), 0)
        self("cuCtxSetCurrent", self.context)

    def __call__(self, name: str, *args: Any) -> None:
        result = getattr(self.lib, name)(*args)
        if result:
            raise RuntimeError(f"{name} -> {result}")

    def device_name(self) -> str:
        text = ctypes.create_string_buffer(256)
        self("cuDeviceGetName", text, 256, 0)
        return text.value.decode()

    def driver_version(self) -> int:
        version = ctypes.c_int()
        self("cuDriverGetVersion", ctypes.byref(version))
        return version.value

    def allocate(self, size_bytes: int) -> ctypes.c_uint64:
        address = ctypes.c_uint64()
        self("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size_bytes))
        return address

    def host_allocate(self, size_bytes: int) -> int:
        address = ctypes.c_void_p()
        self("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(size_bytes), 0)
        assert address.value
        return address.value

    def stream(self, flags: int = 1) -> ctypes.c_void_p:
        stream = ctypes.c_void_p()
        self("cuStreamCreate", ctypes.byref(stream), flags)
        return stream

    def kernel(self, ptx: bytes, name: bytes) -> ctypes.c_void_p:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self("cuModuleLoadData", ctypes.byref(module), ptx)
        self("cuModuleGetFunction", ctypes.byref(function), module, name)
        return function

    def launcher(self, function: ctypes.c_void_p, stream: Any, *values: Any) -> Any:
        """A zero-argument callable that launches one thread of `function` with these ctypes values."""
        params = (ctypes.c_void_p * len(values))(*[ctypes.addressof(v) for v in values])
        launch = self.lib.cuLaunchKernel

        def call(_keep: Any = values) -> None:
            result = launch(function, 1, 1, 1, 1, 1, 1, 0, stream, params, None)
            if result:
                raise RuntimeError(f"cuLaunchKernel -> {result}")

        return call

    def read_u32(self, address: ctypes.c_uint64) -> int:
        out = ctypes.c_uint32()
        self("cuMemcpyDtoH_v2", ctypes.byref(out), address, ctypes.c_size_t(4))
        return out.value
