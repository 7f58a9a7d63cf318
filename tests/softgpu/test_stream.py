"""Streams and events: real asynchrony, the NULL stream's rules, words written and awaited in stream order."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from ctypes import byref, c_float, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p

import pytest

from tests.softgpu import libcuda
from tests.softgpu.libcuda import Cuda, check_child

BLOCKING, NON_BLOCKING = 0, 1
LEGACY, PER_THREAD = c_void_p(1), c_void_p(2)
GEQ, EQ, AND, NOR = range(4)


class Gate:
    """Holds a stream until it is opened."""

    def __init__(self, cu: Cuda) -> None:
        self.cu = cu
        self.address = cu.host_alloc(64)
        self.word = c_uint32.from_address(self.address)
        self.word.value = 0

    def hold(self, stream: c_void_p | None, name: str = "cuStreamWaitValue32_v2") -> None:
        self.cu.call(name, stream, c_uint64(self.address), 1, EQ)

    def open(self) -> None:
        self.word.value = 1


@pytest.fixture
def gate(cu: Cuda) -> Iterator[Gate]:
    gate = Gate(cu)
    yield gate
    gate.open()


def test_creation_and_queries(cu: Cuda) -> None:
    stream = cu.stream(NON_BLOCKING)
    assert cu.get_of(c_uint, "cuStreamGetFlags", stream) == NON_BLOCKING
    out = c_void_p()
    cu.call("cuStreamCreateWithPriority", byref(out), 0, -100)
    least, greatest = c_int(), c_int()
    cu.call("cuCtxGetStreamPriorityRange", byref(least), byref(greatest))
    assert cu.get_of(c_int, "cuStreamGetPriority", out) == greatest.value  # clamped
    assert cu.get_of(c_void_p, "cuStreamGetCtx", stream) == cu.get(c_void_p, "cuCtxGetCurrent")
    assert cu.get_of(c_int, "cuStreamIsCapturing", stream) == 0
    assert cu.code("cuStreamCreate", byref(out), 7) == libcuda.INVALID_VALUE
    assert cu.code("cuStreamCreate", None, 0) == libcuda.INVALID_VALUE
    cu.call("cuStreamDestroy_v2", stream)


@pytest.mark.softgpu_only
def test_stale_and_foreign_handles(cu: Cuda) -> None:
    stream, event = cu.stream(), cu.event()
    cu.call("cuStreamDestroy_v2", stream)
    cu.call("cuEventDestroy_v2", event)
    for handle in (stream, event, c_void_p(0xDEAD0000)):
        for name in ("cuStreamQuery", "cuStreamSynchronize", "cuStreamDestroy_v2", "cuEventQuery", "cuEventDestroy_v2"):
            assert cu.code(name, handle) == libcuda.INVALID_HANDLE, name


def test_query_and_events_while_a_stream_is_held(cu: Cuda, gate: Gate) -> None:
    held, free = cu.stream(), cu.stream()
    event, other = cu.event(), cu.event()
    assert cu.code("cuEventQuery", event) == libcuda.SUCCESS  # never recorded
    gate.hold(held)
    cu.call("cuEventRecord", event, held)
    cu.call("cuEventRecord", other, free)
    cu.call("cuEventSynchronize", other)
    assert cu.code("cuStreamQuery", free) == libcuda.SUCCESS
    assert cu.code("cuStreamQuery", held) == libcuda.NOT_READY
    assert cu.code("cuEventQuery", event) == libcuda.NOT_READY
    gate.open()
    cu.call("cuEventSynchronize", event)
    assert cu.code("cuEventQuery", event) == libcuda.SUCCESS
    cu.call("cuStreamSynchronize", held)
    assert cu.code("cuStreamQuery", held) == libcuda.SUCCESS


def test_event_is_not_ready_while_a_kernel_runs(cu: Cuda, module: c_void_p, gate: Gate) -> None:
    busy, free = cu.stream(), cu.stream()
    event = cu.event()
    target = cu.alloc(4)
    bump = cu.function(module, b"bump")
    cu.launch(bump, [target, c_uint(5)])  # a first launch loads code, which may wait for running kernels
    cu.call("cuCtxSynchronize")
    cu.launch(cu.function(module, b"await_flag"), [c_uint64(gate.address)], stream=busy)
    cu.call("cuEventRecord", event, busy)
    cu.call("cuMemsetD32Async", target, 0, c_size_t(1), free)
    cu.launch(bump, [target, c_uint(5)], stream=free)
    cu.call("cuStreamSynchronize", free)  # the other stream goes on
    assert cu.code("cuEventQuery", event) == libcuda.NOT_READY
    gate.open()
    cu.call("cuEventSynchronize", event)
    assert cu.read_u32(target) == 5


def test_wait_event_orders_streams(cu: Cuda, bump: c_void_p, gate: Gate) -> None:
    first, second = cu.stream(), cu.stream()
    event = cu.event(2)
    target, copy = cu.alloc(4), cu.alloc(4)
    cu.call("cuMemsetD32_v2", target, 0, c_size_t(1))
    cu.call("cuCtxSynchronize")
    gate.hold(first)
    cu.launch(bump, [target, c_uint(9)], stream=first)
    cu.call("cuEventRecord", event, first)
    cu.call("cuStreamWaitEvent", second, event, 0)
    cu.call("cuMemcpyDtoDAsync_v2", copy, target, c_size_t(4), second)
    assert cu.code("cuStreamQuery", second) == libcuda.NOT_READY
    gate.open()
    cu.call("cuStreamSynchronize", second)
    assert cu.read_u32(copy) == 9


def test_event_recorded_again_moves(cu: Cuda, gate: Gate) -> None:
    stream = cu.stream()
    event = cu.event()
    cu.call("cuEventRecord", event, stream)
    cu.call("cuEventSynchronize", event)
    gate.hold(stream)
    cu.call("cuEventRecord", event, stream)
    assert cu.code("cuEventQuery", event) == libcuda.NOT_READY
    gate.open()
    cu.call("cuEventSynchronize", event)


def test_elapsed_time(cu: Cuda, gate: Gate) -> None:
    stream = cu.stream()
    start, end, untimed, unrecorded = cu.event(), cu.event(), cu.event(2), cu.event()
    cu.call("cuEventRecord", start, stream)
    gate.hold(stream)
    cu.call("cuEventRecord", end, stream)
    cu.call("cuEventRecord", untimed, stream)
    out = c_float(-1)
    assert cu.code("cuEventElapsedTime", byref(out), start, end) == libcuda.NOT_READY
    gate.open()
    cu.call("cuStreamSynchronize", stream)
    cu.call("cuEventElapsedTime", byref(out), start, end)
    assert out.value > 0
    assert cu.code("cuEventElapsedTime", byref(out), start, untimed) == libcuda.INVALID_HANDLE
    assert cu.code("cuEventElapsedTime", byref(out), start, unrecorded) == libcuda.INVALID_HANDLE


class TestNullStream:
    def test_null_stream_waits_for_blocking_streams(self, cu: Cuda, gate: Gate) -> None:
        blocking = cu.stream(BLOCKING)
        event = cu.event()
        gate.hold(blocking)
        cu.call("cuEventRecord", event, None)
        assert cu.code("cuEventQuery", event) == libcuda.NOT_READY
        assert cu.code("cuStreamQuery", None) == libcuda.NOT_READY
        gate.open()
        cu.call("cuEventSynchronize", event)

    def test_null_stream_ignores_non_blocking_streams(self, cu: Cuda, gate: Gate) -> None:
        gate.hold(cu.stream(NON_BLOCKING))
        event = cu.event()
        cu.call("cuEventRecord", event, None)
        cu.call("cuEventSynchronize", event)
        cu.call("cuStreamSynchronize", LEGACY)

    def test_blocking_streams_wait_for_the_null_stream(self, cu: Cuda, gate: Gate) -> None:
        blocking, free = cu.stream(BLOCKING), cu.stream(NON_BLOCKING)
        late, early = cu.event(), cu.event()
        gate.hold(None)
        cu.call("cuEventRecord", late, blocking)
        cu.call("cuEventRecord", early, free)
        cu.call("cuEventSynchronize", early)
        assert cu.code("cuEventQuery", late) == libcuda.NOT_READY
        gate.open()
        cu.call("cuEventSynchronize", late)

    def test_per_thread_streams_are_separate(self, cu: Cuda, gate: Gate) -> None:
        context = c_void_p(cu.get(c_void_p, "cuCtxGetCurrent"))
        gate.hold(None, "cuStreamWaitValue32_v2_ptsz")  # this thread's stream
        assert cu.code("cuStreamQuery_ptsz", None) == libcuda.NOT_READY
        assert cu.code("cuStreamQuery", PER_THREAD) == libcuda.NOT_READY
        seen: list[int] = []

        def other() -> None:
            cu.call("cuCtxSetCurrent", context)
            event = cu.event()
            cu.call("cuEventRecord_ptsz", event, None)
            cu.call("cuEventSynchronize", event)
            seen.append(cu.code("cuStreamQuery_ptsz", None))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert seen == [libcuda.SUCCESS]
        gate.open()
        cu.call("cuStreamSynchronize_ptsz", None)


class TestWords:
    @pytest.mark.parametrize(
        ("flag", "value", "wrong", "right"),
        [(GEQ, 5, 4, 6), (EQ, 5, 6, 5), (AND, 0b110, 0b001, 0b100), (NOR, 0xFFFFFFF0, 0xF, 0x7)],
    )
    @pytest.mark.parametrize("bits", [32, 64])
    def test_conditions(self, cu: Cuda, flag: int, value: int, wrong: int, right: int, bits: int) -> None:
        if bits == 64 and flag == NOR:
            value |= 0xFFFFFFFF << 32
        kind = c_uint32 if bits == 32 else c_uint64
        stream = cu.stream()
        address = cu.host_alloc(8)
        word = kind.from_address(address)
        word.value = wrong
        cu.call(f"cuStreamWaitValue{bits}_v2", stream, c_uint64(address), kind(value), flag)
        for _ in range(20):
            assert cu.code("cuStreamQuery", stream) == libcuda.NOT_READY
        word.value = right
        cu.call("cuStreamSynchronize", stream)

    @pytest.mark.parametrize("bits", [32, 64])
    def test_write_is_seen_after_earlier_work(self, cu: Cuda, bump: c_void_p, bits: int) -> None:
        """A word that a stream writes never runs ahead of the data that the stream wrote before it."""
        kind = c_uint32 if bits == 32 else c_uint64
        stream = cu.stream()
        data = cu.host_alloc(4)
        marker = cu.host_alloc(8)
        payload, word = c_uint32.from_address(data), kind.from_address(marker)
        payload.value = word.value = 0
        for i in range(1, 501):
            cu.launch(bump, [c_uint64(data), c_uint(1)], stream=stream)
            cu.call(f"cuStreamWriteValue{bits}_v2", stream, c_uint64(marker), kind(i), 0)
            if i % 50 == 0:
                while (seen := word.value) < i:
                    assert payload.value >= seen
                assert payload.value == i
        cu.call("cuStreamSynchronize", stream)

    def test_bad_arguments(self, cu: Cuda) -> None:
        stream = cu.stream()
        address = cu.host_alloc(64)
        for where in (0, 64, address + 1, address + 2):
            assert cu.code("cuStreamWriteValue32_v2", stream, c_uint64(where), 1, 0) == libcuda.INVALID_VALUE
        assert cu.code("cuStreamWriteValue64_v2", stream, c_uint64(address + 4), c_uint64(1), 0) == (
            libcuda.INVALID_VALUE
        )
        assert cu.code("cuStreamWriteValue32_v2", stream, c_uint64(address), 1, 8) == libcuda.INVALID_VALUE

    def test_batch(self, cu: Cuda) -> None:
        stream = cu.stream()
        address = cu.host_alloc(64)
        ctypes.memset(address, 0, 64)
        # Six words each: operation, address, value, flags, alias, padding.
        ops = (c_uint64 * 12)(2, address, 7, 0, 0, 0, 5, address + 8, 1 << 40, 0, 0, 0)
        cu.call("cuStreamBatchMemOp_v2", stream, 2, ops, 0)
        cu.call("cuStreamSynchronize", stream)
        assert c_uint32.from_address(address).value == 7
        assert c_uint64.from_address(address + 8).value == 1 << 40
        bad = (c_uint64 * 6)(99, address, 7, 0, 0, 0)
        assert cu.code("cuStreamBatchMemOp_v2", stream, 1, bad, 0) == libcuda.INVALID_VALUE


class TestHostFunctions:
    def test_order_and_refused_calls(self, cu: Cuda, bump: c_void_p, gate: Gate) -> None:
        stream = cu.stream()
        target = cu.host_alloc(4)
        word = c_uint32.from_address(target)
        word.value = 0
        seen: list[tuple[int, int]] = []

        @ctypes.CFUNCTYPE(None, c_void_p)
        def host(argument: int) -> None:
            inner = cu.code("cuMemAlloc_v2", byref(c_uint64()), c_size_t(4))
            seen.append((word.value, inner))

        gate.hold(stream)
        cu.launch(bump, [c_uint64(target), c_uint(3)], stream=stream)
        cu.call("cuLaunchHostFunc", stream, host, None)
        cu.launch(bump, [c_uint64(target), c_uint(3)], stream=stream)
        assert seen == []
        gate.open()
        cu.call("cuStreamSynchronize", stream)
        assert seen == [(3, libcuda.NOT_PERMITTED)]
        assert word.value == 6
        assert cu.code("cuLaunchHostFunc", stream, None, None) == libcuda.INVALID_VALUE

    def test_callback(self, cu: Cuda) -> None:
        stream = cu.stream()
        seen: list[tuple[int | None, int, int | None]] = []

        @ctypes.CFUNCTYPE(None, c_void_p, c_int, c_void_p)
        def callback(handle: int | None, status: int, argument: int | None) -> None:
            seen.append((handle, status, argument))

        cu.call("cuStreamAddCallback", stream, callback, c_void_p(77), 0)
        cu.call("cuStreamSynchronize", stream)
        assert seen == [(stream.value, 0, 77)]
        assert cu.code("cuStreamAddCallback", stream, callback, None, 1) == libcuda.INVALID_VALUE


class TestAsyncCopies:
    def test_pinned_source_is_read_in_stream_order(self, cu: Cuda, gate: Gate) -> None:
        stream = cu.stream()
        host, device = cu.host_alloc(4), cu.alloc(4)
        word = c_uint32.from_address(host)
        word.value = 1
        gate.hold(stream)
        cu.call("cuMemcpyHtoDAsync_v2", device, c_void_p(host), c_size_t(4), stream)
        word.value = 2
        gate.open()
        cu.call("cuStreamSynchronize", stream)
        assert cu.read_u32(device) == 2

    def test_pageable_source_is_taken_at_the_call(self, cu: Cuda, gate: Gate) -> None:
        stream = cu.stream()
        device = cu.alloc(4)
        source = c_uint32(1)
        gate.hold(stream)
        cu.call("cuMemcpyHtoDAsync_v2", device, byref(source), c_size_t(4), stream)
        source.value = 2
        gate.open()
        cu.call("cuStreamSynchronize", stream)
        assert cu.read_u32(device) == 1

    def test_large_pageable_source(self, cu: Cuda) -> None:
        size = 3 << 20
        stream, device = cu.stream(), cu.alloc(size)
        source = ctypes.create_string_buffer(b"\x5a" * size, size)
        cu.call("cuMemcpyHtoDAsync_v2", device, source, c_size_t(size), stream)
        ctypes.memset(source, 0, size)
        cu.call("cuStreamSynchronize", stream)
        assert cu.read(device, size) == b"\x5a" * size


@pytest.mark.softgpu_only
def test_free_waits_for_queued_work(cu: Cuda, bump: c_void_p, gate: Gate) -> None:
    stream = cu.stream()
    target = cu.alloc(4)
    gate.hold(stream)
    cu.launch(bump, [target, c_uint(1)], stream=stream)
    threading.Timer(0.05, gate.open).start()
    cu.call("cuMemFree_v2", target)
    assert cu.code("cuStreamQuery", stream) == libcuda.SUCCESS


def test_destroyed_stream_finishes_its_work(cu: Cuda, bump: c_void_p, gate: Gate) -> None:
    stream = cu.stream()
    host = cu.host_alloc(4)
    c_uint32.from_address(host).value = 0
    gate.hold(stream)
    cu.launch(bump, [c_uint64(host), c_uint(8)], stream=stream)
    cu.call("cuStreamDestroy_v2", stream)
    gate.open()
    cu.call("cuCtxSynchronize")
    assert c_uint32.from_address(host).value == 8


def test_many_threads_on_own_streams(cu: Cuda, bump: c_void_p) -> None:
    context = c_void_p(cu.get(c_void_p, "cuCtxGetCurrent"))
    target = cu.alloc(4)
    cu.call("cuMemsetD32_v2", target, 0, c_size_t(1))
    cu.call("cuCtxSynchronize")

    def work() -> None:
        cu.call("cuCtxSetCurrent", context)
        stream = cu.stream()
        for _ in range(100):
            cu.launch(bump, [target, c_uint(1)], stream=stream)
        cu.call("cuStreamSynchronize", stream)
        cu.call("cuStreamDestroy_v2", stream)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cu.read_u32(target) == 800


@pytest.mark.softgpu_only
def test_process_may_exit_while_streams_run() -> None:
    out = check_child("""
cu.call("cuInit", 0)
cu.context()
flag = cu.host_alloc(4)
for _ in range(4):
    cu.launch(cu.function(cu.module(), b"await_flag"), [c_uint64(flag)], stream=cu.stream())
    cu.call("cuStreamWaitValue32_v2", cu.stream(), c_uint64(flag), 1, 1)
print("done")
""")
    assert out == "done\n"


@pytest.mark.softgpu_only
def test_delay_setting_exposes_asynchrony() -> None:
    check_child(
        """
cu.call("cuInit", 0)
cu.context()
stream = cu.stream()
cu.call("cuMemsetD8Async", cu.alloc(4), 0, c_size_t(4), stream)
assert cu.code("cuStreamQuery", stream) == NOT_READY
cu.call("cuStreamSynchronize", stream)
""",
        SOFTGPU_DELAY_US="200000",
    )
