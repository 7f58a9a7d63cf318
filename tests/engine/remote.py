"""A client that speaks frames, over either kind of lanes, and an engine behind them.

ENGINE_TEST_LANES chooses the kind: raw (plain sockets: small bulk on the lane of operations, large on a stripe) or zmq.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from typing import Any

import zmq
from session import (
    ARENA_BYTES,
    BY_NAME,
    HOST_BASE,
    MIB,
    SLOT_BASE,
    SLOT_BYTES,
    WORD_NULL,
    WORD_STREAMS,
    ffi,
    lib,
    libcuda_path,
    pack,
)

RAW = os.environ.get("ENGINE_TEST_LANES") == "raw"
STRIPE_MIN_BYTES = 256 << 10

CONTROL, OPS_MAIN, OPS_EXPRESS, BULK, REPLY, WORDS, CLIENT_WORDS, RUNS = range(1, 9)
TOKEN = bytes(range(32))


def frame(kind: int, body: bytes = b"", sequence: int = 0, a: int = 0, b: int = 0) -> bytes:
    return struct.pack("<HHIQQQ", kind, 0, len(body), sequence, a, b) + body


class RawLane:
    """One connection, with as much of a ZeroMQ socket's manners as the tests need."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("raw://").rpartition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.buffer = b""

    def send(self, message: bytes) -> None:
        try:
            self.socket.sendall(message)
        except OSError:
            pass  # an engine that has ended the session is what the test then finds

    def has_frame(self) -> bool:
        if len(self.buffer) < 32:
            return False
        return len(self.buffer) >= 32 + int(struct.unpack_from("<HHI", self.buffer)[2])

    def fill(self) -> None:
        try:
            self.buffer += self.socket.recv(4 << 20)
        except ConnectionError:
            pass

    def recv(self) -> bytes:
        while not self.has_frame():
            before = len(self.buffer)
            self.fill()
            assert len(self.buffer) > before, "the engine has closed the lane"
        size = 32 + struct.unpack_from("<HHI", self.buffer)[2]
        message, self.buffer = self.buffer[:size], self.buffer[size:]
        return message

    def close(self, _linger: int = 0) -> None:
        self.socket.close()


class Remote:
    """An engine behind lanes, and a client that speaks frames."""

    def __init__(self, null: bool = False, join: bool = True, seat: tuple[int, int, int] | None = None) -> None:
        """`seat`: descriptors of its memory, its doorbell and its wake."""
        config = ffi.new("orion_engine_config *")
        path = ffi.new("char[]", libcuda_path().encode())
        config.libcuda_path, config.null_engine = (ffi.NULL if null else path), null
        config.transport = lib.ORION_ENGINE_TCP
        if seat:
            config.seat_fd, config.doorbell_fd, config.wake_fd = seat
        config.log_level = int(os.environ.get("ENGINE_TEST_LOG", "0"))
        made = ffi.new("orion_engine **")
        assert lib.orion_engine_new(config, made) == 0
        self.engine = made[0]
        ends = [ffi.new("char[64]"), ffi.new("char[64]")]
        assert (
            lib.orion_engine_tcp_listen(
                self.engine,
                lib.ORION_ENGINE_LANES_RAW if RAW else lib.ORION_ENGINE_LANES_ZMQ,
                b"127.0.0.1",
                lib.ORION_ENGINE_CIPHER_NONE,
                TOKEN,
                len(TOKEN),
                *ends,
            )
            == 0
        )
        self.endpoints = [ffi.string(end).decode() for end in ends]
        row = ffi.new("orion_engine_device *", {"ordinal": 0, "base": SLOT_BASE, "bytes": SLOT_BYTES})
        request = ffi.new("orion_engine_bind_request *")
        request.segment_fd = request.arena_fd = -1
        request.host_base, request.arena_bytes = HOST_BASE, ARENA_BYTES
        request.device_count, request.devices = 1, row
        assert lib.orion_engine_bind(self.engine, request, ffi.new("uint64_t *")) == 0
        self.end = 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.context = zmq.Context()
        self.words: dict[int, int] = {}
        self.told: list[int] = []  # words and replies (-1), in the order in which a client takes them
        self.replies: dict[int, tuple[int, bytes]] = {}
        self.arena: dict[int, bytes] = {}
        self.runs: dict[int, bytes] = {}
        self.sequence = self.bulk_sent = self.bulk_got = 0
        self.held: list[tuple[int, bytes]] = []
        self.numbered: dict[int, bytes] = {}
        self.ops: Any = None
        self.bulk: Any = None
        if join:
            self.ops, self.bulk = self.join()

    def join(self, token: bytes = TOKEN, link: bytes = b"") -> list[Any]:
        """`link`: round trip in ns and bytes a second of the network that plain sockets are to emulate."""
        lanes: list[Any] = []
        if RAW:
            for index in range(2):
                lanes.append(RawLane(self.endpoints[0]))
                lanes[-1].send(frame(CONTROL, token + (b"" if index else link), a=index, b=1))
            if token == TOKEN:
                for lane in lanes:
                    assert lane.recv() == frame(CONTROL)
            return lanes
        for endpoint in self.endpoints:
            lane = self.context.socket(zmq.DEALER)
            lane.linger = 0
            lane.connect(endpoint)
            lane.send(frame(CONTROL, token))
            lanes.append(lane)
        if token == TOKEN:
            for lane in lanes:
                assert lane.poll(10000), "no welcome"
                assert lane.recv() == frame(CONTROL)
        return lanes

    def _run(self) -> None:
        self.end = lib.orion_engine_run(self.engine)

    def push(self, name: str, tail: bytes = b"", /, **values: Any) -> None:
        header = {
            k: values.pop(k)
            for k in ("context", "thread", "stream", "reply_slot", "reply_seq", "bulk_seq")
            if k in values
        }
        raw = pack(name, values, tail, **header)
        kind = OPS_EXPRESS if "express" in BY_NAME[name].flags else OPS_MAIN
        self.ops.send(frame(kind, raw + b"\0" * (-len(raw) % 8)))

    def send_runs(self, body: bytes) -> int:
        self.bulk_sent += 1
        (self.ops if RAW else self.bulk).send(frame(RUNS, body, self.bulk_sent))
        return self.bulk_sent

    def send_client_word(self, index: int, value: int) -> None:
        (self.ops if RAW else self.bulk).send(frame(CLIENT_WORDS, struct.pack("<QQ", index, value)))

    def send_bulk(self, offset: int, data: bytes) -> int:
        for at in range(0, len(data), MIB):
            self.bulk_sent += 1
            piece = data[at : at + MIB]
            striped = not RAW or len(piece) >= STRIPE_MIN_BYTES
            lane = self.bulk if striped else self.ops
            lane.send(frame(BULK, piece, self.bulk_sent, offset + at, self.bulk_sent - 1 if RAW and striped else 0))
        return self.bulk_sent

    def call(self, name: str, tail: bytes = b"", /, **values: Any) -> tuple[int, bytes]:
        self.sequence += 1
        sequence = self.sequence
        self.push(name, tail, reply_slot=sequence % 64, reply_seq=sequence, **values)
        self.pump(lambda: sequence in self.replies)
        return self.replies[sequence]

    def wait_word(self, word: int, value: int) -> None:
        self.pump(lambda: self.words.get(word, 0) >= value)

    def sync(self, stream: int, value: int) -> None:
        word = WORD_STREAMS + stream if stream else WORD_NULL + 1
        self.push("MARK", stream=stream, word=word, value=value)
        self.wait_word(word, value)

    def _messages(self) -> list[bytes]:
        """What has come within 100 ms, on both lanes."""
        lanes = [lane for lane in (self.ops, self.bulk) if lane is not None]
        if not RAW:
            poller = zmq.Poller()
            for lane in lanes:
                poller.register(lane, zmq.POLLIN)
            return [lane.recv() for lane, _ in poller.poll(100)]
        if not any(lane.has_frame() for lane in lanes):
            ready, _, _ = select.select([lane.socket for lane in lanes], [], [], 0.1)
            for lane in lanes:
                if lane.socket in ready:
                    lane.fill()
        return [lane.recv() for lane in lanes if lane.has_frame()]

    def _store(self, message: bytes) -> None:
        kind, _, _, _, a, _ = struct.unpack_from("<HHIQQQ", message)
        body = message[32:]
        if kind == BULK:
            self.arena[a] = body
        while kind == RUNS and body:
            offset, length, _ = struct.unpack_from("<QII", body)
            self.runs[offset] = body[16 : 16 + length]
            body = body[16 + (length + 7) // 8 * 8 :]

    def pump(self, done: Any, timeout_s: float = 30) -> None:
        """Takes frames as a client must: words (and what is behind them) only once their bulk has been stored."""
        until = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < until, "nothing came"
            for message in self._messages():
                kind, _, size, sequence, _, _ = struct.unpack_from("<HHIQQQ", message)
                assert len(message) == 32 + size
                if kind in (BULK, RUNS):
                    assert sequence not in self.numbered and sequence > self.bulk_got
                    self.numbered[sequence] = message
                else:
                    self.held.append((kind, message))
            while self.bulk_got + 1 in self.numbered:
                self.bulk_got += 1
                self._store(self.numbered.pop(self.bulk_got))
            while self.held:
                kind, message = self.held[0]
                _, _, _, sequence, _, b = struct.unpack_from("<HHIQQQ", message)
                if kind == WORDS:
                    if sequence > self.bulk_got:
                        break
                    for index, value in struct.iter_unpack("<QQ", message[32:]):
                        self.told.append(index)
                        assert value >= self.words.get(index, 0), "a word went back"
                        self.words[index] = value
                elif kind == REPLY:
                    self.told.append(-1)
                    self.replies[sequence] = (ffi.cast("int32_t", b).__int__(), message[32:])
                self.held.pop(0)

    def ended(self, timeout_s: float = 20) -> int:
        self.thread.join(timeout_s)
        assert not self.thread.is_alive(), "the engine still runs"
        return int(self.end)

    def reason(self) -> str:
        text = ffi.new("char[256]")
        lib.orion_engine_reason(self.engine, text, 256)
        return bytes(ffi.string(text)).decode()

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        lib.orion_engine_stop(self.engine)
        self.ended()
        self.context.destroy(0)
        if RAW:
            for lane in (self.ops, self.bulk):
                if lane is not None:
                    lane.close()
        lib.orion_engine_free(self.engine)
