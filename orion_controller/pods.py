"""vGPUs of Kubernetes pods. Pure, as pool.py is: no I/O; the time is an argument.

A pod has an allocation for each part of its containers, in the group that is its uid. Such an allocation is shared by
the processes of its container, outlives them, and ends with its pod, or when nobody has bound the pod in time. Pods
have nothing besides: a process of a pod's group never gets other vGPUs, whatever it asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from orion_controller.allocator import AllocationError, NoRoom, Placement, Request
from orion_controller.api import pod_models as models
from orion_controller.pool import (
    CUDA_ERROR_INVALID_VALUE,
    Allocation,
    Later,
    Outcome,
    Pool,
    Refused,
    refusal_of,
)
from wire import pool as wire
from wire.control import WIRE_VERSION

PARTS_MOST = 256


class NotReady(Refused):
    """What the pod has is known from the store, but its server has not come back yet."""


@dataclass(frozen=True)
class _Part:
    """A part of a container. `asked`: vGPUs, MiB and percent as its environment says, 0 for what it does not say.
    `places`: where they have to be, empty: anywhere."""

    slot: str
    asked: tuple[int, int, int]
    wish: wire.Allocate
    places: tuple[tuple[str, int], ...] = ()


def reserve(pool: Pool, wish: models.PodWish, now_s: float, wall_s: float) -> tuple[list[Allocation], Outcome]:
    """All parts of a pod, new or as they were; Refused (Later, Never, NotReady) leaves everything as it was."""
    parts = _parts(wish)
    if wish.check:
        for part in parts:
            _check(pool, part)
        return [], Outcome()
    if pool.is_expected(wish.uid):
        raise NotReady(CUDA_ERROR_INVALID_VALUE, "the controller has just started, this pod's server is not back yet",
                       "ask again in some seconds")  # fmt: skip
    if not any(not server.is_lost for server in pool.servers.values()):
        raise Later("the pool has no servers at present", "start orion-server --controller on a GPU node")
    out = Outcome()
    known = {a.record.slot: a for a in pool.of_group(wish.uid)}
    strangers = [a for a in pool.of_group(wish.uid) if not a.record.slot]
    kept: list[tuple[_Part, Allocation]] = []
    missing: list[_Part] = []
    resized: list[tuple[Allocation, int, int]] = []
    for part in parts:
        allocation = known.pop(part.slot, None)
        if allocation is None:
            allocation = next((a for a in strangers if len(a.record.places) == part.asked[0]), None)
            if allocation is not None:
                strangers.remove(allocation)
        if allocation is None or not _suits(pool, allocation, part, resized):
            missing.append(part)
            if allocation is not None:
                known[part.slot] = allocation  # goes once the new one is there
        else:
            kept.append((part, allocation))
    try:
        made = _place_all(pool, wish, missing, [a for slot, a in known.items() if slot], now_s, wall_s, out)
    except Refused:
        for allocation, gmem_mib, ratio_percent in resized:
            pool.resize(allocation, gmem_mib, ratio_percent)
            allocation.record.gmem_mib, allocation.record.ratio_percent = gmem_mib, ratio_percent
        raise
    for part, allocation in kept:
        _claim(allocation, part, wish)
        if wish.node and wish.rule in ("", "local-first"):
            _move(pool, allocation, wish.node)
    every = [allocation for _, allocation in kept] + made
    for allocation in every:
        _renew(allocation, wish.ttl_s, now_s, wall_s)
    out.saved += every
    order = {part.slot: number for number, part in enumerate(parts)}
    return sorted(every, key=lambda a: order[a.record.slot]), out


def pods(pool: Pool) -> Iterator[str]:
    """Uids of the pods that have something."""
    seen = set()
    for allocation in pool.allocations.values():
        if allocation.record.slot and allocation.record.group not in seen:
            seen.add(allocation.record.group)
            yield allocation.record.group


def parts_of(pool: Pool, uid: str) -> list[Allocation]:
    """A pod's, by container."""
    return sorted((a for a in pool.of_group(uid) if a.record.slot), key=lambda a: _order(a.record.slot))


def view(pool: Pool, uid: str) -> models.Pod | None:
    """None: it has nothing."""
    allocations = parts_of(pool, uid)
    if not allocations:
        return None
    first = allocations[0].record
    namespace, _, name = first.owner.partition("/")
    told = [part_view(a) for a in allocations]
    states = {a.state for a in allocations}
    return models.Pod(
        uid=uid, namespace=namespace, name=name,
        state="active" if "active" in states else "idle" if "idle" in states else "reserved",
        parts=told, vgpus=sum(len(part.nodes) for part in told),
        nodes=list(dict.fromkeys(node for part in told for node in part.nodes)),
        sessions=sum(part.sessions for part in told), since_s=first.since_s, expires_s=first.expires_s,
        lost=not all(pool.is_whole(a) for a in allocations), cluster=first.cluster,
    )  # fmt: skip


def part_view(allocation: Allocation) -> models.PodPart:
    record = allocation.record
    return models.PodPart(
        container=record.slot.rpartition("/")[0], group=record.id, gmem_mib=record.gmem_mib,
        ratio_percent=record.ratio_percent, nodes=[server for server, _ in record.places],
        ordinals=[ordinal for _, ordinal in record.places], sessions=allocation.session_count,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- inside


def _order(slot: str) -> tuple[str, int]:
    name, _, number = slot.rpartition("/")
    return name, int(number) if number.isdecimal() else 0


def _parts(wish: models.PodWish) -> list[_Part]:
    parts = []
    for container in wish.containers:
        asked = (container.vgpus, container.gmem_mib, container.ratio_percent)
        places = tuple((place.node, place.ordinal) for place in container.places)
        if places and (container.count != 1 or len(places) != container.vgpus):
            raise Refused(CUDA_ERROR_INVALID_VALUE, f"pod {wish.name}: {container.name} names {len(places)} places for "
                          f"{container.count} x {container.vgpus} vGPUs")  # fmt: skip
        for number in range(container.count):
            asks = wire.Allocate(
                id=0, wire=WIRE_VERSION, vgpu=asked[0], gmem_mib=asked[1], ratio=asked[2],
                ratio_policy=container.policy or "", group=wish.uid, res_group="BOX", reserved=True,
                cross_node=wish.cross_node, node=wish.node, rule=wish.rule,
                pod={"namespace": wish.namespace, "name": wish.name, "uid": wish.uid},
            )  # fmt: skip
            parts.append(_Part(f"{container.name}/{number}", asked, asks, places))
    if len({part.slot for part in parts}) != len(parts):
        raise Refused(CUDA_ERROR_INVALID_VALUE, f"pod {wish.name}: two containers have one name")
    if len(parts) > PARTS_MOST:
        raise Refused(CUDA_ERROR_INVALID_VALUE, f"pod {wish.name}: more than {PARTS_MOST} parts")
    return parts


def _check(pool: Pool, part: _Part) -> None:
    """Never: not in this pool, however empty. A pool without servers knows nothing."""
    if any(not server.is_lost for server in pool.servers.values()):
        request = pool.request(part.wish)
        try:
            pool.allocator.check(request)
        except AllocationError as error:
            raise refusal_of(error) from error


def _suits(pool: Pool, allocation: Allocation, part: _Part, resized: list[tuple[Allocation, int, int]]) -> bool:
    """Whether what is there is what is asked for, perhaps with another size, which it then gets."""
    record = allocation.record
    if not allocation.placements or len(record.places) != part.asked[0]:
        return bool(allocation.session_count)  # it cannot be taken away from a program
    if not pool.is_whole(allocation):
        return bool(allocation.session_count)
    if part.places and sorted(record.places) != sorted(part.places):
        return bool(allocation.session_count)
    if allocation.session_count or not record.slot or record.asked == part.asked:
        return True
    default = pool.default_size()
    sizes = (part.asked[1] or default[0], part.asked[2] or default[1])
    before = (record.gmem_mib, record.ratio_percent)
    try:
        pool.resize(allocation, *sizes)
    except Refused:
        return False
    resized.append((allocation, *before))
    record.gmem_mib, record.ratio_percent = sizes
    return True


def _claim(allocation: Allocation, part: _Part, wish: models.PodWish) -> None:
    record = allocation.record
    record.slot, record.asked = part.slot, part.asked
    record.shared = record.reserved = True
    record.owner = f"{wish.namespace}/{wish.name}"
    record.cluster = wish.cluster or record.cluster
    if record.was_used:
        record.expires_s = allocation.gone_at_s = None


def _place_all(pool: Pool, wish: models.PodWish, missing: list[_Part], replaced: list[Allocation], now_s: float,
               wall_s: float, out: Outcome) -> list[Allocation]:  # fmt: skip
    """The missing parts, in exchange for what the pod has and no longer wants; all of it or nothing."""
    going = [a for a in replaced if not a.session_count]
    # What goes makes room first, and comes back where it was if that does not help.
    before = [(a, pool.take_off(a)) for a in going]
    placed: list[tuple[_Part, Placement]] = []
    near = wish.candidates if wish.rule in ("", "local-first") else []
    try:
        for part in missing:
            request = pool.request(part.wish)
            made_at = _place_at(pool, request, part.places) if part.places else pool.allocator.place(request, near=near)
            placed.append((part, made_at))
    except (AllocationError, Refused) as error:
        for _, placement in placed:
            pool.allocator.release(placement.id)
        for allocation, placements in before:
            pool.put_back(allocation, placements)
        raise (error if isinstance(error, Refused) else refusal_of(error)) from error
    for allocation in going:
        pool.drop(allocation, "its pod asks for something else now", out)
    made = []
    for part, placement in placed:
        allocation = pool.placed(placement, part.wish, now_s, wall_s)
        allocation.record.slot, allocation.record.asked = part.slot, part.asked
        allocation.record.cluster = wish.cluster
        allocation.tickets_until_s = 0.0
        made.append(allocation)
    return made


def _place_at(pool: Pool, request: Request, places: tuple[tuple[str, int], ...]) -> Placement:
    """On these GPUs and no others: a cluster's scheduler has chosen them. AllocationError."""
    pool.allocator.check(request)
    try:
        return pool.allocator.adopt(request, places)
    except NoRoom as error:
        where = ", ".join(dict.fromkeys(f"{node} GPU {ordinal}" for node, ordinal in places))
        raise NoRoom(f"there is no room for {request.vgpus} vGPUs of {request.gmem_mib} MiB and "
                     f"{request.ratio_percent} % on {where[:200]} now") from error  # fmt: skip


def _move(pool: Pool, allocation: Allocation, node: str) -> None:
    """To the node on which its pod will run, if nobody has used it yet and there is room."""
    record = allocation.record
    is_free = not record.was_used and not allocation.session_count and allocation.tickets_until_s == 0.0
    if not is_free or all(server == node for server, _ in record.places) or len(allocation.placements) != 1:
        return
    (placement,) = (p for p in pool.placements_of(allocation))
    request = replace(placement.request, node=node)
    if not pool.allocator.has_room_on(node, request):
        return
    pool.take_off(allocation)
    moved = pool.allocator.place(request)
    allocation.placements = [moved.id]
    record.places = list(moved.gpus)


def _renew(allocation: Allocation, ttl_s: float, now_s: float, wall_s: float) -> None:
    record = allocation.record
    if ttl_s and not allocation.session_count and not record.was_used:
        if record.expires_s is None and allocation.gone_at_s is None:
            return  # bound already: it does not expire any more
        allocation.gone_at_s, record.expires_s = now_s + ttl_s, wall_s + ttl_s
    else:
        allocation.gone_at_s = record.expires_s = None
