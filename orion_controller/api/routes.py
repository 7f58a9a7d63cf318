"""A route is declared once: from the declaration come its checks, its dispatch and its part of the OpenAPI document.

Order of the checks: who asks (401, 403), where (307 or 503 on a replica that does not lead), what (400, 413, 415).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import msgspec
from aiohttp import web
from msgspec import Meta

from orion_controller.api import auth
from orion_controller.api.auth import Identity, Refusal
from orion_controller.api.models import Role

if TYPE_CHECKING:
    from orion_controller.api.context import Context

BODY_MAX_BYTES = 64 << 10
BODY_TIMEOUT_S = 15.0
NAME_MAX = 300
# A name in a path. Control characters are in no name, and do harm in logs and databases.
Name = Annotated[str, Meta(min_length=1, max_length=NAME_MAX, pattern=r"^[^\x00-\x1f\x7f]+$")]
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(slots=True)
class Call:
    """A request that has passed the checks. `path`, `query` and `body` are as declared."""

    request: web.Request
    context: Context
    path: Mapping[str, str]
    query: Any
    body: Any
    identity: Identity | None

    @property
    def user(self) -> str:
        """For the audit trail."""
        return self.identity.user if self.identity is not None else ""


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Route:
    """`handler` returns what `answer` says, or a response of its own. `role` None: for everybody."""

    method: str
    path: str
    summary: str
    handler: Handler
    tag: str
    role: Role | None = "viewer"
    description: str = ""
    query: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None
    answer: Any = None  # None: no content
    media: str = "application/json"
    status: int = 200
    errors: tuple[int, ...] = ()  # besides those that follow from the rest
    leader: bool = False  # changes the pool: only the leader can
    bearer_only: bool = False  # the cookie is not enough
    body_max_bytes: int = BODY_MAX_BYTES
    names: Mapping[str, str] = field(default_factory=dict)  # of the path's parts: what they are

    @property
    def success(self) -> int:
        return 204 if self.answer is None else self.status

    @property
    def parts(self) -> list[str]:
        """Names of the variable parts of the path."""
        return re.findall(r"{(\w+)}", self.path)

    @property
    def statuses(self) -> list[int]:
        """All refusals that it may answer."""
        found = {500, *self.errors}
        if self.query is not None or self.body is not None or self.parts:
            found.add(400)
        if self.body is not None:
            found |= {408, 413, 415}
        if self.role is not None:
            found |= {401, 403} if self.role == "operator" or self.method != "GET" else {401}
        if self.role is not None or self.leader:
            found.add(503)
        return sorted(found)


def json_response(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


async def respond(route: Route, context: Context, request: web.Request) -> web.StreamResponse:
    """Runs the checks and the handler. Raises ServiceError (also Refusal) for what is refused."""
    identity: Identity | None = None
    if route.role is not None and route not in context.opened:
        identity = await auth.identify(request, context.accounts, route.role, bearer_only=route.bearer_only,
                                       changes=route.method != "GET")  # fmt: skip
    elif route.method != "GET" and not auth.is_same_origin(request, when_unknown=True):
        raise Refusal(403, "cross_site", "another site's page must not ask for this", "open the controller's portal")
    if route.leader:
        context.require_leader(request)
    path = {name: _name(name, request.match_info[name]) for name in route.parts}
    query = _query(route.query, request) if route.query is not None else None
    body = await _body(route, request) if route.body is not None else None
    try:
        answer = await route.handler(Call(request, context, path, query, body, identity))
    finally:
        if route.leader:
            context.lists.forget()  # also after a failure: half of it may have been done
    if isinstance(answer, web.StreamResponse):
        return answer
    if route.answer is None:
        return web.Response(status=204)
    return json_response(answer, route.success)


def _name(part: str, value: str) -> str:
    if len(value) > NAME_MAX or not is_name(value):
        raise Refusal(400, "bad_request", f"path: {part} is no name: 1 to {NAME_MAX} characters, none of them control "
                      "characters")  # fmt: skip
    return value


def is_name(value: str) -> bool:
    """No control characters, also no line break at the end, which the pattern of Name lets pass."""
    return bool(value) and not _CONTROL.search(value) and _is_text(value)


def _is_text(value: str) -> bool:
    """Bytes that are no UTF-8 arrive as lone surrogates, which nothing can encode."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _query(model: type[msgspec.Struct], request: web.Request) -> msgspec.Struct:
    given: dict[str, str] = {}
    for name, value in request.query.items():
        if name in given:
            raise Refusal(400, "bad_query", f"query: {clean(name)} is given twice")
        if not _is_text(name + value):
            raise Refusal(400, "bad_query", f"query: {clean(name)} is no UTF-8 text")
        given[name] = value
    try:
        return msgspec.convert(given, model, strict=False)
    except msgspec.ValidationError as error:
        raise Refusal(400, "bad_query", f"query: {_sentence(error)}", _hint(model)) from None


async def _body(route: Route, request: web.Request) -> msgspec.Struct:
    model = route.body
    assert model is not None
    if request.content_type != "application/json":
        raise Refusal(415, "not_json", "the body must be JSON", "send `Content-Type: application/json`")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            raw = await _read(request, route.body_max_bytes)
    except TimeoutError:
        raise Refusal(408, "too_slow", f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s") from None
    try:
        return msgspec.json.decode(raw, type=model)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # a second look, which also takes 50.0 for an integer
    try:
        return msgspec.convert(_with_integers(msgspec.json.decode(raw)), model)
    except msgspec.ValidationError as error:
        raise Refusal(400, "bad_body", f"body: {_sentence(error)}", _hint(model)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, "bad_body", f"body: not JSON: {_sentence(error)}") from None


async def _read(request: web.Request, most_bytes: int) -> bytes:
    parts, size = [], request.content_length or 0
    if size <= most_bytes:
        size = 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
            if size > most_bytes:
                break
            parts.append(chunk)
    if size > most_bytes:
        raise Refusal(413, "too_large", f"a body has {most_bytes} bytes at most")
    return b"".join(parts)


def _with_integers(body: Any) -> Any:
    """50.0 is an integer in JSON Schema, and some languages write integers so."""
    if isinstance(body, dict):
        return {k: _with_integers(v) for k, v in body.items()}
    if isinstance(body, list):
        return [_with_integers(v) for v in body]
    return int(body) if isinstance(body, float) and body.is_integer() else body


def _sentence(error: BaseException) -> str:
    return clean(str(error).replace("`$.", "`"))


def _hint(model: type[msgspec.Struct]) -> str:
    """What may be given, from the model itself."""
    names = ", ".join(get_type_hints(model))
    return f"possible are: {names}; their bounds are in /openapi.json" if names else "nothing may be given here"


def clean(text: str, most: int = 200) -> str:
    """Foreign text for a message: printable, encodable, short."""
    return "".join(c if c.isprintable() else "?" for c in text[:most])


def phrase(status: int) -> str:
    return HTTPStatus(status).phrase
