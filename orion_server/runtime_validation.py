"""Whether NVIDIA's own runtime works with this server's driver: asked once, told to every client."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Iterable

import msgspec

from orion_server.libcuda import Libcuda
from orion_server.worker_process import worker_environment

log = logging.getLogger("orion.runtime")

_TIMEOUT_S = 60.0
_ADVICE = ("clients' self-tests of NVIDIA's runtime are not answered: install one (pip install nvidia-cuda-runtime) or "
           "name it in ORION_CUDART")  # fmt: skip


class Outcome(msgspec.Struct, frozen=True):
    """What the process printed (orion_server/worker/runtime_validation.py)."""

    library: str = ""
    version: int = 0
    error: str = ""
    devices: tuple[int, ...] = ()

    def covers(self, ordinals: Iterable[int]) -> bool:
        """True when the runtime works on every one of these GPUs."""
        return all(o < len(self.devices) and self.devices[o] == 0 for o in ordinals)


async def validate(libcuda: Libcuda, devices: str | None) -> Outcome:
    """Runs NVIDIA's runtime in a process that sees the GPUs as workers do. Never for a driver that is not NVIDIA's."""
    if libcuda.kind != "nvidia":
        return Outcome(error=f"{libcuda.kind} is not NVIDIA's driver")
    command = [sys.executable, "-P", "-m", "orion_server.worker.runtime_validation", "--libcuda", libcuda.path]
    cudart = os.environ.get("ORION_CUDART")
    if cudart:
        command += ["--cudart", cudart]
    outcome = await _run(command, worker_environment(libcuda, devices, {}))
    _report(outcome)
    return outcome


async def _run(command: list[str], environment: dict[str, str]) -> Outcome:
    try:
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
    except OSError as error:
        return Outcome(error=f"cannot start its process: {error}")
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), _TIMEOUT_S)
    except TimeoutError:
        return Outcome(error=f"it did not answer in {_TIMEOUT_S:g} s")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        return Outcome(error=f"its process ended with status {process.returncode}")
    try:
        return msgspec.json.decode(printed, type=Outcome)
    except msgspec.DecodeError as error:
        return Outcome(error=f"its process printed something else: {error}")


def _report(outcome: Outcome) -> None:
    name = f"{outcome.library} ({outcome.version})" if outcome.library else "NVIDIA's runtime"
    failed = {ordinal: code for ordinal, code in enumerate(outcome.devices) if code != 0}
    if outcome.error:
        log.warning("runtime not validated: %s: %s; %s", name, outcome.error, _ADVICE)
    elif failed:
        codes = ", ".join(f"GPU {ordinal}: {code}" for ordinal, code in failed.items())
        log.warning("runtime not validated everywhere: %s failed on %s", name, codes)
    else:
        log.info("runtime validated: %s works on all %d GPU(s)", name, len(outcome.devices))
