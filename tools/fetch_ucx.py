"""UCX with CUDA support, in a folder outside the clone: lib/libucp.so.0, ..., lib/ucx/libuct_cuda.so.0.

fetch_ucx.py                            NVIDIA's wheel of it, without verbs: for tests/e2e/test_ucx_cuda.py, and for GPU
                                        machines without a package registry; prints where
fetch_ucx.py --copy-to FOLDER           puts it there as well, without symbols (2 MB)
fetch_ucx.py --verbs --copy-to FOLDER   the one inside NIXL's wheel: verbs too, but no rdmacm; for tests/rdma
With --softgpu there is a libnvidia-ml.so.1 beside it, without which its CUDA module cannot be loaded.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

from buildlib import install_target, run

REQUIREMENT = "libucx-cu13==1.22.0"
REQUIREMENT_WITH_VERBS = "nixl-cu13==1.5.1"  # UCX 1.23
LIBRARIES = ("libucp", "libuct", "libucs", "libucm")
MODULES = ("libuct_cuda.so.0", "libucm_cuda.so.0")  # RDMA needs others, which this wheel does not have
MODULES_WITH_VERBS = ("libuct_cuda", "libuct_ib")
# What the module is linked to of NVML; the rest it looks for by name, and does without.
NVML = 'const char *nvmlErrorString(int result) { return result ? "not supported" : "success"; }'
VERBS = Path("/usr/lib/x86_64-linux-gnu/libibverbs.so.1")


def ucx() -> Path:
    return install_target([REQUIREMENT], "ucx-cuda") / "libucx"


def copy_to(folder: Path) -> None:
    libraries = ucx() / "lib"
    files = [*libraries.glob("*.so.0"), *(libraries / "ucx" / name for name in MODULES)]
    for path in files:
        _copy_stripped(path, folder / path.relative_to(ucx()))


def copy_with_verbs_to(folder: Path) -> None:
    """The wheel's libraries have names of their own, by which they need one another; libucp.so.0 leads there. Its
    libibverbs is replaced by the system's, whose drivers there are."""
    libraries = install_target([REQUIREMENT_WITH_VERBS], "ucx-verbs-cuda") / "nixl_cu13.libs"
    target = folder / "lib"
    for name in LIBRARIES:
        (path,) = libraries.glob(f"{name}-*.so*")
        _copy_stripped(path, target / path.name)
    (target / "libucp.so.0").symlink_to(next(target.glob("libucp-*")).name)
    for name in MODULES_WITH_VERBS:
        (path,) = (libraries / "ucx").glob(f"{name}.so*")  # with the ending that libucs has, by which it finds them
        _copy_stripped(path, target / "ucx" / path.name)
    (verbs,) = libraries.glob("libibverbs-*.so*")
    (target / verbs.name).symlink_to(VERBS)


def _copy_stripped(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, to)
    run(["strip", "--strip-unneeded", str(to)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copy-to", type=Path, metavar="FOLDER")
    parser.add_argument("--verbs", action="store_true", help="the one with verbs; needs --copy-to")
    parser.add_argument("--softgpu", action="store_true", help="to be used with softgpu; needs --copy-to")
    arguments = parser.parse_args()
    folder: Path | None = arguments.copy_to
    if folder is None:
        if arguments.verbs or arguments.softgpu:
            parser.error("--verbs and --softgpu need --copy-to")
        print(ucx())
        return
    (copy_with_verbs_to if arguments.verbs else copy_to)(folder)
    if arguments.softgpu:
        stub = folder / "lib" / "libnvidia-ml.so.1"
        compiler = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-x", "c", "-", "-o", str(stub)]
        subprocess.run(compiler, input=NVML, text=True, check=True)
    print(folder)


if __name__ == "__main__":
    main()
