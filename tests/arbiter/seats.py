"""The real arbiter with real seats: the test plays the workers."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from orion_server.arbiter._arbiter import ffi, lib

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / "arbiter_tests"
MIB = 1 << 20
NO_LIMIT = (1 << 64) - 1
HARD, ELASTIC = lib.ORION_POLICY_HARD, lib.ORION_POLICY_ELASTIC
REFUSE, BLOCK = lib.ORION_SHRINK_REFUSE, lib.ORION_SHRINK_BLOCK
DEADLINE_S = 20  # for what takes microseconds: only a hang comes near it


def compiled(name: str, *flags: str) -> Path:
    source = Path(__file__).with_name("seat_worker.c")
    header = ROOT / "wire" / "include" / "orion_seat.h"
    target = BUILD / name
    if not target.exists() or target.stat().st_mtime < max(source.stat().st_mtime, header.stat().st_mtime):
        BUILD.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(f".{os.getpid()}")
        command = ["gcc", "-std=c11", "-D_GNU_SOURCE", "-O2", *flags, f"-I{header.parent}", str(source)]
        subprocess.run([*command, "-o", str(fresh)], check=True)
        fresh.replace(target)
    return target


@cache
def offset_of(name: str, device: int) -> int:
    library = ctypes.CDLL(str(compiled("libseat.so", "-shared", "-fPIC")))
    library.seat_offset.restype = ctypes.c_uint64
    offset = int(library.seat_offset(device, name.encode()))
    assert offset != NO_LIMIT, name
    return offset


def until(condition: Callable[[], Any]) -> None:
    """Waits for what must come."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.0005)


class Worker:
    """A seat as its worker sees it. `worker.grant` reads the word of GPU 0; `worker.set(wants=1)` writes and rings."""

    def __init__(self, arbiter: Arbiter) -> None:
        self.seat_fd = os.memfd_create("seat", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.seat_fd, lib.orion_arbiter_seat_bytes())
        self.doorbell_fd, self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC), os.eventfd(0, os.EFD_CLOEXEC)
        self.arbiter = arbiter
        self.handle = lib.orion_arbiter_add_seat(arbiter.p, self.seat_fd, self.doorbell_fd, self.wake_fd)
        assert self.handle > 0
        self.map = mmap.mmap(self.seat_fd, lib.orion_arbiter_seat_bytes())

    def word(self, name: str, device: int = 0) -> ctypes.c_uint64:
        return ctypes.c_uint64.from_buffer(self.map, offset_of(name, device))

    def __getattr__(self, name: str) -> int:
        return self.word(name).value

    def set(self, **words: int) -> None:
        for name, value in words.items():
            self.word(name).value = value
        self.ring()

    def ring(self) -> None:
        os.eventfd_write(self.doorbell_fd, 1)

    def holds(self) -> bool:
        return self.grant != self.returned

    def give_back(self, spent_ns: int = 0, wants: int = 0) -> None:
        self.set(spent_ns=self.spent_ns + spent_ns, in_flight_ns=0, wants=wants, returned=self.grant)

    def charge(self, size: int) -> bool:
        """Without asking."""
        if self.charged_bytes + size > self.granted_bytes:
            return False
        self.word("charged_bytes").value += size
        return True

    def ask_and_charge(self, size: int) -> bool:
        if self.charge(size):
            return True
        self.word("asked_bytes").value = self.charged_bytes + size
        self.set(asked=self.asked + 1)
        until(lambda: self.answered == self.asked)
        return self.charge(size)

    def remove(self) -> None:
        assert lib.orion_arbiter_remove_seat(self.arbiter.p, self.handle) == 0


class Arbiter:
    def __init__(self, gpus: int = 1, turn_ns: int = 0) -> None:
        self.p = lib.orion_arbiter_new(ffi.new("orion_arbiter_options *", {"slice_ns": turn_ns, "gpu_count": gpus}))
        assert self.p

    def add_slice(self, *, quota: int = 0, ratio: int = 0, policy: int = HARD, gpu: int = 0) -> int:
        return int(lib.orion_arbiter_add_slice(self.p, gpu, limits(quota, ratio, policy)))

    def set_slice(
        self, number: int, *, quota: int = 0, ratio: int = 0, policy: int = HARD, shrink: int = REFUSE
    ) -> int:
        return int(lib.orion_arbiter_set_slice(self.p, number, limits(quota, ratio, policy), shrink))

    def usage(self, number: int) -> Any:
        usage = ffi.new("orion_slice_usage *")
        assert lib.orion_arbiter_get_slice(self.p, number, ffi.new("orion_slice_limits *"), usage) == 0
        return usage

    def worker(self, *slices: int) -> Worker:
        worker = Worker(self)
        for number in slices:
            assert lib.orion_arbiter_assign(self.p, worker.handle, number) == 0
        return worker


def limits(quota: int, ratio: int, policy: int) -> Any:
    return ffi.new("orion_slice_limits *", {"quota_bytes": quota, "ratio_percent": ratio, "policy": policy})


@contextmanager
def arbiter(gpus: int = 1, turn_ns: int = 0) -> Iterator[Arbiter]:
    made = Arbiter(gpus, turn_ns)
    try:
        yield made
    finally:
        lib.orion_arbiter_free(made.p)
