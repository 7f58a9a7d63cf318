"""A UCX with CUDA support and no verbs (NVIDIA's wheel), in a folder outside the clone: lib/libucp.so.0, ...,
lib/ucx/libuct_cuda.so.0. For tests/e2e/test_ucx_cuda.py, and for GPU machines without a package registry.

fetch_ucx.py                    fetches it and prints its path
fetch_ucx.py --copy-to FOLDER   puts it there as well, without symbols (2 MB)
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from buildlib import install_target, run

REQUIREMENT = "libucx-cu13==1.22.0"
MODULES = ("libuct_cuda.so.0", "libucm_cuda.so.0")  # RDMA needs others, which wheels do not have


def ucx() -> Path:
    return install_target([REQUIREMENT], "ucx-cuda") / "libucx"


def copy_to(folder: Path) -> None:
    libraries = ucx() / "lib"
    (folder / "lib" / "ucx").mkdir(parents=True, exist_ok=True)
    files = [*libraries.glob("*.so.0"), *(libraries / "ucx" / name for name in MODULES)]
    for path in files:
        to = folder / path.relative_to(ucx())
        shutil.copy(path, to)
        run(["strip", "--strip-unneeded", str(to)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copy-to", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.copy_to:
        copy_to(arguments.copy_to)
    print(ucx())


if __name__ == "__main__":
    main()
