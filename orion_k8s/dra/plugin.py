"""The kubelet's side of the driver: two sockets, one by which the kubelet finds the driver and one that it asks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import grpc

from orion_k8s.dra import cdi
from orion_k8s.dra.node import FAILURES, Claims, sentence
from orion_k8s.dra.proto import (
    dra_v1_pb2,
    dra_v1_pb2_grpc,
    dra_v1beta1_pb2,
    dra_v1beta1_pb2_grpc,
    pluginregistration_pb2,
    pluginregistration_pb2_grpc,
)

log = logging.getLogger("orion.dra")

PLUGINS = Path("/var/lib/kubelet/plugins")
REGISTRY = Path("/var/lib/kubelet/plugins_registry")
SERVICES = ("v1.DRAPlugin", "v1beta1.DRAPlugin")
ERROR_CHARACTERS = 1000  # of one claim: it ends in an event of the pod
_LOOK_S = 1.0
_STOP_S = 5.0
_SOCKET_PATH_MOST = 107  # bytes, of Linux


class _Service:
    """NodePrepareResources and NodeUnprepareResources of either version: they differ in their packages alone."""

    def __init__(self, driver: str, claims: Claims, messages: Any) -> None:
        self._driver = driver
        self._claims = claims
        self._messages = messages

    async def NodePrepareResources(self, request: Any, _context: Any) -> Any:
        answers = await asyncio.gather(*(self._prepare(claim) for claim in request.claims))
        return self._messages.NodePrepareResourcesResponse(
            claims={claim.uid: answer for claim, answer in zip(request.claims, answers)}
        )

    async def NodeUnprepareResources(self, request: Any, _context: Any) -> Any:
        answers = await asyncio.gather(*(self._unprepare(claim) for claim in request.claims))
        return self._messages.NodeUnprepareResourcesResponse(
            claims={claim.uid: answer for claim, answer in zip(request.claims, answers)}
        )

    async def _prepare(self, claim: Any) -> Any:
        try:
            record = await self._claims.prepare(claim.namespace, claim.name, claim.uid)
        except FAILURES as error:
            log.warning("%s/%s is not prepared: %s", claim.namespace, claim.name, error)
            return self._messages.NodePrepareResourceResponse(error=_told(error))
        told: set[str] = set()
        answer = self._messages.NodePrepareResourceResponse()
        for request, pool, device in record.results:
            # Every request brings the claim's environment, once.
            ids = [] if request in told else [cdi.device_id(self._driver, record.uid)]
            told.add(request)
            answer.devices.add(request_names=[request], pool_name=pool, device_name=device, cdi_device_ids=ids)
        return answer

    async def _unprepare(self, claim: Any) -> Any:
        try:
            await self._claims.unprepare(claim.uid)
        except FAILURES as error:
            log.warning("%s/%s is not given back: %s", claim.namespace, claim.name, error)
            return self._messages.NodeUnprepareResourceResponse(error=_told(error))
        return self._messages.NodeUnprepareResourceResponse()


def _told(error: Exception) -> str:
    return sentence(error)[:ERROR_CHARACTERS]


class _Registration:
    def __init__(self, driver: str, endpoint: Path) -> None:
        self._driver = driver
        self._endpoint = endpoint
        self.registered = asyncio.Event()

    async def GetInfo(self, _request: Any, _context: Any) -> Any:
        return pluginregistration_pb2.PluginInfo(
            type="DRAPlugin", name=self._driver, endpoint=str(self._endpoint), supported_versions=SERVICES
        )

    async def NotifyRegistrationStatus(self, request: Any, _context: Any) -> Any:
        if request.plugin_registered:
            log.info("the kubelet has registered %s", self._driver)
            self.registered.set()
        else:
            log.error("the kubelet does not register %s: %s", self._driver, request.error[:ERROR_CHARACTERS])
            self.registered.clear()
        return pluginregistration_pb2.RegistrationStatusResponse()


class Plugin:
    """`run` serves for ever. A kubelet that starts finds the sockets and asks again; sockets that somebody has removed
    are made again, since nothing else would tell a kubelet that the driver lives."""

    def __init__(self, driver: str, claims: Claims, plugins: Path = PLUGINS, registry: Path = REGISTRY) -> None:
        self.socket = plugins / driver / "dra.sock"
        self.registration_socket = registry / f"{driver}-reg.sock"
        for path in (self.socket, self.registration_socket):
            if len(os.fsencode(path)) > _SOCKET_PATH_MOST:
                raise ValueError(f"{path} is longer than the {_SOCKET_PATH_MOST} bytes that a socket's path may have")
        self._driver = driver
        self._claims = claims
        self._registration = _Registration(driver, self.socket)
        self._servers: list[grpc.aio.Server] = []

    @property
    def registered(self) -> asyncio.Event:
        """Whether the kubelet has said so."""
        return self._registration.registered

    async def run(self) -> None:
        try:
            while True:
                await self._start()
                while self.socket.is_socket() and self.registration_socket.is_socket():
                    await asyncio.sleep(_LOOK_S)
                log.warning("a socket of the driver was removed: it is made again")
                await self._stop()
        finally:
            await self._stop()

    async def _start(self) -> None:
        service = grpc.aio.server()
        for messages, add in (
            (dra_v1_pb2, dra_v1_pb2_grpc.add_DRAPluginServicer_to_server),
            (dra_v1beta1_pb2, dra_v1beta1_pb2_grpc.add_DRAPluginServicer_to_server),
        ):
            add(_Service(self._driver, self._claims, messages), service)
        registration = grpc.aio.server()
        pluginregistration_pb2_grpc.add_RegistrationServicer_to_server(self._registration, registration)
        # The kubelet comes as soon as it sees the second one.
        for server, path in ((service, self.socket), (registration, self.registration_socket)):
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            server.add_insecure_port(f"unix:{path}")
            await server.start()
            self._servers.append(server)

    async def _stop(self) -> None:
        servers, self._servers = self._servers, []
        with contextlib.suppress(OSError):
            self.registration_socket.unlink(missing_ok=True)
        for server in reversed(servers):
            await server.stop(_STOP_S)
