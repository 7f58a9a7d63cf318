"""How many pods orion-scheduler places: `python3 -m benchmarks.kubernetes_scale OUT.json`.

A real controller with its store and REST API, simulated servers that speak the real protocol, the real orion-scheduler
with its extender and reconciler, and a small API server, each in a process of its own on this machine. This process
asks as kube-scheduler does: filter and prioritize one pod after the other, with the names of all nodes, binds beside
it. Told: latency of filter and prioritize together as the caller sees it, also when the pool is full, pods placed a
second, what deleting all of them takes, and whether any GPU was given out twice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.pool_scale import cpu_s, rss_mib

CAPACITY_MIB = 80_000
BINDS_AT_ONCE = 64
WAIT_S = 300.0


# ---------------------------------------------------------------------------------------------------- processes


def controller_process(folder: str, pipe: Connection) -> None:
    from orion_controller.api.app import make_app
    from orion_controller.api.app import serve as serve_http
    from orion_controller.daemon import collect_seldom
    from orion_controller.service import Controller
    from orion_controller.store import Accounts, Store
    from tests.controller.linked import Leads

    async def serve() -> None:
        store = await asyncio.to_thread(Store.open, f"sqlite:///{folder}/pool.db")
        store.fence(None)
        accounts = Accounts(store)
        token = await accounts.create_token("scheduler", "operator", None)
        controller = Controller(store, Leads(), name="scale")
        await controller.take_over()
        address = controller.listen("127.0.0.1", 0, per_connection=1e6)
        runner = await serve_http(make_app(controller, accounts), "127.0.0.1", 0)
        pipe.send((address, f"http://127.0.0.1:{runner.addresses[0][1]}", token))
        loop = asyncio.get_running_loop()
        while (asked := await loop.run_in_executor(None, pipe.recv)) != "stop":
            pipe.send(list(controller.pods()) if asked == "pods" else controller.summary())
        await runner.cleanup()
        await controller.close()
        accounts.close()
        await store.close()

    import uvloop

    collect_seldom()
    uvloop.run(serve())


def servers_process(address: str, names: list[str], gpus: int, vgpus: int, pipe: Connection) -> None:
    import zmq

    from tests.controller.linked import LinkedServer
    from tests.controller.simulated import SimulatedServer

    async def serve() -> None:
        context: Any = zmq.Context(io_threads=1)
        context.setsockopt(zmq.MAX_SOCKETS, 16384)
        servers = []
        for name in names:
            simulated = SimulatedServer(name, gpus=gpus, capacity_mib=CAPACITY_MIB, max_vgpus=vgpus)
            servers.append(LinkedServer(simulated, address, context=context))
            await asyncio.sleep(0.001)  # as on different machines: not all heartbeats at once
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        for server in servers:
            if server.link._timer is not None:
                server.link._timer.cancel()

    import uvloop

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(serve())


def api_process(pipe: Connection) -> None:
    from tests.k8s.api_server import ApiServer
    from tests.k8s.scheduler_world import PODS, vgpu_pod

    async def serve() -> None:
        server = ApiServer()
        await server.start()
        pipe.send(server.url)
        loop = asyncio.get_running_loop()
        while (asked := await loop.run_in_executor(None, pipe.recv)) != "stop":
            match asked:
                case ("add", first, count, env):
                    pipe.send([server.add_pod(vgpu_pod(f"pod-{n}", **env)) for n in range(first, first + count)])
                case "bound":
                    pods = server.objects.get(PODS, {}).values()
                    pipe.send({pod["metadata"]["uid"]: pod["spec"].get("nodeName", "") for pod in pods})
                case "clear":
                    for key in list(server.objects.get(PODS, {})):
                        server.remove(PODS, key)
                    pipe.send(None)
        await server.stop()

    import uvloop

    uvloop.run(serve())


# ---------------------------------------------------------------------------------------------------- as kube-scheduler


class Asker:
    """Asks the extender about pods."""

    def __init__(self, url: str, nodes: list[str], client: aiohttp.ClientSession) -> None:
        self._url, self._client = url, client
        self._names = json.dumps(nodes).encode()
        self.took_s: list[float] = []
        self.failed: Counter[str] = Counter()

    async def _post(self, verb: str, body: bytes) -> Any:
        async with self._client.post(f"{self._url}/{verb}", data=body) as response:
            return json.loads(await response.read())

    async def choose(self, pod: dict[str, Any]) -> str:
        """A node of the best score, or "" and why not is counted."""
        body = b'{"Pod":' + json.dumps(pod).encode() + b',"Nodes":null,"NodeNames":' + self._names + b"}"
        began_s = time.perf_counter()
        told = await self._post("filter", body)
        if told.get("Error") or not told.get("NodeNames"):
            self.took_s.append(time.perf_counter() - began_s)
            self.failed[told.get("Error") or next(iter(told["FailedNodes"].values()))] += 1
            return ""
        scores = await self._post("prioritize", body)
        self.took_s.append(time.perf_counter() - began_s)
        # 0 for nodes that are not named, as for kube-scheduler.
        return str(max(scores, key=lambda entry: entry["Score"])["Host"] if scores else told["NodeNames"][0])

    async def bind(self, pod: dict[str, Any], node: str) -> bool:
        told = pod["metadata"]
        answer = await self._post("bind", json.dumps({
            "PodName": told["name"], "PodNamespace": told["namespace"], "PodUID": told["uid"], "Node": node
        }).encode())  # fmt: skip
        if answer["Error"]:
            self.failed[answer["Error"]] += 1
        return not answer["Error"]

    def row(self) -> dict[str, Any]:
        took = sorted(self.took_s)
        self.took_s = []
        failed, self.failed = self.failed, Counter()
        return {
            "pods": len(took), "median_ms": round(1e3 * took[len(took) // 2], 2),
            "p99_ms": round(1e3 * took[int(len(took) * 0.99)], 2), "most_ms": round(1e3 * took[-1], 2),
            "refused": dict(failed.most_common(3)),
        }  # fmt: skip


async def place(asker: Asker, pods: list[dict[str, Any]]) -> float:
    """One pod after the other, binds beside it; pods placed a second."""
    limit = asyncio.Semaphore(BINDS_AT_ONCE)
    binds: set[asyncio.Task[bool]] = set()
    bound = 0

    async def bind(pod: dict[str, Any], node: str) -> bool:
        try:
            return await asker.bind(pod, node)
        finally:
            limit.release()

    began_s = time.perf_counter()
    for pod in pods:
        node = await asker.choose(pod)
        if node:
            await limit.acquire()
            binds.add(asyncio.create_task(bind(pod, node)))
    bound = sum(await asyncio.gather(*binds))
    return bound / (time.perf_counter() - began_s)


# ---------------------------------------------------------------------------------------------------- the run


def over_commits(pods: list[Any], vgpus: int) -> int:
    """GPUs that have more than they can."""
    count: Counter[tuple[str, int]] = Counter()
    memory: Counter[tuple[str, int]] = Counter()
    for part in (part for pod in pods for part in pod.parts):
        for where in zip(part.nodes, part.ordinals, strict=True):
            count[where] += 1
            memory[where] += part.gmem_mib
    return sum(count[where] > vgpus or memory[where] > CAPACITY_MIB for where in count)


class Cluster:
    """All processes, ended at the end."""

    def __init__(self, folder: Path, servers: int, gpus: int, vgpus: int) -> None:
        self.folder = folder
        context = multiprocessing.get_context("spawn")
        self.processes = []
        self.controller, theirs = context.Pipe()
        self.processes.append(context.Process(target=controller_process, args=(str(folder), theirs)))
        self.processes[0].start()
        address, self.url, token = self.controller.recv()
        self.servers, theirs = context.Pipe()
        self.names = [f"node{number:04d}" for number in range(servers)]
        self.processes.append(context.Process(target=servers_process, args=(address, self.names, gpus, vgpus, theirs)))
        self.api, theirs = context.Pipe()
        self.processes.append(context.Process(target=api_process, args=(theirs,)))
        for process in self.processes[1:]:
            process.start()
        (folder / "token").write_text(token)
        (folder / "kubeconfig").write_text(json.dumps({
            "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": self.api.recv()}}], "users": [{"name": "u", "user": {}}],
        }))  # fmt: skip
        self.wait(lambda: self.summary().nodes_ready >= servers)
        self.scheduler = subprocess.Popen(
            [sys.executable, "-c", "from orion_k8s.scheduler.cli import main; main()", "--controller", self.url,
             "--controller-token-file", folder / "token", "--kubeconfig", folder / "kubeconfig", "--listen",
             "127.0.0.1:0", "--ready-file", folder / "ready", "--log-level", "warning"],
        )  # fmt: skip
        self.wait(lambda: (folder / "ready").exists())
        self.extender = (folder / "ready").read_text().split()[0]

    def ask(self, pipe: Connection, what: Any) -> Any:
        pipe.send(what)
        return pipe.recv()

    def summary(self) -> Any:
        return self.ask(self.controller, "summary")

    def wait(self, condition: Any) -> float:
        began_s = time.monotonic()
        while not condition():
            if time.monotonic() - began_s > WAIT_S:
                raise TimeoutError("the simulated cluster does not get there")
            time.sleep(0.02)
        return time.monotonic() - began_s

    def pids(self) -> dict[str, int]:
        assert self.processes[0].pid is not None
        return {"controller": self.processes[0].pid, "scheduler": self.scheduler.pid}

    def close(self) -> None:
        self.scheduler.terminate()
        self.scheduler.wait(30)
        for pipe in (self.api, self.servers, self.controller):
            pipe.send("stop")
        for process in self.processes:
            process.join(30)
            if process.is_alive():
                process.kill()


async def scenario(cluster: Cluster, nodes: list[str], pods: int, env: dict[str, str], vgpus: int, *,
                   until_full: bool) -> dict[str, Any]:  # fmt: skip
    """`pods` are placed; then, if wanted, some until nothing fits; then all are deleted."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=300)
    async with aiohttp.ClientSession(connector=connector) as client:
        asker = Asker(cluster.extender, nodes, client)
        await place(asker, cluster.ask(cluster.api, ("add", 1_000_000, 200, env)))  # connections, log-in, caches
        asker.row()
        made = cluster.ask(cluster.api, ("add", 0, pods, env))
        before = {name: cpu_s(pid) for name, pid in cluster.pids().items()}
        began_s = time.monotonic()
        rate = await place(asker, made)
        wall_s = time.monotonic() - began_s
        row = asker.row() | {"pods_per_second": round(rate)}
        row["cpu_of_one_core"] = {name: round((cpu_s(pid) - before[name]) / wall_s, 2)
                                  for name, pid in cluster.pids().items()}  # fmt: skip
        row["rss_mib"] = {name: round(rss_mib(pid), 1) for name, pid in cluster.pids().items()}
        if until_full:
            large = {"ORION_GMEM": str(CAPACITY_MIB), "ORION_RATIO": "100"}
            full = []
            for pod in cluster.ask(cluster.api, ("add", 2_000_000, 300, large | {"ORION_VGPU": "1"})):
                pod["spec"]["containers"][0]["env"].append({"name": "ORION_CROSS_NODE", "value": "0"})
                full.append(pod)
            # As many as the pool has free GPUs at the most; a pod that wants more than any free one has finds no room.
            for pod in full:
                for entry in pod["spec"]["containers"][0]["env"]:
                    if entry["name"] == "ORION_VGPU":
                        entry["value"] = "64"
                pod["spec"]["containers"][0]["resources"] = {"limits": {"virtaitech.com/gpu": "64"}}
            for pod in full:
                await asker.choose(pod)
            row["no_room"] = asker.row()
        held = cluster.ask(cluster.controller, "pods")
        bound = cluster.ask(cluster.api, "bound")
        row["over_commits"] = over_commits(held, vgpus)
        row["bound"] = sum(bool(node) for node in bound.values())
        row["bound_without_vgpus"] = len({uid for uid, node in bound.items() if node} - {pod.uid for pod in held})
        row["beside_their_vgpus"] = sum(bound.get(pod.uid) in pod.nodes for pod in held)
        began_s = time.monotonic()
        cluster.ask(cluster.api, "clear")
        await asyncio.to_thread(cluster.wait, lambda: cluster.summary().vgpus == 0)
        row["all_released_s"] = round(time.monotonic() - began_s, 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--pods", type=int, default=5000)
    parser.add_argument("--only", choices=("large", "rate"), help="one of the two clusters")
    options = parser.parse_args()
    env = {"ORION_GMEM": str(CAPACITY_MIB // 8), "ORION_RATIO": "12"}
    result: dict[str, Any] = {
        "command": "python3 -m benchmarks.kubernetes_scale " + " ".join(["OUT.json", *sys.argv[2:]]),
        "commit": subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True,
                                 text=True).stdout.strip(),
        "machine": {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
    }  # fmt: skip
    for key, servers, gpus, vgpus, cpu_nodes in (("large", 1000, 8, 5, 4000), ("rate", 1000, 8, 8, 0)):
        if options.only not in (None, key):
            continue
        with tempfile.TemporaryDirectory() as folder:
            cluster = Cluster(Path(folder), servers, gpus, vgpus)
            try:
                nodes = [f"cpu{number:04d}" for number in range(cpu_nodes)] + cluster.names
                load = os.getloadavg()[0]
                row = asyncio.run(scenario(cluster, nodes, options.pods, env, vgpus, until_full=key == "large"))
            finally:
                cluster.close()
        result[key] = {"nodes": len(nodes), "gpu_nodes": servers, "gpus": servers * gpus,
                       "vgpus": servers * gpus * vgpus, "load_before": round(load, 1)} | row  # fmt: skip
        print(key, result[key], flush=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
