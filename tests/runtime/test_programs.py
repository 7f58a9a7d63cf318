"""The programs of tests/programs/runtime as PTX on softgpu: NVIDIA's runtime starts with their `__managed__` variable,
and every section that softgpu can run passes its own checks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks.runtime_session import build, find_nvcc
from orion_client.private_server import PrivateServer
from tests.runtime.tools import ROOT, run_program

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_nvcc() is None, reason="no nvcc on PATH or in /usr/local/cuda*/bin"),
]

# What softgpu lacks: clusters, cubemaps, gathers, matrix instructions, barriers in shared memory, and errors and
# functions of graphs as the runtime expects them of NVIDIA's driver.
NOT_ON_SOFTGPU = {
    "clusters",
    "graphs",
    "cubemaps",
    "levels",
    "texels",
    "tensor_cores",
    "tiles",
    "async_copies",
    "system_atomics",
    "invalid",
}


@pytest.fixture(scope="module")
def program() -> Path:
    return build(ROOT / "build" / "tests" / "runtime", ["ptx"])["ptx"]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_sections(client_for_tests: Path, softgpu_server: PrivateServer, program: Path, transport: str) -> None:
    listed = subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout
    sections = [line.split()[0] for line in listed.splitlines()]
    assert "managed" in sections and NOT_ON_SOFTGPU < set(sections)
    failed = []
    for section in sections:
        if section in NOT_ON_SOFTGPU:
            continue
        done = run_program(client_for_tests, softgpu_server, program, section, ORION_TRANSPORT=transport)
        if done.returncode != 0 or "failures 0" not in done.stdout:
            failed.append(f"{section}: {done.stdout[-500:]} {done.stderr[-500:]}")
    assert failed == []
