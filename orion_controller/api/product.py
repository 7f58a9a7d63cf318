"""The original product's small API (version 0.2), where its meaning is known; the rest says that it is not.

Its clients could not run programs here, for the data path is another one. It is for scripts that look or reserve.
Changes ask for an operator's token as a header: some of them are GETs, which a cookie must not be enough for.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from orion_controller import __version__
from orion_controller.api import models
from orion_controller.api.routes import Call, Route, clean
from orion_controller.backend import ServiceError

VERSION = "0.2"
HEADERS = {"api_version": VERSION, "data_version": VERSION}
RESERVED_S = 300.0
_SERVER_PORT = 9960


class Info(msgspec.Struct, kw_only=True):
    """Which controller this is."""

    api_version: str
    data_version: str
    name: str
    version: str


class Devices(msgspec.Struct, kw_only=True):
    """GPUs of the pool, or with `used` those that have vGPUs."""

    devices: list[models.Gpu]


class Report(msgspec.Struct, kw_only=True):
    """All that is known of an allocation."""

    allocation: models.Group
    vgpus: list[models.Vgpu]
    sessions: list[models.Session]


class Confirmed(msgspec.Struct, kw_only=True):
    """That an allocation stands. It is a program's attaching that keeps it beyond `expires_s`."""

    allocation: str
    state: models.GroupState
    expires_s: float | None


class DevicesQuery(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    res: Annotated[str, Meta(max_length=64, description="nvidia_cuda is the only resource that there is.")] = ""
    used: Annotated[bool, Meta(description="Only GPUs that have vGPUs.")] = False


class ServiceQuery(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    nvidia_vgpu: Annotated[int, Meta(ge=1, le=64, description="How many vGPUs.")]
    memory: Annotated[int, Meta(ge=0, le=1 << 30, description="MiB of each; 0: the pool's default.")] = 0


async def info(call: Call) -> web.Response:
    told = call.context.backend.summary()
    return _json(Info(api_version=VERSION, data_version=VERSION, name=told.controller, version=__version__))


async def devices(call: Call) -> web.Response:
    if call.query.res not in ("", "nvidia_cuda"):
        return _json(Devices(devices=[]))
    gpus = call.context.backend.gpus()
    return _json(Devices(devices=[gpu for gpu in gpus if gpu.vgpus] if call.query.used else gpus))


async def service(call: Call) -> web.Response:
    """ALLOC_UUID,IP:PORT/GPU/VGPU,...: the last number counts this allocation's vGPUs on that GPU."""
    backend = call.context.backend
    wish = models.Reserve(group=f"product-{uuid.uuid4()}", vgpus=call.query.nvidia_vgpu, gmem_mib=call.query.memory,
                          ttl_s=RESERVED_S)  # fmt: skip
    group = await backend.reserve(wish, call.user)
    addresses = {node.name: node.address for node in backend.nodes()}
    seen: dict[tuple[str, int], int] = {}
    places = []
    for vgpu in backend.vgpus(group=group.id):
        index = seen.get((vgpu.node, vgpu.ordinal), 0)
        seen[vgpu.node, vgpu.ordinal] = index + 1
        address = addresses.get(vgpu.node) or f"{vgpu.node}:{_SERVER_PORT}"
        places.append(f"{address}/{vgpu.ordinal}/{index}")
    return web.Response(text=",".join([group.id, *places]), headers=HEADERS)


async def _allocation(call: Call) -> models.Group:
    wanted = call.path["allocation"]
    found = await call.context.lists.group(wanted)
    if found is None:
        raise ServiceError(404, "not_found", f"there is no allocation {clean(wanted)}: it has ended or never was")
    return found


async def confirm(call: Call) -> web.Response:
    group = await _allocation(call)
    return _json(Confirmed(allocation=group.id, state=group.state, expires_s=group.expires_s))


async def release(call: Call) -> None:
    await call.context.backend.end_group(call.path["allocation"], call.user)


async def full_report(call: Call) -> web.Response:
    group, backend = await _allocation(call), call.context.backend
    return _json(Report(allocation=group, vgpus=backend.vgpus(group=group.id),
                        sessions=backend.sessions(group=group.id)))  # fmt: skip


async def unknown(call: Call) -> None:
    what = f"{call.request.method} {call.request.path}"
    raise ServiceError(501, "not_implemented", f"what {what} means is not documented",
                       "servers register over ZeroMQ; GET /devices and GET /api/v1/gpus list GPUs")  # fmt: skip


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json", headers=HEADERS)


_ALLOCATION = {"allocation": "Id of the allocation, from GET /service."}


def _route(method: str, path: str, summary: str, handler: Any, **more: Any) -> Route:
    return Route(method=method, path=path, summary=summary, handler=handler, tag="product", bearer_only=True, **more)


def _change(method: str, path: str, summary: str, handler: Any, **more: Any) -> Route:
    return _route(method, path, summary, handler, role="operator", leader=True, **more)


ROUTES: tuple[Route, ...] = (
    _route("GET", "/info", "Which controller this is", info, answer=Info),
    _route("GET", "/devices", "GPUs", devices, query=DevicesQuery, answer=Devices),
    _change("GET", "/service", "Reserve vGPUs", service, query=ServiceQuery, answer=str, media="text/plain",
            errors=(409,), description="Answers ALLOCATION,IP:PORT/GPU/VGPU,... They are given back after 300 s unless "
            "a program of the group comes."),
    *(_change(method, "/service/confirm/{allocation}", "That an allocation stands", confirm, answer=Confirmed,
              errors=(404,), names=_ALLOCATION) for method in ("GET", "PUT")),
    *(_change(method, "/service/release/{allocation}", "Give vGPUs back", release, errors=(404, 409, 504),
              names=_ALLOCATION) for method in ("GET", "PUT", "DELETE")),
    _route("GET", "/service/fullreport/{allocation}", "All that is known of an allocation", full_report,
           answer=Report, errors=(404,), names=_ALLOCATION),
    *(_route(method, path, "Not documented by the product", unknown, errors=(501,))
      for path in ("/device/info", "/device/meta", "/device/static") for method in ("GET", "POST")),
)  # fmt: skip
