"""Builds the arbiter: a cffi API-mode module for the limited API of Python 3.11.

    python orion_server/arbiter/build_arbiter.py [--output-dir FOLDER]

Writes _arbiter.abi3.so beside this file or into FOLDER. CC and LDSHARED are honoured, as everywhere in distutils.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SOURCES = sorted(path for path in HERE.glob("*.c") if not path.name.startswith("_arbiter"))
INCLUDES = [HERE, ROOT / "wire" / "include"]


def declarations() -> str:
    """arbiter.h as cffi reads it: without preprocessor lines."""
    return re.sub(r"^#.*$", "", (HERE / "arbiter.h").read_text(), flags=re.MULTILINE)


def build(output: Path) -> Path:
    """Compiles into a scratch folder and moves the module into place, so that a failure leaves no half module."""
    ffi = FFI()
    ffi.cdef(declarations())
    with tempfile.TemporaryDirectory(prefix="orion-arbiter-") as scratch:
        ffi.set_source(
            "_arbiter",
            '#include "arbiter.h"',
            sources=[str(path) for path in SOURCES],
            include_dirs=[str(path) for path in INCLUDES],
            define_macros=[("_GNU_SOURCE", "1"), ("Py_LIMITED_API", "0x030b0000")],
            extra_compile_args=["-std=c11", "-O2", "-g", "-fvisibility=hidden", "-Wall", "-Wextra"],
            extra_link_args=["-pthread"],
            py_limited_api=True,
        )
        built = Path(ffi.compile(tmpdir=scratch))
        output.mkdir(parents=True, exist_ok=True)
        target = output / "_arbiter.abi3.so"
        fresh = target.with_suffix(".new")
        shutil.copyfile(built, fresh)
        fresh.chmod(0o755)
        fresh.replace(target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=HERE)
    print(build(parser.parse_args().output_dir.resolve()))


if __name__ == "__main__":
    main()
