"""Where a program runs: on softgpu itself first, then on a server's softgpu over both transports."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orion_client.libraries import softgpu_folder
from orion_client.private_server import PrivateServer

ROOT = Path(__file__).resolve().parents[2]
PLACES = ["native", "shm", "tcp"]
Environment = Callable[[str], dict[str, str]]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def semantics_server() -> Iterator[PrivateServer]:
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as settings:
            settings.setenv("SOFTGPU_MEMORY_MIB", "512")  # so that memory can run out; read when the server starts
            running = stack.enter_context(PrivateServer("softgpu"))
        yield running


@pytest.fixture
def environment(semantics_server: PrivateServer) -> Environment:
    """The variables with which a program runs in a place."""

    def make(place: str) -> dict[str, str]:
        base = {**os.environ, "PYTHONPATH": str(ROOT), "SOFTGPU_LIBCUDA": "libcuda.so.1", "SOFTGPU_MEMORY_MIB": "512"}
        if place == "native":
            return {**base, "LD_LIBRARY_PATH": str(softgpu_folder())}
        from orion_client.libraries import environment as libraries

        return {**base, **libraries(), "ORION_SERVER": semantics_server.address, "ORION_TRANSPORT": place}

    return make


@pytest.fixture
def run(environment: Environment) -> Run:
    def go(place: str, module: str, name: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tests.semantics.programs", module, name],
            env={**environment(place), **variables},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=90,
        )

    return go
