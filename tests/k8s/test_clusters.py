"""One controller, two clusters: each scheduler gives back what is its own cluster's, and nothing else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from orion_k8s.scheduler.controller_client import Credentials
from orion_k8s.scheduler.daemon import Scheduler, Settings
from tests.k8s.api_server import api_server
from tests.k8s.scheduler_world import PODS, World, go, vgpu_pod

SERVERS = {"gpu-1": {"gpus": 2}}


def test_another_clusters_pods_stay_and_the_own_ones_that_are_gone_go(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        mine = w.api.add_pod(vgpu_pod("mine"))
        await w.place(mine, ["gpu-1"])
        await w.until(lambda: w.held()["mine"].expires_s is None)
        async with api_server() as other_api:
            kubeconfig = tmp_path / "other"
            kubeconfig.write_text(json.dumps({
                "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": other_api.url}}],
                "users": [{"name": "u", "user": {}}],
            }))  # fmt: skip
            other = Scheduler(Settings(controllers=(w.http.url,), credentials=Credentials(w.folder / "token"),
                                       kubeconfig=str(kubeconfig), port=0, reconcile_s=0.2))  # fmt: skip
            await other.start()
            work = asyncio.create_task(other.run())
            try:
                await w.until(lambda: other.reconciler.is_listed and other.reconciler.is_well)
                theirs = other_api.add_pod(vgpu_pod("theirs"))
                assert not (await other.extender.filter(theirs, ["x"])).get("FailedNodes")
                told = theirs["metadata"]
                assert await other.extender.bind(told["namespace"], told["name"], told["uid"], "x") == ""
                await w.until(lambda: w.held()["theirs"].expires_s is None)
                assert w.held()["mine"].cluster != w.held()["theirs"].cluster
                for reconciler in (w.scheduler.reconciler, other.reconciler):
                    await reconciler.look_once()
                    assert not reconciler._gone  # each knows one of the two only
                assert set(w.held()) == {"mine", "theirs"}
                # A pod that was deleted while nobody watched is found by comparing, in its own cluster.
                other.reconciler._ends = lambda uid, reason: other.reconciler.seen.pop(uid, None)  # type: ignore[method-assign, assignment]
                other_api.remove(PODS, "default/theirs")
                await w.until(lambda: set(w.held()) == {"mine"})
            finally:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                await other.close()

    go(tmp_path, SERVERS, body, reconcile_s=0.2)
