"""Tensor maps, arrays, textures and surfaces: what the engine answers, and what it refuses of a hostile client."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from session import Session

INVALID_VALUE, INVALID_CONTEXT, NOT_SUPPORTED = 1, 201, 801
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


if __name__ == "__main__":
    main(globals())
