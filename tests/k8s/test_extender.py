"""kube-scheduler's extender, asked as kube-scheduler asks, over a real controller with simulated servers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.controller.simulated import wish
from tests.k8s.api_server import Refused, node, pod
from tests.k8s.scheduler_world import PODS, World, go, vgpu_pod

NODES = ["cpu-1", "cpu-2", "gpu-1", "gpu-2"]
TWO = {"gpu-1": {}, "gpu-2": {}}


def test_a_pod_is_placed_beside_its_vgpus_and_attaches(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        item = w.api.add_pod(vgpu_pod("p", ORION_GMEM="4096", ORION_RATIO="50"))
        told = await w.filter(item, NODES)
        assert told == {"NodeNames": NODES}
        assert await w.prioritize(item, NODES) == {"cpu-1": 0, "cpu-2": 0, "gpu-1": 10, "gpu-2": 0}
        assert await w.bind(item, "gpu-1") == ""
        assert w.api.objects[PODS]["default/p"]["spec"]["nodeName"] == "gpu-1"
        await w.until(lambda: w.held()["p"].expires_s is None)
        uid = item["metadata"]["uid"]
        given = await w.pool.client().allocate(group=uid, gmem_mib=4096, ratio=50)
        assert [s.server for s in given.servers] == ["gpu-1"] and w.used_mib() == 4096
        w.pool.servers["gpu-1"].attach(given.servers[0].ticket)
        await w.until(lambda: w.held()["p"].state == "active")
        # The pod is deleted: its programs are told to end, and everything is free at once.
        w.api.remove(PODS, "default/p")
        await w.until(lambda: not w.held() and w.used_mib() == 0)
        assert not w.pool.servers["gpu-1"].simulated.sessions

    go(tmp_path, TWO, body)


def test_a_node_without_gpu_hosts_a_pod_whose_vgpus_are_elsewhere(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        item = w.api.add_pod(vgpu_pod("p", count=2, ORION_GMEM="16000"))
        told = await w.filter(item, ["cpu-1", "cpu-2"])
        assert told["NodeNames"] == ["cpu-1", "cpu-2"]
        assert await w.prioritize(item, ["cpu-1", "gpu-2"]) == {"cpu-1": 0, "gpu-2": 5}
        assert await w.bind(item, "cpu-2") == ""
        assert sorted(w.held()["p"].nodes) == ["gpu-1", "gpu-2"]

    go(tmp_path, TWO, body)


@pytest.mark.parametrize(("rule", "wanted"), [("", "gpu-2"), ("local-first", "gpu-2"), ("binpack", "gpu-1"),
                                              ("spread", "gpu-3")])  # fmt: skip
def test_rules(tmp_path: Path, rule: str, wanted: str) -> None:
    """gpu-1 is the fullest, gpu-3 the emptiest; gpu-2 alone of them can run the pod."""

    async def body(w: World) -> None:
        for number, server, mib in ((1, "gpu-1", "8000"), (2, "gpu-2", "4000")):
            item = w.api.add_pod(vgpu_pod(f"old-{number}", ORION_GMEM=mib, ORION_RATIO="10"))
            assert await w.place(item, [server]) == server
        env = {"ORION_SCHEDULE_RULE": rule} if rule else {}
        item = w.api.add_pod(vgpu_pod("new", ORION_GMEM="1000", ORION_RATIO="10", **env))
        assert (await w.filter(item, ["cpu-1", "gpu-2"]))["NodeNames"]
        assert w.held()["new"].nodes == [wanted]

    go(tmp_path, {"gpu-1": {}, "gpu-2": {}, "gpu-3": {}}, body)


def test_it_moves_to_the_node_that_kube_scheduler_chose(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        item = w.api.add_pod(vgpu_pod("p", ORION_GMEM="4096"))
        await w.filter(item, NODES)
        assert w.held()["p"].nodes == ["gpu-1"]
        assert await w.bind(item, "gpu-2") == ""
        assert w.held()["p"].nodes == ["gpu-2"] and w.used_mib() == 4096

    go(tmp_path, TWO, body)


def test_several_containers_have_all_or_nothing(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        item = vgpu_pod("p", ORION_GMEM="10000")
        second = json.loads(json.dumps(item["spec"]["containers"][0])) | {"name": "second"}
        item["spec"]["containers"].append(second)
        item["spec"]["containers"].append({"name": "plain", "image": "x"})
        w.api.add_pod(item)
        assert (await w.filter(item, NODES))["NodeNames"] == NODES
        assert [part.container for part in w.held()["p"].parts] == ["main", "second"] and w.used_mib() == 20000
        other = w.api.add_pod(vgpu_pod("q", ORION_GMEM="10000"))
        told = await w.filter(other, NODES)
        assert told["NodeNames"] == []
        assert told["FailedNodes"] == told["FailedAndUnresolvableNodes"]
        reason = "orion: the pool has room for 0 vGPUs of 10000 MiB and 25 % now, 1 are asked for"
        assert told["FailedNodes"] == dict.fromkeys(NODES, reason)
        assert w.used_mib() == 20000

    go(tmp_path, TWO, body)


def test_a_pod_that_found_no_room_is_looked_at_again_when_there_is_some(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        first = w.api.add_pod(vgpu_pod("first", ORION_GMEM="16000"))
        await w.place(first, NODES)
        second = w.api.add_pod(vgpu_pod("second", ORION_GMEM="16000"))
        assert (await w.filter(second, NODES))["NodeNames"] == []
        w.api.remove(PODS, "default/first")
        await w.until(lambda: "virtaitech.com/retry" in
                      w.api.objects[PODS]["default/second"]["metadata"].get("annotations", {}))  # fmt: skip
        await w.place(second, NODES)

    go(tmp_path, {"gpu-1": {}}, body)


def test_a_pod_that_is_placed_while_others_are_told_of_room(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        refusals, reconciler = w.scheduler.extender.refusals.pods, w.scheduler.reconciler
        await w.place(w.api.add_pod(vgpu_pod("first", ORION_GMEM="16000")), NODES)
        for name in ("a", "b", "c"):
            item = w.api.add_pod(vgpu_pod(name, ORION_GMEM="16000"))
            assert (await w.filter(item, NODES))["NodeNames"] == []
        patch, told = reconciler._api.patch, []

        async def patch_and_place(path: str, change: dict[str, object]) -> object:
            told.append(path)
            refusals.pop(w.api.objects[PODS]["default/b"]["metadata"]["uid"], None)
            return await patch(path, change)

        reconciler._api.patch = patch_and_place  # type: ignore[method-assign]
        await reconciler._tell_waiting()
        assert [path.rpartition("/")[2] for path in told] == ["a", "c"] and not refusals

    go(tmp_path, {"gpu-1": {}}, body, runs=False)


def test_what_a_pod_may_not_ask_for(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        for item, reason in (
            (vgpu_pod("a", ORION_GMEM="99999"), "orion: no GPU of the pool has 99999 MiB: the largest has 16000"),
            (vgpu_pod("b", ORION_GMEM="lots"), "orion: container main: ORION_GMEM (MiB) is a whole number, not 'lots'"),
            (vgpu_pod("c", count=2, ORION_VGPU="3"), "ORION_VGPU is 3, and the limit of vGPUs is 2"),
            (vgpu_pod("d", ORION_SCHEDULE_RULE="best"), "ORION_SCHEDULE_RULE is 'best': local-first, binpack, spread"),
        ):
            told = await w.filter(w.api.add_pod(item), NODES)
            assert told["NodeNames"] == [] and reason in told["FailedNodes"]["cpu-1"]
        # It cannot change: nobody looks at it again.
        assert not w.scheduler.extender.refusals.pods and not w.held()

    go(tmp_path, TWO, body)


def test_pods_that_do_not_ask_and_pods_without_environment(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        assert await w.filter(w.api.add_pod(pod("plain")), NODES) == {"NodeNames": NODES}
        other = pod("other")
        other["spec"]["containers"][0]["resources"] = {"limits": {"virtaitech.com/unknown": "1"}}
        assert await w.filter(w.api.add_pod(other), NODES) == {"NodeNames": NODES}
        assert await w.bind(w.api.objects[PODS]["default/plain"], "cpu-1") == ""
        assert not w.held()
        bare = pod("bare")
        bare["spec"]["containers"][0]["resources"] = {"limits": {"virtaitech.com/gpu": "1"}}
        await w.place(w.api.add_pod(bare), NODES)
        (part,) = w.held()["bare"].parts  # a default vGPU: a quarter of the smallest GPU
        assert (part.gmem_mib, part.ratio_percent, len(part.nodes)) == (4000, 25, 1)

    go(tmp_path, TWO, body)


def test_whole_nodes_where_the_cache_is_off(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        item = w.api.add_pod(vgpu_pod("p"))
        nodes = {"metadata": {}, "items": [node("gpu-1"), node("cpu-1")]}
        status, told = await w.post("filter", {"Pod": item, "Nodes": nodes, "NodeNames": None})
        assert status == 200 and told == {"Nodes": nodes}
        status, told = await w.post("prioritize", {"pod": item, "nodes": nodes, "nodenames": None})
        assert status == 200 and {entry["Host"]: entry["Score"] for entry in told} == {"gpu-1": 10}

    go(tmp_path, TWO, body, runs=False)


def test_malformed_requests_are_refused_and_nothing_happens(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        for raw in (
            b"", b"{", b"[]", b"null", b'{"Pod": 1, "NodeNames": []}', b'{"Pod": {}}', b'{"Pod": {}, "NodeNames": [1]}',
            b'{"Pod": {}, "Nodes": {"items": [{}]}}', b'{"NodeNames": ["a"]}', b"\xff\xfe", b"[" * 100_000,
            b'{"PodName": "p", "PodNamespace": "", "PodUID": "u", "Node": "n"}', b'{"PodName": 5}',
        ):  # fmt: skip
            for verb in ("filter", "prioritize", "bind"):
                status, told = await w.post(verb, None, raw)
                assert status == 400 and told["Error"], (verb, raw)
        assert not w.held()

    go(tmp_path, TWO, body, runs=False)


def test_pods_that_no_api_server_would_let_in(tmp_path: Path) -> None:
    def spec(name: object, amount: object, **more: object) -> dict[str, object]:
        limits = {"limits": {"virtaitech.com/gpu": amount}}
        return {"spec": {"containers": [{"name": name, "resources": limits} | more]}}

    async def body(w: World) -> None:
        for change in (
            {"metadata": None}, {"metadata": []}, {"spec": None}, {"spec": {"containers": None}},
            {"spec": {"containers": [None]}}, spec(5, "1", env=[1, {"name": []}]), spec("m", "1e3"),
            spec("m", "9999999999999"), spec("m\n", "1"), spec("m", {}), spec("m", [1]), spec("", "1"),
        ):  # fmt: skip
            item = vgpu_pod("p")
            item["metadata"]["uid"] = "u"
            told = await w.filter(item | change, NODES)
            # Either it does not ask for anything, or it is told why not.
            fits = told.get("NodeNames") == NODES
            assert fits or told.get("Error") or all(told["FailedNodes"].values()), change
            assert isinstance(await w.prioritize(item | change, NODES), dict)

    go(tmp_path, TWO, body, runs=False)


def test_two_at_once_never_have_more_than_there_is(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        items = [w.api.add_pod(vgpu_pod(f"p{n}", ORION_GMEM="4000", ORION_RATIO="25")) for n in range(40)]

        async def one(number: int) -> bool:
            told = await w.filter(items[number], NODES)
            return bool(told.get("NodeNames")) and await w.bind(items[number], NODES[number % 4]) == ""

        done = await asyncio.gather(*(one(n) for n in range(40)))
        assert sum(done) == 8 and w.used_mib() == 32000
        assert {gpu.given_mib for gpu in w.pool.controller.gpus()} == {16000}

    go(tmp_path, TWO, body)


# ---------------------------------------------------------------------------------------------------- trouble


def test_the_controller_is_away_pods_wait_and_nothing_is_placed_twice(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        item = w.api.add_pod(vgpu_pod("p", ORION_GMEM="4096"))
        assert (await w.filter(item, NODES))["NodeNames"] == NODES
        client = w.scheduler.controller
        away, client._urls = client._urls, ["http://127.0.0.1:1"]
        told = await w.filter(w.api.add_pod(vgpu_pod("q")), NODES)
        assert "the pod waits, since the controller does not help" in told["Error"] and not told.get("NodeNames")
        assert "the pod waits" in await w.bind(item, "gpu-1")
        assert "nodeName" not in w.api.objects[PODS]["default/p"]["spec"]
        client._urls = away
        assert (await w.filter(item, NODES))["NodeNames"] == NODES
        assert await w.bind(item, "gpu-1") == "" and w.used_mib() == 4096

    go(tmp_path, TWO, body)


def test_a_controller_that_has_just_started_places_nothing_twice(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        item = w.api.add_pod(vgpu_pod("p", ORION_GMEM="4096"))
        await w.place(item, NODES)
        pool = w.pool.controller.pool
        record = pool.allocations[w.held()["p"].parts[0].group].record
        # As after a restart: the store knows it, its server has not come yet.
        await w.pool.controller.end_group(record.id, "test")
        pool._absent[record.id], pool._expected[record.group] = record, 1
        told = await w.filter(item, NODES)
        assert "just started" in told["Error"] and w.used_mib() == 0

    go(tmp_path, TWO, body, runs=False)


def test_what_filter_reserves_is_stored_when_the_pod_is_bound(tmp_path: Path) -> None:
    """A controller that starts between the two has forgotten it, and bind reserves anew."""

    async def body(w: World) -> None:
        item = w.api.add_pod(vgpu_pod("p", ORION_GMEM="4096"))
        controller = w.pool.controller
        for _ in range(2):
            await w.filter(item, NODES)
            assert w.held()["p"].vgpus == 1 and not (await controller._store.load()).allocations
        (part,) = w.held()["p"].parts
        await controller.end_group(part.group, "as a restart would")
        assert await w.bind(item, "gpu-1") == ""
        (stored,) = (await controller._store.load()).allocations.values()
        assert stored.id == w.held()["p"].parts[0].group and w.used_mib() == 4096

    go(tmp_path, TWO, body, runs=False)


def test_a_server_that_is_lost_and_another_that_has_room(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        item = w.api.add_pod(vgpu_pod("p", ORION_GMEM="4096"))
        await w.place(item, ["gpu-2"])
        assert w.held()["p"].nodes == ["gpu-2"]
        w.pool.servers["gpu-2"].link.close()
        await w.until(lambda: "p" in w.held() and w.held()["p"].nodes == ["gpu-1"])
        assert w.used_mib() == 4096

    from tests.k8s.scheduler_world import QUICK

    go(tmp_path, TWO, body, policies=QUICK)


def test_a_reservation_that_nobody_binds_expires(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        item = w.api.add_pod(vgpu_pod("p", ORION_GMEM="4096"))
        await w.filter(item, NODES)
        assert w.used_mib() == 4096
        await w.until(lambda: w.used_mib() == 0)

    from orion_k8s.scheduler.extender import Options

    go(tmp_path, TWO, body, extender=Options(reserve_s=1.0))


def test_bound_twice_it_is_bound_once(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        item = w.api.add_pod(vgpu_pod("p", ORION_GMEM="4096"))
        assert await w.place(item, NODES) == "gpu-1"
        assert await w.bind(item, "gpu-1") == ""
        assert await w.bind(item, "gpu-2") == "orion: the pod runs on gpu-1 already"
        assert w.api.objects[PODS]["default/p"]["spec"]["nodeName"] == "gpu-1"
        assert len(w.held()["p"].parts) == 1 and w.used_mib() == 4096

    go(tmp_path, TWO, body)


def test_a_pod_that_is_deleted_while_it_is_bound_keeps_nothing(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        item = w.api.add_pod(vgpu_pod("p", ORION_GMEM="4096"))
        await w.filter(item, NODES)
        w.api.remove(PODS, "default/p")
        assert await w.bind(item, "gpu-1") == "orion: pod default/p is gone"
        await w.until(lambda: w.used_mib() == 0)
        # Another pod of the same name is not meant.
        second = w.api.add_pod(vgpu_pod("p", ORION_GMEM="4096"))
        assert await w.bind(item, "gpu-1") == "orion: pod default/p is gone"
        assert "nodeName" not in second["spec"] and w.used_mib() == 0

    go(tmp_path, TWO, body)


def test_the_api_server_is_away_while_a_pod_is_bound(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        item = w.api.add_pod(vgpu_pod("p", ORION_GMEM="4096"))
        await w.filter(item, NODES)
        await w.api.stop()
        assert "bind" in (told := await w.bind(item, "gpu-1")) and "orion:" in told
        assert w.used_mib() == 4096  # it may be bound after all
        await w.api.start()
        assert await w.bind(item, "gpu-1") == ""
        # The other way round: it was bound, and the answer got lost.
        other = w.api.add_pod(vgpu_pod("q", ORION_GMEM="4096"))
        await w.filter(other, NODES)
        w.api.objects[PODS]["default/q"]["spec"]["nodeName"] = "gpu-2"
        assert await w.bind(other, "gpu-2") == ""
        # And it refuses for a reason of its own.
        third = w.api.add_pod(vgpu_pod("r", ORION_GMEM="4096"))
        await w.filter(third, NODES)
        w.api.fail_next.append(Refused(403, "Forbidden", "may not"))
        assert "may not" in await w.bind(third, "gpu-2")
        assert w.used_mib() == 3 * 4096

    go(tmp_path, TWO, body)


def test_another_process_answers_bind_than_filter(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        item = w.api.add_pod(vgpu_pod("p", ORION_GMEM="4096"))
        await w.filter(item, NODES)
        w.scheduler.extender._reserved.clear()
        assert await w.bind(item, "gpu-2") == "" and w.held()["p"].nodes == ["gpu-2"]

    go(tmp_path, TWO, body)


def test_a_scheduler_that_was_away_releases_and_reserves_what_it_missed(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        gone = w.api.add_pod(vgpu_pod("gone", ORION_GMEM="4096"))
        await w.place(gone, NODES)
        await w.until(lambda: w.held()["gone"].expires_s is None)
        w.api.compact()  # the deletion is never told: the pods are listed anew
        del w.api.objects[PODS]["default/gone"]
        ended = w.api.add_pod(vgpu_pod("ended", ORION_GMEM="4096"))
        await w.place(ended, NODES)
        w.api.add_pod(w.api.objects[PODS]["default/ended"] | {"status": {"phase": "Succeeded"}})
        # Bound by another scheduler.
        other = vgpu_pod("other", ORION_GMEM="2000")
        other["spec"]["nodeName"] = "gpu-2"
        w.api.add_pod(other)
        await w.until(lambda: list(w.held()) == ["other"])
        assert w.held()["other"].nodes == ["gpu-2"] and w.held()["other"].expires_s is None
        # One for which there is no room is told so.
        large = vgpu_pod("large", count=3, ORION_GMEM="16000")
        large["spec"]["nodeName"] = "cpu-1"
        w.api.add_pod(large)
        await w.until(lambda: w.told("OrionNoVgpus"))
        assert "the pod is bound and has no vGPUs" in w.told("OrionNoVgpus")[0]

    go(tmp_path, TWO, body)


def test_what_is_reserved_for_others_is_left_alone(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        assert (await w.http.call("POST", "/api/v1/reservations", {"group": "team", "ttl_s": 600})).status == 201
        given = await w.pool.client().allocate(group="mine", gmem_mib=1000, ratio=10)
        w.pool.servers[given.servers[0].server].attach(given.servers[0].ticket)
        await w.scheduler.reconciler.look_once()
        await w.scheduler.reconciler._work_once()
        assert {group.group for group in w.pool.controller.groups()} == {"team", "mine"}

    go(tmp_path, TWO, body)


# ---------------------------------------------------------------------------------------------------- live change


def test_an_edit_of_the_annotations_resizes_the_running_vgpu(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        item = w.api.add_pod(vgpu_pod("p", ORION_GMEM="4096", ORION_RATIO="25"))
        await w.place(item, NODES)
        uid = item["metadata"]["uid"]
        given = await w.pool.client().allocate(group=uid, gmem_mib=4096, ratio=25)
        server = w.pool.servers["gpu-1"]
        server.attach(given.servers[0].ticket)
        await w.until(lambda: w.held()["p"].state == "active")
        w.edit("p", gmem="8000", ratio="50")
        await w.until(lambda: w.told("OrionResized"))
        assert w.told("OrionResized") == ["8000 MiB and 50 % for each of 1 vGPUs"]
        assert [(c.gmem_mib, c.ratio) for c in server.commands] == [(8000, 50)]
        assert w.used_mib() == 8000
        # More than there is: refused, and why; it stays as it was.
        w.edit("p", gmem="20000")
        await w.until(lambda: w.told("OrionResizeRefused"))
        assert "has not that much left" in w.told("OrionResizeRefused")[0] and w.used_mib() == 8000
        w.edit("p", gmem="a lot")
        await w.until(lambda: len(w.told("OrionResizeRefused")) > 1)
        assert "whole number, not 'a lot'" in w.told("OrionResizeRefused")[-1]
        # The server refuses: the program uses more.
        server.refuses = linked_error("the program uses 7000 MiB")
        w.edit("p", gmem="1000")
        await w.until(lambda: any("uses 7000 MiB" in message for message in w.told("OrionResizeRefused")))
        assert w.used_mib() == 8000
        # It is tried again, and told once it works.
        server.refuses = None
        await w.until(lambda: w.used_mib() == 1000)
        await w.until(lambda: len(w.told("OrionResized")) == 2)

    go(tmp_path, TWO, body)


def linked_error(message: str) -> Exception:
    from tests.controller.linked import CommandError

    return CommandError(1, message)


def test_all_vgpus_of_a_pod_are_resized_or_none(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        item = vgpu_pod("p", ORION_GMEM="4000", ORION_RATIO="10")
        second = json.loads(json.dumps(item["spec"]["containers"][0])) | {"name": "second"}
        item["spec"]["containers"].append(second)
        w.api.add_pod(item)
        await w.place(item, ["gpu-1"])
        uid = item["metadata"]["uid"]
        for _ in range(2):
            given = await w.pool.client().allocate(group=uid, gmem_mib=4000, ratio=10)
            w.pool.servers["gpu-1"].attach(given.servers[0].ticket)
            await asyncio.sleep(0.05)
        await w.until(lambda: [part.sessions for part in w.held()["p"].parts] == [1, 1])
        w.edit("p", gmem="9000")
        await w.until(lambda: w.told("OrionResizeRefused"))
        assert [part.gmem_mib for part in w.held()["p"].parts] == [4000, 4000]
        w.edit("p", gmem="8000")
        await w.until(lambda: [part.gmem_mib for part in w.held()["p"].parts] == [8000, 8000])

    go(tmp_path, {"gpu-1": {}}, body)


def test_an_annotation_that_a_pod_is_made_with_is_its_size(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        item = w.api.add_pod(vgpu_pod("p", annotations={"virtaitech.com/gmem": "3000", "virtaitech.com/ratio": "30"}))
        await w.place(item, NODES)
        await w.until(lambda: w.held()["p"].expires_s is None)
        (part,) = w.held()["p"].parts
        assert (part.gmem_mib, part.ratio_percent) == (3000, 30)
        assert not w.told("OrionResized")
        w.edit("p", gmem="5000")  # before any program has come
        await w.until(lambda: w.told("OrionResized") == ["5000 MiB and 30 % for each of 1 vGPUs"])
        given = await w.pool.client().allocate(group=item["metadata"]["uid"], gmem_mib=3000, ratio=30)
        assert given.servers and w.used_mib() == 5000

    go(tmp_path, TWO, body)


def test_the_client_of_a_pod_never_gets_more_than_its_pod(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        item = w.api.add_pod(vgpu_pod("p", ORION_GMEM="4096", ORION_RATIO="25"))
        await w.place(item, NODES)
        for _ in range(3):
            asked = wish(group=item["metadata"]["uid"], vgpu=2, gmem_mib=16000, ratio=100)
            assert isinstance(asked.group, str)
            given = await w.pool.client().ask(asked)
            assert len(given.servers) == 1
        assert w.used_mib() == 4096 and len(w.pool.controller.groups()) == 1

    go(tmp_path, TWO, body)
