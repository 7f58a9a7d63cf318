"""Which libcuda the workers load: NVIDIA's or softgpu's, and never Orion's own client library."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

KINDS = ("nvidia", "softgpu", "null")
_PACKAGE = Path(__file__).resolve().parent
_STANDARD_DIRS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/cuda/compat",
    "/usr/lib/wsl/lib",
)


class LibcudaError(Exception):
    """No usable library: the message says what to do."""


@dataclass(frozen=True)
class Libcuda:
    """A chosen driver library. `kind` "null" has none: its engine accepts and drops."""

    kind: str
    path: str


def is_orion_client_library(path: Path) -> bool:
    """True for Orion's own libcuda (it attaches to a server: a worker that loads it would call itself)."""
    try:
        with path.open("rb") as file:
            return b"ORION_SERVER" in file.read(16 << 20)
    except OSError:
        return False


def softgpu_candidates() -> list[Path]:
    """Where softgpu's libcuda may be: named by the user, packaged, or built in a source tree."""
    named = os.environ.get("ORION_SOFTGPU_LIBCUDA")
    candidates = [Path(named)] if named else []
    candidates.append(_PACKAGE / "lib" / "libcuda.so.1")
    candidates.append(_PACKAGE.parent / "build" / "softgpu" / "libcuda.so.1")
    return candidates


def find_softgpu() -> Path | None:
    """softgpu's libcuda, or None."""
    return next((path for path in softgpu_candidates() if path.is_file()), None)


def _ldconfig_paths() -> list[Path]:
    for command in ("/sbin/ldconfig", "/usr/sbin/ldconfig", "ldconfig"):
        try:
            listing = subprocess.run([command, "-p"], capture_output=True, text=True, timeout=10, check=False).stdout
        except (OSError, subprocess.TimeoutExpired):
            continue
        lines = (line.strip() for line in listing.splitlines())
        return [
            Path(line.split("=>")[1].strip()) for line in lines if line.startswith("libcuda.so.1 ") and "=>" in line
        ]
    return []


def find_nvidia() -> Path | None:
    """NVIDIA's libcuda as the system's loader knows it, or None."""
    standard = [Path(folder) / "libcuda.so.1" for folder in _STANDARD_DIRS]
    for path in _ldconfig_paths() + standard:
        if path.is_file() and not is_orion_client_library(path):
            return path
    return None


def has_nvidia_device() -> bool:
    """Whether the kernel driver shows a GPU to this process (also WSL's paravirtual one)."""
    return any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg"))


def choose(kind: str, path: str | None) -> Libcuda:
    """The library for `kind` ("auto", "nvidia", "softgpu", "null"); `path` names it outright."""
    if kind == "null":
        return Libcuda("null", "")
    if path:
        chosen = Path(path)
        if not chosen.is_file():
            raise LibcudaError(f"there is no file {path}: give --libcuda the path of a libcuda.so.1")
        if is_orion_client_library(chosen):
            raise LibcudaError(f"{path} is Orion's client library: --libcuda takes the GPU driver's own libcuda.so.1")
        if kind == "auto":
            kind = "softgpu" if chosen.resolve() in {p.resolve() for p in softgpu_candidates()} else "nvidia"
        return Libcuda(kind, str(chosen.resolve()))
    nvidia = find_nvidia() if kind in ("auto", "nvidia") else None
    if kind == "nvidia" or (kind == "auto" and nvidia is not None and has_nvidia_device()):
        if nvidia is None:
            raise LibcudaError("no NVIDIA libcuda.so.1 is known to the loader: install the GPU driver, name the "
                               "library with --libcuda, or run without a GPU with --device softgpu")  # fmt: skip
        return Libcuda("nvidia", str(nvidia))
    softgpu = find_softgpu()
    if softgpu is None:
        where = ", ".join(str(p) for p in softgpu_candidates())
        reason = "no NVIDIA GPU here and no" if kind == "auto" else "no"
        raise LibcudaError(f"{reason} softgpu library (looked for {where}): build it with `make build`")
    return Libcuda("softgpu", str(softgpu.resolve()))
