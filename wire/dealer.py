"""A DEALER socket on the event loop: an orion-server's connection to the controller of its pool."""

from __future__ import annotations

import logging
from collections.abc import Callable

import zmq

from wire import curve
from wire.loop_socket import LoopSocket

log = logging.getLogger("orion.dealer")

_AT_ONCE = 256
_QUEUED_MESSAGES = 1024


class DealerSocket(LoopSocket):
    """Connects at once and for ever; what is sent before there is a connection goes out with it."""

    def __init__(self, address: str, on_message: Callable[[bytes], None], max_message_bytes: int,
                 context: zmq.Context[zmq.Socket[bytes]] | None = None, server_key: str = "") -> None:  # fmt: skip
        """`server_key` (z85): everything is encrypted for who holds its secret."""
        self.address = address
        self._on_message = on_message
        self._context = context or zmq.Context(io_threads=1)
        self._is_own_context = context is None
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        self._socket.setsockopt(zmq.SNDHWM, _QUEUED_MESSAGES)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        # A machine that is gone without a word is noticed, though nothing is sent to it.
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6000)
        if server_key:
            curve.encrypt(self._socket, server_key)
        self._socket.connect(f"tcp://{address}")
        self._watch(self._socket, _AT_ONCE)

    def send(self, body: bytes) -> None:
        """Never waits; what a full queue does not take is lost, as if the network had lost it."""
        try:
            self._socket.send(body, zmq.DONTWAIT)
        except zmq.ZMQError as error:
            log.debug("message to %s dropped: %s", self.address, error)
        self._after_send()

    def close(self) -> None:
        """After what is on its way, for a moment."""
        self._unwatch()
        if self._is_own_context:
            self._context.term()

    def _receive(self, frames: list[bytes]) -> None:
        if len(frames) == 1:
            self._on_message(frames[0])
