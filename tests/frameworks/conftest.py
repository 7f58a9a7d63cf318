"""The test build of the client, a server on a softgpu that records (SOFTGPU_RECORD=1), and the frameworks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orion_client.private_server import PrivateServer
from tests.runtime.tools import ROOT, run_program

NOT_NEEDED = ("ORION_TEST_RUNTIME_VALIDATED",)
# (framework's Python, program, settings): every step prints `ok NAME`, and nothing was asked for in vain.
CallsCheck = Callable[..., None]


@pytest.fixture(scope="session")
def client_for_tests() -> Path:
    subprocess.run([sys.executable, str(ROOT / "tools" / "build_native.py"), "--test-client"], check=True)
    return ROOT / "build" / "shim-test"


def framework_python(name: str) -> Path:
    command = [sys.executable, str(ROOT / "tools" / "fetch_frameworks.py"), name]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


@pytest.fixture(scope="session")
def torch_python() -> Path:
    return framework_python("torch")


@pytest.fixture(scope="session")
def jax_python() -> Path:
    """Python with JAX and CuPy."""
    return framework_python("jax")


@pytest.fixture
def recording_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateServer]:
    monkeypatch.setenv("SOFTGPU_RECORD", "1")
    with PrivateServer("softgpu") as running:
        yield running


@pytest.fixture
def check_calls(client_for_tests: Path, recording_server: PrivateServer) -> CallsCheck:
    def check(python: Path, program: str, **settings: str) -> None:
        path = ROOT / "tests" / "frameworks" / program
        done = run_program(client_for_tests, recording_server, python, path, **settings)
        lines = done.stdout.splitlines()
        assert [line for line in lines if not line.startswith("ok ")] == [], done.stderr
        assert done.returncode == 0 and lines[-1:] == ["ok end"], done.stderr
        said = [line for line in done.stderr.splitlines() if line.startswith("orion: ")]
        assert [line for line in said if not any(known in line for known in NOT_NEEDED)] == []

    return check
