"""Which worker a client gets, and when others are made: pools of workers that are no processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from orion_client.private_server import PrivateServer
from orion_server import pool as pool_module
from orion_server.libcuda import Libcuda
from orion_server.pool import WorkerPool
from orion_server.worker_process import State, WorkerDied, needed_environment
from wire import control

LAZY = {"CUDA_MODULE_LOADING": "LAZY"}
CLIENTS = 16


class FakeWorker:
    """What a pool needs of a worker process. `becomes_warm` and `dies` say what it does."""

    def __init__(self, environment: dict[str, str], pid: int, uid: int) -> None:
        self.environment, self.pid, self.uid = environment, pid, uid
        self.owner: Any = None
        self.state = State.STARTING
        self.hello: dict[str, Any] = {}
        self.reason = ""
        self.was_warm = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.dead: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def becomes_warm(self) -> None:
        self.state, self.hello = State.WARM, {"driver_version": 13000}
        self.ready.set_result(None)

    def dies(self) -> None:
        self.state, self.reason = State.DEAD, "it fell over"
        if not self.ready.done():
            self.ready.set_exception(WorkerDied(self.reason))
            self.ready.exception()
        self.dead.set_result(None)

    def stop(self, reason: str) -> None:
        self.dies()

    kill = dies


class Scene:
    """A pool, its clock, and every worker that it has made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, warm: int, uids: bool) -> None:
        self.now_s = 1000.0
        self.made: list[FakeWorker] = []

        async def spawn(_libcuda: Any, _devices: Any, environment: dict[str, str], *others: Any) -> FakeWorker:
            pid = len(self.made) + 1
            told = others[-2]
            self.made.append(FakeWorker(dict(environment), pid, told if told >= 0 else 1000 + pid if uids else -1))
            return self.made[-1]

        monkeypatch.setattr(pool_module.WorkerProcess, "spawn", spawn)
        images: Any = None
        arbiter: Any = None  # workers that are no processes have no seats
        self.pool = WorkerPool(Libcuda("null", ""), None, warm, 60.0, "error", images, arbiter, lambda: self.now_s)

    async def start(self) -> None:
        starting = asyncio.ensure_future(self.pool.start())
        await settle()
        self.made[0].becomes_warm()
        await starting
        await settle()

    async def passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.pool._changed.set()  # what the timer would do
        await settle()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[Scene], Coroutine[Any, Any, None]]], None]:
    def run(warm: int, act: Callable[[Scene], Coroutine[Any, Any, None]], uids: bool = False) -> None:
        async def whole() -> None:
            made = Scene(monkeypatch, warm, uids)
            await made.start()
            try:
                await act(made)
            finally:
                await made.pool.close()

        asyncio.run(whole())

    return run


def test_what_the_driver_does_anyway_needs_no_other_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_MODULE_LOADING", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    assert needed_environment({**LAZY, "CUDA_DEVICE_MAX_CONNECTIONS": "8", "CUDA_FORCE_PTX_JIT": "0"}, 12020) == {}
    assert needed_environment(LAZY, 12010) == LAZY
    eager = {"CUDA_MODULE_LOADING": "EAGER"}
    assert needed_environment({**eager, "CUDA_DEVICE_MAX_CONNECTIONS": "1"}, 13000) == {
        **eager, "CUDA_DEVICE_MAX_CONNECTIONS": "1"}  # fmt: skip
    # Workers have what the server has, the driver's own default is then another setting.
    monkeypatch.setenv("CUDA_MODULE_LOADING", "EAGER")
    assert needed_environment(eager, 13000) == {}
    assert needed_environment(LAZY, 13000) == LAZY


def test_all_missing_workers_start_together(scene: Any) -> None:
    async def act(s: Scene) -> None:
        assert len(s.made) == 4  # the first one was there; nobody waits for the second before the third begins

    scene(4, act)


def test_a_client_takes_the_warm_one_and_its_replacement_follows(scene: Any) -> None:
    async def act(s: Scene) -> None:
        assert await s.pool.take(LAZY) is s.made[0]  # type: ignore[comparison-overlap]
        assert s.made[0].was_warm
        await settle()
        assert len(s.made) == 1  # not while the client attaches
        await s.passes(pool_module.ATTACH_S)
        assert len(s.made) == 2

    scene(1, act)


def test_a_replacement_leaves_the_client_its_start_while_another_is_ready(scene: Any) -> None:
    async def act(s: Scene) -> None:
        s.made[1].becomes_warm()
        await s.pool.take({})
        await settle()
        assert len(s.made) == 2
        await s.passes(pool_module.ATTACH_S)
        assert len(s.made) == 2
        await s.passes(pool_module.HOLD_S)
        assert len(s.made) == 3

    scene(2, act)


def test_clients_who_wait_come_before_workers_for_later_ones(scene: Any) -> None:
    async def act(s: Scene) -> None:
        await s.pool.take({})
        await s.passes(pool_module.ATTACH_S)
        assert len(s.made) == 2  # starts, for the next one
        second, third = asyncio.ensure_future(s.pool.take({})), asyncio.ensure_future(s.pool.take({}))
        await settle()
        assert len(s.made) == 3  # the third client's own, and none for a fourth yet
        s.made[1].becomes_warm()
        s.made[2].becomes_warm()
        assert [await second, await third] == s.made[1:3]
        assert not s.made[2].was_warm
        await s.passes(pool_module.ATTACH_S)
        assert len(s.made) == 4

    scene(1, act)


def test_workers_that_do_not_start_are_tried_again_later(scene: Any) -> None:
    async def act(s: Scene) -> None:
        for worker in s.made[1:]:
            worker.dies()
        await settle()
        assert len(s.made) == 3
        await s.passes(0.5)
        assert len(s.made) == 5

    scene(3, act)


async def begin(s: Scene, owner: str) -> FakeWorker:
    """A program that attaches; what starts for it becomes warm at once, and so does what follows."""
    taking = asyncio.ensure_future(s.pool.take({}, owner))
    await settle()
    for worker in s.made:
        if worker.state is State.STARTING:
            worker.becomes_warm()
    worker: Any = await taking
    await s.passes(pool_module.HOLD_S)
    for spare in s.made:
        if spare.state is State.STARTING:
            spare.becomes_warm()
    await settle()
    return worker


def test_processes_of_a_tenant_have_one_uid_and_other_tenants_another(scene: Any) -> None:
    async def act(s: Scene) -> None:
        first = await begin(s, "a")
        second = await begin(s, "a")
        assert (first.uid, first.was_warm) == (second.uid, True)
        assert second.was_warm  # the one that was made for it
        other = await begin(s, "b")
        assert other.was_warm and other.uid != first.uid
        third = await begin(s, "a")
        assert third.uid == first.uid
        with_settings: Any = asyncio.ensure_future(s.pool.take({"CUDA_MODULE_LOADING": "EAGER"}, "b"))
        await settle()
        s.made[-1].becomes_warm()
        assert (await with_settings).uid == other.uid
        by_tenant: dict[str, set[int]] = {"a": set(), "b": set()}
        for worker in s.made:
            if worker.owner is not None:
                by_tenant[worker.owner].add(worker.uid)
        assert all(len(uids) == 1 for uids in by_tenant.values()) and by_tenant["a"] != by_tenant["b"]

    scene(2, act, uids=True)


def test_two_processes_of_a_tenant_that_come_at_once_have_one_uid(scene: Any) -> None:
    async def act(s: Scene) -> None:
        s.made[1].becomes_warm()
        both = [asyncio.ensure_future(s.pool.take({}, "a")) for _ in range(2)]
        await settle()
        s.made[-1].becomes_warm()
        first, second = [await taking for taking in both]
        assert first is not second and first.uid == second.uid

    scene(2, act, uids=True)


def test_who_starts_program_after_program_finds_a_warm_worker(scene: Any) -> None:
    async def act(s: Scene) -> None:
        for _ in range(5):
            worker = await begin(s, "a")
            assert worker.was_warm
            made = len(s.made)
            worker.dies()
            await s.passes(0.0)
        assert len(s.made) == made  # one for each program, no more
        await begin(s, "b")
        await s.passes(pool_module.HOLD_S)
        # What had been made for `a` is in nobody's way.
        assert [w.owner for w in s.made if w.state is not State.DEAD and w.owner == "a"] == []

    scene(2, act, uids=True)


def test_what_waits_for_a_tenant_is_not_anothers(scene: Any) -> None:
    async def act(s: Scene) -> None:
        first = await begin(s, "a")
        await begin(s, "a")
        spares = [w for w in s.made if w.state is State.WARM]
        assert {w.owner for w in spares} == {None, "a"}
        others = [await begin(s, "b"), await begin(s, "c")]
        assert first.uid not in {w.uid for w in others}

    scene(2, act, uids=True)


def test_sixteen_clients_at_once_get_a_worker_each(connect: Any, attach: Any) -> None:
    with PrivateServer("softgpu", extra=("--null-engine", "--warm", "3")) as server:
        clients = [connect(server.address) for _ in range(CLIENTS)]
        for client in clients:
            client.send(control.encode(attach()))
        answers = [client.receive(60.0) for client in clients]
        assert all(isinstance(answer, control.Attached) for answer in answers)
        assert len({answer.session for answer in answers}) == CLIENTS
