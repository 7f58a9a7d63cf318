"""The chart's own small commands, and that the programs know the options that the chart gives them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from orion_controller.kube_api import Access, KubeApi, KubeError
from orion_k8s.chart import leader_label, on_interface, publish_key
from tests.chart.helm import CHART, ROOT, VALUES, objects
from tests.k8s.api_server import ApiServer, Refused, pod

MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "public", "namespace": "orion"}}


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **environment})  # fmt: skip


# ------------------------------------------------------------------------------------------------ server.interface


def test_a_command_is_run_with_an_interfaces_address() -> None:
    done = run("-m", "orion_k8s.chart.on_interface", "lo", "--", "echo", "--listen={address}:9960", "plain")
    assert done.stdout == "--listen=127.0.0.1:9960 plain\n"


@pytest.mark.parametrize("name", ["no-such-0", "", "x" * 16])
def test_an_interface_that_is_not_there_is_named_with_those_that_are(name: str) -> None:
    with pytest.raises(ValueError, match="network interface") as caught:
        on_interface.address_of(name)
    assert len(name) in (0, 16) or ("there are: lo" in str(caught.value) and "server.interface" in str(caught.value))


def test_wrong_usage_and_a_missing_command_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert on_interface.main(["lo"]) == 2
    assert "usage" in capsys.readouterr().err
    assert on_interface.main(["lo", "--", "/no/such/command"]) == 2
    assert "cannot run /no/such/command" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ the pool's key


def _with_api_server(work: Any) -> Any:
    async def inside() -> Any:
        server = ApiServer()
        server.put("/api/v1/configmaps", dict(MAP))
        await server.start()
        try:
            return await work(server)
        finally:
            await server.stop()

    return asyncio.run(inside())


def test_the_key_that_is_published_is_the_controllers(tmp_path: Path) -> None:
    async def work(server: ApiServer) -> str:
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(json.dumps({
            "current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
            "clusters": [{"name": "x", "cluster": {"server": server.url}}], "users": [{"name": "x", "user": {}}],
        }))  # fmt: skip
        command = ["-m", "orion_k8s.chart.publish_key", "--config-map=public", "--namespace=orion",
                   f"--data-dir={tmp_path}/data", f"--kubeconfig={kubeconfig}"]  # fmt: skip
        for _ in range(2):  # as when the pod comes again
            done = await asyncio.to_thread(run, *command)
            assert done.returncode == 0, done.stderr
        found = server.objects["/api/v1/configmaps"]["orion/public"]["data"]
        return str(found[publish_key.KEY])

    published = _with_api_server(work)
    program = "from orion_controller.cli import main; main()"
    done = run("-c", program, "key", "--data-dir", f"{tmp_path}/data")
    assert done.stdout.strip() == published, done.stderr
    assert len(published) == 40


def test_an_api_server_that_is_away_is_asked_again_and_a_refusal_is_not() -> None:
    async def work(server: ApiServer) -> None:
        api = KubeApi(Access(server.url))
        try:
            server.fail_next = [Refused(503, "ServiceUnavailable", "soon"), Refused(500, "InternalError", "soon")]
            await publish_key.publish(api, "orion", "public", "k" * 40, pause_s=0)
            assert server.objects["/api/v1/configmaps"]["orion/public"]["data"] == {"controller-key": "k" * 40}
            server.fail_next = [Refused(503, "ServiceUnavailable", "soon")] * 3
            with pytest.raises(KubeError, match="soon"):
                await publish_key.publish(api, "orion", "public", "k" * 40, tries=3, pause_s=0)
            server.calls.clear()
            server.fail_next = [Refused(403, "Forbidden", "no right to patch")]
            with pytest.raises(KubeError, match="no right to patch"):
                await publish_key.publish(api, "orion", "public", "k" * 40, pause_s=0)
            assert len(server.calls) == 1
        finally:
            await api.close()

    _with_api_server(work)


def test_a_pod_without_an_api_server_says_so(tmp_path: Path) -> None:
    done = run("-m", "orion_k8s.chart.publish_key", "--config-map=public", "--namespace=orion",
               f"--data-dir={tmp_path}", KUBECONFIG="", KUBERNETES_SERVICE_HOST="")  # fmt: skip
    assert done.returncode == 1
    assert "the pool's public key is not published: this is no pod" in done.stderr


# ------------------------------------------------------------------------------------------------ who leads


def test_a_pod_has_the_label_while_its_replica_leads() -> None:
    """The replica is HTTP alone here: what /readyz says, and that it is away."""
    role = ["follower"]

    async def readyz(_request: web.Request) -> web.Response:
        return web.json_response({"status": "ready", "role": role[0]})

    async def work(server: ApiServer) -> None:
        server.add_pod(pod("controller-1", "orion"))
        app = web.Application()
        app.router.add_get("/readyz", readyz)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        api = KubeApi(Access(server.url))
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        task = asyncio.create_task(leader_label.keep(api, url, "orion", "controller-1", look_s=0.01))

        def label() -> str | None:
            labels = server.objects["/api/v1/pods"]["orion/controller-1"]["metadata"].get("labels") or {}
            return str(labels["orion/role"]) if "orion/role" in labels else None

        async def until(wanted: str | None) -> None:
            async with asyncio.timeout(60):
                while label() != wanted:
                    await asyncio.sleep(0.01)

        def patches() -> int:
            return sum(method == "PATCH" for method, _ in server.calls)

        try:
            async with asyncio.timeout(60):
                while not patches():  # a label of an earlier life is taken away
                    await asyncio.sleep(0.01)
            assert label() is None
            server.fail_next = [Refused(500, "InternalError", "soon")]
            role[0] = "leader"
            await until("leader")
            told = patches()
            await asyncio.sleep(0.2)
            assert patches() == told, "nothing has changed, and nothing is said"
            role[0] = "follower"
            await until(None)
            role[0] = "leader"
            await until("leader")
            await runner.cleanup()  # it is gone
            await until(None)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await api.close()
            await runner.cleanup()

    _with_api_server(work)


# ------------------------------------------------------------------------------------------------ what the chart says


def test_programs_know_every_option_that_the_chart_gives_them() -> None:
    given: dict[tuple[str, ...], set[str]] = {}
    for arguments in (["-f", str(VALUES / "production.yaml")], ["-f", str(VALUES / "product.yaml")]):
        for item in objects(*arguments):
            if item["kind"] not in ("Deployment", "DaemonSet"):
                continue
            spec = item["spec"]["template"]["spec"]
            for container in [*spec.get("initContainers", []), *spec["containers"]]:
                command = tuple(container["command"])
                if command[:3] == ("python", "-m", "orion_k8s.chart.on_interface"):
                    command = command[command.index("--") + 1 :]
                if command != ("kube-scheduler",):
                    options = {argument.partition("=")[0] for argument in container["args"] if argument[:2] == "--"}
                    given.setdefault(command, set()).update(options)
    modules = {
        "orion-controller": "orion_controller.cli", "orion-server": "orion_server.cli",
        "orion-scheduler": "orion_k8s.scheduler.cli", "orion-device-plugin": "orion_k8s.device_plugin.cli",
        "orion-dra-driver": "orion_k8s.dra.cli",
    }  # fmt: skip
    assert {command[0] for command in given} == {*modules, "python"}
    for command, options in given.items():
        program, *words = command
        if program == "python":
            start = list(command[1:])
        else:
            start = [
                "-c",
                f"import sys; from {modules[program]} import main; sys.argv[0] = {program!r}; main()",
                *words,
            ]
        told = run(*start, "--help", COLUMNS="200")
        assert told.returncode == 0, told.stderr
        known = set(re.findall(r"--[a-z][a-z0-9-]*", told.stdout))
        assert options <= known, f"{' '.join(command)} does not know {sorted(options - known)}"


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    from orion_controller import metrics

    there = {name for name, *_ in (*metrics._VGPU, *metrics._GPU)}
    counted = metrics.Metrics()
    for registry in (counted._registry, counted._pool):
        for family in registry.collect():
            there |= {family.name, f"{family.name}_total", f"{family.name}_bucket"}
    dashboard = json.loads((CHART / "dashboards" / "orion.json").read_text())
    asked = set(re.findall(r"\borion_(?:vgpu|gpu|controller)_\w+", json.dumps(dashboard)))
    assert len(asked) > 20
    assert asked <= there, sorted(asked - there)
    every = {panel["id"] for panel in dashboard["panels"]}
    assert len(every) == len(dashboard["panels"])
