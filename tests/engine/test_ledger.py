"""What is charged to the memory quota: each kind tries to exceed it, and gives back what it had.

The test is the server. Its grants leave exactly the room that a test says; the figures are softgpu's.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from memory_seat import ANSWERED, ASKED, ASKED_BYTES, NO_LIMIT, OTHERS, PINNED, QUOTA, MemorySeat
from session import ADD_PTX, CHUNK, MIB, SLOT_BASE, Session
from test_graphs import add_kernel, edges, node
from test_images import IN_ARENA, bring, library

from wire.spec.ops import OPS

KIB = 1 << 10
OUT_OF_MEMORY, INVALID_HANDLE = 2, 400
CONTEXT_BYTES, FUNCTION_BYTES, GRAPH_BYTES = 8 * MIB, 64 * KIB, 64 * KIB
STACK, PRINTF, HEAP = 0, 1, 2
THREADS = 16 * 2048  # that softgpu's device can hold

LOCAL_PTX = b""".version 7.0
.target sm_70
.address_size 64
.visible .entry deep(.param .u64 out)
{ .reg .u64 %rd<3>; .reg .u32 %r<2>;
  .local .align 8 .b8 stack[2048];
  ld.param.u64 %rd1, [out];
  mov.u64 %rd2, stack;
  st.local.u64 [%rd2], %rd1;
  ld.local.u32 %r1, [%rd2];
  st.global.u32 [%rd1], %r1;
  ret; }
"""
LOCAL_BYTES = (2048 - 1024) * THREADS
BIG_PTX = b"// " + b"x" * (3 * MIB) + b"\n" + ADD_PTX + b"\0"
PLACE = {"arena_off": 100 * MIB, "size_bytes": 2 * MIB}
WIDE = {"format": 32, "channels": 1, "width": 1024, "height": 1024}  # 4 MiB
SHAPE = {f"{kind}_{axis}": 1 for kind in ("grid", "block") for axis in "xyz"}

ROWS: dict[str, Callable[[], None]] = {}


def row(*operations: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Marks the test that tries to exceed the quota through these operations."""

    def mark(test: Callable[[], None]) -> Callable[[], None]:
        ROWS.update(dict.fromkeys(operations, test))
        return test

    return mark


@contextmanager
def limited(quota: int = 200 * MIB, over: int = 0, **values: Any) -> Iterator[tuple[Session, MemorySeat]]:
    """A session with a context, and a seat that is never seen to be charged more than `over` above its grant."""
    seat = MemorySeat(quota, **values)
    try:
        with Session(seat=seat.descriptors()) as s:
            s.open()
            assert seat.charged() == 0  # the worker's own context belongs to the node
            yield s, seat
            assert seat.charged() == sum(seat.kinds().values())
        assert seat.charged() == 0 and not any(seat.kinds().values())
        assert seat.over_bytes <= over
    finally:
        seat.close()


def refused(s: Session, seat: MemorySeat, name: str, tail: bytes = b"", /, **values: Any) -> None:
    """It does not fit: it has answered so, and left nothing behind."""
    charged, free = seat.charged(), driver_free(s, seat)
    assert s.call(name, tail, **values)[0] == OUT_OF_MEMORY
    assert (seat.charged(), driver_free(s, seat)) == (charged, free)


def driver_free(s: Session, seat: MemorySeat) -> int:
    quota = seat.get(QUOTA)
    seat.set(QUOTA, 0)
    result, payload = s.call("MEM_INFO")
    seat.set(QUOTA, quota)
    assert result == 0
    return int(struct.unpack_from("<Q", payload)[0])


def memory(s: Session) -> tuple[int, int]:
    """Free and total, as the program sees them."""
    result, payload = s.call("MEM_INFO")
    assert result == 0
    free, total = struct.unpack_from("<QQ", payload)
    return int(free), int(total)


def place(chunks: int, at: int = 0) -> dict[str, int]:
    return {"device_address": SLOT_BASE + at * CHUNK, "size_bytes": chunks * CHUNK}


def free_range(s: Session, chunks: int, at: int = 0) -> None:
    s.push("MEM_FREE", **place(chunks, at), unmap=1)


# ---------------------------------------------------------------------------------------------- sizes known in advance
@row("MEM_MAP")
@isolated
def test_buffers() -> None:
    with limited() as (s, seat):
        before = seat.leave(3 * CHUNK)
        refused(s, seat, "MEM_MAP", **place(4))
        assert s.call("MEM_MAP", **place(2))[0] == 0
        assert seat.charged() == before + 2 * CHUNK == seat.kinds()["buffer"]
        refused(s, seat, "MEM_MAP", **place(2, 10))
        assert s.call("MEM_MAP", **place(1, 10))[0] == 0
        refused(s, seat, "MEM_MAP", **place(1, 20))
        free_range(s, 2)  # what is freed makes room: the allocation waits for it
        assert s.call("MEM_MAP", **place(2, 20))[0] == 0
        assert s.call("MEM_MAP", **place(1, 20))[0] == 1  # taken: nothing is charged for what is refused
        assert seat.charged() == before + 3 * CHUNK
        free_range(s, 1, 10)
        free_range(s, 2, 20)
        s.sync()
        assert s.wait_word(2, 3) and seat.charged() == before


@row("VMM_CREATE")
@isolated
def test_virtual_memory() -> None:
    with limited() as (s, seat):
        before = seat.leave(3 * CHUNK)
        refused(s, seat, "VMM_CREATE", memory=1, size_bytes=4 * CHUNK)
        assert s.call("VMM_CREATE", memory=1, size_bytes=3 * CHUNK)[0] == 0
        refused(s, seat, "VMM_CREATE", memory=2, size_bytes=CHUNK)
        s.push("VMM_MAP", memory=1, **place(3))
        s.push("VMM_MAP", memory=1, **place(3, 10))
        s.push("VMM_UNMAP", **place(3))
        refused(s, seat, "VMM_CREATE", memory=2, size_bytes=CHUNK)  # it is mapped elsewhere still
        s.push("VMM_UNMAP", **place(3, 10))
        refused(s, seat, "VMM_CREATE", memory=2, size_bytes=CHUNK)
        s.push("VMM_RELEASE", memory=1)
        assert s.call("NOP")[0] == 0
        assert seat.charged() == before


@isolated
def test_virtual_memory_is_charged_to_the_device_that_has_it() -> None:
    seat = MemorySeat(4 * CHUNK)
    with Session(devices=2, seat=seat.descriptors()) as s:
        s.open()
        assert s.call("VMM_CREATE", memory=1, size_bytes=3 * CHUNK, device=1)[0] == 0
        assert (seat.charged(0), seat.charged(1)) == (0, 3 * CHUNK)
        assert s.call("VMM_CREATE", memory=2, size_bytes=2 * CHUNK, device=1)[0] == OUT_OF_MEMORY
        assert s.call("VMM_CREATE", memory=2, size_bytes=4 * CHUNK, device=0)[0] == 0
    assert (seat.charged(0), seat.charged(1)) == (0, 0)
    seat.close()


@row("ARRAY_CREATE", "MIPMAP_CREATE")
@isolated
def test_arrays() -> None:
    with limited() as (s, seat):
        before = seat.leave(4 * MIB - 1)
        refused(s, seat, "ARRAY_CREATE", array=1, **WIDE)
        seat.leave(4 * MIB)
        refused(s, seat, "MIPMAP_CREATE", mipmap=1, levels=11, **WIDE)  # a third more
        assert s.call("ARRAY_CREATE", array=1, **WIDE)[0] == 0
        assert seat.charged() == before + 4 * MIB == seat.kinds()["array"]
        refused(s, seat, "ARRAY_CREATE", array=2, **(WIDE | {"width": 1, "height": 1}))
        assert s.call("ARRAY_DESTROY", array=1)[0] == 0
        assert seat.charged() == before
        seat.leave(6 * MIB)
        assert s.call("MIPMAP_CREATE", mipmap=1, levels=11, **WIDE)[0] == 0
        assert seat.charged() > before + 5 * MIB
        assert s.call("ARRAY_VIEW", source=1, array=5, number=1)[0] == 0  # of memory that is charged
        refused(s, seat, "ARRAY_CREATE", array=2, **(WIDE | {"height": 512}))
        assert s.call("CTX_RESET")[0] == 0
        assert seat.charged() == before


@isolated
def test_an_array_is_never_charged_less_than_it_takes() -> None:
    with limited() as (s, seat):
        shapes = [
            (width, height, depth) for width in (1, 17, 100, 1000) for height in (0, 1, 9, 100) for depth in (0, 5)
        ]
        for layout, channels in ((1, 1), (0x10, 4), (32, 2), (32, 4)):
            for width, height, depth in shapes:
                if depth and not height:
                    continue
                before, free = seat.charged(), driver_free(s, seat)
                values = {"format": layout, "channels": channels, "width": width, "height": height, "depth": depth}
                assert s.call("ARRAY_CREATE", array=1, **values)[0] == 0
                assert seat.charged() - before >= free - driver_free(s, seat) > 0, values
                assert s.call("ARRAY_DESTROY", array=1)[0] == 0
        huge = {"format": 32, "channels": 4, "width": 1 << 32, "height": 1 << 32, "depth": 1 << 32}
        assert s.call("ARRAY_CREATE", array=1, **huge)[0] == 1  # the driver's refusal


@row("HOST_REGISTER", "HOST_REGISTER_AT")
@isolated
def test_pinned_memory_has_a_quota_of_its_own() -> None:
    with limited(pinned=3 * MIB) as (s, seat):
        there = {"address": 0x300000000000}
        assert s.call("HOST_REGISTER", **(PLACE | {"size_bytes": 4 * MIB}))[0] == OUT_OF_MEMORY
        assert s.call("HOST_REGISTER_AT", **(PLACE | {"size_bytes": 4 * MIB}), **there)[0] == OUT_OF_MEMORY
        assert s.call("HOST_REGISTER", **PLACE)[0] == 0
        assert seat.at(PINNED) == 2 * MIB  # staging is the session's
        other = {"arena_off": 110 * MIB, "size_bytes": 2 * MIB}
        assert s.call("HOST_REGISTER", **other)[0] == OUT_OF_MEMORY
        assert s.call("HOST_REGISTER_AT", **other, **there)[0] == OUT_OF_MEMORY
        assert s.call("HOST_REGISTER", **PLACE)[0] == 712  # registered already: charged once
        assert seat.at(PINNED) == 2 * MIB
        assert s.call("HOST_UNREGISTER", **PLACE)[0] == 0
        assert s.call("HOST_REGISTER_AT", **other, **there)[0] == 0
        assert seat.at(PINNED) == 2 * MIB and seat.charged() == 0
    assert seat.at(PINNED) == 0


# ---------------------------------------------------------------------------------------------- sizes known afterwards
@row("CTX_CREATE")
@isolated
def test_contexts_that_the_program_adds() -> None:
    with limited() as (s, seat):
        before = seat.leave(CONTEXT_BYTES - 1)
        refused(s, seat, "CTX_CREATE", context=2)
        seat.leave(CONTEXT_BYTES)
        assert s.call("CTX_CREATE", context=2)[0] == 0
        assert seat.charged() == before + CONTEXT_BYTES == seat.kinds()["context"]
        refused(s, seat, "CTX_CREATE", context=3)
        assert s.call("CTX_DESTROY", context=2)[0] == 0
        assert seat.charged() == before
        assert s.call("CTX_CREATE", context=3)[0] == 0


@row("CTX_SET_LIMIT")
@isolated
def test_limits() -> None:
    def value(limit: int) -> int:
        return int(struct.unpack_from("<Q", s.call("CTX_GET_LIMIT", limit=limit)[1])[0])

    with limited() as (s, seat):
        for limit, small, large, bytes_ in (
            (HEAP, 8 * MIB, 40 * MIB, 32 * MIB),
            (PRINTF, 1 * MIB, 17 * MIB, 16 * MIB),
            (STACK, 1024, 2048, LOCAL_BYTES),
        ):
            before = seat.leave(bytes_ - 1)
            refused(s, seat, "CTX_SET_LIMIT", limit=limit, value=large)
            assert value(limit) == small
            seat.leave(bytes_)
            assert s.call("CTX_SET_LIMIT", limit=limit, value=large)[0] == 0
            assert value(limit) == large and seat.charged() == before + bytes_
            refused(s, seat, "CTX_SET_LIMIT", limit=limit, value=2 * large)
            assert s.call("CTX_SET_LIMIT", limit=limit, value=small)[0] == 0
            assert seat.charged() == before
        seat.leave(LOCAL_BYTES)
        assert s.call("CTX_SET_LIMIT", limit=STACK, value=2048)[0] == 0
        assert s.call("CTX_RESET")[0] == 0
        assert seat.charged() == 0 and value(STACK) == 1024


@row("MODULE_LOAD")
@isolated
def test_modules() -> None:
    with limited() as (s, seat):
        before = seat.leave(2 * MIB)
        s.write_host(MIB, BIG_PTX)
        refused(s, seat, "MODULE_LOAD", module=1, image_off=MIB, image_bytes=len(BIG_PTX))
        assert s.load()[0] == 0  # a small one, under the same index
        small = seat.charged()
        assert before < small <= before + 2 * MIB
        seat.leave(4 * MIB)
        assert s.load(BIG_PTX, 2)[0] == 0
        assert seat.charged() >= small + 3 * MIB and seat.kinds()["module"] == seat.charged()
        s.push("MODULE_UNLOAD", module=2)
        assert s.call("NOP")[0] == 0 and seat.charged() == small
        s.push("MODULE_UNLOAD", module=1)
        assert s.call("NOP")[0] == 0 and seat.charged() == before


@row("IMAGE_MODULE_LOAD")
@isolated
def test_modules_of_offered_images() -> None:
    with limited() as (s, seat):
        seat.leave(2 * MIB)
        bring(s, 1, BIG_PTX, 1 << 20)
        refused(s, seat, "IMAGE_MODULE_LOAD", module=1, image=1)
        bring(s, 1, BIG_PTX, 1 << 20)
        seat.leave(4 * MIB)
        assert s.call("IMAGE_MODULE_LOAD", module=1, image=1)[0] == 0
        assert seat.charged() >= 3 * MIB


@row("MODULE_GET_FUNCTION")
@isolated
def test_functions_loaded_at_first_use() -> None:
    with limited(over=FUNCTION_BYTES) as (s, seat):
        assert s.load()[0] == 0
        before = seat.leave(FUNCTION_BYTES)
        s.function(b"add", 1)
        assert seat.charged() == before + FUNCTION_BYTES
        assert s.call("MODULE_GET_FUNCTION", b"hold", module=1, function=2)[0] == OUT_OF_MEMORY
        # The driver has loaded it: it stays charged, above the grant by no more than one function.
        assert seat.charged() == before + 2 * FUNCTION_BYTES
        assert s.call("FUNCTION_GET_ATTRIBUTES", function=2)[0] == INVALID_HANDLE
        refused(s, seat, "MEM_MAP", **place(1))
        s.push("MODULE_UNLOAD", module=1)
        assert s.call("NOP")[0] == 0 and seat.charged() == 0


@row("LIBRARY_LOAD")
@isolated
def test_libraries_loaded_into_every_context() -> None:
    os.environ["CUDA_MODULE_LOADING"] = "EAGER"
    with limited() as (s, seat):
        seat.leave(2 * MIB)
        s.write_host(MIB, BIG_PTX)
        image = {"image": IN_ARENA, "image_off": MIB, "image_bytes": len(BIG_PTX)}
        refused(s, seat, "LIBRARY_LOAD", library=1, **image)
        seat.leave(4 * MIB)
        assert library(s, 1, image_off=MIB, image_bytes=len(BIG_PTX)) == 0
        assert seat.charged() >= 3 * MIB
        s.push("LIBRARY_UNLOAD", library=1)
        assert s.call("NOP")[0] == 0 and seat.charged() == 0


@row("LIBRARY_GET_MODULE", "KERNEL_FUNCTION")
@isolated
def test_libraries_loaded_at_first_use() -> None:
    with limited(over=4 * MIB) as (s, seat):
        s.write_host(MIB, BIG_PTX)
        for index in (1, 2):
            assert library(s, index, image_off=MIB, image_bytes=len(BIG_PTX)) == 0
            assert s.call("LIBRARY_GET_KERNEL", b"add", library=index, kernel=index)[0] == 0
        assert s.call("LIBRARY_GET_KERNEL", b"hold", library=1, kernel=3)[0] == 0
        assert seat.charged() == 0
        seat.leave(4 * MIB)
        assert s.call("LIBRARY_GET_MODULE", library=1, module=1)[0] == 0
        loaded = seat.charged()
        assert 3 * MIB <= loaded <= 4 * MIB
        seat.leave(FUNCTION_BYTES)
        assert s.call("KERNEL_FUNCTION", kernel=1, module=1, function=1)[0] == 0
        # What a library has in a context stays there until the library goes, whatever was answered.
        assert s.call("KERNEL_FUNCTION", kernel=3, module=1, function=2)[0] == OUT_OF_MEMORY
        assert s.call("LIBRARY_GET_MODULE", library=2, module=2)[0] == OUT_OF_MEMORY
        assert seat.charged() == 2 * loaded + 2 * FUNCTION_BYTES
        refused(s, seat, "MEM_MAP", **place(1))
        s.push("LIBRARY_UNLOAD", library=2)
        assert s.call("NOP")[0] == 0 and seat.charged() == loaded + 2 * FUNCTION_BYTES
        s.push("LIBRARY_UNLOAD", library=1)
        assert s.call("NOP")[0] == 0 and seat.charged() == 0


def with_deep_kernel(s: Session) -> tuple[int, bytes]:
    address = s.map()
    assert s.load(LOCAL_PTX)[0] == 0
    assert s.function(b"deep", 1)[0][3] == 2048  # bytes of local memory
    return address, struct.pack("<Q", address)


@row("LAUNCH", "LAUNCH_EX")
@isolated
def test_local_memory_of_kernels() -> None:
    with limited() as (s, seat):
        _, params = with_deep_kernel(s)
        launch = {"function": 1, "param_bytes": 8, **SHAPE}
        before = seat.leave(LOCAL_BYTES - 1)
        refused(s, seat, "LAUNCH", params, **launch)
        refused(s, seat, "LAUNCH_EX", params, **launch)
        s.push("LAUNCH", params, **launch)
        s.sync()
        assert s.late_error()[2] == OUT_OF_MEMORY
        seat.leave(LOCAL_BYTES)
        free = driver_free(s, seat)
        assert s.call("LAUNCH", params, **launch)[0] == 0
        assert seat.charged() == before + LOCAL_BYTES == before + free - driver_free(s, seat)
        assert s.call("LAUNCH_EX", params, **launch)[0] == 0  # the same memory
        assert seat.charged() == before + LOCAL_BYTES


@isolated
def test_local_memory_ends_with_its_context() -> None:
    with limited() as (s, seat):
        assert s.call("CTX_CREATE", context=2)[0] == 0
        before = seat.charged()
        ctypes.memmove(0x100000000000 + MIB, LOCAL_PTX, len(LOCAL_PTX))
        values = {"module": 1, "image_off": MIB, "image_bytes": len(LOCAL_PTX)}
        assert s.call("MODULE_LOAD", context=2, **values)[0] == 0
        assert s.call("MODULE_GET_FUNCTION", b"deep", context=2, module=1, function=1)[0] == 0
        assert s.call("MEM_MAP", context=2, **place(1))[0] == 0
        params = struct.pack("<Q", SLOT_BASE)
        assert s.call("LAUNCH", params, context=2, function=1, param_bytes=8, **SHAPE)[0] == 0
        assert seat.charged() >= before + LOCAL_BYTES
        assert s.call("CTX_DESTROY", context=2)[0] == 0
        assert seat.charged() == 0


@row("GRAPH_INSTANTIATE", "GRAPH_UPLOAD", "GRAPH_LAUNCH")
@isolated
def test_executable_graphs() -> None:
    with limited() as (s, seat):
        address = s.map()
        assert s.load()[0] == 0
        s.function(b"add", 1)
        s.push("STREAM_CREATE", stream=1, stream_flags=1)
        for graph in (1, 2):
            s.push("GRAPH_DEFINE", exec=graph, node_count=2)
            add_kernel(s, 0, address, 1, graph)
            node(s, 1, exec_=graph)
            edges(s, (0, 1), exec_=graph)
        before = seat.leave(GRAPH_BYTES - 1)
        refused(s, seat, "GRAPH_INSTANTIATE", exec=1)
        seat.leave(GRAPH_BYTES)
        assert s.call("GRAPH_INSTANTIATE", exec=1)[0] == 0
        assert seat.charged() == before + GRAPH_BYTES == before + seat.kinds()["graph"]
        refused(s, seat, "GRAPH_INSTANTIATE", exec=2)
        # Nothing is left to be taken by uploads and launches, which could not be undone.
        free = driver_free(s, seat)
        s.push("GRAPH_UPLOAD", stream=1, exec=1)
        s.push("GRAPH_LAUNCH", stream=1, exec=1)
        s.sync(1)
        assert (s.late_error()[0], driver_free(s, seat), seat.charged()) == (0, free, before + GRAPH_BYTES)
        s.push("GRAPH_DESTROY", exec=1)
        assert s.call("NOP")[0] == 0 and seat.charged() == before


@isolated
def test_local_memory_of_a_graphs_kernels() -> None:
    with limited() as (s, seat):
        address, params = with_deep_kernel(s)
        seat.leave(LOCAL_BYTES - 1)
        s.push("GRAPH_DEFINE", exec=1, node_count=1)
        node(s, 0, "LAUNCH", params, function=1, param_bytes=8, **SHAPE)
        refused(s, seat, "GRAPH_INSTANTIATE", exec=1)
        before = seat.leave(LOCAL_BYTES + GRAPH_BYTES)
        s.push("GRAPH_DEFINE", exec=2, node_count=1)
        node(s, 0, "LAUNCH", params, 2, function=1, param_bytes=8, **SHAPE)
        assert s.call("GRAPH_INSTANTIATE", exec=2)[0] == 0
        assert seat.charged() == before + LOCAL_BYTES + GRAPH_BYTES
        assert address == SLOT_BASE


def test_every_operation_that_may_take_memory_has_a_row() -> None:
    assert ROWS.keys() == {op.name for op in OPS if "charges" in op.flags}


# ---------------------------------------------------------------------------------------------- what programs see
@isolated
def test_what_is_free_can_be_allocated() -> None:
    with limited(100 * MIB + 12345, over=64 * MIB) as (s, seat):
        assert s.load()[0] == 0
        s.function(b"add", 1)
        free, total = memory(s)
        assert total == 100 * MIB + 12345
        assert free == (total - seat.charged()) // CHUNK * CHUNK < total
        device = s.call("DEVICE_MEMORY", context=0, device=0)
        assert device == (0, struct.pack("<QQ", total, free))
        s.map(free // CHUNK)
        assert memory(s) == (0, total)
        refused(s, seat, "MEM_MAP", **place(1, 100))
        seat.resize(40 * MIB)  # below what is used
        assert memory(s) == (0, 40 * MIB)
        assert s.call("DEVICE_MEMORY", context=0, device=7)[0] == 101


@isolated
def test_a_device_that_has_less_than_the_quota_says_so() -> None:
    with limited(1 << 40) as (s, seat):
        free, total = memory(s)
        assert (free, total) == (driver_free(s, seat) // CHUNK * CHUNK, 1 << 40)
        s.map(free // CHUNK)


@isolated
def test_without_a_quota_all_is_as_the_driver_says_and_still_counted() -> None:
    with limited(NO_LIMIT) as (s, seat):
        assert memory(s) == (256 * MIB, 256 * MIB)
        assert s.call("DEVICE_MEMORY", context=0, device=0) == (0, bytes(16))
        s.map(10)
        assert seat.charged() == 10 * CHUNK
    with Session() as s:
        s.open()
        assert s.call("DEVICE_MEMORY", context=0, device=0) == (0, bytes(16))
        assert memory(s) == (256 * MIB, 256 * MIB)


# ---------------------------------------------------------------------------------------------- changes of the grant
@isolated
def test_a_shrink_below_what_is_used_lasts_until_it_has_fallen() -> None:
    with limited(over=8 * CHUNK) as (s, seat):
        s.map(10)
        seat.resize(4 * CHUNK)
        refused(s, seat, "MEM_MAP", **place(1, 20))
        refused(s, seat, "ARRAY_CREATE", array=1, **WIDE)
        assert seat.charged() == 10 * CHUNK  # nothing that was given is taken away
        free_range(s, 10)
        assert s.call("MEM_MAP", **place(3, 20))[0] == 0
        refused(s, seat, "MEM_MAP", **place(2, 30))
        seat.resize(20 * CHUNK)
        assert s.call("MEM_MAP", **place(17, 30))[0] == 0


@isolated
def test_a_group_lends_what_its_other_worker_does_not_use() -> None:
    seat = MemorySeat(20 * CHUNK, granted=2 * CHUNK)
    seat.set(OTHERS, 18 * CHUNK)
    with Session(seat=seat.descriptors()) as s:
        s.open()
        for name, values in (
            ("MEM_MAP", place(3)),
            ("VMM_CREATE", {"memory": 1, "size_bytes": 3 * CHUNK}),
            ("ARRAY_CREATE", {"array": 1, **WIDE}),
        ):
            wanted: list[int] = []

            def lend(bytes_: int, wanted: list[int] = wanted) -> int:
                wanted.append(bytes_)
                return bytes_

            charged = seat.charged()
            seat.grant(charged)
            server = seat.answer_when_asked(lend)
            assert s.call(name, **values)[0] == 0
            server.join(10)
            assert wanted == [seat.charged()] and seat.charged() > charged
        # Refused by its answer: the other worker has all that it was granted.
        server = seat.answer_when_asked(lambda _: seat.charged())
        refused(s, seat, "MEM_MAP", **place(1, 30))
        server.join(10)
        asked = seat.get(ASKED)
        # What cannot be tried again waits for its answer in place.
        server = seat.answer_when_asked(lambda bytes_: bytes_)
        assert s.load()[0] == 0
        server.join(10)
        assert seat.get(ASKED) == asked + 1
        # Beyond the whole quota nobody is asked.
        refused(s, seat, "MEM_MAP", **place(20, 30))
        assert seat.get(ASKED) == asked + 1
    seat.close()


@isolated
def test_a_server_that_does_not_answer_means_out_of_memory() -> None:
    seat = MemorySeat(20 * CHUNK, granted=2 * CHUNK)
    seat.set(OTHERS, 18 * CHUNK)
    with Session(seat=seat.descriptors()) as s:
        s.open()
        assert s.call("MEM_MAP", **place(3))[0] == OUT_OF_MEMORY
        assert seat.get(ASKED) == 1 and seat.get(ASKED_BYTES) == 3 * CHUNK and seat.charged() == 0
        assert s.call("PING", value=1)[0] == 0
        assert os.eventfd_read(seat.doorbell) == 1
        seat.set(ANSWERED, 1)
        assert s.call("MEM_MAP", **place(2))[0] == 0
        # Others wait behind the one that asks, and each comes to its own question.
        first = s.ask("MEM_MAP", slot=1, **place(3, 10))
        second = s.ask("MEM_MAP", slot=2, **place(4, 20))
        seat.answer_when_asked(lambda bytes_: bytes_).join(10)
        assert s.answer(first, slot=1)[0] == 0
        seat.answer_when_asked(lambda bytes_: bytes_).join(10)
        assert s.answer(second, slot=2)[0] == 0
        assert seat.charged() == 9 * CHUNK
    seat.close()


@isolated
def test_another_session_reads_zeros_where_memory_was_freed() -> None:
    for _ in range(2):
        with limited(8 * CHUNK) as (s, _seat):
            s.map(8)
            for at in range(8):
                s.push("COPY_D2H", dst_off=MIB, src=SLOT_BASE + at * CHUNK, size_bytes=CHUNK)
                s.sync()
                assert not any(s.read_host(MIB, CHUNK))
                s.push("MEMSET", device_dst=SLOT_BASE + at * CHUNK, width=CHUNK, height=1, value=7, element_bytes=1)
            s.sync()


if __name__ == "__main__":
    main(globals())
