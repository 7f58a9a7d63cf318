"""Virtual environments with the frameworks' CUDA wheels outside the clone (5 GB each, fetched once), for
tests/frameworks.

fetch_frameworks.py torch    PyTorch; prints its Python
fetch_frameworks.py jax      JAX and CuPy, which share NVIDIA's wheels; prints their Python
"""

from __future__ import annotations

import sys
from pathlib import Path

from buildlib import cached, run

REQUIREMENTS: dict[str, list[str]] = {
    "torch": ["torch", "numpy"],
    "jax": ["jax[cuda13]", "cupy-cuda13x"],
}


def framework_python(name: str) -> Path:
    """Python of the environment."""

    def build(work: Path) -> None:
        run([sys.executable, "-m", "venv", str(work)], quiet=True)
        # By its interpreter, never by its scripts: those name the folder that the environment is made in.
        run([str(work / "bin" / "python"), "-m", "pip", "install", "-q", *REQUIREMENTS[name]], quiet=True)

    return cached(name, build) / "bin" / "python"


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in REQUIREMENTS:
        sys.exit(__doc__)
    print(framework_python(sys.argv[1]))
