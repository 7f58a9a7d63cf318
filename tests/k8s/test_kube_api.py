"""The client of the Kubernetes API server, against a small one over HTTP."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import yaml

from orion_controller.kube_api import (
    Access,
    Change,
    KubeApi,
    KubeConfigError,
    KubeError,
    find_access,
    from_kubeconfig,
    in_cluster,
    path_of,
)
from tests.k8s.api_server import ApiServer, Refused, api_server, pod

PODS = path_of("pods")


def go(body: Callable[[ApiServer, KubeApi], Awaitable[None]]) -> None:
    async def run() -> None:
        async with api_server() as server, KubeApi(Access(server.url)) as api:
            await body(server, api)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_paths() -> None:
    assert path_of("pods", "a", "b", "binding") == "/api/v1/namespaces/a/pods/b/binding"
    assert path_of("resourceslices", api="resource.k8s.io/v1") == "/apis/resource.k8s.io/v1/resourceslices"
    assert path_of("pods", "../x") == "/api/v1/namespaces/..%2Fx/pods"


def test_create_get_patch_delete() -> None:
    async def body(_server: ApiServer, api: KubeApi) -> None:
        made = await api.create(path_of("pods", "default"), pod("p"))
        path = path_of("pods", "default", "p")
        assert (await api.get(path))["metadata"]["uid"] == made["metadata"]["uid"]
        for kind in ("merge", "strategic"):
            await api.patch(path, {"metadata": {"annotations": {kind: "1"}}}, kind)  # type: ignore[arg-type]
        assert (await api.get(path))["metadata"]["annotations"] == {"merge": "1", "strategic": "1"}
        with pytest.raises(KubeError) as twice:
            await api.create(path_of("pods", "default"), pod("p"))
        assert (twice.value.status, twice.value.reason) == (409, "AlreadyExists")
        await api.delete(path)
        with pytest.raises(KubeError) as gone:
            await api.get(path)
        assert (gone.value.status, gone.value.reason) == (404, "NotFound")

    go(body)


def test_a_list_comes_in_pages_and_survives_an_expired_one() -> None:
    async def body(server: ApiServer, api: KubeApi) -> None:
        for number in range(7):
            server.add_pod(pod(f"p{number}"))
        items, version = await api.list(PODS, page_items=3)
        assert [item["metadata"]["name"] for item in items] == [f"p{n}" for n in range(7)]
        assert version == str(server.version)
        assert server.calls.count(("GET", PODS)) == 3
        page = await api.get(PODS, {"limit": "3"})
        server.compact()
        with pytest.raises(KubeError) as expired:
            await api.get(PODS, {"limit": "3", "continue": page["metadata"]["continue"]})
        assert expired.value.status == 410

        # The second page of the first try is expired: the list is asked for again, in one piece.
        real = server._list

        def once(*arguments: object) -> dict[str, object]:
            if arguments[0].query.get("continue"):  # type: ignore[attr-defined]
                server._list = real  # type: ignore[method-assign]
                raise Refused(410, "Expired", "too old")
            return real(*arguments)  # type: ignore[arg-type]

        server._list = once  # type: ignore[assignment, method-assign]
        items, _ = await api.list(PODS, page_items=3)
        assert len(items) == 7

    go(body)


async def _take(changes: asyncio.Queue[Change], count: int) -> list[tuple[str, list[str]]]:
    got = [await asyncio.wait_for(changes.get(), 20) for _ in range(count)]
    return [(change.kind, [item["metadata"]["name"] for item in change.items]) for change in got]


def test_what_is_followed_stays_true() -> None:
    async def body(server: ApiServer, api: KubeApi) -> None:
        server.add_pod(pod("a"))
        changes: asyncio.Queue[Change] = asyncio.Queue()

        async def follow() -> None:
            async for change in api.follow(PODS):
                changes.put_nowait(change)

        task = asyncio.create_task(follow())
        try:
            assert await _take(changes, 1) == [("LISTED", ["a"])]
            server.add_pod(pod("b"))
            server.add_pod(pod("a"))
            server.remove(PODS, "default/b")
            assert await _take(changes, 3) == [("ADDED", ["b"]), ("MODIFIED", ["a"]), ("DELETED", ["b"])]
            # The API server restarts: the watch is resumed where it stood, nothing comes twice.
            await server.stop()
            server.add_pod(pod("c"))
            await server.start()
            assert await _take(changes, 1) == [("ADDED", ["c"])]
            # It has forgotten the version: everything is listed again.
            await server.stop()
            server.remove(PODS, "default/c")
            server.compact()
            await server.start()
            assert await _take(changes, 1) == [("LISTED", ["a"])]
            server.add_pod(pod("d"))
            assert await _take(changes, 1) == [("ADDED", ["d"])]
        finally:
            task.cancel()

    go(body)


def test_bind() -> None:
    async def body(server: ApiServer, api: KubeApi) -> None:
        uid = server.add_pod(pod("p"))["metadata"]["uid"]
        with pytest.raises(KubeError) as other:
            await api.bind_pod("default", "p", "another", "n1")
        assert other.value.status == 409
        await api.bind_pod("default", "p", uid, "n1")
        assert server.objects[PODS]["default/p"]["spec"]["nodeName"] == "n1"
        with pytest.raises(KubeError) as twice:
            await api.bind_pod("default", "p", uid, "n2")
        assert (twice.value.status, twice.value.reason) == (409, "Conflict")
        with pytest.raises(KubeError) as gone:
            await api.bind_pod("default", "q", uid, "n1")
        assert gone.value.status == 404

    go(body)


def test_events() -> None:
    async def body(server: ApiServer, api: KubeApi) -> None:
        about = server.add_pod(pod("p"))
        await api.create_event(about, "Warning", "Nothing", "x" * 2000, "orion-scheduler", wall_s=0.0)
        (event,) = server.events()
        assert event["involvedObject"]["uid"] == about["metadata"]["uid"]
        assert event["involvedObject"]["kind"] == "Pod"
        assert len(event["message"]) == 1000
        assert event["firstTimestamp"] == "1970-01-01T00:00:00Z"

    go(body)


def test_token_review() -> None:
    async def body(server: ApiServer, api: KubeApi) -> None:
        user = {
            "username": "system:serviceaccount:team:default", "uid": "sa-uid",
            "extra": {"authentication.kubernetes.io/pod-name": ["p"],
                      "authentication.kubernetes.io/pod-uid": ["pod-uid"]},
        }  # fmt: skip
        server.tokens["good"] = {"authenticated": True, "user": user, "audiences": ["orion"]}
        server.tokens["old-server"] = {"authenticated": True, "user": user}
        good = await api.token_review("good", ["orion"])
        assert (good.authenticated, good.pod_name, good.pod_uid, good.namespace) == (True, "p", "pod-uid", "team")
        assert not (await api.token_review("good", ["vault"])).authenticated
        assert not (await api.token_review("bad", ["orion"])).authenticated
        unsure = await api.token_review("old-server", ["orion"])
        assert not unsure.authenticated and "audience" in unsure.error

    go(body)


def test_no_answer_is_an_error_with_status_0(tmp_path: Path) -> None:
    async def body(server: ApiServer, api: KubeApi) -> None:
        await server.stop()
        with pytest.raises(KubeError) as away:
            await api.get(PODS)
        assert (away.value.status, away.value.reason) == (0, "Unreachable")

        async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(30)
            writer.close()

        listener = await asyncio.start_server(silent, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with KubeApi(Access(url), timeout_s=0.2) as slow:
            with pytest.raises(KubeError) as late:
                await slow.get(PODS)
        assert (late.value.status, late.value.reason) == (0, "Timeout")
        listener.close()

    go(body)


def test_answers_that_are_no_json() -> None:
    async def body(_server: ApiServer, _api: KubeApi) -> None:
        async def strange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[1]")

        listener = await asyncio.start_server(strange, "127.0.0.1", 0)
        async with KubeApi(Access(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")) as api:
            with pytest.raises(KubeError, match="no object"):
                await api.get(PODS)
        listener.close()

    go(body)


def test_the_token_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")

    async def run() -> None:
        async with api_server() as server, KubeApi(Access(server.url, token_file=file)) as api:
            server.needs_token = "one"
            await api.get(PODS)
            server.needs_token = "second"
            file.write_text("second\n")
            await api.get(PODS)
            server.needs_token = "third"
            with pytest.raises(KubeError) as refused:
                await api.get(PODS)
            assert refused.value.status == 401

    asyncio.run(run())


def test_access_of_a_pod(tmp_path: Path) -> None:
    with pytest.raises(KubeConfigError, match="KUBERNETES_SERVICE_HOST"):
        in_cluster(tmp_path, {})
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    with pytest.raises(KubeConfigError, match="automountServiceAccountToken"):
        in_cluster(tmp_path, environment)
    (tmp_path / "token").write_text("t")
    with pytest.raises(KubeConfigError, match="certificate authority"):
        in_cluster(tmp_path, environment)


def test_kubeconfig(tmp_path: Path) -> None:
    def write(user: object, server: str = "http://127.0.0.1:1/") -> Path:
        path = tmp_path / "config"
        path.write_text(yaml.safe_dump({
            "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u",
                                                                           "namespace": "ns"}}],
            "clusters": [{"name": "k", "cluster": {"server": server}}], "users": [{"name": "u", "user": user}],
        }))  # fmt: skip
        return path

    access = from_kubeconfig(write({"token": "t"}))
    assert (access.url, access.token, access.namespace, access.tls) == ("http://127.0.0.1:1", "t", "ns", None)
    assert find_access("", {"KUBECONFIG": str(tmp_path / "config")}) == access
    with pytest.raises(KubeConfigError, match="program"):
        from_kubeconfig(write({"exec": {"command": "x"}}))
    with pytest.raises(KubeConfigError, match="no kubeconfig"):
        from_kubeconfig(tmp_path / "missing")
    with pytest.raises(KubeConfigError, match="certificate"):
        bad = base64.b64encode(b"no certificate").decode()
        user = {"client-certificate-data": bad, "client-key-data": bad}
        from_kubeconfig(write(user, "https://127.0.0.1:1"))
