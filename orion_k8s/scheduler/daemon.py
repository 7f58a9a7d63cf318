"""orion-scheduler: extender, reconciler and webhook in one process, from its settings to its end."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import ssl
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from orion_controller.api.app import tls_context
from orion_controller.daemon import collect_seldom
from orion_controller.kube_api import KubeApi, KubeConfigError, find_access
from orion_k8s.scheduler.controller_client import ControllerClient, Credentials
from orion_k8s.scheduler.extender import Extender
from orion_k8s.scheduler.extender import Options as ExtenderOptions
from orion_k8s.scheduler.reconciler import RECONCILE_S, Reconciler
from orion_k8s.webhook.admission import Options as WebhookOptions
from orion_k8s.webhook.app import Webhook

log = logging.getLogger("orion.scheduler")

CERTIFICATE_LOOK_S = 10.0
EXIT_REFUSED, EXIT_SETUP = 1, 2


class SettingsError(Exception):
    """What was configured cannot be meant."""


@dataclass(frozen=True)
class Settings:
    """`webhook_port` None: no webhook is served."""

    controllers: tuple[str, ...]
    credentials: Credentials
    controller_ca: Path | None = None
    kubeconfig: str = ""
    host: str = "127.0.0.1"
    port: int = 8888
    webhook_host: str = "0.0.0.0"
    webhook_port: int | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    extender: ExtenderOptions = field(default_factory=ExtenderOptions)
    webhook: WebhookOptions = field(default_factory=WebhookOptions)
    reconcile_s: float = RECONCILE_S
    ready_file: Path | None = None

    def check(self) -> None:
        """SettingsError."""
        if not self.controllers or not all(url.startswith(("http://", "https://")) for url in self.controllers):
            raise SettingsError("--controller is the URL of the controller's API, like http://orion-controller:15500")
        try:
            is_loopback = self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            is_loopback = False
        if not is_loopback:
            raise SettingsError(f"the extender has no log-in, so it listens on loopback only, not on {self.host}: "
                                "run kube-scheduler in the same pod")  # fmt: skip
        if self.webhook_port is not None and (self.tls_cert is None or self.tls_key is None):
            raise SettingsError("the webhook needs --tls-cert and --tls-key: API servers speak TLS to it")


class Scheduler:
    """What runs. `extender_url` and `webhook_url` once it has started."""

    def __init__(self, settings: Settings) -> None:
        settings.check()
        self.settings = settings
        tls = ssl.create_default_context(cafile=str(settings.controller_ca)) if settings.controller_ca else None
        self.controller = ControllerClient(settings.controllers, settings.credentials, tls=tls)
        self.api = KubeApi(find_access(settings.kubeconfig), user_agent="orion-scheduler")
        self.extender = Extender(self.controller, self.api, settings.extender)
        self.reconciler = Reconciler(self.extender, self.controller, self.api, reconcile_s=settings.reconcile_s)
        self.webhook = Webhook(self.controller, settings.webhook, self.extender.counts)
        self.extender_url = self.webhook_url = ""
        self._runners: list[web.AppRunner] = []
        self._tls: ssl.SSLContext | None = None

    async def start(self) -> None:
        """OSError (also ssl.SSLError): a port is taken, or the certificate cannot be used."""
        settings = self.settings
        port = await self._serve(self.extender.routes(), settings.host, settings.port, None)
        self.extender_url = f"http://{settings.host}:{port}"
        if settings.webhook_port is not None:
            assert settings.tls_cert is not None and settings.tls_key is not None
            self._tls = tls_context(settings.tls_cert, settings.tls_key)
            port = await self._serve(self.webhook.routes(), settings.webhook_host, settings.webhook_port, self._tls)
            self.webhook_url = f"https://{settings.webhook_host}:{port}"

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.reconciler.run())
            if self._tls is not None:
                group.create_task(self._renew_certificate(self._tls))

    async def close(self) -> None:
        for runner in self._runners:
            await runner.cleanup()
        await self.controller.close()
        await self.api.close()

    async def _serve(self, routes: list[web.RouteDef], host: str, port: int, tls: ssl.SSLContext | None) -> int:
        app = web.Application()
        app.add_routes(routes)
        app.add_routes([web.get("/healthz", self._healthz), web.get("/readyz", self._readyz),
                        web.get("/metrics", self._metrics)])  # fmt: skip
        runner = web.AppRunner(app, access_log=None, keepalive_timeout=300.0, shutdown_timeout=5.0)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
        return int(runner.addresses[0][1])

    async def _renew_certificate(self, tls: ssl.SSLContext) -> None:
        """Certificates are renewed in their files; connections from then on have the new one."""
        settings = self.settings
        assert settings.tls_cert is not None and settings.tls_key is not None
        seen = _stamps(settings.tls_cert, settings.tls_key)
        while True:
            await asyncio.sleep(CERTIFICATE_LOOK_S)
            now = _stamps(settings.tls_cert, settings.tls_key)
            if now != seen:
                try:
                    tls.load_cert_chain(settings.tls_cert, settings.tls_key)
                    seen = now
                    log.info("the webhook has a new certificate")
                except OSError as error:
                    log.warning("the new certificate cannot be used (yet): %s", error)

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        """The extender helps only with the controller, and releases only with the API server."""
        if not self.reconciler.is_listed:
            return web.json_response({"status": "the cluster's pods are not known yet"}, status=503)
        if not self.reconciler.is_well:
            return web.json_response({"status": "the controller or the API server does not answer"}, status=503)
        return web.json_response({"status": "ready"})

    async def _metrics(self, _request: web.Request) -> web.Response:
        lines = [
            "# HELP orion_scheduler_waiting_pods Pods that found no room.",
            "# TYPE orion_scheduler_waiting_pods gauge",
            f"orion_scheduler_waiting_pods {len(self.extender.refusals.pods)}",
            "# HELP orion_scheduler_pods Pods that ask for vGPUs and have not ended.",
            "# TYPE orion_scheduler_pods gauge",
            f"orion_scheduler_pods {len(self.reconciler.seen)}",
        ]
        text = self.extender.counts.text() + "\n".join(lines) + "\n"
        return web.Response(text=text, content_type="text/plain")


def _stamps(*files: Path) -> list[Any]:
    try:
        return [(s.st_mtime_ns, s.st_ino, s.st_size) for s in (file.stat() for file in files)]
    except OSError:
        return []


def run(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; the exit code."""
    collect_seldom()
    return uvloop.run(_run(settings))


async def _run(settings: Settings) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        scheduler = Scheduler(settings)
    except (SettingsError, KubeConfigError, OSError) as error:
        print(f"orion-scheduler: {error}", file=sys.stderr)
        return EXIT_SETUP
    try:
        await scheduler.start()
        told = f"orion-scheduler: extender on {scheduler.extender_url}"
        print(told + (f", webhook on {scheduler.webhook_url}" if scheduler.webhook_url else ""), flush=True)
        if settings.ready_file is not None:
            partial = settings.ready_file.with_name(settings.ready_file.name + ".part")
            partial.write_text(f"{scheduler.extender_url}\n{scheduler.webhook_url}\n")
            partial.replace(settings.ready_file)
        work = asyncio.create_task(scheduler.run())
        waiting = asyncio.create_task(stop.wait())
        await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if work.done() and not stop.is_set():
            log.error("the reconciler has failed", exc_info=work.exception())
            return EXIT_REFUSED
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    except OSError as error:
        print(f"orion-scheduler: {error.strerror or error}", file=sys.stderr)
        return EXIT_SETUP
    finally:
        await scheduler.close()
    return 0
