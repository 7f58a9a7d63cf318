"""vGPUs of Kubernetes pods, in simulated time: reserved before they are bound, kept as long as their pods live."""

from __future__ import annotations

import pytest

from orion_controller import pods
from orion_controller.api.models import LimitsBody
from orion_controller.api.pod_models import PodContainer, PodPlace, PodWish
from orion_controller.pool import Allocation, Later, Never, Policies, Pool, Refused
from tests.controller.simulated import SimulatedServer, wish


def pool_of(*names: str, **values: int) -> tuple[Pool, dict[str, SimulatedServer]]:
    pool = Pool(Policies(idle_s=8.0))
    servers = {name: SimulatedServer(name, **({"gpus": 1} | values)) for name in names}  # type: ignore[arg-type]
    for server in servers.values():
        pool.register(server.register(), 0.0, 0.0)
    return pool, servers


def pod(uid: str, *containers: PodContainer, **more: object) -> PodWish:
    made = list(containers) or [PodContainer(name="main", gmem_mib=4000, ratio_percent=25)]
    return PodWish(uid=uid, namespace="ns", name=f"name-{uid}", containers=made, **more)  # type: ignore[arg-type]


def reserve(pool: Pool, asked: PodWish, now_s: float = 0.0) -> list[Allocation]:
    return pods.reserve(pool, asked, now_s, now_s)[0]


def places(allocations: list[Allocation]) -> list[tuple[str, int]]:
    return [place for a in allocations for place in a.record.places]


def alive(pool: Pool, servers: dict[str, SimulatedServer], now_s: float) -> None:
    for server in servers.values():
        server.beat(pool, now_s)
    pool.tick(now_s, now_s)


def test_asked_for_twice_it_is_the_same():
    pool, _ = pool_of("a")
    first = reserve(pool, pod("u"))
    assert reserve(pool, pod("u"), 5.0) == first
    assert pool.allocator.free("a", 0) == (12000, 75, 3)
    told = pods.view(pool, "u")
    assert told is not None and (told.namespace, told.name, told.state, told.vgpus) == ("ns", "name-u", "reserved", 1)


def test_it_expires_unless_it_is_bound_or_used():
    pool, servers = pool_of("a")
    for uid, ttl_s in (("forgotten", 60.0), ("bound", 60.0), ("used", 60.0)):
        reserve(pool, pod(uid, ttl_s=ttl_s))
    reserve(pool, pod("bound", ttl_s=0.0), 30.0)
    reserve(pool, pod("bound", ttl_s=60.0), 31.0)  # a late filter takes nothing back
    used = pool.allocate(wish(group="used", gmem_mib=4000, ratio=25), 40.0, 40.0)
    (ticket,) = pool.tickets(used, 40.0, 40.0)
    servers["a"].attach(ticket)
    for now_s in range(41, 300):
        alive(pool, servers, float(now_s))
    assert sorted(pods.pods(pool)) == ["bound", "used"]


def test_a_program_that_ends_leaves_it_to_the_next_and_programs_of_a_container_share():
    pool, servers = pool_of("a")
    (mine,) = reserve(pool, pod("u", ttl_s=0.0))
    for _ in range(2):
        sessions = []
        for pid in (1, 2):
            got = pool.allocate(wish(group="u", gmem_mib=4000, ratio=25, pid=pid), 1.0, 1.0)
            assert got is mine and got.record.shared
            sessions.append(servers["a"].attach(pool.tickets(got, 1.0, 1.0)[0]))
            alive(pool, servers, 1.0)
        assert pool.allocator.free("a", 0) == (12000, 75, 3)
        for session in sessions:
            servers["a"].end(session)
        alive(pool, servers, 500.0)
        assert mine.id in pool.allocations and mine.state == "idle"


def test_a_process_gets_what_was_reserved_whatever_it_asks_for():
    pool, _ = pool_of("a")
    reserve(pool, pod("u", ttl_s=0.0))
    got = pool.allocate(wish(group="u", vgpu=4, gmem_mib=16000, ratio=100), 1.0, 1.0)
    assert (len(got.record.places), got.record.gmem_mib, got.record.ratio_percent) == (1, 4000, 25)
    assert len(pool.allocations) == 1


def test_each_container_finds_its_own_part():
    pool, _ = pool_of("a", "b", gpus=2)
    asked = pod("u", PodContainer(name="big", vgpus=2, gmem_mib=8000, ratio_percent=50),
                PodContainer(name="small", gmem_mib=1000, ratio_percent=10),
                PodContainer(name="many", count=2, gmem_mib=2000), ttl_s=0.0)  # fmt: skip
    big, small, many0, many1 = reserve(pool, asked)
    assert pool.allocate(wish(group="u", gmem_mib=1000, ratio=10), 1.0, 1.0) is small
    assert pool.allocate(wish(group="u", vgpu=2, gmem_mib=8000, ratio=50), 1.0, 1.0) is big
    two = [pool.allocate(wish(group="u", gmem_mib=2000), 1.0, 1.0) for _ in range(2)]
    assert sorted(a.id for a in two) == sorted([many0.id, many1.id])


def test_all_containers_or_none():
    pool, _ = pool_of("a")
    with pytest.raises(Later, match="room for 0 vGPUs"):
        reserve(pool, pod("u", PodContainer(name="one", gmem_mib=16000), PodContainer(name="two", gmem_mib=4000)))
    assert not pool.allocations and pool.allocator.free("a", 0) == (16000, 100, 4)
    with pytest.raises(Never, match="no GPU of the pool has 99999 MiB: the largest has 16000"):
        reserve(pool, pod("u", PodContainer(name="one", gmem_mib=99999)))
    with pytest.raises(Never):
        reserve(pool, pod("u", PodContainer(name="one", gmem_mib=99999), check=True))
    assert reserve(pool, pod("u", PodContainer(name="one", gmem_mib=16000), check=True)) == []
    with pytest.raises(Refused, match="one name"):
        reserve(pool, pod("u", PodContainer(name="one"), PodContainer(name="one")))
    assert not pool.allocations


def test_limits_of_its_group_hold():
    pool, _ = pool_of("a")
    pool.set_limits("*", LimitsBody(vgpus=2))
    with pytest.raises(Never, match="may have 2 vGPUs"):
        reserve(pool, pod("u", PodContainer(name="main", vgpus=3, gmem_mib=1)))
    reserve(pool, pod("u", PodContainer(name="main", vgpus=2, gmem_mib=1)))


def test_near_a_candidate_then_on_the_node_where_it_runs():
    pool, _ = pool_of("a", "b", "c")
    assert places(reserve(pool, pod("u", candidates=["cpu-1", "c"]))) == [("c", 0)]
    assert places(reserve(pool, pod("u", node="b"), 1.0)) == [("b", 0)]
    assert places(reserve(pool, pod("u", node="cpu-1"), 2.0)) == [("b", 0)]
    assert places(reserve(pool, pod("v", candidates=["cpu-1"]))) == [("b", 0)]  # the fullest: no candidate has a GPU
    assert places(reserve(pool, pod("w", candidates=["c"], rule="binpack"))) == [("b", 0)]
    assert places(reserve(pool, pod("x", node="c", candidates=["b"], rule="spread"))) == [("c", 0)]
    reserve(pool, pod("full", PodContainer(name="main", gmem_mib=16000), node="a"))
    assert places(reserve(pool, pod("v", node="a"), 3.0)) == [("b", 0)]  # no room there: it stays


def test_what_a_program_uses_is_not_moved():
    pool, servers = pool_of("a", "b")
    (mine,) = reserve(pool, pod("u", node="a"))
    servers["a"].attach(pool.tickets(pool.allocate(wish(group="u", gmem_mib=4000, ratio=25), 1.0, 1.0), 1.0, 1.0)[0])
    alive(pool, servers, 1.0)
    assert reserve(pool, pod("u", node="b"), 2.0) == [mine] and places([mine]) == [("a", 0)]


def test_another_size_before_it_is_used():
    pool, _ = pool_of("a", "b")
    (mine,) = reserve(pool, pod("u"))
    assert reserve(pool, pod("u", PodContainer(name="main", gmem_mib=8000, ratio_percent=50))) == [mine]
    assert (mine.record.gmem_mib, mine.record.ratio_percent) == (8000, 50)
    reserve(pool, pod("other", PodContainer(name="main", gmem_mib=8000), node="a"))
    (moved,) = reserve(pool, pod("u", PodContainer(name="main", gmem_mib=16000, ratio_percent=50)))
    assert places([moved]) == [("b", 0)] and mine.id not in pool.allocations
    with pytest.raises(Never):
        reserve(pool, pod("u", PodContainer(name="main", gmem_mib=20000)))
    assert pods.parts_of(pool, "u") == [moved]


def test_a_new_controller_waits_for_its_servers_before_it_reserves_again():
    pool, servers = pool_of("a", "b")
    (mine,) = reserve(pool, pod("u", node="a", ttl_s=0.0))
    restarted = Pool()
    restarted.restore([mine.record], {}, set(), 10.0, 10.0)
    restarted.register(servers["b"].register(), 10.0, 10.0)
    with pytest.raises(pods.NotReady, match="just started"):
        reserve(restarted, pod("u", ttl_s=0.0), 10.0)
    restarted.register(servers["a"].register(), 11.0, 11.0)
    assert places(reserve(restarted, pod("u", ttl_s=0.0), 11.0)) == [("a", 0)]
    assert restarted.allocator.free("b", 0) == (16000, 100, 4)
    lost = Pool()
    lost.restore([mine.record], {}, set(), 10.0, 10.0)
    lost.register(servers["b"].register(), 10.0, 10.0)
    lost.forget_absent()
    assert places(reserve(lost, pod("u", ttl_s=0.0), 60.0)) == [("b", 0)]


def test_what_a_server_holds_for_a_pod_that_nobody_remembers_is_its_part():
    pool, servers = pool_of("a")
    reserve(pool, pod("u", ttl_s=0.0))
    got = pool.allocate(wish(group="u", gmem_mib=4000, ratio=25), 1.0, 1.0)
    servers["a"].attach(pool.tickets(got, 1.0, 1.0)[0])
    forgetful = Pool()
    forgetful.register(servers["a"].register(), 10.0, 10.0)
    (found,) = reserve(forgetful, pod("u", ttl_s=0.0), 11.0)
    assert found.id == got.id and found.record.slot == "main/0" and found.session_count == 1
    assert forgetful.allocator.free("a", 0) == (12000, 75, 3)


def test_a_pod_whose_server_is_away_gets_nothing_else():
    pool, servers = pool_of("a", "b")
    (mine,) = reserve(pool, pod("u", PodContainer(name="main", vgpus=2, gmem_mib=16000), ttl_s=0.0))
    assert places([mine]) == [("a", 0), ("b", 0)]
    for now_s in range(1, 10):
        servers["a"].beat(pool, float(now_s))
        pool.tick(float(now_s), float(now_s))
    told = pods.view(pool, "u")
    assert told is not None and told.lost
    with pytest.raises(Refused, match="server of this pod's vGPUs is away"):
        pool.allocate(wish(group="u", vgpu=1, gmem_mib=10), 10.0, 10.0)
    servers["b"].beat(pool, 11.0)
    assert pool.allocate(wish(group="u", vgpu=2, gmem_mib=16000), 12.0, 12.0) is mine


def test_a_scheduler_that_has_chosen_the_gpus_gets_these_or_none():
    pool, _ = pool_of("a", "b", gpus=2)

    def at(*chosen: tuple[str, int], gmem_mib: int = 9000) -> PodContainer:
        named = [PodPlace(node=node, ordinal=ordinal) for node, ordinal in chosen]
        return PodContainer(name="claim", vgpus=len(chosen), gmem_mib=gmem_mib, ratio_percent=10, places=named)

    first = reserve(pool, pod("u", at(("b", 1), ("a", 1))))
    assert places(first) == [("b", 1), ("a", 1)]
    assert reserve(pool, pod("u", at(("b", 1), ("a", 1)))) == first
    with pytest.raises(Later, match="no room for 1 vGPUs of 9000 MiB and 10 % on b GPU 1"):
        reserve(pool, pod("v", at(("b", 1))))
    assert pool.allocator.free("b", 1) == (7000, 90, 3) and pods.view(pool, "v") is None
    assert places(reserve(pool, pod("u", at(("b", 0))))) == [("b", 0)]  # others, while nobody has used them
    assert pool.allocator.free("b", 1) == pool.allocator.free("a", 1) == (16000, 100, 4)
    for wrong in (("c", 0), ("a", 7)):
        with pytest.raises(Refused, match=r"there is no node c|has no GPU 7"):
            reserve(pool, pod("w", at(wrong)))
    with pytest.raises(Never):
        reserve(pool, pod("w", at(("a", 0), gmem_mib=17000)))
    odd = at(("a", 0))
    odd.vgpus = 2
    with pytest.raises(Refused, match="names 1 places for 1 x 2 vGPUs"):
        reserve(pool, pod("w", odd))
