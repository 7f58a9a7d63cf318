"""The API over the real controller with simulated servers; and the portal that is shipped."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from tests.controller import http_world, linked


def test_a_program_is_seen_changed_and_ended(tmp_path):
    async def run() -> None:
        (tmp_path / "accounts").mkdir()
        async with linked.world(tmp_path) as pool, http_world.world(tmp_path / "accounts", pool.controller) as w:
            for name in ("a", "b"):
                pool.server(name, gpus=1)
            await pool.joined("a", "b")
            given = await pool.client().allocate(vgpu=2, ratio=60, group="ml/pod 0")
            for server in given.servers:
                pool.servers[server.server].attach(server.ticket)
            await pool.until(lambda: pool.controller.summary().sessions == 2)
            (group,) = await w.page("groups?group=ml%2Fpod%200&state=active")
            assert group["id"] == given.allocation and group["nodes"] == ["a", "b"]
            vgpus = await w.page(f"vgpus?group={group['id']}")
            assert [(v["node"], v["ratio_percent"]) for v in vgpus] == [("a", 60), ("b", 60)]
            assert await w.page("vgpus") == vgpus
            changed = await w.call("PATCH", f"/api/v1/groups/{group['id']}", {"ratio_percent": 30})
            assert changed.status == 200 and changed.json["ratio_percent"] == 30
            assert [command.ratio for command in pool.servers["b"].commands] == [30]
            assert (await w.call("PATCH", "/api/v1/nodes/b", {"draining": True})).json["state"] == "draining"
            assert (await w.page("nodes?state=draining"))[0]["name"] == "b"
            reserved = await w.call("POST", "/api/v1/reservations", {"group": "soon", "vgpus": 1})
            assert reserved.status == 201 and reserved.json["nodes"] == ["a"]
            assert (await w.call("PUT", "/api/v1/limits/soon", {"vgpus": 2})).json["vgpus"] == 2
            assert b'group="ml/pod 0"' in (await w.get("/metrics")).body
            assert (await w.call("DELETE", f"/api/v1/groups/{group['id']}")).status == 204
            await pool.until(lambda: [g.group for g in pool.controller.groups()] == ["soon"])
            await asyncio.sleep(0)
            async with asyncio.timeout(20):
                while len(kinds := {e["kind"] for e in await w.page("audit")}) < 5:
                    await asyncio.sleep(0.05)
            assert {"group.resized", "group.end", "limits.set"} <= kinds

    asyncio.run(run())


def test_the_portal_that_is_shipped_needs_nothing_that_is_not(tmp_path: Path):
    async def body(w: http_world.World) -> None:
        page = await w.get("/", token="")
        assert page.status == 200
        used = re.findall(r'(?:src|href)="([^"#]+)"', page.body.decode())
        assert any(name.endswith(".js") for name in used)
        for name in used:
            assert name.startswith("./"), name
            assert (await w.get(name[1:], token="")).status == 200
        # The policy allows nothing inline.
        assert not re.search(rb"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", page.body)

    http_world.go(tmp_path, body)
