"""What each operation does on softgpu, driven through the rings."""

from __future__ import annotations

import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from session import (
    ADD_PTX,
    ARENA_BYTES,
    CHUNK,
    HOST_BASE,
    MIB,
    SLOT_BASE,
    WORD_DYNAMIC,
    WORD_FREES_DONE,
    WORD_STREAMS,
    Session,
    lib,
)


@isolated
def test_ping_and_detach() -> None:
    with Session() as s:
        assert s.call("PING", value=77) == (0, struct.pack("<Q", 77))
        s.push("DETACH")
        assert s.ended() == lib.ORION_END_DETACHED


@isolated
def test_bind_reports_each_clash() -> None:
    with Session(null=True) as first:
        second = Session(null=True)  # the same host base in the same process
        assert (second.bind_result, second.conflicts) == (-1, 1)
        assert second.bind(1, HOST_BASE + 4 * ARENA_BYTES) == 0
        lib.orion_engine_free(second.engine)
        assert first.call("PING", value=1)[0] == 0


@isolated
def test_device_slot_clash_on_softgpu() -> None:
    with Session() as s:
        other = Session()
        assert other.bind_result == -1
        assert other.conflicts == 3  # arena and the first device's slot
        lib.orion_engine_free(other.engine)
        assert s.call("PING", value=1)[0] == 0


@isolated
def test_copies_round_trip() -> None:
    with Session() as s:
        s.open()
        a = s.map(2)
        data = bytes(i * 7 & 255 for i in range(3 * MIB))
        s.write_host(0, data)
        s.push("STREAM_CREATE", stream=1, stream_flags=1)
        s.push("COPY_H2D", stream=1, device_dst=a, src_off=0, size_bytes=len(data))
        s.push("COPY_D2D", stream=1, device_dst=a + 3 * MIB, src=a, size_bytes=MIB)
        s.push("COPY_H2D_INLINE", b"inline!!", stream=1, device_dst=a + 3 * MIB + 8)
        s.push("COPY_D2H", stream=1, src=a + 3 * MIB, dst_off=8 * MIB, size_bytes=MIB)
        s.sync(1)
        assert s.read_host(8 * MIB, MIB) == data[:8] + b"inline!!" + data[16:MIB]
        assert s.late_error()[0] == 0


@isolated
def test_copy_3d_and_fills() -> None:
    with Session() as s:
        s.open()
        a = s.map()
        s.push("MEMSET", device_dst=a, width=4096, height=1, value=0x11, element_bytes=1)
        s.push("MEMSET", device_dst=a, pitch=64, width=4, height=3, value=0x2222, element_bytes=2)
        s.push("MEMSET", device_dst=a + 16, pitch=64, width=2, height=2, value=0x33333333, element_bytes=4)
        sides = {"src_kind": 2, "src_address": a, "src_pitch": 64, "src_height": 4}
        sides |= {"dst_kind": 1, "dst_address": 4096, "dst_pitch": 32, "dst_height": 4, "dst_x_bytes": 2}
        s.push("COPY_3D", width_bytes=24, height=3, depth=1, **sides)
        s.sync()
        rows = [s.read_host(4096 + 32 * y + 2, 24) for y in range(3)]
        full = b"\x22" * 8 + b"\x11" * 8 + b"\x33" * 8
        assert rows == [full, full, b"\x22" * 8 + b"\x11" * 16]
        assert s.late_error()[0] == 0


@isolated
def test_module_launch_and_global() -> None:
    with Session() as s:
        s.open()
        a = s.map()
        assert s.load()[0] == 0
        attributes, params = s.function(b"add", 1)
        assert attributes[0] == 1024 and params == [(0, 8), (8, 4)]
        result, payload = s.call("MODULE_GET_GLOBAL", b"total", module=1)
        address, size, managed = struct.unpack_from("<QQI", payload)
        assert managed == 0
        assert (result, size) == (0, 4)
        s.push("MEMSET", device_dst=a, width=1, height=1, element_bytes=4)
        s.push("MEMSET", device_dst=address, width=1, height=1, value=5, element_bytes=4)
        for _ in range(3000):  # more than a stream's depth
            s.launch(1, struct.pack("<QI", a, 2))
        s.launch(1, struct.pack("<QI", address, 1))
        s.push("COPY_D2H", src=a, dst_off=0, size_bytes=4)
        s.push("COPY_D2H", src=address, dst_off=4, size_bytes=4)
        s.sync()
        assert struct.unpack("<II", s.read_host(0, 8)) == (6000, 6)
        assert s.late_error()[0] == 0
        assert s.call("FUNCTION_GET_ATTRIBUTES", function=1)[0] == 0
        assert s.call("OCCUPANCY_BLOCKS", function=1, block_size=32)[0] == 0
        s.push("MODULE_UNLOAD", module=1)
        assert s.call("FUNCTION_GET_ATTRIBUTES", function=1)[0] == 400


@isolated
def test_missing_names_and_bad_images() -> None:
    with Session() as s:
        s.open()
        assert s.load(b"this is no ptx")[0] in (200, 218)  # the driver's own verdict
        assert s.load(b"\x7fELF" + b"\0" * 8)[0] == 200
        assert s.load(struct.pack("<IIQQ", 0x466243B1, 1, 4096, 0))[0] == 200  # a wrapper: holds a pointer
        assert s.load(struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 1 << 40))[0] == 200
        assert s.load()[0] == 0
        assert s.call("MODULE_GET_FUNCTION", b"nothing", module=1, function=1)[0] == 500
        assert s.call("MODULE_GET_FUNCTION", b"add", module=2, function=1)[0] == 400


@isolated
def test_jit_log_reaches_the_arena() -> None:
    with Session() as s:
        s.open()
        bad = ADD_PTX.replace(b"{ .reg .u64 %rd<2>; .reg .u32 %r<3>;", b"{{{ nonsense")
        s.write_host(MIB, bad)
        values = {
            "image_off": MIB,
            "image_bytes": len(bad),
            "log_off": 0,
            "info_log_bytes": 64,
            "error_log_bytes": 4096,
        }
        result, payload = s.call("MODULE_LOAD", module=1, **values)
        info, error, _, _ = struct.unpack("<IIII", payload)
        assert result == 218 and 0 < error < 4096 and info <= 64
        assert s.read_host(64, error).isascii()


@isolated
def test_link() -> None:
    with Session() as s:
        s.open()
        head = struct.pack("<IIQ", 1, 4, len(ADD_PTX)) + b"test" + ADD_PTX
        s.write_host(MIB, head)
        places = {"inputs_off": MIB, "inputs_bytes": len(head), "out_off": 2 * MIB, "out_bytes": MIB}
        result, payload = s.call("LINK", input_count=1, **places)
        image_bytes = struct.unpack_from("<Q", payload)[0]
        assert result == 0 and 0 < image_bytes <= MIB
        assert s.call("MODULE_LOAD", module=1, image_off=2 * MIB, image_bytes=image_bytes)[0] == 0
        assert s.function(b"add", 1)[1] == [(0, 8), (8, 4)]


@isolated
def test_events_and_elapsed() -> None:
    with Session() as s:
        s.open()
        a = s.map()
        s.push("STREAM_CREATE", stream=1, stream_flags=1)
        s.push("STREAM_CREATE", stream=2, stream_flags=1)
        for event in (1, 2, 3):
            s.push("EVENT_CREATE", event=event)
        assert s.call("EVENT_ELAPSED", start=1, end=2)[0] == 400  # never recorded
        s.push("EVENT_RECORD", stream=1, event=1)
        s.push("MEMSET", stream=1, device_dst=a, width=MIB, height=1, value=9, element_bytes=1)
        s.push("EVENT_RECORD", stream=1, event=2, word=WORD_DYNAMIC + 1, value=5)
        s.push("STREAM_WAIT_EVENT", stream=2, event=2)
        s.push("COPY_D2H", stream=2, src=a, dst_off=0, size_bytes=MIB)
        s.sync(2)
        assert s.read_host(0, MIB) == b"\x09" * MIB
        assert s.wait_word(WORD_DYNAMIC + 1, 5)
        result, payload = s.call("EVENT_ELAPSED", start=1, end=2)
        assert result == 0 and struct.unpack("<f", payload)[0] >= 0
        s.push("EVENT_DESTROY", event=3)
        s.push("STREAM_WAIT_EVENT", stream=2, event=3)
        s.sync(2)
        assert s.late_error() == (1, 23, 400)


@isolated
def test_null_stream_marker_beside_blocking_streams() -> None:
    with Session() as s:
        s.open()
        a = s.map()
        s.push("STREAM_CREATE", stream=1, stream_flags=0)
        s.push("MEMSET", device_dst=a, width=CHUNK, height=1, value=1, element_bytes=1)
        s.sync()
        s.push("MEMSET", stream=1, device_dst=a, width=CHUNK, height=1, value=2, element_bytes=1)
        s.push("COPY_D2H", src=a, dst_off=0, size_bytes=CHUNK)  # NULL waits for the blocking stream
        s.sync()
        assert s.read_host(0, CHUNK) == b"\x02" * CHUNK


@isolated
def test_memory_map_free_and_reuse() -> None:
    with Session() as s:
        s.open()
        for count in range(1, 21):
            a = s.map(60)  # 120 MiB of 256: a third one fits only if the frees are reclaimed
            s.push("MEMSET", device_dst=a, width=CHUNK, height=1, value=count, element_bytes=1)
            s.push("MEM_FREE", device_address=a, size_bytes=60 * CHUNK, unmap=1)
            assert s.wait_word(WORD_FREES_DONE, count)
        stats = s.stats()
        assert stats.mapped_bytes[0] == 0 and stats.frees_pending == 0
        assert s.late_error()[0] == 0


@isolated
def test_allocation_waits_for_frees_then_fails() -> None:
    with Session() as s:
        s.open()
        a = s.map(100)
        s.push("MEM_FREE", device_address=a, size_bytes=100 * CHUNK, unmap=1)
        # Another address, more than is left before the free: served when the free is reclaimed.
        b = s.map(100, at=1000)
        assert s.call("MEM_MAP", device_address=SLOT_BASE + 5000 * CHUNK, size_bytes=100 * CHUNK)[0] == 2
        assert s.call("MEM_MAP", device_address=b, size_bytes=CHUNK)[0] == 1  # mapped already
        assert s.call("MEM_MAP", device_address=b + 1, size_bytes=CHUNK)[0] == 1
        assert s.call("MEM_MAP", device_address=SLOT_BASE - CHUNK, size_bytes=CHUNK)[0] == 1
        assert s.call("MEM_MAP", device_address=SLOT_BASE, size_bytes=1 << 40)[0] == 1


@isolated
def test_every_free_counts() -> None:
    with Session() as s:
        s.open()
        a = s.map(2)
        s.push("MEM_FREE", device_address=a, size_bytes=CHUNK, unmap=1)  # half of a range: refused, counted
        s.push("MEM_FREE", device_address=a, size_bytes=CHUNK, unmap=0)
        s.push("MEM_FREE", device_address=a, size_bytes=2 * CHUNK, unmap=1)
        assert s.wait_word(WORD_FREES_DONE, 3)
        assert s.late_error() == (1, 41, 1)
        assert s.stats().mapped_bytes[0] == 0


@isolated
def test_host_memory_is_registered_and_named_by_kernels() -> None:
    with Session() as s:
        s.open()
        off = 100 * MIB
        assert s.call("HOST_REGISTER", arena_off=off, size_bytes=MIB)[0] == 0
        assert s.call("HOST_REGISTER", arena_off=off + 4096, size_bytes=4096)[0] == 712
        assert s.call("HOST_REGISTER", arena_off=0, size_bytes=4096)[0] == 712
        assert s.call("HOST_REGISTER", arena_off=off + 1, size_bytes=4096)[0] == 1
        assert s.call("HOST_REGISTER", arena_off=ARENA_BYTES, size_bytes=4096)[0] == 1
        s.load()
        s.function(b"add", 1)
        s.write_host(off, struct.pack("<I", 40))
        s.launch(1, struct.pack("<QI", HOST_BASE + off, 2))
        s.sync()
        assert struct.unpack("<I", s.read_host(off, 4)) == (42,)
        assert s.call("HOST_UNREGISTER", arena_off=off, size_bytes=MIB)[0] == 0
        assert s.call("HOST_UNREGISTER", arena_off=off, size_bytes=MIB)[0] == 713


@isolated
def test_two_devices_and_peer_copy() -> None:
    with Session(devices=2) as s:
        s.open(1, 0)
        s.open(2, 1)
        a, b = s.map(context=1, device=0), s.map(context=2, device=1)
        s.push("MEMSET", device_dst=a, width=64, height=1, value=7, element_bytes=1)
        s.sync()
        s.push("COPY_PEER", context=2, device_dst=b, src=a, size_bytes=64, dst_context=2, src_context=1)
        s.push("COPY_D2H", context=2, src=b, dst_off=0, size_bytes=64)
        s.sync(context=2)
        assert s.read_host(0, 64) == b"\x07" * 64
        assert s.call("CTX_PRIMARY", context=3, device=0)[0] == 216  # bound to index 1 already


@isolated
def test_ordinary_context_reset_and_destroy() -> None:
    with Session() as s:
        assert s.call("CTX_CREATE", context=5, device=0)[0] == 0
        a = s.map(3, context=5)
        s.push("STREAM_CREATE", context=5, stream=9, stream_flags=1)
        s.push("MEMSET", context=5, stream=9, device_dst=a, width=64, height=1, value=7, element_bytes=1)
        assert s.call("CTX_RESET", context=5)[0] == 0
        assert s.stats().mapped_bytes[0] == 0
        s.push("MEMSET", context=5, stream=9, device_dst=a, width=64, height=1, value=7, element_bytes=1)
        assert s.call("CTX_GET_LIMIT", context=5, limit=0)[0] == 0
        assert s.late_error()[2] == 400  # the stream went with the reset
        assert s.call("CTX_DESTROY", context=5)[0] == 0
        assert s.call("CTX_GET_LIMIT", context=5, limit=0)[0] == 201


@isolated
def test_stream_values() -> None:
    with Session() as s:
        s.open()
        a = s.map()
        s.push("STREAM_CREATE", stream=1, stream_flags=1)
        s.push("STREAM_CREATE", stream=2, stream_flags=1)
        s.push("MEMSET", stream=1, device_dst=a, width=64, height=1, element_bytes=1)
        s.sync(1)
        s.push("STREAM_WAIT_VALUE", stream=2, device_address=a, value=9, width_bytes=8)
        word, value = s.mark(2)
        assert not s.wait_word(word, value, 100)
        s.push("STREAM_WRITE_VALUE", stream=1, device_address=a, value=9, width_bytes=8)
        assert s.wait_word(word, value)
        s.push("STREAM_WRITE_VALUE", stream=1, device_address=a + 4, value=9, width_bytes=8)
        s.sync(1)
        assert s.late_error()[2] == 1


@isolated
def test_many_streams_come_and_go() -> None:
    with Session() as s:
        s.open()
        a = s.map()
        for _ in range(30):
            for stream in range(1, 21):
                s.push("STREAM_CREATE", stream=stream, stream_flags=stream & 1)
                s.push("MEMSET", stream=stream, device_dst=a, width=256, height=1, element_bytes=1)
                s.push("STREAM_DESTROY", stream=stream)
        s.sync()
        s.push("MEM_FREE", device_address=a, size_bytes=CHUNK, unmap=1)
        assert s.wait_word(WORD_FREES_DONE, 1)
        assert s.late_error()[0] == 0


@isolated
def test_idle_engine_does_not_burn_cpu() -> None:
    with Session() as s:
        s.open()
        time.sleep(0.3)
        before = time.process_time()
        time.sleep(1.0)
        assert time.process_time() - before < 0.5  # all threads of this process; a spinning one takes a second


@isolated
def test_words_of_others_are_refused() -> None:
    with Session() as s:
        s.open()
        for word in (0, WORD_FREES_DONE, 64, 1024, WORD_STREAMS, 65536, 0xFFFFFFFF):
            s.push("MARK", word=word, value=1)
        s.call("CTX_GET_LIMIT", limit=0)
        assert s.late_error() == (7, 22, 1)


if __name__ == "__main__":
    main(globals())
