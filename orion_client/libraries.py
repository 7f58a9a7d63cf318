"""Where the client libraries are, and the environment that makes a program use them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

LIBCUDA = "libcuda.so.1"
LIBNVML = "libnvidia-ml.so.1"
NVIDIA_SMI = "nvidia-smi"
_PACKAGE = Path(__file__).resolve().parent
_TREE = _PACKAGE.parent


class LibrariesMissing(Exception):
    """The client libraries are not where they can be; the message says what to do."""


def client_folder() -> Path:
    """The folder of the client's libcuda.so.1 and libnvidia-ml.so.1: packaged, or built in a source tree."""
    folders = [_PACKAGE / "lib", _TREE / "build" / "shim"]
    for folder in folders:
        if (folder / LIBCUDA).is_file():
            return folder
    raise LibrariesMissing(
        f"Orion's {LIBCUDA} is neither in {folders[0]} nor in {folders[1]}: install the wheel or run `make build`"
    )


def softgpu_folder() -> Path:
    """The folder of softgpu's libcuda.so.1."""
    folders = [_TREE / "orion_server" / "lib", _TREE / "build" / "softgpu"]
    for folder in folders:
        if (folder / LIBCUDA).is_file():
            return folder
    raise LibrariesMissing(f"softgpu's {LIBCUDA} is neither in {folders[0]} nor in {folders[1]}: run `make build`")


def environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables to add to `base` (default: this process's) so that a program uses Orion's libraries.

    LD_PRELOAD alone serves programs that link or dlopen libcuda.so.1, by its SONAME; the search path serves those
    that open libnvidia-ml.so.1, and Triton, which asks ldconfig, is told by its own variable. What the user preloads
    already stays, after ours.
    """
    base = os.environ if base is None else base
    folder = client_folder()
    library = str(folder / LIBCUDA)
    preload = [entry for entry in base.get("LD_PRELOAD", "").replace(":", " ").split() if entry != library]
    search = [entry for entry in base.get("LD_LIBRARY_PATH", "").split(":") if entry and entry != str(folder)]
    return {
        "LD_PRELOAD": ":".join([library, *preload]),
        "LD_LIBRARY_PATH": ":".join([str(folder), *search]),
        "TRITON_LIBCUDA_PATH": str(folder),
    }


def tools_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to `base` so that scripts find an nvidia-smi: Orion's, where there is no other. It runs under
    this interpreter, which has Orion's packages."""
    folder = str(_PACKAGE / "bin")
    path = base.get("PATH", os.defpath)
    if shutil.which(NVIDIA_SMI, path=path) not in (None, os.path.join(folder, NVIDIA_SMI)):
        return {}
    others = [entry for entry in path.split(":") if entry != folder]
    return {"PATH": ":".join([folder, *others]), "ORION_PYTHON": sys.executable}
