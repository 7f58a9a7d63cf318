"""Codec and ring: every operation at every size, wrap-around, a full ring, many producers, hostile bytes."""

from __future__ import annotations

import struct
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.wire import ring_module
from wire.gen_ops import struct_name
from wire.spec.ops import OPS, Op

HEADER_BYTES = 32
MAX_BYTES = 48 * 1024
LIMITS = {
    "u16": st.integers(0, 2**16 - 1),
    "u32": st.integers(0, 2**32 - 1),
    "u64": st.integers(0, 2**64 - 1),
    "i32": st.integers(-(2**31), 2**31 - 1),
    "f32": st.floats(width=32, allow_nan=False),
}
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return ring_module.build(tmp_path_factory.mktemp("ring"))


class Ring:
    """A ring of its own; `pop` gives the bytes, or the state when there is no operation."""

    def __init__(self, module: ModuleType, slots: int = 1024, start: int = 0) -> None:
        self.ffi, self.lib = module.ffi, module.lib
        self.ring = self.ffi.gc(self.lib.ring_new(slots, start), self.lib.ring_free)
        self.out = self.ffi.new("uint64_t[]", MAX_BYTES // 8)

    def push(self, data: bytes, head_bytes: int | None = None) -> bool:
        """`data` begins with a header whose length field is set here."""
        data = data[:4] + struct.pack("<I", len(data)) + data[8:]
        head_bytes = len(data) if head_bytes is None else head_bytes
        head = self.ffi.new("uint64_t[]", -(-len(data) // 8))
        self.ffi.memmove(head, data, head_bytes)
        tail = self.ffi.from_buffer(data[head_bytes:]) if head_bytes < len(data) else self.ffi.NULL
        return bool(self.lib.ring_push(self.ring, head, head_bytes, tail))

    def pop(self) -> bytes | int:
        state = self.lib.ring_pop(self.ring, self.out)
        if state != self.lib.ORION_RING_OP:
            return int(state)
        (length,) = struct.unpack_from("<I", self.ffi.buffer(self.out, 8), 4)
        return bytes(self.ffi.buffer(self.out, length))


def entry(size: int, seed: int = 0) -> bytes:
    body = bytes((i * 131 + seed) & 0xFF for i in range(size))
    return body[:4] + struct.pack("<I", size) + body[8:]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@relaxed
@given(data=st.data())
def test_every_operation_round_trips(module: ModuleType, op: Op, data: Any) -> None:
    ffi, ring = module.ffi, Ring(module)
    values = {name: data.draw(LIMITS[kind], label=name) for name, kind in op.fields}
    tail = data.draw(st.binary(max_size=6000)) if op.tail else b""
    message = ffi.new(f"{struct_name(op)} *")
    message.op.code, message.op.context, message.op.bulk_seq = op.code, 7, 2**63 + 5
    for name, value in values.items():
        setattr(message, name, value)
    fixed = module.lib.op_fixed_bytes(op.code)
    assert fixed == ffi.sizeof(message[0])
    assert ring.push(bytes(ffi.buffer(message)) + tail, head_bytes=fixed)
    got = ring.pop()
    assert isinstance(got, bytes) and got[fixed:] == tail
    back = ffi.cast(f"{struct_name(op)} *", ring.out)
    assert (back.op.code, back.op.context, back.op.bulk_seq) == (op.code, 7, 2**63 + 5)
    assert {name: getattr(back, name) for name in values} == values
    assert ring.pop() == module.lib.ORION_RING_EMPTY


@pytest.mark.parametrize("size", [32, 33, 119, 120, 121, 239, 240, 241, 360, 4095, 32796, MAX_BYTES - 1, MAX_BYTES])
@pytest.mark.parametrize("start", [0, 1000, 2**64 - 1024 * 3])
def test_sizes_span_slots_and_wrap(module: ModuleType, size: int, start: int) -> None:
    ring = Ring(module, start=start)
    for turn in range(1024 * 120 // size * 2 + 2):
        data = entry(size, turn)
        assert ring.push(data, head_bytes=32)
        assert ring.pop() == data


@relaxed
@given(sizes=st.lists(st.integers(32, 3000), min_size=1, max_size=60), split=st.integers(32, 3000))
def test_order_is_kept_and_a_full_ring_refuses(module: ModuleType, sizes: list[int], split: int) -> None:
    ring, queued, used = Ring(module, slots=64), [], 0
    for turn, size in enumerate(sizes):
        data, slots = entry(size, turn), -(-size // 120)
        pushed = ring.push(data, head_bytes=min(split, size))
        assert pushed == (used + slots <= 64)
        assert module.lib.ring_used(ring.ring) == used + slots * pushed  # a refusal changes nothing
        if pushed:
            queued.append(data)
            used += slots
    assert [ring.pop() for _ in queued] == queued
    assert ring.pop() == module.lib.ORION_RING_EMPTY


def test_the_last_slot_is_usable_and_space_comes_back(module: ModuleType) -> None:
    ring = Ring(module, slots=8)
    assert all(ring.push(entry(120, i)) for i in range(8))
    assert not ring.push(entry(32))
    assert ring.pop() == entry(120, 0)
    assert not ring.push(entry(121))
    assert ring.push(entry(120, 8))


@pytest.mark.parametrize("length", [0, 1, 31, MAX_BYTES + 1, 2**31, 10_000_000_000 & 0xFFFFFFFF, 2**32 - 1])
def test_a_length_out_of_bounds_breaks_the_session(module: ModuleType, length: int) -> None:
    ring = Ring(module)
    ring.push(entry(200))
    module.lib.ring_poke(ring.ring, 0, 4, struct.pack("<I", length), 4)
    before = module.lib.ring_position(ring.ring)
    assert ring.pop() == module.lib.ORION_RING_BROKEN
    assert module.lib.ring_position(ring.ring) == before


def test_a_longer_length_than_written_breaks_when_the_next_slot_is_not_committed(module: ModuleType) -> None:
    ring = Ring(module)
    ring.push(entry(100))
    module.lib.ring_poke(ring.ring, 0, 4, struct.pack("<I", 1000), 4)
    assert ring.pop() == module.lib.ORION_RING_BROKEN


def test_bytes_changed_after_the_copy_do_not_matter(module: ModuleType) -> None:
    ring, data = Ring(module), entry(500, 3)
    ring.push(data)
    assert ring.pop() == data
    for slot in range(5):
        module.lib.ring_poke(ring.ring, slot, 0, b"\xff" * 120, 120)
    assert bytes(module.ffi.buffer(ring.out, 500)) == data


@pytest.mark.parametrize("sequence", [0, 2, 2**64 - 1])
def test_a_forged_sequence_is_no_operation(module: ModuleType, sequence: int) -> None:
    ring = Ring(module)
    ring.push(entry(100))
    module.lib.ring_set_sequence(ring.ring, 0, sequence)
    assert not module.lib.ring_ready(ring.ring)
    assert ring.pop() == module.lib.ORION_RING_EMPTY


def test_a_later_slot_that_is_not_committed_breaks(module: ModuleType) -> None:
    ring = Ring(module)
    ring.push(entry(300))
    module.lib.ring_set_sequence(ring.ring, 2, 0)
    assert ring.pop() == module.lib.ORION_RING_BROKEN


def test_wake_is_asked_for_only_by_a_parked_consumer(module: ModuleType) -> None:
    ring = Ring(module)
    assert not module.lib.ring_must_wake(ring.ring, 0)
    assert module.lib.ring_must_wake(ring.ring, 1)


@pytest.mark.parametrize(("slots", "producers"), [(16, 1), (16, 4), (64, 8), (4096, 16)])
def test_many_producers_lose_and_tear_nothing(module: ModuleType, slots: int, producers: int) -> None:
    assert module.lib.ring_stress(slots, producers, 4000) == 0
