"""The arbiter (arbiter/arbiter.h) behind a small Python face: slices by number, and the seats of workers."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Any

from orion_server.arbiter._arbiter import ffi, lib
from orion_server.slices import Limits

# Seats are by the server's ordinals, and the first is made before anybody knows how many GPUs there are.
GPUS_MAX = 64
# enum orion_memory_kind. "heap": what cuCtxSetLimit makes the driver keep; a memory limit is the quota here.
MEMORY_KINDS = ("buffer", "virtual", "array", "module", "context", "heap", "graph")


class ArbiterError(Exception):
    """The arbiter refused: `code` is an errno."""

    def __init__(self, what: str, result: int) -> None:
        super().__init__(f"{what}: {os.strerror(-result)}")
        self.code = -result


class BelowUsage(ArbiterError):
    """A quota below what is charged."""


@dataclass(frozen=True)
class Usage:
    """What the workers of a slice have used; of their seats, which tenants' workers write, so for people alone."""

    charged_bytes: int
    kind_bytes: dict[str, int]
    pinned_bytes: int
    spent_ns: int
    throttled_ns: int
    works: int
    turns: int
    credit_ns: int
    achieved_1s: float  # share of the GPU, 0 to 1
    achieved_10s: float
    out_bytes: int = 0  # of charged_bytes, what lies in host memory alone


@dataclass
class Seat:
    """A worker's seat. The descriptors are for its process, which inherits them; close them here afterwards."""

    handle: int
    memory_fd: int
    doorbell_fd: int
    wake_fd: int

    @property
    def fds(self) -> tuple[int, int, int]:
        """In the order in which a worker is told of them."""
        return self.memory_fd, self.doorbell_fd, self.wake_fd

    def close_fds(self) -> None:
        """The arbiter has its own."""
        for fd in self.fds:
            os.close(fd)


class Arbiter:
    """All methods may block for as long as a mutex of the arbiter's thread is held: microseconds."""

    def __init__(self, turn_ns: int = 0) -> None:
        options = ffi.new("orion_arbiter_options *", {"slice_ns": turn_ns, "gpu_count": GPUS_MAX})
        self._made: Any = lib.orion_arbiter_new(options)
        if not self._made:
            raise MemoryError("no memory or no thread for the arbiter")

    def close(self) -> None:
        """Ends its thread. All calls fail afterwards: an attach may still be on its way when the server stops."""
        made, self._made = self._made, None
        if made:
            lib.orion_arbiter_free(made)

    @property
    def _arbiter(self) -> Any:
        if not self._made:
            raise ArbiterError("the server is stopping", -errno.ESHUTDOWN)
        return self._made

    def set_memory(self, gpu: int, capacity_bytes: int, backing_bytes: int) -> None:
        """What workers may have on a GPU at a time, and what each may keep in host memory; before it has slices."""
        memory = ffi.new("orion_gpu_memory *", {"capacity_bytes": capacity_bytes, "backing_bytes": backing_bytes})
        _check("memory cannot be shared out", lib.orion_arbiter_set_memory(self._arbiter, gpu, memory))

    def add_slice(self, gpu: int, limits: Limits, pinned_bytes: int) -> int:
        """Its number."""
        number: int = lib.orion_arbiter_add_slice(self._arbiter, gpu, _limits(limits, pinned_bytes))
        if number < 0:
            raise ArbiterError("a vGPU cannot be made", number)
        return number

    def set_slice(self, number: int, limits: Limits, pinned_bytes: int, block: bool) -> None:
        """New limits, in force when this returns. Below what is charged: BelowUsage, unless `block`: then new
        allocations fail until usage has fallen."""
        shrink = lib.ORION_SHRINK_BLOCK if block else lib.ORION_SHRINK_REFUSE
        result = lib.orion_arbiter_set_slice(self._arbiter, number, _limits(limits, pinned_bytes), shrink)
        if result == -errno.EBUSY:
            raise BelowUsage("more is used", result)
        _check("a vGPU cannot be changed", result)

    def remove_slice(self, number: int) -> None:
        """Nobody has it any more."""
        _check("a vGPU cannot be removed", lib.orion_arbiter_remove_slice(self._arbiter, number))

    def usage(self, number: int) -> Usage:
        """Of a slice, now."""
        limits, usage = ffi.new("orion_slice_limits *"), ffi.new("orion_slice_usage *")
        _check("no such vGPU", lib.orion_arbiter_get_slice(self._arbiter, number, limits, usage))
        return Usage(
            charged_bytes=usage.charged_bytes,
            kind_bytes=dict(zip(MEMORY_KINDS, usage.kind_bytes, strict=True)),
            pinned_bytes=usage.pinned_bytes,
            spent_ns=usage.spent_ns,
            throttled_ns=usage.throttled_ns,
            works=usage.works,
            turns=usage.turns,
            credit_ns=usage.credit_ns,
            achieved_1s=usage.achieved_1s,
            achieved_10s=usage.achieved_10s,
            out_bytes=usage.out_bytes,
        )

    def add_seat(self) -> Seat:
        """For a worker that is about to start."""
        opened: list[int] = []
        try:
            opened.append(os.memfd_create("orion-seat", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
            os.ftruncate(opened[0], lib.orion_arbiter_seat_bytes())
            opened += [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2)]
            handle: int = lib.orion_arbiter_add_seat(self._arbiter, *opened)
            _check("no seat for a worker", min(handle, 0))
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        return Seat(handle, *opened)

    def assign(self, seat: int, number: int) -> None:
        """The worker of the seat serves a session that has this slice."""
        _check("a seat cannot be assigned", lib.orion_arbiter_assign(self._arbiter, seat, number))

    def remove_seat(self, seat: int) -> None:
        """The worker is dead: what it had is given back at once."""
        _check("no such seat", lib.orion_arbiter_remove_seat(self._arbiter, seat))


def _limits(limits: Limits, pinned_bytes: int) -> Any:
    return ffi.new(
        "orion_slice_limits *",
        {
            "quota_bytes": limits.quota_bytes,
            "pinned_bytes": pinned_bytes,
            "ratio_percent": limits.ratio_percent,
            "policy": int(limits.policy),
        },
    )


def _check(what: str, result: int) -> None:
    if result != 0:
        raise ArbiterError(what, result)
