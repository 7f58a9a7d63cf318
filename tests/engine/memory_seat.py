"""A seat of which the test is the server: grants of memory, and what the engine charges against them."""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Callable

from seat import DEVICE, DEVICE_BYTES, MAGIC, NO_LIMIT, SEAT, SEAT_BYTES, VERSION

WAKE, PINNED_GRANTED, PINNED, DEVICES = (
    SEAT[name] for name in ("wake", "pinned_granted_bytes", "pinned_bytes", "devices")
)
GRANTED, QUOTA, OTHERS, ANSWERED, CHARGED, KINDS, ASKED, ASKED_BYTES = (
    DEVICE[name]
    for name in ("granted_bytes", "quota_bytes", "others_bytes", "answered", "charged_bytes", "kind_bytes", "asked",
                 "asked_bytes")
)  # fmt: skip
KIND_NAMES = ("buffer", "virtual", "array", "module", "context", "limit", "graph")


class MemorySeat:
    """One worker's seat; offsets are those of orion_seat.h."""

    def __init__(self, quota: int, granted: int | None = None, pinned: int = NO_LIMIT) -> None:
        self.fd = os.memfd_create("seat")
        os.ftruncate(self.fd, SEAT_BYTES)
        self.doorbell, self.wake = os.eventfd(0), os.eventfd(0)
        self.memory = mmap.mmap(self.fd, SEAT_BYTES)
        struct.pack_into("<II", self.memory, 0, MAGIC, VERSION)
        self.put(PINNED_GRANTED, pinned)
        for device in range(64):
            self.grant(NO_LIMIT if quota == NO_LIMIT else granted if granted is not None else quota, device)
            self.set(QUOTA, 0 if quota == NO_LIMIT else quota, device)
        self.over_bytes = 0
        self.stopped = threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def descriptors(self) -> tuple[int, int, int]:
        return self.fd, self.doorbell, self.wake

    def at(self, offset: int) -> int:
        return int(struct.unpack_from("<Q", self.memory, offset)[0])

    def put(self, offset: int, value: int) -> None:
        struct.pack_into("<Q", self.memory, offset, value)

    def get(self, field: int, device: int = 0) -> int:
        return self.at(DEVICES + device * DEVICE_BYTES + field)

    def set(self, field: int, value: int, device: int = 0) -> None:
        self.put(DEVICES + device * DEVICE_BYTES + field, value)

    def grant(self, value: int, device: int = 0) -> None:
        self.set(GRANTED, value, device)

    def resize(self, quota: int, device: int = 0) -> None:
        """A lone worker's quota, all of which is granted."""
        self.set(QUOTA, quota, device)
        self.grant(quota, device)

    def charged(self, device: int = 0) -> int:
        return self.get(CHARGED, device)

    def kinds(self, device: int = 0) -> dict[str, int]:
        return {name: self.get(KINDS + 8 * i, device) for i, name in enumerate(KIND_NAMES)}

    def leave(self, room: int, device: int = 0) -> int:
        """Resizes the quota so that so much is free; what is charged."""
        charged = self.charged(device)
        self.resize(charged + room, device)
        return charged

    def answer_when_asked(self, grant: Callable[[int], int | None]) -> threading.Thread:
        """Answers one question with what `grant` makes of the bytes that are asked for; None: never."""

        def serve() -> None:
            os.eventfd_read(self.doorbell)
            asked = self.get(ASKED)
            granted = grant(self.get(ASKED_BYTES))
            if granted is None:
                return
            self.grant(granted)
            self.set(ANSWERED, asked)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        return thread

    def _watch(self) -> None:
        # The grant is only raised between two looks, or lowered where the test says so.
        while not self.stopped.wait(0.0005):
            charged = self.charged()
            granted = self.get(GRANTED)
            self.over_bytes = max(self.over_bytes, charged - granted)

    def close(self) -> None:
        self.stopped.set()
        self.watcher.join()
        for fd in (self.fd, self.doorbell, self.wake):
            os.close(fd)
