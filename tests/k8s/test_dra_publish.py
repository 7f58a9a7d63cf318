"""ResourceSlices follow the pool: a real controller with simulated servers, a small API server over HTTP."""

from __future__ import annotations

import copy
from typing import Any

import kubernetes_validate
import pytest

from orion_k8s.dra import API, DRIVER
from orion_k8s.dra.publish import GONE_S, Publisher
from tests.k8s.api_server import Refused
from tests.k8s.dra_world import CLAIMS, SLICES, Cluster, go
from wire import pool as wire

GPU = "gpu-gpu-1-0"
HALF = {"gmem": "4Gi", "ratio": "50", "vgpus": "1"}
LESS = HALF | {"ratio": "40"}
VERSIONS = ("1.34", "1.35", "1.36", "1.37")


def generations(world: Cluster, server: str) -> set[int]:
    return {s["spec"]["pool"]["generation"] for s in world.slices(server)}


@pytest.mark.parametrize("mode", ["consumable", "slots"])
def test_the_pool_is_published(mode: str) -> None:
    async def body(world: Cluster) -> None:
        await world.publish(mode)
        for item in world.slices():
            for version in VERSIONS:
                kubernetes_validate.validate(item, version, strict=True)
            assert item["spec"]["allNodes"] is True and item["spec"]["pool"]["resourceSliceCount"] == 1
        names = sorted(world.devices("gpu-1"))
        if mode == "slots":
            assert names == sorted(f"gpu-gpu-1-{o}-s{s}" for o in range(2) for s in range(4))
            slot = world.devices("gpu-1")["gpu-gpu-1-1-s2"]
            assert slot["capacity"] == {"gmem": {"value": "4000Mi"}, "ratio": {"value": "25"}}
            assert "allowMultipleAllocations" not in slot
        else:
            assert names == ["gpu-gpu-1-0", "gpu-gpu-1-1"]
            gpu = world.devices("gpu-1")[GPU]
            assert gpu["allowMultipleAllocations"] is True
            assert {n: c["value"] for n, c in gpu["capacity"].items()} == {
                "gmem": "16000Mi", "ratio": "100", "vgpus": "4"
            }  # fmt: skip
        assert world.devices("gpu-2")[names[0].replace("gpu-1", "gpu-2")]["attributes"] == {
            "server": {"string": "gpu-2"}, "uuid": {"string": "GPU-gpu-2-0"}, "model": {"string": "softgpu (CPU)"},
            "ordinal": {"int": 0},
        }  # fmt: skip

    go({"gpu-1": 2, "gpu-2": 1}, body)


def test_what_changes_is_published_and_nothing_else() -> None:
    async def body(world: Cluster) -> None:
        foreign = {
            "apiVersion": API, "kind": "ResourceSlice", "metadata": {"name": "other"},
            "spec": {"driver": "other.example.com", "pool": {"name": "orion/x", "generation": 1,
                     "resourceSliceCount": 1}, "allNodes": True},
        }  # fmt: skip
        prefix = copy.deepcopy(foreign) | {"metadata": {"name": "prefix"}}
        prefix["spec"] |= {"driver": DRIVER}
        prefix["spec"]["pool"]["name"] = "second/gpu-1"
        stale = copy.deepcopy(prefix) | {"metadata": {"name": "stale"}}
        stale["spec"]["pool"] |= {"name": "orion/gone"}
        for item in (foreign, prefix, stale):
            world.kube.put(SLICES, item)
        await world.publish()
        assert set(world.kube.objects[SLICES]) >= {"/other", "/prefix"} and "/stale" not in world.kube.objects[SLICES]
        writes = world.writes()
        await world.looks(5)
        assert world.writes() == writes and generations(world, "gpu-1") == generations(world, "gpu-2") == {1}

        # Somebody who is no claim takes a part of a GPU: it is not offered any more, and only that pool is new.
        wish = {"group": "outside", "gmem_mib": 6000, "ratio_percent": 30, "node": "gpu-1"}
        assert (await world.http.call("POST", "/api/v1/reservations", wish)).status == 201
        await world.until(lambda: world.free("gpu-1", GPU) == {"gmem": 10000, "ratio": 70, "vgpus": 3})
        assert generations(world, "gpu-1") == {2} and generations(world, "gpu-2") == {1}
        await world.http.call("DELETE", "/api/v1/groups/outside")
        await world.until(lambda: world.free("gpu-1", GPU) == {"gmem": 16000, "ratio": 100, "vgpus": 4})

        # A drained server, then one that is lost.
        await world.http.call("PATCH", "/api/v1/nodes/gpu-2", {"draining": True})
        await world.until(lambda: not world.slices("gpu-2"))
        await world.http.call("PATCH", "/api/v1/nodes/gpu-2", {"draining": False})
        await world.until(lambda: world.slices("gpu-2"))
        world.pool.servers["gpu-2"].link.close()
        await world.until(lambda: not world.slices("gpu-2"))
        assert generations(world, "gpu-1") == {3}

    go({"gpu-1": 1, "gpu-2": 1}, body)


def test_what_claims_have_is_counted_once() -> None:
    """By the scheduler, from the claims: before, while and after the controller counts it too."""

    async def body(world: Cluster) -> None:
        await world.publish()
        await world.start_node()
        claim = world.claim("c", [("gpu-1", GPU)], [HALF])
        await world.looks(3)
        assert world.free("gpu-1", GPU) == {"gmem": 16000 - 4096, "ratio": 50, "vgpus": 3}
        await world.kubelet.prepare(claim)
        await world.looks(3)
        assert world.free("gpu-1", GPU) == {"gmem": 16000 - 4096, "ratio": 50, "vgpus": 3}
        # The claim is gone before its vGPU is: what is still used is not offered.
        world.kube.remove(CLAIMS, "default/c")
        await world.until(lambda: world.free("gpu-1", GPU) == {"gmem": 16000 - 4096, "ratio": 50, "vgpus": 3})
        await world.kubelet.unprepare(claim)
        await world.until(lambda: world.free("gpu-1", GPU) == {"gmem": 16000, "ratio": 100, "vgpus": 4})

    go({"gpu-1": 1}, body)


def test_slots_of_others_are_not_offered() -> None:
    async def body(world: Cluster) -> None:
        await world.publish("slots")
        await world.start_node()
        await world.kubelet.prepare(world.claim("c", [("gpu-1", f"{GPU}-s3")]))
        wish = {"group": "outside", "gmem_mib": 5000, "ratio_percent": 10, "node": "gpu-1"}
        await world.http.call("POST", "/api/v1/reservations", wish)
        # 5000 MiB are two slots of 4000; the claim's own stays.
        await world.until(lambda: set(world.devices("gpu-1")) == {f"{GPU}-s0", f"{GPU}-s3"})

    go({"gpu-1": 1}, body)


def test_the_controller_away_and_the_api_server_away() -> None:
    async def body(world: Cluster) -> None:
        await world.publish()
        there, world.rest._urls = world.rest._urls, ["http://127.0.0.1:1"]
        await world.looks(3)
        assert len(world.slices()) == 2
        world.rest._urls = there
        await world.kube.stop()
        await world.http.call("PATCH", "/api/v1/nodes/gpu-2", {"draining": True})
        await world.looks(2)
        await world.kube.start()
        await world.until(lambda: not world.slices("gpu-2"))
        assert world.slices("gpu-1")

    go({"gpu-1": 1, "gpu-2": 1}, body)


def test_somebody_elses_changes_are_put_right_and_conflicts_are_tried_again() -> None:
    async def body(world: Cluster) -> None:
        await world.publish()
        (item,) = world.slices("gpu-1")
        changed = copy.deepcopy(item)
        changed["spec"]["devices"] = []
        world.kube.fail_next.append(Refused(409, "Conflict", "the object has been modified"))
        world.kube.put(SLICES, changed)
        await world.until(lambda: GPU in world.devices("gpu-1"))
        assert generations(world, "gpu-1") == {2}
        world.kube.remove(SLICES, f"/{item['metadata']['name']}")
        await world.until(lambda: GPU in world.devices("gpu-1"))

    go({"gpu-1": 1}, body)


def test_a_second_publisher_after_a_restart_writes_nothing() -> None:
    async def body(world: Cluster) -> None:
        await world.publish()
        await world.stop_publishing()
        writes = world.writes()
        await world.publish()
        await world.looks(3)
        assert world.writes() == writes
        await world.stop_publishing()
        await world.publish(nodes={"zone": "a"})  # other settings are another pool
        await world.until(lambda: all("allNodes" not in s["spec"] for s in world.slices()))
        (item,) = world.slices("gpu-1")
        assert item["spec"]["nodeSelector"] == {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "zone", "operator": "In", "values": ["a"]}]}]}  # fmt: skip
        kubernetes_validate.validate(item, "1.34", strict=True)

    go({"gpu-1": 1}, body)


def test_a_cluster_without_consumable_capacity_is_told_once_and_not_written_to_for_ever(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(world: Cluster) -> None:
        put = world.kube.put

        def without(collection: str, item: dict[str, Any]) -> dict[str, Any]:
            if collection == SLICES:
                item = copy.deepcopy(item)
                for device in item["spec"].get("devices", []):
                    device.pop("allowMultipleAllocations", None)
                    for capacity in device["capacity"].values():
                        capacity.pop("requestPolicy", None)
            return put(collection, item)

        monkeypatch.setattr(world.kube, "put", without)
        await world.publish()
        writes = world.writes()
        await world.looks(5)
        assert world.writes() == writes
        assert "--devices slots" in caplog.text

    go({"gpu-1": 1}, body)


def test_more_devices_than_fit_into_a_slice() -> None:
    async def body(world: Cluster) -> None:
        await world.publish("slots")  # 3 x 100 parts
        items = world.slices("gpu-1")
        assert sorted(len(s["spec"]["devices"]) for s in items) == [44, 128, 128]
        assert {s["spec"]["pool"]["resourceSliceCount"] for s in items} == {3}
        assert len(world.devices("gpu-1")) == 300
        await world.stop_publishing()
        await world.publish("consumable")
        await world.until(lambda: len(world.slices("gpu-1")) == 1)
        assert generations(world, "gpu-1") == {2}

    go({"gpu-1": 3}, body, max_vgpus=100)


def test_the_publisher_ends_with_an_error_that_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started again by the cluster; half of it must not go on."""

    async def body(world: Cluster) -> None:
        async def broken(self: Publisher) -> None:
            raise RuntimeError("a mistake")

        monkeypatch.setattr(Publisher, "reconcile", broken)
        with pytest.raises(ExceptionGroup):
            await world.publisher().run()

    go({"gpu-1": 1}, body)


def test_a_node_that_died_gives_its_pods_vgpus_back() -> None:
    """Its kubelet does not: the claim goes when the pod is removed, and its vGPU some time after."""

    async def body(world: Cluster) -> None:
        now_s = [0.0]
        await world.publish(clock=lambda: now_s[0])
        await world.start_node()
        dead, alive = (world.claim(name, [("gpu-1", GPU)], [LESS]) for name in ("dead", "alive"))
        for claim in (dead, alive):
            await world.kubelet.prepare(claim)
        part = {"name": "claim:x", "gmem_mib": 10, "ratio_percent": 1}
        foreign = {"uid": "another cluster's", "namespace": "n", "name": "p", "containers": [part]}
        await world.http.call("POST", "/api/v1/pods/reserve", {"pods": [foreign]})
        await world.looks(2)
        world.kube.remove(CLAIMS, "default/dead")
        await world.until(lambda: world.free("gpu-1", GPU)["ratio"] < 60)
        await world.looks(2)
        assert len(await world.reservations()) == 3
        now_s[0] += GONE_S + 1
        await world.looks(2)
        alive_uid = alive["status"]["reservedFor"][0]["uid"]
        assert set(await world.reservations()) == {alive_uid, "another cluster's"}
        now_s[0] += GONE_S + 1
        await world.looks(2)
        assert alive_uid in await world.reservations()

    go({"gpu-1": 1}, body)


def test_a_gpu_that_is_ill_is_not_offered() -> None:
    async def body(world: Cluster) -> None:
        simulated = world.pool.servers["gpu-1"].simulated
        beat, health = simulated.heartbeat, ["Xid 79"]

        def told() -> wire.Heartbeat:
            said = beat()
            said.gpus = [wire.GpuReport(ordinal=0, used_mib=0, health=health[0]), wire.GpuReport(ordinal=1, used_mib=0)]
            return said

        simulated.heartbeat = told  # type: ignore[method-assign]
        await world.publish()
        await world.until(lambda: set(world.devices("gpu-1")) == {"gpu-gpu-1-1"})
        health[0] = ""
        await world.until(lambda: len(world.devices("gpu-1")) == 2)

    go({"gpu-1": 2}, body)
