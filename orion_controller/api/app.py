"""The controller's HTTP side as one aiohttp application."""

from __future__ import annotations

import logging
import re
import ssl
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware

from orion_controller.api import openapi, product, resources, static
from orion_controller.api.auth import Accounts
from orion_controller.api.context import SESSION_TTL_S, Context
from orion_controller.api.models import ApiError
from orion_controller.api.routes import Route, json_response, phrase, respond
from orion_controller.backend import Backend, ServiceError
from orion_controller.metrics import Metrics
from orion_controller.store import StoreError
from orion_controller.store.accounts import TooBusy
from orion_controller.store.writer import NotLeading

log = logging.getLogger("orion.http")
protocol_log = logging.getLogger("orion.http.protocol")
KEEPALIVE_S = 75.0  # also how long a connection may take to begin its first request

# Nothing inline, nothing from elsewhere, in nobody's frame.
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def all_routes(product_api: bool = True) -> tuple[Route, ...]:
    """What is served besides the portal's files."""
    return resources.ROUTES + (product.ROUTES if product_api else ())


def make_app(
    backend: Backend,
    accounts: Accounts,
    *,
    clock: Callable[[], float] = time.monotonic,
    wall_clock: Callable[[], float] = time.time,
    secure_cookies: bool = False,
    session_ttl_s: float = SESSION_TTL_S,
    follower_reads: bool = False,
    metrics: Metrics | None = None,
    metrics_open: bool = False,
    product_api: bool = True,
    product_api_open: bool = False,
    portal: Path = static.DIST,
) -> web.Application:
    """`secure_cookies`: TLS is used, here or in front. `follower_reads`: a replica that does not lead knows the pool
    too, and answers reads; otherwise it sends them to the leader. `*_open`: those reads ask for no log-in."""
    routes = all_routes(product_api)
    opened = {r for r in routes if product_api_open and r.tag == "product" and r.role == "viewer" and r.method == "GET"}
    opened |= {r for r in routes if metrics_open and r.path == "/metrics"}
    context = Context(
        backend=backend, accounts=accounts, clock=clock, wall_clock=wall_clock, secure_cookies=secure_cookies,
        session_ttl_s=session_ttl_s, follower_reads=follower_reads, metrics=metrics or Metrics(),
        opened=frozenset(opened),
    )  # fmt: skip
    context.document = msgspec.json.format(msgspec.json.encode(openapi.document(routes)), indent=2)
    app = web.Application(middlewares=[_guard(context)], client_max_size=max(route.body_max_bytes for route in routes))
    for route in routes:
        app.router.add_route(route.method, route.path, partial(_handle, route, context))
    files = static.Static(portal)

    async def page(request: web.Request) -> web.StreamResponse:
        leader = context.leader_url()
        if leader and files.is_page(request):
            # The page's changes would go to another origin from here, which browsers do not let it do.
            raise web.HTTPTemporaryRedirect(f"{leader}/")
        return files.answer(request)

    app.router.add_get(f"/{{path:{_others(routes)}}}", page)
    app.on_response_prepare.append(_secure)
    return app


def _others(routes: Iterable[Route]) -> str:
    """Paths that are not the API's, as a regular expression: a wrong method must be 405 there, not the portal."""
    first = sorted({re.escape(route.path.split("/")[1]) for route in routes})
    return f"(?!(?:{'|'.join(first)})(?:/|$)).*"


async def _handle(route: Route, context: Context, request: web.Request) -> web.StreamResponse:
    return await respond(route, context, request)


async def _secure(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")


def _guard(context: Context) -> Middleware:
    """Turns refusals into ApiErrors, counts and logs."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        began_s = context.clock()
        response = await _answer(context, request, handler)
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "other"
        # A method may be any word: only known ones become labels.
        method = request.method if request.method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE") else "other"
        context.metrics.count_request(method, route, response.status)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s %s %r %d %.1f ms", request.remote, request.method, request.path[:200], response.status,
                      1000 * (context.clock() - began_s))  # fmt: skip
        return response

    return guard


async def _answer(context: Context, request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ServiceError as error:
        return _refused(error.status, error.code, str(error), error.hint, getattr(error, "headers", {}))
    except web.HTTPTemporaryRedirect:
        raise
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return _refused(405, "bad_method", f"{request.method[:20]} is not possible here", f"possible is {allowed}",
                        {"Allow": allowed})  # fmt: skip
    except web.HTTPException as error:
        code = "not_found" if error.status == 404 else "refused"
        hint = "what there is: /openapi.json" if error.status == 404 else ""
        return _refused(error.status, code, phrase(error.status), hint)
    except TooBusy as error:
        return _refused(503, "busy", str(error), "try again in some seconds", {"Retry-After": "5"})
    except NotLeading:
        try:
            context.require_leader(request)
        except ServiceError as error:
            return _refused(error.status, error.code, str(error), error.hint, getattr(error, "headers", {}))
        return _refused(503, "not_leader", "this replica has just lost the lead", "try again", {"Retry-After": "2"})
    except StoreError as error:
        log.error("%s %s: %s", request.method, request.path[:200], error)
        return _refused(503, "database", "the controller's database does not answer", "see the controller's log",
                        {"Retry-After": "5"})  # fmt: skip
    except ConnectionError:
        raise  # nobody is there any more
    except Exception:
        log.exception("%s %r failed", request.method[:20], request.path[:200])
        return _refused(500, "internal", "the controller has made a mistake", "see the controller's log")


def _refused(status: int, code: str, message: str, hint: str, headers: dict[str, str] | None = None) -> web.Response:
    # Messages of a backend may name what a client has called itself.
    sound = [text.encode("utf-8", "replace").decode() for text in (code, message, hint)]
    response = json_response(ApiError(code=sound[0], message=sound[1], hint=sound[2]), status)
    response.headers.update(headers or {})
    return response


# ------------------------------------------------------------------------------------------------ serving


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """For a server: TLS 1.2 or later. OSError (also ssl.SSLError): a file is missing, or they are no pair."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


def _is_not_the_clients_fault(record: logging.LogRecord) -> bool:
    """aiohttp writes an error with a traceback for every malformed request: anybody could fill the log."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError) or protocol_log.isEnabledFor(logging.DEBUG)


async def serve(app: web.Application, host: str, port: int, tls: ssl.SSLContext | None = None) -> web.AppRunner:
    """Listens; `runner.addresses` says where, `await runner.cleanup()` ends it. OSError: the port is taken."""
    protocol_log.addFilter(_is_not_the_clients_fault)
    runner = web.AppRunner(
        app, access_log=None, logger=protocol_log, keepalive_timeout=KEEPALIVE_S, lingering_time=1.0,
        shutdown_timeout=5.0,
    )  # fmt: skip
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner
