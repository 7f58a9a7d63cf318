"""The controller's own REST API over a stub of the pool, on a loopback port: what the commands are tested against."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from orion_controller.api.app import make_app, serve
from orion_controller.api.models import Role
from tests.client.pool_stub import StubBackend

USER, PASSWORD = "admin", "secret of the admin"


@dataclass(frozen=True)
class Who:
    user: str
    role: Role
    expires: float | None = None


class Accounts:
    """Two tokens, and one user who can log in."""

    def __init__(self) -> None:
        self.tokens = {"operator-token": Who("admin", "operator"), "viewer-token": Who("guest", "viewer")}

    async def check_password(self, name: str, password: str) -> Who | None:
        return Who(USER, "operator") if (name, password) == (USER, PASSWORD) else None

    async def create_session(self, user: str, ttl: float) -> str:
        self.tokens["session-token"] = Who(user, "operator")
        return "session-token"

    async def lookup(self, token: str) -> Who | None:
        return self.tokens.get(token)

    async def revoke(self, token: str) -> bool:
        return self.tokens.pop(token, None) is not None


class PoolServer:
    """Serves until it is closed, in a thread of its own."""

    def __init__(self) -> None:
        self.backend = StubBackend()
        self.requests: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    async def _start(self) -> web.AppRunner:
        app = make_app(self.backend, Accounts(), portal=Path("/nonexistent"))

        async def count(request: web.Request, _: web.StreamResponse) -> None:
            self.requests.append(f"{request.method} {request.path_qs}")

        app.on_response_prepare.append(count)
        return await serve(app, "127.0.0.1", 0)
