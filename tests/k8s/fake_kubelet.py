"""A kubelet as a device plugin meets it, over the official API: it registers plugins, watches their devices, and admits
containers as the real one does. A restart removes every socket of its folder and makes its own anew."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from orion_k8s.device_plugin.proto import deviceplugin_v1beta1_pb2 as api
from orion_k8s.device_plugin.proto import deviceplugin_v1beta1_pb2_grpc as services

WAIT_S = 60.0


class NotAdmitted(Exception):
    """UnexpectedAdmissionError: there are not so many devices, or the plugin refuses."""


class FakeKubelet(services.RegistrationServicer):
    """`folder`: what /var/lib/kubelet/device-plugins is to a real one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.changed = threading.Condition()
        self.registrations: list[Any] = []
        self.refuses = ""  # what the next registrations are told
        self.lists: list[dict[str, str]] = []  # health by id, each list as it came
        self.given: set[str] = set()
        self._channel: Any = None
        self._stream: Any = None
        self._start()

    def _start(self) -> None:
        for path in self.folder.iterdir():
            if not path.is_dir():
                path.unlink()
        self._server = grpc.server(ThreadPoolExecutor(4))
        services.add_RegistrationServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self.folder / 'kubelet.sock'}")
        self._server.start()

    def stop(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
        if self._channel is not None:
            self._channel.close()
        self._channel = self._stream = None
        self._server.stop(0).wait()

    def restart(self) -> None:
        self.stop()
        with self.changed:
            self.lists.clear()
        self._start()

    def Register(self, request: Any, context: Any) -> Any:
        with self.changed:
            self.registrations.append(request)
            self.changed.notify_all()
            if self.refuses:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.refuses)
        if request.version != "v1beta1" or request.resource_name.count("/") != 1:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a plugin of this API")
        threading.Thread(target=self._watch, args=(request.endpoint,), daemon=True).start()
        return api.Empty()

    def _watch(self, endpoint: str) -> None:
        channel = grpc.insecure_channel(f"unix:{self.folder / endpoint}")
        plugin = services.DevicePluginStub(channel)
        stream = plugin.ListAndWatch(api.Empty(), wait_for_ready=True)
        self._channel, self._stream, self.plugin = channel, stream, plugin
        try:
            for answer in stream:
                devices = {device.ID: device.health for device in answer.devices}
                assert len(devices) == len(answer.devices) and all(0 < len(name) <= 63 for name in devices)
                with self.changed:
                    self.lists.append(devices)
                    self.changed.notify_all()
        except grpc.RpcError:
            pass  # the plugin or this kubelet has gone

    def wait_for(self, condition: Any) -> Any:
        with self.changed:
            assert self.changed.wait_for(condition, WAIT_S), (self.registrations, self.lists[-1:])
            return condition()

    @property
    def devices(self) -> dict[str, str]:
        with self.changed:
            return dict(self.lists[-1]) if self.lists else {}

    @property
    def allocatable(self) -> int:
        return sum(health == "Healthy" for health in self.devices.values())

    def admit(self, *counts: int) -> list[Any]:
        """A pod whose containers ask for so many devices: what each is given."""
        answers = []
        for count in counts:
            free = sorted(name for name, health in self.devices.items() if health == "Healthy" and
                          name not in self.given)  # fmt: skip
            if len(free) < count:
                raise NotAdmitted(f"requested {count}, available {len(free)}")
            try:
                asked = api.ContainerPreferredAllocationRequest(available_deviceIDs=free, allocation_size=count)
                preferred = self.plugin.GetPreferredAllocation(
                    api.PreferredAllocationRequest(container_requests=[asked]), timeout=WAIT_S)  # fmt: skip
                chosen = list(preferred.container_responses[0].deviceIDs)
                assert len(set(chosen)) == count and set(chosen) <= set(free)
                answer = self.plugin.Allocate(api.AllocateRequest(container_requests=[
                    api.ContainerAllocateRequest(devicesIDs=chosen)]), timeout=WAIT_S)  # fmt: skip
            except grpc.RpcError as error:
                raise NotAdmitted(error.details()) from error
            self.given |= set(chosen)
            answers.append(answer.container_responses[0])
        return answers
