"""What the programs share: kernels, gates, waiting. They use CUDA alone and know nothing of Orion, except REMOTE.

REMOTE is for promises that the native driver does not make (module loads that hold nobody, for example).
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from ctypes import c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

from tests.softgpu.libcuda import PTX, Cuda

REMOTE = "ORION_SERVER" in os.environ
NON_BLOCKING = 1
PER_THREAD = c_void_p(2)
NOT_READY = 600
LIMIT_S = 10.0
HOST_FUNCTION = ctypes.CFUNCTYPE(None, c_void_p)

# late_store waits `delay_ns` and stores; fault writes where nothing is mapped.
MORE_PTX = b""".version 7.0
.target sm_70
.address_size 64
.visible .entry late_store(.param .u64 p, .param .u32 n, .param .u64 delay_ns)
{ .reg .u64 %rd<6>; .reg .u32 %r<2>; .reg .pred %p;
  ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [n]; ld.param.u64 %rd2, [delay_ns];
  mov.u64 %rd3, %globaltimer;
again:
  mov.u64 %rd4, %globaltimer; sub.u64 %rd5, %rd4, %rd3; setp.lt.u64 %p, %rd5, %rd2;
  @%p bra again;
  st.global.u32 [%rd1], %r1;
  ret; }
.visible .entry fault()
{ .reg .u64 %rd<2>; .reg .u32 %r<2>;
  mov.u64 %rd1, 16; mov.u32 %r1, 1; st.global.u32 [%rd1], %r1;
  ret; }
\0"""


class Program:
    """The driver with device 0's primary context current, and the kernels."""

    def __init__(self) -> None:
        self.cu = Cuda()
        self.cu.call("cuInit", 0)
        self.context = c_void_p(self.cu.get(c_void_p, "cuDevicePrimaryCtxRetain", 0))
        self.attach_thread()
        self.first, self.second = self.cu.module(PTX + b"\0"), self.cu.module(MORE_PTX)
        self.bump = self.cu.function(self.first, b"bump")
        self.await_flag = self.cu.function(self.first, b"await_flag")
        self.nothing = self.cu.function(self.first, b"nothing")
        self.late_store = self.cu.function(self.second, b"late_store")
        self.fault = self.cu.function(self.second, b"fault")
        self.kept: list[Any] = []  # ctypes callbacks that the driver may still call

    def attach_thread(self) -> None:
        self.cu.call("cuCtxSetCurrent", self.context)

    def counter(self, value: int = 0) -> c_uint64:
        """Four bytes of device memory with this value, visible to every stream."""
        address = self.cu.alloc(256)
        self.cu.call("cuMemsetD32_v2", address, value, c_size_t(64))
        self.cu.call("cuCtxSynchronize")
        return address

    def add(self, counter: c_uint64, stream: c_void_p | None, amount: int = 1) -> None:
        self.cu.launch(self.bump, [counter, c_uint32(amount)], stream=stream)

    def store_late(self, address: c_uint64, value: int, delay_s: float, stream: c_void_p) -> None:
        self.cu.launch(self.late_store, [address, c_uint32(value), c_uint64(int(delay_s * 1e9))], stream=stream)

    def set(self, address: c_uint64, value: int, stream: c_void_p | None, count: int = 1) -> None:
        self.cu.call("cuMemsetD32Async", address, value, c_size_t(count), stream)

    def query(self, stream: c_void_p | None) -> int:
        return self.cu.code("cuStreamQuery", stream)

    def sync(self, stream: c_void_p | None) -> None:
        self.cu.call("cuStreamSynchronize", stream)

    def host_function(self, stream: c_void_p | None, body: Callable[[], None]) -> None:
        callback = HOST_FUNCTION(lambda _: body())
        self.kept.append(callback)
        self.cu.call("cuLaunchHostFunc", stream, callback, None)

    def gate(self, stream: c_void_p | None) -> Gate:
        gate = Gate()
        self.host_function(stream, gate.hold)
        return gate

    def spin(self, stream: c_void_p) -> Spin:
        """A kernel that runs until it is released."""
        spin = self.prepare_spin()
        spin.start(stream)
        return spin

    def prepare_spin(self) -> Spin:
        return Spin(self)


class Gate:
    """A host function that holds its stream until it is opened."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def hold(self) -> None:
        self.entered.set()
        if not self.opened.wait(LIMIT_S):  # the program waits for what must not depend on this function
            print("a gate was not opened in time", file=sys.stderr, flush=True)
            os._exit(3)

    def open(self) -> None:
        self.opened.set()


class Spin:
    def __init__(self, program: Program) -> None:
        self.program, self.flag = program, program.counter()
        self.release_stream = program.cu.stream(NON_BLOCKING)

    def start(self, stream: c_void_p) -> None:
        self.program.cu.launch(self.program.await_flag, [self.flag], stream=stream)

    def release(self) -> None:
        self.program.set(self.flag, 1, self.release_stream)


class Thread:
    """Runs a body with the program's context current; `join` hands its exception on."""

    def __init__(self, program: Program, body: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self.program, self.body = program, body
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.program.attach_thread()
            self.body()
        except BaseException as error:
            self.error = error

    def alive(self) -> bool:
        return self.thread.is_alive()

    def join(self) -> None:
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive(), "the thread did not end"
        if self.error:
            raise self.error


def until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"never: {what}"
        time.sleep(0.001)


def equal(got: Any, wanted: Any) -> None:
    assert got == wanted, f"got {got!r}, wanted {wanted!r}"
