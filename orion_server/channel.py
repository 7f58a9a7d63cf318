"""Length-prefixed msgpack maps between the server and its workers, over an inherited socketpair.

The server's end treats what a worker says as hostile: a worker runs a tenant's kernels. Sizes are bounded here, the
fields by whoever reads them.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any

import msgspec

MAX_MESSAGE_BYTES = 1 << 20
_LENGTH = struct.Struct("<I")


class ChannelError(Exception):
    """The other end broke the framing."""


def encode(message: dict[str, Any]) -> bytes:
    """One framed message."""
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise ChannelError(f"message of {len(body)} bytes is larger than {MAX_MESSAGE_BYTES}")
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Adds bytes and returns the messages that are complete now."""
        self._buffer += data
        messages: list[dict[str, Any]] = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_MESSAGE_BYTES:
                raise ChannelError(f"message of {length} bytes is larger than {MAX_MESSAGE_BYTES}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            try:
                messages.append(msgspec.msgpack.decode(body, type=dict[str, Any]))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ChannelError(f"not a msgpack map: {error}") from error
        return messages


class BlockingChannel:
    """The worker's end: one thread, driven by a selector."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._decoder = Decoder()

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message; blocks while the server does not read."""
        self.socket.sendall(encode(message))

    def receive(self) -> list[dict[str, Any]] | None:
        """Reads what is there once; None when the server has closed its end."""
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            return None
        return self._decoder.feed(data) if data else None


class ChannelProtocol(asyncio.Protocol):
    """The server's end."""

    def __init__(self, on_message: Callable[[dict[str, Any]], None], on_end: Callable[[str], None]) -> None:
        self._on_message = on_message
        self._on_end = on_end
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self._reason = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]  # uvloop's transport is not a subclass

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                self._on_message(message)
        except ChannelError as error:
            self._reason = f"broken channel: {error}"
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_end(self._reason)

    def send(self, message: dict[str, Any]) -> None:
        """Queues a message; dropped when the worker is gone (its end is reported separately)."""
        if self._transport is not None:
            self._transport.write(encode(message))

    def close(self) -> None:
        """Closes this end; the worker exits when it sees that."""
        if self._transport is not None:
            self._transport.close()
