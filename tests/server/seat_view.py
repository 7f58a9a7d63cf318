"""A worker's seat as the worker has it: what orion-server grants, read from the process that inherited it."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

import pytest

from tests.engine.seat import DEVICE, DEVICE_BYTES, SEAT


def worker_pids(server_pid: int) -> list[int]:
    """The server's workers, warm ones among them."""
    children = Path(f"/proc/{server_pid}/task/{server_pid}/children").read_text().split()
    return [int(pid) for pid in children if b"orion_server.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


class SeatView:
    """The seat of one worker. Writing is for tests that play the worker's part."""

    def __init__(self, worker_pid: int) -> None:
        if os.geteuid() != 0:
            pytest.skip("what a worker has is closed to all but root")
        self.pid = worker_pid
        words = Path(f"/proc/{worker_pid}/cmdline").read_bytes().split(b"\0")
        memory = int(words[words.index(b"--seat-fds") + 1])
        self._map = self._open(f"/proc/{worker_pid}/fd/{memory}")

    @staticmethod
    def _open(path: str) -> mmap.mmap:
        fd = os.open(path, os.O_RDWR)
        try:
            return mmap.mmap(fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)

    def read(self, name: str, device: int = 0) -> int:
        value: int = struct.unpack_from("<Q", self._map, self._at(name, device))[0]
        return value

    def write(self, name: str, value: int, device: int = 0) -> None:
        struct.pack_into("<Q", self._map, self._at(name, device), value)

    @staticmethod
    def _at(name: str, device: int) -> int:
        return SEAT["devices"] + device * DEVICE_BYTES + DEVICE[name]

    def close(self) -> None:
        self._map.close()
