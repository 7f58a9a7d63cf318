"""Where a program runs: natively, or on a server over shm, tcp or ucx without any driver in sight.

    with Places("nvidia", ("native", "shm", "tcp"), log=OUT / "server.log") as places:
        for place in places:
            outcome = places.run(place, ["./program"], timeout_s=60)

On a GPU machine the clients live in a mount namespace in which device nodes and driver libraries are covered
(benchmarks.isolation). With "softgpu" the native place is softgpu itself: a check of the path, never a GPU timing. A
server that has died is started again, so that one bad program costs one row.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from benchmarks.servers import client_environment, server

ROOT = Path(__file__).resolve().parent.parent
NATIVE, TRANSPORTS = "native", ("shm", "tcp", "ucx")
TAIL_BYTES = 3000


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


@dataclass
class Outcome:
    """How a program ended. `code` is None when it was stopped at its time limit."""

    code: int | None
    stdout: str
    stderr: str
    seconds: float

    @property
    def good(self) -> bool:
        return self.code == 0

    @property
    def failure(self) -> str:
        return f"no end in {self.seconds:.0f} s" if self.code is None else f"exit {self.code}"

    def record(self) -> dict[str, Any]:
        """What is kept of it; the ends of its output only when it failed."""
        kept: dict[str, Any] = {"exit": self.code, "seconds": round(self.seconds, 2)}
        if not self.good:
            kept["error"] = self.failure
            kept["tail"] = (self.stdout[-TAIL_BYTES // 3 :] + self.stderr[-TAIL_BYTES:])[
                -TAIL_BYTES - TAIL_BYTES // 3 :
            ]
        return kept


def _collect(pipe: IO[str], take: Callable[[str], None], end: Callable[[], None]) -> None:
    with contextlib.suppress(ValueError):  # closed while it was read
        for line in pipe:
            take(line)
    end()


def run_limited(
    command: list[str],
    environment: Mapping[str, str],
    timeout_s: float,
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Outcome:
    """Runs a program in a process group of its own, and ends that whole group at the time limit: a framework's
    helper processes would otherwise keep the pipes open and a session of the server busy.

    `on_line` is called, in this thread, with each line of standard output when it comes. Whatever ends the wait early
    (Ctrl-C above all, which a process group of its own does not get) ends the program too.
    """
    start = time.monotonic()
    try:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=cwd or ROOT,
            start_new_session=True,
        )
    except OSError as error:
        return Outcome(127, "", str(error), 0.0)
    assert process.stdout is not None and process.stderr is not None
    told: queue.Queue[str | None] = queue.Queue()
    stdout: list[str] = []
    stderr: list[str] = []
    readers = [
        threading.Thread(target=_collect, args=(process.stdout, told.put, lambda: told.put(None)), daemon=True),
        threading.Thread(target=_collect, args=(process.stderr, stderr.append, lambda: told.put(None)), daemon=True),
    ]
    for reader in readers:
        reader.start()
    code: int | None = None
    try:
        open_pipes = len(readers)
        while open_pipes:
            line = told.get(timeout=max(0.001, start + timeout_s - time.monotonic()))
            if line is None:
                open_pipes -= 1
                continue
            stdout.append(line)
            if on_line is not None:
                on_line(line)
        code = process.wait(max(0.001, start + timeout_s - time.monotonic()))
    except (queue.Empty, subprocess.TimeoutExpired):
        pass
    finally:
        if code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for reader in readers:
            reader.join(5)
    while not told.empty():
        line = told.get()
        if line is not None:
            stdout.append(line)
            if on_line is not None:
                on_line(line)
    return Outcome(code, "".join(stdout), "".join(stderr), time.monotonic() - start)


@dataclass
class Places:
    device: str
    names: tuple[str, ...]
    log: Path
    server_options: tuple[str, ...] = ()
    server_environment: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    restarts: int = 0
    _running: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Places:
        unknown = set(self.names) - {NATIVE, *TRANSPORTS}
        if unknown:
            raise ValueError(f"no such place: {sorted(unknown)}")
        if set(self.names) & set(TRANSPORTS):
            self._start_server()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._running.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def _start_server(self) -> None:
        log = self.log.with_suffix(f".{self.restarts}.log") if self.restarts else self.log
        options = (*self.server_options, "--enable-rdma") if "ucx" in self.names else self.server_options
        self.address = self._running.enter_context(
            server(self.device, *options, log=log, environment=self.server_environment)
        )

    def _server_lives(self) -> bool:
        host, port = self.address.rsplit(":", 1)
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
        except OSError:
            return False
        return True

    def environment(self, place: str) -> dict[str, str]:
        if place == NATIVE:
            if self.device != "softgpu":
                return dict(os.environ)
            from orion_client import libraries

            folder = str(libraries.softgpu_folder())
            return {**os.environ, "LD_LIBRARY_PATH": folder, "TRITON_LIBCUDA_PATH": folder}
        if not self._server_lives():
            say("the server has died: starting another one")
            self._running.close()
            self.restarts += 1
            self._start_server()
        return client_environment(self.address, place)

    def command(self, place: str, command: list[str]) -> list[str]:
        if place == NATIVE or self.device != "nvidia":
            return command
        return [sys.executable, str(ROOT / "benchmarks" / "isolation.py"), "--", *command]

    def run(
        self,
        place: str,
        command: list[str],
        timeout_s: float,
        extra: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Outcome:
        environment = {**self.environment(place), **(extra or {})}
        return run_limited(self.command(place, command), environment, timeout_s, cwd, on_line)


def parse_places(text: str) -> tuple[str, ...]:
    """`native,shm` to a tuple; an error for anything that is no place."""
    names = tuple(filter(None, re.split("[, ]+", text)))
    bad = set(names) - {NATIVE, *TRANSPORTS}
    if bad or not names:
        raise ValueError(f"{text!r} is not a list of native, shm, tcp and ucx")
    return names
