"""The whole of a pool, as its users have it: commands, an unmodified program, a browser; then a server dies, and the
controller."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orion_client.libraries import client_folder
from orion_client.private_server import PrivateServer
from tests.portal.conftest import browser, screenshots  # noqa: F401
from tests.portal.portals import Visit

pytestmark = pytest.mark.slow
TIMEOUT_S = 90.0
PASSWORD = "correct horse battery"

# Tells for each device [code, MiB]: of a fill that is waited for, and what the device says it has.
PROGRAM = """
import ctypes, json, sys
cuda = ctypes.CDLL("libcuda.so.1")
assert cuda.cuInit(0) == 0
count = ctypes.c_int()
assert cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
blocks = []
for ordinal in range(count.value):
    context, block = ctypes.c_void_p(), ctypes.c_uint64()
    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), ordinal) == 0
    assert cuda.cuCtxSetCurrent(context) == 0
    assert cuda.cuMemAlloc_v2(ctypes.byref(block), ctypes.c_size_t(100 << 20)) == 0
    blocks.append((context, block))
def look(ordinal):
    context, block = blocks[ordinal]
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    code = cuda.cuCtxSetCurrent(context)
    code = code or cuda.cuMemsetD8_v2(block, ctypes.c_ubyte(1), ctypes.c_size_t(1 << 20))
    code = code or cuda.cuCtxSynchronize() or cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    return [code, total.value >> 20]
print(json.dumps([look(i) for i in range(count.value)]), flush=True)
for line in sys.stdin:
    print(json.dumps([look(i) for i in range(count.value)]), flush=True)
"""


class ControllerProcess:
    """`orion-controller start`, and its API as an operator."""

    operator = ("admin", PASSWORD)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url, self.zmq = "", "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "orion_controller.cli", "start", "--data-dir", str(self.folder / "data"),
                   "--http", self.url.removeprefix("http://") or "127.0.0.1:0", "--zmq", self.zmq,
                   "--ready-file", str(ready)]  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ORION_")}
        environment |= {"ORION_ADMIN_PASSWORD": PASSWORD}
        with (self.folder / "controller.log").open("a") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.until(ready.exists)
        self.url, self.zmq = ready.read_text().split()
        self.token = self.ask("/login", {"user": "admin", "password": PASSWORD})["token"]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(f"{self.url}/api/v1{path}", headers={"Content-Type": "application/json"})
        if hasattr(self, "token"):
            request.add_header("Authorization", f"Bearer {self.token}")
        if body is not None:
            request.data = json.dumps(body).encode()
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return json.load(answer)

    def until(self, condition: Callable[[], object]) -> None:
        deadline_s = time.monotonic() + TIMEOUT_S
        while not condition():
            assert self.process.poll() is None, (self.folder / "controller.log").read_text()[-4000:]
            assert time.monotonic() < deadline_s, (self.folder / "controller.log").read_text()[-4000:]
            time.sleep(0.1)

    def nodes(self) -> dict[str, tuple[str, int, int]]:
        """State, vGPUs and sessions by name."""
        return {n["name"]: (n["state"], n["vgpus"], n["sessions"]) for n in self.ask("/nodes")["items"]}


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[ControllerProcess]:
    made = ControllerProcess(tmp_path)
    try:
        yield made
    finally:
        made.process.terminate()
        assert made.process.wait(30) == 0


@pytest.fixture
def servers(controller: ControllerProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, PrivateServer]]:
    started: dict[str, PrivateServer] = {}
    try:
        for name, devices in (("a", 2), ("b", 1), ("c", 1)):
            monkeypatch.setenv("SOFTGPU_DEVICES", str(devices))
            monkeypatch.setenv("SOFTGPU_MEMORY_MIB", "1024")
            started[name] = PrivateServer("softgpu", extra=("--controller", controller.zmq, "--name", name))
        controller.until(lambda: [s for s, _, _ in controller.nodes().values()] == ["ready"] * 3)
        yield started
    finally:
        for server in started.values():
            server.stop()


def look(program: subprocess.Popen[str]) -> list[list[int]]:
    assert program.stdin and program.stdout
    program.stdin.write("look\n")
    program.stdin.flush()
    return json.loads(program.stdout.readline())


def change_quota_in_the_browser(chromium: Any, controller: ControllerProcess, mib: int, folder: Path) -> None:
    from playwright.sync_api import expect

    with Visit(chromium, controller) as visit:  # type: ignore[arg-type]
        visit.log_in(controller.operator, "groups?q=whole")
        page = visit.page
        page.get_by_role("button", name="Change whole").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Memory of each vGPU").fill(str(mib))
        dialog.get_by_role("button", name="Review the change").click()
        dialog.get_by_role("button", name="Change now").click()
        dialog.wait_for(state="detached")
        expect(page.get_by_role("status", name="Results")).to_contain_text("whole has changed")
        page.screenshot(path=folder / "pool-whole.png", full_page=True)
        assert visit.elsewhere == []


def test_a_pool_from_its_start_to_its_end(
    browser: Any,  # noqa: F811
    controller: ControllerProcess,
    servers: dict[str, PrivateServer],
    screenshots: Path,  # noqa: F811
) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "CUDA_"))}
    environment |= {"LD_LIBRARY_PATH": str(client_folder()), "HOME": "/nonexistent", "ORION_CONTROLLER": controller.zmq,
                    "ORION_VGPU": "4", "ORION_GMEM": "200", "ORION_RATIO": "60", "ORION_GROUP_ID": "whole",
                    "ORION_ATTACH_TIMEOUT_MS": "30000"}  # fmt: skip
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert program.stdout
        assert json.loads(program.stdout.readline()) == [[0, 200]] * 4
        controller.until(lambda: controller.nodes() == {"a": ("ready", 2, 1), "b": ("ready", 1, 1),
                                                        "c": ("ready", 1, 1)})  # fmt: skip
        (group,) = controller.ask("/groups")["items"]
        assert (group["group"], group["state"], group["vgpus"]) == ("whole", "active", 4)
        where = [vgpu["node"] for vgpu in controller.ask("/vgpus")["items"]]  # in the order of the devices
        assert sorted(where) == ["a", "a", "b", "c"]
        on_c = where.index("c")

        change_quota_in_the_browser(browser, controller, 300, screenshots)
        assert look(program) == [[0, 300]] * 4
        (group,) = controller.ask("/groups")["items"]
        assert group["gmem_mib"] == 300
        assert "admin" in {event["user"] for event in controller.ask("/audit")["items"]}

        os.kill(servers["c"].process.pid, signal.SIGKILL)
        controller.until(lambda: controller.nodes()["c"][0] == "lost")
        seen = look(program)
        assert seen.pop(on_c)[0] != 0 and seen == [[0, 300]] * 3

        controller.kill()
        seen = look(program)  # nobody is needed for what runs
        assert seen.pop(on_c)[0] != 0 and seen == [[0, 300]] * 3
        controller.start()
        controller.until(lambda: {n: v for n, v in controller.nodes().items() if n != "c"} == {
            "a": ("ready", 2, 1), "b": ("ready", 1, 1)})  # fmt: skip
        seen = look(program)
        assert seen.pop(on_c)[0] != 0 and seen == [[0, 300]] * 3
    finally:
        if program.stdin:
            program.stdin.close()
        assert program.wait(60) == 0
    controller.until(lambda: {n: v for n, v in controller.nodes().items() if n != "c"} == {
        "a": ("ready", 0, 0), "b": ("ready", 0, 0)})  # fmt: skip
    summary = controller.ask("/summary")
    assert (summary["groups"], summary["sessions"], summary["queue"]) == (0, 0, 0)
    assert summary["memory_given_mib"] == 0 and summary["ratio_given_percent"] == 0
