"""Pods that end give their vGPUs back, however long a server takes to end one of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from orion_server.pool_link import Command
from tests.k8s.scheduler_world import PODS, World, go, vgpu_pod
from wire import pool as wire

STUCK = [f"stuck-{number}" for number in range(6)]  # one after the other they would take the controller 30 s


def test_programs_that_do_not_end_keep_no_other_pods_vgpus(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        lets_go, asked = asyncio.Event(), []
        for name in (*STUCK, "last"):
            item = w.api.add_pod(vgpu_pod(name, ORION_GMEM="4096", ORION_RATIO="25"))
            await w.place(item, ["gpu-1"])
            given = await w.pool.client().allocate(group=item["metadata"]["uid"], gmem_mib=4096, ratio=25)
            w.pool.servers["gpu-1"].attach(given.servers[0].ticket)
        await w.until(lambda: all(pod.sessions == 1 and pod.expires_s is None for pod in w.held().values()))
        stuck = {w.held()[name].parts[0].group for name in STUCK}
        server = w.pool.servers["gpu-1"]
        ends = server.command

        async def command(order: Command) -> None:
            if isinstance(order, wire.EndSessions) and order.allocation in stuck:
                asked.append(order)
                await lets_go.wait()
            await ends(order)

        server.command = command  # type: ignore[method-assign, assignment]
        for name in (*STUCK, "last"):
            w.api.remove(PODS, f"default/{name}")
        await w.until(lambda: set(w.held()) == set(STUCK))
        assert asked and not lets_go.is_set()
        lets_go.set()
        await w.until(lambda: not w.held())

    go(tmp_path, {"gpu-1": {"gpus": 4}}, body)
