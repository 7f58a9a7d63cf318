"""orion-device-plugin: the real command between a kubelet that speaks the official API and a real controller's API with
simulated GPU servers behind it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orion_client.libraries import client_folder
from orion_k8s.gen import made
from tests.controller import http_world, linked
from tests.k8s.fake_kubelet import FakeKubelet, NotAdmitted
from wire import pool as wire

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0
RSS_KIB_MOST = 60 << 10
KEY = "k" * 40


class PluginProcess:
    """The command. `**environment`: beside the usual."""

    def __init__(self, folder: Path, url: str, *options: str, token: str = "", **environment: str) -> None:
        self.log_file = folder / "plugin.log"
        command = [sys.executable, "-m", "orion_k8s.device_plugin.cli", "--kubelet-dir", str(folder / "kubelet"),
                   "--poll", "0.2", *options]  # fmt: skip
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("ORION_")}
        settings = {"ORION_CONTROLLER_URL": url, "ORION_TOKEN": token, "ORION_CONTROLLER": "pool:9123",
                    "NODE_NAME": "n1", "PYTHONPATH": str(ROOT), "HOME": str(folder)} | environment  # fmt: skip
        with self.log_file.open("a") as log:
            self.process = subprocess.Popen(command, env=inherited | settings, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def status(self, field: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1])

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(WAIT_S) == 0, self.log


@contextmanager
def node() -> Iterator[tuple[Path, FakeKubelet]]:
    """A folder with a kubelet. Not pytest's: the path of a unix socket may have 107 bytes only."""
    with tempfile.TemporaryDirectory(prefix="orion-kubelet-") as name:
        (Path(name) / "kubelet").mkdir()
        kubelet = FakeKubelet(Path(name) / "kubelet")
        try:
            yield Path(name), kubelet
        finally:
            kubelet.stop()


def go(body: Callable[[linked.World, http_world.World], Awaitable[None]]) -> None:
    """A controller with its API; servers join it in the body."""

    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            policies = linked.Policies(lease_s=1.5)
            async with linked.world(Path(folder), policies=policies) as pool:
                async with http_world.world(Path(folder), pool.controller) as http:
                    await body(pool, http)

    asyncio.run(run())


async def until(condition: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)


def test_the_generated_modules_are_those_of_the_proto() -> None:
    for path, text in made().items():
        assert path.read_text() == text, f"python -m orion_k8s.gen: {path} is stale"


def test_a_nodes_life(capsys: pytest.CaptureFixture[str]) -> None:
    """Registered, listed, given out; health as it changes; a kubelet that restarts; memory."""

    async def body(pool: linked.World, http: http_world.World) -> None:
        for name in ("n1", "n2"):
            pool.server(name, gpus=2)
        await pool.joined("n1", "n2")
        with node() as (folder, kubelet):
            plugin = PluginProcess(folder, http.url, "--install-to", str(folder / "client"), token=http.viewer,
                                   ORION_CONTROLLER_KEY=KEY)  # fmt: skip
            await until(lambda: len(kubelet.devices) == 16)
            (registration,) = kubelet.registrations
            assert registration.resource_name == "virtaitech.com/gpu"
            assert registration.options.get_preferred_allocation_available
            assert set(kubelet.devices.values()) == {"Healthy"}
            for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
                assert (folder / "client" / name).read_bytes() == (client_folder() / name).read_bytes()

            two, one = await asyncio.to_thread(kubelet.admit, 2, 1)
            assert dict(two.envs) == {
                "ORION_CONTROLLER": "pool:9123", "ORION_CONTROLLER_KEY": KEY, "ORION_VGPU": "2",
                "LD_PRELOAD": "/usr/lib/orion/libcuda.so.1:/usr/lib/orion/libnvidia-ml.so.1",
                "TRITON_LIBCUDA_PATH": "/usr/lib/orion", "NVIDIA_VISIBLE_DEVICES": "void",
                "ORION_TOKEN_FILE": "/var/run/secrets/orion/token",
            }  # fmt: skip
            assert one.envs["ORION_VGPU"] == "1"
            assert [(m.container_path, m.host_path, m.read_only) for m in two.mounts] == [
                ("/usr/lib/orion", "/var/lib/orion/client", True), ("/run/orion", "/run/orion", True)
            ]  # fmt: skip
            assert not two.devices and not two.annotations
            assert all(name.startswith("n1-") for name in kubelet.given)  # the node's own first

            pool.servers["n2"].simulated.gpus = 1  # one of its GPUs is gone for now
            pool.servers["n2"].link.register_again()
            await until(lambda: kubelet.allocatable == 12)
            assert len(kubelet.devices) == 16  # unhealthy, not away
            await pool.controller.set_draining("n1", True, "test")
            await until(lambda: kubelet.allocatable == 4)
            await pool.controller.set_draining("n1", False, "test")
            await until(lambda: kubelet.allocatable == 12)
            pool.servers["n2"].link.close()
            del pool.servers["n2"]
            await until(lambda: kubelet.allocatable == 8)

            await asyncio.to_thread(kubelet.restart)
            await until(lambda: len(kubelet.registrations) == 2 and kubelet.allocatable == 8)
            (folder / "kubelet" / registration.endpoint).unlink()  # somebody cleans up
            await until(lambda: len(kubelet.registrations) == 3 and kubelet.allocatable == 8)

            rss_kib = plugin.status("VmRSS")
            with capsys.disabled():
                print(f"\norion-device-plugin: {rss_kib / 1024:.1f} MiB of memory")
            assert rss_kib <= RSS_KIB_MOST
            plugin.stop()
            assert not (folder / "kubelet" / registration.endpoint).exists()

    go(body)


def test_two_nodes_that_each_list_the_whole_pool_place_no_more_than_the_pool() -> None:
    """The kubelets admit twice what there is; the controller gives it out once."""

    async def body(pool: linked.World, http: http_world.World) -> None:
        pool.server("gpus", gpus=2, max_vgpus=4)
        await pool.joined("gpus")
        with node() as (folder_1, kubelet_1), node() as (folder_2, kubelet_2):
            plugins = [
                PluginProcess(folder, http.url, token=http.viewer, NODE_NAME=name)
                for folder, name in ((folder_1, "cpu-1"), (folder_2, "cpu-2"))
            ]
            await until(lambda: kubelet_1.allocatable == kubelet_2.allocatable == 8)
            assert kubelet_1.devices == kubelet_2.devices
            admitted = []
            for kubelet in (kubelet_1, kubelet_2):
                containers = await asyncio.to_thread(kubelet.admit, *[1] * 8)
                admitted += [(kubelet, container) for container in containers]
                with pytest.raises(NotAdmitted, match="available 0"):
                    await asyncio.to_thread(kubelet.admit, 1)
            assert len(admitted) == 16
            assert all(
                [m.container_path for m in c.mounts] == ["/usr/lib/orion"] for _, c in admitted
            )  # no server here
            # Each container's program asks for its vGPU, all at once.
            answers = await asyncio.gather(*(
                pool.client().allocate(group=f"pod-{number}", vgpu=int(container.envs["ORION_VGPU"]))
                for number, (_, container) in enumerate(admitted)
            ))  # fmt: skip
            given = [answer for answer in answers if isinstance(answer, wire.Allocated)]
            refused = [answer for answer in answers if isinstance(answer, wire.Error)]
            assert (len(given), len(refused)) == (8, 8)
            assert all(answer.code in (2, 46) for answer in refused)
            for gpu in pool.controller.gpus():
                assert gpu.vgpus == gpu.max_vgpus and gpu.given_mib <= gpu.capacity_mib
                assert gpu.ratio_given_percent <= gpu.ratio_percent
            for plugin in plugins:
                plugin.stop()

    go(body)


def test_the_controller_is_away() -> None:
    """At the start nothing is listed, and the log says so. Later the list stays, also for a plugin that starts anew."""

    async def body(pool: linked.World, http: http_world.World) -> None:
        pool.server("n1", gpus=1)
        await pool.joined("n1")
        with node() as (folder, kubelet):
            plugin = PluginProcess(folder, "http://127.0.0.1:9")
            await until(lambda: "no controller answers" in plugin.log)
            assert "nothing is known of the pool" in plugin.log
            await asyncio.sleep(1.5)
            assert not kubelet.registrations
            plugin.stop()

            plugin = PluginProcess(folder, http.url, token=http.viewer)
            await until(lambda: kubelet.allocatable == 4)
            plugin.stop()
            await asyncio.to_thread(kubelet.restart)
            plugin = PluginProcess(folder, http.url, token="revoked")
            await until(lambda: len(kubelet.registrations) == 2 and kubelet.allocatable == 4)
            await until(lambda: "the list of devices stays as it was" in plugin.log)
            assert "the token is unknown" in plugin.log and "known from before" in plugin.log
            (container,) = await asyncio.to_thread(kubelet.admit, 3)
            assert container.envs["ORION_VGPU"] == "3"
            lists = len(kubelet.lists)
            await asyncio.sleep(1.0)
            assert len(kubelet.lists) == lists  # no flapping
            plugin.stop()

    go(body)


def test_a_kubelet_that_refuses_is_asked_again() -> None:
    async def body(pool: linked.World, http: http_world.World) -> None:
        pool.server("n1", gpus=1)
        await pool.joined("n1")
        with node() as (folder, kubelet):
            kubelet.refuses = "the resource is another plugin's"
            plugin = PluginProcess(folder, http.url, "--resource", "example.com/vgpu", token=http.viewer)
            await until(lambda: len(kubelet.registrations) > 1)
            assert "does not register example.com/vgpu: the resource is another plugin's" in plugin.log
            kubelet.refuses = ""
            await until(lambda: kubelet.allocatable == 4)
            assert kubelet.registrations[-1].resource_name == "example.com/vgpu"
            plugin.stop()

    go(body)


def test_what_is_asked_of_the_plugin_is_checked() -> None:
    async def body(pool: linked.World, http: http_world.World) -> None:
        pool.server("n1", gpus=1)
        await pool.joined("n1")
        with node() as (folder, kubelet):
            plugin = PluginProcess(folder, http.url, "--socket-dir", "", "--pod-token-file", "", token=http.viewer)
            await until(lambda: kubelet.allocatable == 4)
            (container,) = await asyncio.to_thread(kubelet.admit, 1)
            assert [m.container_path for m in container.mounts] == ["/usr/lib/orion"]
            assert "ORION_TOKEN_FILE" not in container.envs and "ORION_CONTROLLER_KEY" not in container.envs
            known = dict(kubelet.devices)
            kubelet.lists[-1] = {"/dev/nvidia0": "Healthy"}
            with pytest.raises(NotAdmitted, match="none of the pool's vGPUs"):
                await asyncio.to_thread(kubelet.admit, 1)
            kubelet.lists[-1] = known
            with pytest.raises(NotAdmitted, match="no vGPU is asked for"):
                await asyncio.to_thread(kubelet.admit, 0)
            plugin.stop()

    go(body)


@pytest.mark.parametrize(
    ("options", "environment", "sentence"),
    [
        (["--resource", "gpu"], {}, "it is DOMAIN/NAME"),
        ([], {"ORION_CONTROLLER": ""}, "ORION_CONTROLLER"),
        ([], {"ORION_CONTROLLER_URL": ""}, "set ORION_CONTROLLER_URL"),
        (["--log-level", "loud"], {}, "--log-level is one of"),
        (["--api-token-file", "/nowhere/token"], {}, "cannot read /nowhere/token"),
        (["--install-to", "/proc/nowhere"], {}, "cannot be put into /proc/nowhere"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, options: list[str], environment: dict[str, str], sentence: str) -> None:
    plugin = PluginProcess(tmp_path, "http://127.0.0.1:9", *options, **environment)
    assert plugin.process.wait(WAIT_S) == 2, plugin.log
    assert plugin.log.startswith("orion-device-plugin: ") and sentence in plugin.log
    assert "Traceback" not in plugin.log
