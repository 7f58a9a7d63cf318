"""The controller with its port and its store; servers and clients speak the real protocol over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from orion_controller.api import models
from orion_controller.api.pod_models import PodContainer, PodsGone, PodWish
from orion_controller.backend import ServiceError
from tests.controller.linked import CommandError, Keys, Policies, TicketError, World, world
from tests.controller.simulated import wish
from wire import pool as wire
from wire.control import WIRE_VERSION

QUICK = Policies(lease_s=1.5, idle_s=1.0, attach_within_s=1.5)


def go(folder: Path, body: Callable[[World], Awaitable[None]], **values: object) -> None:
    async def run() -> None:
        async with world(folder, **values) as made:
            await body(made)

    asyncio.run(run())


def test_a_client_gets_tickets_that_its_servers_take_once(tmp_path):
    async def body(pool: World) -> None:
        for name in "ab":
            pool.server(name, gpus=1)
        await pool.joined("a", "b")
        given = await pool.client().allocate(vgpu=2, ratio=60)
        assert [s.server for s in given.servers] == ["a", "b"] and given.servers[0].address == "a:9960"
        stored = (await pool.store.load()).allocations
        assert stored[given.allocation].places == [("a", 0), ("b", 0)]  # before anybody was told
        first = given.servers[0]
        with pytest.raises(TicketError, match="not one of this pool"):
            pool.servers["b"].attach(first.ticket)
        with pytest.raises(TicketError, match="not one of this pool"):
            pool.servers["a"].attach(first.ticket[:-1] + bytes([first.ticket[-1] ^ 1]))
        sessions = [pool.servers[s.server].attach(s.ticket) for s in given.servers]
        with pytest.raises(TicketError, match="used already"):
            pool.servers["a"].attach(first.ticket)
        await pool.until(lambda: pool.controller.summary().sessions == 2)
        (seen,) = pool.controller.groups()
        assert (seen.state, seen.vgpus, seen.nodes) == ("active", 2, ["a", "b"])
        await pool.until(lambda: [v.achieved_percent for v in pool.controller.vgpus()] == [30.0, 30.0])
        for server, session in zip(("a", "b"), sessions, strict=True):
            pool.servers[server].end(session)
        await pool.until(lambda: not pool.controller.groups())
        await pool.stores_nothing()
        kinds = [event.kind for event in await pool.controller.events()]
        assert kinds == ["node.registered", "node.registered", "group.allocated", "group.ended"]

    go(tmp_path, body)


def test_a_ticket_expires(tmp_path):
    async def body(pool: World) -> None:
        pool.server("a")
        await pool.joined("a")
        given = await pool.client().allocate()
        await asyncio.sleep(0.4)
        with pytest.raises(TicketError, match="has expired"):
            pool.servers["a"].attach(given.servers[0].ticket)
        await pool.until(lambda: not pool.controller.groups())
        assert pool.controller.summary().vgpus == 0

    go(tmp_path, body, policies=Policies(attach_within_s=0.3))


def test_who_waits_is_answered_when_there_is_room(tmp_path):
    async def body(pool: World) -> None:
        pool.server("a", gpus=1)
        await pool.joined("a")
        given = await pool.client().allocate(ratio=100)
        session = pool.servers["a"].attach(given.servers[0].ticket)
        refused = await pool.client().allocate(ratio=100)
        assert isinstance(refused, wire.Error) and refused.code == 46 and "ORION_WAIT_S" in refused.hint
        client = pool.client()
        queued = await client.allocate(ratio=100, wait_s=30.0, program="second")
        assert isinstance(queued, wire.Queued) and queued.position == 1
        again = await client.ask(wire.StillWaiting(id=0, ticket=queued.ticket))
        assert isinstance(again, wire.Queued)  # nothing for a second
        assert [w.program for w in pool.controller.queue()] == ["second"]
        asking = asyncio.ensure_future(client.ask(wire.StillWaiting(id=0, ticket=queued.ticket)))
        await asyncio.sleep(0.1)
        pool.servers["a"].end(session)
        served = await asking
        assert isinstance(served, wire.Allocated) and not pool.controller.queue()
        pool.servers["a"].attach(served.servers[0].ticket)
        leaves = pool.client()
        waits = await leaves.allocate(ratio=100, wait_s=30.0)
        await leaves.tell(wire.GiveUp(id=0, ticket=waits.ticket))
        await pool.until(lambda: not pool.controller.queue())

    go(tmp_path, body)


def test_a_client_that_gives_up_leaves_nothing(tmp_path):
    async def body(pool: World) -> None:
        pool.server("a")
        await pool.joined("a")
        client = pool.client()
        given = await client.allocate()
        await client.tell(wire.GiveUp(id=0, allocation=given.allocation))
        await pool.until(lambda: not pool.controller.groups())

    go(tmp_path, body)


def test_limits_change_while_programs_run_or_not_at_all(tmp_path):
    async def body(pool: World) -> None:
        for name in "ab":
            pool.server(name, gpus=1)
        await pool.joined("a", "b")
        given = await pool.client().allocate(vgpu=2, ratio=60, gmem_mib=1000)
        for server in given.servers:
            pool.servers[server.server].attach(server.ticket)
        await pool.until(lambda: pool.controller.summary().sessions == 2)
        change = models.PatchGroup(gmem_mib=2000, ratio_percent=70)
        changed = await pool.controller.patch_group(given.allocation, change, "ann")
        assert (changed.gmem_mib, changed.ratio_percent) == (2000, 70)
        for server in pool.servers.values():
            (asked,) = server.commands
            assert isinstance(asked, wire.ResizeAllocation) and (asked.gmem_mib, asked.ratio) == (2000, 70)
        assert (await pool.store.load()).allocations[given.allocation].gmem_mib == 2000
        while [e.user for e in await pool.controller.events(audit=True)] != ["ann"]:
            await asyncio.sleep(0.02)
        told = "vgpu-1 uses 1,500 MiB of GPU 0, more than 100 MiB"
        pool.servers["b"].refuses = CommandError(2, told, "--shrink block")
        with pytest.raises(ServiceError, match="uses 1,500 MiB") as refusal:
            await pool.controller.patch_group(given.allocation, models.PatchGroup(gmem_mib=100), "ann")
        assert (refusal.value.status, refusal.value.code) == (409, "below_usage")
        assert isinstance(pool.servers["a"].commands[-1], wire.ResizeAllocation)
        assert pool.servers["a"].commands[-1].gmem_mib == 2000  # taken back
        assert pool.controller.gpus("a")[0].given_mib == 2000
        with pytest.raises(ServiceError, match="not that much left"):
            await pool.controller.patch_group(given.allocation, models.PatchGroup(gmem_mib=99999), "ann")
        with pytest.raises(ServiceError, match="no group") as unknown:
            await pool.controller.patch_group("nobody", change, "ann")
        assert unknown.value.status == 404
        pool.servers.pop("b").link.close()
        await pool.until(lambda: [node.name for node in pool.controller.nodes()] == ["a"])
        with pytest.raises(ServiceError, match="b, where it has vGPUs, is away") as away:
            await pool.controller.patch_group(given.allocation, change, "ann")
        assert (away.value.status, away.value.code) == (409, "away")
        assert pool.controller.group(given.allocation).gmem_mib == 2000

    go(tmp_path, body)


def test_ending_draining_reserving_and_limits(tmp_path):
    async def body(pool: World) -> None:
        pool.server("a")
        await pool.joined("a")
        reserved = await pool.controller.reserve(models.Reserve(group="pod", gmem_mib=3000, ttl_s=60), "kube")
        assert (reserved.state, reserved.owner) == ("reserved", "kube")
        given = await pool.client().allocate(group="pod")
        assert given.allocation == reserved.id
        session = pool.servers["a"].attach(given.servers[0].ticket)
        await pool.until(lambda: pool.controller.summary().sessions == 1)
        drained = await pool.controller.set_draining("a", True, "ann")
        assert drained.state == "draining" and isinstance(pool.servers["a"].commands[-1], wire.SetDraining)
        assert isinstance(await pool.client().allocate(), wire.Error)
        await pool.controller.end_session(session, "ann")
        await pool.until(lambda: not pool.controller.groups())
        await pool.controller.set_draining("a", False, "ann")
        again = await pool.client().allocate(vgpu=2)
        pool.servers["a"].attach(again.servers[0].ticket)
        await pool.until(lambda: pool.controller.summary().sessions == 1)
        await pool.controller.end_group(again.allocation, "ann")
        assert not pool.servers["a"].simulated.sessions and not pool.controller.groups()
        await pool.controller.set_limits("g", models.LimitsBody(vgpus=1), "ann")
        assert [limit.group for limit in pool.controller.limits()] == ["g"]
        refused = await pool.client().allocate(group="g", vgpu=2)
        assert isinstance(refused, wire.Error) and "may have 1 vGPUs" in refused.message
        await pool.controller.set_limits("g", None, "ann")
        controller = pool.controller
        for wrong in (controller.set_limits("g", None, "ann"), controller.end_session("s", "ann"),
                      controller.end_group("g", "ann"), controller.set_draining("z", True, "ann")):  # fmt: skip
            with pytest.raises(ServiceError) as refusal:
                await wrong
            assert refusal.value.status == 404

    go(tmp_path, body)


def test_a_controller_that_restarts_is_not_noticed(tmp_path):
    async def body(pool: World) -> None:
        for name in "ab":
            pool.server(name)
        await pool.joined("a", "b")
        given = await pool.client().allocate(vgpu=3, ratio=70)
        for server in given.servers:
            pool.servers[server.server].attach(server.ticket)
        await pool.until(lambda: pool.controller.summary().sessions == len(given.servers))
        promised = await pool.client().allocate(gmem_mib=1234, ratio=10)
        before = pool.controller.gpus()
        await pool.stop()
        await asyncio.sleep(0.3)
        await pool.start()
        await pool.joined("a", "b")
        await pool.until(lambda: pool.controller.summary().sessions == len(given.servers))
        assert pool.controller.gpus() == before
        assert {g.id for g in pool.controller.groups()} == {given.allocation, promised.allocation}
        pool.servers[promised.servers[0].server].attach(promised.servers[0].ticket)  # the same keys

    go(tmp_path, body)


def test_a_pod_that_goes_before_its_server_is_back_is_released_when_it_is(tmp_path):
    async def body(pool: World) -> None:
        server = pool.server("a")
        await pool.joined("a")
        wishes = [PodWish(uid="pod-1", namespace="ns", name="p", containers=[PodContainer(name="c", vgpus=1)])]
        (outcome,) = await pool.controller.reserve_pods(wishes, "scheduler")
        assert outcome.parts
        await pool.stop()
        server.link.close()
        await pool.start()
        gone = PodsGone(uids=["pod-1", "pod-2"])
        told = await pool.controller.release_pods(gone, "scheduler")
        assert (told.released, told.kept) == (["pod-2"], ["pod-1"])
        pool.server("a")
        await pool.joined("a")
        assert [pod.uid for pod in pool.controller.pods()] == ["pod-1"]
        told = await pool.controller.release_pods(gone, "scheduler")
        assert (told.released, told.kept) == (["pod-1", "pod-2"], [])
        assert not pool.controller.vgpus()
        await pool.stores_nothing()

    go(tmp_path, body)


def test_a_server_that_is_silent_is_lost_and_comes_back(tmp_path):
    async def body(pool: World) -> None:
        server = pool.server("a")
        await pool.joined("a")
        given = await pool.client().allocate()
        server.attach(given.servers[0].ticket)
        await pool.until(lambda: pool.controller.summary().sessions == 1)
        server.link.close()
        del pool.servers["a"]  # it has said goodbye
        await pool.until(lambda: not pool.controller.nodes())
        other = pool.server("b")
        await pool.joined("b")
        other.hang()
        await pool.until(lambda: [n.state for n in pool.controller.nodes()] == ["lost"])
        assert isinstance(await pool.client().allocate(), wire.Error)
        with pytest.raises(ServiceError, match="no node z"):
            await pool.controller.forget_node("z", "ann")
        other.go_on()
        await pool.joined("b")
        with pytest.raises(ServiceError, match="is in the pool") as refusal:
            await pool.controller.forget_node("b", "ann")
        assert refusal.value.status == 409
        assert isinstance(await pool.client().allocate(), wire.Allocated)
        other.hang()
        await pool.until(lambda: [n.state for n in pool.controller.nodes()] == ["lost"])
        await pool.controller.forget_node("b", "ann")
        assert pool.controller.nodes() == []

    go(tmp_path, body, policies=QUICK)


def test_keys_versions_and_nonsense(tmp_path):
    async def body(pool: World) -> None:
        pool.server("bad", key="x" * 32)
        pool.server("good", key="s" * 32)
        await pool.joined("good")
        client = pool.client()
        refused = await client.allocate()
        assert refused.code == 800 and "ORION_CLIENT_KEY" in refused.hint
        assert isinstance(await client.allocate(key="c" * 32), wire.Allocated)
        old = wish(key="c" * 32)
        old.wire = (WIRE_VERSION[0] + 1, 0)
        refused = await client.ask(old)
        assert refused.code == 803 and "same major release" in refused.hint
        assert list(pool.controller.pool.servers) == ["good"]
        encode = msgspec.msgpack.encode
        asks = {"type": "allocate", "id": 7, "v": 1, "wire": [1, 0]}
        for message in (asks | {"vgpu": -3}, {"type": "boo", "id": 7}, {"type": "register", "id": 7, "v": 1},
                        asks | {"v": 9}):  # fmt: skip
            answer = msgspec.msgpack.decode(await client.raw(encode(message)))
            assert answer["type"] == "error" and answer["id"] == 7 and answer["message"]
        for junk in (b"", b"\xc1", b"\x81", encode([1, 2]), bytes(range(256)), b"\x91" * 3000):
            await client.tell(wire.GiveUp(id=0))
            await client._socket.send(junk)
        assert isinstance(await client.allocate(key="c" * 32), wire.Allocated)
        found = await client.ask(wire.Lookup(id=0, group="g", key="c" * 32))
        assert found.totals["gpus"] == 2 and found.servers == []

    go(tmp_path, body, keys=Keys(server="s" * 32, client="c" * 32))


def test_the_last_hour(tmp_path):
    async def body(pool: World) -> None:
        pool.server("a")
        await pool.joined("a")
        given = await pool.client().allocate(group="g/h")
        pool.servers["a"].attach(given.servers[0].ticket)
        await pool.until(lambda: pool.controller.summary().sessions == 1)
        await pool.until(lambda: any(v.used_mib for v in pool.controller.vgpus()))
        for second in range(3):
            pool.controller._sample(1000.0 + 5 * second)
        whole = pool.controller.history("pool")
        assert {s.name for s in whole.series} >= {"memory_used", "vgpus"} and whole.step_s == 5
        assert [s.values[-1] for s in whole.series if s.name == "sessions"] == [1.0]
        mine = pool.controller.history(f"group/{given.allocation}")
        assert [s.values[-1] for s in mine.series] == [12.0, 10.0]  # 12.5 %, whole numbers are kept
        pool.controller.history("node/a")
        for scope in ("node/b", "gpu/a/9", "x", "group/"):
            with pytest.raises(ServiceError):
                pool.controller.history(scope)

    go(tmp_path, body)
