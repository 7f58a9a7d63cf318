"""The life of servers, allocations and the queue, in simulated time."""

from __future__ import annotations

import itertools
from collections import Counter
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from orion_controller import pods
from orion_controller.allocator import AllocationError
from orion_controller.api.models import LimitsBody
from orion_controller.api.pod_models import PodContainer, PodWish
from orion_controller.pool import Absent, Allocation, Away, Later, Policies, Pool, Refused
from orion_controller.views import gpus, group, node, queue, summary, vgpus_of
from tests.controller.simulated import SimulatedServer, wish
from wire import pool as wire


def pool_of(*servers: SimulatedServer) -> Pool:
    pool = Pool()
    for server in servers:
        pool.register(server.register(), 0.0, 0.0)
    return pool


def begin(pool: Pool, servers: dict[str, SimulatedServer], now_s: float = 0.0, **values: object) -> Allocation:
    """An allocation whose sessions have all begun."""
    allocation = pool.allocate(wish(**values), now_s, now_s)
    for ticket in pool.tickets(allocation, now_s, now_s):
        servers[ticket.server].attach(ticket)
    for server in servers.values():
        server.beat(pool, now_s)
    return allocation


def test_from_a_wish_to_its_end():
    server = SimulatedServer("a")
    pool = pool_of(server)
    allocation = pool.allocate(wish(gmem_mib=8000, ratio=50), 0.0, 100.0)
    (ticket,) = pool.tickets(allocation, 0.0, 100.0)
    assert (ticket.ordinals, ticket.gmem_mib, ticket.ratio, ticket.expires_s) == ((0,), 8000, 50, 115.0)
    assert allocation.state == "reserved" and pool.allocator.free("a", 0) == (8000, 50, 3)
    session = server.attach(ticket)
    out = server.beat(pool, 1.0)
    assert out is not None and out.saved == [allocation] and allocation.state == "active"
    assert allocation.record.expires_s is None
    assert [v.achieved_percent for v in vgpus_of(pool, allocation)] == [25.0]
    server.end(session)
    out = server.beat(pool, 2.0)
    assert out is not None and out.ended == [allocation]
    assert pool.allocator.free("a", 0) == (16000, 100, 4)


def test_defaults_are_one_of_vgpu_count_parts_of_the_smallest_gpu():
    pool = pool_of(SimulatedServer("a"), SimulatedServer("b", capacity_mib=8000, max_vgpus=4))
    allocation = pool.allocate(wish(), 0.0, 0.0)
    assert (allocation.record.gmem_mib, allocation.record.ratio_percent) == (2000, 25)


def test_a_reservation_ends_when_nobody_comes():
    pool = pool_of(server := SimulatedServer("a"))
    allocation = pool.allocate(wish(), 0.0, 0.0)
    ended_at_s = next(t for t in range(1, 100) if server.beat(pool, t) and pool.tick(t, t).ended == [allocation])
    # Not before its tickets have expired, whatever the clocks say.
    assert ended_at_s == 2 * pool.policies.attach_within_s


def test_several_gpus_of_several_servers_in_device_order():
    servers = {name: SimulatedServer(name) for name in "abc"}
    pool = pool_of(*servers.values())
    allocation = pool.allocate(wish(vgpu=5, ratio=100), 0.0, 0.0)
    tickets = pool.tickets(allocation, 0.0, 0.0)
    assert [(t.server, o) for t in tickets for o in t.ordinals] == allocation.record.places
    assert len(tickets) == 3 and len(set(allocation.record.places)) == 5


def test_two_vgpus_on_one_gpu_are_two_tickets():
    pool = pool_of(SimulatedServer("a", gpus=1))
    tickets = pool.tickets(pool.allocate(wish(vgpu=2, gmem_mib=7000), 0.0, 0.0), 0.0, 0.0)
    assert [(t.server, t.ordinals) for t in tickets] == [("a", (0,)), ("a", (0,))]


def test_one_machine_is_preferred_when_its_server_is_there():
    pool = pool_of(SimulatedServer("a"), SimulatedServer("b"))
    assert pool.allocate(wish(host="boot-b"), 0.0, 0.0).record.places == [("b", 0)]
    assert pool.allocate(wish(node="b", host="elsewhere"), 0.0, 0.0).record.places == [("b", 0)]


def test_sessions_that_begin_on_one_server_and_not_yet_on_the_other():
    servers = {name: SimulatedServer(name, gpus=1) for name in "ab"}
    pool = pool_of(*servers.values())
    allocation = pool.allocate(wish(vgpu=2, ratio=100), 0.0, 0.0)
    first, second = pool.tickets(allocation, 0.0, 0.0)
    session = servers[first.server].attach(first)
    servers[first.server].beat(pool, 1.0)
    servers[first.server].end(session)  # CUDA_VISIBLE_DEVICES hides it
    servers[first.server].beat(pool, 2.0)
    assert allocation.id in pool.allocations
    servers[second.server].attach(second)
    servers[second.server].beat(pool, 3.0)
    assert allocation.state == "active" and allocation.gone_at_s is None
    (other,) = servers[second.server].sessions
    servers[second.server].end(other)
    servers[second.server].beat(pool, 60.0)
    assert allocation.id not in pool.allocations


# ------------------------------------------------------------------------------------------------ groups
def test_the_processes_of_a_box_share_one_allocation_that_outlives_them_for_a_while():
    servers = {"a": SimulatedServer("a")}
    pool = pool_of(servers["a"])
    first = begin(pool, servers, group="pod-1", res_group="BOX")
    assert begin(pool, servers, group="pod-1", res_group="BOX", gmem_mib=9999) is first
    assert begin(pool, servers, group="pod-1") is not first
    for session in list(servers["a"].sessions):
        servers["a"].end(session)
    servers["a"].beat(pool, 10.0)
    assert first.state == "idle" and list(pool.allocations) == [first.id]
    servers["a"].beat(pool, 39.0)
    assert pool.tick(39.0, 39.0).ended == []
    assert pool.allocate(wish(group="pod-1", res_group="BOX"), 39.5, 39.5) is first
    servers["a"].beat(pool, 41.0)
    assert pool.tick(41.0, 41.0).ended == [first]


def test_what_is_reserved_waits_for_the_next_program_of_its_group():
    servers = {"a": SimulatedServer("a")}
    pool = pool_of(servers["a"])
    first = begin(pool, servers, group="g", reserved=True)
    for session in list(servers["a"].sessions):
        servers["a"].end(session)
    servers["a"].beat(pool, 10.0)
    for now_s in range(11, 1000):
        servers["a"].beat(pool, now_s)
        pool.tick(now_s, now_s)
    assert first.state == "idle"
    assert begin(pool, servers, 1000.0, group="g", reserved=True) is first
    assert begin(pool, servers, 1001.0, group="g", reserved=True) is not first  # that one is in use
    assert pool.end(first.id, "by hand", 1002.0, 1002.0).ended == [first]


def test_a_scheduler_reserves_and_the_pod_comes():
    servers = {"a": SimulatedServer("a")}
    pool = pool_of(servers["a"])
    reserved = pool.reserve(wish(group="pod-uid", gmem_mib=3000), 300.0, 0.0, 0.0)
    for now_s in range(299):
        servers["a"].beat(pool, now_s)
        assert not pool.tick(now_s, now_s).ended
    assert begin(pool, servers, 299.0, group="pod-uid", gmem_mib=1) is reserved
    assert not pool.tick(301.0, 301.0).ended and reserved.record.gmem_mib == 3000
    unused = pool.reserve(wish(group="other"), 300.0, 0.0, 0.0)
    servers["a"].beat(pool, 300.0)
    assert pool.tick(300.0, 300.0).ended == [unused]


def test_limits_of_groups_and_of_all_others():
    pool = pool_of(SimulatedServer("a"))
    pool.set_limits("*", LimitsBody(vgpus=1))
    pool.set_limits("big", LimitsBody(vgpus=3))
    pool.allocate(wish(group="g"), 0.0, 0.0)
    with pytest.raises(Later, match="may have 1 vGPUs and has 1"):
        pool.allocate(wish(group="g"), 0.0, 0.0)
    with pytest.raises(Refused, match="may have 3 vGPUs, 4 are asked for"):
        pool.allocate(wish(group="big", vgpu=4), 0.0, 0.0)
    pool.set_limits("*", None)
    pool.allocate(wish(group="g"), 0.0, 0.0)


# ------------------------------------------------------------------------------------------------ the queue
def test_who_waits_is_served_in_order_when_somebody_goes():
    servers = {"a": SimulatedServer("a", gpus=1)}
    pool = pool_of(servers["a"])
    whole = begin(pool, servers, ratio=100)
    with pytest.raises(Later, match="room for 0 vGPUs") as refusal:
        pool.allocate(wish(ratio=60, wait_s=60.0), 1.0, 1.0)
    first = pool.join_queue(wish(ratio=60, program="one"), str(refusal.value), 1.0, 1.0)
    second = pool.join_queue(wish(ratio=60, program="two"), "", 2.0, 2.0)
    assert [pool.position(w.ticket) for w in (first, second)] == [1, 2]
    assert [w.program for w in queue(pool)] == ["one", "two"]
    for session in list(servers["a"].sessions):
        servers["a"].end(session)
    out = servers["a"].beat(pool, 3.0)
    assert out is not None and out.ended == [whole]
    assert [(w.ticket, a.record.ratio_percent) for w, a in out.served] == [(first.ticket, 60)]
    assert pool.position(second.ticket) == 1
    second.heard_s = 3.0
    servers["a"].beat(pool, 8.5)
    pool.tick(8.5, 8.5)
    assert not pool.waiting  # it has not been heard of for a lease


def test_what_never_fits_does_not_wait():
    pool = pool_of(SimulatedServer("a"))
    with pytest.raises(Refused, match="largest has 16000") as refusal:
        pool.allocate(wish(gmem_mib=20000, wait_s=60.0), 0.0, 0.0)
    assert not isinstance(refusal.value, Later) and refusal.value.code == 2
    with pytest.raises(Refused, match="ORION_SCHEDULE_RULE"):
        pool.allocate(wish(rule="nearest"), 0.0, 0.0)
    with pytest.raises(Later, match="no servers"):
        Pool().allocate(wish(), 0.0, 0.0)


# ------------------------------------------------------------------------------------------------ servers go and come
def test_a_lost_server_takes_its_part_and_comes_back_with_it():
    servers = {name: SimulatedServer(name, gpus=1) for name in "ab"}
    pool = pool_of(*servers.values())
    across = begin(pool, servers, vgpu=2, ratio=100)
    servers["b"].beat(pool, 5.0)
    out = pool.tick(5.5, 5.5)
    assert [(kind, subject) for _, kind, subject, _ in out.notes] == [("node.lost", "a")]
    assert across.state == "active" and node(pool, pool.servers["a"]).state == "lost"
    assert [g.node for g in gpus(pool)] == ["b"] and pool.allocator.free("b", 0)[1] == 0
    assert pool.heartbeat(servers["a"].heartbeat(), 6.0, 6.0) is None
    servers["a"].beat(pool, 6.0)
    assert across.session_count == 2 and pool.allocator.free("a", 0)[1] == 0
    for server in servers.values():
        for session in list(server.sessions):
            server.end(session)
        server.beat(pool, 30.0)
    assert pool.allocator.free("a", 0) == pool.allocator.free("b", 0) == (16000, 100, 4)


def test_a_server_that_has_restarted_has_nothing():
    servers = {"a": SimulatedServer("a")}
    pool = pool_of(servers["a"])
    allocation = begin(pool, servers)
    servers["a"] = SimulatedServer("a", instance="instance-2")
    servers["a"].beat(pool, 1.0)
    servers["a"].beat(pool, 14.0)
    assert pool.tick(14.5, 14.5).ended == []  # its client may have another ticket
    servers["a"].beat(pool, 15.0)
    assert pool.tick(15.0, 15.0).ended == [allocation] and pool.allocator.free("a", 0) == (16000, 100, 4)


def test_a_name_belongs_to_one_server():
    pool = pool_of(SimulatedServer("a"))
    other = SimulatedServer("a", instance="instance-2").register()
    other.address = "elsewhere:9960"
    with pytest.raises(Refused, match="is in the pool already"):
        pool.register(other, 1.0, 1.0)
    pool.tick(10.0, 10.0)
    pool.register(other, 11.0, 11.0)  # the first is lost


def test_a_drained_server_keeps_what_it_has_and_gets_nothing_new():
    servers = {"a": SimulatedServer("a")}
    pool = pool_of(servers["a"])
    allocation = begin(pool, servers)
    pool.set_draining("a", True, 0.0, 0.0)
    with pytest.raises(Later):
        pool.allocate(wish(), 0.0, 0.0)
    assert allocation.state == "active" and node(pool, pool.servers["a"]).state == "draining"
    pool.register(servers["a"].register(), 1.0, 1.0)  # and after it has registered again
    with pytest.raises(Later):
        pool.allocate(wish(), 1.0, 1.0)
    pool.set_draining("a", False, 2.0, 2.0)
    pool.allocate(wish(), 2.0, 2.0)
    with pytest.raises(Absent):
        pool.set_draining("z", True, 0.0, 0.0)


def test_a_new_controller_learns_from_the_store_and_from_the_servers():
    servers = {name: SimulatedServer(name) for name in "ab"}
    before = pool_of(*servers.values())
    running = begin(before, servers, group="g", res_group="BOX", vgpu=3, ratio=60)
    kept = begin(before, servers, group="r", reserved=True)
    for server in servers.values():
        for session in [s for s, report in server.sessions.items() if report.allocation == kept.id]:
            server.end(session)
        server.beat(before, 1.0)
    promised = before.allocate(wish(gmem_mib=1234), 1.0, 1.0)
    state = {(g.node, g.ordinal): before.allocator.free(g.node, g.ordinal) for g in gpus(before)}
    after = Pool()
    after.restore([a.record for a in before.allocations.values()], {}, {"b"}, 500.0, 2.0)
    for name in (running.id, "g"):
        with pytest.raises(Away, match="not yet back: a"):
            after.allocation(name)
    with pytest.raises(Absent):
        after.allocation("x")
    for server in servers.values():
        server.beat(after, 500.0)
    assert {(g.node, g.ordinal): after.allocator.free(g.node, g.ordinal) for g in gpus(after)} == state
    assert after.allocations[running.id].session_count == running.session_count
    assert after.allocations[kept.id].state == "idle" and after.allocations[promised.id].state == "reserved"
    assert after.forget_absent() == []
    assert summary(after, "c", True, "1", 0.0).nodes_draining == 1
    unknown = Pool()  # a store that was lost: what the servers hold is enough
    for server in servers.values():
        server.beat(unknown, 0.0)
    assert group(unknown, unknown.allocations[running.id]).sessions == running.session_count


def test_a_resize_fits_everywhere_or_nowhere():
    servers = {name: SimulatedServer(name, gpus=1) for name in "ab"}
    pool = pool_of(*servers.values())
    across = begin(pool, servers, vgpu=2, gmem_mib=15000, ratio=30)
    begin(pool, servers, gmem_mib=500, ratio=50, node="b")
    with pytest.raises(Refused, match="has not that much left"):
        pool.resize(across, 15000, 60)
    assert pool.allocator.free("a", 0)[1] + pool.allocator.free("b", 0)[1] == 200 - 2 * 30 - 50
    pool.resize(across, 15500, 50)


# ------------------------------------------------------------------------------------------------ any history
class AnyHistory(RuleBasedStateMachine):
    """Three servers, clients that come, do not come, go; servers that vanish, restart and return; time that passes."""

    def __init__(self) -> None:
        super().__init__()
        # Names that are the same each time, so that a history can be repeated.
        numbers = itertools.count(1)
        self._names = mock.patch("orion_controller.pool.secrets.token_hex", lambda _: f"{next(numbers):012x}")
        self._names.start()

    @initialize()
    def start(self) -> None:
        self.now_s = 0.0
        self.servers = {name: SimulatedServer(name, gpus=2, max_vgpus=4) for name in "abc"}
        self.connected = set("abc")
        self.pool = Pool(Policies(idle_s=8.0))
        self.pool.set_limits("small", LimitsBody(vgpus=3))
        self.open: list[object] = []
        self.beat()

    def beat(self) -> None:
        for name in sorted(self.connected):
            self.servers[name].beat(self.pool, self.now_s)

    @rule(
        vgpu=st.integers(1, 5),
        gmem=st.sampled_from([0, 1, 4000, 16000]),
        ratio=st.sampled_from([0, 10, 50, 100]),
        group=st.sampled_from(["", "g", "small"]),
        box=st.booleans(),
        reserved=st.booleans(),
        comes=st.sampled_from(["all", "first", "none"]),
    )
    def client(self, vgpu: int, gmem: int, ratio: int, group: str, box: bool, reserved: bool, comes: str) -> None:
        self._client(wish(vgpu=vgpu, gmem_mib=gmem, ratio=ratio, group=group, res_group="BOX" if box else "",
                          reserved=reserved), comes)  # fmt: skip

    def _client(self, asked: wire.Allocate, comes: str) -> Allocation | None:
        try:
            allocation = self.pool.allocate(asked, self.now_s, self.now_s)
        except Later as later:
            if asked.vgpu % 2:
                try:
                    self.pool.join_queue(asked, str(later), self.now_s, self.now_s)
                except Refused:
                    pass
            return None
        except Refused:
            return None
        tickets = self.pool.tickets(allocation, self.now_s, self.now_s)
        for ticket in tickets[: {"all": None, "first": 1, "none": 0}[comes]]:
            if ticket.server in self.connected:
                self.servers[ticket.server].attach(ticket)
        self.beat()
        return allocation

    @rule(
        uid=st.sampled_from(["pod-1", "pod-2", "small"]),
        vgpus=st.lists(st.integers(1, 3), min_size=1, max_size=3),
        gmem=st.sampled_from([0, 4000, 9000]),
        node=st.sampled_from(["", "a", "b"]),
        near=st.sampled_from([[], ["c"], ["nowhere"]]),
        ttl_s=st.sampled_from([0.0, 2.0, 60.0]),
        comes=st.booleans(),
    )
    def pod(self, uid: str, vgpus: list[int], gmem: int, node: str, near: list[str], ttl_s: float, comes: bool) -> None:
        asked = PodWish(
            uid=uid, namespace="ns", name=uid, node=node, candidates=near, ttl_s=ttl_s,
            containers=[PodContainer(name=f"c{n}", vgpus=v, gmem_mib=gmem) for n, v in enumerate(vgpus)],
        )  # fmt: skip
        before = {a.id: list(a.record.places) for a in self.pool.allocations.values()}
        try:
            allocations, _ = pods.reserve(self.pool, asked, self.now_s, self.now_s)
        except Refused:
            assert before == {a.id: a.record.places for a in self.pool.allocations.values()}
            return
        # A part that a program uses stays as it is, whatever is asked for now.
        assert all(len(a.record.places) == v or a.session_count for a, v in zip(allocations, vgpus, strict=True))
        if comes:
            given = self._client(wish(vgpu=vgpus[0], gmem_mib=gmem, group=uid), "all")
            assert given is None or given.record.slot, "a process of a pod got vGPUs of its own"

    @rule(uid=st.sampled_from(["pod-1", "pod-2", "small"]))
    def pod_is_gone(self, uid: str) -> None:
        for allocation in pods.parts_of(self.pool, uid):
            for server in self.servers.values():
                for name in [n for n, s in server.sessions.items() if s.allocation == allocation.id]:
                    server.end(name)
            self.pool.end(allocation.id, "gone", self.now_s, self.now_s)

    @rule(name=st.sampled_from("abc"), index=st.integers(0, 10))
    def session_ends(self, name: str, index: int) -> None:
        sessions = sorted(self.servers[name].sessions)
        if sessions:
            self.servers[name].end(sessions[index % len(sessions)])
        self.beat()

    @rule(name=st.sampled_from("abc"))
    def network_goes_or_comes(self, name: str) -> None:
        self.connected ^= {name}

    @rule(name=st.sampled_from("abc"))
    def server_restarts(self, name: str) -> None:
        number = int(self.servers[name].instance.split("-")[1]) + 1
        self.servers[name] = SimulatedServer(name, instance=f"instance-{number}")

    @rule(name=st.sampled_from("abc"), draining=st.booleans())
    def drain(self, name: str, draining: bool) -> None:
        if name in self.pool.servers:
            self.pool.set_draining(name, draining, self.now_s, self.now_s)

    @rule(seconds=st.sampled_from([0.5, 3.0, 6.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        for _ in range(int(seconds * 2)):
            self.now_s += 0.5
            self.beat()
            self.pool.tick(self.now_s, self.now_s)

    @rule(index=st.integers(0, 10), gmem=st.sampled_from([1, 5000]), ratio=st.sampled_from([5, 80]))
    def resize(self, index: int, gmem: int, ratio: int) -> None:
        known = sorted(self.pool.allocations)
        if not known:
            return
        allocation = self.pool.allocations[known[index % len(known)]]
        try:
            self.pool.resize(allocation, gmem, ratio)
        except Refused:
            return
        allocation.record.gmem_mib, allocation.record.ratio_percent = gmem, ratio
        for server in self.servers.values():
            if allocation.id in server.held:
                server.held[allocation.id].gmem_mib, server.held[allocation.id].ratio = gmem, ratio

    @rule()
    def controller_restarts(self) -> None:
        records = [allocation.record for allocation in self.pool.allocations.values()]
        records += self.pool.forget_absent()  # the store has these still
        draining = set(self.pool.draining)
        self.pool = Pool(Policies(idle_s=8.0))
        self.pool.restore(records, {"small": LimitsBody(vgpus=3)}, draining, self.now_s, self.now_s)
        self.beat()

    @invariant()
    def accounts_are_right(self) -> None:
        if not hasattr(self, "pool"):
            return
        placed = {p.id: p for p in self.pool.allocator.placements()}
        owned = [p for a in self.pool.allocations.values() for p in a.placements]
        assert sorted(owned) == sorted(placed), "a placement without its allocation, or the other way round"
        for allocation in self.pool.allocations.values():
            where = [place for p in allocation.placements for place in placed[p].gpus]
            present = [
                place
                for place in allocation.record.places
                if place[0] in self.pool.servers and not self.pool.servers[place[0]].is_lost
            ]
            assert sorted(where) == sorted(present)
            assert allocation.placements, "an allocation that has nothing"
        for gpu in gpus(self.pool):
            # Nothing is placed on what is not free: only what a server had already may exceed it, and here none does.
            assert gpu.given_mib <= gpu.capacity_mib and gpu.ratio_given_percent <= 100

    def teardown(self) -> None:
        """When all programs have ended, only what is reserved is left."""
        self._names.stop()
        if not hasattr(self, "pool"):
            return
        self.connected = set("abc")
        for server in self.servers.values():
            for session in list(server.sessions):
                server.end(session)
        self.beat()  # who waits for what a server holds has it now
        for uid in list(pods.pods(self.pool)):
            self.pod_is_gone(uid)
        self.time_passes(60.0)
        left = [a for a in self.pool.allocations.values() if not (a.record.reserved and a.record.was_used)]
        assert not left and not self.pool.waiting

    @invariant()
    def what_runs_is_counted(self) -> None:
        if not hasattr(self, "pool"):
            return
        for name in self.connected:
            known = self.pool.servers.get(name)
            if known is None or known.is_lost or known.said.instance != self.servers[name].instance:
                continue
            for item in self.servers[name].held.values():
                if item.allocation in self.pool.allocations:
                    places = self.pool.allocations[item.allocation].record.places
                    assert not Counter(item.ordinals) - Counter(o for s, o in places if s == name)


AnyHistory.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnyHistory = AnyHistory.TestCase


def test_the_views_are_whole():
    servers = {"a": SimulatedServer("a")}
    pool = pool_of(servers["a"])
    allocation = begin(pool, servers, vgpu=2, gmem_mib=100)
    whole = summary(pool, "c", True, "1", 0.0)
    assert (whole.nodes, whole.gpus, whole.vgpus, whole.sessions, whole.groups) == (1, 2, 2, 1, 1)
    assert whole.memory_given_mib == 200 and whole.vgpus_free == 6
    seen = group(pool, allocation)
    assert (seen.state, seen.used_mib, seen.owner) == ("active", 20, "1000@box")
    with pytest.raises(AllocationError):
        pool.allocator.free("z", 0)
