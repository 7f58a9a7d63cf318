"""The one thread that writes: everything that waits goes into one transaction (group commit).

No timer collects: while one transaction is being committed, the next one's content gathers. So a lone write is
committed at once, and a thousand at the same time cost little more than one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, SQLAlchemyError

from orion_controller.store import tables
from orion_controller.store.engine import StoreError, hasty, is_sqlite

log = logging.getLogger("orion.store")
NOT_LEADING = -1
_BATCH_MAX = 4096
_WAITING_MAX = 65536
_EVENTS_WAITING_MAX = 10_000
# Keys of PostgreSQL's advisory locks; schema.py has another one.
_EVENTS_LOCK = 0x6F72696F6F
TERM_LOCK = 0x6F72696F70
_RETRIABLE = (OperationalError, InterfaceError, InternalError)


class NotLeading(StoreError):
    """Another replica leads: what this one wanted to write is void."""


@dataclass(slots=True, eq=False)
class Write:
    """A row that is put in place or (`values` None) removed; or `call`, which has a transaction to itself."""

    table: sa.Table | None
    key: str
    values: dict[str, Any] | None
    term: int | None  # of the leader who writes; None: anybody may
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    call: Callable[[sa.Connection], Any] | None = None


class Writer:
    """`retry_s`: for how long a failing database is tried again before writes fail; while it stays broken each
    further transaction is tried once."""

    def __init__(self, engine: Engine, events_kept: int, retry_s: float, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._hasty = hasty(engine)
        self._events_kept = events_kept
        self._retry_s = retry_s
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[Write] = deque()
        self._events: deque[dict[str, Any]] = deque()
        self._events_dropped = 0
        self._events_since_trim = events_kept  # so that the first transaction with events trims
        self._is_closing = False
        self._error = ""
        self._upserts = {
            table.name: _upsert(table) for table in (tables.allocations, tables.group_limits, tables.drained_servers)
        }
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    @property
    def error(self) -> str:
        """What is wrong with the database; empty: nothing."""
        return self._error

    def put(self, write: Write) -> None:
        """StoreError when too much waits already."""
        with self._changed:
            if self._is_closing:
                raise StoreError("the store is closed")
            if len(self._waiting) >= _WAITING_MAX:
                raise StoreError(f"{_WAITING_MAX} writes wait for the database: it is too slow or away; "
                                 f"{self._error or 'no error is known'}")  # fmt: skip
            self._waiting.append(write)
            self._changed.notify()

    def put_event(self, values: dict[str, Any]) -> None:
        """Never fails and never waits: when the database is away for long, the oldest are dropped."""
        with self._changed:
            self._events.append(values)
            self._bound_events()
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """Writes what waits, then ends; blocks."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    # ------------------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._events or self._is_closing):
                    self._changed.wait()
                if not (self._waiting or self._events):
                    return
                batch = self._take()
                events = [self._events.popleft() for _ in range(min(len(self._events), _BATCH_MAX))]
            self._commit(batch, events)

    def _take(self) -> list[Write]:
        """As many as can share a transaction, in their order: a call is alone."""
        batch: list[Write] = []
        while self._waiting and len(batch) < _BATCH_MAX:
            if self._waiting[0].call is not None and batch:
                break
            batch.append(self._waiting.popleft())
            if batch[-1].call is not None:
                break
        return batch

    def _commit(self, batch: list[Write], events: list[dict[str, Any]]) -> None:
        give_up_s = self._clock() + (0.0 if self._error else self._retry_s)
        pause_s = 0.05
        while True:
            try:
                results = self._transaction(batch, events)
            except _RETRIABLE as error:
                with self._changed:
                    if self._clock() < give_up_s and not self._is_closing:
                        self._changed.wait_for(lambda: self._is_closing, pause_s)
                        pause_s = min(pause_s * 2, 1.0)
                        continue
                self._failed(batch, events, error)
            except Exception as error:
                self._refused(batch, events, error)
            else:
                if self._error:
                    self._error = ""
                    log.info("the database answers again")
                _settle(batch, results)
            return

    def _failed(self, batch: list[Write], events: list[dict[str, Any]], error: SQLAlchemyError) -> None:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())[:300]
        if not self._error:
            log.error("the database does not answer: %s; changes are refused until it does", reason)
        self._error = reason
        with self._changed:
            if not self._is_closing:
                self._events.extendleft(reversed(events))
                self._bound_events()
        failure = StoreError(f"the database does not answer: {reason}")
        _settle(batch, [failure] * len(batch))
        if not batch:
            with self._changed:  # only events: nobody asks, so the pace is ours
                self._changed.wait_for(lambda: self._is_closing or bool(self._waiting), 1.0)

    def _refused(self, batch: list[Write], events: list[dict[str, Any]], error: Exception) -> None:
        """Something in it is wrong by itself: the others must not fail with it."""
        if len(batch) + len(events) > 1:
            for write in batch:
                self._commit([write], [])
            for values in events:
                self._commit([], [values])
            return
        expected = isinstance(error, StoreError) or bool(batch and batch[0].call is not None)
        if not expected:
            log.error("the database refuses a write: %s", " ".join(str(error).split())[:300])
        if isinstance(error, SQLAlchemyError):
            error = StoreError(f"the database refuses it: {' '.join(str(error).split())[:300]}")
        _settle(batch, [error] * len(batch))

    def _transaction(self, batch: list[Write], events: list[dict[str, Any]]) -> list[Any]:
        # Allocations and events alone need not survive a power failure: servers tell a restarted controller what they
        # hold, and allocating must not wait for a disk.
        is_hasty = all(write.table is tables.allocations for write in batch)
        with (self._hasty if is_hasty else self._engine).begin() as connection:
            if batch and batch[0].call is not None:
                results = [batch[0].call(connection)]
            else:
                results = self._rows(connection, batch)
            if events:
                self._write_events(connection, events)
        return results

    def _rows(self, connection: sa.Connection, batch: list[Write]) -> list[Any]:
        """The last word on each row counts; what another term's leader wrote is void."""
        results: list[Any] = [None] * len(batch)
        term = self._term(connection) if any(write.term is not None for write in batch) else None
        last: dict[str, dict[str, Write]] = {}
        for index, write in enumerate(batch):
            if write.term is not None and write.term != term:
                results[index] = NotLeading("another replica leads: nothing was changed")
                continue
            assert write.table is not None
            last.setdefault(write.table.name, {})[write.key] = write
        for name, writes in last.items():
            gone = [{"key": key} for key, write in writes.items() if write.values is None]
            kept = [write.values for write in writes.values() if write.values is not None]
            if gone:
                table = tables.metadata.tables[name]
                connection.execute(sa.delete(table).where(table.c.id == sa.bindparam("key")), gone)
            if kept:
                connection.execute(self._upserts[name], kept)
        return results

    def _term(self, connection: sa.Connection) -> int:
        """The term in the database. Nobody takes over before the transaction has ended: who does has the same lock
        alone, and SQLite lets only one transaction write."""
        if not is_sqlite(self._engine):
            connection.execute(sa.text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": TERM_LOCK})
        query = sa.select(tables.leader.c.term).where(tables.leader.c.id == tables.LEADER_ROW)
        return int(connection.execute(query).scalar_one())

    def _write_events(self, connection: sa.Connection, events: list[dict[str, Any]]) -> None:
        if not is_sqlite(self._engine):
            # Ids become visible in their order, or who asks for what is later than an id would miss another replica's.
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _EVENTS_LOCK})
        connection.execute(sa.insert(tables.events), events)
        self._events_since_trim += len(events)
        if self._events_since_trim * 20 >= self._events_kept:
            self._events_since_trim = 0
            # What people did is counted by itself: nobody can push it out by making many other events.
            for is_audit in (tables.events.c.username != "", tables.events.c.username == ""):
                ids = sa.select(tables.events.c.id).where(is_audit).order_by(tables.events.c.id.desc())
                oldest = connection.execute(ids.offset(self._events_kept).limit(1)).scalar()
                if oldest is not None:
                    connection.execute(sa.delete(tables.events).where(is_audit, tables.events.c.id <= oldest))

    def _bound_events(self) -> None:
        while len(self._events) > _EVENTS_WAITING_MAX:
            self._events.popleft()
            self._events_dropped += 1
            if self._events_dropped == 1:
                log.warning("events are made faster than the database takes them: the oldest are dropped")


def _upsert(table: sa.Table) -> sa.TextClause:
    """As text: SQLAlchemy would compile its own form of it anew each time, which costs more than the transaction."""
    names = [column.name for column in table.columns]
    rest = ", ".join(f"{name} = excluded.{name}" for name in names if name != "id")
    return sa.text(
        f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)}) "
        f"ON CONFLICT (id) DO {f'UPDATE SET {rest}' if rest else 'NOTHING'}"
    )


def _settle(batch: Iterable[Write], results: Iterable[Any]) -> None:
    """Tells those who wait, with one wake-up of each event loop."""
    of_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for write, result in zip(batch, results, strict=True):
        of_loop.setdefault(write.loop, []).append((write.future, result))
    for loop, outcomes in of_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, outcomes)
        except RuntimeError:
            log.debug("nobody waits any more for %d writes", len(outcomes))


def _resolve(outcomes: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in outcomes:
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
