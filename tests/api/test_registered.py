"""Registered host memory where pages cannot move: what the program is told, and that nothing is lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orion_client.libraries import client_folder
from orion_client.private_server import PrivateServer

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "tests" / "programs" / "registered_edges.c"

# Over shm, what the log says. Over tcp nothing moves, and all of it can be registered.
REASONS = {
    "threads": ["a thread of the program blocks SIGSEGV"],
    "handler": ["has installed a SIGSEGV handler", "stays shared with the worker", "registered already"],
    "exhausted": ["the system refused a mapping"],
    "mappings": [],
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("registered") / "edges"
    command = ["gcc", "-std=gnu11", "-Wall", "-Werror", f"-I{ROOT / 'wire' / 'include'}", str(SOURCE)]
    subprocess.run([*command, "-o", str(built), "-ldl", "-lpthread"], check=True)
    return built


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with PrivateServer("softgpu", extra=("--warm", "1")) as running:
        yield running


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("case", REASONS)
def test_memory_that_cannot_move(server: PrivateServer, program: Path, case: str, transport: str) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "CUDA_"))}
    own = {
        "LD_LIBRARY_PATH": str(client_folder()),
        "ORION_SERVER": server.address,
        "ORION_TRANSPORT": transport,
    }
    done = subprocess.run([program, case], env={**clean, **own}, capture_output=True, text=True, timeout=120)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert failed == [], done.stderr[-2000:]
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    for reason in REASONS[case] if transport == "shm" else []:
        assert reason in done.stderr
    if not REASONS[case] or transport == "tcp":
        assert done.stderr == ""
