"""`make demo`: a pool of one server, and an unmodified Numba program on its GPU, over shared memory and over TCP,
watched by orion-smi. The portal stays open until Enter where somebody sits at a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from orion_client.control_client import ServerUnreachable, stats
from orion_client.private_controller import USER, PrivateController
from orion_client.private_server import PrivateServer, PrivateServerFailed

_ROOT = Path(__file__).resolve().parent.parent
_EXAMPLE = _ROOT / "examples" / "vector_add_numba.py"
_ELEMENTS = 200_000
_PROGRAM_TIMEOUT_S = 240.0
_POLL_S = 0.02
_ATTEMPTS = 3
_JOIN_TIMEOUT_S = 30.0


class DemoFailed(Exception):
    """Something was not as it must be."""


def main() -> None:
    """Runs the demo; exit code 1 when anything was wrong."""
    try:
        _demo()
    except (DemoFailed, PrivateServerFailed, ServerUnreachable) as error:
        print(f"demo FAILED: {error}", file=sys.stderr)
        sys.exit(1)


def _demo() -> None:
    if not _EXAMPLE.is_file():
        raise DemoFailed(f"{_EXAMPLE} is missing: the demo runs from a source tree")
    started_s = time.monotonic()
    with (
        PrivateController() as pool,
        PrivateServer(extra=("--vgpu-count", "4", "--controller", pool.zmq_address, "--name", "demo")) as server,
    ):
        _until(lambda: pool.ask("/summary")["nodes_ready"] == 1, "the server did not join the pool")
        print(f"orion-controller: portal on {pool.url} (user {USER}, password {pool.password})", flush=True)
        gpus = stats(server.address).gpus
        served_by = ", ".join(f"{gpu.name} ({gpu.total_bytes >> 20} MiB)" for gpu in gpus)
        print(f"orion-server on {server.address} serves: {served_by}", flush=True)
        results = [_shown_run(pool.zmq_address, server.address, transport) for transport in ("shm", "tcp")]
        _until(lambda: not stats(server.address).sessions, "a session is left behind on the server")
        _until(lambda: pool.ask("/summary")["groups"] == 0, "an allocation is left behind in the pool")
        with urllib.request.urlopen(pool.url) as page:
            if "<title>" not in page.read().decode():
                raise DemoFailed(f"{pool.url} shows no portal")
        took_s = time.monotonic() - started_s
        if sys.stdin.isatty() and sys.stdout.isatty():
            print(f"\nThe portal is open: {pool.url}  user {USER}, password {pool.password}")
            input("Enter ends the demo. ")
    print(f"\nServed by {served_by}")
    for transport, result in zip(("shm", "tcp"), results, strict=True):
        print(f"  over {transport}: {result}")
    print(f"demo passed in {took_s:.1f} s")


def _shown_run(controller: str, server: str, transport: str) -> str:
    """One run that orion-smi was seen to show; a fast machine may need a second one to be looked at in time."""
    for _ in range(_ATTEMPTS):
        output, seen = _run(controller, server, transport)
        if seen:
            print(f"meanwhile, orion-smi:\n{seen.rstrip()}\n{output}", flush=True)
            return output
    raise DemoFailed(f"orion-smi never showed the session over {transport}")


def _run(controller: str, server: str, transport: str) -> tuple[str, str]:
    command = [sys.executable, "-m", "orion_client.run", "--controller", controller, "--transport", transport, "--"]
    command += [sys.executable, str(_EXAMPLE), str(_ELEMENTS)]
    shown = f"python {_EXAMPLE.name} {_ELEMENTS}"
    print(f"\n$ orion-run --controller {controller} --transport {transport} -- {shown}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    deadline_s = time.monotonic() + _PROGRAM_TIMEOUT_S
    seen = ""
    try:
        while program.poll() is None:
            if time.monotonic() > deadline_s:
                raise DemoFailed(f"the program over {transport} did not end in {_PROGRAM_TIMEOUT_S:g} s")
            sessions = [s for s in stats(server).sessions if s.transport]
            if sessions and not seen:
                if [s.transport for s in sessions] != [transport]:
                    raise DemoFailed(f"asked for {transport}, the server shows {sessions[0].transport}")
                smi = [sys.executable, "-m", "orion_client.smi", "--server", server]
                seen = subprocess.run(smi, capture_output=True, text=True, env=environment, check=True).stdout
                if transport not in seen:
                    seen = ""  # the program ended between the two looks
            time.sleep(_POLL_S)
    finally:
        if program.poll() is None:
            program.kill()
    output = (program.stdout.read() if program.stdout else "").strip()
    if program.returncode != 0:
        raise DemoFailed(f"the program over {transport} ended with {program.returncode}: {output}")
    if "equal to numpy" not in output:
        raise DemoFailed(f"the program over {transport} printed {output!r}")
    return output, seen


def _until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline_s = time.monotonic() + _JOIN_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise DemoFailed(otherwise)
        time.sleep(_POLL_S)


if __name__ == "__main__":
    main()
