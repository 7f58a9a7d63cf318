"""NVIDIA's runtime library against the client: builds, servers, and the environment of a program."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orion_client.libraries import client_folder
from orion_client.private_server import PrivateServer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def client_for_tests() -> Path:
    """The folder of the client that answers the self-test without a GPU."""
    subprocess.run([sys.executable, str(ROOT / "tools" / "build_native.py"), "--test-client"], check=True, timeout=600)
    return ROOT / "build" / "shim-test"


@pytest.fixture(scope="session")
def shipped_client() -> Path:
    return client_folder()


@pytest.fixture(scope="session")
def cudart() -> Callable[[str], Path]:
    """NVIDIA's runtime of a release (tools/fetch_cudart.py)."""

    def fetch(version: str) -> Path:
        command = [sys.executable, str(ROOT / "tools" / "fetch_cudart.py"), version]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        return Path(done.stdout.split()[-1])

    return fetch


@pytest.fixture(scope="module")
def softgpu_server() -> Iterator[PrivateServer]:
    with PrivateServer("softgpu", extra=("--warm", "2")) as running:
        yield running
