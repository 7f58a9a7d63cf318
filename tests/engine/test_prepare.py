"""What an engine made before its client was known: kept where the client asks for just that, else made again."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from session import ARENA_BYTES, HOST_BASE, SLOT_BASE, Session, ffi, lib

BOTH = [(0, 0), (1, 1)]
SPACING = 1 << 40


def mapped(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, end = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= address < end:
            return True
    return False


def works(s: Session, device: int = 0) -> None:
    """A copy to the first device's memory and back, and the words that tell its end."""
    assert s.bind_result == 0
    s.open(device=device)
    at = s.map(2)
    s.write_host(0, b"forth and back")
    s.push("COPY_H2D", device_dst=at, src_off=0, size_bytes=14)
    s.push("COPY_D2H", src=at, dst_off=4096, size_bytes=14)
    s.sync()
    assert s.read_host(4096, 14) == b"forth and back"
    assert s.late_error()[0] == 0


@isolated
def test_the_same_is_kept() -> None:
    with Session(slots=BOTH, prepared=(HOST_BASE, True, BOTH)) as s:
        works(s)
        stats = ffi.new("orion_engine_stats *")
        lib.orion_engine_get_stats(s.engine, stats)
        assert stats.pinned_bytes == 64 << 20  # registered once


@isolated
def test_another_arena_is_mapped_in_place_of_the_prepared_one() -> None:
    elsewhere = HOST_BASE + 16 * ARENA_BYTES
    with Session(prepared=(elsewhere, True, BOTH)) as s:
        works(s)
        assert not mapped(elsewhere)
        stats = ffi.new("orion_engine_stats *")
        lib.orion_engine_get_stats(s.engine, stats)
        assert stats.pinned_bytes == 64 << 20


@isolated
def test_a_private_arena_is_not_given_to_a_client_who_shares_it() -> None:
    with Session(prepared=(HOST_BASE, False, BOTH)) as s:
        works(s)


@isolated
def test_slots_that_the_client_does_not_have_are_given_back() -> None:
    with Session(prepared=(HOST_BASE, True, BOTH)) as s:
        assert mapped(SLOT_BASE)
        assert not mapped(SLOT_BASE + SPACING)
        works(s)


@isolated
def test_a_client_of_the_second_device_alone_gets_the_first_slot() -> None:
    with Session(slots=[(1, 0)], prepared=(HOST_BASE, True, BOTH)) as s:
        assert not mapped(SLOT_BASE + SPACING)
        works(s, device=1)


@isolated
def test_devices_in_another_order() -> None:
    with Session(slots=[(1, 1), (0, 0)], prepared=(HOST_BASE, True, BOTH)) as s:
        works(s)


@isolated
def test_what_is_bound_is_neither_prepared_nor_turned() -> None:
    with Session(prepared=(HOST_BASE, True, BOTH)) as s:
        request, keep = s.request(BOTH, HOST_BASE, s.arena_fd)
        assert lib.orion_engine_prepare(s.engine, request) == 1
        assert lib.orion_engine_set_transport(s.engine, lib.ORION_ENGINE_TCP) == 1
        del keep
        works(s)


@isolated
def test_a_clash_leaves_nothing_prepared_and_the_client_may_ask() -> None:
    with Session() as first:
        other = Session.__new__(Session)
        other.__dict__.update(segment_fd=first.segment_fd, arena_fd=first.arena_fd)
        config = ffi.new("orion_engine_config *")
        config.null_engine = 1
        made = ffi.new("orion_engine **")
        assert lib.orion_engine_new(config, made) == 0
        request, keep = other.request([(0, 5)], HOST_BASE, first.arena_fd)
        assert lib.orion_engine_prepare(made[0], request) == -1
        del keep
        assert not mapped(SLOT_BASE + 5 * SPACING)
        lib.orion_engine_free(made[0])
        works(first)


if __name__ == "__main__":
    main(globals())
