"""A ZeroMQ socket on the event loop: what router.py and dealer.py share.

A plain socket with its edge-triggered descriptor, drained to the end at each event and after each send; the asyncio
wrapper of pyzmq costs ten times as much.
"""

from __future__ import annotations

import asyncio

import zmq

_SAFETY_DRAIN_S = 0.25


class LoopSocket:
    """Belongs to the event loop's thread. `_receive` gets each message; it may close the socket."""

    def _watch(self, socket: zmq.Socket[bytes], at_once: int) -> None:
        """From now on. Behind `at_once` messages others have their turn."""
        self._watched = socket
        self._at_once = at_once
        self._draining = False
        self._loop = asyncio.get_running_loop()
        self._fd = int(socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._drain)
        self._timer = self._loop.call_later(_SAFETY_DRAIN_S, self._tick)

    def _unwatch(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._fd)
        self._watched.close()

    def _after_send(self) -> None:
        """A send may have used up the descriptor's edge."""
        if not self._draining:
            self._loop.call_soon(self._drain)

    def _receive(self, frames: list[bytes]) -> None:
        raise NotImplementedError

    def _tick(self) -> None:
        self._timer = self._loop.call_later(_SAFETY_DRAIN_S, self._tick)
        self._drain()

    def _drain(self) -> None:
        if self._draining or self._watched.closed:
            return
        self._draining = True
        try:
            for _ in range(self._at_once):
                try:
                    frames = self._watched.recv_multipart(zmq.DONTWAIT)
                except zmq.Again:
                    return
                self._receive(frames)
                if self._watched.closed:
                    return
            self._loop.call_soon(self._drain)  # other tasks first, then the rest
        finally:
            self._draining = False
