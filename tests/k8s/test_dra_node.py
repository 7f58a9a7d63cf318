"""The node's part of the DRA driver, with a kubelet that speaks the real protocol and a real controller."""

from __future__ import annotations

import asyncio
import json
import shutil
import uuid
from typing import Any

import pytest

from orion_k8s.dra import DRIVER
from orion_k8s.dra.cdi import file_of
from tests.k8s.api_server import Object
from tests.k8s.dra_world import CLAIMS, Cluster, Refused, go

GPU = "gpu-gpu-1-0"
HALF = {"gmem": "4Gi", "ratio": "50", "vgpus": "1"}
ONE = {"gpu-1": 1}


def spec_of(world: Cluster, claim: Object) -> Any:
    return json.loads(file_of(world.cdi, DRIVER, claim["metadata"]["uid"]).read_text())


def environment(world: Cluster, claim: Object) -> dict[str, str]:
    edits = spec_of(world, claim)["devices"][0]["containerEdits"]
    return dict(entry.split("=", 1) for entry in edits["env"])


def pod_of(claim: Object) -> str:
    return str(claim["status"]["reservedFor"][0]["uid"])


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_a_claim_becomes_a_vgpu_and_is_given_back(version: str) -> None:
    async def body(world: Cluster) -> None:
        world.kubelet.version = version
        (world.folder / "run").mkdir()
        await world.start_node()
        claim = world.claim("c", [("gpu-1", GPU)], [HALF])
        devices = await world.kubelet.prepare(claim)
        assert [(list(d.request_names), d.pool_name, d.device_name, list(d.cdi_device_ids)) for d in devices] == [
            (["vgpu"], "orion/gpu-1", GPU, [f"{DRIVER}/claim={claim['metadata']['uid']}"])
        ]
        pod = (await world.reservations())[pod_of(claim)]
        assert (pod["namespace"], pod["name"], pod["state"], pod["expires_s"]) == ("default", "c-0", "reserved", None)
        (part,) = pod["parts"]
        assert (part["gmem_mib"], part["ratio_percent"], part["nodes"], part["ordinals"]) == (4096, 50, ["gpu-1"], [0])
        assert environment(world, claim) == {
            "LD_PRELOAD": "/usr/lib/orion/libcuda.so.1:/usr/lib/orion/libnvidia-ml.so.1",
            "TRITON_LIBCUDA_PATH": "/usr/lib/orion",
            "NVIDIA_VISIBLE_DEVICES": "void", "ORION_CONTROLLER": "orion:9123", "ORION_CONTROLLER_KEY": "k",
            "ORION_GROUP_ID": pod_of(claim), "ORION_VGPU": "1", "ORION_GMEM": "4096", "ORION_RATIO": "50",
            "ORION_RES_GROUP": "BOX", "ORION_CROSS_NODE": "0",
        }  # fmt: skip
        spec = spec_of(world, claim)
        assert spec["kind"] == f"{DRIVER}/claim" and spec["devices"][0]["name"] == claim["metadata"]["uid"]
        edits = spec["devices"][0]["containerEdits"]
        assert set(edits) == {"env", "mounts"}  # no device node
        assert all("ro" in mount["options"] for mount in edits["mounts"])
        assert {m["containerPath"]: m["hostPath"] for m in edits["mounts"]} == {
            "/usr/lib/orion": "/opt/orion/lib", "/run/orion": str(world.folder / "run")
        }  # fmt: skip
        await world.kubelet.unprepare(claim)
        assert await world.reservations() == {}
        assert list(world.cdi.iterdir()) == [] and list((world.plugins / DRIVER / "claims").iterdir()) == []

    go(ONE, body)


def test_preparing_and_giving_back_again_change_nothing() -> None:
    async def body(world: Cluster) -> None:
        await world.start_node()
        claim = world.claim("c", [("gpu-1", GPU)], [HALF])
        first = await world.kubelet.prepare(claim)
        before = await world.reservations()
        again = await asyncio.gather(*(world.kubelet.prepare(claim) for _ in range(5)))
        assert all(devices == first for devices in again)
        after = await world.reservations()
        assert after == before
        for _ in range(2):
            await world.kubelet.unprepare(claim)
        assert await world.reservations() == {}
        never = world.claim("never", [("gpu-1", GPU)], [HALF])
        await world.kubelet.unprepare(never)

    go(ONE, body)


def test_restarts_of_driver_and_kubelet() -> None:
    async def body(world: Cluster) -> None:
        await world.start_node()
        claim = world.claim("c", [("gpu-1", GPU)], [HALF])
        first = await world.kubelet.prepare(claim)
        before = await world.reservations()
        world.kubelet.infos.clear()  # a kubelet that starts knows no drivers
        await world.kubelet.register()
        assert await world.kubelet.prepare(claim) == first
        await world.stop_node()
        shutil.rmtree(world.cdi)  # as a reboot does: the folder is in memory
        await world.start_node()
        assert environment(world, claim)["ORION_GMEM"] == "4096"  # before anybody asks
        # The claim itself is not needed any more, nor the API server.
        world.kube.remove(CLAIMS, "default/c")
        assert await world.kubelet.prepare(claim) == first
        assert await world.reservations() == before
        await world.kubelet.unprepare(claim)
        assert await world.reservations() == {}

    go(ONE, body)


def test_sockets_that_were_removed_are_made_again() -> None:
    async def body(world: Cluster) -> None:
        await world.start_node()
        for path in (world.plugin.socket, world.plugin.registration_socket):
            path.unlink()
            await world.until(path.is_socket)
            await world.kubelet.register()
            await world.kubelet.prepare(world.claim(f"c-{path.stem}", [("gpu-1", GPU)], [HALF]))

    go(ONE, body)


def test_a_kubelet_that_refuses_may_accept_later() -> None:
    async def body(world: Cluster) -> None:
        await world.start_node()
        await world.kubelet.register(accepts=False)
        assert not world.plugin.registered.is_set()
        await world.kubelet.register()
        assert world.plugin.registered.is_set()

    go(ONE, body)


def test_the_controller_away() -> None:
    """New claims wait with a sentence; prepared ones stay; what ends is given back when it is there again."""

    async def body(world: Cluster) -> None:
        await world.start_node()
        claim = world.claim("c", [("gpu-1", GPU)], [HALF])
        first = await world.kubelet.prepare(claim)
        there, world.rest._urls = world.rest._urls, ["http://127.0.0.1:1"]
        late = world.claim("late", [("gpu-1", GPU)], [HALF])
        with pytest.raises(Refused, match="orion-controller does not answer"):
            await world.kubelet.prepare(late)
        assert await world.kubelet.prepare(claim) == first
        await world.kubelet.unprepare(claim)
        assert not file_of(world.cdi, DRIVER, claim["metadata"]["uid"]).exists()
        await world.stop_node()
        await world.start_node()  # remembers it over a restart
        assert not file_of(world.cdi, DRIVER, claim["metadata"]["uid"]).exists()
        world.rest._urls = there
        assert pod_of(claim) in await world.reservations()
        await world.claims.keep_once()
        assert await world.reservations() == {}
        await world.kubelet.prepare(late)
        assert list(await world.reservations()) == [pod_of(late)]

    go(ONE, body)


def test_a_reservation_that_the_controller_has_lost_is_made_again() -> None:
    async def body(world: Cluster) -> None:
        await world.start_node()
        claim = world.claim("c", [("gpu-1", GPU)], [HALF])
        await world.kubelet.prepare(claim)
        (pod,) = (await world.reservations()).values()
        await world.http.call("DELETE", f"/api/v1/groups/{pod['parts'][0]['group']}")
        assert await world.reservations() == {}
        await world.claims.keep_once(renews=False)
        assert await world.reservations() == {}
        await world.claims.keep_once()
        (now,) = (await world.reservations()).values()
        assert now["uid"] == pod_of(claim)
        await world.stop_node()
        await world.start_node()
        await world.kubelet.unprepare(claim)
        assert await world.reservations() == {}

    go(ONE, body)


def test_two_nodes_place_no_more_than_there_is() -> None:
    """Claims whose devices are given twice, as no scheduler would: the reservation decides."""

    async def body(world: Cluster) -> None:
        await world.start_node()
        claims = [world.claim(f"c{n}", [("gpu-1", GPU)], [HALF]) for n in range(6)]
        answers = await world.kubelet.prepare_all(claims)
        refused = [answer.error for answer in answers.values() if answer.error]
        assert len(refused) == 4 and all("room" in e and "asks again" in e for e in refused)  # 50 % each
        (gpu,) = await world.http.page("gpus")
        assert (gpu["vgpus"], gpu["ratio_given_percent"]) == (2, 100)
        kept = [claim for claim in claims if not answers[claim["metadata"]["uid"]].error]
        await world.kubelet.unprepare(kept[0])
        waiting = next(claim for claim in claims if answers[claim["metadata"]["uid"]].error)
        await world.kubelet.prepare(waiting)

    go(ONE, body)


def test_several_claims_of_a_pod() -> None:
    """Each has its part; one that ends leaves the others."""

    async def body(world: Cluster) -> None:
        await world.start_node()
        pod, sizes = str(uuid.uuid4()), (HALF, HALF | {"ratio": "10"}, HALF | {"gmem": "1Gi", "ratio": "10"})
        claims = [world.claim(f"c{n}", [("gpu-1", GPU)], [size], pod_uid=pod) for n, size in enumerate(sizes)]
        answers = await world.kubelet.prepare_all(claims)  # at once
        assert not [answer.error for answer in answers.values() if answer.error]
        assert [environment(world, claim)["ORION_GMEM"] for claim in claims] == ["4096", "4096", "1024"]
        parts = (await world.reservations())[pod]["parts"]
        assert sorted((p["gmem_mib"], p["ratio_percent"]) for p in parts) == [(1024, 10), (4096, 10), (4096, 50)]
        await world.kubelet.unprepare(claims[0])
        parts = (await world.reservations())[pod]["parts"]
        assert sorted((p["gmem_mib"], p["ratio_percent"]) for p in parts) == [(1024, 10), (4096, 10)]
        await world.kubelet.unprepare(claims[2])
        await world.kubelet.unprepare(claims[1])
        assert await world.reservations() == {}

    go(ONE, body)


def test_the_gpu_is_the_one_that_the_scheduler_chose() -> None:
    async def body(world: Cluster) -> None:
        await world.start_node()
        for server, ordinal in (("gpu-2", 1), ("gpu-1", 2), ("gpu-2", 0)):
            claim = world.claim(f"c-{server}-{ordinal}", [(server, f"gpu-{server}-{ordinal}")], [HALF])
            await world.kubelet.prepare(claim)
            (part,) = (await world.reservations())[pod_of(claim)]["parts"]
            assert (part["nodes"], part["ordinals"]) == ([server], [ordinal])

    go({"gpu-1": 3, "gpu-2": 3}, body)


def test_programs_of_the_pod_use_the_claims_vgpu_one_after_the_other_and_together() -> None:
    """By the controller's own port, with what the container's environment says."""

    async def body(world: Cluster) -> None:
        await world.start_node()
        claim = world.claim("c", [("gpu-1", GPU)], [HALF])
        await world.kubelet.prepare(claim)
        told, client, server = environment(world, claim), world.pool.client(), world.pool.servers["gpu-1"]

        async def attach() -> str:
            given = await client.allocate(vgpu=int(told["ORION_VGPU"]), gmem_mib=int(told["ORION_GMEM"]),
                                          ratio=int(told["ORION_RATIO"]), group=told["ORION_GROUP_ID"],
                                          res_group=told["ORION_RES_GROUP"])  # fmt: skip
            return server.attach(given.servers[0].ticket)

        async def sessions() -> int:
            (gpu,) = await world.http.page("gpus")
            assert (gpu["vgpus"], gpu["ratio_given_percent"]) == (1, 50)  # never more than the claim
            return int((await world.reservations())[pod_of(claim)]["sessions"])

        for _ in range(2):
            both = [await attach(), await attach()]
            while await sessions() != 2:
                await asyncio.sleep(0.02)
            for session in both:
                server.end(session)
            while await sessions():
                await asyncio.sleep(0.02)
        await world.kubelet.unprepare(claim)
        assert await world.reservations() == {}

    go(ONE, body)


def test_several_vgpus_of_several_servers() -> None:
    async def body(world: Cluster) -> None:
        await world.start_node()
        claim = world.claim("c", [("gpu-1", GPU), ("gpu-2", "gpu-gpu-2-0")], [HALF, HALF])
        devices = await world.kubelet.prepare(claim)
        assert [d.pool_name for d in devices] == ["orion/gpu-1", "orion/gpu-2"]
        assert [len(d.cdi_device_ids) for d in devices] == [1, 0]  # the environment, once
        assert environment(world, claim)["ORION_VGPU"] == "2"
        assert environment(world, claim)["ORION_CROSS_NODE"] == "1"
        assert (await world.reservations())[pod_of(claim)]["vgpus"] == 2

    go({"gpu-1": 1, "gpu-2": 1}, body)


def test_parameters_make_a_vgpu_smaller() -> None:
    async def body(world: Cluster) -> None:
        await world.start_node()
        config = [
            {"source": "FromClass", "opaque": {"driver": DRIVER, "parameters": {"gmem": 100, "ratio": 10}}},
            {"source": "FromClaim", "requests": ["vgpu"], "opaque": {"driver": DRIVER, "parameters": {"gmem": 200}}},
            {"source": "FromClaim", "requests": ["x"], "opaque": {"driver": DRIVER, "parameters": {"gmem": 300}}},
            {"source": "FromClaim", "opaque": {"driver": "other.example.com", "parameters": {"gmem": "what"}}},
        ]
        claim = world.claim("c", [("gpu-1", f"{GPU}-s3")], config=config)
        await world.kubelet.prepare(claim)
        told = environment(world, claim)
        assert (told["ORION_GMEM"], told["ORION_RATIO"]) == ("200", "10")

    go(ONE, body)


def _parameters(**values: Any) -> list[Object]:
    return [{"source": "FromClaim", "opaque": {"driver": DRIVER, "parameters": values}}]


def test_parameters_that_are_wrong_are_refused_with_a_sentence() -> None:
    wrong = [
        (_parameters(gmem=4001), "gmem is 4001 MiB, but the claim has 4000 MiB"),
        (_parameters(ratio=26), "ratio is 26 %, but the claim has 25 %"),
        (_parameters(ratio=0), "a whole number of percent from 1 to 100"),
        (_parameters(gmem="4Gi"), "a whole number of MiB"),
        (_parameters(gmem=True), "a whole number of MiB"),
        (_parameters(gmen=5), "'gmen' for gpu.virtaitech.com is not known"),
        (_parameters(kind="Other", gmem=5), "write VgpuParameters of gpu.virtaitech.com/v1"),
        ([{"source": "FromClaim", "opaque": {"driver": DRIVER, "parameters": [1]}}], "no object"),
    ]

    async def body(world: Cluster) -> None:
        await world.start_node()
        for number, (config, sentence) in enumerate(wrong):
            claim = world.claim(f"c{number}", [("gpu-1", f"{GPU}-s0")], config=config)
            with pytest.raises(Refused) as refused:
                await world.kubelet.prepare(claim)
            assert sentence in str(refused.value)
        assert await world.reservations() == {} and not world.cdi.exists()

    go(ONE, body)


def test_claims_that_cannot_be_prepared() -> None:
    async def body(world: Cluster) -> None:
        await world.start_node()

        async def refusal(claim: Object) -> str:
            with pytest.raises(Refused) as refused:
                await world.kubelet.prepare(claim)
            return str(refused.value)

        assert "reserved for 2 pods" in await refusal(world.claim("shared", [("gpu-1", GPU)], [HALF], pods=2))
        assert "not reserved for a pod" in await refusal(world.claim("nobody", [("gpu-1", GPU)], [HALF], pods=0))
        assert "has no device of" in await refusal(world.claim("empty", []))
        assert "is not there" in await refusal(world.claim("lost", [("gpu-9", GPU)], [HALF]))
        other = HALF | {"gmem": "1Gi"}
        assert "not of one size" in await refusal(world.claim("mixed", [("gpu-1", GPU)] * 2, [HALF, other]))
        assert "consumedCapacity.gmem" in await refusal(world.claim("odd", [("gpu-1", GPU)], [{"gmem": "4 apples"}]))
        renewed = world.claim("renewed", [("gpu-1", GPU)], [HALF])
        gone = renewed | {"metadata": renewed["metadata"] | {"uid": str(uuid.uuid4())}}
        assert "another claim of that name" in await refusal(gone)
        unknown = gone | {"metadata": gone["metadata"] | {"name": "unknown"}}
        assert "not found" in await refusal(unknown)
        hostile = gone | {"metadata": gone["metadata"] | {"uid": "../../etc/passwd"}}
        assert "no uid" in await refusal(hostile)
        wish = {"uid": "p2", "namespace": "default", "name": "both-0", "containers": [{"name": "main", "gmem_mib": 10}]}
        await world.http.call("POST", "/api/v1/pods/reserve", {"pods": [wish]})  # as the scheduler does for limits
        both = world.claim("both", [("gpu-1", GPU)], [HALF], pod_uid="p2")
        assert "with a claim or with limits, not with both" in await refusal(both)
        assert set(await world.reservations()) == {"p2"}
        await world.kube.stop()
        late = world.claim("late", [("gpu-1", GPU)], [HALF])
        assert "API server does not answer" in await refusal(late)
        await world.kube.start()
        await world.kubelet.prepare(late)

    go(ONE, body)
