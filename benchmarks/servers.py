"""Starts and stops an orion-server of our own for a measurement: loopback, a free port, ended by its own pid."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def server(
    device: str, *options: str, log: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Yields the address host:port of a running server, without limits unless `options` set some; `device` is nvidia,
    softgpu or auto, `environment` is added to this process's."""
    with tempfile.TemporaryDirectory(prefix="orion-bench-") as folder:
        ready = Path(folder) / "ready"
        command = [sys.executable, "-m", "orion_server", "--listen", "127.0.0.1:0", "--device", device,
                   "--vgpu-count", "0", "--ready-file", str(ready), *options]  # fmt: skip
        with open(log or Path(folder) / "server.log", "w+") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
            try:
                deadline = time.monotonic() + 120
                while not (ready.exists() and ready.read_text().strip()):
                    if process.poll() is not None or time.monotonic() > deadline:
                        output.seek(0)
                        raise RuntimeError(f"orion-server did not start:\n{output.read()[-3000:]}")
                    time.sleep(0.05)
                yield ready.read_text().split()[0]
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    try:
                        process.wait(20)
                    except subprocess.TimeoutExpired:
                        os.kill(process.pid, signal.SIGKILL)
                        process.wait()


def client_environment(address: str, transport: str) -> dict[str, str]:
    """The environment in which a program uses that server; for programs that are not started by orion-run."""
    from orion_client import libraries

    return {
        **os.environ,
        **libraries.environment(),
        "ORION_SERVER": address,
        "ORION_TRANSPORT": transport,
        "ORION_BENCH_REMOTE": "1",
    }
