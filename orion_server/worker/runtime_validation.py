"""Runs NVIDIA's own runtime library on this machine's driver, so that the runtime's self-test passes where the work is
done (docs/nvidia-runtime.md). A short process of its own: a worker keeps no second CUDA library, and a crash ends here.

    python -m orion_server.worker.runtime_validation --libcuda PATH [--cudart PATH]

Prints one line of JSON: the library, its version, and for each GPU the code of the first call that failed, or 0.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import glob
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

_FOLDERS = ("/usr/local/cuda*/lib64", "/usr/local/cuda*/targets/*/lib", "/opt/cuda*/lib64")
_ERROR_INSUFFICIENT_DRIVER = 35


def _version_of(path: Path) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", path.resolve().name))


def _known_to_the_loader() -> list[Path]:
    try:
        listing = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = (line.strip() for line in listing.stdout.splitlines())
    return [Path(line.split("=>")[1].strip()) for line in lines if line.startswith("libcudart.so.") and "=>" in line]


def find_cudart() -> list[Path]:
    """Every libcudart that can be found, newest version first."""
    found = _known_to_the_loader()
    for pattern in _FOLDERS:
        found += [Path(name) for name in glob.glob(f"{pattern}/libcudart.so*")]
    for folder in sys.path:
        found += Path(folder or ".").glob("nvidia/*/lib/libcudart.so*")
    unique = {path.resolve() for path in found if path.is_file()}
    return sorted(unique, key=_version_of, reverse=True)


def run_runtime(path: Path) -> dict[str, Any]:
    """Initialises one libcudart on every GPU that the process sees."""
    outcome: dict[str, Any] = {"library": str(path), "version": 0, "error": "", "devices": []}
    try:
        runtime = ctypes.CDLL(str(path))
    except OSError as error:
        outcome["error"] = str(error)
        return outcome
    value = ctypes.c_int()
    if runtime.cudaRuntimeGetVersion(ctypes.byref(value)) == 0:
        outcome["version"] = value.value
    code = runtime.cudaGetDeviceCount(ctypes.byref(value))
    if code != 0:
        outcome["error"] = f"cudaGetDeviceCount returned {code}"
        if code == _ERROR_INSUFFICIENT_DRIVER:
            outcome["error"] += ": this runtime is newer than the driver"
        return outcome
    for ordinal in range(value.value):
        code = runtime.cudaSetDevice(ordinal) or runtime.cudaFree(None)
        outcome["devices"].append(code)
    return outcome


def validate(libcuda: str, cudart: list[Path]) -> dict[str, Any]:
    """The first of `cudart` that works; otherwise what was wrong with the one tried last."""
    # The runtime opens libcuda.so.1 by that name and so takes the library that is loaded already.
    outcome: dict[str, Any] = {"library": "", "version": 0, "error": "no libcudart.so was found", "devices": []}
    try:
        ctypes.CDLL(libcuda, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return {**outcome, "error": str(error)}
    for path in cudart:
        outcome = run_runtime(path)
        if outcome["devices"] and not any(outcome["devices"]):
            break
    return outcome


def main() -> None:
    """Prints the outcome and leaves without CUDA's own tear-down."""
    parser = argparse.ArgumentParser(prog="orion_server.worker.runtime_validation")
    parser.add_argument("--libcuda", required=True)
    parser.add_argument("--cudart", type=Path)
    arguments = parser.parse_args()
    outcome = validate(arguments.libcuda, [arguments.cudart] if arguments.cudart else find_cudart())
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(outcome), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
