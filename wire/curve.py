"""CurveZMQ at both ends of the control ports: key pairs, and what a port speaks that does not answer."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from typing import NamedTuple

import zmq
from zmq.utils import z85

KEY_FORM = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_SIGNATURE = b"\xff" + bytes(8) + b"\x7f\x03"  # and the version
_MECHANISM = slice(12, 32)


class KeyPair(NamedTuple):
    """In z85: 40 characters each."""

    public: str
    secret: str


def pair_of(secret: str) -> KeyPair:
    """The pair of a secret key in z85; ValueError when it is none."""
    try:
        return KeyPair(zmq.curve_public(secret.encode()).decode(), secret)
    except zmq.ZMQError as error:
        raise ValueError("not a Curve secret key") from error


def pair_of_bytes(secret: bytes) -> KeyPair:
    """The pair of 32 random bytes."""
    return pair_of(z85.encode(secret).decode())


def is_public_key(text: str) -> bool:
    """Whether it has the form of a key, and stands for 32 bytes."""
    if not KEY_FORM.fullmatch(text):
        return False
    try:
        return len(z85.decode(text)) == 32
    except Exception:  # of five characters that stand for more than 32 bits: which one depends on pyzmq's version
        return False


def encrypt(connection: zmq.Socket[bytes], server_key: str) -> None:
    """Before the connect: everything is encrypted for who holds the secret of `server_key`; zmq.ZMQError or ValueError
    when that is no key. Our own pair lasts as long as the connection and proves nothing about us."""
    public, secret = zmq.curve_keypair()
    connection.curve_serverkey = server_key.encode()
    connection.curve_publickey, connection.curve_secretkey = public, secret


def mechanism(address: str, timeout_s: float) -> str:
    """What host:port speaks: "CURVE", "NULL", something else, or nothing ("") for no ZeroMQ. An end of ZMTP that has
    seen a signature and a version tells it, and cannot know ours yet."""
    host, _, port = address.rpartition(":")
    greeting = b""
    end_s = time.monotonic() + timeout_s
    with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout_s) as connection:
        connection.sendall(_SIGNATURE)
        while len(greeting) < _MECHANISM.stop and time.monotonic() < end_s and (more := connection.recv(64)):
            greeting += more
    return greeting[_MECHANISM].rstrip(b"\0").decode("ascii", "replace")
