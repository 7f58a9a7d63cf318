"""Asks a server a question over its control port, without attaching."""

from __future__ import annotations

import itertools
import socket
from typing import Any, NamedTuple, TypeVar

import zmq

from orion_client import settings
from wire import control, curve

_request_ids = itertools.count(1)
MAX_ANSWER_BYTES = 4 << 20
_CONNECT_TIMEOUT_S = 3.0
Expected = TypeVar("Expected")


class ServerUnreachable(Exception):
    """No usable answer: the message says what happened, `hint` what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class PoolKeys(NamedTuple):
    """Of a server, as the controller of its pool tells them. `public`: in z85, empty where it does not encrypt;
    `stats`: what the server wants to see before it tells what it does."""

    public: str
    stats: str


class KeyTrouble(ServerUnreachable):
    """The two ends do not agree on encryption, or on the key."""


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


def stats(server: str, timeout_s: float = 3.0, keys: PoolKeys | None = None) -> control.StatsAnswer:
    """The server's GPUs and clients. `keys` as of `ask`."""
    # A pod's key is for what its group has.
    group = (settings.setting("ORION_GROUP_ID") or "")[:255]
    return ask(server, control.Stats(id=next_id(), group=group), control.StatsAnswer, timeout_s, keys)


def _key_of(server: str) -> str:
    try:
        return settings.server_key(server)
    except settings.SettingError as error:
        raise KeyTrouble(str(error), "correct ORION_SERVER_KEY") from None


def next_id() -> int:
    """For a request of this process."""
    return next(_request_ids)


def ask(server: str, request: control.Request, expected: type[Expected], timeout_s: float | None = 3.0,
        keys: PoolKeys | None = None) -> Expected:  # fmt: skip
    """The answer to one request. `timeout_s` None: waits for the answer as long as the server is there. `keys`: as a
    controller tells them; None: those that are configured. Only a server that was configured is shown the client's key,
    and only encrypted."""
    public = _key_of(server) if keys is None else keys.public
    if isinstance(request, control.Stats) and public:
        request.key = settings.client_key() if keys is None else keys.stats
    answer = _ask(server, request, timeout_s, public)
    if not isinstance(answer, expected):
        raise ServerUnreachable(f"{server} answered with {type(answer).__name__}", "is it an orion-server?")
    return answer


class Peer(NamedTuple):
    """What sentences say of the other end: whose key it is, and how it is had."""

    program: str
    setting: str
    port: int


SERVER = Peer("orion-server", "ORION_SERVER_KEY", settings.DEFAULT_PORT)
CONTROLLER = Peer("orion-controller", "ORION_CONTROLLER_KEY", settings.DEFAULT_CONTROLLER_PORT)


class Connection:
    """A DEALER at a control port, encrypted where `key` is not empty. Leaving the `with` closes it."""

    def __init__(self, address: str, key: str, peer: Peer, most_bytes: int) -> None:
        self.address, self._key, self._peer = address, key, peer
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, most_bytes)
        try:
            if key:
                curve.encrypt(self._socket, key)
        except (zmq.ZMQError, ValueError):
            self._context.destroy(linger=0)
            raise KeyTrouble(f"{peer.setting} is not a key", f"set what `{peer.program} key` prints there") from None
        self._monitor = self._socket.get_monitor_socket(zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.DISCONNECTED)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._socket.connect(f"tcp://{address}")

    def send(self, body: bytes) -> None:
        """Goes out when the connection stands."""
        self._socket.send(body)

    def receive(self, timeout_s: float) -> bytes | None:
        """The next message; None at the deadline. ServerUnreachable as soon as the connection has failed."""
        if self._socket in dict(self._poller.poll(max(0, int(timeout_s * 1000)))):
            return self._socket.recv()
        if self._monitor.poll(0):
            raise self._why_closed()
        return None

    def _why_closed(self) -> ServerUnreachable:
        key, (program, setting, port) = self._key, self._peer
        differs = curve.mechanism(self.address, _CONNECT_TIMEOUT_S) == ("NULL" if key else "CURVE")
        if differs and not key:
            return KeyTrouble(f"{self.address} takes encrypted connections only",
                                     f"set {setting} to what `{program} key` prints there")  # fmt: skip
        if differs:
            return KeyTrouble(f"{setting} is set and {self.address} does not encrypt",
                                     f"start {program} with --curve on, or unset {setting}")  # fmt: skip
        if key:
            return KeyTrouble(f"no encrypted connection to {self.address}",
                                     f"is {setting} what `{program} key` prints there?")  # fmt: skip
        return ServerUnreachable(f"{self.address} closed the connection: it is no {program}",
                                 f"check the port: {program}'s default is {port}")  # fmt: skip

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)


def _ask(server: str, request: control.Request, timeout_s: float | None, key: str) -> Any:
    why_not = port_answers(server, _CONNECT_TIMEOUT_S if timeout_s is None else timeout_s)
    if why_not:
        raise ServerUnreachable(f"nothing answers at {server}: {why_not}",
                                "start orion-server there or set ORION_SERVER=host:port")  # fmt: skip
    with Connection(server, key, SERVER, MAX_ANSWER_BYTES) as connection:
        connection.send(control.encode(request))
        while (body := connection.receive(_CONNECT_TIMEOUT_S if timeout_s is None else timeout_s)) is None:
            if timeout_s is not None:
                raise ServerUnreachable(f"{server} does not answer like an orion-server within {timeout_s:g} s",
                                        "check the port: orion-server's default is 9960")  # fmt: skip
            if port_answers(server, _CONNECT_TIMEOUT_S):
                raise ServerUnreachable(f"{server} has gone", "it stops once it is drained")
    try:
        answer = control.decode_answer(body)
    except control.ControlError as error:
        raise ServerUnreachable(f"{server}: {error}", error.hint) from error
    if isinstance(answer, control.Error):
        raise ServerRefused(server, answer)
    return answer
