"""Slices: which vGPU a session gets on each GPU, and how much is left. Arithmetic alone: no CUDA, no clock, no seat.

A slice (vGPU) is a share of one GPU: a memory quota, a compute ratio and a policy. A session has one on each GPU that
it uses. The sessions of a group that wants it (ORION_GROUP_ID with ORION_RES_GROUP=BOX) share them: the first makes
them with its wishes, the others join, they end with the last.

What can be given out of a GPU is its memory without what belongs to the node: what others than Orion hold, and the
contexts of workers. Each worker has a context on every GPU, so there are as many as warm workers and expected sessions,
`vgpu_count`, or those that are there where they are more. A context is measured when the first worker starts.
"""

from __future__ import annotations

import difflib
import enum
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

MIB = 1 << 20
# Device memory is charged in pieces of this size.
GRANULE_BYTES = 2 * MIB
VGPU_COUNT_MAX = 100
GMEM_MIB_MAX = 1 << 30
_GONE_KEPT = 64

CUDA_ERROR_INVALID_VALUE = 1
CUDA_ERROR_OUT_OF_MEMORY = 2
CUDA_ERROR_DEVICE_UNAVAILABLE = 46
CUDA_ERROR_INVALID_DEVICE = 101


class SliceError(Exception):
    """What was asked for cannot be given: a sentence, a CUresult, and what to do."""

    def __init__(self, code: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class Policy(enum.IntEnum):
    """What happens with GPU time that others leave; as enum orion_arbiter_policy."""

    HARD = 0
    ELASTIC = 1


@dataclass(frozen=True)
class Owner:
    """Whose sessions a client may see: those of its own user and group on its own host."""

    host: str
    uid: int
    group: str


@dataclass(frozen=True)
class Limits:
    """Of one slice. 0: no quota; no ratio, so that its work needs no turns."""

    quota_bytes: int = 0
    ratio_percent: int = 0
    policy: Policy = Policy.HARD


@dataclass(frozen=True)
class Wish:
    """What a client asks for; 0 and None: the server's default."""

    count: int = 0  # vGPUs; 0: one on every GPU that has room
    gmem_mib: int = 0
    ratio_percent: int = 0
    policy: Policy | None = None
    ordinals: tuple[int, ...] = ()  # exactly these GPUs, in this order: what a controller has chosen


@dataclass(frozen=True)
class Change:
    """What a resize changes; None: as it is."""

    gmem_mib: int | None = None
    ratio_percent: int | None = None
    policy: Policy | None = None


@dataclass(frozen=True)
class Gpu:
    """Memory of one GPU, as it was before the first session."""

    ordinal: int
    total_bytes: int
    foreign_bytes: int = 0  # held by others than Orion
    context_bytes: int = 0  # of one worker


@dataclass(frozen=True)
class Member:
    """A session: the client process `pid` of `owner`. `shares`: with its group, or with the others of its allocation
    where a controller made one."""

    session: str
    pid: int
    owner: Owner
    shares: bool = False
    allocation: str = ""


@dataclass(eq=False)
class Slice:
    """A vGPU that is given out."""

    name: str
    gpu: int
    limits: Limits
    owner: Owner
    is_shared: bool
    allocation: str = ""
    sessions: set[str] = field(default_factory=set)


class Registry:
    """Every slice of a server. Belongs to the event loop's thread, so that each change is whole before the next."""

    def __init__(
        self,
        gpus: Iterable[Gpu],
        *,
        warm: int,
        vgpu_count: int,
        policy: Policy = Policy.HARD,
        overcommit_ratio: bool = False,
        reserve_bytes: int = 0,
        swap_bytes: int = 0,
    ) -> None:
        self.gpus = {gpu.ordinal: gpu for gpu in gpus}
        self.vgpu_count = vgpu_count
        self.policy = policy
        self.overcommit_ratio = overcommit_ratio
        self.reserve_bytes = reserve_bytes
        self.swap_bytes = swap_bytes
        self.slices: list[Slice] = []
        self.members: dict[str, Member] = {}
        self._warm = warm
        self._made = 0
        self._gone: deque[str] = deque(maxlen=_GONE_KEPT)

    # ------------------------------------------------------------------------------------------ what is left

    def capacity_bytes(self, ordinal: int, workers: int | None = None) -> int:
        """Memory that vGPUs can have on a GPU while `workers` (default: those of now) serve."""
        gpu = self.gpus[ordinal]
        expected = max(self.vgpu_count, len(self.members) if workers is None else workers)
        # What other programs have at the start is part of what is kept for them.
        node_bytes = max(gpu.foreign_bytes, self.reserve_bytes) + gpu.context_bytes * (self._warm + expected)
        return max(0, gpu.total_bytes - node_bytes)

    def left_bytes(self, ordinal: int, workers: int | None = None) -> int:
        """Memory that has not been given out. Quotas together may exceed the GPU by `swap_bytes`, no single one."""
        capacity_bytes = self.capacity_bytes(ordinal, workers)
        left_bytes = capacity_bytes + self.swap_bytes - self.given_bytes(ordinal)
        return max(0, min(left_bytes, capacity_bytes))

    def given_bytes(self, ordinal: int) -> int:
        """Memory that the vGPUs of a GPU may use together."""
        return sum(s.limits.quota_bytes for s in self.slices if s.gpu == ordinal)

    def given_percent(self, ordinal: int) -> int:
        """Sum of the ratios on a GPU."""
        return sum(s.limits.ratio_percent for s in self.slices if s.gpu == ordinal)

    def default_limits(self, ordinal: int, wish: Wish) -> Limits:
        """What a vGPU with this wish has on that GPU."""
        quota_bytes = wish.gmem_mib * MIB
        if not quota_bytes and self.vgpu_count:
            # Of a server that has no sessions: every default vGPU has the same.
            whole_bytes = self.capacity_bytes(ordinal, workers=0)
            quota_bytes = whole_bytes // self.vgpu_count // GRANULE_BYTES * GRANULE_BYTES
        ratio_percent = wish.ratio_percent or (100 // self.vgpu_count if self.vgpu_count else 0)
        return Limits(quota_bytes, ratio_percent, self.policy if wish.policy is None else wish.policy)

    # ------------------------------------------------------------------------------------------ sessions

    def admit(self, member: Member, wish: Wish) -> list[Slice]:
        """The session's slices, by the ordinals of their GPUs, or in the order of `wish.ordinals`; a SliceError changes
        nothing."""
        check_wish(wish)
        if wish.count > len(self.gpus):
            raise SliceError(CUDA_ERROR_INVALID_DEVICE,
                             f"{wish.count} vGPUs wanted, this server has {len(self.gpus)} GPU(s)",
                             "lower ORION_VGPU or name more servers in ORION_SERVER")  # fmt: skip
        if wish.ordinals:
            return self._admit_placed(member, wish)
        of_group = self.group_slices(member.owner) if member.shares else []
        joined = sorted(of_group, key=lambda s: (len(s.sessions), s.gpu))[: wish.count or None]
        made: list[Slice] = []
        if not joined or len(joined) < wish.count:
            limits = {o: self.default_limits(o, wish) for o in self.gpus if all(o != s.gpu for s in joined)}
            for ordinal in self._place(limits, wish.count - len(joined) if wish.count else 0):
                self._made += 1
                name = f"vgpu-{self._made}"
                made.append(Slice(name, ordinal, limits[ordinal], member.owner, member.shares))
        self.slices += made
        self.members[member.session] = member
        for mine in (*joined, *made):
            mine.sessions.add(member.session)
        return self.slices_of(member.session)

    def _admit_placed(self, member: Member, wish: Wish) -> list[Slice]:
        """On the GPUs that a controller has chosen; what the sessions of a shared allocation have is joined."""
        missing = [ordinal for ordinal in wish.ordinals if ordinal not in self.gpus]
        if missing:
            raise SliceError(CUDA_ERROR_INVALID_DEVICE, f"this server has no GPU {missing[0]}",
                             "the controller will learn of it; try again")  # fmt: skip
        joined = {s.gpu: s for s in self.slices if member.shares and s.allocation == member.allocation}
        limits = {o: self.default_limits(o, wish) for o in wish.ordinals if o not in joined}
        if limits:
            self._place(limits, len(limits))  # room on each, or a SliceError
        made: dict[int, Slice] = {}
        for ordinal, limit in limits.items():
            self._made += 1
            made[ordinal] = Slice(f"vgpu-{self._made}", ordinal, limit, member.owner, member.shares, member.allocation)
        self.slices += made.values()
        self.members[member.session] = member
        mine = [joined.get(ordinal) or made[ordinal] for ordinal in wish.ordinals]
        for one in mine:
            one.sessions.add(member.session)
        return mine

    def release(self, session: str) -> list[Slice]:
        """The session has ended; returns the slices that end with it."""
        member = self.members.pop(session, None)
        if member is None:
            return []
        for held in self.slices_of(session):
            held.sessions.discard(session)
        ended = [s for s in self.slices if not s.sessions]
        self.slices = [s for s in self.slices if s.sessions]
        self._gone.extend((session, str(member.pid), *(s.name for s in ended)))
        if member.owner.group and not any(m.owner.group == member.owner.group for m in self.members.values()):
            self._gone.append(member.owner.group)
        return ended

    def slices_of(self, session: str) -> list[Slice]:
        """Of one session, by the ordinals of their GPUs."""
        return sorted((s for s in self.slices if session in s.sessions), key=lambda s: s.gpu)

    def group_slices(self, owner: Owner) -> list[Slice]:
        """Those that the sessions of a group share."""
        return [s for s in self.slices if s.is_shared and s.owner == owner]

    def candidates(self, wish: Wish) -> list[int]:
        """GPUs that a session with this wish would get now: for those who ask before they attach."""
        limits = {o: self.default_limits(o, wish) for o in self.gpus}
        try:
            return self._place(limits, min(wish.count, len(self.gpus)))
        except SliceError:
            return sorted(self.gpus)[: wish.count or None]

    def _place(self, limits: dict[int, Limits], count: int) -> list[int]:
        """`count` GPUs with room (0: all of them), those with the fewest vGPUs first; told in ordinal order."""
        workers = len(self.members) + 1
        with_memory = [o for o in limits if self._fits_memory(o, limits[o].quota_bytes, workers)]
        with_room = [o for o in with_memory if self._fits_ratio(o, limits[o].ratio_percent)]
        if len(with_room) < max(count, 1):
            raise self._no_room(limits, count, workers, lacks_memory=len(with_memory) < max(count, 1))
        load = {o: sum(s.gpu == o for s in self.slices) for o in with_room}
        return sorted(sorted(with_room, key=lambda o: (load[o], o))[: count or None])

    def _fits_memory(self, ordinal: int, quota_bytes: int, workers: int) -> bool:
        return quota_bytes == 0 or quota_bytes <= self.left_bytes(ordinal, workers)

    def _fits_ratio(self, ordinal: int, ratio_percent: int) -> bool:
        return ratio_percent == 0 or self.overcommit_ratio or self.given_percent(ordinal) + ratio_percent <= 100

    def _no_room(self, limits: dict[int, Limits], count: int, workers: int, lacks_memory: bool) -> SliceError:
        wanted = "no GPU has" if count <= 1 else f"not {count} GPUs have"
        if lacks_memory:
            need = max((limit.quota_bytes for limit in limits.values()), default=0)
            left = "; ".join(
                f"GPU {o} has {mib(self.left_bytes(o, workers))} left of {mib(self.gpus[o].total_bytes)}"
                for o in limits
            )
            return SliceError(CUDA_ERROR_OUT_OF_MEMORY, f"{wanted} {mib(need)} left for a vGPU: {left}"[:380],
                              "lower ORION_GMEM, or wait until another vGPU ends or is made smaller")  # fmt: skip
        need_percent = max((limit.ratio_percent for limit in limits.values()), default=0)
        held = "; ".join(
            f"{f'GPU {o}: ' if len(limits) > 1 else ''}{self._vgpus(o)} {self.given_percent(o)} %" for o in limits
        )
        return SliceError(CUDA_ERROR_DEVICE_UNAVAILABLE, f"{wanted} {need_percent} % left: {held}"[:380],
                          "lower ORION_RATIO, wait until another vGPU ends, or start the server with "
                          "--overcommit-ratio")  # fmt: skip

    def _vgpus(self, ordinal: int) -> str:
        count = sum(s.gpu == ordinal and s.limits.ratio_percent > 0 for s in self.slices)
        return "1 vGPU holds" if count == 1 else f"{count} vGPUs hold"

    # ------------------------------------------------------------------------------------------ change

    def find(self, target: str, ordinal: int | None = None) -> list[Slice]:
        """The slices of a group, a session, a client's process id or a vGPU's name; SliceError when there are none or
        when the name could mean different tenants."""
        found = [s for s in self.slices if s.name == target or target in s.sessions]
        found = found or [s for s in self.slices if s.allocation == target and target]
        if not found:
            found = [s for s in self.slices if s.owner.group == target] if target else []
            if len({s.owner for s in found}) > 1:
                raise self._ambiguous(f"users have a group {target!r}", found)
        if not found:
            of_pid = [m for m in self.members.values() if target == str(m.pid)]
            found = [s for s in self.slices if any(m.session in s.sessions for m in of_pid)]
            if len(of_pid) > 1:
                raise self._ambiguous(f"processes have the id {target}", found)
        if not found:
            raise self._unknown(target)
        on_gpu = [s for s in found if ordinal is None or s.gpu == ordinal]
        if not on_gpu:
            where = ", ".join(str(s.gpu) for s in found)
            raise SliceError(CUDA_ERROR_INVALID_DEVICE, f"{target!r} has no vGPU on GPU {ordinal}",
                             f"its vGPUs are on GPU {where}")  # fmt: skip
        return on_gpu

    def _ambiguous(self, what: str, found: list[Slice]) -> SliceError:
        names = ", ".join(s.name for s in found[:8])
        return SliceError(CUDA_ERROR_INVALID_VALUE, f"several {what}", f"name the vGPU: {names}")

    def _unknown(self, target: str) -> SliceError:
        if target in self._gone:
            return SliceError(CUDA_ERROR_INVALID_VALUE, f"the vGPU of {target!r:.80} is gone: its last program has "
                              "ended", "orionctl list shows those that are there")  # fmt: skip
        names = {s.owner.group for s in self.slices if s.owner.group}
        names |= {s.name for s in self.slices} | {m.session for m in self.members.values()}
        near = difflib.get_close_matches(target, sorted(names), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "orionctl list shows what is there"
        return SliceError(
            CUDA_ERROR_INVALID_VALUE, f"no group, session, process or vGPU is called {target!r:.80}", hint
        )

    def resized(self, slices: Iterable[Slice], change: Change) -> list[tuple[Slice, Limits]]:
        """What the slices would have; a SliceError when the GPU has no room for it. Changes nothing: `commit` does."""
        check_change(change)
        planned: list[tuple[Slice, Limits]] = []
        more_bytes: dict[int, int] = {}
        more_percent: dict[int, int] = {}
        for s in slices:
            new = replace(
                s.limits,
                quota_bytes=s.limits.quota_bytes if change.gmem_mib is None else change.gmem_mib * MIB,
                ratio_percent=s.limits.ratio_percent if change.ratio_percent is None else change.ratio_percent,
                policy=s.limits.policy if change.policy is None else change.policy,
            )
            more_bytes[s.gpu] = more_bytes.get(s.gpu, 0) + new.quota_bytes - s.limits.quota_bytes
            more_percent[s.gpu] = more_percent.get(s.gpu, 0) + new.ratio_percent - s.limits.ratio_percent
            planned.append((s, new))
        # What grows must fit. What shrinks always does, also where more is given out than there is now.
        for ordinal, more in more_bytes.items():
            left_bytes = self.left_bytes(ordinal)
            if more > 0 and more > left_bytes:
                raise SliceError(CUDA_ERROR_OUT_OF_MEMORY,
                                 f"GPU {ordinal} has {mib(left_bytes)} left of "
                                 f"{mib(self.gpus[ordinal].total_bytes)}, the change needs {mib(more)} more",
                                 "name a smaller GMEM, or make another vGPU smaller first")  # fmt: skip
        for ordinal, percent in more_percent.items():
            if percent > 0 and not self._fits_ratio(ordinal, percent):
                raise SliceError(CUDA_ERROR_DEVICE_UNAVAILABLE,
                                 f"GPU {ordinal} has {max(0, 100 - self.given_percent(ordinal))} % left: "
                                 f"{self._vgpus(ordinal)} {self.given_percent(ordinal)} %",
                                 "name a smaller ratio, lower another vGPU's first, or start the server with "
                                 "--overcommit-ratio")  # fmt: skip
        return planned

    def commit(self, changed: Slice, limits: Limits) -> None:
        """The slice has these limits from now on."""
        changed.limits = limits

    def configure(self, vgpu_count: int | None, policy: Policy | None, overcommit_ratio: bool | None) -> None:
        """Changes what later vGPUs get; those that are there keep what they have."""
        if vgpu_count is not None:
            check_vgpu_count(vgpu_count)
            self.vgpu_count = vgpu_count
        self.policy = self.policy if policy is None else policy
        self.overcommit_ratio = self.overcommit_ratio if overcommit_ratio is None else overcommit_ratio


def check_vgpu_count(count: int) -> None:
    """Refuses what cannot divide a GPU."""
    if not 0 <= count <= VGPU_COUNT_MAX:
        raise SliceError(CUDA_ERROR_INVALID_VALUE, f"a vGPU count of {count}: it is 1 to {VGPU_COUNT_MAX}, or 0 for no "
                         "limits by default")  # fmt: skip


def check_wish(wish: Wish) -> None:
    """Refuses what no server could give."""
    _check(wish.gmem_mib or None, wish.ratio_percent or None, "set ORION_GMEM or leave it out",
           "set ORION_RATIO or leave it out")  # fmt: skip


def check_change(change: Change) -> None:
    """Refuses what no vGPU can have."""
    if change == Change():
        raise SliceError(CUDA_ERROR_INVALID_VALUE, "nothing to change", "name gmem, ratio or policy")
    _check(change.gmem_mib, change.ratio_percent, "name at least 1 MiB", "name a whole number of percent")


def _check(gmem_mib: int | None, ratio_percent: int | None, gmem_hint: str, ratio_hint: str) -> None:
    if gmem_mib is not None and not 1 <= gmem_mib <= GMEM_MIB_MAX:
        raise SliceError(CUDA_ERROR_INVALID_VALUE, f"a memory quota of {gmem_mib} MiB: it is at least 1 MiB", gmem_hint)
    if ratio_percent is not None and not 1 <= ratio_percent <= 100:
        raise SliceError(CUDA_ERROR_INVALID_VALUE, f"a ratio of {ratio_percent} %: it is 1 to 100", ratio_hint)


def mib(count_bytes: int) -> str:
    """Bytes for people."""
    return f"{count_bytes // MIB:,} MiB"
