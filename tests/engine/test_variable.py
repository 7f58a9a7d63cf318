"""Managed variables: arena pages that stand for memory of the driver's, at an address that only the driver can tell."""

from __future__ import annotations

import ctypes
import struct
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from session import HOST_BASE, MIB, Session
from test_tcp import RUNS, Remote, frame, opened

PTX = b""".version 7.0
.target sm_70
.address_size 64
.visible .global .attribute(.managed) .align 4 .u32 values[4] = {11, 22, 33, 44};
.visible .global .align 4 .u32 plain = 5;
.visible .entry add(.param .u32 amount)
{ .reg .u32 %r<4>;
  ld.param.u32 %r1, [amount]; ld.global.u32 %r2, [values]; add.u32 %r3, %r1, %r2; st.global.u32 [values], %r3; ret; }
"""
AT = 100 * MIB
PAGE = 4096


def told(s: Any, name: bytes, module: int = 1) -> tuple[int, int, int]:
    """Address, size and whether it is managed."""
    result, payload = s.call("MODULE_GET_GLOBAL", name, module=module)
    assert result == 0
    address, size, managed = struct.unpack_from("<QQI", payload)
    return address, size, managed


def words(data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // 4}I", data))


@isolated
def test_both_sides_over_shared_memory() -> None:
    with Session() as s:
        s.open()
        assert s.load(PTX)[0] == 0
        assert told(s, b"plain")[2] == 0
        address, size, managed = told(s, b"values")
        assert (size, managed) == (16, 1)
        first = address & ~(PAGE - 1)
        at = AT + address - first
        pages = {"arena_off": AT, "size_bytes": PAGE}
        assert s.call("HOST_VARIABLE", **pages, address=first)[0] == 0
        assert words(s.read_host(at, 16)) == [11, 22, 33, 44]
        s.write_host(at, struct.pack("<I", 100))
        assert words(ctypes.string_at(address, 4)) == [11]
        s.push("HOST_PULL", **pages)
        s.function(b"add", 1)
        s.launch(1, struct.pack("<I", 5))
        s.write_host(at + 4, struct.pack("<I", 200))
        s.push("HOST_PUBLISH", **pages)
        s.sync()
        assert words(s.read_host(at, 16)) == [105, 200, 33, 44]
        assert words(ctypes.string_at(address, 16)) == [105, 22, 33, 44]
        s.push("MEMSET", device_dst=address + 8, width=2, height=1, value=7, element_bytes=4)
        s.push("HOST_PULL", **pages)
        s.push("HOST_PUBLISH", **pages)
        s.sync()
        assert words(s.read_host(at, 16)) == [105, 200, 7, 7]
        assert words(ctypes.string_at(address, 16)) == [105, 200, 7, 7]
        assert s.late_error()[2] == 0
        assert s.call("HOST_VARIABLE_END", **pages)[0] == 0
        assert s.call("HOST_VARIABLE_END", **pages)[0] == 1
        s.push("HOST_PUBLISH", **pages)
        s.sync()
        assert s.late_error()[2] == 1


@isolated
def test_only_pages_of_variables_that_the_driver_has_told() -> None:
    with Session() as s:
        s.open()
        assert s.load(PTX)[0] == 0
        plain = told(s, b"plain")[0] & ~(PAGE - 1)
        place = {"arena_off": AT, "size_bytes": PAGE}
        for address in (0, PAGE, HOST_BASE, plain, (1 << 64) - PAGE):
            assert s.call("HOST_VARIABLE", **place, address=address)[0] == 1
        first = told(s, b"values")[0] & ~(PAGE - 1)
        for offset, size, address in [
            (AT, 0, first),
            (AT, 2 * PAGE, first),
            (AT, PAGE, first - PAGE),
            (AT, PAGE, first + PAGE),
            (AT, PAGE, first + 8),
            (AT + 8, PAGE, first),
            (AT, 16, first),
            (256 * MIB, PAGE, first),
            ((1 << 64) - PAGE, PAGE, first),
        ]:
            assert s.call("HOST_VARIABLE", arena_off=offset, size_bytes=size, address=address)[0] == 1
            s.push("HOST_PULL", arena_off=offset, size_bytes=size)
            assert s.call("HOST_VARIABLE_END", arena_off=offset, size_bytes=size)[0] == 1
        assert s.call("HOST_VARIABLE", **place, address=first)[0] == 0
        assert s.call("HOST_VARIABLE", **place, address=first)[0] == 0  # the same again
        assert s.call("HOST_REGISTER", arena_off=AT + MIB, size_bytes=PAGE)[0] == 0
        assert s.call("PING", value=1)[0] == 0


@isolated
def test_unloading_ends_ranges_that_the_client_forgot() -> None:
    with Session() as s:
        s.open()
        assert s.load(PTX)[0] == 0
        first = told(s, b"values")[0] & ~(PAGE - 1)
        place = {"arena_off": AT, "size_bytes": PAGE}
        assert s.call("HOST_VARIABLE", **place, address=first)[0] == 0
        s.function(b"add", 1)
        s.launch(1, struct.pack("<I", 5))
        s.push("HOST_PUBLISH", **place)
        s.push("MODULE_UNLOAD", module=1)
        s.push("HOST_PULL", **place)
        assert s.call("HOST_VARIABLE_END", **place)[0] == 1
        assert s.call("HOST_VARIABLE", **place, address=first)[0] == 1
        s.push("MEMSET", device_dst=first, width=4, height=1, value=7, element_bytes=1)
        s.sync()
        assert s.late_error()[2] == 1
        assert s.call("PING", value=1)[0] == 0


@isolated
def test_the_content_precedes_the_reply_over_tcp() -> None:
    with Remote() as r:
        opened(r)
        r.send_bulk(MIB, PTX)
        load = {"module": 1, "image_off": MIB, "image_bytes": len(PTX), "bulk_seq": r.bulk_sent}
        assert r.call("MODULE_LOAD", **load)[0] == 0
        address = told(r, b"values")[0]
        first = address & ~(PAGE - 1)
        at = AT + address - first
        pages = {"arena_off": AT, "size_bytes": PAGE}
        assert r.call("HOST_VARIABLE", **pages, address=first)[0] == 0
        # Only bytes that are not zero travel, a run ends where four of them agree.
        content = bytearray(16)
        for offset, data in r.runs.items():
            content[offset - at : offset - at + len(data)] = data
        assert words(bytes(content)) == [11, 22, 33, 44]
        r.runs.clear()
        r.bulk_sent += 1
        run = struct.pack("<QII", at, 4, 0) + struct.pack("<I", 100) + bytes(4)
        r.bulk.send(frame(RUNS, run, r.bulk_sent))
        r.push("MEMSET", device_dst=address + 8, width=1, height=1, value=9, element_bytes=4, bulk_seq=r.bulk_sent)
        r.push("HOST_PUBLISH", **pages)
        r.push("HOST_PULL", **pages)  # not over a network
        r.sync(0, 1)
        assert words(ctypes.string_at(address, 16)) == [100, 22, 9, 44]
        assert r.runs == {at + 8: b"\x09"}
        assert r.call("HOST_VARIABLE_END", **pages)[0] == 0
        assert r.call("HOST_PUBLISH", **pages)[0] == 1


if __name__ == "__main__":
    main(globals())
