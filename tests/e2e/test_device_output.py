"""A program of Numba whose kernel prints: its stdout, in order, over both transports."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from orion_client.libraries import client_folder
from orion_client.private_server import PrivateServer
from tests.e2e.transports import TRANSPORTS
from tests.runtime.tools import run_program

PROGRAM = """
from numba import cuda

@cuda.jit
def hello(n):
    print("hello", n, cuda.threadIdx.x)

hello[1, 3](7)
print("launched", flush=True)
cuda.synchronize()
print("synchronised")
"""
TEXT = "".join(f"hello 7 {thread}\n" for thread in range(3))


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with PrivateServer("softgpu") as running:
        yield running


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("setting", "text"), [({}, TEXT), ({"ORION_DEVICE_PRINTF": "0"}, "")], ids=["on", "off"])
def test_numba(server: PrivateServer, transport: str, setting: dict[str, str], text: str) -> None:
    done = run_program(client_folder(), server, sys.executable, "-c", PROGRAM, ORION_TRANSPORT=transport, **setting)
    assert done.stdout == f"launched\n{text}synchronised\n", done.stderr
