"""Virtual memory operations against the engine: what no correct client sends is refused and leaves the map true."""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from session import BY_NAME, CHUNK, SLOT_BASE, SLOT_BYTES, WORD_FREES_DONE, WORD_SESSION_ERROR, Session

ACCESS = struct.pack("<IiII", 1, 0, 3, 0)  # device 0, read and write


def create(s: Session, memory: int, chunks: int = 1) -> int:
    return s.call("VMM_CREATE", memory=memory, size_bytes=chunks * CHUNK)[0]


def refused(s: Session, name: str, tail: bytes = b"", /, **values: int) -> int:
    """The code of an operation without a reply of its own, asked to answer."""
    return s.call(name, tail, **values)[0]


@isolated
def test_memory_is_mapped_used_and_given_back() -> None:
    with Session() as s:
        s.open()
        free = s.call("MEM_INFO")[1]
        at = SLOT_BASE + 100 * CHUNK
        assert create(s, 7, 2) == 0
        s.push("VMM_MAP", device_address=at, size_bytes=2 * CHUNK, memory=7)
        s.push("VMM_SET_ACCESS", ACCESS, device_address=at, size_bytes=2 * CHUNK, count=1)
        s.push("COPY_H2D_INLINE", b"abcdefgh", device_dst=at + CHUNK - 4)
        s.push("COPY_D2H", dst_off=0, src=at + CHUNK - 4, size_bytes=8)
        s.sync()
        assert s.read_host(0, 8) == b"abcdefgh"
        assert s.call("MEM_INFO")[1] != free
        s.push("VMM_UNMAP", device_address=at, size_bytes=2 * CHUNK)
        s.push("VMM_RELEASE", memory=7)
        assert s.call("NOP")[0] == 0
        assert s.call("MEM_INFO")[1] == free
        assert s.late_error() == (0, 0, 0)


@isolated
def test_what_no_client_sends_is_refused() -> None:
    with Session() as s:
        s.open()
        plain = s.map(2)
        at = SLOT_BASE + 100 * CHUNK
        assert create(s, 1, 2) == 0
        assert create(s, 1) == 400  # taken
        assert create(s, 0) == 400
        assert create(s, 262144) == 400
        assert s.call("VMM_CREATE", memory=2, device=5, size_bytes=CHUNK)[0] == 101
        assert s.call("VMM_CREATE", memory=2, size_bytes=CHUNK + 1)[0] == 1
        assert s.call("VMM_CREATE", memory=2, size_bytes=(1 << 64) - CHUNK)[0] == 2
        whole = {"device_address": at, "size_bytes": 2 * CHUNK}
        assert refused(s, "VMM_MAP", **whole, memory=9) == 400
        assert refused(s, "VMM_MAP", **whole, memory=0xFFFFFFFF) == 400
        for address, size, offset in [
            (at + 1, 2 * CHUNK, 0),
            (at, CHUNK + 1, 0),
            (at, 0, 0),
            (at, 4 * CHUNK, 0),
            (at, 2 * CHUNK, CHUNK),
            (at, 2 * CHUNK, (1 << 64) - CHUNK),
            (SLOT_BASE - CHUNK, 2 * CHUNK, 0),
            (SLOT_BASE + SLOT_BYTES - CHUNK, 2 * CHUNK, 0),
            (plain, 2 * CHUNK, 0),  # MEM_MAP's
            (1 << 40, CHUNK, 0),
        ]:
            code = refused(s, "VMM_MAP", device_address=address, size_bytes=size, offset_bytes=offset, memory=1)
            assert code == 1, (hex(address), size, offset)
        assert refused(s, "VMM_MAP", **whole, memory=1) == 0
        assert refused(s, "VMM_MAP", **whole, memory=1) == 1
        assert refused(s, "VMM_RELEASE", memory=1) == 1  # mapped
        assert refused(s, "VMM_RELEASE", memory=3) == 400
        # The two kinds of memory do not end each other's mappings.
        assert refused(s, "VMM_UNMAP", device_address=plain, size_bytes=2 * CHUNK) == 1
        s.push("MEM_FREE", **whole, unmap=1)
        assert s.wait_word(WORD_FREES_DONE, 1)
        assert s.late_error()[2] == 1
        assert refused(s, "VMM_UNMAP", device_address=at, size_bytes=CHUNK) == 1
        assert refused(s, "VMM_UNMAP", device_address=at + CHUNK, size_bytes=CHUNK) == 1
        assert refused(s, "VMM_UNMAP", device_address=at, size_bytes=3 * CHUNK) == 1
        assert refused(s, "VMM_SET_ACCESS", ACCESS, device_address=plain, size_bytes=2 * CHUNK, count=1) == 1
        assert refused(s, "VMM_SET_ACCESS", ACCESS, **whole, count=2) == 1
        assert refused(s, "VMM_SET_ACCESS", b"", **whole, count=0) == 1
        assert refused(s, "VMM_SET_ACCESS", b"", **whole, count=1 << 28) == 1
        assert refused(s, "VMM_SET_ACCESS", ACCESS * 257, **whole, count=257) == 1
        assert refused(s, "VMM_SET_ACCESS", struct.pack("<IiII", 1, 77, 3, 0), **whole, count=1) == 1
        assert refused(s, "VMM_SET_ACCESS", ACCESS, **whole, count=1) == 0
        # A context's end takes its own memory, not this.
        assert s.call("CTX_RESET")[0] == 0
        s.push("COPY_H2D_INLINE", b"still ok", device_dst=at)
        s.sync()
        assert refused(s, "VMM_UNMAP", **whole) == 0
        assert refused(s, "VMM_RELEASE", memory=1) == 0
        assert s.word(WORD_SESSION_ERROR) == 0


@isolated
def test_softgpu_survives_wild_mappings() -> None:
    generator = random.Random(7)
    names = [name for name in BY_NAME if name.startswith("VMM_")] + ["MEM_MAP", "MEM_FREE", "COPY_H2D_INLINE"]
    with Session() as s:
        s.open()
        places = [SLOT_BASE + i * CHUNK for i in range(6)] + [0, 8, SLOT_BASE + 8, SLOT_BASE + SLOT_BYTES - CHUNK]
        frees = 0
        for _ in range(6000):
            name = generator.choice(names)
            values = {}
            for field, _ in BY_NAME[name].fields:
                if field.startswith("device_"):
                    values[field] = generator.choice(places)
                elif field.endswith("_bytes"):
                    values[field] = generator.choice([0, CHUNK, CHUNK, 2 * CHUNK, 3 * CHUNK, 8])
                else:
                    values[field] = generator.choice([0, 0, 1, 1, 2, 3])
            if name in ("VMM_UNMAP", "VMM_SET_ACCESS"):
                s.sync()  # a copy that is still on its way would find nothing there, as natively
            tail = {"VMM_SET_ACCESS": ACCESS, "COPY_H2D_INLINE": b"12345678"}.get(name, b"")
            if "reply" in BY_NAME[name].flags:
                s.call(name, tail, **values)
            else:
                s.push(name, tail, **values)
            if name == "MEM_FREE":  # as would one that is sent before the memory is gone
                frees += 1
                assert s.wait_word(WORD_FREES_DONE, frees)
        s.sync()
        assert s.word(64 + 1) == 0
        assert s.word(WORD_SESSION_ERROR) == 0


if __name__ == "__main__":
    main(globals())
