"""The controller's ZeroMQ port: decodes what servers and clients say, and hands it to the service.

A server's requests and answers share one connection, in both directions: `ask` sends it a request and waits for its
`done` or `error`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any, Protocol

import msgspec

from wire import pool as wire
from wire.router import ControlSocket, Envelope, RateLimiter

log = logging.getLogger("orion.link")

CUDA_ERROR_INVALID_VALUE = 1
CUDA_ERROR_SYSTEM_DRIVER_MISMATCH = 803
ASK_TIMEOUT_S = 5.0
# Of one connection: one client's tools, or one server whose sessions come and go.
_BURST, _PER_SECOND, _CONNECTIONS = 400.0, 200.0, 16384
_QUEUED_MESSAGES = 4096

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[wire.ToController] = msgspec.msgpack.Decoder(wire.ToController)


class AskError(Exception):
    """A server has refused what it was asked, or did not answer; `code` is a CUresult, 0 without an answer."""

    def __init__(self, message: str, code: int = 0, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class Service(Protocol):
    """Who decides."""

    def receive(self, envelope: Envelope, message: wire.ToController) -> None:
        """Any request of a server or a client."""
        ...


class Link:
    """Belongs to the event loop's thread."""

    def __init__(self, host: str, port: int, service: Service, *, per_second: float = _PER_SECOND,
                 secret_key: str = "") -> None:  # fmt: skip
        """`secret_key` (z85): the port takes only connections that are encrypted for it."""
        self._service = service
        limiter = RateLimiter(max(_BURST, 2 * per_second), per_second, _CONNECTIONS)
        self._socket = ControlSocket(
            host,
            port,
            self._receive,
            max_message_bytes=wire.MAX_MESSAGE_BYTES,
            queued_messages=_QUEUED_MESSAGES,
            limiter=limiter,
            secret_key=secret_key,
        )
        self._servers: dict[str, Envelope] = {}
        self._asked: dict[int, tuple[bytes, asyncio.Future[None]]] = {}
        self._ids = itertools.count(1)

    @property
    def address(self) -> str:
        """host:port."""
        return self._socket.address

    def close(self) -> None:
        """Whoever waits for a server gets an error."""
        for _, future in self._asked.values():
            if not future.done():
                future.set_exception(AskError("the controller is stopping"))
        self._socket.close()

    def send(self, envelope: Envelope, answer: Any) -> None:
        """An answer; lost when nobody is there any more."""
        self._socket.send(envelope, _encoder.encode(answer))

    def bind_server(self, name: str, envelope: Envelope) -> None:
        """From now on the server's requests go to this connection."""
        self._servers[name] = envelope

    def unbind_server(self, name: str) -> None:
        """The server is gone."""
        self._servers.pop(name, None)

    async def ask(self, server: str, request: wire.ResizeAllocation | wire.EndSessions | wire.SetDraining) -> None:
        """Sends it and waits until it is in force; AskError."""
        envelope = self._servers.get(server)
        if envelope is None:
            raise AskError(f"{server} is not connected")
        request.id = next(self._ids) & 0xFFFFFFFF
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked[request.id] = (envelope.identity, future)
        try:
            self.send(envelope, request)
            await asyncio.wait_for(future, ASK_TIMEOUT_S)
        except TimeoutError:
            raise AskError(f"{server} did not answer within {ASK_TIMEOUT_S:g} s") from None
        finally:
            del self._asked[request.id]

    def _receive(self, envelope: Envelope, body: bytes) -> None:
        try:
            message = _decoder.decode(body)
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("refused a message: %s", error)
            request_id = _id_of(body)
            if request_id is not None:
                told = f"the controller does not understand the message: {error}"[:400]
                self.send(envelope, wire.Error(id=request_id, code=CUDA_ERROR_INVALID_VALUE, message=told,
                                               hint="install the same release on both sides"))  # fmt: skip
            return
        if message.v != wire.VERSION:
            told = f"version {message.v} of the pool's protocol is not known, only {wire.VERSION}"
            hint = "install the same release on both sides"
            self.send(
                envelope, wire.Error(id=message.id, code=CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, message=told, hint=hint)
            )
        elif isinstance(message, wire.Done | wire.Error):
            self._answered(envelope, message)
        else:
            self._service.receive(envelope, message)

    def _answered(self, envelope: Envelope, message: wire.Done | wire.Error) -> None:
        identity, future = self._asked.get(message.id, (b"", None))
        if future is None or future.done() or identity != envelope.identity:
            return  # too late, or not for it to answer
        if isinstance(message, wire.Error):
            future.set_exception(AskError(message.message, message.code, message.hint))
        else:
            future.set_result(None)


class _Head(msgspec.Struct):
    id: Any = None


_head_decoder = msgspec.msgpack.Decoder(_Head)


def _id_of(body: bytes) -> int | None:
    try:
        told = _head_decoder.decode(body).id
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError):
        return None
    return told if isinstance(told, int) and 0 <= told <= 0xFFFFFFFF else None
