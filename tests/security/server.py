"""An encrypted orion-server on softgpu, and programs that run on it under the real client library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from orion_client.private_server import STOP_TIMEOUT_S

ROOT = Path(__file__).resolve().parents[2]
COPIES = ROOT / "tests" / "programs" / "copies.py"
TIMEOUT_S = 120


class Server:
    """Started with `options`; its log is kept. Leaving the `with` stops it."""

    def __init__(self, folder: Path, *options: str, listen: str = "127.0.0.1:0") -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.log_file = folder / "log"
        ready = folder / "ready"
        ready.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "orion_server",
            "--device",
            "softgpu",
            "--listen",
            listen,
            "--exit-with-parent",
        ]
        command += ["--state-dir", str(folder), "--vgpu-count", "0", "--drain-timeout", "0", *options]
        read_fd, write_fd = os.pipe()
        with self.log_file.open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--ready-fd", str(write_fd)],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[write_fd],
            )
        os.close(write_fd)
        with os.fdopen(read_fd) as file:
            self.address = file.readline().strip()
        assert self.address, self.log
        shown = subprocess.run(
            [sys.executable, "-m", "orion_server", "key", "--state-dir", str(folder)],
            env=environment(), capture_output=True, text=True, check=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        self.key = shown.stdout.strip()

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Ran(NamedTuple):
    """What a program printed (JSON), and what the client library said."""

    found: dict[str, Any]
    said: list[str]


def environment(**settings: str) -> dict[str, str]:
    """Nobody else's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORION_", "CUDA_", "LD_PRELOAD"))}
    return {**kept, "PYTHONPATH": str(ROOT), "HOME": "/nonexistent", **settings}


def copy(address: str, key: str, rounds: int = 2, **settings: str) -> Ran:
    """Runs tests/programs/copies.py over tcp with one stripe."""
    chosen = {"ORION_SERVER": address, "ORION_SERVER_KEY": key, "ORION_TRANSPORT": "tcp", "ORION_TCP_STRIPES": "1"}
    chosen |= {"LD_PRELOAD": str(ROOT / "build" / "shim" / "libcuda.so.1"), "ORION_LOG": "info", **settings}
    done = subprocess.run(
        [sys.executable, str(COPIES), str(rounds)],
        env=environment(**{name: value for name, value in chosen.items() if value}),
        capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Ran(json.loads(done.stdout), [line for line in done.stderr.splitlines() if line.startswith("orion")])
