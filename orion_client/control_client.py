"""Asks a server a question over its control port, without attaching."""

from __future__ import annotations

import itertools
import socket
from typing import Any

import zmq

from wire import control

_request_ids = itertools.count(1)
MAX_ANSWER_BYTES = 4 << 20


class ServerUnreachable(Exception):
    """No usable answer: the message says what happened, `hint` what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


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
    answer = _ask(server, control.Stats(id=next(_request_ids)), timeout_s)
    if not isinstance(answer, control.StatsAnswer):
        raise ServerUnreachable(f"{server} answered stats with {type(answer).__name__}", "is it an orion-server?")
    return answer


def _ask(server: str, request: Any, timeout_s: float) -> Any:
    why_not = port_answers(server, timeout_s)
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
        if not connection.poll(int(timeout_s * 1000)):
            raise ServerUnreachable(f"{server} does not answer like an orion-server within {timeout_s:g} s",
                                    "check the port: orion-server's default is 9960")  # fmt: skip
        try:
            answer = control.decode_answer(connection.recv())
        except control.ControlError as error:
            raise ServerUnreachable(f"{server}: {error}", error.hint) from error
    finally:
        context.destroy(linger=0)
    if isinstance(answer, control.Error):
        raise ServerUnreachable(f"{server} refused: {answer.message}", answer.hint)
    return answer
