"""One replica of orion-controller, from its settings to its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import ssl
import sys

import uvloop

from orion_controller import __version__
from orion_controller.allocator import Rule
from orion_controller.api.app import make_app, serve, tls_context
from orion_controller.config import ConfigError, Settings
from orion_controller.identity import REVIEW_TIMEOUT_S, Identities
from orion_controller.kube_api import KubeApi, KubeConfigError, find_access
from orion_controller.leader import Election
from orion_controller.metrics import Metrics
from orion_controller.pool import Policies
from orion_controller.service import Controller, Keys
from orion_controller.store import CURVE_SECRET, Accounts, Store
from wire import curve

log = logging.getLogger("orion.controller")

_EXIT_SETUP = 2


def collect_seldom() -> None:
    """A large pool is a million objects that live long. Looking through all of them for cycles, of which there are
    next to none, would stop the port for a third of a second."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)


def run(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; the exit code. StoreError, AccountError, ConfigError: it cannot begin."""
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = Store.open(settings.database_url, events_kept=settings.events_kept)
    collect_seldom()
    return uvloop.run(_run(settings, store))


async def _run(settings: Settings, store: Store) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    accounts = Accounts(store, keys={"operator": settings.administrator_key, "viewer": settings.viewer_key})
    try:
        await accounts.ensure_first(settings.first_password(), folder=settings.data_dir)
        return await _serve(settings, store, accounts, stop)
    finally:
        accounts.close()
        await store.close()


async def _serve(settings: Settings, store: Store, accounts: Accounts, stop: asyncio.Event) -> int:
    metrics = Metrics()
    leadership = _Leadership()
    kube = _kube_api(settings) if settings.token_review else None
    controller = Controller(
        store,
        leadership,
        name=settings.replica_id,
        policies=Policies(
            rule=Rule(settings.policy),
            patience_s=settings.queue_patience_s,
            idle_s=settings.idle_release_s,
            lease_s=settings.lease_s,
            heartbeat_s=settings.heartbeat_s,
        ),
        keys=Keys(settings.server_key, settings.client_key),
        identities=Identities(kube.token_review, settings.token_audience) if kube is not None else None,
        only_reserved=settings.require_reservation,
        observe_allocation=metrics.observe_allocation,
    )
    tls: ssl.SSLContext | None = None
    try:
        if settings.tls_cert is not None and settings.tls_key is not None:
            tls = tls_context(settings.tls_cert, settings.tls_key)
        keys = curve.pair_of_bytes(await asyncio.to_thread(store.secret, CURVE_SECRET)) if settings.uses_curve else None
        zmq_address = controller.listen(settings.zmq.host, settings.zmq.port, secret_key=keys.secret if keys else "")
        app = make_app(controller, accounts, secure_cookies=tls is not None or settings.behind_proxy,
                       session_ttl_s=settings.login_ttl_s, metrics=metrics)  # fmt: skip
        http = await serve(app, settings.http.host, settings.http.port, tls)
    except OSError as error:
        print(f"orion-controller: {error.strerror or error}", file=sys.stderr)
        await controller.close()
        if kube is not None:
            await kube.close()
        return _EXIT_SETUP
    url = settings.http_for_others(http.addresses[0][1])
    zmq_address = settings.zmq_for_others(int(zmq_address.rsplit(":", 1)[1]))
    election = Election(store, controller.name, zmq_address, url)
    election.on_elected, election.on_lost = controller.take_over, controller.step_down
    leadership.election = election
    try:
        await election.start()
        if keys is not None:
            log.info("the port of servers and clients is encrypted: servers need --controller-key, clients "
                     "ORION_CONTROLLER_KEY=%s", keys.public)  # fmt: skip
        _announce(settings, url, zmq_address)
        await stop.wait()
    finally:
        await http.cleanup()
        await election.stop()
        await controller.close()
        if kube is not None:
            await kube.close()
    log.info("stopped")
    return 0


def _kube_api(settings: Settings) -> KubeApi:
    try:
        access = find_access(settings.kubeconfig)
    except KubeConfigError as error:
        raise ConfigError(f"kubernetes.token-review needs the API server: {error}") from error
    return KubeApi(access, user_agent="orion-controller", timeout_s=REVIEW_TIMEOUT_S)


class _Leadership:
    """Who leads, once the election has begun: it needs addresses that are known only after the ports are open."""

    election: Election | None = None

    @property
    def is_leader(self) -> bool:
        return self.election is not None and self.election.is_leader

    @property
    def leader_address(self) -> str:
        return self.election.leader_address if self.election is not None else ""

    @property
    def leader_url(self) -> str:
        return self.election.leader_url if self.election is not None else ""


def _announce(settings: Settings, url: str, zmq_address: str) -> None:
    print(f"orion-controller {__version__}: portal and API on {url}, servers and clients on {zmq_address}", flush=True)
    text = f"{url}\n{zmq_address}\n"
    if settings.ready_file is not None:
        # Renamed into place: who waits for the file never reads half of it.
        partial = settings.ready_file.with_name(settings.ready_file.name + ".part")
        partial.write_text(text)
        partial.replace(settings.ready_file)
    if settings.ready_fd is not None:
        os.write(settings.ready_fd, text.encode())
        os.close(settings.ready_fd)
