"""SHA-256 against the vectors of FIPS 180-4, with and without the CPU's instructions; HMAC-MD2 against RFC 2104."""

from __future__ import annotations

import ctypes
import hashlib
import random
import subprocess
from pathlib import Path

import pytest

SHIM = Path(__file__).resolve().parents[2] / "shim" / "src"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    output = tmp_path_factory.mktemp("digests") / "digests.so"
    sources = [str(SHIM / "api" / "sha256.c"), str(SHIM / "export" / "hmac_md2.c")]
    subprocess.run(["gcc", "-std=gnu11", "-shared", "-fPIC", "-O1", *sources, "-o", str(output)], check=True)
    return ctypes.CDLL(str(output))


def sha256(library: ctypes.CDLL, name: str, prefix: bytes, data: bytes) -> str:
    out = (ctypes.c_uint8 * 32)()
    size = ctypes.c_size_t
    getattr(library, name)(prefix, size(len(prefix)), data, size(len(data)), out)
    return bytes(out).hex()


# FIPS 180-4's examples (one block, two blocks, a long message), the empty message, and its 896-bit one.
PUBLISHED = {
    b"": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    b"abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq": (
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
    ),
    b"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn"
    b"hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu": (
        "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"
    ),
    b"a" * 1_000_000: "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
}


@pytest.mark.parametrize("name", ["orion_sha256", "orion_sha256_portable"])
@pytest.mark.parametrize("message", PUBLISHED, ids=len)
def test_sha256_published(library: ctypes.CDLL, name: str, message: bytes) -> None:
    for cut in {0, min(3, len(message)), len(message) // 2, len(message)}:
        assert sha256(library, name, message[:cut], message[cut:]) == PUBLISHED[message]


@pytest.mark.parametrize("name", ["orion_sha256", "orion_sha256_portable"])
def test_sha256_every_length(library: ctypes.CDLL, name: str) -> None:
    data = random.Random(7).randbytes(300)
    for length in range(len(data)):
        cut = length * 2 // 3
        assert sha256(library, name, data[:cut], data[cut:length]) == hashlib.sha256(data[:length]).hexdigest()


def md2(library: ctypes.CDLL, text: bytes) -> bytes:
    state, digest = (ctypes.c_uint8 * 128)(), (ctypes.c_uint8 * 16)()
    library.orion_md2_begin(state)
    library.orion_md2_add(state, text, ctypes.c_size_t(len(text)))
    library.orion_md2_end(state, digest)
    return bytes(digest)


def hmac_md2(library: ctypes.CDLL, key: bytes, pieces: list[bytes]) -> bytes:
    state, digest = (ctypes.c_uint8 * 256)(), (ctypes.c_uint8 * 16)()
    library.orion_hmac_md2_begin(state, key)
    for piece in pieces:
        library.orion_hmac_md2_add(state, piece, ctypes.c_size_t(len(piece)))
    library.orion_hmac_md2_end(state, digest)
    return bytes(digest)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 64, 200])
def test_hmac_md2_is_what_rfc_2104_says(library: ctypes.CDLL, length: int) -> None:
    """No vector of it was ever published; MD2 itself is checked by RFC 1319's (test_answer.py)."""
    generator = random.Random(length)
    key, text = generator.randbytes(16), generator.randbytes(length)
    inner = md2(library, bytes(byte ^ 0x36 for byte in key) + text)
    expected = md2(library, bytes(byte ^ 0x5C for byte in key) + inner)
    assert hmac_md2(library, key, [text]) == expected
    assert hmac_md2(library, key, [text[: length // 2], text[length // 2 :]]) == expected
