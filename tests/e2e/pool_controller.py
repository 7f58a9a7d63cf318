"""A controller that answers from a script: what a client of the pool may meet, over the real protocol."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import zmq

from wire import pool

Reply = bytes | msgspec.Struct
Script = Callable[[Any, "PoolController"], Iterable[Reply]]  # the request, and whom it reached
_decoder = msgspec.msgpack.Decoder(pool.ToController)


class PoolController:
    """A ROUTER. The client's messages are decoded as a controller decodes them; one that does not fit ends the test."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Any] = []
        self.bad: list[str] = []
        self.unread: list[bytes] = []
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.address = f"127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"
        self.changed = threading.Condition()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while not self.stopping.is_set():
            if not self.socket.poll(20):
                continue
            identity, body = self.socket.recv_multipart()
            try:
                request = _decoder.decode(body)
            except msgspec.MsgspecError as error:
                self.bad.append(str(error))
                self.unread.append(body)
                continue
            with self.changed:
                self.requests.append(request)
                self.changed.notify_all()
            for reply in self.script(request, self):
                data = reply if isinstance(reply, bytes) else msgspec.msgpack.encode(reply)
                self.socket.send_multipart([identity, data])

    def of(self, kind: type) -> list[Any]:
        with self.changed:
            return [request for request in self.requests if isinstance(request, kind)]

    def wait_for(self, kind: type, timeout_s: float = 30.0) -> Any:
        """The first request of a kind, once it has come."""

        def come() -> list[Any]:
            return [request for request in self.requests if isinstance(request, kind)]

        with self.changed:
            assert self.changed.wait_for(come, timeout_s), f"no {kind.__name__} within {timeout_s} s: {self.requests}"
            return come()[0]

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join()
        self.context.destroy(linger=0)
        assert not self.bad, self.bad


def allocated(request: Any, addresses: Sequence[str], **changes: Any) -> pool.Allocated:
    servers = [
        pool.ServerTicket(server=f"server-{i}", address=address, ticket=b"ticket %d" % i)
        for i, address in enumerate(addresses)
    ]
    fields: dict[str, Any] = {"allocation": "a-1", "servers": servers, "attach_within_s": 60.0} | changes
    return pool.Allocated(id=request.id, **fields)


def giving(*addresses: str) -> Script:
    """vGPUs on these servers, to whoever asks."""

    def script(request: Any, controller: PoolController) -> Iterable[Reply]:
        if isinstance(request, pool.Allocate):
            yield allocated(request, addresses)

    return script
