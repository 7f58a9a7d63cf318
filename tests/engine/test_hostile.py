"""Operations that no correct client sends: the session ends with a reason, or the operation is refused, and no more."""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from session import BY_NAME, SLOT_BASE, WORD_SESSION_ERROR, Session, lib, pack


def ends(raw: bytes, express: bool = False) -> str:
    """The reason with which a session ends after this operation."""
    with Session(null=True) as s:
        s.push_raw(raw, express)
        assert s.ended() == lib.ORION_END_BROKEN
        assert s.word(WORD_SESSION_ERROR) == 46
        return s.reason()


@isolated
def test_malformed_headers_end_the_session() -> None:
    nop = pack("NOP", {})
    assert "unknown operation" in ends(struct.pack("<H", 0) + nop[2:])
    assert "unknown operation" in ends(struct.pack("<H", 72) + nop[2:])
    assert "unknown operation" in ends(struct.pack("<H", 9) + nop[2:])
    assert "wrong size" in ends(pack("MARK", {}, code=BY_NAME["LAUNCH"].code))
    assert "wrong size" in ends(pack("MARK", {}, b"tail that a mark has not"))
    assert "context" in ends(pack("NOP", {}, context=64))
    assert "thread" in ends(pack("NOP", {}, thread=1024))
    assert "stream" in ends(pack("NOP", {}, stream=32768))
    assert "reply slot" in ends(pack("NOP", {}, reply_slot=64))
    assert "express" in ends(nop, express=True)


@isolated
def test_a_corrupt_ring_ends_the_session() -> None:
    for size in (0, 31, 48 * 1024 + 1, 0xFFFFFFFF):
        with Session(null=True) as s:
            s.client.client_corrupt(s.segment, size)
            assert s.ended() == lib.ORION_END_BROKEN


@isolated
def test_wild_indices_and_sizes_are_refused() -> None:
    wild = [0, 1, 0xFFFFFFFF, 1 << 31, 65536, 1 << 20]
    generator = random.Random(5)
    with Session(null=True) as s:
        s.open()
        s.map()
        s.push("STREAM_CREATE", stream=1)
        for _ in range(30000):
            name = generator.choice([n for n in BY_NAME if n not in ("DETACH", "CTX_DESTROY")])
            op = BY_NAME[name]
            values = {}
            for field, kind in op.fields:
                bits = {"u64": 64, "u32": 32, "i32": 31, "u16": 16}[kind]
                pick = generator.choice([generator.choice(wild), generator.getrandbits(bits), SLOT_BASE, 64])
                values[field] = pick & ((1 << bits) - 1)
            tail = generator.randbytes(generator.choice([0, 8, 64, 300])) if op.tail else b""
            header = {"context": generator.randrange(3), "stream": generator.randrange(3), "reply_slot": 1}
            s.push_raw(pack(name, values, tail, **header), "express" in op.flags)
        assert s.call("PING", value=1)[0] == 0
        assert s.word(WORD_SESSION_ERROR) == 0


@isolated
def test_softgpu_survives_wild_copies() -> None:
    generator = random.Random(6)
    with Session() as s:
        s.open()
        a = s.map()
        places = [0, 1, a, a + (2 << 20) - 8, a - 8, 0x100000000000, (1 << 47), (1 << 64) - 8, 64 << 20]
        names = ["COPY_H2D", "COPY_D2H", "COPY_D2D", "MEMSET", "COPY_3D", "STREAM_WRITE_VALUE", "COPY_H2D_INLINE"]
        for _ in range(5000):
            name = generator.choice(names)
            values = {}
            for field, kind in BY_NAME[name].fields:
                wide = kind == "u64"
                values[field] = generator.choice(places) if wide else generator.choice([0, 1, 2, 4, 8])
            s.push(name, b"12345678" if name == "COPY_H2D_INLINE" else b"", **values)
        s.sync()
        assert s.word(64 + 1) == 0  # no fault: what was wrong never reached the driver


@isolated
def test_sizes_of_3d_copies_do_not_wrap() -> None:
    sides = {"src_kind": 1, "src_address": 4096, "dst_kind": 2, "dst_pitch": 64, "dst_height": 1}
    huge = 1 << 48
    with Session() as s:
        s.open()
        sides["dst_address"] = s.map()
        code = BY_NAME["COPY_3D"].code
        cases: list[dict[str, int]] = [
            {"src_z": 1 << 32, "src_height": huge, "src_pitch": huge},  # the offset is 2^128
            {"src_z": 1, "src_height": huge, "src_pitch": huge},
            {"depth": 4, "src_height": 1 << 47, "src_pitch": huge},
            {"depth": (1 << 32) + 1, "src_height": huge, "src_pitch": huge, "dst_height": huge, "dst_pitch": huge},
        ]
        for count, wild in enumerate(cases, 1):
            s.push("COPY_3D", **({"width_bytes": 8, "height": 1, "depth": 1} | sides | wild))
            s.sync()
            assert s.late_error() == (count, code, 1), wild


if __name__ == "__main__":
    main(globals())
