"""Asks a server a question over its control port, without attaching."""

from __future__ import annotations

import itertools
import socket
from typing import Any, TypeVar

import zmq

from wire import control

_request_ids = itertools.count(1)
MAX_ANSWER_BYTES = 4 << 20
_CONNECT_TIMEOUT_S = 3.0
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


def stats(server: str, timeout_s: float = 3.0) -> control.StatsAnswer:
    """The server's GPUs and clients."""
    return ask(server, control.Stats(id=next_id()), control.StatsAnswer, timeout_s)


def next_id() -> int:
    """For a request of this process."""
    return next(_request_ids)


def ask(server: str, request: control.Request, expected: type[Expected], timeout_s: float | None = 3.0) -> Expected:
    """The answer to one request. `timeout_s` None: waits for the answer as long as the server is there."""
    answer = _ask(server, request, timeout_s)
    if not isinstance(answer, expected):
        raise ServerUnreachable(f"{server} answered with {type(answer).__name__}", "is it an orion-server?")
    return answer


def _ask(server: str, request: control.Request, timeout_s: float | None) -> Any:
    why_not = port_answers(server, _CONNECT_TIMEOUT_S if timeout_s is None else timeout_s)
    if why_not:
        raise ServerUnreachable(f"nothing answers at {server}: {why_not}",
                                "start orion-server there or set ORION_SERVER=host:port")  # fmt: skip
    context = zmq.Context()
    try:
        connection = context.socket(zmq.DEALER)
        connection.setsockopt(zmq.LINGER, 0)
        connection.setsockopt(zmq.MAXMSGSIZE, MAX_ANSWER_BYTES)
        connection.connect(f"tcp://{server}")
        connection.send(control.encode(request))
        while not connection.poll(int((_CONNECT_TIMEOUT_S if timeout_s is None else timeout_s) * 1000)):
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
