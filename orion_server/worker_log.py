"""What workers have to say, on this server's stderr. A worker is its tenant's: it gets a pipe, not the descriptor of a
log that it could truncate or of a terminal that it could read, and what it writes is bounded and harmless to show."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TextIO

_READ_BYTES = 8192
# Between two reads: over 1 MB a second is not passed on, the worker waits.
_PAUSE_S = 0.005
_LINE_MAX_BYTES = 4096
_LEFT_MAX_BYTES = 1 << 16
# Control characters would be commands to a terminal.
_SHOWN = bytes(byte if byte in (0x09, 0x0A) or 0x20 <= byte != 0x7F else 0x3F for byte in range(256))


class WorkerLog:
    """Passes on the lines that come through one pipe. Belongs to the event loop's thread; owns `fd`."""

    def __init__(self, fd: int, to: TextIO | None = None) -> None:
        self._fd = fd
        self._to = to
        self._begun = b""
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._on_readable)

    def _on_readable(self) -> None:
        self._loop.remove_reader(self._fd)
        if self._pass_on():
            self._timer = self._loop.call_later(_PAUSE_S, self._listen)

    def _listen(self) -> None:
        self._loop.add_reader(self._fd, self._on_readable)

    def _pass_on(self) -> int:
        """How many bytes there were; 0 at the end, -1 when there is nothing yet."""
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return -1
        *lines, self._begun = (self._begun + data).split(b"\n")
        while len(self._begun) > _LINE_MAX_BYTES:
            lines.append(self._begun[:_LINE_MAX_BYTES])
            self._begun = self._begun[_LINE_MAX_BYTES:]
        self._show(lines)
        return len(data)

    def _show(self, lines: list[bytes]) -> None:
        if lines:
            text = b"".join(line.translate(_SHOWN) + b"\n" for line in lines).decode(errors="replace")
            to = self._to or sys.stderr
            to.write(text)
            to.flush()

    def close(self) -> None:
        """The worker is dead: shows what it has left."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._fd)
        for _ in range(_LEFT_MAX_BYTES // _READ_BYTES):
            if self._pass_on() <= 0:
                break
        self._show([self._begun] if self._begun else [])
        os.close(self._fd)
