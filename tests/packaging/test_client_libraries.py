"""The development build of the client libraries: what they export and need, and what preloading them changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.elf import dynamic_entries, exported_names

BUILD = Path(__file__).resolve().parents[2] / "build" / "shim"
# glibc's own parts; anything else would have to be on the machine of every user.
ALLOWED_NEEDED = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "ld-linux-x86-64.so.2"}
LIBRARIES = [("libcuda.so.1", "cu"), ("libnvidia-ml.so.1", "nvml")]


@pytest.mark.parametrize(("name", "prefix"), LIBRARIES)
def test_exports_only_its_api(name: str, prefix: str) -> None:
    names = exported_names(BUILD / name)
    assert names, "nothing is exported"
    assert {symbol for symbol in names if not symbol.startswith(prefix)} == set()


@pytest.mark.parametrize(("name", "prefix"), LIBRARIES)
def test_needs_only_glibc_and_names_itself(name: str, prefix: str) -> None:
    assert set(dynamic_entries(BUILD / name, "NEEDED")) <= ALLOWED_NEEDED
    assert dynamic_entries(BUILD / name, "SONAME") == [name]


PYZMQ_PROGRAM = """
import ctypes, sys, zmq

def round_trip():
    context = zmq.Context()
    server = context.socket(zmq.REP)
    client = context.socket(zmq.REQ)
    client.connect("tcp://127.0.0.1:%d" % server.bind_to_random_port("tcp://127.0.0.1"))
    client.send(b"ping")
    assert server.recv() == b"ping"
    server.send(b"pong")
    assert client.recv() == b"pong"
    context.destroy(linger=0)

round_trip()
result = ctypes.CDLL("libcuda.so.1").cuInit(0)
round_trip()
print(zmq.zmq_version(), result)
"""


def run_pyzmq_program(environment: dict[str, str]) -> list[str]:
    # Port 1 is reserved and nobody listens there: cuInit uses its own libzmq and fails.
    environment = {**os.environ, "ORION_SERVER": "127.0.0.1:1", **environment}
    command = [sys.executable, "-c", PYZMQ_PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("variable", ["LD_PRELOAD", "LD_LIBRARY_PATH"])
def test_a_process_keeps_its_own_libzmq(variable: str) -> None:
    import zmq

    library = BUILD / "libcuda.so.1"
    value = library if variable == "LD_PRELOAD" else library.parent
    version, result = run_pyzmq_program({variable: str(value)})
    assert version == zmq.zmq_version()
    assert int(result) != 0
