"""The routes of /api/v1 and of the controller itself."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta

from orion_controller.api import auth, lists, models, pod_models
from orion_controller.api.auth import Refusal
from orion_controller.api.lists import Kind, Page
from orion_controller.api.routes import Call, Route, clean, is_name
from orion_controller.backend import ServiceError
from orion_controller.metrics import CONTENT_TYPE
from orion_controller.store import AccountError

log = logging.getLogger("orion.http")
API = "/api/v1"
REPORT_TIMEOUT_S = 60.0
PODS_MAX_BYTES = 4 << 20
T = TypeVar("T")
# Of a change that asks a node.
_ON_NODES = (404, 409, 504)


class Health(msgspec.Struct, kw_only=True):
    """`role`: empty where nobody asked for it."""

    status: Literal["alive", "ready"]
    role: Literal["", "leader", "follower"] = ""


class HistoryQuery(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    scope: Annotated[
        str, Meta(min_length=1, max_length=600, description="pool, node/NAME, gpu/NODE/ORDINAL or group/ID.")
    ] = "pool"


# ------------------------------------------------------------------------------------------------ the controller


async def healthz(_call: Call) -> Health:
    return Health(status="alive")


async def readyz(call: Call) -> Health:
    if call.context.backend.is_leader:
        return Health(status="ready", role="leader")
    if call.context.leader_url():
        return Health(status="ready", role="follower")
    raise Refusal(503, "not_leader", "no replica leads the pool now", "try again in some seconds", Retry_After="2")


async def document(call: Call) -> web.Response:
    return web.Response(body=call.context.document, content_type="application/json")


async def metrics(call: Call) -> web.StreamResponse:
    context = call.context
    report = context.metrics.report(context.backend, context.lists)
    response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE})
    await response.prepare(call.request)
    try:
        # Who reads slowly must not keep the next one waiting for ever.
        async with asyncio.timeout(REPORT_TIMEOUT_S), aclosing(report) as parts:
            async for part in parts:
                await response.write(part)
            await response.write_eof()
    except ConnectionError:
        raise
    except Exception as error:
        # It has begun: another status is not possible any more, and half a report must not look like a whole one.
        log.error("/metrics was cut short: %r", error)
        if call.request.transport is not None:
            call.request.transport.abort()
        raise ConnectionResetError("cut short") from error
    return response


# ------------------------------------------------------------------------------------------------ log-in


async def login(call: Call) -> web.Response:
    context, body = call.context, call.body
    remote, name = call.request.remote, clean(body.user, 64)
    context.guard.enter(body.user, remote)
    try:
        identity = await context.accounts.check_password(body.user, body.password)
    except Exception:
        context.guard.not_tried(body.user, remote)
        raise
    if identity is None:
        # No user here: nobody has proved to be one, and the audit trail tells what users did.
        context.backend.note("warning", "user.login_failed", name, f"a failed log-in from {remote}", "")
        raise Refusal(401, "wrong_password", "the user's name or the password is wrong", "capital letters matter",
                      WWW_Authenticate='Bearer realm="orion"')  # fmt: skip
    context.guard.passed(body.user, remote)
    ttl_s = context.session_ttl_s
    try:
        token = await context.accounts.create_session(identity.user, ttl_s)
    except AccountError as error:  # removed at this moment
        raise Refusal(401, "wrong_password", clean(str(error))) from error
    context.backend.note("info", "user.login", identity.user, f"has logged in from {remote}", identity.user)
    told = models.LoggedIn(user=identity.user, role=identity.role, token=token,
                           expires_s=context.wall_clock() + ttl_s)  # fmt: skip
    response = web.Response(body=msgspec.json.encode(told), content_type="application/json")
    response.set_cookie(auth.COOKIE, token, max_age=int(ttl_s), path="/", httponly=True, samesite="Strict",
                        secure=context.secure_cookies)  # fmt: skip
    return response


async def logout(call: Call) -> web.Response:
    token, _ = auth.token_of(call.request)
    if call.user.startswith("token:"):
        raise Refusal(409, "program_token", "this token belongs to a program: it does not log out",
                      "revoke it with `orion-controller token revoke`")  # fmt: skip
    await call.context.accounts.revoke(token)
    call.context.backend.note("info", "user.logout", call.user, "has logged out", call.user)
    response = web.Response(status=204)
    response.del_cookie(auth.COOKIE, path="/", httponly=True, samesite="Strict", secure=call.context.secure_cookies)
    return response


async def me(call: Call) -> models.Me:
    assert call.identity is not None
    return models.Me(user=call.identity.user, role=call.identity.role)


# ------------------------------------------------------------------------------------------------ reads


def _require_reads(call: Call) -> None:
    if not call.context.follower_reads:
        call.context.require_leader(call.request)


async def summary(call: Call) -> models.Summary:
    _require_reads(call)
    return call.context.backend.summary()


async def history(call: Call) -> models.History:
    _require_reads(call)
    return call.context.backend.history(call.query.scope)


async def node(call: Call) -> models.Node:
    _require_reads(call)
    name = call.path["name"]
    nodes: list[models.Node] = await call.context.lists.all(lists.NODES)
    return _found(next((node for node in nodes if node.name == name), None), "node", name)


async def group(call: Call) -> models.Group:
    _require_reads(call)
    return _found(await call.context.lists.group(call.path["id"]), "group", call.path["id"])


def _found(item: T | None, what: str, wanted: str) -> T:
    if item is None:
        raise ServiceError(404, "not_found", f"there is no {what} {clean(wanted)}", f"GET {API}/{what}s lists them")
    return item


def _list(kind: Kind, summary: str, role: models.Role = "viewer", description: str = "") -> Route:
    async def handler(call: Call) -> Any:
        if kind not in (lists.EVENTS, lists.AUDIT):  # those are every replica's
            _require_reads(call)
        return await call.context.lists.page(kind, call.query)

    return Route(method="GET", path=f"{API}/{kind.name}", summary=summary, handler=handler, tag="pool", role=role,
                 description=description, query=lists.query_model(kind), answer=Page[kind.model])  # type: ignore[name-defined]  # fmt: skip


# ------------------------------------------------------------------------------------------------ changes


async def patch_group(call: Call) -> models.Group:
    change: models.PatchGroup = call.body
    if change.gmem_mib is None and change.ratio_percent is None and change.policy is None:
        return await group(call)  # nothing is asked for: no node is asked, and no line in the audit trail
    return await call.context.backend.patch_group(call.path["id"], change, call.user)


async def end_group(call: Call) -> None:
    await call.context.backend.end_group(call.path["id"], call.user)


async def end_session(call: Call) -> None:
    await call.context.backend.end_session(call.path["id"], call.user)


async def patch_node(call: Call) -> models.Node:
    return await call.context.backend.set_draining(call.path["name"], call.body.draining, call.user)


async def forget_node(call: Call) -> None:
    await call.context.backend.forget_node(call.path["name"], call.user)


async def reserve(call: Call) -> models.Group:
    wish: models.Reserve = call.body
    if not is_name(wish.group) or not is_name(wish.node or "-"):
        raise Refusal(400, "bad_body", "body: group and node are names: they have no control characters")
    return await call.context.backend.reserve(wish, call.user)


async def reserve_pods(call: Call) -> pod_models.PodOutcomes:
    wishes: list[pod_models.PodWish] = call.body.pods
    for wish in wishes:
        names = (wish.uid, wish.namespace, wish.name, wish.node or "-", *(c.name for c in wish.containers))
        if not all(map(is_name, names)):
            raise Refusal(400, "bad_body", "body: uid, namespace, name, node and containers are names: they have no "
                          "control characters")  # fmt: skip
    return pod_models.PodOutcomes(pods=await call.context.backend.reserve_pods(wishes, call.user))


async def release_pods(call: Call) -> pod_models.PodsReleased:
    gone: pod_models.PodsGone = call.body
    if not all(map(is_name, (*gone.uids, gone.reason or "-"))):
        raise Refusal(400, "bad_body", "body: uids are names: they have no control characters")
    return await call.context.backend.release_pods(gone, call.user)


async def put_limits(call: Call) -> models.Limits:
    limits = await call.context.backend.set_limits(call.path["group"], call.body, call.user)
    if limits is None:
        return models.Limits(group=call.path["group"])
    return limits


async def delete_limits(call: Call) -> None:
    name = call.path["group"]
    if all(limits.group != name for limits in call.context.backend.limits()):
        raise ServiceError(404, "not_found", f"the group {clean(name)} has no limits", f"GET {API}/limits lists them")
    await call.context.backend.set_limits(name, None, call.user)


def _change(method: str, path: str, summary: str, handler: Any, **more: Any) -> Route:
    return Route(method=method, path=API + path, summary=summary, handler=handler, tag="changes", role="operator",
                 leader=True, **more)  # fmt: skip


_LOG = "Without `sort`: the newest, oldest first. The newest 10,000 are kept."
_ID = {"id": "Id of the group, from GET /api/v1/groups."}
_LIMITED = {"group": "Name of the group (ORION_GROUP_ID), or * for all that have no limits of their own."}
_NODE_NAME = {"name": "Name of the node."}

ROUTES: tuple[Route, ...] = (
    Route(method="GET", path="/healthz", summary="Whether the process lives", handler=healthz, tag="controller",
          role=None, answer=Health),
    Route(method="GET", path="/readyz", summary="Whether it can serve: it leads, or knows who does", handler=readyz,
          tag="controller", role=None, answer=Health, errors=(503,)),
    Route(method="GET", path="/openapi.json", summary="This document", handler=document, tag="controller", role=None,
          answer=dict[str, Any]),
    Route(method="GET", path="/metrics", summary="Metrics for Prometheus", handler=metrics, tag="controller",
          answer=str, media="text/plain"),
    Route(method="POST", path=f"{API}/login", summary="Log in", handler=login, tag="log-in", role=None,
          body=models.Login, answer=models.LoggedIn, errors=(401, 403, 429, 503),
          description="Browsers also get the token as a cookie that scripts cannot read. Who fails too often waits."),
    Route(method="POST", path=f"{API}/logout", summary="End this log-in", handler=logout, tag="log-in", errors=(409,)),
    Route(method="GET", path=f"{API}/me", summary="Who asks", handler=me, tag="log-in", answer=models.Me),
    Route(method="GET", path=f"{API}/summary", summary="The pool in numbers", handler=summary, tag="pool",
          answer=models.Summary),
    _list(lists.NODES, "Servers"),
    Route(method="GET", path=f"{API}/nodes/{{name}}", summary="A server", handler=node, tag="pool",
          answer=models.Node, errors=(404,), names=_NODE_NAME),
    _list(lists.GPUS, "Physical GPUs"),
    _list(lists.VGPUS, "Slices that are given out"),
    _list(lists.GROUPS, "Allocations"),
    Route(method="GET", path=f"{API}/groups/{{id}}", summary="An allocation", handler=group, tag="pool",
          answer=models.Group, errors=(404,), names=_ID),
    _list(lists.PODS, "Kubernetes pods that have vGPUs"),
    _list(lists.SESSIONS, "Programs on the servers"),
    _list(lists.QUEUE, "Requests that wait for room"),
    _list(lists.LIMITS, "Limits of groups"),
    _list(lists.EVENTS, "What has happened", description=_LOG),
    _list(lists.AUDIT, "What users did", "operator", _LOG),
    Route(method="GET", path=f"{API}/history", summary="The last hour", handler=history, tag="pool",
          query=HistoryQuery, answer=models.History, errors=(404,)),
    _change("PATCH", "/groups/{id}", "Change quota, ratio or policy while its programs run", patch_group,
            body=models.PatchGroup, answer=models.Group, errors=_ON_NODES, names=_ID),
    _change("DELETE", "/groups/{id}", "End it and all its programs", end_group, errors=_ON_NODES, names=_ID),
    _change("DELETE", "/sessions/{id}", "End a program's session", end_session, errors=_ON_NODES,
            names={"id": "Id of the session."}),
    _change("PATCH", "/nodes/{name}", "Drain a server, or let it take vGPUs again", patch_node,
            body=models.PatchNode, answer=models.Node, errors=_ON_NODES, names=_NODE_NAME),
    _change("DELETE", "/nodes/{name}", "Forget a server that is lost and will not come back", forget_node,
            errors=(404, 409), names=_NODE_NAME),
    _change("POST", "/reservations", "Reserve vGPUs for a group that will come", reserve, body=models.Reserve,
            answer=models.Group, status=201, errors=(409,)),
    _change("POST", "/pods/reserve", "Reserve the vGPUs of pods, or keep them reserved", reserve_pods,
            body=pod_models.PodWishes, answer=pod_models.PodOutcomes, body_max_bytes=PODS_MAX_BYTES,
            description="What cannot be had is told in the outcome of that pod; the others have theirs."),
    _change("POST", "/pods/release", "Give back the vGPUs of pods that are gone", release_pods,
            body=pod_models.PodsGone, answer=pod_models.PodsReleased),
    _change("PUT", "/limits/{group}", "Limit what a group may have together", put_limits, body=models.LimitsBody,
            answer=models.Limits, errors=(409,), names=_LIMITED),
    _change("DELETE", "/limits/{group}", "Take a group's limits away", delete_limits, errors=(404,), names=_LIMITED),
)  # fmt: skip
