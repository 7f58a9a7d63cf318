"""What programs see of their vGPU, from the environment to the driver API and the management library, and a change of
it while one runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from orion_client import libraries
from orion_client.private_server import PrivateServer

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
# Prints what it sees when it starts, and again for each line that it reads.
PROGRAM = """
import ctypes, json, sys
cuda, nvml = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvidia-ml.so.1")
class Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]
def look(attached):
    memory, handle, total, count = Memory(), ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_int()
    codes = [nvml.nvmlInit_v2(), nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)),
             nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))]
    if attached:
        codes += [cuda.cuInit(0), cuda.cuDeviceTotalMem_v2(ctypes.byref(total), 0)]
    print(json.dumps({"codes": codes, "nvml": memory.total, "cuda": total.value}), flush=True)
look(False)
look(True)
for line in sys.stdin:
    look(True)
"""


@pytest.fixture
def server() -> Iterator[PrivateServer]:
    with PrivateServer("softgpu", extra=("--vgpu-count", "4")) as running:
        yield running


class Program:
    """One that runs until its standard input ends."""

    def __init__(self, address: str, **settings: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "CUDA_"))}
        environment = {**kept, **libraries.environment(), "ORION_SERVER": address, **settings}
        command = [sys.executable, "-c", PROGRAM]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @property
    def output(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def sees(self) -> dict[str, object]:
        seen: dict[str, object] = json.loads(self.output.readline())
        return seen

    def looks_again(self) -> dict[str, object]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.sees()


@contextmanager
def running(address: str, **settings: str) -> Iterator[Program]:
    program = Program(address, **settings)
    try:
        yield program
    finally:
        program.process.kill()
        program.process.communicate()


def ctl(address: str, *arguments: str) -> dict[str, list[dict[str, object]]]:
    command = [sys.executable, "-m", "orion_client.ctl", "--server", address, *arguments, "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, list[dict[str, object]]] = json.loads(done.stdout)
    return told


def test_a_program_sees_its_quota_before_and_after_it_attaches(server: PrivateServer) -> None:
    with running(server.address, ORION_GMEM="512", ORION_RATIO="30") as program:
        assert program.sees() == {"codes": [0] * 3, "nvml": 512 * MIB, "cuda": 0}
        assert program.sees() == {"codes": [0] * 5, "nvml": 512 * MIB, "cuda": 512 * MIB}


def test_processes_of_a_group_share_one_and_it_is_resized_under_them(server: PrivateServer) -> None:
    group = {"ORION_GROUP_ID": "team", "ORION_RES_GROUP": "BOX"}
    with running(server.address, ORION_GMEM="512", **group) as first, running(server.address) as stranger:
        first.sees()
        assert first.sees()["cuda"] == 512 * MIB
        stranger.sees()
        elsewhere = stranger.sees()["nvml"]
        with running(server.address, **group) as second:  # asks for nothing: joins
            assert second.sees()["nvml"] == 512 * MIB
            assert second.sees()["cuda"] == 512 * MIB
            (shared,) = [v for v in ctl(server.address, "list")["vgpus"] if v["group"] == "team"]
            assert sorted(map(int, shared["pids"])) == sorted([first.process.pid, second.process.pid])  # type: ignore[call-overload]
            (now,) = ctl(server.address, "set", "team", "--gmem", "1024", "--ratio", "50")["vgpus"]
            assert (now["quota_bytes"], now["ratio"]) == (1024 * MIB, 50)
            for program in (first, second):
                assert program.looks_again()["nvml"] == 1024 * MIB
            assert stranger.looks_again()["nvml"] == elsewhere


def test_a_client_for_whom_nothing_is_left_is_told_what_is(server: PrivateServer) -> None:
    with running(server.address, ORION_RATIO="80") as first:
        first.sees()
        assert first.sees()["codes"] == [0] * 5
        with running(server.address, ORION_RATIO="30") as second:
            second.sees()
            assert second.sees()["codes"] == [0, 0, 0, 46, 3]
            _, told = second.process.communicate()
    assert "no GPU has 30 % left: 1 vGPU holds 80 %" in told and "ORION_RATIO" in told


def test_memory_of_a_killed_program_can_be_given_again(server: PrivateServer) -> None:
    free = sum(gpu["capacity_bytes"] - gpu["given_bytes"] for gpu in ctl(server.address, "list")["gpus"])  # type: ignore[operator,misc]
    everything = {"ORION_GMEM": str(int(free) // MIB), "ORION_RATIO": "100"}
    with running(server.address, **everything) as first:
        first.sees()
        assert first.sees()["codes"] == [0] * 5
        first.process.kill()
    for _ in range(100):  # until the worker has gone too
        with running(server.address, **everything) as second:
            second.sees()
            if second.sees()["codes"] == [0] * 5:
                return
    raise AssertionError("what the killed program had was not given back")
