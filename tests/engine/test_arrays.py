"""Tensor maps, arrays, textures and surfaces: what the engine answers, and what it refuses of a hostile client."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from session import Session

INVALID_VALUE, OUT_OF_MEMORY, INVALID_CONTEXT, NOT_SUPPORTED = 1, 2, 201, 801
FLOAT32 = 7


def shape(dimensions: list[int], strides: list[int], box: list[int]) -> bytes:
    def five(values: list[int], fill: int, count: int = 5) -> list[int]:
        return (values + [fill] * count)[:count]

    return struct.pack("<5Q4Q5I5I6i", *five(dimensions, 1), *five(strides, 0, 4), *five(box, 1), *[1] * 5, *[0] * 6)


SQUARE = shape([64, 64], [256], [32, 8])


@isolated
def test_a_tensor_map_tells_where_its_address_is() -> None:
    with Session() as s:
        s.open()
        values = {"data_type": FLOAT32, "rank": 2}
        result, payload = s.call("TENSOR_MAP_ENCODE", SQUARE, address=0x200000000040, **values)
        assert (result, len(payload)) == (0, 136)
        (at,) = struct.unpack_from("<I", payload)
        other = s.call("TENSOR_MAP_ENCODE", SQUARE, address=0x20000ABCD000, **values)[1][8:]
        patched = bytearray(payload[8:])
        patched[at : at + 8] = struct.pack("<Q", 0x20000ABCD000)
        assert bytes(patched) == other
        result, replaced = s.call("TENSOR_MAP_REPLACE_ADDRESS", payload[8:], address=0x20000ABCD000)
        assert (result, replaced) == (0, other)
        assert s.call("TENSOR_MAP_ENCODE", SQUARE, context=0, address=64, **values)[0] == 0  # needs no context


@isolated
def test_wrong_tensor_maps_are_refused() -> None:
    with Session() as s:
        s.open()
        wrong: list[tuple[bytes, dict[str, int]]] = [
            (SQUARE, {"rank": 0}),
            (SQUARE, {"rank": 6}),
            (SQUARE, {"rank": 0xFFFFFFFF}),
            (SQUARE, {"kind": 1}),  # needs three dimensions
            (SQUARE, {"kind": 3}),
            (SQUARE, {"kind": 0xFFFFFFFF, "rank": 3}),
            (SQUARE, {"data_type": 0xFFFFFFFF}),
            (SQUARE, {"swizzle": 0xFFFFFFFF}),
            (SQUARE[:-1], {}),
            (SQUARE + b"\0", {}),
            (b"", {}),
        ]
        for tail, change in wrong:
            values = {"data_type": FLOAT32, "rank": 2, "address": 64} | change
            assert s.call("TENSOR_MAP_ENCODE", tail, **values)[0] == INVALID_VALUE, change
        for tail in (b"", bytes(127), bytes(129)):
            assert s.call("TENSOR_MAP_REPLACE_ADDRESS", tail, address=64)[0] == INVALID_VALUE
        assert s.call("TENSOR_MAP_ENCODE", SQUARE, context=9, rank=2)[0] == INVALID_CONTEXT
        assert s.call("PING", value=1)[0] == 0


# ---------------------------------------------------------------------------------------------- arrays and textures
FLOAT = {"format": 32, "channels": 1, "width": 16, "height": 4}
POINT = struct.pack("<7I7f", 1, 1, 1, 0, 0, 0, 0, *[0.0] * 7)
VIEW = struct.pack("<3Q6I", 16, 4, 0, 0, 0, 0, 0, 0, 0)
ARRAY, MIPMAP, LINEAR, PITCHED = range(4)


def copy(s: Session, **values: int) -> int:
    """One synchronous copy of a row of 64 bytes; what it answered."""
    fields = {"width_bytes": 64, "height": 1, "depth": 1, "src_pitch": 64, "dst_pitch": 64, "src_height": 1}
    return s.call("COPY_3D", **(fields | {"dst_height": 1} | values))[0]


@isolated
def test_arrays_textures_and_their_ends() -> None:
    with Session() as s:
        s.open()
        assert s.call("ARRAY_CREATE", array=1, **FLOAT)[0] == 0
        s.write_host(0, bytes(range(64)))
        assert copy(s, src_kind=1, src_address=0, dst_kind=3, dst_address=1, dst_y=2) == 0
        assert copy(s, src_kind=3, src_address=1, src_y=2, dst_kind=1, dst_address=4096) == 0
        s.sync()
        assert s.read_host(4096, 64) == bytes(range(64))
        result, payload = s.call("TEXTURE_CREATE", POINT + VIEW, object=1, resource=ARRAY, array=1)
        assert result == 0 and struct.unpack("<Q", payload)[0] != 0
        assert s.call("MIPMAP_CREATE", mipmap=1, levels=3, **FLOAT)[0] == 0
        result, payload = s.call("ARRAY_VIEW", array=2, source=1, kind=0, number=1)
        assert result == 0 and struct.unpack_from("<QQ", payload) == (8, 2)
        # What was freed is not there any more, levels with their mipmap; and indices serve again.
        s.push("MIPMAP_DESTROY", mipmap=1)
        assert s.call("MIPMAP_CREATE", mipmap=1, levels=3, **FLOAT)[0] == 0
        assert copy(s, src_kind=3, src_address=2, dst_kind=1, width_bytes=32) == INVALID_VALUE
        s.push("TEXTURE_DESTROY", object=1)
        s.push("ARRAY_DESTROY", array=1)
        for _ in range(3):
            assert s.call("ARRAY_CREATE", array=1, **FLOAT)[0] == 0
            s.push("ARRAY_DESTROY", array=1)
        assert s.call("PING", value=1)[0] == 0


@isolated
def test_an_array_in_use_is_destroyed_later_and_its_index_waits() -> None:
    with Session() as s:
        s.open()
        flag = s.map()
        s.load()
        s.function(b"hold", 1)
        s.push("MEMSET", device_dst=flag, width=1, height=1, element_bytes=4)
        s.sync()
        s.push("STREAM_CREATE", stream=1, stream_flags=1)
        assert s.call("ARRAY_CREATE", array=1, **FLOAT)[0] == 0
        s.launch(1, struct.pack("<Q", flag), stream=1)
        s.push(
            "COPY_3D",
            stream=1,
            width_bytes=64,
            height=1,
            depth=1,
            src_kind=3,
            src_address=1,
            dst_kind=1,
            dst_pitch=64,
            dst_height=1,
        )
        s.push("ARRAY_DESTROY", array=1)
        again = s.ask("ARRAY_CREATE", array=1, **FLOAT)
        assert s.call("PING", value=1, slot=1)[0] == 0
        try:
            s.answer(again, timeout_ms=200)
            raise AssertionError("the index was bound while its array was in use")
        except TimeoutError:
            pass
        s.push("STREAM_CREATE", stream=2, stream_flags=1)
        s.push("MEMSET", stream=2, device_dst=flag, width=1, height=1, element_bytes=4, value=1)
        assert s.answer(again)[0] == 0
        assert s.late_error()[0] == 0


@isolated
def test_wrong_arrays_and_textures_are_refused() -> None:
    with Session() as s:
        s.open()
        memory = s.map()
        assert s.call("ARRAY_CREATE", array=1, **FLOAT)[0] == 0
        assert s.call("MIPMAP_CREATE", mipmap=1, levels=2, **FLOAT)[0] == 0
        huge = 0xFFFFFFFFFFFFFFFF
        for change in (
            {"array": 0},
            {"array": 1},  # in use
            {"array": 65536},
            {"array": 0xFFFFFFFF},
            {"array": 2, "width": huge},
            {"array": 2, "depth": huge},
            {"array": 2, "format": 0xFFFFFFFF},
        ):
            assert s.call("ARRAY_CREATE", **(FLOAT | change))[0] == INVALID_VALUE, change
            as_mipmap = {"mipmap" if key == "array" else key: value for key, value in (FLOAT | change).items()}
            assert s.call("MIPMAP_CREATE", levels=2, **as_mipmap)[0] == INVALID_VALUE, change
        for flags in (0x40, 0x80):
            assert s.call("ARRAY_CREATE", array=2, array_flags=flags, **FLOAT)[0] == NOT_SUPPORTED
        assert s.call("MIPMAP_CREATE", mipmap=2, levels=33, **FLOAT)[0] == INVALID_VALUE
        for values in (
            {"source": 1, "number": 2},
            {"source": 1, "number": 0xFFFFFFFF},
            {"source": 2},
            {"source": 65536},
            {"source": 1, "kind": 1},  # not planar
            {"source": 1, "kind": 2},
            {"source": 1, "array": 0},
            {"source": 1, "array": 1},
        ):
            assert s.call("ARRAY_VIEW", **({"array": 3} | values))[0] == INVALID_VALUE, values
        linear = {"resource": LINEAR, "format": 32, "channels": 1, "device_address": memory, "size_bytes": 1024}
        pitched = {"resource": PITCHED, "format": 32, "channels": 1, "device_address": memory, "width": 16, "height": 4}
        wrong: list[tuple[bytes, dict[str, int]]] = [
            (POINT, {"array": 2}),
            (POINT, {"array": 0xFFFFFFFF}),
            (POINT, {"resource": MIPMAP, "array": 2}),
            (POINT, {"resource": 4}),
            (POINT[:-1], {"array": 1}),
            (POINT + VIEW + b"\0", {"array": 1}),
            (b"", {"array": 1}),
            (POINT, {"array": 1, "surface": 1}),
            (b"", {"array": 1, "surface": 1}),  # not made for surfaces
            (POINT, {"array": 1, "object": 0}),
            (POINT, {"array": 1, "object": 65536}),
            (POINT, linear | {"device_address": 4096}),
            (POINT, linear | {"size_bytes": 4 << 20}),
            (POINT, linear | {"size_bytes": huge}),
            (POINT, pitched | {"pitch_bytes": 4 << 20}),
            (POINT, pitched | {"pitch_bytes": huge}),
            (POINT, pitched | {"pitch_bytes": 64, "height": huge}),
            (POINT, pitched | {"pitch_bytes": 64, "width": huge}),
            (POINT, pitched | {"pitch_bytes": 64, "height": 0}),
        ]
        for tail, values in wrong:
            assert s.call("TEXTURE_CREATE", tail, **({"object": 1} | values))[0] == INVALID_VALUE, values
        for side in ("src", "dst"):
            other = {"src": "dst", "dst": "src"}[side]
            for index in (0, 2, 65536, huge):
                values = {f"{side}_kind": 3, f"{side}_address": index, f"{other}_kind": 1}
                assert copy(s, **values) == INVALID_VALUE
            for corner in ({f"{side}_y": 4}, {f"{side}_x_bytes": 4}, {f"{side}_z": huge}, {f"{side}_y": huge}):
                values = {f"{side}_kind": 3, f"{side}_address": 1, f"{other}_kind": 1} | corner
                assert copy(s, **values) == INVALID_VALUE, corner
        for name, field in (("ARRAY_DESTROY", "array"), ("MIPMAP_DESTROY", "mipmap"), ("TEXTURE_DESTROY", "object")):
            for index in (0, 2, 65536, 0xFFFFFFFF):
                s.push(name, **{field: index})
        assert s.call("PING", value=1)[0] == 0
        assert s.word(64 + 1) == 0  # no fault


@isolated
def test_memory_goes_between_arrays_and_allocations() -> None:
    wide = FLOAT | {"width": 8192, "height": 5120}  # 160 MiB of 256
    with Session() as s:
        s.open()
        for index in range(1, 4):
            assert s.call("ARRAY_CREATE", array=index, **wide)[0] == 0
            assert s.call("ARRAY_CREATE", array=9, **wide)[0] == OUT_OF_MEMORY
            s.push("ARRAY_DESTROY", array=index)
            memory = s.map(80)
            s.push("MEM_FREE", device_address=memory, size_bytes=160 << 20, unmap=1)


@isolated
def test_a_contexts_end_takes_its_arrays_and_textures() -> None:
    with Session() as s:
        s.open()
        before = s.call("MEM_INFO")[1]
        for index in range(1, 5):
            assert s.call("ARRAY_CREATE", array=index, **(FLOAT | {"width": 1024, "height": 1024}))[0] == 0
            assert s.call("TEXTURE_CREATE", POINT, object=index, resource=ARRAY, array=index)[0] == 0
        assert s.call("MEM_INFO")[1] != before
        assert s.call("CTX_RESET")[0] == 0
        assert s.call("MEM_INFO")[1] == before
        assert s.call("ARRAY_CREATE", array=1, **FLOAT)[0] == 0


if __name__ == "__main__":
    main(globals())
