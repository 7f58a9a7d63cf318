"""Programs get no more of the GPU's time than their ratio, also when that changes; and, where quotas exceed the GPU,
their memory moves and comes back. Bounds here are of what may have been used since a vGPU was made, whatever the
machine does meanwhile: they are no timings."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orion_client import libraries
from orion_client.control_client import stats
from orion_client.private_server import PrivateServer
from tests.e2e.transports import TRANSPORTS
from wire import control

ROOT = Path(__file__).resolve().parents[2]
# A burst, a turn and what is in flight at the end; kernels here take a few milliseconds, more on a loaded machine.
SLACK_S = 0.12
# For each line: "k N" launches N kernels and waits, "a MIB" allocates, "f V" fills with a value, "c V" counts those.
PROGRAM = """
import ctypes, sys
from benchmarks.driver import SPIN_PTX, Driver
cu = Driver()
stream, counter, blocks = cu.stream(), cu.allocate(8), []
cu("cuMemsetD8_v2", counter, 0, ctypes.c_size_t(8))
cu("cuCtxSynchronize")
launch = cu.launcher(cu.kernel(SPIN_PTX, b"spin"), stream, counter, ctypes.c_uint64(int(sys.argv[1])))
print("ready", flush=True)
for line in sys.stdin:
    word, number = line.split()
    number = int(number)
    told = 0
    if word == "k":
        for _ in range(number):
            launch()
        cu("cuStreamSynchronize", stream)
        told = cu.read_u32(counter)
    elif word == "a":
        blocks += [(cu.allocate(64 << 20)) for _ in range(number // 64)]
    elif word == "f":
        for block in blocks:
            cu("cuMemsetD8_v2", block, ctypes.c_ubyte(number), ctypes.c_size_t(64 << 20))
        cu("cuCtxSynchronize")
    else:
        page = (ctypes.c_ubyte * 4096)()
        for block in blocks:
            for offset in (0, 33 << 20, (64 << 20) - 4096):
                cu("cuMemcpyDtoH_v2", page, ctypes.c_uint64(block.value + offset), ctypes.c_size_t(4096))
                told += bytes(page).count(number)
    print(told, flush=True)
"""
CYCLES = 2_000_000


class Program:
    def __init__(self, address: str, **settings: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "CUDA_"))}
        environment = {**kept, **libraries.environment(), "ORION_SERVER": address, "PYTHONPATH": str(ROOT), **settings}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(CYCLES)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.answer("ready") == "ready"

    def begin(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def answer(self, _what: str = "") -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def does(self, line: str) -> int:
        self.begin(line)
        return int(self.answer())

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


Start = Callable[..., Program]


@pytest.fixture
def start() -> Iterator[Start]:
    programs: list[Program] = []

    def go(address: str, **settings: str) -> Program:
        programs.append(Program(address, **settings))
        return programs[-1]

    yield go
    for program in programs:
        program.end()


def vgpus(server: PrivateServer) -> dict[int, control.VgpuStats]:
    """By the ratio that each has."""
    return {vgpu.ratio: vgpu for vgpu in stats(server.address).vgpus}


def within_its_ratio(vgpu: control.VgpuStats, ratio: int) -> bool:
    return vgpu.spent_ns / 1e9 <= (time.time() - vgpu.since) * ratio / 100 + SLACK_S


@pytest.fixture
def server() -> Iterator[PrivateServer]:
    with PrivateServer("softgpu", extra=("--vgpu-count", "4")) as running:
        yield running


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_lone_program_is_held_to_its_ratio(server: PrivateServer, start: Start, transport: str):
    program = start(server.address, ORION_RATIO="20", ORION_TRANSPORT=transport)
    assert program.does("k 60") == 60
    assert program.does("k 60") == 120
    vgpu = vgpus(server)[20]
    assert within_its_ratio(vgpu, 20)
    assert vgpu.spent_ns > 120 * 100_000 and vgpu.throttled_ns > 0 and vgpu.works >= 120 and vgpu.turns > 1


def test_two_programs_are_held_to_theirs(server: PrivateServer, start: Start):
    small, large = start(server.address, ORION_RATIO="20"), start(server.address, ORION_RATIO="60")
    small.begin("k 60")
    large.begin("k 150")
    assert (int(small.answer()), int(large.answer())) == (60, 150)
    found = vgpus(server)
    assert within_its_ratio(found[20], 20) and within_its_ratio(found[60], 60)


def test_processes_of_a_group_share_one_ratio(server: PrivateServer, start: Start):
    group = {"ORION_RATIO": "20", "ORION_GROUP_ID": "team", "ORION_RES_GROUP": "BOX"}
    programs = [start(server.address, **group) for _ in range(2)]
    for program in programs:
        program.begin("k 40")
    assert [int(program.answer()) for program in programs] == [40, 40]
    (vgpu,) = vgpus(server).values()
    assert len(vgpu.pids) == 2 and within_its_ratio(vgpu, 20)


def test_another_ratio_while_it_runs(server: PrivateServer, start: Start):
    program = start(server.address, ORION_RATIO="1", ORION_GROUP_ID="team", ORION_RES_GROUP="BOX")
    program.begin("k 400")  # minutes, at one percent
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "orion_client.ctl", "--server", server.address, "set", "team", "--ratio", "100"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(program.answer()) == 400
    assert list(vgpus(server)) == [100]


def test_without_slices_nothing_is_counted(start: Start):
    with PrivateServer("softgpu") as running:
        assert start(running.address).does("k 20") == 20
        assert all(vgpu.works == 0 and vgpu.throttled_ns == 0 for vgpu in stats(running.address).vgpus)


def test_quotas_that_exceed_the_gpu_move_memory_and_lose_nothing(start: Start, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOFTGPU_MEMORY_MIB", "1024")
    with PrivateServer("softgpu", extra=("--vgpu-count", "4", "--swap-mib", "1024")) as running:
        # Both fit into what the GPU and the host have, not both at a time on the GPU.
        first, second = (start(running.address, ORION_GMEM="700", ORION_RATIO=ratio) for ratio in ("30", "60"))
        pages = 3 * 9 * 4096
        assert first.does("a 576") == 0 and first.does("f 7") == 0
        assert second.does("a 576") == 0 and second.does("f 9") == 0
        assert vgpus(running)[30].out_bytes >= 500 << 20  # what was idle has made room
        for _ in range(2):
            assert first.does("c 7") == pages
            assert second.does("c 9") == pages
        assert first.does("k 5") == 5
