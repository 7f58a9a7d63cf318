"""The original product's API: what is known of it is answered, the rest says so."""

from __future__ import annotations

import re

from tests.controller.http_world import World, go


def test_reserve_confirm_report_release(tmp_path):
    async def body(w: World) -> None:
        answer = await w.get("/service?nvidia_vgpu=3&memory=2048")
        assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/plain")
        assert (answer.headers["api_version"], answer.headers["data_version"]) == ("0.2", "0.2")
        allocation, *places = answer.body.decode().split(",")
        # ip:port/pGPU/vGPU
        assert places == ["127.0.0.0:9960/0/0", "127.0.0.0:9960/0/1", "127.0.0.0:9960/1/0"]
        group = w.pool.all_groups[allocation]
        assert (group.vgpus, group.gmem_mib) == (3, 2048) and re.match("product-", group.group)
        confirmed = await w.call("PUT", f"/service/confirm/{allocation}")
        assert confirmed.json == {"allocation": allocation, "state": "reserved", "expires_s": 99.0}
        report = (await w.get(f"/service/fullreport/{allocation}")).json
        assert report["allocation"]["id"] == allocation and len(report["vgpus"]) == 3 and report["sessions"] == []
        assert (await w.call("PUT", f"/service/release/{allocation}")).status == 204
        assert allocation not in w.pool.all_groups
        for path in ("confirm", "release", "fullreport"):
            assert (await w.get(f"/service/{path}/{allocation}")).status == 404

    go(tmp_path, body)


def test_reads(tmp_path):
    async def body(w: World) -> None:
        info = await w.get("/info", token=w.viewer)
        assert info.json["api_version"] == "0.2" and info.headers["data_version"] == "0.2"
        assert len((await w.get("/devices?res=nvidia_cuda")).json["devices"]) == 6
        w.pool.all_gpus[0].vgpus = 0
        assert len((await w.get("/devices?res=nvidia_cuda&used=true")).json["devices"]) == 5
        assert (await w.get("/devices?res=other")).json == {"devices": []}
        for method, path in (("GET", "/device/info"), ("POST", "/device/info"), ("GET", "/device/meta")):
            answer = await w.call(method, path)
            assert answer.status == 501 and "documented" in answer.json["message"]
        assert (await w.get("/service")).status == (await w.get("/service?nvidia_vgpu=0")).status == 400

    go(tmp_path, body)


def test_a_cookie_is_not_enough_because_some_changes_are_gets(tmp_path):
    async def body(w: World) -> None:
        before = len(w.pool.all_groups)
        cookie = {"Cookie": f"orion_token={w.operator}", "Sec-Fetch-Site": "same-origin"}
        for path in ("/service?nvidia_vgpu=1", "/service/release/alloc-000001", "/info"):
            assert (await w.get(path, token="", headers=cookie)).status == 401
        assert (await w.get("/service?nvidia_vgpu=1", token=w.viewer)).status == 403
        assert len(w.pool.all_groups) == before

    go(tmp_path, body)


def test_reads_can_be_open_and_all_of_it_off(tmp_path):
    async def opened(w: World) -> None:
        assert (await w.get("/info", token="")).status == (await w.get("/devices", token="")).status == 200
        assert (await w.get("/service?nvidia_vgpu=1", token="")).status == 401
        assert (await w.call("POST", "/device/info", token="")).status == 401

    async def off(w: World) -> None:
        assert (await w.get("/info")).status == (await w.get("/service?nvidia_vgpu=1")).status == 404
        assert not any(path.startswith("/service") for path in (await w.get("/openapi.json")).json["paths"])

    go(tmp_path, opened, product_api_open=True)
    go(tmp_path, off, product_api=False)
