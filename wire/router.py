"""A ROUTER socket on the event loop: the control ports of orion-server and of orion-controller."""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable

import zmq

from wire.loop_socket import LoopSocket

log = logging.getLogger("orion.control")

MAX_MESSAGE_BYTES = 64 << 10
_QUEUED_MESSAGES = 256
# Message rate of one connection: far above what a client needs (three messages a session), far below what would keep
# the loop busy.
_BURST = 100.0
_PER_SECOND = 50.0
_BUCKETS = 1024


class RateLimiter:
    """A token bucket for each connection; the connections seen longest ago are forgotten first."""

    def __init__(self, burst: float = _BURST, per_second: float = _PER_SECOND, buckets: int = _BUCKETS) -> None:
        self._burst = burst
        self._per_second = per_second
        self._capacity = buckets
        self._buckets: collections.OrderedDict[bytes, tuple[float, float]] = collections.OrderedDict()

    def admit(self, identity: bytes, now_s: float) -> bool:
        """Takes one token of `identity`; False when there is none."""
        tokens, last_s = self._buckets.pop(identity, (self._burst, now_s))
        tokens = min(self._burst, tokens + (now_s - last_s) * self._per_second)
        admitted = tokens >= 1.0
        self._buckets[identity] = (tokens - 1.0 if admitted else tokens, now_s)
        if len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        return admitted


class Envelope:
    """Where an answer goes: the frames before the body, as they came."""

    __slots__ = ("frames",)

    def __init__(self, frames: list[bytes]) -> None:
        self.frames = frames

    @property
    def identity(self) -> bytes:
        """The connection."""
        return self.frames[0]


class ControlSocket(LoopSocket):
    """Receives bounded messages and hands them on; sends answers and never waits for a slow client."""

    def __init__(
        self,
        host: str,
        port: int,
        on_message: Callable[[Envelope, bytes], None],
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        queued_messages: int = _QUEUED_MESSAGES,
        limiter: RateLimiter | None = None,
        secret_key: str = "",
    ) -> None:
        """`secret_key` (z85): takes only connections that CurveZMQ encrypts for it; who connects is asked later."""
        self._on_message = on_message
        self._limiter = limiter or RateLimiter()
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        self._socket.setsockopt(zmq.RCVHWM, queued_messages)
        self._socket.setsockopt(zmq.SNDHWM, queued_messages)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, 5000)
        if secret_key:
            self._socket.curve_server = True
            self._socket.curve_secretkey = secret_key.encode()
        try:
            self._socket.bind(f"tcp://{host}:{port if port else '*'}")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
        endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.address = endpoint.removeprefix("tcp://")
        self._watch(self._socket, _QUEUED_MESSAGES)
        self.dropped = 0

    def send(self, envelope: Envelope, body: bytes) -> None:
        """Answers; a client that is gone or does not read loses its answer."""
        try:
            self._socket.send_multipart([*envelope.frames, body], zmq.DONTWAIT)
        except zmq.ZMQError as error:
            log.debug("answer dropped: %s", error)
        self._after_send()

    def close(self) -> None:
        """Closes the port after the answers that are on their way."""
        self._unwatch()
        self._context.term()

    def _receive(self, frames: list[bytes]) -> None:
        # DEALER sends [body]; REQ sends ["", body].
        well_formed = len(frames) == 2 or (len(frames) == 3 and frames[1] == b"")
        if not well_formed or not self._limiter.admit(frames[0], self._loop.time()):
            self.dropped += 1
            if self.dropped & (self.dropped - 1) == 0:  # 1, 2, 4, 8...: a flood does not fill the log
                log.warning("%d control messages dropped so far (malformed or too many)", self.dropped)
            return
        self._on_message(Envelope(frames[:-1]), frames[-1])
