"""What the controller remembers over a restart, and what its replicas share."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from orion_controller.api import models
from orion_controller.backend import AllocationRecord
from orion_controller.store import schema, tables
from orion_controller.store.engine import StoreError, is_sqlite, make_engine, parse_url, shown
from orion_controller.store.writer import NOT_LEADING, NotLeading, Write, Writer

log = logging.getLogger("orion.store")
EVENTS_KEPT = 10_000
RETRY_S = 5.0
_BODY_VERSION = 1
_SECRET_BYTES = 32
_EVENTS_PER_READ_MAX = 10_000
_TEXT_MAX = 4096
Result = TypeVar("Result")


@dataclass(frozen=True)
class Stored:
    """What a controller starts from."""

    allocations: dict[str, AllocationRecord]
    limits: dict[str, models.LimitsBody]  # by group; "*" for all that have none of their own
    drained: set[str]


class Store:
    """The database. Writes are one thread's (writer.py); a write has been committed when its await returns."""

    def __init__(self, url: URL, writes: Engine, reads: Engine, events_kept: int, retry_s: float,
                 now_s: Callable[[], float], clock: Callable[[], float]) -> None:  # fmt: skip
        self.url = url
        self.engine = writes
        self._reads = reads
        self._now_s = now_s
        self._writer = Writer(writes, events_kept, retry_s, clock)
        self._readers = ThreadPoolExecutor(4, "store-reader")
        self._term: int | None = None

    @classmethod
    def open(cls, url: str, *, events_kept: int = EVENTS_KEPT, retry_s: float = RETRY_S,
             migrate: Literal["always", "new"] = "always",
             now_s: Callable[[], float] = time.time, clock: Callable[[], float] = time.monotonic) -> Store:  # fmt: skip
        """Connects and brings the schema up to date; blocks. With "new" only where there is none: an older schema is
        left to who uses it, and refused. StoreError: no database there, or a newer program's."""
        parsed = parse_url(url)
        writes = make_engine(parsed)
        try:
            with writes.connect() as connection:
                found = schema.check(connection)
            if migrate == "always" or not found:
                before, after = schema.upgrade(writes)
                if before and before != after:
                    log.info("the database's schema went from %s to %s", before, after)
            elif found != schema.newest():
                raise StoreError(f"the database has schema {found}, this program needs {schema.newest()}: "
                                 "orion-controller database upgrade")  # fmt: skip
        except SQLAlchemyError as error:
            writes.dispose()
            raise StoreError(f"cannot use the database {shown(parsed)}: {_reason(error)}") from error
        except StoreError:
            writes.dispose()
            raise
        reads = make_engine(parsed, writes=False) if is_sqlite(writes) else writes
        return cls(parsed, writes, reads, events_kept, retry_s, now_s, clock)

    async def close(self, timeout_s: float = 10.0) -> None:
        """Commits what waits, then lets the database go."""
        await asyncio.to_thread(self._writer.close, timeout_s)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._reads.dispose()
        self.engine.dispose()

    @property
    def error(self) -> str:
        """What is wrong with the database; empty: nothing is known to be."""
        return self._writer.error

    def fence(self, term: int | None) -> None:
        """From now on what the leader alone may write is committed only while the database's term is this one;
        None: without that check, for a controller that holds no elections. Election calls this."""
        self._term = term

    # ------------------------------------------------------------------------------------------------ state

    async def load(self) -> Stored:
        """All of it."""
        return await self.read(load_state)

    def secret(self, name: str) -> bytes:
        """32 random bytes, made once, the same for all replicas; blocks."""
        values = {"id": name, "value": secrets.token_bytes(_SECRET_BYTES)}
        make = sqlite.insert if is_sqlite(self.engine) else postgresql.insert
        try:
            with self.engine.begin() as connection:
                connection.execute(make(tables.secrets).values(values).on_conflict_do_nothing())
                query = sa.select(tables.secrets.c.value).where(tables.secrets.c.id == name)
                return bytes(connection.execute(query).scalar_one())
        except SQLAlchemyError as error:
            raise StoreError(f"cannot read the secret {name}: {_reason(error)}") from error

    async def save(self, record: AllocationRecord) -> None:
        """Puts it in place of what had its id."""
        body = msgspec.json.encode(record).decode()
        await self._put(tables.allocations, record.id, {"version": _BODY_VERSION, "body": body})

    async def delete(self, allocation_id: str) -> None:
        """Nothing happens when there is none."""
        await self._put(tables.allocations, allocation_id, None)

    async def set_limits(self, group: str, limits: models.LimitsBody | None) -> None:
        """None: no limits of its own any more."""
        values = None if limits is None else {"body": msgspec.json.encode(limits).decode()}
        await self._put(tables.group_limits, group, values)

    async def set_draining(self, server: str, draining: bool) -> None:
        await self._put(tables.drained_servers, server, {} if draining else None)

    # ------------------------------------------------------------------------------------------------ events

    def add_event(self, level: Literal["info", "warning", "error"], kind: str, subject: str, message: str,
                  user: str = "", at_s: float | None = None) -> None:  # fmt: skip
        """Returns at once; it goes with the next transaction. Any thread may call."""
        at_s = self._now_s() if at_s is None else at_s
        self._writer.put_event(
            {"at_s": at_s, "level": level, "kind": _clean(kind), "subject": _clean(subject),
             "message": _clean(message), "username": _clean(user)}
        )  # fmt: skip

    async def events(self, after: int = 0, limit: int = 200, audit: bool = False) -> list[models.Event]:
        """The newest `limit` after the id, oldest first. `audit`: only what a user did."""
        limit = max(0, min(limit, _EVENTS_PER_READ_MAX))
        after = max(0, min(after, (1 << 63) - 1))

        def query(connection: sa.Connection) -> list[models.Event]:
            wanted = sa.select(tables.events).where(tables.events.c.id > after)
            if audit:
                wanted = wanted.where(tables.events.c.username != "")
            rows = connection.execute(wanted.order_by(tables.events.c.id.desc()).limit(limit)).all()
            return [
                models.Event(id=row.id, at_s=row.at_s, level=row.level, kind=row.kind, subject=row.subject,
                             message=row.message, user=row.username)
                for row in reversed(rows)
            ]  # fmt: skip

        return await self.read(query)

    # ------------------------------------------------------------------------------------------------ for others

    async def read(self, query: Callable[[sa.Connection], Result]) -> Result:
        """Runs a query in a thread, with its own transaction; StoreError."""

        def run() -> Result:
            for is_last in (False, True):
                try:
                    with self._reads.begin() as connection:
                        return query(connection)
                except DBAPIError as error:
                    # A connection that was idle while the database restarted: the next one is new.
                    if is_last or not error.connection_invalidated:
                        is_away = error.connection_invalidated or isinstance(error, OperationalError)
                        what = "does not answer" if is_away else "refuses it"
                        raise StoreError(f"the database {what}: {_reason(error)}") from error
                except SQLAlchemyError as error:
                    raise StoreError(f"the database refuses it: {_reason(error)}") from error
            raise AssertionError

        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, run)
        except RuntimeError as error:
            raise StoreError("the store is closed") from error

    async def change(self, work: Callable[[sa.Connection], Result]) -> Result:
        """Runs `work` in the writer's thread, in a transaction of its own; it may run again when the database fails.
        What it raises, this raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._writer.put(Write(None, "", None, None, loop, future, work))
        return await future

    async def _put(self, table: sa.Table, key: str, values: dict[str, Any] | None) -> None:
        if self._term == NOT_LEADING:
            raise NotLeading("this replica does not lead: nothing was changed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        row = None if values is None else {"id": key, **values}
        self._writer.put(Write(table, key, row, self._term, loop, future))
        await future


def load_state(connection: sa.Connection, tell: Callable[[str], None] | None = None) -> Stored:
    """What a query finds; `tell` (else the log) hears of what cannot be read and is left out."""
    tell = tell or (lambda text: log.error("in the database, %s", text))
    allocations: dict[str, AllocationRecord] = {}
    for row in connection.execute(sa.select(tables.allocations)):
        try:
            allocations[row.id] = msgspec.json.decode(row.body, type=AllocationRecord)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            # Its server still reports it, if it is still used.
            tell(f"allocation {row.id} cannot be read and is left out: {error}")
    limits: dict[str, models.LimitsBody] = {}
    for row in connection.execute(sa.select(tables.group_limits)):
        try:
            limits[row.id] = msgspec.json.decode(row.body, type=models.LimitsBody)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            tell(f"the limits of group {row.id} cannot be read and are left out: {error}")
    return Stored(allocations, limits, set(connection.execute(sa.select(tables.drained_servers.c.id)).scalars()))


def _clean(text: str) -> str:
    """What every database takes as text: no NUL, no half of a surrogate pair, and not without end."""
    return text[:_TEXT_MAX].encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _reason(error: SQLAlchemyError) -> str:
    return " ".join(str(getattr(error, "orig", None) or error).split())[:300]
