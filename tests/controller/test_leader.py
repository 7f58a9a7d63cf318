"""The election: with a clock of the test's own, and among processes that are killed, stopped and cut off."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError

from orion_controller.leader import Election
from orion_controller.store import NotLeading, Store, StoreError, tables
from orion_controller.store.writer import TERM_LOCK
from tests.controller.conftest import PostgresServer
from tests.controller.test_store import record, until

ROOT = Path(__file__).parents[2]
LEASE_S = 8.0
TRUST_S = 7.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Replica:
    """An election whose loop does not run: the test makes each step. Its clock is its own."""

    def __init__(self, url: str, name: str, clock: Clock) -> None:
        self.clock = clock
        self.store = Store.open(url)
        self.election = Election(self.store, name, f"{name}:9123", f"http://{name}", clock, lease_s=LEASE_S)
        self.told: list[str] = []
        self.election.on_elected = self.elected
        self.election.on_lost = self.lost

    async def elected(self) -> None:
        self.told.append("elected")

    async def lost(self) -> None:
        assert not self.election.is_leader
        self.told.append("lost")

    async def leads(self) -> bool:
        await self.election.step()
        return self.election.is_leader


def run(url: str, test: Callable[[Replica, Replica], Awaitable[None]]) -> None:
    """`test` with two replicas on one database; both are closed afterwards."""

    async def inside() -> None:
        one, two = Replica(url, "one", Clock()), Replica(url, "two", Clock())
        try:
            await test(one, two)
        finally:
            for replica in (one, two):
                await replica.election.stop()
                await replica.store.close()

    asyncio.run(inside())


def without_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that SQLite shows the lease alone: the holder is not known to be dead."""
    monkeypatch.setattr("orion_controller.leader._Guard.try_lock", lambda self: False)


def test_one_leads_and_the_other_knows_where(database: str) -> None:
    async def test(one: Replica, two: Replica) -> None:
        assert not one.election.is_leader
        assert await one.leads()
        assert not await two.leads()
        assert (two.election.leader_address, two.election.leader_url) == ("one:9123", "http://one")
        assert (one.election.leader_address, one.election.leader_url) == ("", "")
        assert (one.election.term, two.election.term) == (1, 0)
        await until(lambda: one.told == ["elected"])
        assert two.told == []

    run(database, test)


def test_who_renews_keeps_it(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_lock(monkeypatch)

    async def test(one: Replica, two: Replica) -> None:
        assert await one.leads()
        for _ in range(20):
            one.clock.now_s += 2
            two.clock.now_s += LEASE_S - 0.001
            assert await one.leads()
            assert not await two.leads()
        assert one.election.term == 1

    run(database, test)


def test_a_leader_that_cannot_renew_has_stepped_down_before_the_other_may_take_over(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_lock(monkeypatch)

    async def test(one: Replica, two: Replica) -> None:
        assert await one.leads()
        assert not await two.leads()
        for clock in (one.clock, two.clock):
            clock.now_s += TRUST_S - 0.001
        assert one.election.is_leader
        assert not await two.leads()
        for clock in (one.clock, two.clock):
            clock.now_s += 0.001
        assert not one.election.is_leader  # by its clock alone: nobody told it
        assert not await two.leads()
        two.clock.now_s += LEASE_S - TRUST_S
        assert await two.leads()
        assert two.election.term == 2
        assert not await one.leads()
        assert one.election.leader_address == "two:9123"
        await until(lambda: one.told == ["elected", "lost"])

    run(database, test)


def test_a_late_renewal_revives_nothing(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_lock(monkeypatch)

    async def test(one: Replica, _two: Replica) -> None:
        assert await one.leads()
        await until(lambda: one.told == ["elected"])
        one.clock.now_s += 5
        exchange = one.election._exchange

        def slow(held: int | None) -> Any:
            lease = exchange(held)
            one.clock.now_s += 3  # the answer takes 3 s; the lease was trusted for 2 more
            return lease

        monkeypatch.setattr(one.election, "_exchange", slow)
        assert not await one.leads()
        monkeypatch.undo()
        without_lock(monkeypatch)
        assert await one.leads()  # its own lease needs no waiting, but it is a new term
        assert one.election.term == 2
        await until(lambda: one.told == ["elected", "lost", "elected"])

    run(database, test)


def test_what_a_former_leader_has_begun_is_void(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_lock(monkeypatch)

    async def test(one: Replica, two: Replica) -> None:
        assert await one.leads()
        await one.store.save(record("a-1"))
        assert not await two.leads()
        two.clock.now_s += LEASE_S
        assert await two.leads()
        # The first one's clock stands still: it believes to lead, as if it had been stopped between check and write.
        assert one.election.is_leader
        with pytest.raises(NotLeading):
            await one.store.save(record("a-2"))
        with pytest.raises(NotLeading):
            await one.store.set_draining("n1", True)
        await two.store.save(record("a-3"))
        stored = await two.store.load()
        assert set(stored.allocations) == {"a-1", "a-3"} and not stored.drained

    run(database, test)


def test_a_leader_that_stops_hands_over_at_once(database: str) -> None:
    async def test(one: Replica, two: Replica) -> None:
        assert await one.leads()
        assert not await two.leads()
        await one.election.stop()
        assert one.told == ["elected", "lost"]
        assert await two.leads()

    run(database, test)


def test_a_leader_that_cannot_begin_lets_another_try(database: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test(one: Replica, two: Replica) -> None:
        async def broken() -> None:
            raise StoreError("no state for you")

        one.election.on_elected = broken
        await one.election.step()
        await until(lambda: "no state for you" in caplog.text and one.told == ["lost"])
        assert not await one.leads()  # stands back
        assert await two.leads()

    run(database, test)


def test_the_callbacks_follow_the_last_word(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_lock(monkeypatch)

    async def test(one: Replica, _two: Replica) -> None:
        began = asyncio.Event()

        async def slow() -> None:
            one.told.append("begins")
            began.set()
            await asyncio.Event().wait()

        one.election.on_elected = slow
        await one.election.step()
        await began.wait()
        one.clock.now_s += TRUST_S
        one.election._expire()
        await until(lambda: one.told == ["begins", "lost"])

    run(database, test)


def test_a_database_that_is_away_makes_a_leader_step_down_in_time(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(one: Replica, _two: Replica) -> None:
        assert await one.leads()

        def away(_held: int | None) -> Any:
            raise OperationalError("select", {}, Exception("no route"))

        exchange = one.election._exchange
        monkeypatch.setattr(one.election, "_exchange", away)
        one.clock.now_s += TRUST_S - 1
        assert await one.leads()
        one.clock.now_s += 1
        assert not await one.leads()
        assert len([r for r in caplog.records if "cannot see or renew" in r.getMessage()]) == 1
        monkeypatch.setattr(one.election, "_exchange", exchange)
        assert await one.leads()

    run(database, test)


# --------------------------------------------------------------------------------------------------- real processes


class Process:
    """replica.py, and what it has printed so far."""

    def __init__(self, url: str, name: str, lease_s: float, folder: Path) -> None:
        self.name = name
        self.output = folder / f"{name}.jsonl"
        self.parsed: list[dict[str, Any]] = []
        self.read_bytes = 0
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self.output.open("wb") as output, (folder / f"{name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("replica.py")), url, name, str(lease_s)],
                stdout=output, stderr=log, env=environment,
            )  # fmt: skip

    def lines(self) -> list[dict[str, Any]]:
        """All that it has printed so far."""
        with self.output.open("rb") as file:
            file.seek(self.read_bytes)
            for line in file:
                if line.endswith(b"\n"):
                    self.read_bytes += len(line)
                    self.parsed.append(json.loads(line))
        return self.parsed

    def leads(self) -> bool:
        lines = self.lines()
        return bool(lines) and bool(lines[-1]["leads"])

    def kill(self, number: int) -> None:
        self.process.send_signal(number)

    def wait_for(self, is_so: Callable[[dict[str, Any]], bool], timeout_s: float = 60.0) -> dict[str, Any]:
        """The first new line that is so."""
        seen = len(self.lines())
        give_up_s = time.monotonic() + timeout_s
        while time.monotonic() < give_up_s:
            for line in self.lines()[seen:]:
                if is_so(line):
                    return line
            assert self.process.poll() is None, f"{self.name} has ended"
            time.sleep(0.02)
        raise TimeoutError(f"{self.name}: {self.lines()[-3:]}")


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(url: str, name: str, lease_s: float) -> Process:
        started.append(Process(url, name, lease_s, tmp_path))
        return started[-1]

    yield start
    for process in started:
        if process.process.poll() is None:
            process.process.kill()
        process.process.wait(30)


def leader_of(processes: list[Process], timeout_s: float = 60.0) -> Process:
    give_up_s = time.monotonic() + timeout_s
    while time.monotonic() < give_up_s:
        for process in processes:
            if process.leads():
                return process
        time.sleep(0.02)
    raise TimeoutError([process.lines()[-1:] for process in processes])


def check_that_never_two_led(processes: list[Process]) -> None:
    """Terms follow each other in time, and each is one replica's."""
    led: dict[int, list[tuple[float, str]]] = {}
    for process in processes:
        for line in process.lines():
            if line["leads"]:
                led.setdefault(line["term"], []).append((line["at"], process.name))
    last_s = 0.0
    for term in sorted(led):
        assert len({name for _, name in led[term]}) == 1, term
        assert min(led[term])[0] > last_s, term
        last_s = max(led[term])[0]


def test_replicas_on_postgresql_that_are_stopped_killed_and_cut_off(
    stoppable_postgres: PostgresServer, processes: Callable[..., Process]
) -> None:
    url = stoppable_postgres.new_database()
    alive = [processes(url, name, 2.0) for name in ("one", "two")]
    for process in alive:
        process.wait_for(lambda line: bool(line["leads"] or line["leader"]))

    # Stopped for longer than its lease, and woken when another leads.
    stopped = leader_of(alive)
    other = next(process for process in alive if process is not stopped)
    stopped.kill(signal.SIGSTOP)
    taken = other.wait_for(lambda line: bool(line["leads"] and line["wrote"] == "yes"))
    stopped.kill(signal.SIGCONT)
    # The first line may have been begun before it was stopped.
    stopped.wait_for(lambda line: line["leader"] == f"{other.name}:9123" and line["at"] > taken["at"])
    woken = [line for line in stopped.lines() if line["at"] > taken["at"]]
    assert woken and not [line for line in woken if line["leads"] or line["wrote"] == "yes"]

    # The database fails and comes back: who leads afterwards is open, but somebody does.
    stoppable_postgres.stop()
    leader_of(alive).wait_for(lambda line: line["wrote"] != "yes")
    stoppable_postgres.start()
    for _ in range(2):
        leader_of(alive).wait_for(lambda line: bool(line["leads"] and line["wrote"] == "yes"))

    # Killed.
    killed = leader_of(alive)
    killed.kill(signal.SIGKILL)
    other = next(process for process in alive if process is not killed)
    other.wait_for(lambda line: bool(line["leads"] and line["wrote"] == "yes"))
    check_that_never_two_led(alive)


def test_a_leader_that_is_stopped_within_a_transaction_does_not_keep_others_from_leading(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orion_controller.store.engine._STATEMENT_TIMEOUT_S", 1)

    async def test(one: Replica, two: Replica) -> None:
        assert await one.leads()
        assert not await two.leads()
        # What a process holds that was stopped between the check of the term and the commit.
        with pytest.raises(DBAPIError), one.store.engine.begin() as stopped:
            stopped.execute(sa.text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": TERM_LOCK})
            stopped.execute(sa.insert(tables.drained_servers).values(id="n1"))
            two.clock.now_s += LEASE_S
            async with asyncio.timeout(60):
                while not await two.leads():
                    two.clock.now_s += LEASE_S
        assert not (await two.store.load()).drained

    run(postgres.new_database(), test)


def test_a_second_process_on_a_sqlite_file_follows_until_the_first_is_dead(
    tmp_path: Path, processes: Callable[..., Process]
) -> None:
    # The lease outlasts the test: only the death of its holder can have ended it.
    url = f"sqlite:///{tmp_path}/a.db"
    first = processes(url, "one", 10_000.0)
    first.wait_for(lambda line: bool(line["leads"] and line["wrote"] == "yes"))
    second = processes(url, "two", 10_000.0)
    second.wait_for(lambda line: line["leader"] == "one:9123" and line["wrote"] == "refused")
    first.kill(signal.SIGSTOP)
    time.sleep(0.3)
    first.kill(signal.SIGCONT)
    first.wait_for(lambda line: bool(line["leads"]))
    first.kill(signal.SIGKILL)
    second.wait_for(lambda line: bool(line["leads"] and line["wrote"] == "yes"))
    check_that_never_two_led([first, second])


def test_the_lease_has_one_row(database: str) -> None:
    async def inside() -> None:
        store = Store.open(database)
        count = sa.text("SELECT count(*) FROM leader")
        assert await store.read(lambda connection: connection.execute(count).scalar_one()) == 1
        await store.close()

    asyncio.run(inside())
