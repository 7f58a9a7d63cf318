"""Which replica of the controller decides: a lease in the database.

The leader renews the lease; the others watch. No clocks are compared: who sees the same version of the lease for a
whole lease time, by its own clock, may take it, by compare-and-swap. The leader counts from before it asked for its
last renewal and trusts the lease for a shorter time than others wait, so it has stepped down before anybody can have
taken over, also when it was stopped or the database was away. What it had begun to write before is void by then: each
transaction of the store checks the term (Store.fence).

With SQLite the leader also holds a lock on a file, which the kernel takes from it when it dies: a controller that is
started again after a crash need not wait for its own old lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from orion_controller.store import Store, tables
from orion_controller.store.engine import is_sqlite
from orion_controller.store.writer import NOT_LEADING, TERM_LOCK

log = logging.getLogger("orion.leader")
RENEW_S = 2.0
LEASE_S = 8.0
# Of the lease, as long as it is trusted: the rest is for clocks that go at different speeds.
_TRUST = 0.875
Callback = Callable[[], Awaitable[None]]


def boottime_s() -> float:
    """Goes on while the machine sleeps, unlike time.monotonic."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class _Lease:
    """The row, after an exchange with the database."""

    instance: str
    address: str
    url: str
    term: int
    version: int


async def _nothing() -> None:
    pass


class Election:
    """One replica's part. `address`: where clients and servers find it when it leads; `url`: its HTTP. Callbacks run
    one at a time; `on_elected` is cancelled when the lease is lost meanwhile, and if it fails, another may lead."""

    def __init__(
        self,
        store: Store,
        replica_id: str,
        address: str,
        url: str,
        clock: Callable[[], float] = boottime_s,
        *,
        renew_s: float = RENEW_S,
        lease_s: float = LEASE_S,
    ) -> None:
        self.on_elected: Callback = _nothing
        self.on_lost: Callback = _nothing
        self._store = store
        self._replica_id = replica_id
        self._address = address
        self._url = url
        self._clock = clock
        self._renew_s = renew_s
        self._lease_s = lease_s
        self._instance = secrets.token_hex(8)
        self._thread = ThreadPoolExecutor(1, "election")
        self._guard = _Guard(store)
        self._term: int | None = None
        self._trusted_until_s = 0.0
        self._stand_back_until_s = 0.0
        self._lease: _Lease | None = None
        self._last_term = 0
        self._changed = asyncio.Event()
        self._is_stopping = False
        self._seen_version = -1  # these two are the thread's
        self._seen_s = 0.0
        self._is_failing = False
        self._loop_task: asyncio.Task[None] | None = None
        self._callback_task: asyncio.Task[None] | None = None
        store.fence(NOT_LEADING)

    # ------------------------------------------------------------------------------------------------ what is known

    @property
    def is_leader(self) -> bool:
        """Whether this replica may act now. Once false, it stays false until `on_elected` is called again."""
        return self._term is not None and self._clock() < self._trusted_until_s

    @property
    def term(self) -> int:
        """Of the leadership; 0 while not leading."""
        return self._term or 0

    @property
    def leader_address(self) -> str:
        """Of another replica that leads; empty when unknown, or when it is this one."""
        return self._other().address if self._other() else ""

    @property
    def leader_url(self) -> str:
        """Of another replica that leads; empty when unknown, or when it is this one."""
        return self._other().url if self._other() else ""

    def _other(self) -> _Lease:
        lease = self._lease
        if self.is_leader or lease is None or lease.instance in ("", self._instance):
            return _NOBODY
        return lease

    # ------------------------------------------------------------------------------------------------ its life

    async def start(self) -> None:
        """Takes part until `stop`. Returns after a first exchange: alone, this replica leads already."""
        await self.step()
        self._loop_task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Steps down in good order: `on_lost` returns first, then another may lead at once. Again: nothing."""
        if self._is_stopping:
            return
        self._is_stopping = True
        if self._loop_task is not None:
            self._loop_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop_task
        self._lose("stopping")
        self._changed.set()
        if self._callback_task is not None:
            await self._callback_task
        await self._resign()
        self._guard.release()
        self._thread.shutdown(wait=False)

    async def step(self) -> None:
        """One exchange with the database; the loop does this by itself. Does not raise when the database is away."""
        if self._callback_task is None:
            self._callback_task = asyncio.create_task(self._call_back())
        began_s = self._clock()
        self._expire()
        if began_s < self._stand_back_until_s:
            return
        try:
            lease = await asyncio.get_running_loop().run_in_executor(self._thread, self._exchange, self._term)
        except (SQLAlchemyError, OSError) as error:
            if not self._is_failing:
                log.warning("cannot see or renew the leader's lease: %s", " ".join(str(error).split())[:300])
            self._is_failing = True
            self._expire()
            return
        if self._is_failing:
            self._is_failing = False
            log.info("the leader's lease can be seen again")
        # First, what the clock says: an answer that came too late revives nothing.
        self._expire()
        self._lease = lease
        until_s = began_s + self._lease_s * _TRUST
        if lease.instance != self._instance:
            self._lose(f"{lease.address or 'nobody'} leads")
        elif lease.term == self._term:
            self._trusted_until_s = until_s
        elif lease.term > self._last_term and self._clock() < until_s:
            self._win(lease.term, until_s)

    async def _run(self) -> None:
        """An exchange each `renew_s`. It may hang; the loss of the lease is noticed in time nevertheless."""
        step: asyncio.Task[None] | None = None
        due_s = self._clock() + self._renew_s
        try:
            while True:
                now_s = self._clock()
                if step is None and now_s >= due_s:
                    step = asyncio.create_task(self.step())
                    due_s = now_s + self._renew_s
                trusted_s = None if self._term is None else max(0.0, self._trusted_until_s - now_s) + 0.001
                if step is None:
                    await asyncio.sleep(min(due_s - now_s, due_s if trusted_s is None else trusted_s))
                else:
                    await asyncio.wait({step}, timeout=trusted_s)
                    if step.done():
                        if (error := step.exception()) is not None:
                            log.error("the election is at fault", exc_info=error)
                        step = None
                self._expire()
        finally:
            if step is not None:
                step.cancel()

    # ------------------------------------------------------------------------------------------------ changes of hands

    def _win(self, term: int, until_s: float) -> None:
        self._term = self._last_term = term
        self._trusted_until_s = until_s
        self._store.fence(term)
        self._changed.set()
        log.info("this replica leads: term %d", term)

    def _expire(self) -> None:
        if self._term is not None and self._clock() >= self._trusted_until_s:
            self._lose("the lease could not be renewed in time")

    def _lose(self, reason: str) -> None:
        if self._term is not None:
            self._term = None
            self._store.fence(NOT_LEADING)
            self._changed.set()
            level = logging.INFO if self._is_stopping else logging.WARNING
            log.log(level, "this replica no longer leads: %s", reason)

    async def _call_back(self) -> None:
        """The callbacks follow the term, in a task of their own: the lease is renewed while they run."""
        told: int | None = None
        while not (self._is_stopping and told is None):
            await self._changed.wait()
            self._changed.clear()
            if told is not None and told != self._term:
                await self._call(self.on_lost)
                told = None
            if told is None and self._term is not None:
                told = self._term
                electing = asyncio.ensure_future(self._call(self.on_elected))
                changing = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait({electing, changing}, return_when=asyncio.FIRST_COMPLETED)
                changing.cancel()
                electing.cancel()
                is_done = (await asyncio.gather(electing, return_exceptions=True))[0]
                if is_done is False and told == self._term:
                    self._stand_back_until_s = self._clock() + self._lease_s
                    self._lose("it could not begin; another replica may try")
                    await self._resign()

    async def _call(self, callback: Callback) -> bool:
        try:
            await callback()
        except Exception:
            log.exception("after a change of the leader")
            return False
        return True

    async def _resign(self) -> None:
        with contextlib.suppress(SQLAlchemyError):
            await asyncio.get_running_loop().run_in_executor(self._thread, self._let_go)

    # ------------------------------------------------------------------------------------------------ the thread

    def _exchange(self, held: int | None) -> _Lease:
        """Renews what is held, takes what may be taken, or looks."""
        with self._store.engine.begin() as connection:
            row = connection.execute(sa.select(tables.leader)).one()
            if row.version != self._seen_version:
                self._seen_version, self._seen_s = row.version, self._clock()
            is_mine = row.instance == self._instance
            if is_mine and held == row.term:
                has_lock = self._guard.try_lock()
                return self._write(connection, row, row.term, has_lock) or _NOBODY
            is_free = is_mine or not row.instance or self._clock() - self._seen_s >= self._lease_s
            has_lock = self._guard.try_lock()
            if is_free or (has_lock and row.guarded):
                if not is_sqlite(self._store.engine):
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": TERM_LOCK})
                taken = self._write(connection, row, row.term + 1, has_lock)
                if taken is not None:
                    return taken
                row = connection.execute(sa.select(tables.leader)).one()
            return _Lease(row.instance, row.address, row.url, row.term, row.version)

    def _write(self, connection: sa.Connection, row: Any, term: int, guarded: bool) -> _Lease | None:
        """None: somebody was quicker."""
        version = row.version + 1
        changed = connection.execute(
            sa.update(tables.leader)
            .where(tables.leader.c.id == tables.LEADER_ROW, tables.leader.c.version == row.version)
            .values(instance=self._instance, replica=self._replica_id, address=self._address, url=self._url, term=term,
                    version=version, guarded=guarded)
        )  # fmt: skip
        return _Lease(self._instance, self._address, self._url, term, version) if changed.rowcount else None

    def _let_go(self) -> None:
        with self._store.engine.begin() as connection:
            connection.execute(
                sa.update(tables.leader)
                .where(tables.leader.c.instance == self._instance)
                .values(instance="", address="", url="", guarded=False, version=tables.leader.c.version + 1)
            )


_NOBODY = _Lease("", "", "", 0, 0)


class _Guard:
    """The lock beside a SQLite file. Who has it knows that no holder of a `guarded` lease is alive."""

    def __init__(self, store: Store) -> None:
        name = store.url.database if is_sqlite(store.engine) else None
        self._path = Path(f"{name}-leader.lock") if name else None
        self._fd: int | None = None

    def try_lock(self) -> bool:
        if self._fd is None and self._path is not None:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)
                return False
            self._fd = fd
        return self._fd is not None

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
