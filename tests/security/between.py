"""Somebody between a client and its server.

The client is told a server key that is this one's, so control is read and written here; that is what makes it possible
to stand on the data lanes, which are only forwarded, by somebody who has no keys of theirs: `Tamper` changes records,
and all bytes that pass are kept.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import zmq

PREAMBLE = struct.Struct("<QQ")  # orion_sealed_preamble: magic, lane
LENGTH = struct.Struct("<I")
TAG_BYTES = 16
MOST_BYTES = 1 << 16
Harm = Literal["flip", "length", "repeat", "drop", "swap", "cut"]


class Tamper:
    """Does one harm, once: to the first full record of a lane in one direction after `skip` others. A full one: what
    follows it is there too."""

    def __init__(self, harm: Harm, lane: int, to_worker: bool, skip: int = 2) -> None:
        self.harm, self.lane, self.to_worker = harm, lane, to_worker
        self._left = skip
        self._kept = b""
        self.done = False

    def __call__(self, lane: int, to_worker: bool, record: bytes) -> list[bytes]:
        """What is forwarded instead of a record; an empty one: the connection's end."""
        if lane != self.lane or to_worker != self.to_worker or self.done:
            return [record]
        if self._kept:
            self.done = True
            return [record, self._kept]
        if len(record) != LENGTH.size + MOST_BYTES + TAG_BYTES:
            return [record]
        self._left -= 1
        if self._left >= 0:
            return [record]
        if self.harm == "swap":
            self._kept = record
            return []
        self.done = True
        middle = len(record) // 2
        flipped = record[:middle] + bytes([record[middle] ^ 1]) + record[middle + 1 :]
        shorter = LENGTH.pack(MOST_BYTES - 1) + record[LENGTH.size :]
        return {
            "flip": [flipped],
            "length": [shorter],
            "repeat": [record, record],
            "drop": [],
            "cut": [record[:middle], b""],
        }[self.harm]


def forward(lane: int, to_worker: bool, record: bytes) -> list[bytes]:
    """Changes nothing."""
    return [record]


class Between:
    """Listens on loopback; `address` and `key` are what the client is told."""

    def __init__(
        self, server: str, server_key: str, change: Callable[[int, bool, bytes], list[bytes]] = forward
    ) -> None:
        self.server, self.server_key, self.change = server, server_key, change
        self.passed = bytearray()  # all bytes of all lanes
        self.session = ""
        self.token = b""
        self._sealed = True
        self._lanes = ("", 0)
        public, secret = zmq.curve_keypair()
        self.key = public.decode()
        self._context = zmq.Context()
        self._control = self._context.socket(zmq.ROUTER)
        self._control.curve_server, self._control.curve_secretkey = True, secret
        self.address = f"127.0.0.1:{self._control.bind_to_random_port('tcp://127.0.0.1')}"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stopping = threading.Event()
        self._sockets: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=target) for target in (self._serve_control, self._accept)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Between:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join()
        self._context.destroy(linger=0)

    # ------------------------------------------------------------------------------------------------ control

    def _serve_control(self) -> None:
        upstream: dict[bytes, zmq.Socket[bytes]] = {}
        while not self._stopping.is_set():
            if self._control.poll(10):
                identity, body = self._control.recv_multipart()
                if identity not in upstream:
                    upstream[identity] = self._connect()
                upstream[identity].send(body)
            for identity, connection in upstream.items():
                while connection.poll(0):
                    self._control.send_multipart([identity, self._redirected(connection.recv())])

    def _connect(self) -> zmq.Socket[bytes]:
        connection = self._context.socket(zmq.DEALER)
        if self.server_key:
            connection.curve_serverkey = self.server_key.encode()
            connection.curve_publickey, connection.curve_secretkey = zmq.curve_keypair()
        connection.connect(f"tcp://{self.server}")
        return connection

    def _redirected(self, body: bytes) -> bytes:
        answer: dict[str, Any] = msgspec.msgpack.decode(body)
        if answer.get("type") == "attached" and str(answer["tcp_ops"]).startswith("raw://"):
            host, _, port = str(answer["tcp_ops"]).removeprefix("raw://").rpartition(":")
            self._lanes = (host, int(port))
            self.session, self.token, self._sealed = answer["session"], answer["token"], bool(answer["cipher"])
            answer["tcp_ops"] = f"raw://127.0.0.1:{self._listener.getsockname()[1]}"
        return msgspec.msgpack.encode(answer)

    # ------------------------------------------------------------------------------------------------ lanes

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                worker = socket.create_connection(self._lanes)
                self._sockets += [client, worker]
                lane: list[int] = []
                for source, target, to_worker in ((client, worker, True), (worker, client, False)):
                    self._threads.append(threading.Thread(target=self._pump, args=(source, target, to_worker, lane)))
                    self._threads[-1].start()

    def _pump(self, source: socket.socket, target: socket.socket, to_worker: bool, lane: list[int]) -> None:
        with contextlib.suppress(OSError):
            if self._sealed:
                self._pump_records(source, target, to_worker, lane)
            else:
                while data := source.recv(1 << 16):
                    self.passed += data
                    target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _pump_records(self, source: socket.socket, target: socket.socket, to_worker: bool, lane: list[int]) -> None:
        if to_worker:
            preamble = self._exactly(source, PREAMBLE.size)
            lane.append(PREAMBLE.unpack(preamble)[1])
            target.sendall(preamble)
        while True:
            head = self._exactly(source, LENGTH.size)
            record = head + self._exactly(source, LENGTH.unpack(head)[0] + TAG_BYTES)
            for part in self.change(lane[0], to_worker, record):
                if not part:
                    return
                target.sendall(part)

    def _exactly(self, source: socket.socket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = source.recv(count - len(data))
            if not more:
                raise OSError("ended")
            data += more
        self.passed += data
        return data
