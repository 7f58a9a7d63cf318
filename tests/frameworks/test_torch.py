"""Unmodified PyTorch on the test build of the client and a softgpu that records (SOFTGPU_RECORD=1): cuBLAS, cuDNN,
cuFFT, cuSOLVER, cuSPARSE and cuRAND find every function and table that they ask for. What they compute needs a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orion_client.private_server import PrivateServer
from tests.runtime.tools import ROOT, run_program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
# Asked for at the start and done without, natively too where the driver is older.
NOT_NEEDED = ("cuLogsRegisterCallback is not implemented", "ORION_TEST_RUNTIME_VALIDATED")


@pytest.fixture(scope="module")
def client_for_tests() -> Path:
    subprocess.run([sys.executable, str(ROOT / "tools" / "build_native.py"), "--test-client"], check=True)
    return ROOT / "build" / "shim-test"


@pytest.fixture(scope="module")
def torch_python() -> Path:
    command = [sys.executable, str(ROOT / "tools" / "fetch_torch.py")]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


@pytest.fixture
def recording_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateServer]:
    monkeypatch.setenv("SOFTGPU_RECORD", "1")
    with PrivateServer("softgpu") as running:
        yield running


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_every_call_finds_what_it_asks_for(
    client_for_tests: Path, torch_python: Path, recording_server: PrivateServer, transport: str
) -> None:
    program = ROOT / "tests" / "frameworks" / "torch_calls.py"
    done = run_program(client_for_tests, recording_server, torch_python, program, ORION_TRANSPORT=transport)
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("ok ")] == [], done.stderr
    assert done.returncode == 0 and lines[-1] == "ok end"
    said = [line for line in done.stderr.splitlines() if line.startswith("orion: ")]
    assert [line for line in said if not any(known in line for known in NOT_NEEDED)] == []
