"""Connections to the database: SQLite in a file, or PostgreSQL by URL."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError

FILE_NAME = "controller.db"
_STATEMENT_TIMEOUT_S = 5
_POOL_CONNECTIONS = 6


class StoreError(Exception):
    """The database does not do what it is asked to; the message says what would help."""


def parse_url(text: str) -> URL:
    """`sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST:PORT/NAME`; StoreError on anything else."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise StoreError("the database's URL cannot be read: sqlite:///PATH, or postgresql://USER@HOST/NAME") from None
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        if not url.database:
            raise StoreError("the database's URL names no database: postgresql://USER@HOST/NAME")
        return url.set(drivername="postgresql+psycopg")
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
            raise StoreError("the database's URL names no file: sqlite:////var/lib/orion/controller.db, for example")
        return url.set(drivername="sqlite")
    raise StoreError(f"a database of the kind {url.drivername!r}: sqlite and postgresql are known")


def url_of_folder(folder: Path) -> str:
    """The database in a data directory."""
    return URL.create("sqlite", database=str(folder.absolute() / FILE_NAME)).render_as_string()


def shown(url: URL) -> str:
    """For logs: without the password."""
    return url.render_as_string(hide_password=True)


def is_sqlite(engine: Engine) -> bool:
    return engine.dialect.name == "sqlite"


def make_engine(url: URL, writes: bool = True) -> Engine:
    """Connections of which each transaction writes (SQLite: has the write lock from its begin on) or only reads."""
    return _sqlite(url, writes) if url.drivername == "sqlite" else _postgresql(url)


def hasty(engine: Engine) -> Engine:
    """The same connections, for what a power failure may undo: SQLite does not wait for the disk at their commits.
    What has been committed still survives every death of the process. PostgreSQL: its server's settings hold."""
    return engine.execution_options(hasty=True)


def _sqlite(url: URL, writes: bool) -> Engine:
    assert url.database is not None
    _private_file(Path(url.database))
    engine = sa.create_engine(url, pool_size=_POOL_CONNECTIONS, connect_args={"timeout": 5.0})

    # The driver would begin a transaction when it sees fit; one that turns from reading into writing can fail at once
    # where the others wait for the lock.
    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        is_hasty = connection.get_execution_options().get("hasty", False)
        driver: Any = connection.connection.dbapi_connection
        driver.execute(f"PRAGMA synchronous={'NORMAL' if is_hasty else 'FULL'}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _private_file(path: Path) -> None:
    """Makes the file, readable by its user alone: it holds the secrets that tickets are signed with."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            mode = stat.S_IMODE(os.fstat(fd).st_mode)
            if mode & 0o077:
                os.fchmod(fd, mode & 0o700)
        finally:
            os.close(fd)
    except OSError as error:
        raise StoreError(f"cannot use {path} as database: {error.strerror}; name a writable folder "
                         "with --data-dir") from error  # fmt: skip


def _postgresql(url: URL) -> Engine:
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise StoreError("PostgreSQL needs psycopg: pip install 'orion-vgpu[postgres]'") from None
    engine = sa.create_engine(
        url,
        pool_size=_POOL_CONNECTIONS,
        connect_args={
            "connect_timeout": 5,
            "application_name": "orion-controller",
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": _STATEMENT_TIMEOUT_S * 1000,
        },
    )

    # A replica that is stopped within a transaction must not keep others from taking over.
    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        timeout_ms = _STATEMENT_TIMEOUT_S * 1000
        connection.execute(f"SET idle_in_transaction_session_timeout = {timeout_ms}")
        connection.execute(f"SET statement_timeout = {timeout_ms}")
        connection.commit()

    return engine
