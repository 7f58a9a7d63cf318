"""Offered images, libraries and kernels: what works without a server behind the engine, and hostile clients."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from session import ADD_PTX, MIB, NO_REPLY, Session

INVALID_VALUE, INVALID_IMAGE, INVALID_HANDLE, OUT_OF_MEMORY = 1, 200, 400, 2
UPLOAD = 0
PTX = b"// " + b"x" * 40000 + b"\n" + ADD_PTX + b"\0"
IN_ARENA = 0xFFFFFFFF


def offer(s: Session, index: int, size: int, digest: bytes = bytes(32)) -> tuple[int, int]:
    words = struct.unpack("<4Q", digest)
    result, payload = s.call(
        "IMAGE_OFFER", image=index, size_bytes=size, **{f"hash_{i}": word for i, word in enumerate(words)}
    )
    return result, struct.unpack_from("<I", payload)[0] if result == 0 else -1


def data(s: Session, index: int, at: int, size: int, offset: int = MIB) -> int:
    return s.call("IMAGE_DATA", image=index, at=at, arena_off=offset, size_bytes=size)[0]


def bring(s: Session, index: int, image: bytes = PTX, piece: int = 1 << 14) -> None:
    assert offer(s, index, len(image), hashlib.sha256(image).digest()) == (0, UPLOAD)
    for at in range(0, len(image), piece):
        part = image[at : at + piece]
        s.write_host(MIB, part)
        assert data(s, index, at, len(part)) == 0


def load(s: Session, index: int, module: int = 1, **values: Any) -> int:
    return s.call("IMAGE_MODULE_LOAD", module=module, image=index, **values)[0]


def library(s: Session, index: int, image: int = IN_ARENA, **values: Any) -> int:
    return s.call("LIBRARY_LOAD", library=index, image=image, **values)[0]


@isolated
def test_an_image_in_pieces_loads_as_module_and_library() -> None:
    with Session() as s:
        s.open()
        bring(s, 1)
        assert load(s, 1) == 0
        assert s.function(b"add", 1)[1] == [(0, 8), (8, 4)]
        assert s.stats().image_bytes == len(PTX)
        assert load(s, 1, module=2) == INVALID_VALUE  # consumed
        bring(s, 1)
        assert library(s, 1, image=1) == 0
        assert s.call("LIBRARY_GET_KERNEL", b"add", library=1, kernel=1)[0] == 0
        assert s.call("LIBRARY_GET_MODULE", library=1, module=3)[0] == 0
        assert s.call("KERNEL_FUNCTION", kernel=1, module=3, function=2)[0] == 0
        address = s.map()
        s.launch(2, struct.pack("<QI", address, 5))
        s.sync()
        s.push("LIBRARY_UNLOAD", library=1)
        # Everything of the library is gone with it, and the module of its own is not.
        assert s.call("MODULE_GET_FUNCTION", b"add", module=3, function=4)[0] == INVALID_HANDLE
        assert s.call("FUNCTION_GET_ATTRIBUTES", function=2)[0] == INVALID_HANDLE
        assert s.call("KERNEL_GET_PARAMS", kernel=1)[0] == INVALID_HANDLE
        assert s.call("FUNCTION_GET_ATTRIBUTES", function=1)[0] == 0


@isolated
def test_pieces_come_in_order_and_inside() -> None:
    with Session() as s:
        s.open()
        assert data(s, 1, 0, 10) == INVALID_VALUE  # nothing was offered
        assert offer(s, 1, 1000) == (0, UPLOAD)
        assert offer(s, 1, 1000)[0] == INVALID_VALUE
        assert data(s, 1, 1, 10) == INVALID_VALUE
        assert data(s, 1, 0, 1001) == INVALID_VALUE
        assert data(s, 1, 0, 0) == INVALID_VALUE
        assert data(s, 1, 0, 10, (1 << 64) - 5) == INVALID_VALUE
        assert data(s, 1, 0, 10, 256 * MIB - 5) == INVALID_VALUE
        assert data(s, 1, 0, 10) == 0
        assert data(s, 1, 0, 10) == INVALID_VALUE
        assert data(s, 1, 10, 991) == INVALID_VALUE
        assert load(s, 1) == INVALID_VALUE  # not complete, and given up by that
        assert data(s, 1, 10, 990) == INVALID_VALUE
        assert s.call("IMAGE_PROVE", image=1)[0] == INVALID_VALUE
        assert s.call("IMAGE_PROVE", image=5000)[0] == INVALID_VALUE


@isolated
def test_offers_are_bounded() -> None:
    with Session() as s:
        s.open()
        assert offer(s, 1024, 10)[0] == INVALID_VALUE
        assert offer(s, 0xFFFFFFFE, 10)[0] == INVALID_VALUE
        assert offer(s, 1, 0)[0] == INVALID_VALUE
        assert offer(s, 1, (2 << 30) + 1)[0] == INVALID_VALUE
        for index in range(1, 5):
            assert offer(s, index, 2 << 30) == (0, UPLOAD)
        assert offer(s, 5, 1)[0] == OUT_OF_MEMORY
        s.push("IMAGE_DROP", image=2)
        s.push("IMAGE_DROP", image=2)
        s.push("IMAGE_DROP", image=99999)
        assert offer(s, 5, 1) == (0, UPLOAD)


@isolated
def test_images_are_checked_before_the_driver_sees_them() -> None:
    with Session() as s:
        s.open()
        page = 4096
        unterminated = (b"// " + b"x" * page * 10)[: page * 10]
        elf = (b"\x7fELF\x02\x01\x01" + b"\xff" * page * 10)[: page * 10]
        wrapper = struct.pack("<IIQQ", 0x466243B1, 1, 0x1000, 0) + bytes(40000)
        container = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 1 << 40) + bytes(40000)
        for image in (unterminated, elf, wrapper, container):
            bring(s, 1, image)
            assert load(s, 1) == INVALID_IMAGE
            bring(s, 1, image)
            assert library(s, 1, image=1) == INVALID_IMAGE
            s.write_host(MIB, image)
            if image is not unterminated:  # the copy of an image in the arena is terminated
                assert library(s, 1, image_off=MIB, image_bytes=len(image)) == INVALID_IMAGE
        assert library(s, 1, image_off=(1 << 64) - 1, image_bytes=10) == INVALID_VALUE
        assert library(s, 1, image_off=MIB, image_bytes=0) == INVALID_VALUE
        assert library(s, 1 << 20, image_off=MIB, image_bytes=10) == INVALID_VALUE
        bring(s, 1)
        assert load(s, 1, module=1 << 20) == INVALID_VALUE
        bring(s, 1)
        assert load(s, 1, option_count=5) == INVALID_VALUE
        bring(s, 1)
        assert load(s, 1, log_off=(1 << 64) - 8, info_log_bytes=100) == INVALID_VALUE
        bring(s, 1)
        assert load(s, 1) == 0


@isolated
def test_wild_library_operations_are_refused() -> None:
    with Session() as s:
        s.open()
        s.write_host(MIB, ADD_PTX + b"\0")
        assert library(s, 1, image_off=MIB, image_bytes=len(ADD_PTX) + 1) == 0
        assert library(s, 1, image_off=MIB, image_bytes=len(ADD_PTX) + 1) == INVALID_VALUE
        assert s.call("LIBRARY_GET_KERNEL", b"add", library=1, kernel=1)[0] == 0
        assert s.call("LIBRARY_GET_KERNEL", b"add", library=1, kernel=1)[0] == INVALID_VALUE
        assert s.call("LIBRARY_GET_KERNEL", b"a\0d", library=1, kernel=2)[0] == INVALID_VALUE
        assert s.call("LIBRARY_GET_KERNEL", b"", library=1, kernel=2)[0] == INVALID_VALUE
        assert s.call("LIBRARY_GET_KERNEL", b"add", library=1, kernel=1 << 20)[0] == INVALID_VALUE
        assert s.call("KERNEL_SET_ATTRIBUTE", kernel=1, attribute=8, value=1024, device=63)[0] == 101
        assert s.call("KERNEL_GET_ATTRIBUTES", kernel=1, device=1 << 31)[0] == 101
        assert s.call("LIBRARY_LOOKUP", b"x", library=1, kind=2)[0] == INVALID_VALUE
        assert s.call("LIBRARY_GET_MODULE", library=1, module=1)[0] == 0
        # A kernel's function is made in its own library's module only.
        assert s.load(module=2)[0] == 0
        assert s.call("KERNEL_FUNCTION", kernel=1, module=2, function=1)[0] == INVALID_HANDLE
        assert s.call("KERNEL_FUNCTION", kernel=1, module=1, function=1 << 20)[0] == INVALID_VALUE
        assert s.call("KERNEL_FUNCTION", kernel=1, module=1, function=1)[0] == 0
        assert s.call("OCCUPANCY_CLUSTERS", b"short", function=1, attribute_count=1)[0] == INVALID_VALUE
        assert s.call("OCCUPANCY_CLUSTERS", b"", function=1, attribute_count=1 << 31)[0] == INVALID_VALUE
        assert s.call("OCCUPANCY_CLUSTERS", b"", function=1, kind=2)[0] == INVALID_VALUE
        result, names = s.call("LIBRARY_NAMES", library=1)
        assert result == 0 and struct.unpack_from("<II", names) == (3, 3)
        result, names = s.call("LIBRARY_NAMES", library=1, skip=0xFFFFFFFF)
        assert result == 0 and struct.unpack_from("<II", names) == (3, 0)
        assert struct.unpack_from("<II", s.call("MODULE_NAMES", module=1, skip=2)[1]) == (3, 1)
        # Unloading a library's module alone would leave the library with a dangling one: it goes with the library.
        assert s.call("CTX_RESET")[0] == 0
        assert s.call("MODULE_NAMES", module=1)[0] == INVALID_HANDLE
        assert s.call("LIBRARY_GET_MODULE", library=1, module=1)[0] == 0


@isolated
def test_random_operations_leave_the_session_alive() -> None:
    names = [
        "IMAGE_OFFER", "IMAGE_PROVE", "IMAGE_DATA", "IMAGE_DROP", "IMAGE_MODULE_LOAD", "LIBRARY_LOAD",
        "LIBRARY_UNLOAD", "LIBRARY_GET_KERNEL", "LIBRARY_GET_MODULE", "LIBRARY_NAMES", "MODULE_NAMES",
        "KERNEL_FUNCTION", "KERNEL_GET_ATTRIBUTES", "KERNEL_GET_PARAMS", "KERNEL_SET_ATTRIBUTE",
        "KERNEL_SET_CACHE_CONFIG", "LIBRARY_LOOKUP", "OCCUPANCY_CLUSTERS",
    ]  # fmt: skip
    from session import BY_NAME

    generator = random.Random(int(os.environ.get("ENGINE_TEST_SEED", "11")))
    with Session() as s:
        s.open()
        s.write_host(MIB, ADD_PTX + b"\0")
        small = [0, 1, 1, 1, 2, 3, len(ADD_PTX) + 1, MIB, IN_ARENA, 1 << 31]
        for _ in range(4000):
            name = generator.choice(names)
            values = {}
            for field, kind in BY_NAME[name].fields:
                bits = {"u64": 64, "u32": 32, "i32": 31, "u16": 16}[kind]
                values[field] = generator.choice(small) & ((1 << bits) - 1)
            if name == "LIBRARY_LOAD" and generator.random() < 0.7:
                values |= {"image": IN_ARENA, "image_off": MIB, "image_bytes": len(ADD_PTX) + 1, "option_count": 0,
                           "info_log_bytes": 0, "error_log_bytes": 0}  # fmt: skip
            tail = generator.choice([b"", b"add", b"hold", b"x" * 72]) if BY_NAME[name].tail else b""
            s.push(name, tail, context=generator.choice([0, 1, 1, 1, 2]), reply_slot=generator.choice([1, NO_REPLY]),
                   **values)  # fmt: skip
        assert s.call("PING", value=1)[0] == 0
        assert s.word(1) == 0


if __name__ == "__main__":
    main(globals())
