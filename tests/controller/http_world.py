"""The controller's HTTP side on a loopback port, with real accounts, over any backend."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from orion_controller.api.app import make_app, serve
from orion_controller.backend import Backend
from orion_controller.store import Accounts, Store
from orion_controller.store.passwords import Cost
from tests.controller.pool_backend import PoolBackend

CHEAP = Cost(log2_n=4, r=1, p=1)
PASSWORDS = {"ann": "the operator's word", "vic": "the viewer's word"}


class Time:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class World:
    """`call` with the operator's token unless another is given; "" sends none."""

    url: str
    pool: Any
    accounts: Accounts
    clock: Time
    http: aiohttp.ClientSession
    operator: str
    viewer: str

    async def call(self, method: str, path: str, body: Any = None, token: str | None = None, raw: bytes | None = None,
                   headers: dict[str, str] | None = None) -> Answer:  # fmt: skip
        sent = dict(headers or {})
        token = self.operator if token is None else token
        if token:
            sent["Authorization"] = f"Bearer {token}"
        data = raw if body is None else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        url = URL(self.url + path, encoded=True)
        async with self.http.request(method, url, data=data, headers=sent, allow_redirects=False) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **more: Any) -> Answer:
        return await self.call("GET", path, **more)

    async def page(self, path: str) -> list[Any]:
        """The items of a list."""
        answer = await self.get(f"/api/v1/{path}")
        assert answer.status == 200, answer.body
        return list(answer.json["items"])

    async def login(self, user: str, password: str) -> Answer:
        return await self.call("POST", "/api/v1/login", {"user": user, "password": password}, token="")


@cache
def _empty_database() -> bytes:
    """Making the tables takes longer than most of these tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.db"
        asyncio.run(Store.open(f"sqlite:///{path}").close())
        return path.read_bytes()


@asynccontextmanager
async def world(folder: Path, backend: Backend | None = None, **options: Any) -> AsyncIterator[World]:
    """Operator "ann" and viewer "vic" exist. Without a backend: 3 nodes x 2 GPUs x 2 vGPUs of plain data."""
    pool = PoolBackend(nodes=3) if backend is None else backend
    database = folder / "accounts.db"
    database.write_bytes(await asyncio.to_thread(_empty_database))
    store = Store.open(f"sqlite:///{database}", migrate="new")
    clock = Time()
    accounts = Accounts(store, CHEAP, now_s=clock, clock=clock)
    runner = None
    try:
        await accounts.add_user("ann", "operator", PASSWORDS["ann"])
        await accounts.add_user("vic", "viewer", PASSWORDS["vic"])
        tokens = [await accounts.create_session(name, 3600.0) for name in ("ann", "vic")]
        app = make_app(pool, accounts, **{"clock": clock, "wall_clock": clock} | options)
        runner = await serve(app, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
            yield World(url, pool, accounts, clock, http, *tokens)
    finally:
        if runner is not None:
            await runner.cleanup()
        accounts.close()
        await store.close()


def go(folder: Path, body: Callable[[World], Awaitable[None]], backend: Backend | None = None, **options: Any) -> None:
    """Runs a test in an event loop of its own."""

    async def run() -> None:
        async with world(folder, backend, **options) as made:
            await body(made)

    asyncio.run(run())


def part(name: str) -> str:
    """A name as one part of a path."""
    return quote(name, safe="")
