"""The REST API over a stub of the pool, on a loopback port: what the commands are tested against."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from orion_controller.api import models
from orion_controller.backend import ServiceError
from tests.client.pool_stub import StubBackend

USER, PASSWORD = "admin", "secret of the admin"
TOKENS = {"operator-token": ("admin", "operator"), "viewer-token": ("guest", "viewer")}
Body = TypeVar("Body")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MOST = 500
USER_KEY: web.RequestKey[str] = web.RequestKey("user", str)


class PoolServer:
    """Serves until it is closed, in a thread of its own."""

    def __init__(self) -> None:
        self.backend = StubBackend()
        self.requests: list[str] = []
        self.skew_s = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner = web.AppRunner(self._app(), access_log=None)
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    async def _start(self) -> str:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        b = self.backend
        lists: dict[str, Callable[[str, str], Any]] = {
            "nodes": lambda n, g: b.nodes(), "gpus": lambda n, g: b.gpus(n), "vgpus": b.vgpus,
            "groups": lambda n, g: b.groups(), "sessions": b.sessions, "queue": lambda n, g: b.queue(),
            "limits": lambda n, g: b.limits(),
        }  # fmt: skip
        for kind, read in lists.items():
            app.router.add_get(f"/api/v1/{kind}", self._list(read))
        app.router.add_get("/api/v1/events", self._events(False))
        app.router.add_get("/api/v1/audit", self._events(True))
        app.router.add_get("/api/v1/summary", self._summary)
        app.router.add_get("/api/v1/me", self._me)
        app.router.add_post("/api/v1/login", self._login)
        app.router.add_post("/api/v1/logout", self._logout)
        app.router.add_patch("/api/v1/groups/{id}", self._patch_group)
        app.router.add_delete("/api/v1/groups/{id}", self._end_group)
        app.router.add_delete("/api/v1/sessions/{id}", self._end_session)
        app.router.add_patch("/api/v1/nodes/{name}", self._patch_node)
        app.router.add_post("/api/v1/reservations", self._reserve)
        app.router.add_put("/api/v1/limits/{group}", self._put_limits)
        app.router.add_delete("/api/v1/limits/{group}", self._delete_limits)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path_qs}")
        try:
            if not request.path.endswith("/login"):
                token = request.headers.get("Authorization", "").removeprefix("Bearer ")
                if token not in TOKENS:
                    raise ServiceError(401, "unauthorized", "who is that?")
                request[USER_KEY], role = TOKENS[token]
                if request.method != "GET" and role != "operator" and not request.path.endswith("/logout"):
                    raise ServiceError(403, "forbidden", "a viewer may not change anything")
            return await handler(request)
        except ServiceError as error:
            told = models.ApiError(code=error.code, message=str(error), hint=error.hint)
            return _answer(told, error.status)
        except msgspec.ValidationError as error:
            return _answer(models.ApiError(code="invalid", message=str(error)), 422)

    def _list(self, read: Callable[[str, str], Any]) -> Handler:
        async def handler(request: web.Request) -> web.StreamResponse:
            query = request.query
            rows = msgspec.to_builtins(read(query.get("node", ""), query.get("group", "")))
            word, state, sort = query.get("q", ""), query.get("state"), query.get("sort", "")
            rows = [row for row in rows if word in str(row) and state in (None, row.get("state"))]
            if sort:
                key = sort.removeprefix("-")
                rows.sort(key=lambda row: (row[key] is not None, row[key]), reverse=sort.startswith("-"))
            limit, offset = int(query.get("limit", 100)), int(query.get("offset", 0))
            if limit > MOST:
                raise ServiceError(422, "invalid", f"limit is at most {MOST}")
            return _answer({"items": rows[offset : offset + limit], "total": len(rows)})

        return handler

    def _events(self, audit: bool) -> Handler:
        async def handler(request: web.Request) -> web.StreamResponse:
            after, limit = int(request.query.get("after", 0)), int(request.query.get("limit", 100))
            rows = await self.backend.events(after, limit, audit)
            return _answer({"items": rows, "total": len(rows)})

        return handler

    async def _summary(self, request: web.Request) -> web.StreamResponse:
        return _answer(self.backend.summary())

    async def _me(self, request: web.Request) -> web.StreamResponse:
        token = request.headers["Authorization"].removeprefix("Bearer ")
        user, role = TOKENS[token]
        return _answer({"user": user, "role": role})

    async def _login(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, models.Login)
        if (body.user, body.password) != (USER, PASSWORD):
            raise ServiceError(401, "unauthorized", "name or password is wrong")
        return _answer(models.LoggedIn(user=USER, role="operator", token="operator-token", expires_s=0.0))

    async def _logout(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=204)

    async def _patch_group(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, models.PatchGroup)
        return _answer(await self.backend.patch_group(request.match_info["id"], body, request[USER_KEY]))

    async def _end_group(self, request: web.Request) -> web.StreamResponse:
        await self.backend.end_group(request.match_info["id"], request[USER_KEY])
        return web.Response(status=204)

    async def _end_session(self, request: web.Request) -> web.StreamResponse:
        await self.backend.end_session(request.match_info["id"], request[USER_KEY])
        return web.Response(status=204)

    async def _patch_node(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, models.PatchNode)
        return _answer(await self.backend.set_draining(request.match_info["name"], body.draining, request[USER_KEY]))

    async def _reserve(self, request: web.Request) -> web.StreamResponse:
        return _answer(await self.backend.reserve(await _body(request, models.Reserve), request[USER_KEY]), 201)

    async def _put_limits(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, models.LimitsBody)
        return _answer(await self.backend.set_limits(request.match_info["group"], body, request[USER_KEY]))

    async def _delete_limits(self, request: web.Request) -> web.StreamResponse:
        await self.backend.set_limits(request.match_info["group"], None, request[USER_KEY])
        return web.Response(status=204)


def _answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


async def _body(request: web.Request, kind: type[Body]) -> Body:
    return msgspec.json.decode(await request.read(), type=kind)
