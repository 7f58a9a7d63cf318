"""A small Kubernetes API server over HTTP for tests: any resource by its path, lists in pages, watches with
resourceVersions and 410, patches, bindings, events and TokenReviews. It checks what a real one checks of a binding."""

from __future__ import annotations

import asyncio
import bisect
import copy
import json
import ssl
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Object = dict[str, Any]
EVENTS_KEPT = 100_000


class Refused(Exception):
    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


def pod(name: str, namespace: str = "default", **spec: Any) -> Object:
    """A pod with one container `main`."""
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [{"name": "main", "image": "example/client:1"}]} | spec, "status": {"phase": "Pending"},
    }  # fmt: skip


def node(name: str, **labels: str) -> Object:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "status": {}}


def _merged(old: Any, patch: Any) -> Any:
    """RFC 7386. Lists are replaced, as in a merge patch; for a strategic patch this is right where there is no list."""
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


class ApiServer:
    """`objects` by collection ("/api/v1/pods") and "namespace/name". `calls`: (method, path) in order."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Object]] = {"/api/v1/namespaces": {"/kube-system": {
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "kube-system", "uid": str(uuid.uuid4()), "resourceVersion": "1"}}}}  # fmt: skip
        self.version = 1
        self.oldest = 0  # a watch from before this version is 410
        self.history: list[tuple[int, str, str, Object]] = []
        self.watchers: set[asyncio.Queue[None]] = set()
        self.tokens: dict[str, Object] = {}  # token -> status of its TokenReview; "audiences" are checked
        self.needs_token: str | None = None
        self.calls: list[tuple[str, str]] = []
        self.fail_next: list[Refused] = []  # of the next requests that are no watch
        self.url = ""
        self._runner: web.AppRunner | None = None
        self._port = 0

    # ------------------------------------------------------------------------------------------------ for tests

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        """On the port that it had, once it has had one."""
        app = web.Application(client_max_size=16 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=tls, reuse_address=True).start()
        self._port = self._runner.addresses[0][1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """It is away; what it knows stays."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    def put(self, collection: str, item: Object) -> Object:
        """Creates or replaces without HTTP."""
        key = self._key(item)
        known = self.objects.setdefault(collection, {})
        old = known.get(key)
        metadata = item.setdefault("metadata", {})
        metadata.setdefault("uid", old["metadata"]["uid"] if old else str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        self._changed(collection, "MODIFIED" if old else "ADDED", item)
        known[key] = item
        return item

    def add_pod(self, item: Object) -> Object:
        return self.put("/api/v1/pods", item)

    def remove(self, collection: str, key: str) -> Object:
        item = self.objects[collection].pop(key)
        self._changed(collection, "DELETED", item)
        return item

    def events(self) -> list[Object]:
        return list(self.objects.get("/api/v1/events", {}).values())

    def compact(self) -> None:
        """Forgets all history: watches from older versions are 410."""
        self.oldest = self.version = self.version + 1
        self.history.clear()
        self._wake()

    # ------------------------------------------------------------------------------------------------ inside

    @staticmethod
    def _key(item: Object) -> str:
        metadata = item["metadata"]
        return f"{metadata.get('namespace', '')}/{metadata['name']}"

    def _changed(self, collection: str, kind: str, item: Object) -> None:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, collection, kind, json.loads(json.dumps(item))))
        if len(self.history) > 2 * EVENTS_KEPT:
            del self.history[:-EVENTS_KEPT]
        self._wake()

    def _wake(self) -> None:
        for queue in self.watchers:
            queue.put_nowait(None)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.calls.append((request.method, request.path))
        try:
            if self.needs_token is not None and request.headers.get("Authorization") != f"Bearer {self.needs_token}":
                raise Refused(401, "Unauthorized", "Unauthorized")
            if request.query.get("watch") == "1":
                return await self._watch(request)
            if self.fail_next:
                raise self.fail_next.pop(0)
            return web.json_response(await self._answer(request), status=201 if request.method == "POST" else 200)
        except Refused as error:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": str(error),
                      "reason": error.reason, "code": error.status}  # fmt: skip
            return web.json_response(status, status=error.status)

    @staticmethod
    def _parts(path: str) -> tuple[str, str, str, str]:
        """Collection, namespace, name and subresource."""
        parts = path.strip("/").split("/")
        head = 2 if parts[0] == "api" else 3
        prefix, rest = "/" + "/".join(parts[:head]), parts[head:]
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        rest += [""] * (3 - len(rest))
        return f"{prefix}/{rest[0]}", namespace, rest[1], rest[2]

    async def _answer(self, request: web.Request) -> Object:
        collection, namespace, name, subresource = self._parts(request.path)
        known = self.objects.setdefault(collection, {})
        body = json.loads(await request.read() or b"null")
        if request.method == "POST" and collection.endswith("/tokenreviews"):
            return self._token_review(body)
        if request.method == "POST" and subresource == "binding":
            return self._bind(known, namespace, name, body)
        if request.method == "POST":
            metadata = body.setdefault("metadata", {})
            if namespace:
                metadata["namespace"] = namespace
            if "name" not in metadata:
                metadata["name"] = metadata.get("generateName", "") + uuid.uuid4().hex[:8]
            if self._key(body) in known:
                raise Refused(409, "AlreadyExists", f"{metadata['name']} already exists")
            return self.put(collection, body)
        if request.method == "GET" and not name:
            return self._list(request, collection, namespace)
        item = known.get(f"{namespace}/{name}")
        if item is None:
            raise Refused(404, "NotFound", f"{collection.rsplit('/')[-1]} {name!r} not found")
        if request.method == "GET":
            return item
        if request.method == "DELETE":
            return self.remove(collection, f"{namespace}/{name}")
        old_version = (body.get("metadata") or {}).get("resourceVersion")
        if old_version is not None and old_version != item["metadata"]["resourceVersion"]:
            raise Refused(409, "Conflict", "the object has been modified")
        if request.method == "PUT":
            body["metadata"] = item["metadata"] | body["metadata"]
            return self.put(collection, body)
        if request.method == "PATCH":
            if request.content_type not in ("application/merge-patch+json", "application/strategic-merge-patch+json"):
                raise Refused(415, "UnsupportedMediaType", request.content_type)
            return self.put(collection, _merged(copy.deepcopy(item), body))
        raise Refused(405, "MethodNotAllowed", request.method)

    def _bind(self, known: dict[str, Object], namespace: str, name: str, body: Object) -> Object:
        item = known.get(f"{namespace}/{name}")
        if item is None:
            raise Refused(404, "NotFound", f"pods {name!r} not found")
        wanted = (body.get("metadata") or {}).get("uid")
        if wanted and wanted != item["metadata"]["uid"]:
            raise Refused(409, "Conflict", f"the UID in the precondition ({wanted}) does not match")
        if item["metadata"].get("deletionTimestamp"):
            raise Refused(409, "Conflict", f"pod {name} is being deleted, cannot be assigned to a host")
        if item["spec"].get("nodeName"):
            raise Refused(409, "Conflict", f"pod {name} is already assigned to node {item['spec']['nodeName']!r}")
        item["spec"]["nodeName"] = body["target"]["name"]
        self.put("/api/v1/pods", item)
        return {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def _token_review(self, body: Object) -> Object:
        status = copy.deepcopy(self.tokens.get(body["spec"]["token"]) or {"authenticated": False, "error": "unknown"})
        asked = body["spec"].get("audiences")
        if asked and not set(asked) & set(status.get("audiences", asked)):
            status = {"authenticated": False, "error": f"token audiences do not match {asked}"}
        return {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status}

    @staticmethod
    def _selected(request: web.Request, namespace: str, item: Object) -> bool:
        metadata = item["metadata"]
        if namespace and metadata.get("namespace") != namespace:
            return False
        for term in filter(None, request.query.get("labelSelector", "").split(",")):
            label, _, value = term.partition("=")
            if metadata.get("labels", {}).get(label) != value:
                return False
        for term in filter(None, request.query.get("fieldSelector", "").split(",")):
            field, _, value = term.partition("=")
            found: Any = item
            for part in field.split("."):
                found = found.get(part, "") if isinstance(found, dict) else ""
            if found != value:
                return False
        return True

    def _list(self, request: web.Request, collection: str, namespace: str) -> Object:
        found = [item for key, item in sorted(self.objects.get(collection, {}).items())
                 if self._selected(request, namespace, item)]  # fmt: skip
        limit, begin = int(request.query.get("limit", "0")), 0
        version = self.version
        if request.query.get("continue"):
            version, begin = (int(part) for part in request.query["continue"].split(":"))
            if version < self.oldest:
                raise Refused(410, "Expired", "the provided continue parameter is too old")
        metadata: Object = {"resourceVersion": str(version)}
        if limit and begin + limit < len(found):
            metadata["continue"] = f"{version}:{begin + limit}"
            found = found[begin : begin + limit]
        else:
            found = found[begin:]
        return {"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": found}

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        collection, namespace, _, _ = self._parts(request.path)
        at = int(request.query["resourceVersion"])
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        queue: asyncio.Queue[None] = asyncio.Queue()
        self.watchers.add(queue)
        try:
            while True:
                if at < self.oldest:
                    error = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
                    await response.write(json.dumps({"type": "ERROR", "object": error}).encode() + b"\n")
                    return response
                news = self.history[bisect.bisect(self.history, at, key=lambda entry: entry[0]) :]
                for version, changed, kind, item in news:
                    at = version
                    if changed == collection and self._selected(request, namespace, item):
                        await response.write(json.dumps({"type": kind, "object": item}).encode() + b"\n")
                await queue.get()
        except (ConnectionError, asyncio.CancelledError):
            return response
        finally:
            self.watchers.discard(queue)


@asynccontextmanager
async def api_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[ApiServer]:
    server = ApiServer()
    await server.start(tls)
    try:
        yield server
    finally:
        await server.stop()
