"""Builds a pycuda wheel without a CUDA toolkit and without a driver.

pycuda is published as source only. Its headers come from NVIDIA's header wheels; it is linked against a stub libcuda
made here, which exists only so that the extension records libcuda.so.1 as needed: at run time the loader finds
NVIDIA's library or softgpu's under that name.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from buildlib import cached, fetch_sdist, install_target, recipe_key, run

VERSION = "2026.1"
SHA256 = "759516160628ba06f32ce7e563e3f5b9214691dc9528a03ea99ea1073f4e14ba"
# CUDA 13.0 headers, whatever is newest elsewhere: they fix which driver ABI pycuda binds.
HEADER_WHEELS = ["nvidia-cuda-runtime==13.0.96", "nvidia-cuda-crt==13.0.88", "nvidia-cuda-profiler-api==13.0.85"]
CUDA_ERROR_STUB_LIBRARY = 34

SITECONF = """\
CUDA_ROOT = {root!r}
CUDA_INC_DIR = [{include!r}]
CUDADRV_LIB_DIR = [{stub!r}]
CUDADRV_LIBNAME = ["cuda"]
CUDA_ENABLE_CURAND = False
CXXFLAGS = ["-g0"]
LDFLAGS = ["-Wl,-s"]
"""


def write_stub(include: Path, folder: Path) -> None:
    """Makes folder/libcuda.so. It must export what pycuda calls, or the linker drops the dependency on it."""
    names: set[str] = set()
    for header in ("cuda.h", "cudaProfiler.h", "cudaGL.h"):
        names.update(re.findall(r"\bcu[A-Z]\w+", (include / header).read_text(errors="replace")))
    source = folder / "stub.c"
    source.write_text("".join(f"int {name}(void) {{ return {CUDA_ERROR_STUB_LIBRARY}; }}\n" for name in sorted(names)))
    library = folder / "libcuda.so.1"
    compiler = os.environ.get("CC", "gcc").split()
    run([*compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(source)])
    (folder / "libcuda.so").symlink_to(library.name)


def python_tag(python: str) -> str:
    code = "import sys; print('cp%d%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def build_wheel(python: str) -> Path:
    key = recipe_key([SHA256, *HEADER_WHEELS, SITECONF])

    def build(work: Path) -> None:
        headers = install_target(HEADER_WHEELS, "cuda-headers")
        root = headers / "nvidia" / "cu13"
        with tempfile.TemporaryDirectory(prefix="pycuda-") as scratch:
            source = Path(scratch) / "source"
            stub = Path(scratch) / "stub"
            stub.mkdir()
            shutil.copytree(fetch_sdist("pycuda", VERSION, SHA256), source)
            write_stub(root / "include", stub)
            # A siteconf.py in the source replaces pycuda's configuration from the home folder, which stays unread.
            settings = SITECONF.format(root=str(root), include=str(root / "include"), stub=str(stub))
            (source / "siteconf.py").write_text(settings)
            run(
                [python, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "-w", str(work)]
                + [str(source)],
                quiet=True,
            )

    folder = cached(f"pycuda-{VERSION}-{python_tag(python)}-{key}", build)
    (wheel,) = folder.glob("*.whl")
    return wheel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter to build for (default: this one)")
    parser.add_argument("--install", action="store_true", help="install the wheel for that interpreter")
    parser.add_argument("--copy-to", type=Path, help="folder to copy the wheel into")
    arguments = parser.parse_args()
    wheel = build_wheel(arguments.python)
    if arguments.copy_to:
        arguments.copy_to.mkdir(parents=True, exist_ok=True)
        shutil.copy2(wheel, arguments.copy_to)
    if arguments.install:
        run([arguments.python, "-m", "pip", "install", "-q", "--disable-pip-version-check", str(wheel)])
    print(wheel)


if __name__ == "__main__":
    main()
