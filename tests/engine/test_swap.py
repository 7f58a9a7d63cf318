"""Memory that leaves for the host and comes back: the test is orion-server, on a real seat."""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from seat import NO_LIMIT, Seat
from session import CHUNK, HOST_BASE, Session

FLAG = 32 << 20


def used(s: Session) -> int:
    """Bytes of the device that the driver has given."""
    result, payload = s.call("MEM_INFO")
    assert result == 0
    free, total = struct.unpack("<QQ", payload[:16])
    return int(total - free)


def wish(seat: Seat, value: int, device: int = 0) -> None:
    seat[device, "residency"] = value
    seat.wake()


def fill(s: Session, address: int, value: int, size: int = CHUNK) -> None:
    s.push("MEMSET", device_dst=address, width=size, height=1, element_bytes=1, value=value)


def read(s: Session, address: int, size: int) -> bytes:
    s.push("COPY_D2H", src=address, dst_off=0, size_bytes=size)
    s.sync()
    return s.read_host(0, size)


def seat_with_room(backing_bytes: int = NO_LIMIT) -> Seat:
    seat = Seat()
    seat[0, "backing_granted_bytes"] = backing_bytes
    return seat


@isolated
def test_memory_leaves_the_device_and_comes_back_as_it_was() -> None:
    seat = seat_with_room()
    with Session(seat=seat.fds) as s:
        s.open()
        before = used(s)
        addresses = [s.map(chunks, at=at) for chunks, at in ((1, 0), (3, 8), (16, 32))]
        for i, address in enumerate(addresses):
            fill(s, address, 17 + i)
        s.sync()
        assert used(s) == before + 20 * CHUNK
        wish(seat, 1)
        seat.until(0, "residency_done", 1)
        assert used(s) == before
        assert seat[0, "out_bytes"] == seat[0, "backing_bytes"] == 20 * CHUNK
        wish(seat, 2)
        seat.until(0, "residency_done", 2)
        assert used(s) == before + 20 * CHUNK and seat[0, "out_bytes"] == 0
        assert [read(s, a, 16) for a in addresses] == [bytes([17 + i]) * 16 for i in range(3)]
        assert seat[0, "moved_out_bytes"] == seat[0, "moved_in_bytes"] == 20 * CHUNK


@isolated
def test_work_waits_for_its_memory_and_says_so() -> None:
    seat = seat_with_room()
    with Session(seat=seat.fds) as s:
        s.open()
        address = s.map()
        assert s.load()[0] == 0
        s.function(b"add", 1)
        fill(s, address, 0)
        s.sync()
        wish(seat, 1)
        seat.until(0, "residency_done", 1)
        s.launch(1, struct.pack("<QI", address, 5))
        word, value = s.mark()
        seat.until(0, "wants_residency", 1)
        assert s.call("PING", value=7)[0] == 0  # questions are answered meanwhile
        assert not s.wait_word(word, value, timeout_ms=50)
        wish(seat, 2)
        assert s.wait_word(word, value)
        assert seat[0, "wants_residency"] == 0
        assert struct.unpack("<I", read(s, address, 4)) == (5,)


@isolated
def test_what_runs_ends_before_its_memory_goes() -> None:
    seat = seat_with_room()
    with Session(seat=seat.fds) as s:
        s.open()
        address = s.map()
        assert s.load()[0] == 0
        s.function(b"add", 1)
        s.function(b"hold", 2)
        s.push("STREAM_CREATE", stream=1, stream_flags=1)
        fill(s, address, 0)
        s.sync()
        s.write_host(FLAG, struct.pack("<I", 0))
        s.launch(2, struct.pack("<Q", HOST_BASE + FLAG), stream=1)
        s.launch(1, struct.pack("<QI", address, 3), stream=1)
        assert s.call("PING", value=1)[0] == 0
        wish(seat, 1)
        s.launch(1, struct.pack("<QI", address, 4), stream=1)  # before or after it: the program cannot tell
        assert s.call("PING", value=2)[0] == 0
        assert seat[0, "residency_done"] == 0
        s.write_host(FLAG, struct.pack("<I", 1))
        seat.until(0, "residency_done", 1)
        wish(seat, 2)
        s.push("COPY_D2H", stream=1, src=address, dst_off=0, size_bytes=4)
        s.sync(1)
        assert struct.unpack("<I", s.read_host(0, 4)) == (7,)


@isolated
def test_twenty_cycles_under_load_change_nothing() -> None:
    seat = seat_with_room()
    dice = random.Random(5)
    with Session(seat=seat.fds) as s:
        s.open()
        assert s.load()[0] == 0
        s.function(b"add", 1)
        addresses = [s.map(1, at=at) for at in range(8)]
        counts = [0] * 8
        for address in addresses:
            fill(s, address, 0)
        residency = 0
        for _ in range(20):
            for _ in range(2):
                residency += 1
                wish(seat, residency)
                for _ in range(50):
                    which, amount = dice.randrange(8), dice.randrange(1000)
                    s.launch(1, struct.pack("<QI", addresses[which] + 4 * which, amount))
                    counts[which] += amount
                seat.until(0, "residency_done", residency)
        s.sync()
        found = [struct.unpack("<I", read(s, a + 4 * i, 4))[0] for i, a in enumerate(addresses)]
        assert found == counts
        assert seat[0, "moved_out_bytes"] >= 20 * 8 * CHUNK


@isolated
def test_memory_that_is_out_can_be_freed_and_its_addresses_used_again() -> None:
    seat = seat_with_room()
    with Session(seat=seat.fds) as s:
        s.open()
        before = used(s)
        first, second = s.map(1, at=0), s.map(1, at=1)
        fill(s, first, 1)
        fill(s, second, 2)
        s.sync()
        wish(seat, 1)
        seat.until(0, "residency_done", 1)
        s.push("MEM_FREE", device_address=first, size_bytes=CHUNK, unmap=1)
        assert s.wait_word(2, 1)  # ORION_WORD_FREES_DONE
        assert seat[0, "out_bytes"] == seat[0, "backing_bytes"] == CHUNK
        question = s.ask("MEM_MAP", device_address=first, size_bytes=CHUNK)  # waits until the rest is back
        wish(seat, 2)
        assert s.answer(question)[0] == 0
        assert read(s, second, 4) == bytes([2]) * 4
        assert used(s) == before + 2 * CHUNK


@isolated
def test_without_host_memory_it_stays() -> None:
    seat = seat_with_room(CHUNK)
    with Session(seat=seat.fds) as s:
        s.open()
        addresses = [s.map(1, at=at) for at in range(3)]
        for i, address in enumerate(addresses):
            fill(s, address, i + 1)
        s.sync()
        wish(seat, 1)
        seat.until(0, "residency_done", 1)
        assert seat[0, "residency_failed"] == 1
        assert seat[0, "out_bytes"] == CHUNK
        wish(seat, 2)
        seat.until(0, "residency_done", 2)
        assert [read(s, a, 1) for a in addresses] == [b"\1", b"\2", b"\3"]


@isolated
def test_no_room_to_come_back_is_told_and_tried_again() -> None:
    seat = seat_with_room()
    with Session(seat=seat.fds) as s:
        s.open()
        address = s.map(32)  # 64 of the device's 256 MiB
        fill(s, address, 9, 32 * CHUNK)
        s.sync()
        wish(seat, 1)
        seat.until(0, "residency_done", 1)
        taken = 0
        row = {"format": 0x20, "channels": 4, "width": 1024, "height": 1024}  # 16 MiB
        while s.call("ARRAY_CREATE", array=taken + 1, **row)[0] == 0:
            taken += 1
        assert taken
        wish(seat, 2)
        seat.until(0, "residency_failed", 2)
        for array in range(1, taken + 1):
            s.push("ARRAY_DESTROY", array=array)
        assert s.call("PING", value=1)[0] == 0
        wish(seat, 4)
        seat.until(0, "residency_done", 4)
        assert read(s, address + 31 * CHUNK, 4) == bytes([9]) * 4


@isolated
def test_a_session_that_ends_while_its_memory_is_out_gives_all_back() -> None:
    seat = seat_with_room()
    s = Session(seat=seat.fds)
    s.open()
    fill(s, s.map(4), 1)
    s.sync()
    wish(seat, 1)
    seat.until(0, "residency_done", 1)
    s.close()
    assert seat[0, "out_bytes"] == seat[0, "backing_bytes"] == 0


if __name__ == "__main__":
    main(globals())
