"""Passwords as they are kept: `scrypt$LOG2_N$R$P$SALT$KEY`, so that the cost can grow without locking anybody out."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from dataclasses import dataclass

LENGTH_MIN = 8
LENGTH_MAX = 256
_SALT_BYTES = 16
_KEY_BYTES = 32
_MEMORY_MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class Cost:
    """Of one guess: 128 * r * 2**log2_n bytes of memory, walked through p times."""

    log2_n: int = 15
    r: int = 8
    p: int = 3

    def __post_init__(self) -> None:
        if not (1 <= self.log2_n <= 20 and 1 <= self.r <= 32 and 1 <= self.p <= 16):
            raise ValueError(f"a cost of {self} is out of bounds")


DEFAULT_COST = Cost()


def make(password: str, cost: Cost) -> str:
    """A new salt each time; some tenths of a second at the default cost."""
    salt = secrets.token_bytes(_SALT_BYTES)
    return _stored(cost, salt, _key(password, salt, cost))


def of_nobody(cost: Cost) -> str:
    """What no password matches, and takes as long to find out."""
    return _stored(cost, secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_KEY_BYTES))


def matches(password: str, stored: str) -> bool:
    """False also for what is no stored password."""
    try:
        kind, log2_n, r, p, salt, key = stored.split("$")
        cost = Cost(int(log2_n), int(r), int(p))
        expected = base64.b64decode(key, validate=True)
        if kind != "scrypt":
            return False
        return hmac.compare_digest(_key(password, base64.b64decode(salt, validate=True), cost), expected)
    except (ValueError, binascii.Error):
        return False


def _key(password: str, salt: bytes, cost: Cost) -> bytes:
    data = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(data, salt=salt, n=1 << cost.log2_n, r=cost.r, p=cost.p, maxmem=_MEMORY_MAX_BYTES,
                          dklen=_KEY_BYTES)  # fmt: skip


def _stored(cost: Cost, salt: bytes, key: bytes) -> str:
    return "$".join(("scrypt", str(cost.log2_n), str(cost.r), str(cost.p), _text(salt), _text(key)))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
