"""A small client of the Kubernetes API server: what the controller, the scheduler and the plugins need of it.

Objects are plain dictionaries, as JSON has them. Every failure is a KubeError with the HTTP status (0: no answer) and
the API's reason ("NotFound", "Conflict", ...). `follow` is a list that stays true: it resumes its watch, and lists
again where the API server has forgotten the version it stood at.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import random
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import aiohttp
import msgspec
import yaml

log = logging.getLogger("orion.kube")

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_S = 15.0
WATCH_S = 300  # the API server ends a watch after this; it is resumed
BODY_MAX_BYTES = 64 << 20  # of an answer, and of one event of a watch
PAGE_ITEMS = 500
_BACKOFF_MOST_S = 30.0
_PATCHES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}
Object = dict[str, Any]
Keep = Callable[[Object], Object | None]
PatchKind = Literal["merge", "strategic", "json", "apply"]


class KubeError(Exception):
    """What the API server refuses, or that it does not answer (status 0)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class KubeConfigError(Exception):
    """Nobody has said how the API server is reached, or it cannot be understood."""


@dataclass(frozen=True)
class Access:
    """How the API server is reached. `token_file` is read again when it changes; `tls` None: plain HTTP."""

    url: str
    token: str = ""
    token_file: Path | None = None
    tls: ssl.SSLContext | None = None
    namespace: str = "default"


def in_cluster(folder: Path = SERVICE_ACCOUNT, environment: Mapping[str, str] = os.environ) -> Access:
    """Of a pod with a service account. KubeConfigError: this is no pod, or it has no token."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        raise KubeConfigError("this is no pod: KUBERNETES_SERVICE_HOST is not set; give a kubeconfig instead")
    token, ca = folder / "token", folder / "ca.crt"
    if not token.is_file():
        raise KubeConfigError(f"{token} is missing: the pod needs automountServiceAccountToken: true")
    namespace = folder / "namespace"
    name = f"[{host}]" if ":" in host else host
    return Access(
        f"https://{name}:{port}", token_file=token, tls=_tls(cafile=str(ca)),
        namespace=namespace.read_text().strip() if namespace.is_file() else "default",
    )  # fmt: skip


def from_kubeconfig(path: Path, context: str = "") -> Access:
    """Of a kubeconfig's current (or named) context. KubeConfigError: it is not usable, and why."""
    try:
        parsed = yaml.safe_load(path.read_text())
        name = context or parsed["current-context"]
        chosen = _named(parsed, "contexts", name)["context"]
        cluster = _named(parsed, "clusters", chosen["cluster"])["cluster"]
        user = _named(parsed, "users", chosen["user"]).get("user") or {}
        url = str(cluster["server"]).rstrip("/")
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise KubeConfigError(f"{path} is no kubeconfig that can be used: {error!r}") from error
    if "exec" in user or "auth-provider" in user:
        raise KubeConfigError(f"{path}: {chosen['user']} logs in with a program; use a token or a certificate")
    return Access(
        url,
        token=str(user.get("token") or ""),
        token_file=path.parent / user["tokenFile"] if user.get("tokenFile") else None,
        tls=_kubeconfig_tls(path, cluster, user) if url.startswith("https://") else None,
        namespace=str(chosen.get("namespace") or "default"),
    )


def find_access(kubeconfig: str = "", environment: Mapping[str, str] = os.environ) -> Access:
    """The kubeconfig that was named, else that of KUBECONFIG, else the pod's own. KubeConfigError."""
    path = kubeconfig or environment.get("KUBECONFIG", "")
    return from_kubeconfig(Path(path)) if path else in_cluster(environment=environment)


def _named(parsed: Any, kind: str, name: str) -> Any:
    for entry in parsed[kind]:
        if entry["name"] == name:
            return entry
    raise KeyError(f"{kind}: {name}")


def _tls(**where: Any) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(**where)
    except (OSError, ValueError) as error:
        raise KubeConfigError(f"the API server's certificate authority cannot be read: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _kubeconfig_tls(path: Path, cluster: Object, user: Object) -> ssl.SSLContext:
    if cluster.get("certificate-authority-data"):
        tls = _tls(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    elif cluster.get("certificate-authority"):
        tls = _tls(cafile=str(path.parent / cluster["certificate-authority"]))
    else:
        tls = _tls()
    if cluster.get("insecure-skip-tls-verify"):
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    # The ssl module loads certificates from files only.
    with tempfile.TemporaryDirectory(prefix="orion-kube-") as folder:
        files = []
        for name in ("client-certificate", "client-key"):
            if user.get(f"{name}-data"):
                file = Path(folder) / name
                file.touch(mode=0o600)
                file.write_bytes(base64.b64decode(user[f"{name}-data"]))
                files.append(file)
            elif user.get(name):
                files.append(path.parent / user[name])
        if len(files) == 2:
            try:
                tls.load_cert_chain(files[0], files[1])
            except OSError as error:
                raise KubeConfigError(f"{path}: the client's certificate cannot be used: {error}") from error
    return tls


def path_of(resource: str, namespace: str = "", name: str = "", subresource: str = "", api: str = "v1") -> str:
    """Path of a resource, for instance path_of("pods", "default", "p1"); `api` like "resource.k8s.io/v1"."""
    parts = ["api" if "/" not in api else "apis", *api.split("/")]
    if namespace:
        parts += ["namespaces", namespace]
    parts += [resource, *filter(None, (name, subresource))]
    return "/" + "/".join(quote(part, safe="") for part in parts)


@dataclass(frozen=True)
class Change:
    """Of `follow`. `kind` LISTED: `items` is all there is now; otherwise ADDED, MODIFIED or DELETED, and one item."""

    kind: Literal["LISTED", "ADDED", "MODIFIED", "DELETED"]
    items: list[Object]


@dataclass(frozen=True)
class Reviewed:
    """What a TokenReview says. `pod_name` and `pod_uid`: of a bound token, else empty."""

    authenticated: bool
    username: str = ""
    uid: str = ""
    audiences: tuple[str, ...] = ()
    pod_name: str = ""
    pod_uid: str = ""
    error: str = ""

    @property
    def namespace(self) -> str:
        """Of a service account; empty: it is none."""
        parts = self.username.split(":")
        return parts[2] if len(parts) == 4 and parts[:2] == ["system", "serviceaccount"] else ""


class KubeApi:
    """Belongs to one event loop; `async with`, or `await close()` at the end."""

    def __init__(self, access: Access, *, user_agent: str = "orion", timeout_s: float = TIMEOUT_S,
                 connections: int = 100) -> None:  # fmt: skip
        self.access = access
        self.timeout_s = timeout_s
        self._agent = user_agent
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._token = access.token
        self._token_seen: tuple[int, int, int] | None = None

    async def __aenter__(self) -> KubeApi:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    # ------------------------------------------------------------------------------------------------ requests

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> Object:
        return await self.request("GET", path, params=params)

    async def list(self, path: str, params: Mapping[str, str] | None = None, page_items: int = PAGE_ITEMS,
                   keep: Keep | None = None) -> tuple[list[Object], str]:  # fmt: skip
        """All items, in pages, and the resourceVersion from which a watch goes on. `keep`: what of an item is kept,
        None: nothing of it; so that a hundred thousand pods are never in memory at once."""
        while True:
            items: list[Object] = []
            asked = dict(params or {}) | {"limit": str(page_items)}
            try:
                while True:
                    page = await self.get(path, asked)
                    found = page.get("items") or []
                    items += found if keep is None else [kept for item in found if (kept := keep(item)) is not None]
                    metadata = page.get("metadata") or {}
                    if not metadata.get("continue"):
                        return items, str(metadata.get("resourceVersion") or "")
                    asked["continue"] = metadata["continue"]
            except KubeError as error:
                if error.status != 410 or "continue" not in asked:
                    raise
                # A list that took too long: its version is gone. From the start, in one piece.
                page_items = 0

    async def create(self, path: str, body: Object) -> Object:
        return await self.request("POST", path, body)

    async def replace(self, path: str, body: Object) -> Object:
        return await self.request("PUT", path, body)

    async def patch(self, path: str, body: Any, kind: PatchKind = "merge",
                    params: Mapping[str, str] | None = None) -> Object:  # fmt: skip
        return await self.request("PATCH", path, body, params=params, content_type=_PATCHES[kind])

    async def delete(self, path: str, body: Object | None = None) -> Object:
        return await self.request("DELETE", path, body)

    async def request(
        self, method: str, path: str, body: Any = None, *, params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:  # fmt: skip
        """One request and its answer; KubeError."""
        data = None if body is None else msgspec.json.encode(body)
        for is_last in (False, True):
            try:
                async with asyncio.timeout(self.timeout_s):
                    async with self._open(method, path, params, data, content_type) as response:
                        if response.status == 401 and not is_last and self._reread_token():
                            continue
                        answer = await _body(response)
                        if response.status >= 400:
                            raise _error(response.status, answer, f"{method} {path}")
                        return _object(answer)
            except TimeoutError:
                raise KubeError(0, "Timeout", f"{method} {path}: no answer within {self.timeout_s:g} s") from None
            except (aiohttp.ClientError, OSError) as error:
                raise KubeError(0, "Unreachable", f"{method} {path}: {error or type(error).__name__}") from error
        raise AssertionError("the last round returns or raises")

    def _open(self, method: str, path: str, params: Mapping[str, str] | None, data: bytes | None, content_type: str,
              **more: Any) -> Any:  # fmt: skip
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, ssl=self.access.tls or True),
                cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            )  # fmt: skip
        headers = {"Accept": "application/json", "User-Agent": self._agent}
        token = self._current_token()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if data is not None:
            headers["Content-Type"] = content_type
        return self._session.request(method, self.access.url + path, params=params, data=data, headers=headers,
                                     allow_redirects=False, **more)  # fmt: skip

    def _current_token(self) -> str:
        """The kubelet renews a pod's token in its file."""
        file = self.access.token_file
        if file is not None:
            try:
                now = file.stat()
                seen = (now.st_mtime_ns, now.st_ino, now.st_size)
                if seen != self._token_seen:
                    self._token, self._token_seen = file.read_text().strip(), seen
            except OSError as error:
                log.warning("the service account's token cannot be read: %s", error)
        return self._token

    def _reread_token(self) -> bool:
        """Whether the file has another token than the one that was refused."""
        before, self._token_seen = self._token, None
        return self._current_token() != before

    # ------------------------------------------------------------------------------------------------ watching

    async def follow(self, path: str, params: Mapping[str, str] | None = None, *, keep: Keep | None = None,
                     clock: Callable[[], float] = time.monotonic) -> AsyncIterator[Change]:  # fmt: skip
        """LISTED first and after every gap, then each change; for ever. While the API server is away it keeps trying,
        with pauses up to 30 s. `keep`: as for `list`, of changed items too; one that is None is told as DELETED."""
        version, failures = "", 0
        while True:
            try:
                if not version:
                    items, version = await self.list(path, params, keep=keep)
                    yield Change("LISTED", items)
                began_s = clock()
                async for kind, item in self.watch(path, version, params):
                    version = str(item.get("metadata", {}).get("resourceVersion") or version)
                    failures = 0
                    if kind != "BOOKMARK":
                        kept = item if keep is None else keep(item)
                        yield Change(kind if kept is not None else "DELETED", [kept or item])  # type: ignore[arg-type]
                if clock() - began_s < 1.0:
                    failures += 1  # an API server that ends every watch at once
            except KubeError as error:
                if error.status == 410:
                    version = ""
                    if not failures:
                        failures = 1
                        continue
                failures += 1
                log.warning("%s is not followed for now: %s", path, error)
            if failures:
                await asyncio.sleep(random.uniform(0.5, 1.0) * min(2.0 ** (failures - 2), _BACKOFF_MOST_S))

    async def watch(self, path: str, version: str,
                    params: Mapping[str, str] | None = None) -> AsyncIterator[tuple[str, Object]]:  # fmt: skip
        """Events after a version until the API server ends the watch. KubeError; 410: list again."""
        asked = dict(params or {}) | {
            "watch": "1", "allowWatchBookmarks": "true", "resourceVersion": version, "timeoutSeconds": str(WATCH_S)
        }  # fmt: skip
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=WATCH_S + 30)
        try:
            async with self._open("GET", path, asked, None, "", timeout=timeout) as response:
                if response.status >= 400:
                    if response.status == 401:
                        self._reread_token()
                    raise _error(response.status, await _body(response), f"watch {path}")
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in filter(None, lines):
                        yield _event(line, path)
                    if len(rest) > BODY_MAX_BYTES:
                        raise KubeError(0, "TooLarge", f"watch {path}: an event of more than {BODY_MAX_BYTES} bytes")
        except TimeoutError:
            raise KubeError(0, "Timeout", f"watch {path}: nothing is heard any more") from None
        except (aiohttp.ClientError, OSError) as error:
            raise KubeError(0, "Unreachable", f"watch {path}: {error or type(error).__name__}") from error

    # ------------------------------------------------------------------------------------------------ verbs

    async def cluster_id(self) -> str:
        """What tells clusters apart for as long as they live: the uid of the namespace kube-system. KubeError."""
        found = await self.get(path_of("namespaces", name="kube-system"))
        uid = (found.get("metadata") or {}).get("uid")
        if not isinstance(uid, str) or not uid:
            raise KubeError(0, "BadAnswer", "the namespace kube-system has no uid")
        return uid

    async def bind_pod(self, namespace: str, name: str, uid: str, node: str) -> None:
        """KubeError: 404 it is gone, 409 it has a node already or is another pod of that name."""
        await self.create(path_of("pods", namespace, name, "binding"), {
            "apiVersion": "v1", "kind": "Binding", "metadata": {"namespace": namespace, "name": name, "uid": uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        })  # fmt: skip

    async def create_event(
        self, about: Object, kind: Literal["Normal", "Warning"], reason: str, message: str, component: str,
        *, wall_s: float | None = None,
    ) -> Object:  # fmt: skip
        """An event on an object (its whole dictionary, or at least kind and metadata)."""
        now_s = time.time() if wall_s is None else wall_s
        stamp = datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata = about.get("metadata") or {}
        namespace = metadata.get("namespace") or "default"
        reference = {name: metadata[name] for name in ("namespace", "name", "uid", "resourceVersion")
                     if metadata.get(name)}  # fmt: skip
        return await self.create(path_of("events", namespace), {
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"generateName": f"{metadata.get('name', 'orion')[:200]}.", "namespace": namespace},
            "involvedObject": {"apiVersion": about.get("apiVersion") or "v1", "kind": about.get("kind") or "Pod"}
            | reference,
            "type": kind, "reason": reason, "message": message[:1000], "source": {"component": component},
            "firstTimestamp": stamp, "lastTimestamp": stamp, "count": 1, "reportingComponent": component,
            "reportingInstance": os.uname().nodename,
        })  # fmt: skip

    async def token_review(self, token: str, audiences: Sequence[str]) -> Reviewed:
        """Whose token it is. Not authenticated: it is false, has expired, or is for another audience."""
        answer = await self.create(path_of("tokenreviews", api="authentication.k8s.io/v1"), {
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token, "audiences": list(audiences)},
        })  # fmt: skip
        status = answer.get("status") or {}
        user = status.get("user") or {}
        extra = user.get("extra") or {}
        told = tuple(str(audience) for audience in status.get("audiences") or ())
        # An API server that knows no audiences answers without them: the token may then be for anybody.
        is_ours = bool(status.get("authenticated")) and (not audiences or bool(set(told) & set(audiences)))
        error = str(status.get("error") or "")
        if status.get("authenticated") and not is_ours:
            error = f"the token is not for the audience {', '.join(audiences)}"
        return Reviewed(
            is_ours, str(user.get("username") or ""), str(user.get("uid") or ""), told,
            _first(extra.get("authentication.kubernetes.io/pod-name")),
            _first(extra.get("authentication.kubernetes.io/pod-uid")), error,
        )  # fmt: skip


def _first(values: Any) -> str:
    return str(values[0]) if isinstance(values, list) and len(values) == 1 else ""


async def _body(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > BODY_MAX_BYTES:
            raise KubeError(response.status, "TooLarge", f"an answer of more than {BODY_MAX_BYTES} bytes")
        parts.append(chunk)
    return b"".join(parts)


def _object(data: bytes) -> Object:
    try:
        value = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise KubeError(0, "BadAnswer", f"the API server's answer is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise KubeError(0, "BadAnswer", "the API server's answer is no object")
    return value


def _error(status: int, data: bytes, what: str) -> KubeError:
    told: Object = {}
    with contextlib.suppress(KubeError):
        told = _object(data)
    reason = str(told.get("reason") or {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict",
                                        410: "Expired", 429: "TooManyRequests"}.get(status, "Refused"))  # fmt: skip
    message = str(told.get("message") or data[:200].decode(errors="replace").strip() or f"status {status}")
    return KubeError(status, reason, f"{what}: {message}")


def _event(line: bytes, path: str) -> tuple[str, Object]:
    event = _object(line)
    kind, item = event.get("type"), event.get("object")
    if not isinstance(item, dict):
        raise KubeError(0, "BadAnswer", f"watch {path}: an event without an object")
    if kind == "ERROR":
        code = item.get("code")
        raise KubeError(code if isinstance(code, int) else 500, str(item.get("reason") or "Error"),
                        f"watch {path}: {item.get('message') or 'ended'}")  # fmt: skip
    if kind not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"):
        raise KubeError(0, "BadAnswer", f"watch {path}: an event of the kind {kind!r}")
    return kind, item
