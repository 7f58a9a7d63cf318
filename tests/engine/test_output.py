"""What kernels print: which images may, and how the text comes to the client."""

from __future__ import annotations

import ctypes
import os
import random
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from session import ADD_PTX, MIB, Session

WORD_DEVICE_OUTPUT = 4
KEPT, EXPECTED = 1, 2
FLAG_LZ4, FLAG_ZSTD = 0x2000, 0x8000
NOT_SUPPORTED = 801
# The name is never there in one piece: "v" stands before a match of the "printf" of an earlier word.
LZ4_TEXT = b"// printf is called: " + b"v" + b"printf(a, b)"
LZ4_MATCH_AT = LZ4_TEXT.index(b"printf")


def entry(payload: bytes, flags: int, unpacked_bytes: int) -> bytes:
    padded = payload + bytes(-len(payload) % 8)
    packed = len(payload) if flags & (FLAG_LZ4 | FLAG_ZSTD) else 0
    fields = (1, 0x101, 64, len(padded), packed, 0, 0, 7, 70, 0, 0, flags, 0, unpacked_bytes)
    return struct.pack("<HHIQIIHHIIIQQQ", *fields) + padded


def container(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def lz4_with_a_match(letter: bytes = b"v") -> bytes:
    cut = LZ4_TEXT.rindex(b"printf")
    literals, rest = LZ4_TEXT[: cut - 1] + letter, LZ4_TEXT[cut + 6 :]
    first = bytes([0xF0 | 6 - 4, len(literals) - 15]) + literals + struct.pack("<H", cut - LZ4_MATCH_AT)
    return first + bytes([len(rest) << 4]) + rest


def zstd(text: bytes) -> bytes:
    library = ctypes.CDLL("libzstd.so.1")
    library.ZSTD_compress.restype = ctypes.c_size_t
    room = ctypes.create_string_buffer(len(text) + 1024)
    size = library.ZSTD_compress(room, ctypes.c_size_t(len(room)), text, ctypes.c_size_t(len(text)), 3)
    return room.raw[:size]


class Output:
    """Two files in the place of stdout and stderr."""

    def __init__(self) -> None:
        self.stdout, self.stderr = os.memfd_create("out"), os.memfd_create("err")

    def session(self, null: bool = True) -> Session:
        made = Session(null=null, output=(self.stdout, self.stderr))
        made.open()
        return made


def expects(image: bytes) -> bool:
    """Whether a session expects output once it has loaded this image."""
    with Output().session() as s:
        assert s.word(WORD_DEVICE_OUTPUT) == KEPT
        assert s.load(image)[0] == 0
        return s.word(WORD_DEVICE_OUTPUT) == EXPECTED


def take(s: Session) -> tuple[bytes, bytes, int]:
    """Everything that is there, and in how many answers."""
    out, err, answers = b"", b"", 0
    while True:
        result, payload = s.call("DEVICE_OUTPUT", flush=answers == 0)
        out_bytes, err_bytes, more, _ = struct.unpack_from("<IIII", payload)
        assert result == 0 and len(payload) == 16 + out_bytes + err_bytes
        out += payload[16 : 16 + out_bytes]
        err += payload[16 + out_bytes :]
        answers += 1
        if not more:
            return out, err, answers


@isolated
def test_images_that_print_are_found() -> None:
    plain = b"// .extern .func vprintf\n" + ADD_PTX
    assert expects(plain)
    assert expects(container(entry(plain, 0x11, 0)))
    packed = lz4_with_a_match()
    assert b"vprintf" not in packed
    assert expects(container(entry(packed, 0x11 | FLAG_LZ4, len(LZ4_TEXT))))
    assert expects(container(entry(ADD_PTX, 0x11, 0), entry(packed, 0x11 | FLAG_LZ4, len(LZ4_TEXT))))
    many = random.Random(1).randbytes(400).hex().encode() + b"print vprintf" + bytes(2000)
    assert expects(container(entry(zstd(many), 0x11 | FLAG_ZSTD, len(many))))


@isolated
def test_others_are_not() -> None:
    assert not expects(ADD_PTX)
    assert not expects(container(entry(ADD_PTX, 0x11, 0)))
    assert not expects(container(entry(zstd(ADD_PTX), 0x11 | FLAG_ZSTD, len(ADD_PTX))))
    # Too large to be unpacked while a program waits: libraries.
    packed = entry(lz4_with_a_match(), 0x11 | FLAG_LZ4, len(LZ4_TEXT))
    assert not expects(container(packed, entry(bytes(MIB), 0x11, 0)))


@isolated
def test_damaged_images_are_survived() -> None:
    generator = random.Random(2)
    good = container(
        entry(lz4_with_a_match(b"w"), 0x11 | FLAG_LZ4, len(LZ4_TEXT)),  # not found, so each one is looked into
        entry(zstd(ADD_PTX), 0x11 | FLAG_ZSTD, len(ADD_PTX)),
    )
    with Output().session() as s:
        for _ in range(3000):
            image = bytearray(good)
            for _ in range(generator.randrange(1, 6)):
                image[generator.randrange(16, len(image))] = generator.choice(
                    [0, 1, 0x7F, 0xFF, generator.randrange(256)]
                )
            if s.load(bytes(image))[0] == 0:
                s.push("MODULE_UNLOAD", module=1)
        assert s.call("PING", value=1)[0] == 0


@isolated
def test_text_of_any_length_arrives_once() -> None:
    files = Output()
    with files.session() as s:
        assert take(s) == (b"", b"", 1)
        text = random.Random(3).randbytes(3 * MIB)
        os.write(files.stdout, text)
        os.write(files.stderr, b"said\n")
        out, err, answers = take(s)
        assert out == text and err == b"said\n" and answers > 100
        os.write(files.stdout, b"later")
        assert take(s) == (b"later", b"", 1)
        # What has been taken needs no memory any more.
        assert os.fstat(files.stdout).st_blocks * 512 < 2 * MIB


@isolated
def test_a_context_is_not_needed_and_a_wild_one_does_no_harm() -> None:
    files = Output()
    with files.session(null=False) as s:
        os.write(files.stdout, b"a")
        assert s.call("DEVICE_OUTPUT", context=0, flush=1)[1][16:] == b"a"
        for context in (1, 2, 63):
            assert s.call("DEVICE_OUTPUT", context=context, flush=1)[0] == 0


@isolated
def test_without_files_nothing_is_kept() -> None:
    with Session(null=True) as s:
        s.open()
        assert s.word(WORD_DEVICE_OUTPUT) == 0
        assert s.load(b"// vprintf\n" + ADD_PTX)[0] == 0
        assert s.word(WORD_DEVICE_OUTPUT) == 0
        assert s.call("DEVICE_OUTPUT", flush=1)[0] == NOT_SUPPORTED


@isolated
def test_what_nobody_asked_for_is_in_the_log_at_the_end() -> None:
    files = Output()
    read_end, write_end = os.pipe()
    with Session(null=True, output=(files.stdout, files.stderr), log_fd=write_end) as s:
        s.open()
        os.write(files.stderr, b"of a kernel\n")
        assert take(s)[1] == b"of a kernel\n"
        os.write(files.stderr, b"free(): invalid size\n")
    os.close(write_end)
    told = os.read(read_end, 65536)
    assert told.endswith(b"free(): invalid size\n") and b"of a kernel" not in told


if __name__ == "__main__":
    main(globals())
