"""A loopback orion-server of one's own, for the life of one command."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 5.0


class PrivateServerFailed(Exception):
    """It did not come up; its own message is on stderr already."""


class PrivateServer:
    """Started on an ephemeral loopback port; dies with this process even when that is killed."""

    def __init__(self, device: str = "auto", log_level: str = "warning", extra: tuple[str, ...] = ()) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        root = str(Path(__file__).resolve().parent.parent)
        environment["PYTHONPATH"] = ":".join(filter(None, [root, environment.get("PYTHONPATH", "")]))
        read_fd, write_fd = os.pipe()
        try:
            command = [sys.executable, "-P", "-m", "orion_server", "--listen", "127.0.0.1:0", "--exit-with-parent"]
            command += ["--device", device, "--log-level", log_level, "--ready-fd", str(write_fd)]
            # It serves one program, which may have many processes: each may use the whole GPU.
            command += ["--drain-timeout", "1", "--vgpu-count", "0", *extra]
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[write_fd],
                process_group=0,  # Ctrl-C is for the program; we stop the server when that has ended
            )
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        try:
            self.address = self._wait_ready(read_fd)
        finally:
            os.close(read_fd)

    def _wait_ready(self, read_fd: int) -> str:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        line = b""
        while not line.endswith(b"\n"):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([read_fd], [], [], left_s)[0]:
                self.stop()
                raise PrivateServerFailed(f"a private orion-server was not ready in {START_TIMEOUT_S:g} s")
            data = os.read(read_fd, 256)
            if not data:
                self.stop()
                raise PrivateServerFailed("a private orion-server could not start (its message is above)")
            line += data
        return line.decode().strip()

    def stop(self) -> None:
        """Ends it and waits."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> PrivateServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
