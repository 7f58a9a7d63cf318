"""tests/programs/device_calls.c through the shim: calls that the client answers or composes itself, so that softgpu
alone does not run them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orion_client.libraries import client_folder
from orion_client.private_server import PrivateServer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with PrivateServer("softgpu") as running:
        yield running


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("device") / "device_calls"
    source = ROOT / "tests" / "programs" / "device_calls.c"
    command = ["gcc", "-std=gnu11", "-Wall", "-Werror", f"-I{ROOT / 'wire' / 'include'}", str(source), "-o", str(built)]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True)
    return built


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("section", ["attributes", "launch_attributes", "batch", "device"])
def test_device_calls(server: PrivateServer, program: Path, section: str, transport: str) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "CUDA_"))}
    clean |= {"LD_LIBRARY_PATH": str(client_folder()), "ORION_SERVER": server.address, "ORION_TRANSPORT": transport}
    done = subprocess.run([program, section], env=clean, capture_output=True, text=True, timeout=60)
    assert [line for line in done.stdout.splitlines() if line.startswith("FAIL")] == []
    assert done.returncode == 0 and ", 0 failures" in done.stdout, done.stdout + done.stderr
    if section == "launch_attributes":  # each is told once
        told = [number for number in range(32) if f"launch attribute {number} is not implemented" in done.stderr]
        assert told == [3, 7, 12, 13, 15] and done.stderr.count("launch attribute") == len(told)
