"""/metrics, read by Prometheus's own parser."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from orion_controller.api import models
from orion_controller.api.lists import Lists
from orion_controller.metrics import Metrics
from tests.controller.http_world import World, go
from tests.controller.pool_backend import PoolBackend

Samples = dict[str, list[tuple[dict[str, str], float]]]


def parsed(text: str) -> Samples:
    found: Samples = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name].append((sample.labels, sample.value))
    return found


async def report(metrics: Metrics, pool: PoolBackend) -> str:
    parts = [part async for part in metrics.report(pool, Lists(pool, lambda: 0.0))]
    return b"".join(parts).decode()


def test_the_pool_in_metrics(tmp_path):
    metrics = Metrics()
    metrics.observe_allocation(0.003)
    metrics.observe_allocation(0.7)

    async def body(w: World) -> None:
        await w.get("/api/v1/groups/alloc-000001")
        await w.get("/api/v1/groups/none")
        await w.call("OPTIONS", "/api/v1/coffee")
        answer = await w.get("/metrics", token=w.viewer)
        assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        found = parsed(answer.body.decode())
        labels, value = found["orion_vgpu_memory_used_bytes"][1]
        assert value == 1024 << 20
        assert labels == {"node": "node-0000", "gpu": "GPU-00000000-0", "vgpu": "alloc-000001/0", "group": "team-1",
                          "namespace": "ml", "pod": "trainer-1", "owner": ""}  # fmt: skip
        assert found["orion_vgpu_memory_used_bytes"][2][0]["owner"] == "1000@desk-2"
        for name, expected in (("orion_vgpu_memory_limit_bytes", 8192 << 20), ("orion_vgpu_ratio_configured", 0.5),
                               ("orion_vgpu_ratio_achieved", 0.01), ("orion_vgpu_throttled_seconds_total", 0.001),
                               ("orion_vgpu_launches_total", 2)):  # fmt: skip
            assert found[name][1] == (labels, expected) and len(found[name]) == 12
        # Node 2 does not tell how busy its GPUs are: no line, not a 0.
        assert [value for _, value in found["orion_gpu_utilization_ratio"]] == [0, 0.01, 0.07, 0.08]
        assert len(found["orion_gpu_memory_total_bytes"]) == 6
        for name, expected in (("reservations", 1), ("queue_length", 1), ("sessions", 11), ("groups", 12),
                               ("leader", 1), ("allocation_seconds_count", 2)):  # fmt: skip
            assert found[f"orion_controller_{name}"] == [({}, expected)]
        assert ({"state": "ready"}, 3.0) in found["orion_controller_nodes"]
        assert ({"le": "0.005"}, 1.0) in found["orion_controller_allocation_seconds_bucket"]
        assert found["orion_build_info"][0][0]["version"]
        # By route, not by path: names of groups must not become labels.
        route = "/api/v1/groups/{id}"
        counted = {(s["method"], s["route"], s["status"]): v for s, v in found["orion_controller_http_requests_total"]}
        assert counted["GET", route, "200"] == counted["GET", route, "404"] == counted["other", "other", "404"] == 1
        assert (await w.get("/metrics", token="")).status == 401

    go(tmp_path, body, metrics=metrics)


def test_half_a_report_does_not_look_like_a_whole_one(tmp_path, caplog):
    class Breaks(PoolBackend):
        breaks = True

        def vgpus(self, node: str = "", group: str = "") -> list[models.Vgpu]:
            if self.breaks:
                raise RuntimeError("no vGPUs")
            return super().vgpus(node, group)

    pool = Breaks(nodes=1)

    async def body(w: World) -> None:
        with pytest.raises(aiohttp.ClientError):
            await w.get("/metrics")
        pool.breaks = False
        assert (await w.get("/metrics")).body.count(b"\norion_vgpu_launches_total{") == 4

    go(tmp_path, body, pool)
    assert "cut short" in caplog.text


def test_metrics_can_be_open(tmp_path):
    async def body(w: World) -> None:
        assert (await w.get("/metrics", token="")).status == 200
        assert (await w.get("/api/v1/me", token="")).status == 401

    go(tmp_path, body, metrics_open=True)


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "{x}", "ü", "x" * 5000])
def test_names_cannot_break_the_format(name):
    pool = PoolBackend(nodes=1)
    pool.all_groups["alloc-000000"].group = name
    pool.all_groups["alloc-000001"].owner = name
    found = parsed(asyncio.run(report(Metrics(), pool)))["orion_vgpu_launches_total"]
    assert len(found) == 4
    assert found[0][0]["group"] == found[1][0]["owner"] == name[:256]


def test_a_report_gives_way_and_leaves_out_what_came_meanwhile():
    pool = PoolBackend(nodes=100, gpus_per_node=8, vgpus_per_gpu=8)

    async def run() -> None:
        task = asyncio.ensure_future(report(Metrics(), pool))
        await asyncio.sleep(0)
        pool._add_group(1_000_000, "node-0001", 0, 10)
        turns = 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns > 2  # how many depends on the machine
        assert task.result().count("\norion_vgpu_launches_total{") == 6400

    asyncio.run(run())
