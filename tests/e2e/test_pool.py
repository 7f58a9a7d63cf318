"""A controller, orion-servers in its pool and unmodified programs: all parts are the real ones, on softgpu."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orion_client.libraries import client_folder
from orion_client.private_server import PrivateServer
from orion_controller.service import Controller
from orion_controller.store import Store

DEVICE_UNAVAILABLE, START_TIMEOUT_S = 46, 60.0

PROGRAM = """
import ctypes, json, sys
cuda = ctypes.CDLL("libcuda.so.1")
code, count, mib = cuda.cuInit(0), ctypes.c_int(), []
if code == 0:
    assert cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
for ordinal in range(count.value):
    total, context, block = ctypes.c_size_t(), ctypes.c_void_p(), ctypes.c_uint64()
    assert cuda.cuDeviceTotalMem_v2(ctypes.byref(total), ordinal) == 0
    mib.append(total.value >> 20)
    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), ordinal) == 0
    assert cuda.cuCtxSetCurrent(context) == 0
    assert cuda.cuMemAlloc_v2(ctypes.byref(block), ctypes.c_size_t(1 << 20)) == 0
    assert cuda.cuMemsetD8_v2(block, ctypes.c_ubyte(1), ctypes.c_size_t(1 << 20)) == 0
    assert cuda.cuCtxSynchronize() == 0
print(json.dumps([code, mib]), flush=True)
if len(sys.argv) > 1:
    sys.stdin.readline()
"""


class Leads:
    """The only replica."""

    is_leader = True
    leader_address = ""
    leader_url = ""


class RunningController:
    """A controller on SQLite, in a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.open(f"sqlite:///{folder / 'pool.db'}")
        self.store.fence(None)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.address = self._in_loop(self._start())

    def _in_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(START_TIMEOUT_S)

    async def _start(self) -> str:
        self.controller = Controller(self.store, Leads(), name="test")
        await self.controller.take_over()
        return self.controller.listen("127.0.0.1", 0)

    async def _view(self) -> tuple[int, int, int]:
        of = self.controller.pool
        return len(of.servers), len(of.allocations), len(of.waiting)

    async def _stop(self) -> None:
        await self.controller.close()
        await self.store.close()

    def wait_until(self, what: Callable[[int, int, int], bool]) -> None:
        """`what` is told the numbers of servers, allocations and clients in the queue."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not what(*self._in_loop(self._view())):
            assert time.monotonic() < deadline_s, self._in_loop(self._view())
            time.sleep(0.1)

    def stop(self) -> None:
        self._in_loop(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningController]:
    """Three servers with two, one and one device."""
    controller = RunningController(tmp_path_factory.mktemp("controller"))
    servers: list[PrivateServer] = []
    try:
        for name, devices in (("a", 2), ("b", 1), ("c", 1)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SOFTGPU_DEVICES", str(devices))
                patch.setenv("SOFTGPU_MEMORY_MIB", "512")
                extra = ("--controller", controller.address, "--name", name)
                servers.append(PrivateServer("softgpu", extra=extra))
        controller.wait_until(lambda servers, *_: servers == 3)
        yield controller
    finally:
        for server in servers:
            server.stop()
        controller.stop()


def start(pool: RunningController, *arguments: str, **settings: str) -> subprocess.Popen[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "CUDA_"))}
    clean |= {"LD_LIBRARY_PATH": str(client_folder()), "HOME": "/nonexistent", "ORION_ATTACH_TIMEOUT_MS": "30000"}
    environment = clean | {"ORION_CONTROLLER": pool.address} | settings
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], env=environment, text=True, **pipes)


def use(pool: RunningController, **settings: str) -> tuple[int, list[int], list[str]]:
    program = start(pool, **settings)
    out, err = program.communicate(timeout=120)
    assert program.returncode == 0, err
    code, mib = json.loads(out)
    return code, mib, err.splitlines()


def test_four_devices_on_three_servers_and_nothing_left(pool: RunningController) -> None:
    assert use(pool, ORION_VGPU="4", ORION_GMEM="300") == (0, [300] * 4, [])
    pool.wait_until(lambda _, allocations, __: allocations == 0)


def test_all_on_one_server(pool: RunningController) -> None:
    code, mib, told = use(pool, ORION_VGPU="2", ORION_GMEM="300", ORION_CROSS_NODE="0", ORION_LOG="info")
    assert (code, mib) == (0, [300, 300])
    (line,) = [line for line in told if "using vGPUs" in line]
    assert line.count("127.0.0.1:") == 2  # one server and the controller
    pool.wait_until(lambda _, allocations, __: allocations == 0)


def test_a_program_waits_until_another_has_ended(pool: RunningController) -> None:
    first = start(pool, "hold", ORION_VGPU="4", ORION_GMEM="300")
    second = None
    try:
        assert json.loads(first.stdout.readline()) == [0, [300] * 4]
        code, _, told = use(pool, ORION_VGPU="4", ORION_GMEM="300")
        assert code == DEVICE_UNAVAILABLE
        assert len(told) == 1 and "ORION_WAIT_S" in told[0]
        second = start(pool, ORION_VGPU="4", ORION_GMEM="300", ORION_WAIT_S="120")
        pool.wait_until(lambda _, __, waiting: waiting == 1)
        first.communicate("\n", timeout=60)
        out, err = second.communicate(timeout=120)
        assert json.loads(out) == [0, [300] * 4], err
        assert "waiting up to 120 s" in err
    finally:
        for program in (first, second):
            if program is not None:
                program.kill()
                program.wait()
    pool.wait_until(lambda _, allocations, waiting: allocations == 0 and waiting == 0)
