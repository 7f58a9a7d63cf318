"""The kubelet's side: the services of device plugin API v1beta1, registration, and staying registered."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from orion_k8s.device_plugin.container import Gives, environment, mounts
from orion_k8s.device_plugin.devices import Device, preferred
from orion_k8s.device_plugin.proto import deviceplugin_v1beta1_pb2 as api
from orion_k8s.device_plugin.proto import deviceplugin_v1beta1_pb2_grpc as services

log = logging.getLogger("orion.plugin")

VERSION = "v1beta1"
KUBELET_SOCKET = "kubelet.sock"
HEALTHY, UNHEALTHY = "Healthy", "Unhealthy"
REGISTER_TIMEOUT_S = 10.0
_THREADS = 8
_STOP_S = 1.0


class Table:
    """The list of devices, for all threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._devices: tuple[Device, ...] = ()
        self._servers: frozenset[str] = frozenset()
        self._version = 0  # 0: nothing is known yet

    @property
    def is_known(self) -> bool:
        with self._changed:
            return self._version > 0

    def put(self, devices: list[Device], servers: frozenset[str]) -> bool:
        """Whether anything is new."""
        with self._changed:
            is_new = self._version == 0 or tuple(devices) != self._devices
            self._servers = servers
            if is_new:
                self._devices = tuple(devices)
                self._version += 1
                self._changed.notify_all()
            return is_new

    def get(self) -> tuple[int, tuple[Device, ...]]:
        with self._changed:
            return self._version, self._devices

    def has_server(self, name: str) -> bool:
        with self._changed:
            return name in self._servers

    def wait(self, version: int, timeout_s: float) -> None:
        """Until there is another version, or somebody has called `wake`."""
        with self._changed:
            if self._version == version:
                self._changed.wait(timeout_s)

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class Services(services.DevicePluginServicer):  # type: ignore[misc]  # protoc's have no types
    """What the kubelet asks. Each call is on a thread of its own."""

    def __init__(self, table: Table, node: str, gives: Gives) -> None:
        self._table = table
        self._node = node
        self._gives = gives
        self.ended = threading.Event()  # the server that these belong to

    def GetDevicePluginOptions(self, request: Any, context: Any) -> Any:
        return options()

    def ListAndWatch(self, request: Any, context: Any) -> Iterator[Any]:
        context.add_callback(self._table.wake)
        told = 0
        while context.is_active() and not self.ended.is_set():
            version, devices = self._table.get()
            if version == told:
                self._table.wait(version, 60.0)
                continue
            told = version
            yield api.ListAndWatchResponse(devices=[
                api.Device(ID=device.id, health=HEALTHY if device.is_healthy else UNHEALTHY) for device in devices
            ])  # fmt: skip

    def GetPreferredAllocation(self, request: Any, context: Any) -> Any:
        _, devices = self._table.get()
        answers = []
        for asked in request.container_requests:
            try:
                chosen = preferred(devices, self._node, asked.available_deviceIDs, asked.must_include_deviceIDs,
                                   asked.allocation_size)  # fmt: skip
            except ValueError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            answers.append(api.ContainerPreferredAllocationResponse(deviceIDs=chosen))
        return api.PreferredAllocationResponse(container_responses=answers)

    def Allocate(self, request: Any, context: Any) -> Any:
        _, devices = self._table.get()
        known = {device.id for device in devices}
        answers = []
        for asked in request.container_requests:
            unknown = [device for device in asked.devicesIDs if device not in known]
            if unknown or not asked.devicesIDs:
                told = f"{unknown[0][:80]!r} is none of the pool's vGPUs" if unknown else "no vGPU is asked for"
                log.warning("refused an allocation: %s", told)
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, told)
            answers.append(api.ContainerAllocateResponse(
                envs=environment(self._gives, len(asked.devicesIDs)),
                mounts=[api.Mount(container_path=inside, host_path=outside, read_only=True)
                        for inside, outside in mounts(self._gives, self._table.has_server(self._node))],
            ))  # fmt: skip
            log.info("a container is given %d vGPU(s)", len(asked.devicesIDs))
        return api.AllocateResponse(container_responses=answers)

    def PreStartContainer(self, request: Any, context: Any) -> Any:
        return api.PreStartContainerResponse()


def options() -> Any:
    """Of the plugin."""
    return api.DevicePluginOptions(pre_start_required=False, get_preferred_allocation_available=True)


class Plugin:
    """Serves on a socket in the kubelet's folder and is registered there; `keep`, again and again, from one thread."""

    def __init__(self, table: Table, folder: Path, resource: str, node: str, gives: Gives) -> None:
        self._table = table
        self._folder = folder
        self._resource = resource
        self._node, self._gives = node, gives
        self.endpoint = "orion-" + "".join(c if c.isalnum() else "-" for c in resource) + ".sock"
        self._server: Any = None
        self._services: Services | None = None
        self._own: tuple[int, int] | None = None  # the socket that is served: device and inode
        self._kubelet: tuple[int, int, int] | None = None  # the kubelet's at which it is registered
        self._complained: str = ""

    def keep(self) -> None:
        """One look: serves and registers where that is not so. A kubelet that restarts removes all sockets of the
        folder and makes its own anew."""
        if not self._table.is_known:
            return  # a list without devices would take the resource away from a node that has it
        kubelet = _identity(self._folder / KUBELET_SOCKET)
        if kubelet is None:
            self._kubelet = None
            self._complain(f"there is no kubelet at {self._folder / KUBELET_SOCKET}")
            return
        own = _identity(self._folder / self.endpoint)
        if self._server is None or own is None or own[:2] != self._own:
            self._serve()
            self._kubelet = None
        if kubelet != self._kubelet:
            self._register(kubelet)

    def _complain(self, what: str) -> None:
        if what != self._complained:
            log.warning("%s: trying again each second", what)
            self._complained = what

    def _serve(self) -> None:
        self.stop()
        path = self._folder / self.endpoint
        path.unlink(missing_ok=True)
        server = grpc.server(ThreadPoolExecutor(_THREADS, "kubelet"), options=[("grpc.so_reuseport", 0)])
        self._services = Services(self._table, self._node, self._gives)
        services.add_DevicePluginServicer_to_server(self._services, server)
        server.add_insecure_port(f"unix:{path}")
        server.start()
        os.chmod(path, 0o600)
        self._server = server
        identity = _identity(path)
        self._own = identity[:2] if identity else None

    def _register(self, kubelet: tuple[int, int, int]) -> None:
        request = api.RegisterRequest(version=VERSION, endpoint=self.endpoint, resource_name=self._resource,
                                      options=options())  # fmt: skip
        try:
            with grpc.insecure_channel(f"unix:{self._folder / KUBELET_SOCKET}") as channel:
                services.RegistrationStub(channel).Register(request, timeout=REGISTER_TIMEOUT_S)
        except grpc.RpcError as error:
            self._complain(f"the kubelet does not register {self._resource}: {_reason(error)}")
            return
        self._kubelet = kubelet
        self._complained = ""
        log.info("registered %s at the kubelet", self._resource)

    def stop(self) -> None:
        """The kubelet then counts the devices as gone after a while; containers that have some keep them."""
        if self._server is None:
            return
        assert self._services is not None
        self._services.ended.set()
        self._table.wake()
        self._server.stop(_STOP_S).wait(_STOP_S + 1)
        self._server = None
        with contextlib.suppress(OSError):
            (self._folder / self.endpoint).unlink()


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


def _reason(error: grpc.RpcError) -> str:
    details = getattr(error, "details", None)
    return str(details() if callable(details) else error)[:300]
