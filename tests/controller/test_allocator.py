"""The pool's allocator: whatever happens in whatever order, nothing is given out twice and nothing is lost."""

from __future__ import annotations

import copy
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orion_controller.allocator import (
    AllocationError,
    Allocator,
    Gpu,
    Limits,
    NeverFits,
    NoRoom,
    Placement,
    Request,
    Rule,
)


def pool(nodes: int = 2, gpus: int = 2, memory_mib: int = 16384, max_vgpus: int = 100) -> Allocator:
    allocator = Allocator()
    for n in range(nodes):
        name = f"node{n}"
        allocator.add_node(name, [Gpu(name, i, f"GPU-{n}-{i}", memory_mib, max_vgpus) for i in range(gpus)])
    return allocator


def ask(vgpus: int = 1, gmem_mib: int = 4096, ratio_percent: int = 25, group: str = "g", **more: object) -> Request:
    return Request(group, vgpus, gmem_mib, ratio_percent, **more)  # type: ignore[arg-type]


def state(allocator: Allocator) -> dict[tuple[str, int], tuple[int, int, int]]:
    return {
        (gpu.node, gpu.ordinal): allocator.free(gpu.node, gpu.ordinal) for gpu in allocator._gpus if gpu is not None
    }


# ---------------------------------------------------------------------------------------------------- where
def test_binpack_fills_a_gpu_before_it_opens_another():
    allocator = pool()
    places = [allocator.place(ask()).gpus[0] for _ in range(5)]
    assert places == [("node0", 0)] * 4 + [("node0", 1)]


def test_spread_takes_the_emptiest():
    allocator = pool()
    places = [allocator.place(ask(rule=Rule.SPREAD)).gpus[0] for _ in range(5)]
    assert places == [("node0", 0), ("node1", 0), ("node0", 1), ("node1", 1), ("node0", 0)]


def test_local_first_even_where_another_node_packs_better():
    allocator = pool()
    allocator.place(ask())
    assert allocator.place(ask(node="node1")).gpus == (("node1", 0),)
    assert allocator.place(ask(node="elsewhere")).gpus == (("node0", 0),)


def test_several_vgpus_are_on_gpus_of_their_own_as_far_as_they_reach():
    assert pool().place(ask(vgpus=2)).gpus == (("node0", 0), ("node0", 1))
    assert pool().place(ask(vgpus=3)).gpus == (("node0", 0), ("node0", 1), ("node0", 0))


def test_one_node_is_preferred_and_several_only_where_allowed():
    allocator = pool(nodes=3)
    allocator.place(ask(gmem_mib=16384))
    assert {node for node, _ in allocator.place(ask(vgpus=2, gmem_mib=16384)).gpus} == {"node1"}
    assert [n for n, _ in allocator.place(ask(vgpus=3, gmem_mib=16384)).gpus] == ["node2", "node2", "node0"]
    small = pool()
    for node in ("node0", "node1"):
        small.place(ask(gmem_mib=10000, node=node))
    with pytest.raises(NoRoom, match="ORION_CROSS_NODE"):
        small.place(ask(vgpus=2, gmem_mib=10000, cross_node=False))
    assert [node for node, _ in small.place(ask(vgpus=2, gmem_mib=10000)).gpus] == ["node0", "node1"]


# ---------------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize("bad", [{"vgpus": 0}, {"vgpus": 5000}, {"gmem_mib": 0}, {"gmem_mib": -1},
                                 {"ratio_percent": 0}, {"ratio_percent": 101}])  # fmt: skip
def test_requests_that_mean_nothing(bad: dict[str, int]):
    with pytest.raises(AllocationError, match=r"can be asked for|at least"):
        ask(**bad)


def test_never_and_not_now_are_told_apart():
    allocator = pool()
    with pytest.raises(NeverFits, match="largest has 16384"):
        allocator.place(ask(gmem_mib=20000))
    with pytest.raises(NeverFits, match="more than this pool"):
        allocator.place(ask(vgpus=5, ratio_percent=100))
    allocator.place(ask(vgpus=4, ratio_percent=100))
    with pytest.raises(NoRoom, match="room for 0 vGPUs"):
        allocator.place(ask())


def test_limits_of_a_group_and_of_all_others():
    allocator = pool()
    allocator.set_limits("", Limits(vgpus=2))
    allocator.set_limits("big", Limits(gmem_mib=20000))
    allocator.place(ask(vgpus=2))
    with pytest.raises(NoRoom, match="may have 2 vGPUs and has 2"):
        allocator.place(ask())
    with pytest.raises(NeverFits, match="may have 20000 MiB"):
        allocator.place(ask(group="big", vgpus=5, ratio_percent=10))
    allocator.place(ask(group="big", vgpus=4, ratio_percent=10))


def test_a_drained_node_keeps_what_it_has():
    allocator = pool()
    placement = allocator.place(ask())
    allocator.set_accepting("node0", False)
    assert allocator.place(ask()).gpus == (("node1", 0),)
    assert placement in list(allocator.placements())
    allocator.set_accepting("node0", True)
    assert allocator.place(ask(node="node0")).gpus == (("node0", 0),)


def test_a_node_that_goes_takes_its_vgpus_with_it_and_no_others():
    allocator = pool()
    before = state(allocator)
    across = allocator.place(ask(vgpus=3, gmem_mib=16384))
    assert allocator.remove_node("node1") == [across]
    (kept,) = allocator.placements()
    assert kept.id == across.id and {node for node, _ in kept.gpus} == {"node0"}
    assert kept.request.vgpus == len(kept.gpus)
    allocator.release(kept.id)
    assert state(allocator) == {where: left for where, left in before.items() if where[0] == "node0"}
    with pytest.raises(AllocationError, match="no node node1"):
        allocator.set_accepting("node1", True)
    allocator.add_node("node1", [Gpu("node1", 0, "GPU-new", 8192)])
    assert allocator.place(ask(node="node1")).gpus == (("node1", 0),)


def test_a_reservation_expires_unless_somebody_comes():
    allocator = pool()
    before = state(allocator)
    first, second = allocator.place(ask(), expires_s=10), allocator.place(ask(), expires_s=10)
    allocator.confirm(first.id)
    assert allocator.expire(9.9) == []
    assert [p.id for p in allocator.expire(10)] == [second.id]
    with pytest.raises(AllocationError, match="has expired"):
        allocator.confirm(second.id)
    allocator.release(first.id)
    assert state(allocator) == before


def test_resize_in_place_or_not_at_all():
    allocator = pool(nodes=1, gpus=1)
    one, other = allocator.place(ask()), allocator.place(ask())
    before = state(allocator)
    with pytest.raises(NoRoom, match="GPU 0 has not that much left"):
        allocator.resize(one.id, 13000, 25)
    assert state(allocator) == before
    assert allocator.resize(one.id, 12288, 75).request.gmem_mib == 12288
    assert allocator.free("node0", 0) == (0, 0, 98)
    allocator.release(one.id)
    allocator.release(other.id)
    assert allocator.free("node0", 0) == (16384, 100, 100)


# ---------------------------------------------------------------------------------------------------- the queue
def test_the_queue_is_first_come_first_served_with_patience():
    allocator = pool(nodes=1, gpus=1)
    holder = allocator.place(ask(ratio_percent=60))
    large, small, late = (allocator.wait(ask(ratio_percent=r), now_s=t) for r, t in ((80, 0.0), (30, 1.0), (10, 2.0)))
    assert [ticket for ticket, _ in allocator.serve(5.0)] == [small, late]  # they fit beside, the large one does not
    later = allocator.wait(ask(ratio_percent=1, gmem_mib=1), now_s=20.0)
    assert allocator.serve(31.0) == []  # the large one has waited long enough: nobody passes it now
    assert allocator.waiting() == [large, later]
    allocator.release(holder.id)
    for placement in list(allocator.placements()):
        allocator.release(placement.id)
    assert [ticket for ticket, _ in allocator.serve(32.0)] == [large, later]


def test_what_never_fits_does_not_wait():
    with pytest.raises(NeverFits):
        pool().wait(ask(gmem_mib=99999), 0.0)


# ---------------------------------------------------------------------------------------------------- any history
requests = st.builds(
    Request,
    group=st.sampled_from(["a", "b", ""]),
    vgpus=st.integers(1, 6),
    gmem_mib=st.sampled_from([1, 1000, 4096, 10000, 16384]),
    ratio_percent=st.sampled_from([1, 10, 25, 33, 50, 100]),
    cross_node=st.booleans(),
    node=st.sampled_from(["", "node0", "node1", "nowhere"]),
    rule=st.sampled_from(list(Rule)),
)
events = st.lists(
    st.one_of(
        st.tuples(st.just("place"), requests),
        st.tuples(st.just("reserve"), requests),
        st.tuples(st.just("release"), st.integers(0, 20)),
        st.tuples(st.just("resize"), st.integers(0, 20), st.sampled_from([1, 5000, 16384]), st.integers(1, 100)),
        st.tuples(st.just("drain"), st.sampled_from(["node0", "node1"]), st.booleans()),
        st.tuples(st.just("renew"), st.sampled_from(["node0", "node1"])),
        st.tuples(st.just("wait"), requests),
        st.tuples(st.just("serve")),
        st.tuples(st.just("expire")),
    ),
    max_size=40,
)


def apply(allocator: Allocator, event: tuple[object, ...], step: int) -> object:
    kind, *values = event
    held = list(allocator.placements())
    try:
        match kind:
            case "place" | "reserve":
                return allocator.place(values[0], step + 3.0 if kind == "reserve" else None)  # type: ignore[arg-type]
            case "release":
                return allocator.release(held[values[0] % len(held)].id) if held else None  # type: ignore[operator]
            case "resize":
                return allocator.resize(held[values[0] % len(held)].id, values[1], values[2]) if held else None  # type: ignore[operator,arg-type]
            case "drain":
                return allocator.set_accepting(values[0], values[1])  # type: ignore[arg-type,func-returns-value]
            case "renew":
                name = str(values[0])
                lost = allocator.remove_node(name)
                allocator.add_node(name, [Gpu(name, i, f"GPU-{step}-{i}", 16384) for i in range(2)])
                return lost
            case "wait":
                return allocator.wait(values[0], float(step))  # type: ignore[arg-type]
            case "serve":
                return allocator.serve(float(step), step + 2.0)
            case "expire":
                return allocator.expire(float(step))
    except AllocationError as refusal:
        return str(refusal)


def check_accounts(allocator: Allocator) -> None:
    used: dict[tuple[str, int], list[Placement]] = {}
    for placement in allocator.placements():
        assert len(placement.gpus) == placement.request.vgpus
        if not placement.request.cross_node:
            assert len({node for node, _ in placement.gpus}) == 1
        for where in placement.gpus:
            used.setdefault(where, []).append(placement)
    for where, left in state(allocator).items():
        held = used.pop(where, [])
        assert left[0] == 16384 - sum(p.request.gmem_mib for p in held) >= 0
        assert left[1] == 100 - sum(p.request.ratio_percent for p in held) >= 0
        assert left[2] == 100 - len(held) >= 0
    assert not used  # nothing is placed on a GPU that is not there
    for group, usage in allocator._usage.items():
        assert usage.vgpus == sum(p.request.vgpus for p in allocator.placements() if p.request.group == group) > 0
        if group == "a":
            assert usage.vgpus <= 5


@given(events)
@settings(max_examples=150, deadline=None)
def test_any_history_keeps_the_accounts_and_repeats_itself(history: list[tuple[object, ...]]):
    one, other = pool(), pool()
    for allocator in (one, other):
        allocator.set_limits("a", Limits(vgpus=5))
    for step, event in enumerate(history):
        assert repr(apply(one, event, step)) == repr(apply(other, event, step))
        check_accounts(one)


@given(events, requests)
@settings(max_examples=80, deadline=None)
def test_release_restores_what_was(history: list[tuple[object, ...]], request: Request):
    allocator = pool()
    for step, event in enumerate(history):
        apply(allocator, event, step)
    before, usage = state(allocator), copy.deepcopy(allocator._usage)
    try:
        placement = allocator.place(request)
    except AllocationError:
        pass
    else:
        allocator.release(placement.id)
    assert state(allocator) == before and allocator._usage == usage


def test_adopting_rebuilds_the_same_accounts():
    dice = random.Random(3)
    first = pool(nodes=4, gpus=4)
    for _ in range(60):
        try:
            first.place(
                ask(vgpus=dice.randrange(1, 4), gmem_mib=dice.randrange(1, 9000), ratio_percent=dice.randrange(1, 60))
            )
        except NoRoom:
            pass
    again = pool(nodes=4, gpus=4)
    for placement in first.placements():
        again.adopt(placement.request, placement.gpus)
    assert state(again) == state(first)
    with pytest.raises(NoRoom, match="given out more"):
        again.adopt(ask(vgpus=5, gmem_mib=16000), (("node0", 0),) * 5)
