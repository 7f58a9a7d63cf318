"""Programs are held to their quota, also to one that is changed under them: real allocations on a running server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orion_client import libraries
from orion_client.private_server import PrivateServer

ROOT = Path(__file__).resolve().parents[2]
OUT_OF_MEMORY = 2
# For each line: "a MIB" allocates, "f" frees the last block; prints the code and what cuMemGetInfo says in MiB.
PROGRAM = """
import ctypes, json, sys
cuda = ctypes.CDLL("libcuda.so.1")
device, context = ctypes.c_int(), ctypes.c_void_p()
codes = [cuda.cuInit(0), cuda.cuDeviceGet(ctypes.byref(device), 0),
         cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), cuda.cuCtxSetCurrent(context)]
assert codes == [0] * 4, codes
blocks = []
print("ready", flush=True)
for line in sys.stdin:
    word, *rest = line.split()
    code, free, total = 0, ctypes.c_size_t(), ctypes.c_size_t()
    if word == "a":
        block = ctypes.c_uint64()
        code = cuda.cuMemAlloc_v2(ctypes.byref(block), ctypes.c_size_t(int(rest[0]) << 20))
        if code == 0:
            blocks.append(block)
    elif word == "f":
        code = cuda.cuMemFree_v2(blocks.pop())
        cuda.cuCtxSynchronize()
    told = cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    print(json.dumps([code or told, free.value >> 20, total.value >> 20]), flush=True)
"""


class Program:
    def __init__(self, address: str, **settings: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "CUDA_"))}
        environment = {**kept, **libraries.environment(), "ORION_SERVER": address, **settings}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None and self.process.stdin is not None
        assert self.process.stdout.readline() == "ready\n"

    def does(self, line: str) -> tuple[int, int, int]:
        """Code, free MiB, total MiB."""
        assert self.process.stdout is not None and self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        code, free, total = json.loads(self.process.stdout.readline())
        return code, free, total

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def server() -> Iterator[PrivateServer]:
    with PrivateServer("softgpu", extra=("--vgpu-count", "4")) as running:
        yield running


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    started: list[Program] = []
    yield started
    for program in started:
        program.end()


def ctl(address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orion_client.ctl", "--server", address, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def test_what_is_free_can_be_had_and_no_more(server: PrivateServer, programs: list[Program]) -> None:
    programs.append(Program(server.address, ORION_GMEM="256"))
    (program,) = programs
    code, free, total = program.does("look")
    assert (code, total) == (0, 256)
    code, left, _ = program.does(f"a {free}")
    assert (code, left) == (0, 0)
    assert program.does("a 2")[0] == OUT_OF_MEMORY
    assert program.does("f")[0] == 0
    assert program.does(f"a {free}")[0] == 0


def test_a_group_has_its_quota_together(server: PrivateServer, programs: list[Program]) -> None:
    group = {"ORION_GROUP_ID": "team", "ORION_RES_GROUP": "BOX", "ORION_GMEM": "256"}
    programs += [Program(server.address, **group), Program(server.address, **group)]
    first, second = programs
    assert first.does("a 160")[0] == 0
    assert second.does("a 160") == (OUT_OF_MEMORY, 96, 256)
    assert first.does("f")[0] == 0
    assert second.does("a 160")[0] == 0


def test_a_quota_grows_and_shrinks_under_a_program(server: PrivateServer, programs: list[Program]) -> None:
    programs.append(Program(server.address, ORION_GMEM="128", ORION_GROUP_ID="team"))
    (program,) = programs
    assert program.does("a 100")[0] == 0
    assert program.does("a 100")[0] == OUT_OF_MEMORY
    assert ctl(server.address, "set", "team", "--gmem", "512").returncode == 0
    code, _, total = program.does("a 100")
    assert (code, total) == (0, 512)
    refused = ctl(server.address, "set", "team", "--gmem", "128")
    assert refused.returncode == 1 and "more than 128 MiB" in refused.stderr
    assert ctl(server.address, "set", "team", "--gmem", "128", "--shrink", "block").returncode == 0
    code, free, total = program.does("a 2")
    assert (code, free, total) == (OUT_OF_MEMORY, 0, 128)
    assert program.does("f")[0] == 0
    assert program.does("a 2")[0] == 0
