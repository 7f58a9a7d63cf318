"""What the DRA driver makes of a controller's answers: replicas, redirects, and answers that are none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from orion_controller.api import pod_models
from orion_k8s.dra import pool_api
from orion_k8s.dra.pool_api import PoolApi, PoolError

WISH = pod_models.PodWish(uid="u", namespace="n", name="p", containers=[pod_models.PodContainer(name="c")])
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def serve(handler: Handler) -> tuple[str, web.AppRunner]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}", runner


def ask(folder: Path, handlers: list[Handler], first: tuple[str, ...] = ()) -> str:
    """A reservation at these replicas; what is refused, empty: nothing. A handler sees the URLs of all in `app`."""

    async def run() -> str:
        served = [await serve(handler) for handler in handlers]
        urls[:] = [url for url, _ in served]
        (folder / "token").write_text("secret\n")
        try:
            async with PoolApi([*first, *urls], folder / "token", timeout_s=10.0) as api:
                await api.reserve(WISH)
                return ""
        except PoolError as error:
            return f"{error.status} {error}"
        finally:
            for _, runner in served:
                await runner.cleanup()

    return asyncio.run(run())


urls: list[str] = []


async def leads(request: web.Request) -> web.StreamResponse:
    assert request.headers["Authorization"] == "Bearer secret" and request.method == "POST"
    assert (await request.json())["pods"][0]["uid"] == "u"
    return web.json_response({"pods": [{"uid": "u", "refusal": "", "message": "", "parts": []}]})


async def follows(request: web.Request) -> web.StreamResponse:
    return web.Response(status=307, headers={"Location": urls[-1] + request.path_qs})


async def not_ready(request: web.Request) -> web.StreamResponse:
    return web.json_response({"code": "not_leader", "message": "no replica leads now", "hint": ""}, status=503)


def test_the_replica_that_leads_is_found(tmp_path: Path) -> None:
    assert ask(tmp_path, [leads], first=("http://127.0.0.1:1",)) == ""
    assert ask(tmp_path, [not_ready, follows, leads]) == ""
    assert "does not answer" in ask(tmp_path, [], first=("http://127.0.0.1:1",))
    assert ask(tmp_path, [not_ready]) == "503 no replica leads now"
    assert "name each other" in ask(tmp_path, [follows])  # itself


def test_answers_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>It works!</html>")

    async def odd(request: web.Request) -> web.StreamResponse:
        return web.json_response({"pods": [{"uid": 5}]})

    async def none(request: web.Request) -> web.StreamResponse:
        return web.json_response({"pods": []})

    async def refuses(request: web.Request) -> web.StreamResponse:
        return web.json_response({"code": "unauthorized", "message": "no", "hint": "log in"}, status=401)

    async def large(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"[" + b" " * 5000 + b"]")

    monkeypatch.setattr(pool_api, "BODY_MAX_BYTES", 4000)
    assert "no JSON" in ask(tmp_path, [page])
    assert "cannot be understood" in ask(tmp_path, [odd])
    assert "cannot be understood" in ask(tmp_path, [none])
    assert ask(tmp_path, [refuses]) == "401 no: log in"
    assert "larger than" in ask(tmp_path, [large])


def test_a_token_that_is_not_there(tmp_path: Path) -> None:
    async def run() -> None:
        async with PoolApi(["http://127.0.0.1:1"], tmp_path / "nowhere") as api:
            with pytest.raises(PoolError, match="holds the controller's token"):
                await api.gpus()

    asyncio.run(run())
