"""Programs on a given build of the client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from orion_client.private_server import PrivateServer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def run_program(
    client: Path, server: PrivateServer, *command: str | Path, **settings: str
) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "CUDA_"))}
    environment = {**clean, "LD_LIBRARY_PATH": str(client), "ORION_SERVER": server.address, **settings}
    return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=120)


def run_cudart(client: Path, server: PrivateServer, library: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return run_program(client, server, sys.executable, HERE / "cudart_calls.py", library, **settings)
