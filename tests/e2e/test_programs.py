"""Unmodified programs give right answers over every transport."""

from __future__ import annotations

import os
import socket
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


def test_two_programs_at_once(server, transport, start, nothing_left):
    programs = [start(server.address, transport, sys.executable, NUMBA, str(50_000 + i)) for i in range(2)]
    for program in programs:
        out, err = program.communicate(timeout=120)
        assert program.returncode == 0, err
        assert "equal to numpy" in out
    nothing_left(server.address)


def test_private_server_is_started_said_and_stopped(run, tmp_path):
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
    with pytest.raises(ConnectionRefusedError):
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), 1).close()
