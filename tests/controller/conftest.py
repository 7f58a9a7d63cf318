"""Databases for tests: a SQLite file, and a PostgreSQL server that only this test process uses."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

_START_TIMEOUT_S = 60
_numbers = itertools.count()


def _programs() -> Path:
    """The folder of initdb and pg_ctl: Debian keeps them out of PATH."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not folders:
        pytest.fail("PostgreSQL is not installed: tools/setup.sh does it (Debian: postgresql)")
    return folders[-1].parent


class PostgresServer:
    """A private server on a unix socket and a loopback port, without durability; it refuses to run as root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = _programs()
        self.user = "nobody" if os.geteuid() == 0 else None
        if self.user is not None:
            entry = pwd.getpwnam(self.user)
            os.chown(folder, entry.pw_uid, entry.pw_gid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "orion", "-N", "-E", "UTF8", "--locale=C")
        self.is_running = False
        with (folder / "data" / "postgresql.conf").open("a") as file:
            file.write(
                f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = '{folder}'\n"
                "fsync = off\nmax_connections = 60\nshared_buffers = 16MB\n"
            )
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), *arguments]
        with (self.folder / "commands.log").open("ab") as log:
            done = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, user=self.user,
                                  cwd=self.folder, timeout=_START_TIMEOUT_S)  # fmt: skip
        if done.returncode:
            said = (self.folder / "commands.log").read_text(errors="replace")
            server = self.folder / "server.log"
            pytest.fail(f"{program} failed:\n{said}\n{server.read_text() if server.exists() else ''}")

    def start(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "server.log"), "-w", "start")
        self.is_running = True

    def stop(self, mode: str = "immediate") -> None:
        """`immediate`: as after a power failure; `fast`: in good order."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", mode, "-w", "stop")
        self.is_running = False

    def new_database(self) -> str:
        """The URL of an empty database: a schema in truth, since PostgreSQL copies 300 files for each database."""
        name = f"test_{next(_numbers)}"
        url = f"postgresql://orion@127.0.0.1:{self.port}/postgres"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}".encode())
        return f"{url}?options=-csearch_path%3D{name}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests of this process; each asks it for a database of its own."""
    # Not pytest's folder: it is closed to other users, and a unix socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="orion-pg-") as name:
        server = PostgresServer(Path(name))
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def stoppable_postgres(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """The same server, for a test that stops it: it runs again afterwards."""
    yield postgres
    if not postgres.is_running:
        postgres.start()


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes empty databases; their URLs."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path / f'{next(_numbers)}.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database


@pytest.fixture
def database(new_database: Callable[[], str]) -> str:
    """The URL of an empty database, of each kind in turn."""
    return new_database()
