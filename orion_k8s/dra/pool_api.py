"""What the driver asks of orion-controller's REST API."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from orion_controller.api import models, pod_models

TIMEOUT_S = 5.0  # a kubelet waits for 45 s, for several requests
BODY_MAX_BYTES = 64 << 20
_PAGE = 1000
_REDIRECTS = 3
_RELEASED_AT_ONCE = 500
_ODD = "the controller's answer cannot be understood (is it of this release?)"
T = TypeVar("T")


class PoolError(Exception):
    """The controller refuses or does not answer (status 0); the message is a sentence, `code` the API's word."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class _Page(msgspec.Struct):
    items: list[Any]
    total: int


def _as(value: Any, shape: type[T]) -> T:
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise PoolError(502, f"{_ODD}: {error}") from error


class PoolApi:
    """Belongs to one event loop; `async with`. `urls`: those of all replicas. ValueError: `ca_file` is not usable."""

    def __init__(self, urls: list[str], token_file: Path | None, ca_file: Path | None = None,
                 timeout_s: float = TIMEOUT_S) -> None:  # fmt: skip
        self._urls = [url.rstrip("/") for url in urls]
        self._token_file = token_file
        self._timeout_s = timeout_s
        try:
            tls: ssl.SSLContext | bool = ssl.create_default_context(cafile=str(ca_file)) if ca_file else True
        except OSError as error:
            raise ValueError(f"{ca_file} is no certificate of the controller's API: {error}") from error
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls),
                                           cookie_jar=aiohttp.DummyCookieJar())  # fmt: skip

    async def __aenter__(self) -> PoolApi:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:  # fmt: skip
        await self._http.close()

    # ------------------------------------------------------------------------------------------------ what there is

    async def gpus(self) -> list[models.Gpu]:
        """Of all servers that are not lost."""
        return await self._all("gpus", models.Gpu)

    async def ready_nodes(self) -> set[str]:
        """Servers that take vGPUs: neither lost nor draining."""
        return {node.name for node in await self._all("nodes", models.Node) if node.state == "ready"}

    async def pods(self) -> list[pod_models.Pod]:
        """All pods that have vGPUs."""
        return await self._all("pods", pod_models.Pod)

    async def pod(self, uid: str) -> pod_models.Pod | None:
        """None: it has none."""
        found = await self._all("pods", pod_models.Pod, f"&q={quote(uid, safe='')}")
        return next((pod for pod in found if pod.uid == uid), None)

    async def _all(self, kind: str, model: type[T], filters: str = "") -> list[T]:
        found: list[T] = []
        while True:
            answer = await self._call("GET", f"{kind}?limit={_PAGE}&offset={len(found)}{filters}")
            page = _as(answer, _Page)
            items = _as(page.items, list[model])  # type: ignore[valid-type]
            found += items
            if not items or len(found) >= page.total:
                return found

    # ------------------------------------------------------------------------------------------------ changes

    async def reserve(self, wish: pod_models.PodWish) -> None:
        """All of a pod's vGPUs or none, until they are released; again: as they are. PoolError: why not."""
        answer = await self._call("POST", "pods/reserve", pod_models.PodWishes(pods=[wish]))
        outcomes = _as(answer, pod_models.PodOutcomes).pods
        if len(outcomes) != 1:
            raise PoolError(502, f"{_ODD}: {len(outcomes)} outcomes for one pod")
        (outcome,) = outcomes
        if outcome.refusal:
            again = "" if outcome.refusal == "never" else ": the kubelet asks again"
            raise PoolError(409, f"{outcome.message}{again}"[:500], outcome.refusal)

    async def release(self, uids: list[str], reason: str) -> None:
        """Also of pods that have none. PoolError: some of them have programs that cannot be ended now."""
        for at in range(0, len(uids), _RELEASED_AT_ONCE):
            gone = pod_models.PodsGone(uids=uids[at : at + _RELEASED_AT_ONCE], reason=reason)
            told = _as(await self._call("POST", "pods/release", gone), pod_models.PodsReleased)
            if told.kept:
                raise PoolError(409, f"the servers of {len(told.kept)} pods do not answer", "kept")

    # ------------------------------------------------------------------------------------------------ inside

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        """The first replica that answers; it may name the one that leads."""
        failure = PoolError(0, "no controller is named: --controller-url")
        for url in self._urls:
            try:
                return await self._ask(method, f"{url}/api/v1/{path}", body)
            except PoolError as error:
                if error.status not in (0, 503):
                    raise
                failure = error
        raise failure

    async def _ask(self, method: str, url: str, body: Any) -> Any:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if self._token_file is not None:
            try:
                headers["Authorization"] = f"Bearer {self._token_file.read_text().strip()}"
            except OSError as error:
                raise PoolError(
                    401, f"{self._token_file}: {error.strerror}: it holds the controller's token"
                ) from error
        data = msgspec.json.encode(body) if body is not None else None
        try:
            async with asyncio.timeout(self._timeout_s):
                for _ in range(_REDIRECTS):
                    # By hand: a client's own redirects would not tell another host who asks.
                    async with self._http.request(method, url, data=data, headers=headers,
                                                  allow_redirects=False) as answer:  # fmt: skip
                        if answer.status == 307 and answer.headers.get("Location"):
                            url = str(answer.url.join(URL(answer.headers["Location"])))
                            continue
                        return _read(answer.status, await _body(answer))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            what = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise PoolError(0, f"orion-controller does not answer ({what}): is it running, at {url}?") from error
        raise PoolError(503, f"{url}: the controllers name each other as the one that leads")


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for chunk in answer.content.iter_any():
        size += len(chunk)
        if size > BODY_MAX_BYTES:
            raise PoolError(502, f"the controller's answer is larger than {BODY_MAX_BYTES} bytes")
        parts.append(chunk)
    return b"".join(parts)


def _read(status: int, body: bytes) -> Any:
    try:
        told = msgspec.json.decode(body) if body else None
    except msgspec.DecodeError as error:
        raise PoolError(502, f"the controller's answer is no JSON (status {status}): is that its URL?") from error
    if status < 400:
        return told
    refusal = told if isinstance(told, dict) else {}
    message = str(refusal.get("message") or f"the controller refuses, status {status}")
    hint = str(refusal.get("hint") or "")
    raise PoolError(status, f"{message}{': ' + hint if hint else ''}"[:500], str(refusal.get("code") or ""))
