"""The HTTP extender of kube-scheduler: filter, prioritize and bind, v1.

filter reserves all vGPUs of the pod in the controller, by its uid and for some seconds, in its memory alone; where that
works, every node will do, since vGPUs are reached over the network. prioritize prefers the nodes that hold them. bind
moves them to the chosen node if they can, and keeps them, stored, until the pod is gone. Whatever goes wrong, the pod
waits: kube-scheduler asks again, and the controller answers with what it has reserved already.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from orion_controller.api.pod_models import CANDIDATES_MOST, PodOutcome, PodWish
from orion_controller.kube_api import KubeApi, KubeError, path_of
from orion_k8s import asks
from orion_k8s.asks import Asks, BadAsk
from orion_k8s.scheduler.controller_client import ControllerClient, ControllerError

log = logging.getLogger("orion.scheduler")

BODY_MAX_BYTES = 64 << 20  # 5,000 whole nodes, where nodeCacheCapable is off
SCORE_MOST = 10
KNOWN_MOST = 20_000  # pods between filter and bind
Object = dict[str, Any]


class BadRequest(Exception):
    """It is not what kube-scheduler sends."""


@dataclass(frozen=True)
class Options:
    """Seconds: how long vGPUs are kept for a pod that may be bound, and for one that is being bound."""

    resource: str = asks.RESOURCE
    reserve_s: float = 60.0
    bind_s: float = 600.0
    cluster: str = ""  # this cluster's id; empty: the uid of its namespace kube-system


@dataclass
class Refusals:
    """Pods that found no room, by uid, for who tells them when there is some: namespace, name and since when."""

    pods: OrderedDict[str, tuple[str, str, float]] = field(default_factory=OrderedDict)

    def add(self, ask: Asks, now_s: float) -> None:
        self.pods.pop(ask.uid, None)
        self.pods[ask.uid] = (ask.namespace, ask.name, now_s)
        while len(self.pods) > KNOWN_MOST:
            self.pods.popitem(last=False)

    def discard(self, uid: str) -> None:
        self.pods.pop(uid, None)


class Counts:
    """What was done since the start, for /metrics."""

    def __init__(self) -> None:
        self.calls: dict[tuple[str, str], int] = {}

    def add(self, verb: str, result: str) -> None:
        self.calls[verb, result] = self.calls.get((verb, result), 0) + 1

    def text(self) -> str:
        lines = ["# HELP orion_scheduler_calls_total Calls of the extender and the webhook, by what came of them.",
                 "# TYPE orion_scheduler_calls_total counter"]  # fmt: skip
        lines += [
            f'orion_scheduler_calls_total{{verb="{verb}",result="{result}"}} {count}'
            for (verb, result), count in sorted(self.calls.items())
        ]
        return "\n".join(lines) + "\n"


def wish_of(ask: Asks, ttl_s: float, cluster: str, *, node: str = "", candidates: list[str] | None = None,
            check: bool = False, provisional: bool = False) -> PodWish:  # fmt: skip
    """What the controller is asked for a pod."""
    return PodWish(
        uid=ask.uid, namespace=ask.namespace or "default", name=ask.name or ask.uid, containers=list(ask.containers),
        rule=ask.rule, cross_node=ask.cross_node, node=node, candidates=candidates or [], ttl_s=ttl_s, check=check,
        provisional=provisional, cluster=cluster,
    )  # fmt: skip


def _case_free(body: Mapping[str, Any], *names: str) -> list[Any]:
    """Values by name: Go writes fields without JSON tags with capitals, and reads them in any case."""
    lowered = {key.lower(): value for key, value in body.items() if isinstance(key, str)}
    return [lowered.get(name.lower()) for name in names]


class Extender:
    """Belongs to one event loop."""

    def __init__(self, controller: ControllerClient, api: KubeApi, options: Options | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:  # fmt: skip
        self.controller = controller
        self.api = api
        self.options = options or Options()
        self.refusals = Refusals()
        self.counts = Counts()
        self._cluster = self.options.cluster
        self._learning = asyncio.Lock()
        self.servers: frozenset[str] | None = None  # names of the pool's nodes; None: not known yet
        self._clock = clock
        self._reserved: OrderedDict[str, tuple[Asks, PodOutcome]] = OrderedDict()

    # ------------------------------------------------------------------------------------------------ HTTP

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/filter", self._filter), web.post("/prioritize", self._prioritize),
                web.post("/bind", self._bind)]  # fmt: skip

    async def _filter(self, request: web.Request) -> web.Response:
        try:
            pod, nodes = await self._arguments(request)
        except BadRequest as error:
            self.counts.add("filter", "bad_request")
            return _json({"Error": str(error)}, 400)
        return _json(await self.filter(pod, nodes))

    async def _prioritize(self, request: web.Request) -> web.Response:
        try:
            pod, nodes = await self._arguments(request)
        except BadRequest as error:
            self.counts.add("prioritize", "bad_request")
            return _json({"Error": str(error)}, 400)
        return _json(self.prioritize(pod, _names(nodes)))

    async def _bind(self, request: web.Request) -> web.Response:
        body = None
        try:
            body = await _body(request)
            name, namespace, uid, node = _case_free(body, "PodName", "PodNamespace", "PodUID", "Node")
            if not all(isinstance(value, str) and value for value in (name, namespace, uid, node)):
                raise BadRequest("ExtenderBindingArgs: PodName, PodNamespace, PodUID and Node are names")
        except BadRequest as error:
            self.counts.add("bind", "bad_request")
            return _json({"Error": str(error)}, 400)
        problem = await self.bind(namespace, name, uid, node)
        self.counts.add("bind", "refused" if problem else "bound")
        if problem:
            log.warning("pod %s/%s is not bound to %s: %s", namespace, name, node, problem)
        return _json({"Error": problem})

    async def _arguments(self, request: web.Request) -> tuple[Object, list[str] | Object]:
        """The pod, and node names or (without nodeCacheCapable) the list of nodes as it came."""
        raw = await _read(request)
        try:  # as kube-scheduler writes it: names are checked while they are read, not one by one afterwards
            quick = _arguments.decode(raw)
            return quick.Pod, quick.NodeNames
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        pod, names, nodes = _case_free(_object(raw), "Pod", "NodeNames", "Nodes")
        if not isinstance(pod, dict):
            raise BadRequest("ExtenderArgs: Pod is missing")
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return pod, names
        if isinstance(nodes, dict):
            items = nodes.get("items")
            named = isinstance(items, list) and all(
                isinstance(node, dict) and isinstance(asks.metadata(node).get("name"), str) for node in items
            )
            if named or items is None:
                return pod, nodes
        raise BadRequest("ExtenderArgs: NodeNames (or Nodes, where nodeCacheCapable is off) is missing")

    # ------------------------------------------------------------------------------------------------ verbs

    async def filter(self, pod: Object, nodes: list[str] | Object) -> Object:
        """An ExtenderFilterResult. Error: asked again soon, with kube-scheduler's pauses; FailedNodes: no room."""
        names = _names(nodes)
        try:
            ask = asks.read(pod, self.options.resource)
        except BadAsk as error:
            self.counts.add("filter", "bad_pod")
            return _none(names, f"orion: {error}")
        if not ask.containers:
            self.counts.add("filter", "not_asked")
            return _all(nodes)
        if not ask.uid:
            self.counts.add("filter", "bad_pod")
            return _none(names, "orion: the pod has no uid")
        if not names:
            return _all(nodes)
        try:
            cluster = await self.cluster()
            outcome = await self.controller.reserve(
                wish_of(ask, self.options.reserve_s, cluster, candidates=self._candidates(ask, names), provisional=True)
            )
        except KubeError as error:
            self.counts.add("filter", "no_api_server")
            return {"Error": f"orion: the pod waits, since it is not known which cluster this is: {error}"}
        except ControllerError as error:
            self.counts.add("filter", "no_controller")
            return {"Error": f"orion: the pod waits, since the controller does not help: {error}"}
        self.counts.add("filter", outcome.refusal or "reserved")
        if outcome.refusal == "not_ready":
            return {"Error": f"orion: the pod waits: {outcome.message}"}
        if outcome.refusal:
            self._reserved.pop(ask.uid, None)
            if outcome.refusal == "no_room":
                self.refusals.add(ask, self._clock())
            return _none(names, f"orion: {outcome.message}")
        self.refusals.discard(ask.uid)
        self._remember(ask, outcome)
        return _all(nodes)

    async def cluster(self) -> str:
        """Which cluster this is, as its reservations say it: one controller may serve several. KubeError."""
        if not self._cluster:
            async with self._learning:
                self._cluster = self._cluster or await self.api.cluster_id()
        return self._cluster

    def _candidates(self, ask: Asks, names: list[str]) -> list[str]:
        """Those with a server. The rules binpack and spread look at the whole pool, wherever the pod will run."""
        if ask.rule not in ("", "local-first"):
            return []
        if self.servers is None:
            return names[:CANDIDATES_MOST]
        found = self.servers.intersection(names)
        if len(found) == len(self.servers):
            return []  # near any server is near none in particular: that need not be sent, nor looked at
        return sorted(found)[:CANDIDATES_MOST]

    def prioritize(self, pod: Object, names: list[str]) -> list[Object]:
        """A HostPriorityList: SCORE_MOST where all of the pod's vGPUs are, in proportion where some are. kube-scheduler
        takes 0 for nodes that are not named, so only those with vGPUs are."""
        uid = asks.metadata(pod).get("uid")
        known = self._reserved.get(uid) if isinstance(uid, str) else None
        on: dict[str, int] = {}
        for part in known[1].parts if known else ():
            for node in part.nodes:
                on[node] = on.get(node, 0) + 1
        total = sum(on.values())
        here = on.keys() & set(names) if on else set()
        self.counts.add("prioritize", "local" if here else "remote")
        return [{"Host": name, "Score": SCORE_MOST * on[name] // total} for name in sorted(here)]

    async def bind(self, namespace: str, name: str, uid: str, node: str) -> str:
        """Binds a pod whose vGPUs are reserved; empty, or why not. Asked twice for the same node it is done once."""
        known = self._reserved.get(uid)
        try:
            ask = known[0] if known else await self._ask_of(namespace, name, uid)
        except (KubeError, BadAsk) as error:
            return f"orion: {error}"
        if ask is None:
            await self._give_back(uid)
            return f"orion: pod {namespace}/{name} is gone"
        if ask.containers:
            try:
                cluster = await self.cluster()
                outcome = await self.controller.reserve(wish_of(ask, self.options.bind_s, cluster, node=node))
            except KubeError as error:
                return f"orion: {error}"
            except ControllerError as error:
                return f"orion: the pod waits, since the controller does not help: {error}"
            if outcome.refusal:
                if outcome.refusal == "no_room":
                    self.refusals.add(ask, self._clock())
                return f"orion: {outcome.message}"
        try:
            await self.api.bind_pod(namespace, name, uid, node)
        except KubeError as error:
            return await self._not_bound(error, namespace, name, uid, node)
        self._reserved.pop(uid, None)
        return ""

    async def _ask_of(self, namespace: str, name: str, uid: str) -> Asks | None:
        """None: there is no such pod any more. Another process has answered the filter, or this one has restarted."""
        try:
            pod = await self.api.get(path_of("pods", namespace, name))
        except KubeError as error:
            if error.status == 404:
                return None
            raise
        ask = asks.read(pod, self.options.resource)
        return ask if ask.uid == uid and not ask.is_over else None

    async def _not_bound(self, refusal: KubeError, namespace: str, name: str, uid: str, node: str) -> str:
        """What a failed binding means. While that is not known the reservation stays: the pod may be bound after all,
        and the reconciler sees it; nothing is given to another pod meanwhile."""
        if refusal.status not in (404, 409):
            return f"orion: {refusal}"
        try:
            ask = await self._ask_of(namespace, name, uid)
        except (KubeError, BadAsk) as error:
            return f"orion: {refusal}; {error}"
        if ask is None:
            await self._give_back(uid)
            return f"orion: pod {namespace}/{name} is gone"
        self._reserved.pop(uid, None)
        if ask.node == node:
            return ""  # the answer to the first try was lost
        if ask.node:
            return f"orion: the pod runs on {ask.node} already"
        return f"orion: {refusal}"

    async def _give_back(self, uid: str) -> None:
        self._reserved.pop(uid, None)
        try:
            await self.controller.release([uid], "its pod was gone before it was bound")
        except ControllerError as error:
            log.warning("the vGPUs of pod %s are kept until they expire: %s", uid, error)

    def _remember(self, ask: Asks, outcome: PodOutcome) -> None:
        self._reserved.pop(ask.uid, None)
        self._reserved[ask.uid] = (ask, outcome)
        while len(self._reserved) > KNOWN_MOST:
            self._reserved.popitem(last=False)


# ---------------------------------------------------------------------------------------------------- shapes


def _names(nodes: list[str] | Object) -> list[str]:
    if isinstance(nodes, list):
        return nodes
    return [node["metadata"]["name"] for node in nodes.get("items") or []]


def _all(nodes: list[str] | Object) -> Object:
    return {"NodeNames": nodes} if isinstance(nodes, list) else {"Nodes": nodes}


def _none(names: list[str], reason: str) -> Object:
    """Nowhere, and taking pods off a node would not help. Old kube-schedulers know FailedNodes only."""
    failed = dict.fromkeys(names, reason)
    return {"NodeNames": [], "FailedNodes": failed, "FailedAndUnresolvableNodes": failed}


class _Arguments(msgspec.Struct):
    """ExtenderArgs with nodeCacheCapable, named as Go names them."""

    Pod: Object
    NodeNames: list[str]


_arguments = msgspec.json.Decoder(_Arguments)


async def _read(request: web.Request) -> bytes:
    parts, size = [], 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > BODY_MAX_BYTES:
            raise BadRequest(f"a request of more than {BODY_MAX_BYTES} bytes")
        parts.append(chunk)
    return b"".join(parts)


async def _body(request: web.Request) -> Object:
    return _object(await _read(request))


def _object(raw: bytes) -> Object:
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the request is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRequest("the request is no JSON object")
    return value


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")
