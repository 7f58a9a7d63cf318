"""The schema's version: found, brought up to date, or refused because it is of a newer program."""

from __future__ import annotations

import functools
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Engine

from orion_controller.store.engine import StoreError, is_sqlite

_FOLDER = Path(__file__).parent / "migrations"
# Two replicas that start at once: one migrates, the other waits. Any number that nobody else uses.
_ADVISORY_LOCK = 0x6F72696F6E


@functools.cache
def _revisions() -> tuple[str, ...]:
    """Newest first."""
    return tuple(script.revision for script in ScriptDirectory(str(_FOLDER)).walk_revisions())


def newest() -> str:
    """The revision that this program works with."""
    return _revisions()[0]


def current(connection: sa.Connection) -> str:
    """The database's revision; empty when it has no tables of ours."""
    return MigrationContext.configure(connection).get_current_revision() or ""


def check(connection: sa.Connection) -> str:
    """The database's revision; StoreError when this program does not know it."""
    revision = current(connection)
    if revision and revision not in _revisions():
        raise StoreError(
            f"the database has schema {revision}, this orion-controller knows schemas up to {newest()}: a newer "
            "version has used it; run that version, or restore a copy from before"
        )
    return revision


def upgrade(engine: Engine, target: str = "head") -> tuple[str, str]:
    """Brings the schema to `target` in one transaction; the revisions before and after."""
    with engine.begin() as connection:
        if not is_sqlite(engine):
            connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
            # Alembic reads its revisions meanwhile, which takes seconds on a busy machine.
            connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = '60s'"))
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        before = check(connection)
        if before != (newest() if target == "head" else target):
            config = Config()
            config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, target)
        return before, current(connection)
