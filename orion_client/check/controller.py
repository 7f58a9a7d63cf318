"""The pool's controller: as one that is to run here, and as one that is asked from here."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

from orion_client import pool_client, pool_port, settings
from orion_client.check.client import versions
from orion_client.check.finding import Finding, ok, wrong
from orion_client.control_client import ServerUnreachable
from orion_client.pool_client import EXIT_NOT_ALLOWED, PoolClient, PoolError

_PACKAGES = ("orion_controller.service", "aiohttp", "sqlalchemy", "zmq", "msgspec")
_MAX_SKEW_S = 10.0


def install() -> Iterator[Finding]:
    """What orion-controller consists of."""
    missing = [name for name in _PACKAGES if not _has(name)]
    if missing:
        yield wrong("controller-not-installed", "orion-controller", f"missing: {', '.join(missing)}")
    else:
        yield ok("orion-controller", "is installed")


def files(named: Path | None = None) -> Iterator[Finding]:
    """What orion-controller would read here: its files and the environment."""
    try:
        from orion_controller.config import ConfigError, cautions, check_exposed, load
    except ImportError:
        return  # told by install
    check = "controller.yaml"
    try:
        settings = load({}, named)
        missing = check_exposed(settings)
        careful = cautions(settings)
    except ConfigError as error:
        yield wrong("controller-conf-invalid", check, " ".join(str(error).split()))
        return
    for text in missing:
        yield wrong("controller-exposed", check, text)
    if settings.ignored:
        yield wrong("controller-conf-unknown", check, "; ".join(settings.ignored))
    for text in careful:
        yield wrong("controller-caution", check, text)
    if not missing and not settings.ignored and not careful:
        yield ok(check, f"HTTP on {settings.http}, servers and clients on {settings.zmq}")


def runtime(url: str | None, timeout_s: float, is_wanted: bool) -> Iterator[Finding]:
    """The controller that is configured. `is_wanted`: none is a finding."""
    try:
        controllers = settings.controllers()
    except settings.SettingError:
        controllers = []  # the client's configuration tells of it
    try:
        access = pool_client.find(url)
    except PoolError as error:
        yield wrong("controller-http-unreachable", "controller (HTTP)", str(error))
        access = None
        is_wanted = False
    if not controllers and access is None:
        if is_wanted:
            yield wrong("controller-none", "controller", "neither ORION_CONTROLLER nor ORION_CONTROLLER_URL is set")
        return
    if controllers:
        yield from _zmq(controllers, timeout_s)
    if access is not None:
        yield from _http(PoolClient(access, timeout_s))


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _zmq(controllers: list[str], timeout_s: float) -> Iterator[Finding]:
    name = ", ".join(controllers)
    try:
        group = settings.setting("ORION_GROUP_ID") or ""
        answer = pool_port.lookup(controllers, group, os.getpid(), timeout_s)
    except ServerUnreachable as error:
        text = str(error)
        if "does not lead" in text:
            yield wrong("controller-no-leader", "controller", text)
        else:
            yield wrong("controller-refused" if "refused:" in text else "controller-unreachable", "controller", text)
        return
    yield ok("controller", f"{name} answers")
    totals = answer.totals
    given, free, gpus = (totals.get(key) for key in ("vgpus", "vgpus_free", "gpus"))
    if isinstance(given, int) and isinstance(free, int) and isinstance(gpus, int):
        yield pool_size(given, free, gpus)


def pool_size(given: int, free: int, gpus: int) -> Finding:
    """The pool in a sentence, as users of the original product know it."""
    sentence = f"There are {given + free} vGPUs under control of the controller, {free} are free now"
    if not gpus:
        return wrong("pool-empty", "pool", sentence)
    return wrong("pool-full", "pool", sentence) if not free else ok("pool", sentence)


def _http(pool: PoolClient) -> Iterator[Finding]:
    check = "controller (HTTP)"
    try:
        summary = pool.get("summary")
    except PoolError as error:
        if error.exit_code == EXIT_NOT_ALLOWED:
            yield ok(check, f"{pool.access.url} answers")
            yield from _clock(pool)
            yield wrong("controller-token", "token", str(error))
        else:
            yield wrong("controller-http-unreachable", check, str(error))
        return
    yield ok(check, f"{pool.access.url} answers: {summary.get('controller') or 'controller'}")
    yield from _clock(pool)
    yield versions(f"controller {pool.access.url}", str(summary.get("version")))
    lost = summary.get("nodes_lost") or 0
    if lost:
        yield wrong("nodes-lost", "nodes", f"{lost} of {summary.get('nodes')} are lost")
    else:
        yield ok("nodes", f"{summary.get('nodes_ready')} of {summary.get('nodes')} are ready")
    yield pool_size(summary.get("vgpus") or 0, summary.get("vgpus_free") or 0, summary.get("gpus") or 0)


def _clock(pool: PoolClient) -> Iterator[Finding]:
    try:
        theirs_s = parsedate_to_datetime(pool.date).timestamp()
    except ValueError:
        return  # it does not tell
    skew_s = theirs_s - time.time()
    if abs(skew_s) > _MAX_SKEW_S:
        yield wrong(
            "clock-skew", "clocks", f"the controller's is {abs(skew_s):.0f} s {'ahead' if skew_s > 0 else 'behind'}"
        )
    else:
        yield ok("clocks", "the controller's and this machine's agree")
