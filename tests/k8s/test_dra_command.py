"""orion-dra-driver as processes: both parts with a scheduler's claim between them, killed and started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from orion_k8s.dra import DRIVER
from orion_k8s.dra.cdi import file_of
from orion_k8s.dra.cli import app
from tests.k8s.dra_world import Cluster, go

COMMAND = [sys.executable, "-m", "orion_k8s.dra.cli"]
ROOT = Path(__file__).resolve().parent.parent.parent


def kubeconfig(folder: Path, url: str) -> Path:
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}], "users": [{"name": "u", "user": {"token": "t"}}],
    }))  # fmt: skip
    return path


async def start(world: Cluster, part: str, *more: str) -> asyncio.subprocess.Process:
    where = ["--controller-url", world.http.url, "--controller-token-file", str(world.token),
             "--kubeconfig", str(kubeconfig(world.folder, world.kube.url))]  # fmt: skip
    return await asyncio.create_subprocess_exec(
        *COMMAND, part, *where, *more, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )


async def end(process: asyncio.subprocess.Process, number: int = signal.SIGTERM) -> int:
    process.send_signal(number)
    return await asyncio.wait_for(process.wait(), 30)


def test_from_the_pool_to_the_container_and_back() -> None:
    async def body(world: Cluster) -> None:
        world.kube.needs_token = "t"
        node = ["node", "--controller", "orion:9123", "--cdi-folder", str(world.cdi), "--plugins-folder",
                str(world.plugins), "--registry-folder", str(world.registry), "--client-folder", "/opt/orion/lib",
                "--env", "ORION_TOKEN_FILE=/var/run/secrets/orion/token"]  # fmt: skip
        publisher = await start(world, "publish", "--interval-s", "0.1")
        driver = await start(world, *node)
        try:
            await world.until(lambda: world.devices("gpu-1"))
            await world.kubelet.register()
            # A scheduler takes a device from the slices, as they are in the API server.
            (device,) = world.devices("gpu-1")
            claim = world.claim("c", [("gpu-1", device)], [{"gmem": "2Gi", "ratio": "25", "vgpus": "1"}])
            await world.kubelet.prepare(claim)
            path = file_of(world.cdi, DRIVER, claim["metadata"]["uid"])
            first = json.loads(path.read_text())
            assert "ORION_GMEM=2048" in first["devices"][0]["containerEdits"]["env"]
            assert "ORION_TOKEN_FILE=/var/run/secrets/orion/token" in first["devices"][0]["containerEdits"]["env"]
            assert path.stat().st_mode & 0o777 == 0o600
            before = await world.reservations()

            await end(driver, signal.SIGKILL)
            path.unlink()
            driver = await start(world, *node)
            await world.until(path.exists)
            await world.kubelet.register()
            await world.kubelet.prepare(claim)
            assert json.loads(path.read_text()) == first
            assert await world.reservations() == before
            await world.kubelet.unprepare(claim)
            assert await world.reservations() == {} and not path.exists()
            assert await end(driver) == 0 and await end(publisher) == 0
            assert list(world.registry.iterdir()) == []  # a kubelet that starts does not look for it
        finally:
            for process in (driver, publisher):
                if process.returncode is None:
                    await end(process, signal.SIGKILL)

    go({"gpu-1": 1}, body)


@pytest.mark.parametrize("arguments, sentence", [
    (["publish", "--driver", "Gpu"], "it is a name like gpu.virtaitech.com"),
    (["publish", "--pool", "a/b"], "--pool a/b: it is a name"),
    (["publish", "--node-label", "zone"], "--node-label zone: it is NAME=VALUE"),
    (["publish"], "this is no pod"),
    (["node", "--controller", "c:1", "--env", "X"], "--env X: it is NAME=VALUE"),
    (["node", "--controller", "c:1", "--kubeconfig", "KUBE", "--plugins-folder", "/tmp/" + "x" * 100],
     "bytes that a socket's path may have"),
    (["node", "--controller", "c:1", "--kubeconfig", "KUBE", "--controller-ca-file", "/nowhere"], "/nowhere"),
])  # fmt: skip
def test_wrong_settings_end_with_a_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    file = kubeconfig(tmp_path, "http://127.0.0.1:1")
    arguments = [str(file) if a == "KUBE" else a for a in arguments] + ["--controller-url", "http://127.0.0.1:1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.output
    assert sentence in done.stderr
