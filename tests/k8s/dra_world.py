"""A cluster for the DRA driver: a small API server, a kubelet that speaks the real protocol, a scheduler's allocation,
and a real controller with simulated GPU servers behind its real REST API."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from orion_controller.kube_api import Access, KubeApi
from orion_k8s.dra import API, DRIVER, quantity
from orion_k8s.dra.cdi import Contents
from orion_k8s.dra.node import Claims
from orion_k8s.dra.plugin import Plugin
from orion_k8s.dra.pool_api import PoolApi
from orion_k8s.dra.proto import (
    dra_v1_pb2,
    dra_v1_pb2_grpc,
    dra_v1beta1_pb2,
    dra_v1beta1_pb2_grpc,
    pluginregistration_pb2,
    pluginregistration_pb2_grpc,
)
from orion_k8s.dra.publish import Publisher
from tests.controller import http_world, linked
from tests.k8s.api_server import ApiServer, Object, api_server

SLICES = "/apis/resource.k8s.io/v1/resourceslices"
CLAIMS = "/apis/resource.k8s.io/v1/resourceclaims"
WAIT_S = 30.0


class Refused(Exception):
    """What the driver says of a claim."""


class FakeKubelet:
    """As a kubelet's plugin manager and DRA manager: finds sockets, asks who is there, prepares and unprepares."""

    def __init__(self, registry: Path, version: str = "v1") -> None:
        self.registry = registry
        self.version = version
        self.infos: dict[str, Any] = {}

    async def register(self, accepts: bool = True) -> Any:
        """Looks for a driver until there is one."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for path in self.registry.glob("*.sock"):
                    try:
                        return await self._ask_who(path, accepts)
                    except grpc.aio.AioRpcError as error:
                        if error.code() != grpc.StatusCode.UNAVAILABLE:
                            raise
                await asyncio.sleep(0.02)

    async def _ask_who(self, path: Path, accepts: bool) -> Any:
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            stub = pluginregistration_pb2_grpc.RegistrationStub(channel)
            info = await stub.GetInfo(pluginregistration_pb2.InfoRequest(), timeout=WAIT_S)
            assert info.type == "DRAPlugin"
            assert f"{self.version}.DRAPlugin" in info.supported_versions
            error = "" if accepts else "this kubelet has another driver of that name"
            status = pluginregistration_pb2.RegistrationStatus(plugin_registered=accepts, error=error)
            await stub.NotifyRegistrationStatus(status, timeout=WAIT_S)
        if accepts:
            self.infos[info.name] = info
        return info

    @asynccontextmanager
    async def _driver(self) -> AsyncIterator[tuple[Any, Any]]:
        messages, made = {
            "v1": (dra_v1_pb2, dra_v1_pb2_grpc),
            "v1beta1": (dra_v1beta1_pb2, dra_v1beta1_pb2_grpc),
        }[self.version]
        async with grpc.aio.insecure_channel(f"unix:{self.infos[DRIVER].endpoint}") as channel:
            yield messages, made.DRAPluginStub(channel)

    async def prepare_all(self, claims: list[Object]) -> Any:
        """The answers by uid."""
        async with self._driver() as (messages, stub):
            asked = [messages.Claim(namespace=c["metadata"]["namespace"], name=c["metadata"]["name"],
                                    uid=c["metadata"]["uid"]) for c in claims]  # fmt: skip
            request = messages.NodePrepareResourcesRequest(claims=asked)
            answer = await stub.NodePrepareResources(request, timeout=WAIT_S)
            assert set(answer.claims) == {claim.uid for claim in asked}
            return answer.claims

    async def prepare(self, claim: Object) -> list[Any]:
        """The devices; Refused."""
        answer = (await self.prepare_all([claim]))[claim["metadata"]["uid"]]
        if answer.error:
            raise Refused(answer.error)
        return list(answer.devices)

    async def unprepare(self, claim: Object) -> None:
        async with self._driver() as (messages, stub):
            asked = messages.Claim(namespace=claim["metadata"]["namespace"], name=claim["metadata"]["name"],
                                   uid=claim["metadata"]["uid"])  # fmt: skip
            request = messages.NodeUnprepareResourcesRequest(claims=[asked])
            answer = await stub.NodeUnprepareResources(request, timeout=WAIT_S)
            if answer.claims[asked.uid].error:
                raise Refused(answer.claims[asked.uid].error)


class Cluster:
    def __init__(self, folder: Path, kube: ApiServer, pool: linked.World, http: http_world.World) -> None:
        self.folder = folder
        self.kube = kube
        self.pool = pool
        self.http = http
        self.token = folder / "token"
        self.token.write_text(http.operator + "\n")
        self.plugins, self.registry, self.cdi = folder / "plugins", folder / "registry", folder / "cdi"
        self.registry.mkdir()
        self.api = KubeApi(Access(kube.url))
        self.rest = PoolApi([http.url], self.token, timeout_s=5.0)
        self.kubelet = FakeKubelet(self.registry)
        self.contents = Contents("orion:9123", Path("/opt/orion/lib"), folder / "run", {"ORION_CONTROLLER_KEY": "k"})
        self.claims: Claims
        self.publishing: asyncio.Task[None]
        self.looked = 0
        self._tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------------------------------------------ the driver

    def publisher(self, mode: Any = "consumable", **values: Any) -> Publisher:
        values = {"driver": DRIVER, "prefix": "orion", "nodes": {}, "interval_s": 0.05} | values
        return Publisher(self.api, self.rest, mode=mode, **values)

    async def publish(self, mode: Any = "consumable", servers: set[str] | None = None, **values: Any) -> None:
        """Goes on in the background; returns when the pool is there."""
        publisher = self.publisher(mode, **values)
        reconcile = publisher.reconcile

        async def counted() -> None:
            try:
                await reconcile()
            finally:
                self.looked += 1

        publisher.reconcile = counted  # type: ignore[method-assign]
        self.publishing = self._begin(publisher.run())
        wanted = {f"orion/{name}" for name in servers or self.pool.servers}
        await self.until(lambda: {s["spec"]["pool"]["name"] for s in self.slices()} == wanted)
        await self.looks(2)

    async def stop_publishing(self) -> None:
        self.publishing.cancel()
        await asyncio.gather(self.publishing, return_exceptions=True)

    async def looks(self, times: int) -> None:
        """The publisher has looked so often since, each time at all of it."""
        until = self.looked + times + 1
        await self.until(lambda: self.looked >= until)

    def writes(self) -> int:
        """To slices."""
        return sum(1 for method, path in self.kube.calls if method != "GET" and "/resourceslices" in path)

    async def start_node(self) -> None:
        """The node's part, newly started, and found by the kubelet."""
        self.claims = Claims(self.api, self.rest, driver=DRIVER, prefix="orion", state=self.plugins / DRIVER / "claims",
                             cdi_folder=self.cdi, contents=self.contents)  # fmt: skip
        self.claims.load()
        self.plugin = Plugin(DRIVER, self.claims, self.plugins, self.registry)
        self.node_task = self._begin(self.plugin.run())
        await self.kubelet.register()

    async def stop_node(self) -> None:
        self.node_task.cancel()
        await asyncio.gather(self.node_task, return_exceptions=True)

    def _begin(self, what: Any) -> asyncio.Task[None]:
        self._tasks.append(asyncio.ensure_future(what))
        return self._tasks[-1]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result
        await self.rest.__aexit__(None, None, None)
        await self.api.close()

    # ------------------------------------------------------------------------------------------------ the cluster

    def slices(self, server: str = "") -> list[Object]:
        found = self.kube.objects.get(SLICES, {}).values()
        return [s for s in found if s["spec"]["driver"] == DRIVER and s["spec"]["pool"]["name"].startswith("orion/") and
                server in ("", s["spec"]["pool"]["name"].partition("/")[2])]  # fmt: skip

    def devices(self, server: str = "") -> dict[str, Object]:
        return {d["name"]: d for s in self.slices(server) for d in s["spec"]["devices"]}

    def claim(self, name: str, devices: list[tuple[str, str]], consumed: list[dict[str, str]] | None = None,
              config: list[Object] | None = None, pods: int = 1, pod_uid: str = "") -> Object:  # fmt: skip
        """As a scheduler leaves it: allocated and reserved. `devices`: (server, device)."""
        results = [
            {"request": "vgpu", "driver": DRIVER, "pool": f"orion/{server}", "device": device}
            for server, device in devices
        ]
        for result, what in zip(results, consumed or []):
            result |= {"shareID": str(uuid.uuid4()), "consumedCapacity": what}  # type: ignore[dict-item]
        reserved = [
            {"resource": "pods", "name": f"{name}-{number}", "uid": pod_uid or str(uuid.uuid4())}
            for number in range(pods)
        ]
        exactly = {"deviceClassName": "vgpu.virtaitech.com", "allocationMode": "ExactCount", "count": len(devices)}
        return self.kube.put(CLAIMS, {
            "apiVersion": API, "kind": "ResourceClaim", "metadata": {"name": name, "namespace": "default"},
            "spec": {"devices": {"requests": [{"name": "vgpu", "exactly": exactly}]}},
            "status": {
                "allocation": {"devices": {"results": results} | ({"config": config} if config else {})},
                "reservedFor": reserved,
            },
        })  # fmt: skip

    def free(self, server: str, device: str) -> dict[str, int]:
        """What a scheduler may still give of a published device: its capacity without what claims have."""
        left = {}
        for name, capacity in self.devices(server)[device]["capacity"].items():
            read = quantity.mib if name == "gmem" else lambda text: quantity.floor(quantity.parse(text))
            used = sum(
                read(result["consumedCapacity"][name])
                for claim in self.kube.objects.get(CLAIMS, {}).values()
                for result in claim["status"]["allocation"]["devices"]["results"]
                if (result["pool"], result["device"]) == (f"orion/{server}", device)
            )
            left[name] = read(capacity["value"]) - used
        return left

    async def reservations(self) -> dict[str, Any]:
        """Pods that have vGPUs in the controller, by uid."""
        return {pod["uid"]: pod for pod in await self.http.page("pods")}

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                for task in self._tasks:
                    if task.done() and not task.cancelled():
                        task.result()
                await asyncio.sleep(0.02)


@asynccontextmanager
async def cluster(servers: dict[str, int], max_vgpus: int = 4) -> AsyncIterator[Cluster]:
    """`servers`: names and numbers of GPUs, each of 16000 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="dra-"))  # short: sockets' paths are
    try:
        async with (
            linked.world(folder) as pool,
            http_world.world(folder, pool.controller) as http,
            api_server() as kube,
        ):
            for name, gpus in servers.items():
                pool.server(name, gpus=gpus, max_vgpus=max_vgpus)
            await pool.joined(*servers)
            made = Cluster(folder, kube, pool, http)
            try:
                yield made
            finally:
                await made.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def go(servers: dict[str, int], body: Callable[[Cluster], Awaitable[None]], max_vgpus: int = 4) -> None:
    async def run() -> None:
        async with cluster(servers, max_vgpus) as made:
            await body(made)

    asyncio.run(asyncio.wait_for(run(), 120))
