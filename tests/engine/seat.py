"""The server's side of a worker's seat (wire/include/orion_seat.h), for tests that play orion-server."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import struct
import time
from pathlib import Path

HEADER = Path(__file__).resolve().parent.parent.parent / "wire" / "include" / "orion_seat.h"
NO_LIMIT = (1 << 64) - 1
MAGIC, VERSION, LINE, KINDS = 0x0053414553, 1, 64, 7


def layout(name: str) -> tuple[dict[str, int], int]:
    """Offsets of a structure's words, as the compiler places them, and its size."""
    body = re.search(rf"typedef struct {name} {{(.*?)}} {name};", HEADER.read_text(), re.DOTALL)
    assert body, name
    offsets: dict[str, int] = {}
    at = 0
    for declaration in re.sub(r"//[^\n]*", "", body[1]).split(";"):
        words = declaration.split()
        if not words:
            continue
        size = 8 if "uint64_t" in words else 4 if "uint32_t" in words else 0
        if words[0].startswith("alignas"):
            at = -(-at // LINE) * LINE
        for field in re.split(r"uint\d+_t|orion_seat_device", declaration)[1].split(","):
            count = KINDS if "KINDS" in field else 1
            if size == 0:
                size, count = layout("orion_seat_device")[1], 64
                at = -(-at // LINE) * LINE
            at = -(-at // min(size, 8)) * min(size, 8)
            offsets[field.split("[")[0].strip()] = at
            at += size * count
    return offsets, -(-at // LINE) * LINE


SEAT, SEAT_BYTES = layout("orion_seat")
DEVICE, DEVICE_BYTES = layout("orion_seat_device")


class Seat:
    """A seat and its two eventfds. `seat[device, "grant"]` reads and writes a word of the device."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("seat")
        os.ftruncate(self.fd, SEAT_BYTES)
        self.memory = mmap.mmap(self.fd, SEAT_BYTES)
        struct.pack_into("<II", self.memory, 0, MAGIC, VERSION)
        self.doorbell = os.eventfd(0, os.EFD_NONBLOCK)
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.pinned_granted_bytes = NO_LIMIT
        for device in range(64):
            self[device, "granted_bytes"] = NO_LIMIT

    @property
    def fds(self) -> tuple[int, int, int]:
        return self.fd, self.doorbell, self.wake_fd

    def _word(self, offset: int) -> ctypes.c_uint64:
        return ctypes.c_uint64.from_buffer(self.memory, offset)

    def __getitem__(self, key: tuple[int, str]) -> int:
        return self._word(SEAT["devices"] + key[0] * DEVICE_BYTES + DEVICE[key[1]]).value

    def __setitem__(self, key: tuple[int, str], value: int) -> None:
        self._word(SEAT["devices"] + key[0] * DEVICE_BYTES + DEVICE[key[1]]).value = value

    @property
    def pinned_granted_bytes(self) -> int:
        return self._word(SEAT["pinned_granted_bytes"]).value

    @pinned_granted_bytes.setter
    def pinned_granted_bytes(self, value: int) -> None:
        self._word(SEAT["pinned_granted_bytes"]).value = value

    def wake(self) -> None:
        """After a change: what sleeps on the seat looks at it."""
        word = ctypes.c_uint32.from_buffer(self.memory, SEAT["wake"])
        word.value += 1
        ctypes.CDLL(None).syscall(202, ctypes.byref(word), 1, 0x7FFFFFFF, None, None, 0)
        os.eventfd_write(self.wake_fd, 1)

    def until(self, device: int, field: str, value: int, timeout_s: float = 20) -> None:
        """Waits until the worker has written at least `value`."""
        deadline_s = time.monotonic() + timeout_s
        while self[device, field] < value:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{field} of device {device} is {self[device, field]}, not {value}")
            time.sleep(0.001)
