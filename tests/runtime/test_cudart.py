"""NVIDIA's own runtime libraries, of several releases, on the client: on softgpu they work with the test
build and are refused by the build that users get."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orion_client.private_server import PrivateServer
from tests.runtime.tools import run_cudart

VERSIONS = ["11.8", "12.1", "12.4", "12.8", "12.9", "13.0", "13.5"]
QUICK = {"11.8", "13.5"}
PARAMETERS = [pytest.param(v, marks=() if v in QUICK else pytest.mark.slow) for v in VERSIONS]
MARK = b"ORION_TEST_RUNTIME_VALIDATED"


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("version", PARAMETERS)
def test_runs_on_softgpu_with_the_test_build(
    client_for_tests: Path, softgpu_server: PrivateServer, cudart: Callable[[str], Path], version: str, transport: str
) -> None:
    done = run_cudart(client_for_tests, softgpu_server, cudart(version), ORION_TRANSPORT=transport)
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.endswith(" 0")] == [], done.stderr
    assert done.returncode == 0 and lines[-1] == "devices 0"
    strange = [line for line in done.stderr.splitlines() if MARK.decode() not in line]
    assert strange == [], "an unknown table, slot or function was asked for"


@pytest.mark.parametrize("version", PARAMETERS)
def test_is_refused_on_softgpu_with_the_build_that_users_get(
    shipped_client: Path, softgpu_server: PrivateServer, cudart: Callable[[str], Path], version: str
) -> None:
    done = run_cudart(shipped_client, softgpu_server, cudart(version))
    assert done.stdout.splitlines() == ["cudaGetDeviceCount 801"]
    (line,) = done.stderr.splitlines()
    assert "softgpu" in line and "docs/nvidia-runtime.md" in line


def test_builds_are_told_apart(client_for_tests: Path, shipped_client: Path) -> None:
    assert MARK in (client_for_tests / "libcuda.so.1").read_bytes()
    assert MARK not in (shipped_client / "libcuda.so.1").read_bytes()
