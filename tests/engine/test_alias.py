"""Registered memory of the program: arena pages that the worker has at the program's address too."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from session import ARENA_BYTES, HOST_BASE, MIB, SLOT_BASE, SLOT_BYTES, Session, lib
from test_tcp import RUNS, Remote, frame, opened

ADDRESS = 0x300000000000  # nothing of this process lies there
AT = 100 * MIB


def mapped(address: int) -> bool:
    """Whether something accessible lies there."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [[int(end, 16) for end in line[0].split("-")] for line in lines if not line[1].startswith("---")]
    return any(first <= address < end for first, end in ranges)


def read(address: int, size: int) -> bytes:
    return ctypes.string_at(address, size)


@isolated
def test_a_kernel_finds_the_pages_at_the_programs_address() -> None:
    with Session() as s:
        s.open()
        place = {"arena_off": AT, "size_bytes": 2 * MIB}
        assert s.call("HOST_REGISTER_AT", **place, address=ADDRESS)[0] == 0
        s.write_host(AT + 4096, struct.pack("<I", 40))
        assert read(ADDRESS + 4096, 4) == struct.pack("<I", 40)
        s.load()
        s.function(b"add", 1)
        s.launch(1, struct.pack("<QI", ADDRESS + 4096, 2))
        s.sync()
        assert s.read_host(AT + 4096, 4) == struct.pack("<I", 42)
        device = s.map()
        s.push("COPY_H2D", device_dst=device, src_off=AT + 4096, size_bytes=4)
        s.push("COPY_D2H", src=device, dst_off=AT, size_bytes=4)
        s.sync()
        assert read(ADDRESS, 4) == struct.pack("<I", 42)
        # A device pointer like the arena's own.
        s.push("MEMSET", device_dst=ADDRESS + 8192, width=4, height=1, value=7, element_bytes=1)
        s.push("STREAM_WRITE_VALUE", device_address=ADDRESS + 8196, value=0x41414141, width_bytes=4)
        s.push("COPY_D2D", device_dst=ADDRESS + 8200, src=ADDRESS + 8192, size_bytes=8)
        s.sync()
        assert s.read_host(AT + 8192, 16) == 2 * (b"\x07" * 4 + b"AAAA")
        s.push("MEMSET", device_dst=ADDRESS + 2 * MIB - 2, width=4, height=1, value=7, element_bytes=1)
        s.sync()
        assert s.late_error()[2] == 1
        assert s.call("HOST_UNREGISTER", **place)[0] == 0
        assert not mapped(ADDRESS)
        assert s.call("HOST_UNREGISTER", **place)[0] == 713
        s.push("MEMSET", device_dst=ADDRESS, width=4, height=1, value=7, element_bytes=1)
        s.sync()
        assert s.late_error()[0] == 2
        # Both are free again, also for the other kind of registration.
        assert s.call("HOST_REGISTER_AT", **place, address=ADDRESS)[0] == 0
        assert s.call("HOST_UNREGISTER", **place)[0] == 0
        assert s.call("HOST_REGISTER", **place)[0] == 0
    assert not mapped(ADDRESS)


@isolated
def test_what_the_session_leaves_registered_is_unmapped() -> None:
    with Session() as s:
        s.open()
        assert s.call("HOST_REGISTER_AT", arena_off=AT, size_bytes=MIB, address=ADDRESS)[0] == 0
        assert mapped(ADDRESS)
    assert not mapped(ADDRESS)


@isolated
def test_addresses_that_are_not_free_are_refused() -> None:
    with mmap.mmap(-1, MIB) as taken, Session() as s:
        s.open()
        own = ctypes.addressof(ctypes.c_char.from_buffer(taken))
        taken[:] = b"k" * MIB
        assert s.call("HOST_REGISTER_AT", arena_off=AT, size_bytes=4096, address=own + 4096)[0] == 208
        assert s.call("HOST_REGISTER_AT", arena_off=AT, size_bytes=2 * MIB, address=own - MIB)[0] == 208
        assert bytes(taken) == b"k" * MIB
        for address in (
            0,
            4096,
            ADDRESS + 1,
            ADDRESS + 8,
            HOST_BASE,
            HOST_BASE + AT,
            HOST_BASE - 4096,
            HOST_BASE + ARENA_BYTES - 4096,
            SLOT_BASE,
            SLOT_BASE + SLOT_BYTES - 4096,
            (1 << 47) - 4096,
            1 << 47,
            1 << 63,
            (1 << 64) - 4096,
        ):
            wrong = {"arena_off": AT, "size_bytes": 8192, "address": address}
            assert s.call("HOST_REGISTER_AT", **wrong)[0] == 1, hex(address)
        for offset, size in (
            (AT, 0),
            (AT, 4095),
            (AT + 1, 4096),
            (ARENA_BYTES, 4096),
            (ARENA_BYTES - 4096, 8192),
            (1 << 63, 1 << 63),
            (AT, (1 << 64) - 4096),
        ):
            assert s.call("HOST_REGISTER_AT", arena_off=offset, size_bytes=size, address=ADDRESS)[0] == 1
        assert s.call("HOST_REGISTER_AT", arena_off=0, size_bytes=4096, address=ADDRESS)[0] == 712  # staging
        assert not mapped(ADDRESS)
        assert s.call("HOST_REGISTER_AT", arena_off=AT, size_bytes=8192, address=ADDRESS)[0] == 0
        other = {"arena_off": AT + MIB, "size_bytes": 8192}
        assert s.call("HOST_REGISTER_AT", **other, address=ADDRESS + 4096)[0] == 208
        assert s.call("HOST_REGISTER_AT", arena_off=AT + 4096, size_bytes=8192, address=ADDRESS + MIB)[0] == 712
        assert not mapped(ADDRESS + MIB)
        assert s.call("HOST_REGISTER_AT", context=9, arena_off=AT + MIB, size_bytes=4096, address=ADDRESS)[0] == 201


@isolated
def test_addresses_near_the_top_are_kept_free_for_programs() -> None:
    # A worker has one thread at that time. The one that watches this test's time limit maps memory when it begins.
    faulthandler.cancel_dump_traceback_later()
    lib.orion_engine_reserve_addresses()
    with Session() as s:
        s.open()
        with mmap.mmap(-1, 16 * MIB) as later:
            low = ctypes.addressof(ctypes.c_char.from_buffer(later))
            assert low < 0x7EB000000000  # nothing that this process maps from now on lies above
        address = 0x7EC000000000
        place = {"arena_off": AT, "size_bytes": 2 * MIB}
        for _ in range(2):
            assert s.call("HOST_REGISTER_AT", **place, address=address)[0] == 0
            s.write_host(AT, b"here")
            assert read(address, 4) == b"here"
            inside = {"arena_off": AT + 4 * MIB, "size_bytes": 8192, "address": address + 2 * MIB - 4096}
            assert s.call("HOST_REGISTER_AT", **inside)[0] == 208
            assert read(address + 2 * MIB - 4096, 4096) == bytes(4096)
            assert s.call("HOST_UNREGISTER", **place)[0] == 0
            assert not mapped(address)


@isolated
def test_registrations_are_bounded() -> None:
    with Session(null=True) as s:
        s.open()
        results = []
        for i in range(8193):
            place = {"arena_off": AT + i * 4096, "size_bytes": 4096, "address": ADDRESS + i * 8192}
            results.append(s.call("HOST_REGISTER_AT", **place)[0])
        assert set(results[:8192]) == {0} and results[8192] == 2
        assert s.call("HOST_UNREGISTER", arena_off=AT, size_bytes=4096)[0] == 0
        last = {"arena_off": AT + 8192 * 4096, "size_bytes": 4096}
        assert s.call("HOST_REGISTER_AT", **last, address=ADDRESS + 8192 * 8192)[0] == 0


@isolated
def test_over_tcp_both_addresses_are_one_memory_and_clean_afterwards() -> None:
    with Remote() as r:
        opened(r)
        place = {"arena_off": AT, "size_bytes": 8192}
        assert r.call("HOST_REGISTER_AT", **place, address=ADDRESS)[0] == 0
        assert r.call("HOST_COHERENT", **place)[0] == 0
        run = struct.pack("<QII", AT + 8, 3, 0) + b"abc" + bytes(5)
        r.bulk_sent += 1
        r.bulk.send(frame(RUNS, run, r.bulk_sent))
        store = {"device_address": HOST_BASE + AT + 16, "value": 0x5A5A5A5A, "width_bytes": 4}
        r.push("STREAM_WRITE_VALUE", bulk_seq=r.bulk_sent, **store)
        r.push("HOST_PUBLISH", **place)
        r.sync(0, 1)
        assert r.runs == {AT + 16: b"ZZZZ"}
        assert read(ADDRESS + 8, 12) == b"abc" + bytes(5) + b"ZZZZ"
        r.push("MEMSET", device_dst=ADDRESS + 100, width=4, height=1, value=7, element_bytes=1)
        r.sync(0, 2)
        assert r.arena == {AT + 100: b"\x07" * 4}  # what it fills comes back like a fill of the arena
        assert r.call("HOST_UNREGISTER", **place)[0] == 0
        assert not mapped(ADDRESS)
        assert read(HOST_BASE + AT, 8192) == bytes(8192)
        assert r.call("HOST_REGISTER", **place)[0] == 0
        r.send_bulk(AT, b"x" * 16)
        assert r.call("HOST_UNREGISTER", **place)[0] == 0
        assert read(HOST_BASE + AT, 16) == bytes(16)


if __name__ == "__main__":
    main(globals())
