"""A controller for one program: the demo's pool, with its portal."""

from __future__ import annotations

import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from orion_client.private_server import PrivateServerFailed

START_TIMEOUT_S, STOP_TIMEOUT_S = 60.0, 10.0
USER = "admin"


class PrivateController:
    """On ephemeral loopback ports, its state in a folder that goes with it; dies with this process."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="orion-pool-")
        self.password = secrets.token_urlsafe(9)
        root = str(Path(__file__).resolve().parent.parent)
        environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD" and not k.startswith("ORION_")}
        environment["PYTHONPATH"] = ":".join(filter(None, [root, environment.get("PYTHONPATH", "")]))
        environment["ORION_ADMIN_PASSWORD"] = self.password
        read_fd, write_fd = os.pipe()
        command = [sys.executable, "-P", "-m", "orion_controller.cli", "start", "--data-dir", self._folder.name,
                   "--http", "127.0.0.1:0", "--zmq", "127.0.0.1:0", "--log-level", "warning", "--exit-with-parent",
                   "--ready-fd", str(write_fd)]  # fmt: skip
        try:
            nothing = subprocess.DEVNULL
            self._process = subprocess.Popen(command, env=environment, stdin=nothing, stdout=nothing,
                                             pass_fds=[write_fd], process_group=0)  # fmt: skip
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        try:
            self.url, self.zmq_address = self._wait_ready(read_fd)
        finally:
            os.close(read_fd)
        told = self.ask("/login", {"user": USER, "password": self.password})
        self._token = str(told["token"])

    def _wait_ready(self, read_fd: int) -> tuple[str, str]:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        text = b""
        while text.count(b"\n") < 2:
            left_s = deadline_s - time.monotonic()
            data = os.read(read_fd, 512) if left_s > 0 and select.select([read_fd], [], [], left_s)[0] else b""
            if not data:
                self.stop()
                raise PrivateServerFailed("orion-controller could not start (its message is above)")
            text += data
        url, zmq_address = text.decode().split()
        return url, zmq_address

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The API's answer as its operator."""
        headers = {"Content-Type": "application/json"}
        if hasattr(self, "_token"):
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/v1{path}", data, headers)
        with urllib.request.urlopen(request, timeout=START_TIMEOUT_S) as answer:
            return json.load(answer)

    def stop(self) -> None:
        """Ends it and waits."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> PrivateController:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
