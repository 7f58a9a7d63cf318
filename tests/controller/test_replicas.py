"""Two replicas of orion-controller on one PostgreSQL: one leads, the other takes over, and nobody who runs notices."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.controller.conftest import PostgresServer
from tests.controller.linked import LinkedClient, LinkedServer
from tests.controller.simulated import SimulatedServer
from wire import pool as wire
from wire.ticket import TicketError

pytestmark = pytest.mark.slow
TIMEOUT_S = 60.0
PASSWORD = "correct horse battery"


class Replica:
    """An `orion-controller start` process."""

    def __init__(self, folder: Path, name: str, database: str) -> None:
        folder.mkdir()
        ready, self.log = folder / "ready", folder / "log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ORION_")}
        environment |= {"ORION_ADMIN_PASSWORD": PASSWORD}
        command = [sys.executable, "-m", "orion_controller.cli", "start", "--data-dir", str(folder / "data"),
                   "--database", database, "--replica-id", name, "--http", "127.0.0.1:0", "--zmq", "127.0.0.1:0",
                   "--ready-file", str(ready), "--exit-with-parent"]  # fmt: skip
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline_s = time.monotonic() + TIMEOUT_S
        while not ready.exists():
            assert self.process.poll() is None and time.monotonic() < deadline_s, self.log.read_text()
            time.sleep(0.05)
        self.url, self.zmq = ready.read_text().split()

    def ask(self, path: str, token: str = "", body: Any = None, method: str | None = None) -> tuple[int, Any, Any]:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                return answer.status, json.load(answer), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers

    def log_in(self) -> str:
        status, told, _ = self.ask("/api/v1/login", body={"user": "admin", "password": PASSWORD})
        assert status == 200, told
        return str(told["token"])


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not await condition():
            await asyncio.sleep(0.05)


async def asked(address: str, **values: object) -> Any:
    client = LinkedClient(address)
    try:
        return await client.allocate(**values)
    finally:
        client.close()


def test_a_replica_takes_over_and_what_runs_goes_on(tmp_path: Path, postgres: PostgresServer) -> None:
    postgresql_url = postgres.new_database()
    first = Replica(tmp_path / "one", "one", postgresql_url)
    second = Replica(tmp_path / "two", "two", postgresql_url)

    async def body() -> None:
        servers = [LinkedServer(SimulatedServer(name, gpus=1), f"{second.zmq},{first.zmq}") for name in ("a", "b")]
        try:
            token = await asyncio.to_thread(first.log_in)

            async def ask(replica: Replica, path: str, *arguments: Any) -> tuple[int, Any, Any]:
                """Beside this loop, in which the servers live."""
                return await asyncio.to_thread(replica.ask, path, token, *arguments)

            async def has(replica: Replica, what: str, count: int) -> bool:
                """Not while it sends its readers to a leader, who may be dead."""
                status, summary, _ = await ask(replica, "/api/v1/summary")
                return status == 200 and summary[what] == count

            await until(lambda: has(first, "nodes_ready", 2))  # though the follower is first in the servers' lists
            told = await asked(second.zmq)
            assert isinstance(told, wire.NotLeader) and told.leader == first.zmq
            status, _, headers = await ask(second, "/api/v1/nodes/a", {"draining": True}, "PATCH")
            assert status == 307 and headers["Location"].startswith(first.url)
            given = await asked(first.zmq, vgpu=2, ratio=80)
            for part in given.servers:
                next(s for s in servers if s.simulated.name == part.server).attach(part.ticket)
            await until(lambda: has(first, "sessions", 2))
            promised = await asked(first.zmq, gmem_mib=1000, ratio=10)

            first.process.kill()
            await until(lambda: has(second, "nodes_ready", 2))
            status, groups, _ = await ask(second, "/api/v1/groups")
            assert status == 200 and {g["id"] for g in groups["items"]} >= {given.allocation}
            await until(lambda: has(second, "sessions", 2))
            # What the dead one promised is promised still: its ticket is good, by the same secret.
            holder = next(s for s in servers if s.simulated.name == promised.servers[0].server)
            try:
                holder.attach(promised.servers[0].ticket)
            except TicketError as error:
                assert "expired" in str(error)  # the take-over may have lasted longer than a ticket
            refused = await asked(second.zmq, ratio=90)
            assert isinstance(refused, wire.Error) and "room for 0" in refused.message
            assert isinstance(await asked(second.zmq, ratio=10), wire.Allocated)
            status, node, _ = await ask(second, "/api/v1/nodes/a", {"draining": True}, "PATCH")
            assert status == 200 and node["state"] == "draining"
        finally:
            for server in servers:
                server.link.close()

    try:
        asyncio.run(body())
    finally:
        for replica in (first, second):
            replica.process.terminate()
            replica.process.wait(30)
