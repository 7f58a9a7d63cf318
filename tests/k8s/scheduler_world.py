"""A controller with simulated servers over real sockets, its REST API, a small API server and orion-scheduler."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from orion_k8s.scheduler.controller_client import Credentials
from orion_k8s.scheduler.daemon import Scheduler, Settings
from orion_k8s.scheduler.extender import Options
from tests.controller import http_world, linked
from tests.k8s.api_server import ApiServer, Object, pod

PODS = "/api/v1/pods"
QUICK = linked.Policies(lease_s=1.5, idle_s=1.0, attach_within_s=1.5)


def vgpu_pod(name: str, count: int = 1, namespace: str = "default", annotations: dict[str, str] | None = None,
             **env: str) -> Object:  # fmt: skip
    """As the webhook leaves it. Environment: ORION_GMEM="4096"."""
    made = pod(name, namespace, schedulerName="orion-scheduler")
    container = made["spec"]["containers"][0]
    container["resources"] = {
        "limits": {"virtaitech.com/gpu": str(count)},
        "requests": {"virtaitech.com/gpu": str(count)},
    }
    container["env"] = [
        {"name": "ORION_GROUP_ID", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.uid"}}},
        *({"name": key, "value": value} for key, value in ({"ORION_VGPU": str(count)} | env).items()),
    ]
    if annotations:
        made["metadata"]["annotations"] = annotations
    return made


@dataclass
class World:
    pool: linked.World
    http: http_world.World
    api: ApiServer
    scheduler: Scheduler
    client: aiohttp.ClientSession
    folder: Path

    async def post(self, verb: str, body: Any, raw: bytes | None = None) -> tuple[int, Any]:
        data = raw if raw is not None else json.dumps(body).encode()
        async with self.client.post(f"{self.scheduler.extender_url}/{verb}", data=data,
                                    headers={"Content-Type": "application/json"}) as response:  # fmt: skip
            text = await response.read()
            return response.status, json.loads(text) if text else None

    async def filter(self, item: Object, nodes: list[str]) -> Any:
        """As kube-scheduler does it with nodeCacheCapable."""
        status, told = await self.post("filter", {"Pod": item, "Nodes": None, "NodeNames": nodes})
        assert status == 200
        return told

    async def prioritize(self, item: Object, nodes: list[str]) -> dict[str, int]:
        """As kube-scheduler reads the answer: 0 for nodes that it does not name."""
        status, told = await self.post("prioritize", {"Pod": item, "Nodes": None, "NodeNames": nodes})
        assert status == 200
        return dict.fromkeys(nodes, 0) | {entry["Host"]: entry["Score"] for entry in told}

    async def bind(self, item: Object, node: str) -> str:
        told = item["metadata"]
        status, answer = await self.post("bind", {"PodName": told["name"], "PodNamespace": told["namespace"],
                                                  "PodUID": told["uid"], "Node": node})  # fmt: skip
        assert status == 200
        return str(answer["Error"])

    async def place(self, item: Object, nodes: list[str]) -> str:
        """The node, as kube-scheduler would choose it; AssertionError where it finds none."""
        told = await self.filter(item, nodes)
        assert not told.get("Error") and told["NodeNames"], told
        scores = await self.prioritize(item, told["NodeNames"])
        node = max(told["NodeNames"], key=lambda name: scores.get(name, 0))
        assert await self.bind(item, node) == ""
        return str(node)

    def held(self) -> dict[str, Any]:
        """The controller's pods by name."""
        return {found.name: found for found in self.pool.controller.pods()}

    def used_mib(self) -> int:
        return self.pool.controller.summary().memory_given_mib

    async def until(self, condition: Callable[[], object]) -> None:
        await self.pool.until(condition)

    def edit(self, name: str, **annotations: str) -> None:
        item = copy.deepcopy(self.api.objects[PODS][f"default/{name}"])
        item["metadata"].setdefault("annotations", {}).update(
            {f"virtaitech.com/{key}": value for key, value in annotations.items()}
        )
        self.api.add_pod(item)

    def told(self, reason: str) -> list[str]:
        """Messages of the cluster's events."""
        return [event["message"] for event in self.api.events() if event["reason"] == reason]


@asynccontextmanager
async def world(folder: Path, servers: dict[str, dict[str, Any]], runs: bool = True,
                **values: Any) -> AsyncIterator[World]:  # fmt: skip
    """`runs`: the reconciler too."""
    from tests.k8s.api_server import api_server

    async with linked.world(folder, policies=values.pop("policies", None)) as pool, api_server() as api:
        for name, told in servers.items():
            pool.server(name, **({"gpus": 1} | told))
        if servers:
            await pool.joined(*servers)
        async with http_world.world(folder, pool.controller) as http:
            token, kubeconfig = folder / "token", folder / "kubeconfig"
            token.write_text(http.operator)
            kubeconfig.write_text(json.dumps({
                "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": api.url}}], "users": [{"name": "u", "user": {}}],
            }))  # fmt: skip
            values.setdefault("reconcile_s", 1.0)
            scheduler = Scheduler(Settings(
                controllers=(http.url,), credentials=Credentials(token), kubeconfig=str(kubeconfig), port=0,
                extender=values.pop("extender", Options()), **values,
            ))  # fmt: skip
            await scheduler.start()
            work = asyncio.create_task(scheduler.run()) if runs else None
            try:
                async with aiohttp.ClientSession() as client:
                    made = World(pool, http, api, scheduler, client, folder)
                    if runs:
                        await made.until(lambda: scheduler.reconciler.is_listed and scheduler.reconciler.is_well)
                    yield made
            finally:
                if work is not None:
                    work.cancel()
                    await asyncio.gather(work, return_exceptions=True)
                await scheduler.close()


def go(folder: Path, servers: dict[str, dict[str, Any]], body: Callable[[World], Awaitable[None]],
       **values: Any) -> None:  # fmt: skip
    async def run() -> None:
        async with world(folder, servers, **values) as made:
            await body(made)

    asyncio.run(asyncio.wait_for(run(), 120))
