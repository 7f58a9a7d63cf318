"""Launchers: threads that make the driver's calls for launches. What they may not change is order and errors."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from session import ADD_PTX, CHUNK, MIB, WORD_CONTEXT_ERROR, WORD_STREAMS, Session

# The last store wins, and a link of a chain does nothing unless the one before it has run: so order shows.
STORE_PTX = b""".version 7.0
.target sm_70
.address_size 64
.visible .entry store(.param .u64 to, .param .u32 value)
{ .reg .u64 %rd<2>; .reg .u32 %r<2>;
  ld.param.u64 %rd1, [to]; ld.param.u32 %r1, [value];
  st.global.u32 [%rd1], %r1;
  ret; }
.visible .entry chain(.param .u64 at, .param .u32 value)
{ .reg .u64 %rd<2>; .reg .u32 %r<4>; .reg .pred %p;
  ld.param.u64 %rd1, [at]; ld.param.u32 %r1, [value];
  ld.global.u32 %r2, [%rd1]; add.u32 %r3, %r2, 1;
  setp.ne.u32 %p, %r3, %r1;
  @%p bra wrong;
  st.global.u32 [%rd1], %r3;
wrong:
  ret; }
"""


def streams(s: Session, count: int, flags: int = 1) -> list[int]:
    for stream in range(1, count + 1):
        assert s.call("STREAM_CREATE", stream=stream, stream_flags=flags)[0] == 0
    return list(range(1, count + 1))


def read_u32(s: Session, address: int, stream: int = 1) -> int:
    s.push("COPY_D2H", stream=stream, dst_off=2 * MIB, src=address, size_bytes=4)
    s.sync(stream)
    return int(struct.unpack("<I", s.read_host(2 * MIB, 4))[0])


def prepared(s: Session) -> int:
    s.open()
    memory = s.map()
    s.push("MEMSET", device_dst=memory, value=0, width=CHUNK, height=1, element_bytes=1, pitch=CHUNK)
    s.sync()
    s.load(ADD_PTX)
    s.function(b"add", 1)
    s.function(b"fault", 2)
    s.load(STORE_PTX, module=2)
    s.function(b"store", 3, module=2)
    s.function(b"chain", 4, module=2)
    return memory


@isolated
def test_every_launch_is_handed_over_and_runs_in_its_streams_order() -> None:
    with Session(launchers=3) as s:
        memory = prepared(s)
        several = streams(s, 5)
        # 300 links, five chains, side by side.
        for link in range(1, 301):
            for stream in several:
                s.launch(4, struct.pack("<QI", memory + 64 * stream, link), stream=stream)
        for stream in several:
            s.sync(stream)
        assert s.stats().launches_handed == 1500
        assert [read_u32(s, memory + 64 * stream) for stream in several] == [300] * 5


@isolated
def test_a_copy_stands_where_the_program_put_it() -> None:
    with Session(launchers=3) as s:
        memory = prepared(s)
        streams(s, 2)
        for round_ in range(1, 60):
            for stream in (1, 2):
                for i in range(7):
                    s.launch(3, struct.pack("<QI", memory + 64 * stream, 1000 * round_ + i), stream=stream)
                s.push("COPY_D2H", stream=stream, dst_off=3 * MIB + 64 * stream, src=memory + 64 * stream, size_bytes=4)
                s.launch(3, struct.pack("<QI", memory + 64 * stream, 7), stream=stream)
            for stream in (1, 2):
                s.sync(stream)
                assert struct.unpack("<I", s.read_host(3 * MIB + 64 * stream, 4))[0] == 1000 * round_ + 6


@isolated
def test_an_event_orders_two_launchers() -> None:
    with Session(launchers=3) as s:
        memory = prepared(s)
        streams(s, 3)
        s.push("EVENT_CREATE", event=1, event_flags=2)
        # One chain that three streams write in turn, with nothing but events between them.
        for link in range(1, 200):
            stream = 1 + link % 3
            s.push("STREAM_WAIT_EVENT", stream=stream, event=1)
            s.launch(4, struct.pack("<QI", memory, link), stream=stream)
            s.push("EVENT_RECORD", stream=stream, event=1)
        for stream in (1, 2, 3):
            s.sync(stream)
        assert read_u32(s, memory) == 199
        assert s.stats().launches_handed == 199


@isolated
def test_the_null_stream_stands_between_blocking_streams() -> None:
    with Session(launchers=3) as s:
        memory = prepared(s)
        streams(s, 3, flags=0)
        for link in range(1, 150):
            # NULL waits for all three and they for NULL: a chain again.
            s.launch(4, struct.pack("<QI", memory, link), stream=(0, 1, 0, 2, 0, 3)[link % 6])
        s.sync(0)
        for stream in (1, 2, 3):
            s.sync(stream)
        assert read_u32(s, memory) == 149
        assert 0 < s.stats().launches_handed < 149


@isolated
def test_an_error_is_there_when_the_marker_behind_it_is() -> None:
    with Session(launchers=3) as s:
        memory = prepared(s)
        several = streams(s, 3)
        for round_ in range(1, 40):
            for stream in several:
                for i in range(5):
                    # 2,000 threads in a block: refused by the driver, not by the engine.
                    block = 2000 if i == 2 else 1
                    params = struct.pack("<QI", memory + 64 * stream, 1)
                    s.launch(1, params, stream=stream, thread=stream, block_x=block)
            for stream in several:
                s.sync(stream)
                count, code, result = s.late_error(stream)
                assert (count, result) == (round_, 1) and code
        assert [read_u32(s, memory + 64 * stream) for stream in several] == [39 * 4] * 3


@isolated
def test_a_fault_ends_the_context_and_not_the_session() -> None:
    with Session(launchers=3) as s:
        memory = prepared(s)
        several = streams(s, 3)
        s.launch(2, b"", stream=2)
        for _ in range(200):
            for stream in several:
                s.launch(1, struct.pack("<QI", memory, 1), stream=stream)
        assert s.wait_word(WORD_CONTEXT_ERROR + 1, 1)
        assert s.word(WORD_CONTEXT_ERROR + 1) == 700
        assert s.call("STREAM_DESTROY", stream=1)[0] == 700
        assert s.call("PING", value=5)[0] == 0
        for stream in several:
            s.mark(stream)
        assert s.call("PING", value=6)[0] == 0


@isolated
def test_a_free_waits_for_launches_that_are_on_the_way() -> None:
    with Session(launchers=3) as s:
        prepared(s)
        several = streams(s, 3)
        for round_ in range(30):
            memory = s.map(at=5 + round_)
            for stream in several:
                for _ in range(20):
                    s.launch(3, struct.pack("<QI", memory + 64 * stream, 1), stream=stream)
            s.push("MEM_FREE", device_address=memory)
        for stream in several:
            s.sync(stream)
        assert s.word(WORD_CONTEXT_ERROR + 1) == 0


@isolated
def test_a_stream_ends_behind_its_launches() -> None:
    with Session(launchers=3) as s:
        memory = prepared(s)
        for _ in range(40):
            for stream in (1, 2, 3):
                s.push("STREAM_CREATE", stream=stream, stream_flags=1)
                s.marks[WORD_STREAMS + stream] = s.marks.get(WORD_STREAMS + stream, 0)
            for _ in range(10):
                for stream in (1, 2, 3):
                    s.launch(1, struct.pack("<QI", memory, 1), stream=stream)
            for stream in (1, 2, 3):
                s.push("STREAM_DESTROY", stream=stream)
        assert s.call("STREAM_CREATE", stream=4, stream_flags=1)[0] == 0
        assert s.call("CTX_SET_LIMIT", limit=0, value=1 << 12)[0] == 0  # waits for everything that is on the way
        for _ in range(200):
            if read_u32(s, memory, stream=4) == 1200:
                break
        assert read_u32(s, memory, stream=4) == 1200
        assert s.late_error() == (0, 0, 0)


@isolated
def test_the_session_ends_with_launches_on_the_way() -> None:
    s = Session(launchers=3)
    memory = prepared(s)
    several = streams(s, 3)
    for _ in range(300):
        for stream in several:
            s.launch(1, struct.pack("<QI", memory, 1), stream=stream)
    s.push("DETACH")
    s.ended()
    s.close()


if __name__ == "__main__":
    main(globals())
