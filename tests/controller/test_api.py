"""Reads, lists, changes and refusals of /api/v1, over plain data."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess

import aiohttp
import msgspec
import pytest

from orion_controller.api import lists, models
from orion_controller.api.app import serve, tls_context
from orion_controller.backend import ServiceError
from orion_controller.store import StoreError
from tests.controller.http_world import Time, World, go, part
from tests.controller.pool_backend import PoolBackend

MODELS = {kind.name: kind.model for kind in lists.KINDS}


def test_every_list_tells_what_the_pool_tells(tmp_path):
    async def body(w: World) -> None:
        pool = w.pool
        expected = {"nodes": pool.nodes(), "gpus": pool.gpus(), "vgpus": pool.vgpus(), "groups": pool.groups(),
                    "sessions": pool.sessions(), "queue": pool.queue(), "limits": pool.limits(),
                    "events": await pool.events()}  # fmt: skip
        for name, items in expected.items():
            answer = await w.get(f"/api/v1/{name}")
            assert answer.status == 200 and answer.headers["Content-Type"] == "application/json"
            found = msgspec.json.decode(answer.body, type=lists.Page[MODELS[name]], strict=True)
            assert found.items == items and found.total == len(items) and items
        assert msgspec.json.decode((await w.get("/api/v1/summary")).body, type=models.Summary) == pool.summary()
        node = await w.get("/api/v1/nodes/node-0001")
        assert msgspec.json.decode(node.body, type=models.Node) == pool.all_nodes["node-0001"]
        group = await w.get("/api/v1/groups/alloc-000003")
        assert msgspec.json.decode(group.body, type=models.Group) == pool.all_groups["alloc-000003"]
        history = await w.get(f"/api/v1/history?scope={part('gpu/node-0002/1')}")
        assert history.json["series"][0]["values"] == [1.0, None, 3.0]
        assert (await w.get("/api/v1/history")).json["scope"] == "pool"

    go(tmp_path, body)


def test_lists_are_filtered_sorted_and_cut(tmp_path):
    async def body(w: World) -> None:
        answer = (await w.get("/api/v1/vgpus?limit=3&offset=2&sort=-launches")).json
        assert answer["total"] == 12 and [v["launches"] for v in answer["items"]] == [18, 16, 14]
        assert (await w.get("/api/v1/vgpus?offset=12")).json == {"items": [], "total": 12}
        assert len(await w.page("vgpus?node=node-0001")) == 4
        assert [v["group"] for v in await w.page("vgpus?group=alloc-000002")] == ["alloc-000002"]
        # Also by the name that ORION_GROUP_ID gave, which several may share.
        assert {v["group"] for v in await w.page("vgpus?group=team-1")} == {"alloc-000001", "alloc-000011"}
        assert {g["id"] for g in await w.page("groups?group=team-1")} == {"alloc-000001", "alloc-000011"}
        assert [s["pid"] for s in await w.page("sessions?group=team-1&sort=-pid")] == [1011, 1001]
        assert [g["id"] for g in await w.page("groups?state=reserved")] == ["alloc-000007"]
        assert len(await w.page("groups?node=node-0002")) == 4
        assert len(await w.page("gpus?node=node-0001")) == 2 and await w.page("gpus?node=nobody") == []
        assert [g["node"] for g in await w.page("gpus?q=GPU-00000001")] == ["node-0001"] * 2
        assert [g["node"] for g in await w.page("gpus?q=gpu-00000002-1")] == ["node-0002"]
        assert [s["id"] for s in await w.page("sessions?q=1003")] == ["s/3"]
        assert await w.page("groups?q=trainer-3") == [g for g in await w.page("groups") if g["owner"] == "ml/trainer-3"]
        # Unknown values are the smallest; equal ones stay in order.
        known = [g["utilization_percent"] for g in await w.page("gpus?sort=-utilization_percent")]
        assert known == [8, 7, 1, 0, None, None]
        assert [g["ordinal"] for g in await w.page("gpus?sort=name")] == [0, 1, 0, 1, 0, 1]
        assert [e["group"] for e in await w.page("queue?group=late")] == ["late"]

    go(tmp_path, body)


def test_events_are_the_newest_and_can_be_followed(tmp_path):
    async def body(w: World) -> None:
        for number in range(5):
            w.pool.note("warning" if number % 2 else "info", "k", f"s{number}", "m", "ann" if number == 3 else "")
        assert [e["subject"] for e in await w.page("events?limit=2")] == ["s3", "s4"]
        assert [e["subject"] for e in await w.page("events?limit=2&offset=2")] == ["s1", "s2"]
        assert [e["subject"] for e in await w.page("events?limit=2&sort=-id")] == ["s4", "s3"]
        assert [e["subject"] for e in await w.page("events?state=warning")] == ["s1", "s3"]
        assert [e["subject"] for e in await w.page("events?level=warning&q=S1")] == ["s1"]
        last = (await w.page("events"))[-1]["id"]
        assert await w.page(f"events?after={last}") == []
        w.pool.note("info", "k", "new", "m", "")
        assert [e["subject"] for e in await w.page(f"events?after={last}&limit=100")] == ["new"]
        assert [e["subject"] for e in await w.page("audit")] == ["s3"]

    go(tmp_path, body)


def test_changes_reach_the_pool_with_who_made_them(tmp_path):
    async def body(w: World) -> None:
        answer = await w.call("PATCH", "/api/v1/groups/alloc-000001", {"gmem_mib": 4096, "ratio_percent": 10.0})
        assert answer.status == 200 and (answer.json["gmem_mib"], answer.json["ratio_percent"]) == (4096, 10)
        assert w.pool.all_groups["alloc-000001"].gmem_mib == 4096
        answer = await w.call("PATCH", "/api/v1/groups/alloc-000001", {})  # nothing: not in the audit trail
        assert answer.json["gmem_mib"] == 4096
        assert (await w.call("PATCH", "/api/v1/groups/none", {})).status == 404
        answer = await w.call("PATCH", "/api/v1/nodes/node-0001", {"draining": True})
        assert answer.json["state"] == "draining"
        assert (await w.call("DELETE", f"/api/v1/sessions/{part('s/3')}")).status == 204
        assert "s/3" not in w.pool.all_sessions
        assert (await w.call("DELETE", "/api/v1/groups/alloc-000001")).status == 204
        assert "alloc-000001" not in w.pool.all_groups
        answer = await w.call("POST", "/api/v1/reservations", {"group": "soon", "vgpus": 2})
        assert answer.status == 201 and (answer.json["group"], answer.json["state"]) == ("soon", "reserved")
        answer = await w.call("PUT", "/api/v1/limits/a%2Fb", {"vgpus": 3})
        assert answer.json == {"group": "a/b", "vgpus": 3, "gmem_mib": None, "ratio_percent": None}
        assert (await w.call("DELETE", "/api/v1/limits/a%2Fb")).status == 204
        assert (await w.call("DELETE", "/api/v1/limits/a%2Fb")).json["code"] == "not_found"
        audit = await w.page("audit")
        assert {event["user"] for event in audit} == {"ann"} and len(audit) == 7

    go(tmp_path, body)


def test_any_name_can_be_in_a_path(tmp_path):
    names = ["ml/pod-0", "a b", "100%", "%2F", "ü/ß", "a?b#c", "a+b&c=d", "..x", "*", ";:@", "x" * 300]

    async def body(w: World) -> None:
        for name in names:
            await try_name(w, name)

    async def try_name(w: World, name: str) -> None:
        w.pool.all_groups[name] = msgspec.structs.replace(w.pool.all_groups["alloc-000000"], id=name)
        w.pool.all_vgpus[name] = []
        assert (await w.get(f"/api/v1/groups/{part(name)}")).json["id"] == name
        assert (await w.call("PATCH", f"/api/v1/groups/{part(name)}", {"ratio_percent": 5})).json["id"] == name
        assert (await w.call("PUT", f"/api/v1/limits/{part(name)}", {})).json["group"] == name
        assert (await w.call("DELETE", f"/api/v1/groups/{part(name)}")).status == 204
        assert name not in w.pool.all_groups

    go(tmp_path, body)


def test_what_is_wrong_with_a_request_is_said(tmp_path):
    cases = [
        ("GET", "/api/v1/nodes?limit=0", 400, "bad_query", "limit"),
        ("GET", "/api/v1/nodes?limit=1001", 400, "bad_query", "limit"),
        ("GET", "/api/v1/nodes?limit=ten", 400, "bad_query", "limit"),
        ("GET", "/api/v1/nodes?offset=-1", 400, "bad_query", "offset"),
        ("GET", "/api/v1/nodes?sort=colour", 400, "bad_query", "sort"),
        ("GET", "/api/v1/nodes?state=ill", 400, "bad_query", "state"),
        ("GET", "/api/v1/nodes?page=2", 400, "bad_query", "page"),
        ("GET", "/api/v1/nodes?limit=1&limit=2", 400, "bad_query", "twice"),
        ("GET", "/api/v1/nodes/nobody", 404, "not_found", "nobody"),
        ("GET", "/api/v1/groups/a%00b", 400, "bad_request", "id"),
        ("GET", "/api/v1/groups/" + "x" * 301, 400, "bad_request", "id"),
        ("GET", "/api/v1/history?scope=moon", 404, "not_found", "moon"),
        ("GET", "/api/v1/colours", 404, "not_found", ""),
        ("GET", "/api/v2/nodes", 404, "not_found", ""),
        ("POST", "/api/v1/nodes", 405, "bad_method", "POST"),
        ("GET", "/api/v1/login", 405, "bad_method", "GET"),
    ]

    async def body(w: World) -> None:
        for method, path, status, code, said in cases:
            answer = await w.call(method, path)
            error = msgspec.json.decode(answer.body, type=models.ApiError)
            assert (answer.status, error.code) == (status, code), path
            assert said in error.message + error.hint and "$" not in error.message

    go(tmp_path, body)


def test_what_is_wrong_with_a_body_is_said(tmp_path):
    cases = [
        (b"", "application/json", 400, "bad_body", "JSON"),
        (b"{", "application/json", 400, "bad_body", "JSON"),
        (b"\xff{}", "application/json", 400, "bad_body", "JSON"),
        (b"[" * 5000, "application/json", 400, "bad_body", ""),
        (b'{"ratio_percent":0}', "application/json", 400, "bad_body", ">= 1"),
        (b'{"ratio_percent":50.5}', "application/json", 400, "bad_body", "float"),
        (b'{"ratio_percent":"50"}', "application/json", 400, "bad_body", "str"),
        (b'{"gmem_mib":1e30}', "application/json", 400, "bad_body", "gmem_mib"),
        (b"[1.0]", "application/json", 400, "bad_body", "array"),
        (b'{"ratio_percent":101}', "application/json", 400, "bad_body", "<= 100"),
        (b'{"ratio_percent":1e400}', "application/json", 400, "bad_body", ""),
        (b'{"gmem":1}', "application/json", 400, "bad_body", "gmem_mib"),
        (b'{"policy":"soft"}', "application/json", 400, "bad_body", "policy"),
        (b'{"ratio_percent":5}', "text/plain", 415, "not_json", "application/json"),
        (b" " * 70_000, "application/json", 413, "too_large", "bytes"),
        (b'{"gmem_mib":100}', "application/json", 409, "below_usage", "1024"),
    ]

    async def body(w: World) -> None:
        before = dict(w.pool.all_groups)
        for raw, kind, status, code, said in cases:
            answer = await w.call("PATCH", "/api/v1/groups/alloc-000001", raw=raw, headers={"Content-Type": kind})
            error = msgspec.json.decode(answer.body, type=models.ApiError)
            assert (answer.status, error.code) == (status, code), raw[:50]
            assert said in error.message + error.hint
            assert w.pool.all_groups == before

    go(tmp_path, body)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    async def body(w: World) -> None:
        host, port = w.url.removeprefix("http://").split(":")
        for target in (b"/api/v1/nodes?q=\xff", b"/api/v1/nodes?\xed\xa0\x80=1", b"/api/v1/nodes/\xff",
                       b"/api/v1/nodes/%FF", b"/\xff"):  # fmt: skip
            reader, writer = await asyncio.open_connection(host, int(port))
            head = b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + w.operator.encode()
            writer.write(head + b"\r\n\r\n")
            assert (await asyncio.wait_for(reader.readline(), 30)).split()[1] in (b"400", b"404"), target
            writer.close()
        assert (await w.get("/api/v1/nodes?q=%00")).json == {"items": [], "total": 0}

    go(tmp_path, body)


def test_names_with_control_characters_are_not_reserved(tmp_path):
    async def body(w: World) -> None:
        for wish in ({"group": "a\nb"}, {"group": "a\0"}, {"group": "g", "node": "\x1b[2J"}, {"group": ""}):
            assert (await w.call("POST", "/api/v1/reservations", wish)).status == 400
        assert (await w.call("POST", "/api/v1/reservations", {"group": "g", "vgpus": 60})).json["code"] == "no_room"

    go(tmp_path, body)


def test_failures_of_the_parts_behind_are_told_and_hidden(tmp_path, caplog):
    async def body(w: World) -> None:
        failures = (
            (ServiceError(504, "no_answer", "the node does not answer", "is it well?"), 504, "no_answer"),
            (StoreError("disk full at /secret/place"), 503, "database"),
            (RuntimeError("a secret detail"), 500, "internal"),
        )
        for failure, status, code in failures:
            w.pool.failure = failure
            answer = await w.call("DELETE", "/api/v1/groups/alloc-000001")
            assert (answer.status, answer.json["code"]) == (status, code)
            assert b"secret" not in answer.body
        w.pool.failure = ServiceError(409, "odd", "named \udc80 by a client")
        assert (await w.call("DELETE", "/api/v1/groups/alloc-000001")).status == 409

    go(tmp_path, body)
    assert "a secret detail" in caplog.text


def test_a_client_that_sends_half_a_body_is_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr("orion_controller.api.routes.BODY_TIMEOUT_S", 0.2)

    async def body(w: World) -> None:
        host, port = w.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /api/v1/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                     b"Content-Length: 100\r\n\r\n{")  # fmt: skip
        assert b" 408 " in await asyncio.wait_for(reader.readline(), 30)
        writer.close()

    go(tmp_path, body)


def test_nonsense_on_the_wire_is_refused_and_does_not_fill_the_log(tmp_path, caplog):
    async def body(w: World) -> None:
        host, port = w.url.removeprefix("http://").split(":")
        nonsense = (
            b"BREW /coffee HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01" * 40 + b"\r\n\r\n",
            b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\na: " + b"y" * 20_000,
        )
        for sent in nonsense:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(sent)
            assert b" 400 " in await asyncio.wait_for(reader.readline(), 30)
            writer.close()
        assert (await w.get("/healthz")).status == 200

    go(tmp_path, body)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_health_needs_nobody(tmp_path):
    async def body(w: World) -> None:
        assert (await w.get("/healthz", token="")).json["status"] == "alive"
        assert (await w.get("/readyz", token="")).json == {"status": "ready", "role": "leader"}
        w.pool.is_leader = False
        assert (await w.get("/readyz", token="")).status == 503
        w.pool.leader_url = "http://127.0.0.1:1"
        assert (await w.get("/readyz", token="")).json == {"status": "ready", "role": "follower"}
        assert (await w.get("/healthz", token="")).status == 200

    go(tmp_path, body)


@pytest.mark.parametrize("leader", ["", "http://leader:9124/"])
def test_a_follower_reads_and_points_to_the_leader(tmp_path, leader):
    async def body(w: World) -> None:
        w.pool.is_leader, w.pool.leader_url = False, leader
        assert (await w.get("/api/v1/nodes")).status == 200
        changes = (("PATCH", "/api/v1/groups/a%2Fb?x=1", {"ratio_percent": 1}), ("DELETE", "/api/v1/sessions/1", None),
                   ("GET", "/service?nvidia_vgpu=1", None))  # fmt: skip
        for method, path, sent in changes:
            answer = await w.call(method, path, sent)
            assert answer.json["code"] == "not_leader"
            if leader:
                assert answer.status == 307 and answer.headers["Location"] == f"http://leader:9124{path}"
            else:
                assert answer.status == 503 and answer.headers["Retry-After"]
            assert (await w.call(method, path, sent, token="")).status == 401  # to nobody else
        page = await w.get("/", token="")
        assert page.headers.get("Location") == (leader or None)
        assert (await w.login("ann", "the operator's word")).status == 200

    go(tmp_path, body, follower_reads=True)


def test_a_follower_that_knows_nothing_sends_reads_to_the_leader(tmp_path):
    async def body(w: World) -> None:
        w.pool.is_leader, w.pool.leader_url = False, "http://leader:9124"
        for path in ("summary", "nodes", "nodes/node-0001", "groups/x", "vgpus?limit=1", "history"):
            answer = await w.get(f"/api/v1/{path}")
            assert (answer.status, answer.headers["Location"]) == (307, f"http://leader:9124/api/v1/{path}")
        assert (await w.get("/api/v1/me")).status == (await w.get("/api/v1/events")).status == 200

    go(tmp_path, body)


def test_long_lists_are_kept_for_a_moment_and_a_change_is_seen_at_once():
    class Slow(PoolBackend):
        def groups(self) -> list[models.Group]:
            now[0] += 0.1
            return super().groups()

    now = [0.0]
    pool = Slow(nodes=2)

    async def run() -> None:
        made = lists.Lists(pool, lambda: now[0])
        query = lists.query_model(lists.GROUPS)()
        for _ in range(3):
            assert (await made.page(lists.GROUPS, query)).total == 8
        assert pool.calls.count("groups") == 1
        await pool.end_group("alloc-000000", "ann")
        made.forget()
        assert (await made.page(lists.GROUPS, query)).total == 7
        await pool.end_group("alloc-000001", "ann")
        now[0] += 1.1  # ten times as long as it took
        assert (await made.page(lists.GROUPS, query)).total == 6
        # A quick list is never kept.
        await made.page(lists.NODES, lists.query_model(lists.NODES)())
        await made.page(lists.NODES, lists.query_model(lists.NODES)())
        assert pool.calls.count("nodes") == 2

    asyncio.run(run())


def test_a_list_that_was_made_during_a_change_is_not_kept(tmp_path):
    class Slow(PoolBackend):
        world: World | None = None
        meanwhile = staticmethod(lambda: None)

        def groups(self) -> list[models.Group]:
            assert self.world is not None
            self.world.clock.now_s += 0.1
            found = super().groups()
            self.meanwhile()
            return found

    pool = Slow(nodes=1)

    async def body(w: World) -> None:
        pool.world = w
        assert len(await w.page("groups")) == 4
        assert (await w.call("DELETE", "/api/v1/groups/alloc-000000")).status == 204
        assert len(await w.page("groups")) == 3  # the change is seen at once

    async def during() -> None:
        pool.world = World("", pool, None, Time(), None, "", "")  # type: ignore[arg-type]
        made = lists.Lists(pool, pool.world.clock)
        pool.meanwhile = made.forget
        for _ in range(2):
            await made.all(lists.GROUPS)
        assert pool.calls.count("groups") == 2
        pool.meanwhile = lambda: None
        for _ in range(2):
            await made.all(lists.GROUPS)
        assert pool.calls.count("groups") == 3

    go(tmp_path, body, pool)
    pool.calls.clear()
    asyncio.run(during())


class LargePool(PoolBackend):
    """Can be asked for one group at a time."""

    def group_ids(self) -> list[str]:
        return list(self.all_groups)

    def group(self, group_id: str) -> models.Group | None:
        return self.all_groups.get(group_id)

    def groups(self) -> list[models.Group]:
        raise AssertionError("nobody asks for all groups at once")


def test_a_large_pool_is_asked_group_by_group(tmp_path):
    pool = LargePool(nodes=3)

    async def body(w: World) -> None:
        assert len(await w.page("vgpus")) == len(await w.page("groups")) == 12
        assert len(await w.page("vgpus?group=team-1")) == 2
        assert (await w.get("/api/v1/groups/alloc-000003")).json["id"] == "alloc-000003"
        assert (await w.get("/api/v1/groups/none")).status == 404
        assert (await w.get("/metrics")).body.count(b"\norion_vgpu_launches_total{") == 12

    go(tmp_path, body, pool)


@pytest.mark.parametrize("kind", [PoolBackend, LargePool])
def test_a_large_pool_gives_way_while_a_page_is_made(kind):
    pool = kind(nodes=300, gpus_per_node=8, vgpus_per_gpu=8)

    async def run() -> None:
        made = lists.Lists(pool, lambda: 0.0)
        page = asyncio.ensure_future(made.page(lists.VGPUS, lists.query_model(lists.VGPUS)(q="19199")))
        turns = 0
        while not page.done():
            await asyncio.sleep(0)
            turns += 1
        assert [vgpu.group for vgpu in page.result().items] == ["alloc-019199"]
        assert turns > 5

    asyncio.run(run())


def test_sorting_covers_every_field_of_every_list():
    pool = PoolBackend(nodes=3)
    pool.note("info", "a", "b", "c", "d")

    async def run() -> None:
        made = lists.Lists(pool, lambda: 0.0)
        for kind in lists.KINDS:
            for name in msgspec.structs.fields(kind.model):
                for by in (name.name, f"-{name.name}"):
                    page = await made.page(kind, lists.query_model(kind)(sort=by))
                    assert page.total and len(page.items) == page.total

    asyncio.run(run())


def test_tls(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout",
         key, "-out", certificate, "-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    with pytest.raises(ssl.SSLError):
        tls_context(key, certificate)

    async def body(w: World) -> None:
        # The same application a second time is not possible: a small one will do for the transport.
        async def hello(_: aiohttp.web.Request) -> aiohttp.web.Response:
            return aiohttp.web.Response(text="hello")

        app = aiohttp.web.Application()
        app.router.add_get("/", hello)
        runner = await serve(app, "127.0.0.1", 0, tls_context(certificate, key))
        try:
            trusting = ssl.create_default_context(cafile=certificate)
            async with w.http.get(f"https://127.0.0.1:{runner.addresses[0][1]}/", ssl=trusting) as answer:
                assert await answer.text() == "hello"
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await w.http.get(f"https://127.0.0.1:{runner.addresses[0][1]}/")
        finally:
            await runner.cleanup()
        with pytest.raises(OSError), socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            await serve(aiohttp.web.Application(), "127.0.0.1", taken.getsockname()[1])

    go(tmp_path, body)


def test_requests_are_logged_only_for_debugging_and_without_secrets(tmp_path, caplog):
    caplog.set_level("DEBUG")

    async def body(w: World) -> None:
        await w.login("ann", "the operator's word")
        await w.get("/api/v1/nodes?q=private")
        assert w.operator not in caplog.text

    go(tmp_path, body)
    assert "'/api/v1/nodes' 200" in caplog.text
    assert "private" not in caplog.text and "operator's word" not in caplog.text
    assert {r.levelname for r in caplog.records if r.name == "orion.http"} == {"DEBUG"}
