"""The answer to the runtime's self-test, against the RFC's digests and a published vector."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "shim" / "src" / "export"


class Device(ctypes.Structure):
    _fields_ = [("uuid", ctypes.c_uint8 * 16), ("pci", ctypes.c_int32 * 3)]


class SelfTest(ctypes.Structure):
    _fields_ = [
        ("driver_version", ctypes.c_uint32),
        ("version", ctypes.c_uint32),
        ("process", ctypes.c_uint32),
        ("thread", ctypes.c_uint32),
        ("runtime_table", ctypes.c_uint64),
        ("self_test_table", ctypes.c_uint64),
        ("self_test_function", ctypes.c_uint64),
        ("unix_seconds", ctypes.c_uint64),
        ("devices", ctypes.POINTER(Device)),
        ("device_count", ctypes.c_uint32),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    output = tmp_path_factory.mktemp("answer") / "answer.so"
    sources = [str(SOURCES / name) for name in ("hmac_md2.c", "self_test_answer.c")]
    subprocess.run(["gcc", "-std=c11", "-shared", "-fPIC", "-O1", *sources, "-o", str(output)], check=True)
    return ctypes.CDLL(str(output))


# The test suite of RFC 1319, appendix A.5.
RFC_DIGESTS = {
    b"": "8350e5a3e24c153df2275c9f80692773",
    b"a": "32ec01ec4a6dac72c0ab96fb34c0b5d1",
    b"abc": "da853b0d3f88d99b30283a69e6ded6bb",
    b"message digest": "ab4f496bfb2a530b219ff33031fe06b0",
    b"abcdefghijklmnopqrstuvwxyz": "4e8ddff3650292ab5a4108c3aa47940b",
    b"1234567890" * 8: "d5976f79d83d3a0dc9806c3c66f3efd8",
}


@pytest.mark.parametrize("text", RFC_DIGESTS, ids=len)
@pytest.mark.parametrize("piece_bytes", [1, 7, 16, 100])
def test_md2(library: ctypes.CDLL, text: bytes, piece_bytes: int) -> None:
    state, digest = (ctypes.c_uint8 * 128)(), (ctypes.c_uint8 * 16)()
    library.orion_md2_begin(state)
    for at in range(0, len(text), piece_bytes):
        piece = text[at : at + piece_bytes]
        library.orion_md2_add(state, piece, ctypes.c_size_t(len(piece)))
    library.orion_md2_end(state, digest)
    assert bytes(digest).hex() == RFC_DIGESTS[text]


def answer(library: ctypes.CDLL, version: int) -> str:
    device = Device((ctypes.c_uint8 * 16)(*bytes.fromhex("6722CBCFC661F29274D6ED232A32131C")), (0, 4, 0))
    test = SelfTest(
        12020, version, 0x4D08, 0x2B78, 0x7FF8C80717F0, 0x7FF8C825E4B0, 0x7FF8C7DD0AD0, 0x64A365EE,
        ctypes.pointer(device), 1,
    )  # fmt: skip
    out = (ctypes.c_uint8 * 16)()
    library.orion_self_test_answer(ctypes.byref(test), out)
    return bytes(out).hex()


def test_published_vector(library: ctypes.CDLL) -> None:
    assert answer(library, 0x2B4A) == "7a7014f22846c3a784cdbf423331f1ea"


def test_first_two_questions(library: ctypes.CDLL) -> None:
    assert answer(library, 12080) == "5c67cb031c184133e8d14c1faa83d38e"
    assert answer(library, 12081) == "5c67cb031c184118e8d14c1faa83d38e"
