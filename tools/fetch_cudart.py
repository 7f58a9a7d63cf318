"""NVIDIA's runtime libraries of several releases, each in a folder outside the clone, for tests/runtime.

fetch_cudart.py [VERSION...]    fetches them (default: all) and prints their paths
"""

from __future__ import annotations

import sys
from pathlib import Path

from buildlib import install_target

# Releases differ in what they ask of the driver; the last is the newest that was known when this was written.
PACKAGES = {
    "11.8": "nvidia-cuda-runtime-cu11==11.8.89",
    "12.1": "nvidia-cuda-runtime-cu12==12.1.105",
    "12.4": "nvidia-cuda-runtime-cu12==12.4.127",
    "12.8": "nvidia-cuda-runtime-cu12==12.8.90",
    "12.9": "nvidia-cuda-runtime-cu12==12.9.79",
    "13.0": "nvidia-cuda-runtime==13.0.96",
    "13.5": "nvidia-cuda-runtime==13.5.37",
}


def cudart(version: str) -> Path:
    """The libcudart of a release, fetched at first use."""
    folder = install_target([PACKAGES[version]], f"cudart-{version}")
    (library,) = (path for path in folder.glob("nvidia/*/lib/libcudart.so.*") if not path.is_symlink())
    return library


def main() -> None:
    for version in sys.argv[1:] or PACKAGES:
        print(version, cudart(version))


if __name__ == "__main__":
    main()
