"""Copies and device memory while work is pending."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from ctypes import c_size_t, c_uint32, c_uint64, c_void_p

from tests.semantics.tools import MORE_PTX, NON_BLOCKING, REMOTE, Gate, Program, Thread, equal

MIB = 1 << 20


def _pinned(p: Program, count: int) -> tuple[ctypes.Array[c_uint32], c_void_p]:
    address = p.cu.host_alloc(count * 4)
    return (c_uint32 * count).from_address(address), c_void_p(address)


def host_function_writes_what_a_later_copy_takes(p: Program) -> None:
    """Twenty rounds queued at once, each: device to host, host function adds 1 to each end, host to device."""
    for count in (1024, 3 * MIB // 4):
        stream, device, size = p.cu.stream(NON_BLOCKING), p.cu.alloc(count * 4), c_size_t(count * 4)
        host, address = _pinned(p, count)
        p.set(device, 3, stream, count)

        def body(host: ctypes.Array[c_uint32] = host) -> None:
            host[0] += 1
            host[len(host) - 1] += 1

        for _ in range(20):
            p.cu.call("cuMemcpyDtoHAsync_v2", address, device, size, stream)
            p.host_function(stream, body)
            p.cu.call("cuMemcpyHtoDAsync_v2", device, address, size, stream)
        p.sync(stream)
        equal((p.cu.read_u32(device), p.cu.read_u32(device.value + 4), p.cu.read_u32(device.value + count * 4 - 4)),
              (23, 3, 23))  # fmt: skip


def host_function_precedes_a_copy_of_another_stream(p: Program) -> None:
    first, second, event, device = p.cu.stream(NON_BLOCKING), p.cu.stream(NON_BLOCKING), p.cu.event(2), p.cu.alloc(4096)
    host, address = _pinned(p, 1024)
    host[5] = 1
    gate = p.gate(first)
    p.cu.call("cuEventRecord", event, first)
    p.cu.call("cuStreamWaitEvent", second, event, 0)
    p.cu.call("cuMemcpyHtoDAsync_v2", device, address, c_size_t(4096), second)
    assert gate.entered.wait(5)
    host[5] = 99
    gate.open()
    p.sync(second)
    equal(p.cu.read_u32(device.value + 20), 99)


def host_function_may_wait_for_copies_of_others(p: Program) -> None:
    """Neither a copy behind it nor one beside it may block the caller or the other stream."""
    held, free, device = p.cu.stream(NON_BLOCKING), p.cu.stream(NON_BLOCKING), p.cu.alloc(8192)
    _, address = _pinned(p, 1024)
    gate = p.gate(held)
    p.cu.call("cuMemcpyHtoDAsync_v2", device, address, c_size_t(4096), held)
    host_2, address_2 = _pinned(p, 1024)
    host_2[0] = 7
    p.cu.call("cuMemcpyHtoDAsync_v2", c_uint64(device.value + 4096), address_2, c_size_t(4096), free)
    p.sync(free)
    equal(p.query(held), 600)
    gate.open()
    p.sync(held)
    equal(p.cu.read_u32(device.value + 4096), 7)


def pageable_bytes_are_taken_at_the_call(p: Program) -> None:
    for size in (16, 64 << 10, MIB):
        stream, device = p.cu.stream(NON_BLOCKING), p.cu.alloc(size)
        host = ctypes.create_string_buffer(b"\x11" * size, size)
        gate = p.gate(stream) if size <= 64 << 10 or REMOTE else None
        p.cu.call("cuMemcpyHtoDAsync_v2", device, host, c_size_t(size), stream)
        ctypes.memset(host, 0x22, size)
        if gate:
            gate.open()
        p.sync(stream)
        equal(set(p.cu.read(device, size)), {0x11})


def copy_to_pageable_memory_is_synchronous(p: Program) -> None:
    stream = p.cu.stream(NON_BLOCKING)
    for size in (4, 5 * MIB):
        device, host = p.cu.alloc(size), ctypes.create_string_buffer(size)
        p.store_late(device, 0, 0.05, stream)
        p.cu.call("cuMemsetD8Async", device, ctypes.c_ubyte(0x5A), c_size_t(size), stream)
        p.cu.call("cuMemcpyDtoHAsync_v2", host, device, c_size_t(size), stream)
        equal(set(host.raw), {0x5A})


def freed_memory_is_not_reused_while_in_use(p: Program) -> None:
    slow, own, size = p.cu.stream(NON_BLOCKING), p.cu.stream(NON_BLOCKING), 4 * MIB
    for _ in range(5):
        old = p.cu.alloc(size)
        p.store_late(old, 0xDEAD, 0.1, slow)
        p.cu.call("cuMemFree_v2", old)
        new = [p.cu.alloc(size) for _ in range(3)]
        for address in new:
            p.set(address, 7, own, size // 4)
        p.sync(own)
        p.sync(slow)
        for address in new:
            equal(p.cu.read_u32(address), 7)
            p.cu.call("cuMemFree_v2", address)


def _fill(p: Program, size: int) -> list[c_uint64]:
    held: list[c_uint64] = []
    while True:
        address = c_uint64()
        code = p.cu.code("cuMemAlloc_v2", ctypes.byref(address), c_size_t(size))
        if code:
            equal(code, 2)
            return held
        held.append(address)


def out_of_memory_ends_with_a_free(p: Program) -> None:
    held = _fill(p, 32 * MIB)
    assert held
    for _ in range(50):  # the free precedes the allocation, whatever way each of them goes
        p.cu.call("cuMemFree_v2", held.pop())
        held.append(p.cu.alloc(32 * MIB))
    p.set(held[-1], 5, None)
    equal(p.cu.read_u32(held[-1]), 5)


def allocation_waits_for_pending_frees(p: Program) -> None:
    """All memory is freed while a kernel still uses it: what is allocated at once after that must be had."""
    slow, size = p.cu.stream(NON_BLOCKING), 32 * MIB
    held = _fill(p, size)
    p.store_late(held[0], 1, 0.3, slow)
    for address in held:
        p.cu.call("cuMemFree_v2", address)
    again = [p.cu.alloc(size) for _ in held]
    equal(len(again), len(held))


def memory_calls_answer_while_a_kernel_runs(p: Program) -> None:
    spin = p.spin(p.cu.stream(NON_BLOCKING))
    free, total = c_size_t(), c_size_t()
    for _ in range(5):
        p.cu.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        p.cu.alloc(8 * MIB)
    spin.release()
    p.cu.call("cuCtxSynchronize")


def _launch_until_it_stands(p: Program, total: int) -> tuple[Gate, Thread, c_uint64, c_void_p]:
    stream, counter, launched = p.cu.stream(NON_BLOCKING), p.counter(), [0]
    gate = p.gate(stream)

    def launch() -> None:
        for _ in range(total):
            p.add(counter, stream)
            launched[0] += 1

    thread = Thread(p, launch)
    before, still = -1, 0
    while thread.alive() and still < 30:
        still = still + 1 if launched[0] == before else 0
        before = launched[0]
        time.sleep(0.01)
    return gate, thread, counter, stream


def memory_calls_answer_while_the_ring_is_full(p: Program) -> None:
    """A thread launches until it blocks: natively in the driver's queue, over shm in the ring."""
    total = 60000 if REMOTE else 500
    gate, thread, counter, stream = _launch_until_it_stands(p, total)
    free, all_bytes = c_size_t(), c_size_t()
    p.cu.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(all_bytes))
    p.cu.alloc(8 * MIB)
    if os.environ.get("ORION_TRANSPORT") == "shm":
        assert thread.alive(), "the ring never was full"
    gate.open()
    thread.join()
    p.sync(stream)
    equal(p.cu.read_u32(counter), total)


def host_function_returns_although_the_ring_is_full(p: Program) -> None:
    total = 300000 if REMOTE else 500
    gate, thread, counter, stream = _launch_until_it_stands(p, total)
    if os.environ.get("ORION_TRANSPORT") == "shm":  # over tcp sockets take more, but the worker has stopped reading
        assert thread.alive(), "the ring never was full"
    gate.open()
    thread.join()
    p.sync(stream)
    equal(p.cu.read_u32(counter), total)


def loading_holds_no_other_stream(p: Program) -> None:
    """A module load, an unload and a limit wait for the running kernel; launches elsewhere do not wait for them."""
    if not REMOTE:
        return  # natively they hold the driver's lock
    busy, own, counter = p.cu.stream(NON_BLOCKING), p.cu.stream(NON_BLOCKING), p.counter()
    spin = p.spin(busy)
    loader = Thread(p, lambda: p.cu.call("cuModuleUnload", p.cu.module(MORE_PTX)))
    p.cu.call("cuMemFree_v2", p.cu.alloc(4 * MIB))
    for _ in range(100):
        p.add(counter, own)
        p.sync(own)
    assert loader.alive()
    spin.release()
    loader.join()
    equal(p.cu.read_u32(counter), 100)


def waiting_does_not_spin(p: Program) -> None:
    """The waiting process uses at most half a core (on more than two cores a short spin is allowed, too)."""
    if not REMOTE:
        return  # natively the kernel itself runs in this process
    spin = p.spin(p.cu.stream(NON_BLOCKING))

    def release() -> None:
        p.attach_thread()
        spin.release()

    timer = threading.Timer(1.0, release)
    used, wall = sum(os.times()[:2]), time.monotonic()
    timer.start()
    p.cu.call("cuCtxSynchronize")
    used, wall = sum(os.times()[:2]) - used, time.monotonic() - wall
    assert wall > 0.9 and used < 0.5 * wall, (used, wall)


PROGRAMS = [
    host_function_writes_what_a_later_copy_takes, host_function_precedes_a_copy_of_another_stream,
    host_function_may_wait_for_copies_of_others, pageable_bytes_are_taken_at_the_call,
    copy_to_pageable_memory_is_synchronous, freed_memory_is_not_reused_while_in_use, out_of_memory_ends_with_a_free,
    allocation_waits_for_pending_frees, memory_calls_answer_while_a_kernel_runs,
    memory_calls_answer_while_the_ring_is_full, host_function_returns_although_the_ring_is_full,
    loading_holds_no_other_stream, waiting_does_not_spin,
]  # fmt: skip
