"""The network side: frames, tokens, bulk in both directions, and what ends a session; over both kinds of lanes."""

from __future__ import annotations

import contextlib
import random
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pytest
import zmq
from isolated import isolated, main
from remote import BULK, CLIENT_WORDS, CONTROL, OPS_EXPRESS, OPS_MAIN, RAW, RUNS, TOKEN, RawLane, Remote, frame
from session import (
    ADD_PTX,
    ARENA_BYTES,
    CHUNK,
    HOST_BASE,
    MIB,
    SLOT_BASE,
    SLOT_BYTES,
    WORD_DYNAMIC,
    WORD_SESSION_ERROR,
    WORD_STREAMS,
    WORD_THREAD_ERROR,
    lib,
    pack,
)


@pytest.fixture(autouse=True, params=["raw", "zmq"])
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_TEST_LANES", request.param)


def opened(r: Remote) -> int:
    assert r.call("CTX_PRIMARY", device=0)[0] == 0
    assert r.call("MEM_MAP", device_address=SLOT_BASE, size_bytes=8 * CHUNK)[0] == 0
    return SLOT_BASE


@isolated
def test_copies_and_launches_over_tcp() -> None:
    with Remote() as r:
        a = opened(r)
        data = random.Random(1).randbytes(5 * MIB + 123)
        r.push("STREAM_CREATE", stream=1, stream_flags=1)
        for round_ in range(1, 6):
            number = r.send_bulk(0, data)
            r.push("COPY_H2D", stream=1, device_dst=a, src_off=0, size_bytes=len(data), bulk_seq=number)
            r.push("COPY_D2H", stream=1, src=a, dst_off=16 * MIB, size_bytes=len(data))
            r.sync(1, round_)
            # The word is shown only after all its bytes.
            got = b"".join(r.arena[16 * MIB + at] for at in range(0, len(data), MIB))
            assert got == data
            r.arena.clear()
        number = r.send_bulk(MIB, ADD_PTX)
        assert r.call("MODULE_LOAD", module=1, image_off=MIB, image_bytes=len(ADD_PTX), bulk_seq=number)[0] == 0
        assert r.call("MODULE_GET_FUNCTION", b"add", module=1, function=1)[0] == 0
        r.push("MEMSET", stream=1, device_dst=a, width=1, height=1, element_bytes=4)
        for _ in range(2500):
            shape = {f"{kind}_{axis}": 1 for kind in ("grid", "block") for axis in "xyz"}
            r.push("LAUNCH", struct.pack("<QI", a, 2), stream=1, function=1, param_bytes=12, **shape)
        r.push("COPY_D2H", stream=1, src=a, dst_off=0, size_bytes=4)
        r.sync(1, 10)
        assert struct.unpack("<I", r.arena[0]) == (5000,)


@isolated
def test_bytes_of_one_stream_precede_the_word_of_a_waiter() -> None:
    with Remote() as r:
        a = opened(r)
        for stream in (1, 2):
            r.push("STREAM_CREATE", stream=stream, stream_flags=1)
        r.push("EVENT_CREATE", event=1)
        for round_ in range(1, 21):
            r.push("MEMSET", stream=1, device_dst=a, width=MIB, height=1, value=round_, element_bytes=1)
            r.push("COPY_D2H", stream=1, src=a, dst_off=MIB, size_bytes=MIB)
            r.push("EVENT_RECORD", stream=1, event=1)
            r.push("STREAM_WAIT_EVENT", stream=2, event=1)
            r.sync(2, round_)
            assert r.arena[MIB] == bytes([round_]) * MIB


@isolated
def test_an_error_precedes_the_word_and_the_reply_behind_it() -> None:
    """Who waits for a copy that has failed must not take the word for its bytes."""
    with Remote() as r:
        a = opened(r)
        r.push("STREAM_CREATE", stream=1, stream_flags=1)
        r.sync(1, 1)
        for round_ in range(1, 21):
            # Words of the stream that are told at once, before and after the error: its word may stand anywhere.
            for value, source in ((2 * round_, a), (2 * round_ + 1, SLOT_BASE + SLOT_BYTES // 2)):
                r.push("COPY_D2H", stream=1, src=source, dst_off=0, size_bytes=1, thread=round_)
                r.push("MARK", stream=1, word=WORD_STREAMS + 1, value=value)
            r.wait_word(WORD_STREAMS + 1, 2 * round_ + 1)
            last = len(r.told) - 1 - r.told[::-1].index(WORD_STREAMS + 1)
            assert WORD_THREAD_ERROR + round_ in r.told[:last]
        r.told.clear()
        r.push("COPY_D2H", stream=1, src=SLOT_BASE + SLOT_BYTES // 2, dst_off=0, size_bytes=1, thread=30)
        r.call("MODULE_GET_FUNCTION", b"none", module=9, function=9)  # not one of those that may overtake
        assert WORD_THREAD_ERROR + 30 in r.told[: r.told.index(-1)]


@isolated
def test_a_word_that_grows_while_it_is_told_is_told_again() -> None:
    """The engine's own value of a word, and the GPU's next one, which comes while the engine goes through a long list
    of words: what it has read before must not stand for it."""
    with Remote() as r:
        a = opened(r)
        word, others = WORD_STREAMS + 1, 64
        for stream in (1, 2):
            r.push("STREAM_CREATE", stream=stream, stream_flags=1)
        for value in range(2, 600, 2):
            memset = {"height": 1, "element_bytes": 1}
            ops = [
                pack("MARK", {"word": word, "value": value - 1}, stream=1),  # idle: the engine writes it
                pack("MEMSET", memset | {"device_dst": a, "width": 1 + value * 5003 % (4 * MIB)}, stream=1),
                pack("MARK", {"word": word, "value": value}, stream=1),
                pack("MEMSET", memset | {"device_dst": a + 4 * MIB, "width": 4 * MIB}, stream=2),
            ]
            ops += [pack("MARK", {"word": WORD_DYNAMIC + i, "value": value}, stream=2) for i in range(others)]
            r.ops.send(frame(OPS_MAIN, b"".join(op + b"\0" * (-len(op) % 8) for op in ops)))
            r.wait_word(word, value)
            r.wait_word(WORD_DYNAMIC + others - 1, value)


@isolated
def test_an_operation_waits_for_its_bytes_only() -> None:
    with Remote() as r:
        a = opened(r)
        for stream in (1, 2):
            r.push("STREAM_CREATE", stream=stream, stream_flags=1)
        r.push("COPY_H2D", stream=1, device_dst=a, src_off=0, size_bytes=8, bulk_seq=1)
        r.push("COPY_D2H", stream=1, src=a, dst_off=4096, size_bytes=8)
        r.push("MARK", stream=1, word=WORD_STREAMS + 1, value=1)
        r.sync(2, 1)
        assert r.words.get(WORD_STREAMS + 1, 0) == 0
        r.send_bulk(0, b"the data")
        r.wait_word(WORD_STREAMS + 1, 1)
        assert r.arena[4096] == b"the data"


@isolated
def test_host_functions_and_logs_over_tcp() -> None:
    with Remote() as r:
        opened(r)
        r.push("STREAM_CREATE", stream=1, stream_flags=1)
        r.push("HOST_FUNCTION", stream=1, callback=5, generation=3, word=WORD_DYNAMIC + 2, value=1)
        r.push("MARK", stream=1, word=WORD_STREAMS + 1, value=1)
        r.wait_word(WORD_DYNAMIC + 2, 1)
        assert r.call("PING", value=1)[0] == 0
        assert r.words.get(WORD_STREAMS + 1, 0) == 0
        r.ops.send(frame(CLIENT_WORDS, struct.pack("<QQ", 5, 3)))
        r.wait_word(WORD_STREAMS + 1, 1)
        bad = ADD_PTX.replace(b"{ .reg .u64 %rd<2>; .reg .u32 %r<3>;", b"{{{ nonsense")
        number = r.send_bulk(MIB, bad)
        place = {"image_off": MIB, "image_bytes": len(bad), "log_off": 0, "info_log_bytes": 16, "error_log_bytes": 999}
        result, payload = r.call("MODULE_LOAD", module=1, bulk_seq=number, **place)
        error = struct.unpack_from("<I", payload, 4)[0]
        assert result == 218 and 0 < error < 999
        assert len(r.arena[16]) == error  # arrived before the reply that speaks of it


@isolated
def test_strangers_are_ignored() -> None:
    if RAW:
        return strangers_at_a_socket()
    with Remote(null=True, join=False) as r:
        r.join(b"x" * 32)
        stranger = r.context.socket(zmq.DEALER)
        stranger.connect(r.endpoints[0])
        stranger.send_multipart([b"many", b"parts"])
        stranger.send(frame(OPS_MAIN, pack("DETACH", {})))
        r.ops, r.bulk = r.join()
        late = r.context.socket(zmq.DEALER)
        late.connect(r.endpoints[0])
        late.send(frame(CONTROL, TOKEN))
        late.send(frame(OPS_MAIN, pack("DETACH", {})))
        assert r.call("PING", value=4) == (0, struct.pack("<Q", 4))
        stranger.close(0)
        late.close(0)
        assert r.call("PING", value=5)[0] == 0


def strangers_at_a_socket() -> None:
    with Remote(null=True, join=False) as r:
        wrong = [RawLane(r.endpoints[0]) for _ in range(20)]  # more than may wait
        greetings = [
            b"x" * 200,
            frame(CONTROL, b"x" * 32, b=1),
            frame(CONTROL, TOKEN, a=2, b=1),  # a lane that it does not have
            frame(CONTROL, TOKEN, a=1, b=99),
            frame(CONTROL, TOKEN, b=1) + b"early",
            frame(OPS_MAIN, TOKEN, b=1),
            frame(CONTROL, TOKEN[:20], b=1),
            b"",
        ]
        for number, lane in enumerate(wrong):
            lane.send(greetings[number % len(greetings)])
        time.sleep(0.2)
        r.ops, r.bulk = r.join()
        assert r.call("PING", value=3)[0] == 0  # the engine has seen that all lanes are there
        late = None
        with contextlib.suppress(ConnectionRefusedError):
            late = RawLane(r.endpoints[0])
            late.send(frame(CONTROL, TOKEN, b=1) + frame(OPS_MAIN, pack("DETACH", {})))
        assert r.call("PING", value=4) == (0, struct.pack("<Q", 4))
        assert late is None, "the listener is still open"


@isolated
def test_bulk_of_stripes_and_of_lane_0_is_stored_in_order() -> None:
    """Frames that name what must precede them are stored behind it, whatever the connections do."""
    if not RAW:
        return
    with Remote() as r:
        a = opened(r)
        piece = 512 << 10
        old, new = b"o" * piece, b"n" * piece
        # Number 2 (stripe, newer, same place) comes before number 1 (lane 0, older); 3 is behind both.
        r.bulk.send(frame(BULK, new, 2, 0, 1))
        time.sleep(0.1)
        assert r.call("PING", value=1)[0] == 0
        r.push("COPY_H2D", device_dst=a, src_off=0, size_bytes=piece, bulk_seq=3)
        r.ops.send(frame(BULK, old, 1, 0))
        r.ops.send(frame(BULK, b"tail", 3, piece - 4))  # perhaps early: kept until its turn
        r.ops.send(frame(CLIENT_WORDS, struct.pack("<QQ", 9, 1), 3))
        assert r.call("PING", value=2)[0] == 0
        r.bulk_sent = 3
        r.push("COPY_D2H", src=a, dst_off=MIB, size_bytes=piece)
        r.sync(0, 1)
        assert r.arena[MIB] == new[:-4] + b"tail"


@isolated
def test_a_link_of_a_byte_a_second_does_not_hold_the_engine() -> None:
    """What it asks for is its own loss: a stripe that would sleep for days ends with its client."""
    if not RAW:
        return
    with Remote(join=False) as r:
        r.ops, r.bulk = r.join(link=struct.pack("<QQ", (1 << 64) - 1, 1))
        r.push("CTX_PRIMARY", device=0)
        r.push("MEM_MAP", device_address=SLOT_BASE, size_bytes=8 * CHUNK)
        r.push("COPY_D2H", src=SLOT_BASE, dst_off=0, size_bytes=MIB)
        time.sleep(1)  # the stripe has taken the piece
        r.ops.close()
        assert r.ended(10) == lib.ORION_END_CLIENT_LOST


@isolated
def test_a_closed_lane_ends_the_session() -> None:
    # A stripe that ends between two frames has nothing to tell; lane 0 ends with its client.
    for lane in ("ops",) if RAW else ("ops", "bulk"):
        with Remote(null=True) as r:
            assert r.call("PING", value=1)[0] == 0
            getattr(r, lane).close(0)
            assert r.ended() == lib.ORION_END_CLIENT_LOST


@isolated
def test_detach_over_tcp() -> None:
    with Remote(null=True) as r:
        r.push("DETACH")
        assert r.ended() == lib.ORION_END_DETACHED


@isolated
def test_what_work_changes_in_a_coherent_range_precedes_its_word() -> None:
    with Remote() as r:
        assert r.call("CTX_PRIMARY", context=1)[0] == 0
        at = 64 * MIB
        assert r.call("HOST_COHERENT", context=1, arena_off=at, size_bytes=4096)[0] == 1  # not registered
        assert r.call("HOST_REGISTER", context=1, arena_off=at, size_bytes=4096)[0] == 0
        assert r.call("HOST_PUBLISH", context=1, arena_off=at, size_bytes=4096)[0] == 1
        for offset, size in [(at, 0), (at, 8192), (at + 4096, 4096), (at - 4096, 8192), (1 << 63, 1 << 63)]:
            assert r.call("HOST_COHERENT", context=1, arena_off=offset, size_bytes=size)[0] == 1
        assert r.call("HOST_COHERENT", context=1, arena_off=at, size_bytes=4096)[0] == 0
        assert r.call("HOST_COHERENT", context=1, arena_off=at + 64, size_bytes=64)[0] == 1
        run = struct.pack("<QII", at + 8, 3, 0) + b"abc" + bytes(5)
        r.send_runs(run)
        store = {"device_address": HOST_BASE + at + 16, "value": 0x5A5A5A5A, "width_bytes": 4}
        r.push("STREAM_WRITE_VALUE", context=1, bulk_seq=r.bulk_sent, **store)
        r.push("HOST_PUBLISH", context=1, arena_off=at, size_bytes=4096)
        r.sync(0, 1)
        assert r.runs == {at + 16: b"ZZZZ"}
        assert r.call("HOST_UNREGISTER", context=1, arena_off=at, size_bytes=4096)[0] == 0
        assert r.call("HOST_PUBLISH", context=1, arena_off=at, size_bytes=4096)[0] == 1


@isolated
def test_filled_host_memory_precedes_its_word() -> None:
    with Remote() as r:
        opened(r)
        at = 64 * MIB
        assert r.call("HOST_REGISTER", arena_off=at, size_bytes=8192)[0] == 0
        r.push("STREAM_CREATE", stream=1, stream_flags=1)
        line = {"device_dst": HOST_BASE + at + 8, "width": 3, "height": 1, "value": 0x01020304, "element_bytes": 4}
        r.push("MEMSET", stream=1, **line)
        rows = {"device_dst": HOST_BASE + at + 4096, "pitch": 64, "width": 5, "height": 3, "value": 7}
        r.push("MEMSET", stream=1, element_bytes=1, **rows)
        outside = {"device_dst": HOST_BASE + at + 8190, "width": 3, "height": 1, "value": 1, "element_bytes": 1}
        r.push("MEMSET", stream=1, **outside)
        r.push("MEMSET", stream=1, **{**line, "width": 0})
        r.sync(1, 1)
        assert r.arena == {at + 8: bytes([4, 3, 2, 1]) * 3}
        assert r.runs == {at + 4096 + 64 * row: bytes([7]) * 5 for row in range(3)}


@isolated
def test_malformed_runs_end_the_session() -> None:
    for body in (
        b"short",
        struct.pack("<QII", 0, 9, 0) + bytes(8),
        struct.pack("<QII", ARENA_BYTES - 4, 8, 0) + bytes(8),
        struct.pack("<QII", (1 << 64) - 8, 8, 0) + bytes(8),
        struct.pack("<QII", 0, 0xFFFFFFFF, 0),
    ):
        with Remote(null=True) as r:
            r.send_runs(body)
            assert r.ended() == lib.ORION_END_BROKEN
            assert "runs" in r.reason()


@isolated
def test_malformed_frames_end_the_session() -> None:
    nop = pack("NOP", {})
    cases = [
        ("ops", b"short"),
        ("ops", frame(OPS_MAIN, nop) + b"extra"),
        ("ops", frame(99)),
        ("ops", frame(BULK, b"x", 1)),
        ("ops", frame(OPS_MAIN, nop[:-8])),
        ("ops", frame(OPS_MAIN, nop + b"1234")),
        ("ops", frame(OPS_MAIN, nop[:4] + struct.pack("<I", 0xFFFFFFFF) + nop[8:])),
        ("ops", frame(OPS_EXPRESS, nop)),
        ("ops", frame(CLIENT_WORDS, struct.pack("<QQ", 4096, 1))),
        ("ops", frame(CLIENT_WORDS, b"123")),
        ("bulk", frame(BULK, b"x" * 8, 1, ARENA_BYTES - 4)),
        ("bulk", frame(BULK, b"x" * 8, 1, 1 << 63)),
        ("bulk", frame(BULK, b"x" * 8, 0, 0)),
        ("bulk", frame(OPS_MAIN, nop)),
    ]
    if RAW:  # a stream has no ends of messages, and bulk may travel with operations
        left_out = [b"short", frame(OPS_MAIN, nop) + b"extra", frame(BULK, b"x", 1)]
        cases = [case for case in cases if case[1] not in left_out]
        cases += [
            ("ops", struct.pack("<HHIQQQ", OPS_MAIN, 0, (8 << 20) + 1, 0, 0, 0)),
            ("ops", frame(BULK, b"x", 3) + frame(BULK, b"x", 2)),
            ("bulk", frame(BULK, b"", 1)),
            ("bulk", struct.pack("<HHIQQQ", BULK, 0, (1 << 20) + 1, 1, 0, 0)),
            ("bulk", frame(BULK, b"x", 1, 0, 1)),  # stored behind itself
            ("bulk", frame(BULK, b"x", 1) + frame(BULK, b"x", 1)),
            ("bulk", frame(RUNS, b"", 1)),
            ("bulk", frame(CLIENT_WORDS, struct.pack("<QQ", 1, 1))),
        ]
    for lane, message in cases:
        with Remote(null=True) as r:
            getattr(r, lane).send(message)
            assert r.ended() == lib.ORION_END_BROKEN, (lane, message)
            assert "malformed" in r.reason()
            r.wait_word(WORD_SESSION_ERROR, 46)


@isolated
def test_random_bytes_never_hurt_more_than_their_session() -> None:
    generator = random.Random(9)
    for _ in range(60):
        with Remote(null=True) as r:
            for _ in range(20):
                raw = bytearray(frame(generator.randrange(9), generator.randbytes(generator.randrange(400)), 1))
                if generator.random() < 0.5:
                    raw[generator.randrange(len(raw))] ^= 1 << generator.randrange(8)
                generator.choice([r.ops, r.bulk]).send(bytes(raw))


@isolated
def test_more_operations_than_the_ring_holds() -> None:
    with Remote() as r:
        opened(r)
        r.push("STREAM_CREATE", stream=1, stream_flags=1)
        r.push("HOST_FUNCTION", stream=1, callback=1, generation=1, word=WORD_DYNAMIC, value=1)
        one = pack("MEMSET", {"device_dst": SLOT_BASE, "width": 1, "height": 1, "element_bytes": 1}, stream=1)
        batch = (one + b"\0" * (-len(one) % 8)) * 1000
        for _ in range(40):  # 8,192 parked, 16,384 in the ring, the rest held in its frame and in the lane
            r.ops.send(frame(OPS_MAIN, batch))
        r.push("MARK", stream=1, word=WORD_STREAMS + 1, value=1)
        r.wait_word(WORD_DYNAMIC, 1)
        # Neither the express operation nor the client's word is stuck behind what the rings cannot take.
        assert r.call("PING", value=1)[0] == 0
        r.ops.send(frame(CLIENT_WORDS, struct.pack("<QQ", 1, 1)))
        r.wait_word(WORD_STREAMS + 1, 1)
        r.push("HOST_FUNCTION", stream=1, callback=2, generation=1, word=WORD_DYNAMIC + 1, value=1)
        r.wait_word(WORD_DYNAMIC + 1, 1)
        r.send_client_word(2, 1)
        r.sync(1, 2)


if __name__ == "__main__":
    main(globals())
