"""Whole programs in processes of their own: servers on softgpu, clients under orion-run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orion_client.control_client import stats
from orion_client.private_server import PrivateServer
from tests.e2e.transports import CHOSEN, TRANSPORTS, UCX, environment_of

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM_TIMEOUT_S = 120
NO_CALL = SimpleNamespace(params={})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With transports of one's own choice: the tests that have one."""
    if not CHOSEN:
        return
    has_one = [isinstance(item, pytest.Function) and "transport" in getattr(item, "callspec", NO_CALL).params
               for item in items]  # fmt: skip
    config.hook.pytest_deselected(items=[item for item, has in zip(items, has_one) if not has])
    items[:] = [item for item, has in zip(items, has_one) if has]


@pytest.fixture(scope="session", autouse=True)
def offers_of_servers() -> Iterator[None]:
    if "ucx" not in TRANSPORTS:
        yield
        return
    begin = PrivateServer.__init__

    def with_ucx(self: PrivateServer, *given: Any, extra: tuple[str, ...] = (), **named: Any) -> None:
        begin(self, *given, extra=(*extra, "--enable-rdma"), **named)

    with environment_of(UCX), pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrivateServer, "__init__", with_ucx)
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with PrivateServer("softgpu") as running:
        yield running


@pytest.fixture
def own_server() -> Iterator[PrivateServer]:
    """For tests that harm it."""
    with PrivateServer("softgpu") as running:
        yield running


@pytest.fixture
def second_server() -> Iterator[PrivateServer]:
    with PrivateServer("softgpu") as running:
        yield running


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def command(server: str, transport: str, *program: str) -> list[str]:
    run = [sys.executable, "-m", "orion_client.run", "--server", server, "--transport", transport, "--"]
    return [*run, *program]


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program to its end under orion-run."""

    def go(server: str, transport: str, *program: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        line = command(server, transport, *program)
        return subprocess.run(line, capture_output=True, text=True, env=variables, timeout=PROGRAM_TIMEOUT_S)

    return go


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a program under orion-run; it talks through its stdin and stdout."""
    running: list[subprocess.Popen[str]] = []

    def go(server: str, transport: str, *program: str) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        variables = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command(server, transport, *program), text=True, env=variables, **pipes)
        running.append(process)
        return process

    yield go
    for process in running:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def nothing_left() -> Callable[[str], None]:
    """Waits until a server holds no session and no memory: a dead client's share is promised within a second."""

    def check(server: str) -> None:
        deadline_s = time.monotonic() + 10.0
        while True:
            answer = stats(server)
            if not answer.sessions and all(gpu.used_bytes == 0 for gpu in answer.gpus):
                return
            assert time.monotonic() < deadline_s, f"left on the server: {answer.sessions}"
            time.sleep(0.05)

    return check
