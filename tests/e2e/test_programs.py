"""Unmodified programs give right answers over every transport."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
NUMBA = str(ROOT / "examples" / "vector_add_numba.py")
PYCUDA = str(ROOT / "examples" / "vector_add_pycuda.py")


def quiet(text: str) -> list[str]:
    """What Orion itself said."""
    return [line for line in text.splitlines() if line.startswith("orion")]


def test_numba(server, transport, run, nothing_left):
    result = run(server.address, transport, sys.executable, NUMBA, "100000")
    assert result.returncode == 0, result.stderr
    assert "equal to numpy" in result.stdout
    assert "softgpu (CPU)" in result.stdout
    assert quiet(result.stderr) == []
    nothing_left(server.address)


def test_pycuda(server, transport, run, nothing_left):
    result = run(server.address, transport, sys.executable, PYCUDA, "100000")
    assert result.returncode == 0, result.stderr
    assert "equal to numpy" in result.stdout
    nothing_left(server.address)


@pytest.fixture(scope="session")
def driver_api_program(tmp_path_factory) -> str:
    """The plain C program, linked against the client library as any driver-API program is against the driver's."""
    binary = tmp_path_factory.mktemp("programs") / "driver_api"
    source = ROOT / "tests" / "programs" / "driver_api.c"
    shim = ROOT / "build" / "shim"
    includes = [f"-I{ROOT / 'wire' / 'include'}", f"-I{ROOT / 'tests' / 'programs'}"]
    line = ["gcc", "-std=c11", "-O1", "-D_GNU_SOURCE", *includes, str(source), "-o", str(binary)]
    subprocess.run([*line, f"-L{shim}", "-l:libcuda.so.1", "-lpthread", "-ldl", "-lm"], check=True)
    return str(binary)


def test_driver_api_program(server, transport, run, nothing_left, driver_api_program):
    result = run(server.address, transport, driver_api_program)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    nothing_left(server.address)


def test_two_programs_at_once(server, transport, start, nothing_left):
    programs = [start(server.address, transport, sys.executable, NUMBA, str(50_000 + i)) for i in range(2)]
    for program in programs:
        out, err = program.communicate(timeout=120)
        assert program.returncode == 0, err
        assert "equal to numpy" in out
    nothing_left(server.address)


def test_private_server_is_started_said_and_stopped(run, tmp_path):
    if not os.path.exists("/proc/net/tcp"):
        pytest.skip("no /proc/net/tcp")
    script = [sys.executable, "-m", "orion_client.run", "--device", "softgpu", "--"]
    environment = {k: v for k, v in os.environ.items() if k != "ORION_SERVER"} | {"HOME": str(tmp_path)}
    environment["PYTHONPATH"] = str(ROOT)
    program = "import os; print(os.environ['ORION_SERVER'])"
    result = subprocess.run(
        [*script, sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120
    )
    assert result.returncode == 0, result.stderr
    address = result.stdout.strip()
    assert f"private orion-server on {address}" in result.stderr
    import socket

    with pytest.raises(ConnectionRefusedError):
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), 1).close()
