"""Places vGPUs on the GPUs of a pool. Pure: no I/O and no clock; times are seconds that the caller gives.

The pool is held as arrays, one entry a GPU, so that a look at all of a thousand servers' GPUs is a few vector
operations. Ties are broken by node name and ordinal: the same history gives the same placements on every replica.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

VGPUS_PER_REQUEST_MAX = 1024
DEFAULT_PATIENCE_S = 30.0


class Rule(enum.Enum):
    """Where a vGPU goes when several GPUs have room."""

    BINPACK = "binpack"  # the fullest: keeps whole GPUs free
    SPREAD = "spread"  # the emptiest: keeps tenants apart


class AllocationError(Exception):
    """What cannot be done; the message names it and what would help."""


class NoRoom(AllocationError):
    """Not now: it would fit in an emptier pool."""


class NeverFits(AllocationError):
    """Not in this pool, however empty, or not within the limits of its group."""


@dataclass(frozen=True)
class Gpu:
    """One GPU of a server. `max_vgpus` counts slices; `ratio_percent` is what of its time may be given out."""

    node: str
    ordinal: int
    uuid: str
    memory_mib: int
    max_vgpus: int = 100
    ratio_percent: int = 100


@dataclass(frozen=True)
class Request:
    """`vgpus` slices of `gmem_mib` and `ratio_percent` each. Local first: on `node`, when it has room."""

    group: str
    vgpus: int
    gmem_mib: int
    ratio_percent: int
    cross_node: bool = True
    node: str = ""
    rule: Rule = Rule.BINPACK

    def __post_init__(self) -> None:
        if not 1 <= self.vgpus <= VGPUS_PER_REQUEST_MAX:
            raise AllocationError(f"{self.vgpus} vGPUs: 1 to {VGPUS_PER_REQUEST_MAX} can be asked for")
        if self.gmem_mib < 1:
            raise AllocationError(f"{self.gmem_mib} MiB: a vGPU has at least 1 MiB")
        if not 1 <= self.ratio_percent <= 100:
            raise AllocationError(f"a ratio of {self.ratio_percent} %: 1 to 100 can be asked for")


@dataclass(frozen=True)
class Limits:
    """Of a group, or of all groups that have none of their own. None: no limit."""

    vgpus: int | None = None
    gmem_mib: int | None = None
    ratio_percent: int | None = None


@dataclass(frozen=True)
class Placement:
    """A request and where its vGPUs are: (node, ordinal) each, in the order in which a program counts devices."""

    id: int
    request: Request
    gpus: tuple[tuple[str, int], ...]
    expires_s: float | None = None  # a reservation that nobody has confirmed yet


@dataclass
class _Usage:
    vgpus: int = 0
    gmem_mib: int = 0
    ratio_percent: int = 0

    def add(self, request: Request, sign: int) -> None:
        self.vgpus += sign * request.vgpus
        self.gmem_mib += sign * request.vgpus * request.gmem_mib
        self.ratio_percent += sign * request.vgpus * request.ratio_percent


@dataclass
class _Waiting:
    ticket: int
    request: Request
    since_s: float


@dataclass
class _Node:
    gpus: dict[int, int] = field(default_factory=dict)  # ordinal -> index into the arrays
    accepts: bool = True


class Allocator:
    """The pool and all that is placed on it."""

    def __init__(self, patience_s: float = DEFAULT_PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._gpus: list[Gpu | None] = []
        self._nodes: dict[str, _Node] = {}
        self._node_names: list[str] = []  # of node numbers, which are never reused
        self._node_numbers: dict[str, int] = {}
        self._free_mib = np.zeros(0, np.int64)
        self._free_ratio = np.zeros(0, np.int64)
        self._free_slots = np.zeros(0, np.int64)
        self._all_mib = np.zeros(0, np.int64)  # what it has, empty; 0 where it is gone, as in the three above
        self._all_ratio = np.zeros(0, np.int64)
        self._all_slots = np.zeros(0, np.int64)
        self._node_of = np.zeros(0, np.int64)
        self._open = np.zeros(0, np.bool_)  # takes new vGPUs
        self._order = np.zeros(0, np.int64)  # rank by node name and ordinal, once it is needed
        self._node_order = np.zeros(0, np.int64)  # rank of node numbers by name, made with it
        self._node_free_mib = np.zeros(0, np.int64)  # sums over a node's GPUs, by node number: true while it is ranked
        self._node_free_ratio = np.zeros(0, np.int64)
        self._is_ranked = True
        self._placements: dict[int, Placement] = {}
        self._usage: dict[str, _Usage] = {}
        self._limits: dict[str, Limits] = {}
        self._queue: list[_Waiting] = []
        self._next_id = 1

    # ------------------------------------------------------------------------------------------------ the pool

    def add_node(self, name: str, gpus: list[Gpu]) -> None:
        """A server registers. Its GPUs are free; sessions that it still has are told with `adopt`."""
        if name in self._nodes:
            raise AllocationError(f"node {name} is in the pool already")
        if len({gpu.ordinal for gpu in gpus}) != len(gpus) or any(gpu.node != name for gpu in gpus):
            raise AllocationError(f"node {name}: its GPUs need ordinals of their own and its name")
        number = self._node_numbers.setdefault(name, len(self._node_names))
        if number == len(self._node_names):
            self._node_names.append(name)
        node = _Node()
        for gpu in gpus:
            node.gpus[gpu.ordinal] = self._put(gpu, number)
        self._nodes[name] = node
        self._is_ranked = False

    def remove_node(self, name: str) -> list[Placement]:
        """A server is gone, and every vGPU on it. Returns the placements that had one there, as they were; those with
        vGPUs on other nodes too keep these."""
        node = self._node(name)
        lost = [p for p in self._placements.values() if any(where[0] == name for where in p.gpus)]
        for placement in lost:
            self.release(placement.id)
            rest = tuple(where for where in placement.gpus if where[0] != name)
            if rest:
                kept = replace(placement, request=replace(placement.request, vgpus=len(rest)), gpus=rest)
                self._take(kept.request, [self._index(*where) for where in rest], 1)
                self._placements[kept.id] = kept
        for index in node.gpus.values():
            self._gpus[index] = None
            self._open[index] = False
            self._free_mib[index] = self._free_ratio[index] = self._free_slots[index] = 0
            self._all_mib[index] = self._all_ratio[index] = self._all_slots[index] = 0
        del self._nodes[name]
        self._is_ranked = False
        return lost

    def set_accepting(self, name: str, accepts: bool) -> None:
        """Drains a server (no new vGPUs; those that are there stay), or ends that."""
        node = self._node(name)
        node.accepts = accepts
        for index in node.gpus.values():
            self._open[index] = accepts

    def set_limits(self, group: str, limits: Limits | None) -> None:
        """Limits of a group; "" is for groups without their own. What it has already stays."""
        if limits is None:
            self._limits.pop(group, None)
        else:
            self._limits[group] = limits

    def placements(self) -> Iterator[Placement]:
        """All of them, oldest first."""
        return iter(self._placements.values())

    def placement(self, placement_id: int) -> Placement:
        """One of them by its id."""
        return self._placement(placement_id)

    def free(self, node: str, ordinal: int) -> tuple[int, int, int]:
        """MiB, percent and vGPUs that are left on a GPU."""
        index = self._index(node, ordinal)
        return int(self._free_mib[index]), int(self._free_ratio[index]), int(self._free_slots[index])

    # ------------------------------------------------------------------------------------------------ placing

    def place(self, request: Request, expires_s: float | None = None, near: Collection[str] = ()) -> Placement:
        """All vGPUs of the request, or NoRoom or NeverFits. With `expires_s` a reservation until then. On a node of
        `near` (those that are in the pool) before any other, where one of them has room."""
        self._check_group(request)
        chosen = self._choose(request, near)
        return self._keep(request, chosen, expires_s)

    def check(self, request: Request) -> None:
        """NeverFits: not in this pool, however empty, or not within the limits of its group."""
        if not self._could_ever_fit(request):
            raise self._never(request)

    def has_room_on(self, node: str, request: Request) -> bool:
        """Whether all of it fits on that node now."""
        if node not in self._nodes:
            return False
        indices = np.fromiter(self._nodes[node].gpus.values(), np.int64)
        return int(np.where(self._open, self._room_of(request), 0)[indices].sum()) >= request.vgpus

    def confirm(self, placement_id: int) -> Placement:
        """Somebody has come for a reservation: it no longer expires."""
        placement = replace(self._placement(placement_id), expires_s=None)
        self._placements[placement_id] = placement
        return placement

    def adopt(self, request: Request, gpus: tuple[tuple[str, int], ...], *, force: bool = False) -> Placement:
        """What a server says it has already, after a restart of the controller: counted where it is. `force`: also
        where it is more than the GPU has, since it is there; nothing is placed beside it until there is room."""
        indices = np.array([self._index(*where) for where in gpus], np.int64)
        if len(gpus) != request.vgpus:
            raise AllocationError(f"{len(gpus)} places for {request.vgpus} vGPUs")
        times = np.bincount(indices, minlength=len(self._gpus))
        used = np.flatnonzero(times)
        if not force and np.any(self._room_of(request)[used] < times[used]):
            raise NoRoom("the server has given out more than the GPU has")
        return self._keep(request, indices, None)

    def release(self, placement_id: int) -> Placement:
        """Gives all of it back."""
        placement = self._placement(placement_id)
        del self._placements[placement_id]
        self._take(placement.request, [self._index(*where) for where in placement.gpus], -1)
        return placement

    def resize(self, placement_id: int, gmem_mib: int, ratio_percent: int) -> Placement:
        """Other sizes for all vGPUs of a placement, where they are; NoRoom leaves everything as it was."""
        old = self._placement(placement_id)
        request = replace(old.request, gmem_mib=gmem_mib, ratio_percent=ratio_percent)
        indices = np.array([self._index(*where) for where in old.gpus], np.int64)
        self._take(old.request, indices, -1)
        try:
            self._check_group(request)
            times = np.bincount(indices, minlength=len(self._gpus))
            used = np.flatnonzero(times)
            short = used[self._room_of(request)[used] < times[used]]
            if short.size:
                gpu = self._gpus[int(short[0])]
                assert gpu is not None
                raise NoRoom(f"{gpu.node} GPU {gpu.ordinal} has not that much left for the vGPU that is on it")
        except AllocationError:
            self._take(old.request, indices, 1)
            raise
        self._take(request, indices, 1)
        placement = replace(old, request=request)
        self._placements[placement_id] = placement
        return placement

    def expire(self, now_s: float) -> list[Placement]:
        """Releases reservations for which nobody has come in time."""
        due = [p.id for p in self._placements.values() if p.expires_s is not None and p.expires_s <= now_s]
        return [self.release(placement_id) for placement_id in due]

    # ------------------------------------------------------------------------------------------------ the queue

    def wait(self, request: Request, now_s: float) -> int:
        """Joins the queue; its ticket. NeverFits at once, not after a wait."""
        if not self._could_ever_fit(request):
            raise self._never(request)
        ticket = self._next_id
        self._next_id += 1
        self._queue.append(_Waiting(ticket, request, now_s))
        return ticket

    def leave(self, ticket: int) -> None:
        """Waits no more."""
        self._queue = [waiting for waiting in self._queue if waiting.ticket != ticket]

    def waiting(self) -> list[int]:
        """Tickets in the order in which they came."""
        return [waiting.ticket for waiting in self._queue]

    def serve(self, now_s: float, expires_s: float | None = None) -> list[tuple[int, Placement]]:
        """Places what fits now, first come first served. Those behind one that does not fit are served before it, until
        it has waited for longer than the queue's patience: from then on nobody passes it."""
        served: list[tuple[int, Placement]] = []
        left: list[_Waiting] = []
        is_blocked = False
        for waiting in self._queue:
            if is_blocked:
                left.append(waiting)
                continue
            try:
                served.append((waiting.ticket, self.place(waiting.request, expires_s)))
            except AllocationError:
                left.append(waiting)
                is_blocked = now_s - waiting.since_s > self._patience_s
        self._queue = left
        return served

    # ------------------------------------------------------------------------------------------------ inside

    def _put(self, gpu: Gpu, node_number: int) -> int:
        index = len(self._gpus)
        self._gpus.append(gpu)
        self._free_mib = np.append(self._free_mib, gpu.memory_mib)
        self._free_ratio = np.append(self._free_ratio, gpu.ratio_percent)
        self._free_slots = np.append(self._free_slots, gpu.max_vgpus)
        self._all_mib = np.append(self._all_mib, gpu.memory_mib)
        self._all_ratio = np.append(self._all_ratio, gpu.ratio_percent)
        self._all_slots = np.append(self._all_slots, gpu.max_vgpus)
        self._node_of = np.append(self._node_of, node_number)
        self._open = np.append(self._open, True)
        return index

    def _rank(self) -> None:
        """Ranks by name and ordinal; drops entries of GPUs that are gone once they are the most."""
        present = [i for i, gpu in enumerate(self._gpus) if gpu is not None]
        if len(present) * 2 < len(self._gpus):
            keep = np.array(present, np.int64)
            self._gpus = [self._gpus[i] for i in present]
            for name in ("_free_mib", "_free_ratio", "_free_slots", "_all_mib", "_all_ratio", "_all_slots", "_node_of",
                         "_open"):  # fmt: skip
                setattr(self, name, getattr(self, name)[keep])
            for index, gpu in enumerate(self._gpus):
                assert gpu is not None
                self._nodes[gpu.node].gpus[gpu.ordinal] = index
            present = list(range(len(self._gpus)))
        self._order = np.full(len(self._gpus), len(self._gpus), np.int64)
        ranked = sorted(present, key=lambda i: (self._gpus[i].node, self._gpus[i].ordinal))  # type: ignore[union-attr]
        self._order[ranked] = np.arange(len(ranked))
        self._node_order = np.zeros(len(self._node_names), np.int64)
        self._node_order[sorted(range(len(self._node_names)), key=self._node_names.__getitem__)] = np.arange(
            len(self._node_names)
        )
        self._node_free_mib, self._node_free_ratio = self._sums(self._free_mib), self._sums(self._free_ratio)
        self._is_ranked = True

    def _sums(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of each node's GPUs, by node number."""
        return np.bincount(self._node_of, weights=values, minlength=len(self._node_names)).astype(np.int64)

    def _room_of(self, request: Request) -> NDArray[np.int64]:
        """How many vGPUs of this size each GPU has room for."""
        room = np.minimum(self._free_mib // request.gmem_mib, self._free_ratio // request.ratio_percent)
        return np.maximum(np.minimum(room, self._free_slots), 0)

    def _choose(self, request: Request, near: Collection[str] = ()) -> NDArray[np.int64]:
        """Indices of the GPUs for all vGPUs of a request, in device order."""
        if not self._is_ranked:
            self._rank()
        room = np.where(self._open, self._room_of(request), 0)
        if int(room.sum()) < request.vgpus:
            raise self._no_room(request)
        of_node = self._sums(room)
        local = self._node_numbers.get(request.node, -1) if request.node in self._nodes else -1
        if local >= 0 and of_node[local] >= request.vgpus:
            return self._on_node(request, room, local, request.vgpus)
        is_near = self._mask(near)
        whole = np.flatnonzero(of_node >= request.vgpus)
        if is_near[whole].any():
            whole = whole[is_near[whole]]
        if whole.size:
            return self._on_node(request, room, self._best_node(request, whole), request.vgpus)
        if not request.cross_node:
            raise NoRoom(f"no node has room for {request.vgpus} vGPUs of {self._size(request)} together; "
                         "allow several nodes with ORION_CROSS_NODE=1")  # fmt: skip
        # As few nodes as possible: the client's own, then those near it, then those with the most room.
        parts: list[NDArray[np.int64]] = []
        missing = request.vgpus
        numbers = np.arange(len(self._node_names))
        for number in np.lexsort((self._node_order, -of_node, ~is_near, numbers != local)):
            if not of_node[number]:
                continue
            count = min(missing, int(of_node[number]))
            parts.append(self._on_node(request, room, int(number), count))
            missing -= count
            if not missing:
                break
        return np.concatenate(parts)

    def _mask(self, nodes: Collection[str]) -> NDArray[np.bool_]:
        """Of node numbers: those with these names that are in the pool."""
        mask = np.zeros(len(self._node_names), np.bool_)
        mask[[self._node_numbers[name] for name in nodes if name in self._nodes]] = True
        return mask

    def _fullness(self, request: Request, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """How much of each GPU is given out: of what there is least of."""
        used = np.maximum(
            1 - self._free_mib[indices] / self._all_mib[indices],
            1 - self._free_ratio[indices] / self._all_ratio[indices],
        )
        return used if request.rule is Rule.BINPACK else -used

    def _best_node(self, request: Request, numbers: NDArray[np.int64]) -> int:
        """The fullest (or emptiest) of some nodes, by what is left of memory and time."""
        free = self._node_free_mib[numbers]
        time = self._node_free_ratio[numbers]
        sign = 1 if request.rule is Rule.BINPACK else -1
        least = np.flatnonzero(sign * time == (sign * time).min())
        least = least[sign * free[least] == (sign * free[least]).min()]
        best = numbers[least]
        return int(best[np.argmin(self._node_order[best])])

    def _on_node(self, request: Request, room: NDArray[np.int64], number: int, count: int) -> NDArray[np.int64]:
        """`count` vGPUs on the GPUs of one node: on different ones as far as they reach."""
        of_node = np.fromiter(self._nodes[self._node_names[number]].gpus.values(), np.int64)
        indices = of_node[room[of_node] > 0]
        order = np.lexsort((self._order[indices], -self._fullness(request, indices)))
        ranked = indices[order]
        left = room[ranked].copy()
        chosen: list[int] = []
        while len(chosen) < count:
            for place in np.flatnonzero(left > 0)[: count - len(chosen)]:
                chosen.append(int(ranked[place]))
                left[place] -= 1
        return np.array(chosen, np.int64)

    def _keep(self, request: Request, indices: NDArray[np.int64], expires_s: float | None) -> Placement:
        self._take(request, indices, 1)
        where = tuple((gpu.node, gpu.ordinal) for gpu in (self._gpus[int(i)] for i in indices) if gpu is not None)
        placement = Placement(self._next_id, request, where, expires_s)
        self._next_id += 1
        self._placements[placement.id] = placement
        return placement

    def _take(self, request: Request, indices: NDArray[np.int64] | list[int], sign: int) -> None:
        np.subtract.at(self._free_mib, indices, sign * request.gmem_mib)
        np.subtract.at(self._free_ratio, indices, sign * request.ratio_percent)
        np.subtract.at(self._free_slots, indices, sign)
        if self._is_ranked:  # else they are made anew before they are looked at
            nodes = self._node_of[indices]
            np.subtract.at(self._node_free_mib, nodes, sign * request.gmem_mib)
            np.subtract.at(self._node_free_ratio, nodes, sign * request.ratio_percent)
        usage = self._usage.setdefault(request.group, _Usage())
        usage.add(request, sign)
        if not usage.vgpus:
            del self._usage[request.group]

    def _check_group(self, request: Request) -> None:
        limits = self._limits.get(request.group, self._limits.get("", Limits()))
        usage = self._usage.get(request.group, _Usage())
        asked = _Usage()
        asked.add(request, 1)
        for name, unit in (("vgpus", "vGPUs"), ("gmem_mib", "MiB"), ("ratio_percent", "%")):
            limit = getattr(limits, name)
            if limit is None:
                continue
            if getattr(asked, name) > limit:
                raise NeverFits(f"group {request.group or '(none)'} may have {limit} {unit}, "
                                f"{getattr(asked, name)} are asked for")  # fmt: skip
            if getattr(asked, name) + getattr(usage, name) > limit:
                raise NoRoom(f"group {request.group or '(none)'} may have {limit} {unit} and has "
                             f"{getattr(usage, name)} already")  # fmt: skip

    def _could_ever_fit(self, request: Request) -> bool:
        try:
            self._check_group(request)
        except NeverFits:
            return False
        except NoRoom:
            pass
        room = np.minimum(self._all_mib // request.gmem_mib, self._all_ratio // request.ratio_percent)
        room = np.minimum(room, self._all_slots)
        if not request.cross_node:
            room = np.bincount(self._node_of, weights=room, minlength=1).astype(np.int64)
            return int(room.max()) >= request.vgpus
        return int(room.sum()) >= request.vgpus

    def _no_room(self, request: Request) -> AllocationError:
        if not self._could_ever_fit(request):
            return self._never(request)
        fits = int(np.where(self._open, self._room_of(request), 0).sum())
        return NoRoom(f"the pool has room for {fits} vGPUs of {self._size(request)} now, {request.vgpus} are asked for")

    def _never(self, request: Request) -> NeverFits:
        largest = int(self._all_mib.max(initial=0))
        if request.gmem_mib > largest:
            return NeverFits(f"no GPU of the pool has {request.gmem_mib} MiB: the largest has {largest}")
        return NeverFits(f"{request.vgpus} vGPUs of {self._size(request)} are more than this pool or the group has")

    @staticmethod
    def _size(request: Request) -> str:
        return f"{request.gmem_mib} MiB and {request.ratio_percent} %"

    def _node(self, name: str) -> _Node:
        try:
            return self._nodes[name]
        except KeyError:
            raise AllocationError(f"there is no node {name} in the pool") from None

    def _index(self, node: str, ordinal: int) -> int:
        try:
            return self._node(node).gpus[ordinal]
        except KeyError:
            raise AllocationError(f"node {node} has no GPU {ordinal}") from None

    def _placement(self, placement_id: int) -> Placement:
        try:
            return self._placements[placement_id]
        except KeyError:
            raise AllocationError(
                f"there is no placement {placement_id}: it has been released or has expired"
            ) from None
