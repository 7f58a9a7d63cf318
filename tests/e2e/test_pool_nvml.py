"""The management library of a program with a controller: before its first use of CUDA, and after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from orion_client.libraries import client_folder
from orion_client.private_server import PrivateServer
from tests.e2e.pool_controller import PoolController, Reply, Script, allocated
from wire import pool

pytest.importorskip("pynvml", reason="nvidia-ml-py is a test dependency")

SMALL_MIB, LARGE_MIB = 256, 512
DRIVER_NOT_LOADED = 9

PROGRAM = """
import ctypes, json, os, sys, time
import pynvml as n
try:
    n.nvmlInit()
except n.NVMLError as error:
    print(json.dumps({"init": error.value}))
    sys.exit()
def see():
    handles = [n.nvmlDeviceGetHandleByIndex(i) for i in range(n.nvmlDeviceGetCount())]
    mib = [n.nvmlDeviceGetMemoryInfo(handle).total >> 20 for handle in handles]
    mine = [[p.pid == os.getpid() for p in n.nvmlDeviceGetComputeRunningProcesses(handle)] for handle in handles]
    return {"mib": mib, "names": [n.nvmlDeviceGetName(handle) for handle in handles], "mine": mine}
told = {"init": 0, "before": see()}
if len(sys.argv) > 1:
    cuda = ctypes.CDLL("libcuda.so.1")
    told["cuInit"] = cuda.cuInit(0)
    time.sleep(0.3)  # what has been told stays so for 0.2 s
    told["after"] = see()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[str, str]]:
    def start(mib: int) -> PrivateServer:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SOFTGPU_MEMORY_MIB", str(mib))
            return PrivateServer("softgpu")

    with start(SMALL_MIB) as small, start(LARGE_MIB) as large:
        yield small.address, large.address


@pytest.fixture
def serve() -> Iterator[Callable[[Script], PoolController]]:
    running: list[PoolController] = []

    def start(script: Script) -> PoolController:
        running.append(PoolController(script))
        return running[-1]

    yield start
    for controller in running:
        controller.stop()


def see(controllers: str, *arguments: str, **extra: str) -> tuple[dict[str, Any], list[str]]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "CUDA_"))}
    clean |= {"LD_LIBRARY_PATH": str(client_folder()), "HOME": "/nonexistent", "ORION_ATTACH_TIMEOUT_MS": "30000"}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    environment = clean | {"ORION_CONTROLLER": controllers} | extra
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr.splitlines()


def test_as_many_devices_as_are_asked_for_and_after_attach_the_real_ones(serve, servers):
    small, large = servers

    def script(request: Any, controller: PoolController) -> Iterator[Reply]:
        if isinstance(request, pool.Lookup):
            held = [large, small] if controller.of(pool.Allocate) else []
            yield pool.LookedUp(id=request.id, servers=held)
        elif isinstance(request, pool.Allocate):
            yield allocated(request, [large, small])

    controller = serve(script)
    told, lines = see(controller.address, "use", ORION_VGPU="2", ORION_GMEM="100", ORION_GROUP_ID="team")
    assert lines == []
    assert told["before"] == {"mib": [100, 100], "names": ["Orion vGPU"] * 2, "mine": [[], []]}
    assert told["cuInit"] == 0
    assert told["after"]["mib"] == [LARGE_MIB, SMALL_MIB]
    assert "Orion vGPU" not in told["after"]["names"]
    assert told["after"]["mine"] == [[True], [True]]
    lookup = controller.of(pool.Lookup)[0]
    assert (lookup.group, lookup.uid) == ("team", os.getuid())
    assert lookup.pid == controller.of(pool.Allocate)[0].pid
    assert controller.requests.index(lookup) < controller.requests.index(controller.of(pool.Allocate)[0])


def test_no_more_devices_than_are_asked_for(serve, servers):
    """Where the group has more."""
    controller = serve(lambda request, _: [pool.LookedUp(id=request.id, servers=list(servers))])
    told, _ = see(controller.address)
    assert told["before"]["mib"] == [SMALL_MIB]


def test_a_leader_is_found(serve):
    leader = serve(lambda request, _: [pool.LookedUp(id=request.id, servers=[])])
    follower = serve(lambda request, _: [pool.NotLeader(id=request.id, leader=leader.address)])
    told, lines = see(f"127.0.0.1:1,{follower.address}", ORION_VGPU="3")
    assert (len(told["before"]["mib"]), lines) == (3, [])


def test_no_controller_is_no_driver():
    told, lines = see("127.0.0.1:1")
    assert told == {"init": DRIVER_NOT_LOADED}
    assert len(lines) == 1 and "no controller at 127.0.0.1:1" in lines[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"servers": ["127.0.0.1:1"] * 65},
        {"servers": ["nowhere"]},
        {"servers": ["a" * 200 + ":1"]},
        {"servers": [7]},
        {"servers": {"a": 1}},
        {"type": "allocated"},
    ],
)
def test_hostile_answer(serve, fields):
    def script(request: Any, _: PoolController) -> list[Reply]:
        return [msgspec.msgpack.encode({"v": 1, "type": "looked_up", "id": request.id, "servers": []} | fields)]

    told, lines = see(serve(script).address)
    assert told == {"init": DRIVER_NOT_LOADED}
    assert len(lines) == 1 and "ORION_CONTROLLER" in lines[0]
