"""The store on both databases: what is written is there after a restart, in order, bounded, and all or nothing."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from orion_controller.api import models
from orion_controller.backend import AllocationRecord
from orion_controller.store import NotLeading, Store, StoreError, schema, tables
from orion_controller.store.engine import make_engine, parse_url
from tests.controller.conftest import PostgresServer


def record(name: str, **changes: Any) -> AllocationRecord:
    fields: dict[str, Any] = {
        "id": name, "group": "team", "shared": False, "reserved": False, "gmem_mib": 100, "ratio_percent": 25,
        "policy": "hard", "places": [("node-1", 0), ("node-2", 3)], "owner": "1000@desk", "program": "train.py",
        "since_s": 1.5,
    }  # fmt: skip
    return AllocationRecord(**{**fields, **changes})


async def until(is_so: Callable[[], bool], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_so():
            await asyncio.sleep(0.01)


def test_state_survives_a_restart(database: str) -> None:
    async def first() -> None:
        store = Store.open(database)
        await store.save(record("a-1"))
        await store.save(record("a-2"))
        await store.save(record("a-2", gmem_mib=300, expires_s=9.0, program="nul \0 and \N{SNOWMAN}"))
        await store.save(record("a-3"))
        await store.delete("a-3")
        await store.delete("a-4")
        await store.set_limits("team", models.LimitsBody(vgpus=3))
        await store.set_limits("*", models.LimitsBody())
        await store.set_limits("gone", models.LimitsBody(vgpus=1))
        await store.set_limits("gone", None)
        for name, draining in (("n1", True), ("n2", True), ("n2", True), ("n1", False)):
            await store.set_draining(name, draining)
        await store.close()

    async def second() -> None:
        store = Store.open(database)
        stored = await store.load()
        assert stored.allocations == {
            "a-1": record("a-1"),
            "a-2": record("a-2", gmem_mib=300, expires_s=9.0, program="nul \0 and \N{SNOWMAN}"),
        }
        assert stored.limits == {"team": models.LimitsBody(vgpus=3), "*": models.LimitsBody()}
        assert stored.drained == {"n2"}
        await store.close()

    asyncio.run(first())
    asyncio.run(second())


def test_secrets_are_made_once_and_for_all_replicas(database: str) -> None:
    async def run() -> None:
        one, other = Store.open(database), Store.open(database)
        assert one.secret("tickets") == other.secret("tickets") == one.secret("tickets")
        assert len(one.secret("tickets")) == 32
        assert one.secret("curve") != one.secret("tickets")
        await one.close()
        await other.close()

    asyncio.run(run())


def test_waiting_writes_share_a_transaction_and_keep_their_order(database: str) -> None:
    async def run() -> None:
        store = Store.open(database)
        commits = 0

        @sa.event.listens_for(store.engine, "commit")
        def _count(_connection: sa.Connection) -> None:
            nonlocal commits
            commits += 1

        await asyncio.gather(
            *(store.save(record(f"a-{i}", gmem_mib=round_)) for round_ in (1, 2, 3) for i in range(500)),
            *(store.delete(f"a-{i}") for i in range(250)),
            store.save(record("a-0", gmem_mib=4)),
        )
        stored = await store.load()
        assert set(stored.allocations) == {"a-0", *(f"a-{i}" for i in range(250, 500))}
        assert stored.allocations["a-0"].gmem_mib == 4
        assert stored.allocations["a-400"].gmem_mib == 3
        assert commits < 200  # 1751 writes
        await store.close()

    asyncio.run(run())


def test_events_are_kept_in_order_and_bounded_apart_from_the_audit_trail(database: str) -> None:
    async def run() -> None:
        store = Store.open(database, events_kept=40, now_s=lambda: 7.0)
        store.add_event("warning", "user.login", "admin", "logged in", user="admin")
        for i in range(300):
            store.add_event("info", "node.lost", f"n{i}", "no heartbeat \0 \ud800")
            if i % 50 == 0:
                await store.save(record("a-1"))
        await store.close()

        store = Store.open(database, events_kept=40)
        found = await store.events(limit=1000)
        assert found[0] == models.Event(id=1, at_s=7.0, level="warning", kind="user.login", subject="admin",
                                        message="logged in", user="admin")  # fmt: skip
        assert [event.subject for event in found[-40:]] == [f"n{i}" for i in range(260, 300)]
        assert len(found) <= 1 + 40 + 40 // 20 + 1
        assert [event.id for event in found] == sorted({event.id for event in found})
        assert [event.user for event in await store.events(audit=True)] == ["admin"]
        assert [event.subject for event in await store.events(limit=2)] == ["n298", "n299"]
        assert [event.subject for event in await store.events(after=found[-2].id)] == ["n299"]
        assert await store.events(after=found[-1].id) == []
        assert await store.events(after=1 << 80, limit=-1) == []
        await store.close()

    asyncio.run(run())


def test_one_write_that_the_database_refuses_fails_alone(database: str, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        store = Store.open(database)
        bad = store.set_draining("\ud800", True)  # no database takes half a character
        results = await asyncio.gather(store.save(record("a-1")), bad, store.save(record("a-2")),
                                       return_exceptions=True)  # fmt: skip
        assert results[0] is None and results[2] is None
        assert isinstance(results[1], Exception)
        assert set((await store.load()).allocations) == {"a-1", "a-2"}
        await store.close()

    asyncio.run(run())


def test_only_the_term_in_the_database_writes_the_pools_state(database: str) -> None:
    async def run() -> None:
        store = Store.open(database)
        store.fence(1)
        with pytest.raises(NotLeading):
            await store.save(record("a-1"))
        await store.change(lambda connection: connection.execute(sa.update(tables.leader).values(term=1)))
        await store.save(record("a-2"))
        store.fence(-1)
        with pytest.raises(NotLeading):
            await store.delete("a-2")
        assert set((await store.load()).allocations) == {"a-2"}
        await store.close()

    asyncio.run(run())


def test_a_database_that_is_away_fails_writes_with_a_reason_and_is_used_again(
    stoppable_postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = stoppable_postgres.new_database()

    async def run() -> None:
        store = Store.open(url, retry_s=0.2)
        await store.save(record("a-1"))
        await asyncio.to_thread(stoppable_postgres.stop)
        store.add_event("info", "kind", "while away", "")
        for _ in range(3):
            with pytest.raises(StoreError, match="does not answer"):
                await store.save(record("a-2"))
        with pytest.raises(StoreError):
            await store.load()
        assert store.error
        assert len([r for r in caplog.records if "does not answer" in r.getMessage()]) == 1
        await asyncio.to_thread(stoppable_postgres.start)
        await store.save(record("a-3"))
        assert not store.error
        assert set((await store.load()).allocations) == {"a-1", "a-3"}
        await store.close()
        store = Store.open(url)
        assert [event.subject for event in await store.events()] == ["while away"]
        await store.close()

    asyncio.run(run())


def test_a_short_absence_of_the_database_is_waited_for(stoppable_postgres: PostgresServer) -> None:
    url = stoppable_postgres.new_database()

    async def run() -> None:
        store = Store.open(url, retry_s=60.0)
        await store.save(record("a-1"))
        await asyncio.to_thread(stoppable_postgres.stop)
        saving = asyncio.ensure_future(store.save(record("a-2")))
        await asyncio.sleep(0.2)
        assert not saving.done()
        await asyncio.to_thread(stoppable_postgres.start)
        await saving
        assert set((await store.load()).allocations) == {"a-1", "a-2"}
        await store.close()

    asyncio.run(run())


def test_what_waits_for_a_database_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orion_controller.store.writer._WAITING_MAX", 10)
    monkeypatch.setattr("orion_controller.store.writer._EVENTS_WAITING_MAX", 10)

    async def run() -> None:
        store = Store.open(f"sqlite:///{tmp_path}/a.db")
        with store.engine.begin():  # holds the write lock
            first = asyncio.ensure_future(store.save(record("a-0")))
            await asyncio.sleep(0)
            await until(lambda: not store._writer._waiting)
            saves = [asyncio.ensure_future(store.save(record(f"a-{i}"))) for i in range(12)]
            for i in range(30):
                store.add_event("info", "kind", f"{i}", "")
            await asyncio.sleep(0)
            for refused in saves[10:]:
                with pytest.raises(StoreError, match="10 writes wait"):
                    await refused
        await first
        await asyncio.gather(*saves[:10])
        await store.close()
        store = Store.open(f"sqlite:///{tmp_path}/a.db")
        assert [event.subject for event in await store.events()] == [f"{i}" for i in range(20, 30)]
        await store.close()

    asyncio.run(run())


# ----------------------------------------------------------------------------------------------------- the schema


def test_the_migrations_make_the_tables_that_the_program_uses(database: str) -> None:
    engine = make_engine(parse_url(database))
    assert schema.upgrade(engine) == ("", schema.newest())
    assert schema.upgrade(engine) == (schema.newest(), schema.newest())
    # In no transaction: one that is idle for as long as a busy machine may need to compare is ended.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
    engine.dispose()


def test_an_old_database_is_brought_up_to_date_with_its_content(database: str) -> None:
    engine = make_engine(parse_url(database))
    schema.upgrade(engine, "0001")
    body = (
        '{"id":"a-1","group":"team","shared":false,"reserved":false,"gmem_mib":100,"ratio_percent":25,"policy":"hard",'
        '"places":[["node-1",0],["node-2",3]],"owner":"1000@desk","program":"train.py","since_s":1.5}'
    )
    with engine.begin() as connection:
        execute = connection.execute
        execute(sa.text("INSERT INTO allocations VALUES ('a-1', 1, :body)"), {"body": body})
        execute(sa.text("INSERT INTO group_limits VALUES ('team', :body)"), {"body": '{"vgpus":2}'})
        execute(sa.text("INSERT INTO drained_servers VALUES ('n1')"))
        execute(sa.text("INSERT INTO secrets VALUES ('tickets', :value)"), {"value": b"s" * 32})
        execute(sa.text("INSERT INTO events (at_s, level, kind, subject, message, username) "
                        "VALUES (1.0, 'info', 'node.lost', 'n1', 'm', '')"))  # fmt: skip
    engine.dispose()

    async def run() -> None:
        store = Store.open(database)
        stored = await store.load()
        assert stored.allocations == {"a-1": record("a-1")}
        assert stored.limits == {"team": models.LimitsBody(vgpus=2)}
        assert stored.drained == {"n1"}
        assert store.secret("tickets") == b"s" * 32
        assert [event.subject for event in await store.events()] == ["n1"]
        await store.close()

    asyncio.run(run())


def test_a_newer_programs_database_is_refused(database: str) -> None:
    engine = make_engine(parse_url(database))
    schema.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0999'"))
    engine.dispose()
    with pytest.raises(StoreError, match="has schema 0999, this orion-controller knows schemas up to"):
        Store.open(database)


def test_an_unreadable_allocation_does_not_keep_the_rest_from_loading(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        store = Store.open(database)
        await store.save(record("a-1"))
        await store.change(
            lambda connection: connection.execute(
                sa.insert(tables.allocations).values(id="a-2", version=1, body='{"id": 3}')
            )
        )
        assert set((await store.load()).allocations) == {"a-1"}
        assert "allocation a-2" in caplog.text
        await store.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mysql://host/name", "sqlite and postgresql are known"),
        ("nonsense", "cannot be read"),
        ("sqlite://", "names no file"),
        ("postgresql://host", "names no database"),
        ("postgresql://u:hidden-word@127.0.0.1:1/name", "cannot use the database postgresql.*127.0.0.1:1/name"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(url: str, sentence: str) -> None:
    with pytest.raises(StoreError, match=sentence) as raised:
        Store.open(url)
    assert "hidden-word" not in str(raised.value)


def test_the_file_with_the_secrets_is_its_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.db"

    async def run() -> None:
        store = Store.open(f"sqlite:///{path}")
        store.secret("tickets")
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file
        await store.close()

    asyncio.run(run())
