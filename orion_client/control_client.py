"""Asks a server a question over its control port, without attaching."""

from __future__ import annotations

import contextlib
import itertools
import socket
from typing import Any, TypeVar

import zmq

from orion_client import settings
from wire import control

_request_ids = itertools.count(1)
MAX_ANSWER_BYTES = 4 << 20
_CONNECT_TIMEOUT_S = 3.0
_ZMTP_SIGNATURE = b"\xff" + bytes(8) + b"\x7f\x03"  # and the version
_ZMTP_MECHANISM = slice(12, 32)
Expected = TypeVar("Expected")


class ServerUnreachable(Exception):
    """No usable answer: the message says what happened, `hint` what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class ServerRefused(ServerUnreachable):
    """The server answered, and will not. `code`: the CUresult that a client would get."""

    def __init__(self, server: str, error: control.Error) -> None:
        super().__init__(f"{server} refused: {error.message}", error.hint)
        self.reason = error.message
        self.code = error.code


def port_answers(server: str, timeout_s: float) -> str:
    """Empty when something listens at `server`, else why not."""
    host, _, port = server.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout_s).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def stats(server: str, timeout_s: float = 3.0, key: str | None = None) -> control.StatsAnswer:
    """The server's GPUs and clients. `key` as of `ask`."""
    return ask(server, control.Stats(id=next_id()), control.StatsAnswer, timeout_s, key)


def _key_of(server: str) -> str:
    try:
        return settings.server_key(server)
    except settings.SettingError as error:
        raise ServerUnreachable(str(error), "correct ORION_SERVER_KEY") from None


def next_id() -> int:
    """For a request of this process."""
    return next(_request_ids)


def ask(server: str, request: control.Request, expected: type[Expected], timeout_s: float | None = 3.0,
        key: str | None = None) -> Expected:  # fmt: skip
    """The answer to one request. `timeout_s` None: waits for the answer as long as the server is there. `key`: the
    server's public key as a controller tells it (empty: not encrypted); None: as it is configured. Only a server that
    was configured is shown the client's key, and only encrypted."""
    if key is None:
        key = _key_of(server)
        if isinstance(request, control.Stats) and key:
            request.key = settings.client_key()
    answer = _ask(server, request, timeout_s, key)
    if not isinstance(answer, expected):
        raise ServerUnreachable(f"{server} answered with {type(answer).__name__}", "is it an orion-server?")
    return answer


def _encrypt(connection: zmq.Socket[bytes], server_key: str) -> None:
    public, secret = zmq.curve_keypair()
    try:
        connection.curve_serverkey = server_key.encode()
    except (zmq.ZMQError, UnicodeEncodeError):
        raise ServerUnreachable("ORION_SERVER_KEY is not a key", "set what `orion-server key` prints there") from None
    connection.curve_publickey, connection.curve_secretkey = public, secret


def _arrives(connection: zmq.Socket[bytes], monitor: zmq.Socket[bytes], timeout_ms: int) -> bool:
    """Whether an answer is there. False at the deadline, or as soon as the connection has failed."""
    poller = zmq.Poller()
    poller.register(connection, zmq.POLLIN)
    poller.register(monitor, zmq.POLLIN)
    return connection in dict(poller.poll(timeout_ms))


def _mechanism(server: str) -> bytes:
    """What a server speaks: b"CURVE", b"NULL", or something else. An end of ZMTP that has seen a signature and a
    version tells it, and cannot know ours yet."""
    host, _, port = server.rpartition(":")
    greeting = b""
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S) as connection:
        connection.sendall(_ZMTP_SIGNATURE)
        while len(greeting) < _ZMTP_MECHANISM.stop and (more := connection.recv(64)):
            greeting += more
    return greeting[_ZMTP_MECHANISM].rstrip(b"\0")


def _unencrypted(server: str, key: str) -> ServerUnreachable:
    """Why a connection ended before it was one."""
    differs = _mechanism(server) == (b"NULL" if key else b"CURVE")
    if differs and not key:
        return ServerUnreachable(f"{server} takes encrypted connections only",
                                 "set ORION_SERVER_KEY to what `orion-server key` prints there")  # fmt: skip
    if differs:
        return ServerUnreachable(f"ORION_SERVER_KEY is set and {server} does not encrypt",
                                 "start orion-server with --curve on, or unset ORION_SERVER_KEY")  # fmt: skip
    if key:
        return ServerUnreachable(f"no encrypted connection to {server}",
                                 "is ORION_SERVER_KEY what `orion-server key` prints there?")  # fmt: skip
    return ServerUnreachable(f"{server} closed the connection: it is no orion-server",
                             "check the port: orion-server's default is 9960")  # fmt: skip


def _ask(server: str, request: control.Request, timeout_s: float | None, key: str) -> Any:
    why_not = port_answers(server, _CONNECT_TIMEOUT_S if timeout_s is None else timeout_s)
    if why_not:
        raise ServerUnreachable(f"nothing answers at {server}: {why_not}",
                                "start orion-server there or set ORION_SERVER=host:port")  # fmt: skip
    context = zmq.Context()
    try:
        connection = context.socket(zmq.DEALER)
        connection.setsockopt(zmq.LINGER, 0)
        connection.setsockopt(zmq.MAXMSGSIZE, MAX_ANSWER_BYTES)
        if key:
            _encrypt(connection, key)
        monitor = connection.get_monitor_socket(zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.DISCONNECTED)
        connection.connect(f"tcp://{server}")
        connection.send(control.encode(request))
        wait_ms = int((_CONNECT_TIMEOUT_S if timeout_s is None else timeout_s) * 1000)
        while not _arrives(connection, monitor, wait_ms):
            if monitor.poll(0):
                raise _unencrypted(server, key)
            if timeout_s is not None:
                raise ServerUnreachable(f"{server} does not answer like an orion-server within {timeout_s:g} s",
                                        "check the port: orion-server's default is 9960")  # fmt: skip
            if port_answers(server, _CONNECT_TIMEOUT_S):
                raise ServerUnreachable(f"{server} has gone", "it stops once it is drained")
        try:
            answer = control.decode_answer(connection.recv())
        except control.ControlError as error:
            raise ServerUnreachable(f"{server}: {error}", error.hint) from error
    finally:
        context.destroy(linger=0)
    if isinstance(answer, control.Error):
        raise ServerRefused(server, answer)
    return answer
