"""A virtual environment with PyTorch's CUDA wheels outside the clone (5 GB, fetched once), for tests/frameworks.

fetch_torch.py    prints its Python
"""

from __future__ import annotations

import sys
from pathlib import Path

from buildlib import cached, run


def torch_python() -> Path:
    """Python of the environment."""

    def build(work: Path) -> None:
        run([sys.executable, "-m", "venv", str(work)], quiet=True)
        # By its interpreter, never by its scripts: those name the folder that the environment is made in.
        run([str(work / "bin" / "python"), "-m", "pip", "install", "-q", "torch", "numpy"], quiet=True)

    return cached("torch", build) / "bin" / "python"


if __name__ == "__main__":
    print(torch_python())
