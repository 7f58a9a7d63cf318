"""The controller as the scheduler sees it: reservations of pods, many in one request.

While one request is under way, others wait and go together in the next: kube-scheduler binds many pods at once.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from orion_controller.api.models import ApiError, LoggedIn, Node, PatchGroup
from orion_controller.api.pod_models import (
    Pod,
    PodOutcome,
    PodOutcomes,
    PodsGone,
    PodsReleased,
    PodWish,
)

log = logging.getLogger("orion.scheduler")

API = "/api/v1"
TIMEOUT_S = 4.0  # two replicas take less than kube-scheduler gives its extender
BATCH_PODS = 64
BATCH_BYTES = 1 << 20
ANSWER_MAX_BYTES = 64 << 20
_HOPS_MOST = 3
T = TypeVar("T")


class ControllerError(Exception):
    """It refuses (its HTTP status), or does not answer (status 0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Credentials:
    """A token in a file, read again when it is refused; or a user's password in a file, for which it logs in."""

    def __init__(self, token_file: Path | None = None, user: str = "admin", password_file: Path | None = None) -> None:
        self.token_file, self.user, self.password_file = token_file, user, password_file

    def read(self, file: Path) -> str:
        try:
            return file.read_text().strip()
        except OSError as error:
            raise ControllerError(0, f"{file} cannot be read: {error.strerror}") from error


class _Page(msgspec.Struct):
    total: int
    items: msgspec.Raw


class ControllerClient:
    """`urls`: of the replicas; the leader is found through any of them."""

    def __init__(self, urls: Iterable[str], credentials: Credentials, *, tls: ssl.SSLContext | None = None,
                 timeout_s: float = TIMEOUT_S) -> None:  # fmt: skip
        self._urls = [url.rstrip("/") for url in urls]
        self._known = set(self._urls)
        self._credentials = credentials
        self._tls = tls
        self._timeout_s = timeout_s
        self._token = ""
        self._session: aiohttp.ClientSession | None = None
        self._waiting: list[tuple[bytes, asyncio.Future[PodOutcome]]] = []
        self._sender: asyncio.Task[None] | None = None
        self._logging_in = asyncio.Lock()

    async def close(self) -> None:
        if self._sender is not None:
            self._sender.cancel()
        if self._session is not None:
            await self._session.close()

    # ------------------------------------------------------------------------------------------------ calls

    async def reserve(self, wish: PodWish) -> PodOutcome:
        """ControllerError: nothing is known; asking again is safe."""
        future: asyncio.Future[PodOutcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((msgspec.json.encode(wish), future))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.get_running_loop().create_task(self._send_waiting())
        return await future

    async def release(self, uids: list[str], reason: str, unless_used: bool = False) -> PodsReleased:
        """In portions of 1000."""
        told = PodsReleased(released=[], kept=[])
        for start in range(0, len(uids), 1000):
            part = await self._call("POST", f"{API}/pods/release", PodsReleased, PodsGone(
                uids=uids[start : start + 1000], reason=reason, unless_used=unless_used))  # fmt: skip
            told.released += part.released
            told.kept += part.kept
        return told

    async def pods(self) -> list[Pod]:
        """All that have vGPUs."""
        return await self._all("pods", Pod)

    async def nodes(self) -> list[Node]:
        return await self._all("nodes", Node)

    async def resize(self, group_id: str, gmem_mib: int | None, ratio_percent: int | None) -> None:
        """ControllerError 409: refused, and why."""
        body = PatchGroup(gmem_mib=gmem_mib, ratio_percent=ratio_percent)
        await self._call("PATCH", f"{API}/groups/{group_id}", Any, body)

    async def _all(self, kind: str, model: type[T]) -> list[T]:
        items: list[T] = []
        while True:
            page = await self._call("GET", f"{API}/{kind}?limit=1000&offset={len(items)}", _Page)
            part = msgspec.json.decode(page.items, type=list[model])  # type: ignore[valid-type]
            items += part
            if not part or len(items) >= page.total:
                return items

    # ------------------------------------------------------------------------------------------------ batches

    async def _send_waiting(self) -> None:
        await asyncio.sleep(0)  # others that ask in the same turn come along
        while self._waiting:
            size, count = 0, 0
            for body, _ in self._waiting[:BATCH_PODS]:
                if count and size + len(body) > BATCH_BYTES:
                    break
                size, count = size + len(body), count + 1
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
            try:
                raw = b'{"pods":[' + b",".join(body for body, _ in batch) + b"]}"
                told = await self._call("POST", f"{API}/pods/reserve", PodOutcomes, raw)
                if len(told.pods) != len(batch):
                    raise ControllerError(0, "the controller's answer is of other pods")
            except BaseException as error:
                known = error if isinstance(error, ControllerError) else ControllerError(0, f"not asked: {error!r}")
                for _, future in batch:
                    if not future.done():
                        future.set_exception(known)
                if not isinstance(error, Exception):
                    raise
                continue
            for (_, future), outcome in zip(batch, told.pods, strict=True):
                if not future.done():
                    future.set_result(outcome)

    # ------------------------------------------------------------------------------------------------ requests

    async def _call(self, method: str, path: str, model: Any, body: Any = None) -> Any:
        data = body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
        problems = []
        for url in list(self._urls):
            try:
                return await self._ask(url, method, path, model, data)
            except ControllerError as error:
                if error.status not in (0, 503):
                    raise
                # Asked last from now on, or not at all where only another replica had named it.
                self._urls = [u for u in self._urls if u != url] + ([url] if url in self._known else [])
                problems.append(str(error))
        raise ControllerError(0, "; ".join(problems) or "no controller is configured")

    async def _ask(self, url: str, method: str, path: str, model: Any, data: bytes | None) -> Any:
        may_log_in = True
        for _ in range(_HOPS_MOST + 1):
            if not self._token:
                await self._log_in(url)
            status, headers, answer = await self._request(method, url + path, data, self._token)
            if status == 307:
                url = self._leader(headers.get("Location", ""))
                continue
            if status == 401 and may_log_in:
                may_log_in, self._token = False, ""
                continue
            if status >= 400:
                raise ControllerError(status, f"{_refusal(answer) or f'status {status}'}")
            try:
                return msgspec.json.decode(answer, type=model)
            except msgspec.DecodeError as error:
                raise ControllerError(0, f"{url} is no controller of this release: {error}") from error
        raise ControllerError(0, f"{url}: the replicas send from one to another")

    def _leader(self, location: str) -> str:
        parts = urlsplit(location)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ControllerError(0, f"the leader's address {location[:200]!r} is none")
        url = f"{parts.scheme}://{parts.netloc}"
        # Asked first from now on; those that were configured stay.
        self._urls = [url] + [known for known in self._urls if known != url and known in self._known]
        return url

    async def _log_in(self, url: str) -> None:
        async with self._logging_in:
            if self._token:
                return
            file = self._credentials.token_file
            if file is not None:
                self._token = self._credentials.read(file)
                return
            if self._credentials.password_file is None:
                raise ControllerError(401, "no token for the controller: --controller-token-file")
            body = msgspec.json.encode({
                "user": self._credentials.user, "password": self._credentials.read(self._credentials.password_file)
            })  # fmt: skip
            status, headers, answer = await self._request("POST", f"{url}{API}/login", body, "")
            if status == 307:
                status, _, answer = await self._request(
                    "POST", f"{self._leader(headers.get('Location', ''))}{API}/login", body, ""
                )
            if status >= 400:
                raise ControllerError(status, f"log-in as {self._credentials.user}: {_refusal(answer)}")
            self._token = msgspec.json.decode(answer, type=LoggedIn).token

    async def _request(self, method: str, url: str, data: bytes | None, token: str) -> tuple[int, Any, bytes]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=32, ssl=self._tls or True), cookie_jar=aiohttp.DummyCookieJar(),
            )  # fmt: skip
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if data is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with asyncio.timeout(self._timeout_s):
                async with self._session.request(method, url, data=data, headers=headers,
                                                 allow_redirects=False) as response:  # fmt: skip
                    parts, size = [], 0
                    async for chunk in response.content.iter_any():
                        size += len(chunk)
                        if size > ANSWER_MAX_BYTES:
                            raise ControllerError(0, f"{url}: an answer of more than {ANSWER_MAX_BYTES} bytes")
                        parts.append(chunk)
                    return response.status, response.headers, b"".join(parts)
        except TimeoutError:
            raise ControllerError(0, f"{url} has not answered within {self._timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ControllerError(0, f"{url} cannot be reached: {error or type(error).__name__}") from error


def _refusal(answer: bytes) -> str:
    try:
        return msgspec.json.decode(answer, type=ApiError).message
    except msgspec.DecodeError:
        return ""
