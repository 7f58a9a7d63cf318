"""A stand-in for the controller: the portal's files and the routes of /api/v1 that it uses, over a made-up pool.

The shapes are those of orion_controller.api.models, encoded with msgspec, so that they cannot drift. Values move with
time; changes change the state. `python tests/portal/server.py --port 15500` is also for working on the portal.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, TypeVar

import msgspec
from aiohttp import web

from orion_controller.api import models
from orion_controller.portal import DIST

# What the controller answers with each file: under these the portal must work.
CSP = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
PASSWORDS = {"admin": "operator-password", "guest": "viewer-password"}
ROLES: dict[str, models.Role] = {"admin": "operator", "guest": "viewer"}
COOKIE = "orion_token"
STEP_S = 5.0
S = TypeVar("S", bound=msgspec.Struct)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PROGRAMS = ["python train.py", "python serve.py", "torchrun", "tritonserver", "nbody", "jupyter-lab", "ffmpeg"]
NAMES = ["vision", "speech", "ranking", "search", "lab", "batch", "notebooks", "render", "forecast", "genomics"]
OWNERS = ["ml/trainer-0", "1000@ws-014", "serving/embed-7c9", "1002@login-02", "research/sweep-88"]


class Refused(Exception):
    def __init__(self, status: int, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.error = models.ApiError(code=code, message=message, hint=hint)


class Pool:
    """What the stand-in knows. Deterministic for a seed, apart from time."""

    def __init__(self, nodes: int, gpus_per_node: int, seed: int = 7, empty: bool = False) -> None:
        self.random = random.Random(seed)
        self.began_s = time.time() - 3 * 86400
        self.nodes: dict[str, models.Node] = {}
        self.gpus: list[models.Gpu] = []
        self.vgpus: list[models.Vgpu] = []
        self.groups: dict[str, models.Group] = {}
        self.sessions: dict[str, models.Session] = {}
        self.queue: list[models.Waiting] = []
        self.limits: dict[str, models.Limits] = {}
        self.events: list[models.Event] = []
        self.settled_s, self.settled_events = 0.0, 0
        if not empty:
            self._make(nodes, gpus_per_node)

    def _make(self, nodes: int, gpus_per_node: int) -> None:
        rng = self.random
        kinds = [("NVIDIA A100-SXM4-80GB", 81920), ("NVIDIA L40S", 46068), ("NVIDIA H100 80GB HBM3", 81559)]
        for i in range(nodes):
            state: models.NodeState = "ready"
            if nodes > 3 and i == 2:
                state = "draining"
            elif nodes > 5 and i == 5:
                state = "lost"
            kind, total = kinds[i % len(kinds)]
            name = f"gpu-{i + 1:0{max(2, len(str(nodes)))}d}"
            self.nodes[name] = models.Node(
                name=name,
                address=f"10.0.{i // 250}.{i % 250 + 1}:9960",
                state=state,
                version="0.1.0",
                driver="580.95",
                device_kind=kind,
                gpus=gpus_per_node,
                vgpus=0,
                sessions=0,
                memory_mib=0,
                memory_given_mib=0,
                memory_used_mib=0,
                utilization_percent=None,
                last_heartbeat_s=time.time() - (420 if state == "lost" else 0),
                since_s=self.began_s + i,
            )
            for ordinal in range(gpus_per_node):
                self.gpus.append(
                    models.Gpu(
                        node=name,
                        ordinal=ordinal,
                        uuid=f"GPU-{rng.getrandbits(64):016x}",
                        name=kind,
                        total_mib=total,
                        capacity_mib=total - 1024,
                        given_mib=0,
                        used_mib=0,
                        ratio_given_percent=0,
                        ratio_percent=100,
                        vgpus=0,
                        max_vgpus=8,
                        power_w=90,
                        health="Xid 48: double-bit ECC error" if (i, ordinal) == (1, 3) else "",
                    )
                )
        usable = [gpu for gpu in self.gpus if self.nodes[gpu.node].state != "lost"]
        for i in range(max(1, len(usable) // 3)):
            self._give(i, rng.sample(usable, min(len(usable), rng.choice([1, 1, 2, 2, 4, 8]))))
        for i in range(3):
            self.queue.append(
                models.Waiting(
                    position=i + 1,
                    group=f"{NAMES[i]}-sweep",
                    vgpus=8,
                    gmem_mib=40960,
                    ratio_percent=100,
                    owner=OWNERS[i],
                    program=PROGRAMS[i],
                    since_s=time.time() - 340 + 60 * i,
                    reason="8 whole GPUs are not free on any choice of nodes",
                )
            )
        self.limits["*"] = models.Limits(group="*", vgpus=64, gmem_mib=None, ratio_percent=1600)
        self.limits["notebooks-1"] = models.Limits(group="notebooks-1", vgpus=8, gmem_mib=65536, ratio_percent=200)
        self.note("info", "controller.started", "controller", "has started", "", 7200)
        for i, node in enumerate(self.nodes.values()):
            if i < 40:
                self.note("info", "node.registered", node.name, f"has registered with {node.gpus} GPUs", "", 7000 - i)
            if node.state == "lost":
                self.note("error", "node.lost", node.name, "has not been heard of for 5 s", "", 420)
            if node.state == "draining":
                self.note("info", "node.draining", node.name, "is draining", "admin", 900)
        for group in list(self.groups.values())[:25]:
            text = f"got {group.vgpus} x {group.gmem_mib} MiB at {group.ratio_percent} %"
            self.note("info", "group.allocated", group.group, text, "", 600)
        self.note("warning", "queue.waiting", self.queue[0].group, "waits: no 8 whole GPUs are free", "", 340)

    def _give(self, i: int, gpus: list[models.Gpu]) -> None:
        rng = self.random
        gmem, ratio = rng.choice([2048, 4096, 8192, 16384, 24576]), rng.choice([10, 15, 20, 25, 50])
        gpus = [
            gpu
            for gpu in gpus
            if gpu.given_mib + gmem <= gpu.capacity_mib
            and gpu.ratio_given_percent + ratio <= 100
            and gpu.vgpus < gpu.max_vgpus
        ]
        if not gpus:
            return
        state: models.GroupState = "reserved" if i % 17 == 3 else "idle" if i % 23 == 7 else "active"
        group = models.Group(
            id=f"{rng.getrandbits(48):012x}",
            group=f"{NAMES[i % len(NAMES)]}-{i // len(NAMES) + 1}",
            state=state,
            shared=i % 5 == 0,
            reserved=i % 6 == 0,
            vgpus=len(gpus),
            nodes=sorted({gpu.node for gpu in gpus}),
            gmem_mib=gmem,
            ratio_percent=ratio,
            policy="elastic" if i % 3 else "hard",
            used_mib=0,
            achieved_percent=0.0,
            sessions=0,
            program=PROGRAMS[i % len(PROGRAMS)],
            owner=OWNERS[i % len(OWNERS)],
            since_s=time.time() - rng.uniform(60, 50000),
            expires_s=time.time() + 300 if state == "reserved" else None,
        )
        self.groups[group.id] = group
        for index, gpu in enumerate(gpus):
            used = int(gmem * rng.uniform(0.2, 0.97)) if state == "active" else 0
            self.vgpus.append(
                models.Vgpu(
                    id=f"{group.id}/{index}",
                    vgpu=f"v{len(self.vgpus)}" if state == "active" else "",
                    node=gpu.node,
                    ordinal=gpu.ordinal,
                    group=group.id,
                    quota_mib=gmem,
                    used_mib=used,
                    ratio_percent=ratio,
                    policy=group.policy,
                    achieved_percent=0.0,
                    throttled_ms=rng.randrange(0, 400000),
                    launches=rng.randrange(100, 5_000_000),
                    sessions=1 if state == "active" else 0,
                )
            )
            gpu.given_mib += gmem
            gpu.ratio_given_percent += ratio
            gpu.vgpus += 1
        for node in group.nodes if state == "active" else []:
            session = models.Session(
                id=f"{node}.{rng.getrandbits(32):08x}",
                node=node,
                group=group.id,
                group_name=group.group,
                pid=rng.randrange(900, 400000),
                uid=1000 + i % 5,
                host=OWNERS[i % len(OWNERS)].split("@")[-1].split("/")[-1],
                program=group.program,
                transport="shm" if i % 7 == 0 else "tcp",
                since_s=group.since_s,
            )
            self.sessions[session.id] = session

    def note(
        self,
        level: Literal["info", "warning", "error"],
        kind: str,
        subject: str,
        message: str,
        user: str,
        ago_s: float = 0,
    ) -> None:
        self.events.append(
            models.Event(
                id=len(self.events) + 1,
                at_s=time.time() - ago_s,
                level=level,
                kind=kind,
                subject=subject,
                message=message,
                user=user,
            )
        )

    def settle(self) -> None:
        """Brings sums and what moves with time up to now: after a change, and about as often as a server reports."""
        now = time.time()
        if now - self.settled_s < (1 if len(self.gpus) < 1000 else 30) and self.settled_events == len(self.events):
            return
        self.settled_s, self.settled_events = now, len(self.events)
        by_node: dict[str, list[models.Gpu]] = {name: [] for name in self.nodes}
        used: dict[tuple[str, int], int] = {}
        of_group: dict[str, list[models.Vgpu]] = {id: [] for id in self.groups}
        for i, vgpu in enumerate(self.vgpus):
            busy = vgpu.sessions > 0
            wave = 0.9 + 0.1 * math.sin(now / 7 + i)
            vgpu.achieved_percent = round(vgpu.ratio_percent * wave, 1) if busy else 0.0
            used[vgpu.node, vgpu.ordinal] = used.get((vgpu.node, vgpu.ordinal), 0) + vgpu.used_mib
            of_group[vgpu.group].append(vgpu)
        for i, gpu in enumerate(self.gpus):
            lost = self.nodes[gpu.node].state == "lost"
            gpu.used_mib = used.get((gpu.node, gpu.ordinal), 0)
            wave = 0.85 + 0.15 * math.sin(now / 11 + i)
            gpu.utilization_percent = None if lost else min(100, int(gpu.ratio_given_percent * wave))
            gpu.temperature_c = None if lost else 34 + int(0.5 * (gpu.utilization_percent or 0)) + (7 if i == 4 else 0)
            gpu.power_w = None if lost else 80 + 3 * (gpu.utilization_percent or 0)
            by_node[gpu.node].append(gpu)
        for name, node in self.nodes.items():
            gpus = by_node[name]
            node.vgpus = sum(gpu.vgpus for gpu in gpus)
            node.memory_mib = sum(gpu.capacity_mib for gpu in gpus)
            node.memory_given_mib = sum(gpu.given_mib for gpu in gpus)
            node.memory_used_mib = sum(gpu.used_mib for gpu in gpus)
            known = [gpu.utilization_percent for gpu in gpus if gpu.utilization_percent is not None]
            node.utilization_percent = sum(known) / len(known) if known else None
            node.sessions = 0
            if node.state != "lost":
                node.last_heartbeat_s = now - 0.4
        for session in self.sessions.values():
            self.nodes[session.node].sessions += 1
        for id, group in self.groups.items():
            own = of_group[id]
            group.used_mib = sum(vgpu.used_mib for vgpu in own)
            group.achieved_percent = sum(vgpu.achieved_percent for vgpu in own) / max(1, len(own))
            group.sessions = 0
        for session in self.sessions.values():
            self.groups[session.group].sessions += 1

    def summary(self) -> models.Summary:
        states = [node.state for node in self.nodes.values()]
        known = [gpu.utilization_percent for gpu in self.gpus if gpu.utilization_percent is not None]
        return models.Summary(
            nodes=len(states),
            nodes_ready=states.count("ready"),
            nodes_draining=states.count("draining"),
            nodes_lost=states.count("lost"),
            gpus=len(self.gpus),
            vgpus=len(self.vgpus),
            vgpus_free=sum(max(0, gpu.max_vgpus - gpu.vgpus) for gpu in self.gpus),
            memory_mib=sum(gpu.capacity_mib for gpu in self.gpus),
            memory_given_mib=sum(gpu.given_mib for gpu in self.gpus),
            memory_used_mib=sum(gpu.used_mib for gpu in self.gpus),
            ratio_given_percent=sum(gpu.ratio_given_percent for gpu in self.gpus),
            ratio_percent=sum(gpu.ratio_percent for gpu in self.gpus),
            utilization_percent=sum(known) / len(known) if known else None,
            sessions=len(self.sessions),
            groups=len(self.groups),
            queue=len(self.queue),
            controller="controller-0",
            leader=True,
            version="0.1.0",
            since_s=self.began_s,
        )

    def history(self, scope: str) -> models.History:
        kind, _, rest = scope.partition("/")
        now = math.floor(time.time() / STEP_S) * STEP_S
        steps = [now - 3600 + STEP_S * i for i in range(720)]

        def line(name: str, unit: str, top: float, level: float, gap: bool = False) -> models.Series:
            phase = int.from_bytes(hashlib.sha256((scope + name).encode()).digest()[:2], "big")
            values: list[float | None] = [
                round(
                    top
                    * min(1.0, max(0.0, level + 0.13 * math.sin(t / 520 + phase) + 0.05 * math.sin(t / 171 + phase))),
                    1,
                )
                for t in steps
            ]
            if gap:
                values[200:224] = [None] * 24
            return models.Series(name=name, unit=unit, values=values)

        if kind == "group":
            group = self.find_group(rest)
            series = [
                line("achieved", "%", group.ratio_percent, 0.8),
                line("memory_used", "MiB", float(group.gmem_mib * group.vgpus), 0.6),
            ]
        else:
            gpus = self.gpus
            if kind == "node":
                gpus = [gpu for gpu in gpus if gpu.node == rest]
            elif kind == "gpu":
                gpus = [gpu for gpu in gpus if f"{gpu.node}/{gpu.ordinal}" == rest]
            if not gpus and kind != "pool":
                raise Refused(404, "not_found", f"There is nothing named {scope}.")
            given = float(sum(gpu.given_mib for gpu in gpus))
            series = [
                line("utilization", "%", 100, 0.5, gap=True),
                line("memory_used", "MiB", given, 0.5),
            ]
            if kind == "pool":
                series += [
                    line("memory_given", "MiB", given, 0.8),
                    line("vgpus", "", float(len(self.vgpus)), 0.8),
                    line("sessions", "", float(len(self.sessions)), 0.7),
                    line("queue", "", 12.0, 0.2),
                ]
        if not self.nodes:
            series = []
        return models.History(scope=scope, start_s=steps[0], step_s=STEP_S, series=series)

    def find_group(self, id: str) -> models.Group:
        if id not in self.groups:
            raise Refused(404, "not_found", f"There is no group {id}.", "It may have ended; see the events.")
        return self.groups[id]

    def patch_group(self, id: str, change: models.PatchGroup, user: str) -> models.Group:
        group = self.find_group(id)
        own = [vgpu for vgpu in self.vgpus if vgpu.group == id]
        if change.gmem_mib is not None and change.shrink == "refuse":
            most = max(vgpu.used_mib for vgpu in own)
            if most > change.gmem_mib:
                message = f"A program uses {most} MiB, which is more than {change.gmem_mib} MiB."
                raise Refused(
                    409, "below_usage", message, "Ask for more, or let new allocations fail until usage falls."
                )
        gpus = {(gpu.node, gpu.ordinal): gpu for gpu in self.gpus}
        for vgpu in own:
            gpu = gpus[vgpu.node, vgpu.ordinal]
            if change.gmem_mib is not None:
                gpu.given_mib += change.gmem_mib - vgpu.quota_mib
                vgpu.quota_mib = group.gmem_mib = change.gmem_mib
            if change.ratio_percent is not None:
                gpu.ratio_given_percent += change.ratio_percent - vgpu.ratio_percent
                vgpu.ratio_percent = group.ratio_percent = change.ratio_percent
            vgpu.policy = group.policy = change.policy or group.policy
        text = f"is now {group.gmem_mib} MiB, {group.ratio_percent} %, {group.policy}"
        self.note("info", "group.resized", group.group, text, user)
        return group

    def end_group(self, id: str, user: str) -> None:
        group = self.find_group(id)
        gpus = {(gpu.node, gpu.ordinal): gpu for gpu in self.gpus}
        for vgpu in [vgpu for vgpu in self.vgpus if vgpu.group == id]:
            gpu = gpus[vgpu.node, vgpu.ordinal]
            gpu.given_mib -= vgpu.quota_mib
            gpu.ratio_given_percent -= vgpu.ratio_percent
            gpu.vgpus -= 1
            self.vgpus.remove(vgpu)
        self.sessions = {key: one for key, one in self.sessions.items() if one.group != id}
        del self.groups[id]
        self.note("info", "group.ended", group.group, "was ended", user)

    def end_session(self, id: str, user: str) -> None:
        session = self.sessions.pop(id, None)
        if session is None:
            raise Refused(404, "not_found", f"There is no task {id}.", "It may have ended by itself.")
        for vgpu in self.vgpus:
            if vgpu.group == session.group and vgpu.node == session.node:
                vgpu.sessions = vgpu.used_mib = 0
        self.note("info", "session.ended", session.id, f"{session.program} on {session.node} was ended", user)

    def set_draining(self, name: str, draining: bool, user: str) -> models.Node:
        node = self.nodes.get(name)
        if node is None:
            raise Refused(404, "not_found", f"There is no node {name}.")
        node.state = "draining" if draining else "ready"
        self.note("info", f"node.{node.state}", name, f"is {node.state}", user)
        return node


def page_of(items: Iterable[S], query: Any) -> dict[str, Any]:
    """Searches (q), filters, sorts (-FIELD: descending) and pages (limit, offset) as the API does."""
    found = list(items)
    for name in ("node", "group", "state"):
        if wanted := query.get(name):
            field = "level" if name == "state" and found and hasattr(found[0], "level") else name
            found = [item for item in found if getattr(item, field, None) == wanted]
    if q := query.get("q", "").lower():
        texts = (" ".join(str(value) for value in msgspec.to_builtins(item).values()).lower() for item in found)
        found = [item for item, text in zip(found, texts) if q in text]
    if sort := query.get("sort", ""):
        field = sort.lstrip("-")
        if found and not hasattr(found[0], field):
            raise Refused(400, "bad_sort", f"{field} is no field of what is listed.")
        found.sort(
            key=lambda item: (
                (value := getattr(item, field)) is not None,
                value if value is not None else 0,
                getattr(item, "ordinal", 0),
            ),
            reverse=sort.startswith("-"),
        )
    offset, limit = int(query.get("offset", 0)), int(query.get("limit", 100))
    return {"items": found[offset : offset + limit], "total": len(found)}


def answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def token_of(user: str) -> str:
    # The same after a restart, as the controller's tokens are, which it stores.
    return f"{user}.{hmac.new(b'stand-in', user.encode(), 'sha256').hexdigest()}"


def user_of(request: web.Request) -> str:
    token = request.cookies.get(COOKIE, "")
    user = token.partition(".")[0]
    if user not in ROLES or not hmac.compare_digest(token, token_of(user)):
        raise Refused(401, "unauthorized", "You are not logged in.", "Log in.")
    return user


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    if not request.path.startswith("/api/"):
        return await handler(request)
    try:
        if request.path != "/api/v1/login":
            user = user_of(request)
            request["user"] = user
            if request.method != "GET" and request.path != "/api/v1/logout" and ROLES[user] != "operator":
                raise Refused(403, "forbidden", "A viewer may not change anything.", "Log in as an operator.")
        return await handler(request)
    except Refused as refused:
        return answer(refused.error, refused.status)
    except msgspec.ValidationError as error:
        return answer(models.ApiError(code="bad_request", message=str(error)), 400)


async def with_csp(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["Content-Security-Policy"] = CSP


async def index(_: web.Request) -> web.StreamResponse:
    return web.FileResponse(DIST / "index.html")


def make_app(pool: Pool) -> web.Application:
    app = web.Application(middlewares=[guard])
    app.on_response_prepare.append(with_csp)
    routes = web.RouteTableDef()
    api = "/api/v1"

    @routes.post(f"{api}/login")
    async def login(request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read(), type=models.Login)
        if not hmac.compare_digest(PASSWORDS.get(body.user, "").encode() or b"\0", body.password.encode()):
            raise Refused(401, "wrong_password", "User or password is wrong.", "Capital letters matter.")
        pool.note("info", "user.login", body.user, "has logged in from 127.0.0.1", body.user)
        role, token = ROLES[body.user], token_of(body.user)
        response = answer(models.LoggedIn(user=body.user, role=role, token=token, expires_s=time.time() + 3600))
        response.set_cookie(COOKIE, token, httponly=True, samesite="Strict", path="/")
        return response

    @routes.post(f"{api}/logout")
    async def logout(_: web.Request) -> web.StreamResponse:
        response = web.Response(status=204)
        response.del_cookie(COOKIE, path="/")
        return response

    @routes.get(f"{api}/me")
    async def me(request: web.Request) -> web.StreamResponse:
        return answer(models.Me(user=request["user"], role=ROLES[request["user"]]))

    @routes.get(f"{api}/summary")
    async def summary(_: web.Request) -> web.StreamResponse:
        pool.settle()
        return answer(pool.summary())

    lists: dict[str, Callable[[], Iterable[msgspec.Struct]]] = {
        "nodes": lambda: pool.nodes.values(),
        "gpus": lambda: pool.gpus,
        "vgpus": lambda: pool.vgpus,
        "groups": lambda: pool.groups.values(),
        "sessions": lambda: pool.sessions.values(),
        "queue": lambda: pool.queue,
        "limits": lambda: pool.limits.values(),
        "events": lambda: pool.events,
        "audit": lambda: (event for event in pool.events if event.user),
    }

    @routes.get(api + "/{list:" + "|".join(lists) + "}")
    async def listing(request: web.Request) -> web.StreamResponse:
        pool.settle()
        return answer(page_of(lists[request.match_info["list"]](), request.query))

    @routes.get(api + "/nodes/{name}")
    async def node(request: web.Request) -> web.StreamResponse:
        pool.settle()
        name = request.match_info["name"]
        if name not in pool.nodes:
            raise Refused(
                404, "not_found", f"There is no node {name}.", "Nodes register by themselves when they start."
            )
        return answer(pool.nodes[name])

    @routes.patch(api + "/nodes/{name}")
    async def patch_node(request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read(), type=models.PatchNode)
        return answer(pool.set_draining(request.match_info["name"], body.draining, request["user"]))

    @routes.get(api + "/groups/{id}")
    async def group(request: web.Request) -> web.StreamResponse:
        pool.settle()
        return answer(pool.find_group(request.match_info["id"]))

    @routes.patch(api + "/groups/{id}")
    async def patch_group(request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read(), type=models.PatchGroup)
        return answer(pool.patch_group(request.match_info["id"], body, request["user"]))

    @routes.delete(api + "/groups/{id}")
    async def end_group(request: web.Request) -> web.StreamResponse:
        pool.end_group(request.match_info["id"], request["user"])
        return web.Response(status=204)

    @routes.delete(api + "/sessions/{id}")
    async def end_session(request: web.Request) -> web.StreamResponse:
        pool.end_session(request.match_info["id"], request["user"])
        return web.Response(status=204)

    @routes.put(api + "/limits/{group}")
    async def put_limits(request: web.Request) -> web.StreamResponse:
        body, name = msgspec.json.decode(await request.read(), type=models.LimitsBody), request.match_info["group"]
        pool.limits[name] = models.Limits(group=name, **msgspec.structs.asdict(body))
        pool.note("info", "limits.set", name, "limits are set", request["user"])
        return answer(pool.limits[name])

    @routes.delete(api + "/limits/{group}")
    async def delete_limits(request: web.Request) -> web.StreamResponse:
        if pool.limits.pop(request.match_info["group"], None) is None:
            raise Refused(404, "not_found", "This group has no limits.")
        return web.Response(status=204)

    @routes.get(f"{api}/history")
    async def history(request: web.Request) -> web.StreamResponse:
        scope = request.query.get("scope", "pool")
        if not re.match(r"(pool$|node/|gpu/|group/)", scope):
            raise Refused(400, "bad_scope", f"{scope} is no scope.")
        return answer(pool.history(scope))

    app.add_routes(routes)
    app.router.add_get("/", index)
    app.router.add_static("/", DIST)
    return app


async def serve(pool: Pool, port: int) -> None:
    runner = web.AppRunner(make_app(pool), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=14)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--empty", action="store_true", help="a pool to which nobody has come yet")
    arguments = parser.parse_args()
    asyncio.run(serve(Pool(arguments.nodes, arguments.gpus, empty=arguments.empty), arguments.port))


if __name__ == "__main__":
    main()
