"""The vGPUs of a server: what the registry (slices.py) decides, put into force by the arbiter, and what they use."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable

from orion_server.arbitration import Arbiter, ArbiterError, BelowUsage, Usage
from orion_server.slices import (
    CUDA_ERROR_INVALID_VALUE,
    CUDA_ERROR_OUT_OF_MEMORY,
    Change,
    Limits,
    Member,
    Registry,
    Slice,
    SliceError,
    Wish,
    mib,
)
from wire import control

log = logging.getLogger("orion.vgpus")

_MAX_BYTES = (1 << 63) - 1


class Vgpus:
    """Belongs to the event loop's thread: of two changes at once each is whole, and the last one stays."""

    def __init__(self, registry: Registry, arbiter: Arbiter, pinned_bytes: int) -> None:
        self.registry = registry
        self._arbiter = arbiter
        self._pinned_bytes = pinned_bytes
        self._numbers: dict[Slice, int] = {}  # the arbiter's
        self._since_s: dict[Slice, float] = {}

    def oversubscribe(self) -> None:
        """Before the first session: where quotas may exceed a GPU, the arbiter says whose memory is on it."""
        swap_bytes = self.registry.swap_bytes
        for ordinal in self.registry.gpus if swap_bytes else ():
            self._arbiter.set_memory(ordinal, self.registry.capacity_bytes(ordinal), swap_bytes)

    def admit(self, member: Member, wish: Wish) -> list[Slice]:
        """The session's vGPUs, made where its group has none; a SliceError changes nothing."""
        slices = self.registry.admit(member, wish)
        try:
            for mine in slices:
                if mine not in self._numbers:
                    self._numbers[mine] = self._arbiter.add_slice(mine.gpu, mine.limits, self._pinned_bytes)
                    self._since_s[mine] = time.time()
                    log.info("%s on GPU %d: %s", mine.name, mine.gpu, describe(mine.limits))
        except ArbiterError as error:
            self.release(member.session)
            raise SliceError(CUDA_ERROR_OUT_OF_MEMORY, str(error), "see the log of orion-server") from error
        return slices

    def assign(self, session: str, seat: int) -> None:
        """The worker in that seat serves the session."""
        for mine in self.registry.slices_of(session):
            self._arbiter.assign(seat, self._numbers[mine])

    def release(self, session: str) -> None:
        """The session's worker is dead, and its seat taken away."""
        for ended in self.registry.release(session):
            self._since_s.pop(ended, None)
            number = self._numbers.pop(ended, None)
            if number is not None:
                with contextlib.suppress(ArbiterError):
                    self._arbiter.remove_slice(number)
                log.info("%s on GPU %d has ended", ended.name, ended.gpu)

    def resize(self, target: str, ordinal: int | None, change: Change, block: bool) -> list[Slice]:
        """New limits for the vGPUs of a target, in force on return; of several, all or none."""
        slices = self.registry.find(target, ordinal)
        planned = self.registry.resized(slices, change)
        done: list[tuple[Slice, Limits]] = []
        try:
            for changed, limits in planned:
                self._arbiter.set_slice(self._numbers[changed], limits, self._pinned_bytes, block)
                done.append((changed, changed.limits))
                self.registry.commit(changed, limits)
        except ArbiterError as error:
            for changed, before in done:
                self._arbiter.set_slice(self._numbers[changed], before, self._pinned_bytes, True)
                self.registry.commit(changed, before)
            raise self._refusal(error, planned[len(done)]) from error
        for changed, limits in planned:
            log.info("%s on GPU %d is resized: %s", changed.name, changed.gpu, describe(limits))
        return slices

    def _refusal(self, error: ArbiterError, planned: tuple[Slice, Limits]) -> SliceError:
        changed, limits = planned
        if not isinstance(error, BelowUsage):
            return SliceError(CUDA_ERROR_INVALID_VALUE, str(error), "see the log of orion-server")
        used = mib(self.usage(changed).charged_bytes)
        return SliceError(CUDA_ERROR_OUT_OF_MEMORY,
                          f"{changed.name} uses {used} of GPU {changed.gpu}, more than {mib(limits.quota_bytes)}",
                          "free memory first, or let new allocations fail until usage has fallen: "
                          "--shrink block")  # fmt: skip

    def usage(self, of: Slice) -> Usage:
        """What the workers of a vGPU use, now."""
        return self._arbiter.usage(self._numbers[of])

    def stats(self, slices: Iterable[Slice], mapped_bytes: Callable[[Slice], int]) -> list[control.VgpuStats]:
        """For people and programs. `mapped_bytes`: what the sessions of a slice say that they hold."""
        return [self._stats(s, mapped_bytes(s)) for s in slices]

    def _stats(self, s: Slice, mapped_bytes: int) -> control.VgpuStats:
        usage = self.usage(s)
        return control.VgpuStats(
            vgpu=s.name,
            gpu=s.gpu,
            group=s.owner.group,
            shared=s.is_shared,
            sessions=sorted(s.sessions),
            pids=sorted(self.registry.members[session].pid for session in s.sessions),
            since=self._since_s[s],
            quota_bytes=s.limits.quota_bytes,
            used_bytes=bounded(max(usage.charged_bytes, mapped_bytes)),
            out_bytes=bounded(usage.out_bytes),
            kind_bytes={kind: bounded(value) for kind, value in usage.kind_bytes.items()},
            pinned_bytes=bounded(usage.pinned_bytes),
            ratio=s.limits.ratio_percent,
            policy="elastic" if s.limits.policy else "hard",
            achieved_1s=usage.achieved_1s,
            achieved_10s=usage.achieved_10s,
            spent_ns=bounded(usage.spent_ns),
            throttled_ns=bounded(usage.throttled_ns),
            works=bounded(usage.works),
            turns=bounded(usage.turns),
        )


def bounded(value: int) -> int:
    """What a control message can carry."""
    return max(0, min(value, _MAX_BYTES))


def describe(limits: Limits) -> str:
    """One line for the log."""
    quota = mib(limits.quota_bytes) if limits.quota_bytes else "no quota"
    ratio = f"{limits.ratio_percent} % {limits.policy.name.lower()}" if limits.ratio_percent else "no ratio"
    return f"{quota}, {ratio}"
