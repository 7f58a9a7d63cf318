"""A server on softgpu and a client that speaks the control protocol by hand."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from orion_client import settings
from orion_client.private_server import PrivateServer
from wire import control


class RawClient:
    """Sends any bytes to a control port."""

    def __init__(self, address: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(f"tcp://{address}")

    def send(self, body: bytes) -> None:
        self.socket.send(body)

    def receive(self, timeout_s: float = 20.0) -> Any:
        if not self.socket.poll(int(timeout_s * 1000)):
            raise TimeoutError("no answer")
        return control.decode_answer(self.socket.recv())

    def ask(self, request: Any, timeout_s: float = 20.0) -> Any:
        self.send(control.encode(request))
        return self.receive(timeout_s)

    def close(self) -> None:
        self.context.destroy(linger=0)


def attach_request(request_id: int = 1, **changes: Any) -> control.Attach:
    """What a client of this host and user says first."""
    fields: dict[str, Any] = {
        "id": request_id,
        "wire": control.WIRE_VERSION,
        "pid": os.getpid(),
        "uid": os.geteuid(),
        "host": control.boot_id(),
        "program": "test",
        "transports": ["shm", "tcp"],
    }
    return control.Attach(**{**fields, **changes})


@pytest.fixture
def attach() -> Callable[..., control.Attach]:
    return attach_request


@pytest.fixture
def admin_token(server: PrivateServer) -> str:
    """Of the servers that tests start in the default folder."""
    return settings.admin_token(None)


@pytest.fixture
def server() -> Iterator[PrivateServer]:
    with PrivateServer("softgpu") as running:
        yield running


@pytest.fixture
def client(server: PrivateServer) -> Iterator[RawClient]:
    raw = RawClient(server.address)
    yield raw
    raw.close()


@pytest.fixture
def connect() -> Iterator[Callable[[str], RawClient]]:
    made: list[RawClient] = []

    def make(address: str) -> RawClient:
        made.append(RawClient(address))
        return made[-1]

    yield make
    for raw in made:
        raw.close()


@pytest.fixture
def eventually() -> Callable[..., None]:
    def wait(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, "the awaited state did not come"
            time.sleep(0.02)

    return wait
