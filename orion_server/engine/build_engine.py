"""Builds the engine: a cffi API-mode module for the limited API of Python 3.11, with libzmq linked in.

    python orion_server/engine/build_engine.py [--output-dir FOLDER]

Writes _engine.abi3.so beside this file or into FOLDER. ORION_LIBZMQ_DIR names the prefix of the private libzmq; without
it tools/build_libzmq.py is asked. CC and LDSHARED are honoured, as everywhere in distutils.
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

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SOURCES = sorted(path for path in HERE.glob("*.c") if not path.name.startswith("_engine"))
INCLUDES = [HERE, ROOT / "wire" / "include"]


def declarations() -> str:
    """engine.h as cffi reads it: without preprocessor lines."""
    text = (HERE / "engine.h").read_text()
    return re.sub(r"^#.*$", "", text, flags=re.MULTILINE)


def libzmq_prefix() -> Path:
    named = os.environ.get("ORION_LIBZMQ_DIR")
    if named:
        return Path(named)
    found = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "build_libzmq.py")], check=True, capture_output=True, text=True
    )
    return Path(found.stdout.split()[-1])


def build(output: Path) -> Path:
    """Compiles into a scratch folder and moves the module into place, so that a failure leaves no half module."""
    zmq = libzmq_prefix()
    ffi = FFI()
    ffi.cdef(declarations())
    zig = "zig" in os.environ.get("CC", "")
    with tempfile.TemporaryDirectory(prefix="orion-engine-") as scratch:
        # libzmq marks its own functions visible: the module must not offer them to the process.
        exports = Path(scratch) / "exports.map"
        exports.write_text("{ global: PyInit__engine; local: *; };\n")
        ffi.set_source(
            "_engine",
            '#include "engine.h"',
            sources=[str(path) for path in SOURCES],
            include_dirs=[str(path) for path in [*INCLUDES, zmq / "include"]],
            extra_objects=[str(zmq / "lib" / name) for name in ("libzmq.a", "libsodium.a")],
            define_macros=[("_GNU_SOURCE", "1"), ("SODIUM_STATIC", "1"), ("Py_LIMITED_API", "0x030b0000")],
            extra_compile_args=["-std=c11", "-O2", "-g", "-fvisibility=hidden", "-Wall", "-Wextra"],
            # A release (zig) is stripped; its C++ runtime comes with it, whichever driver links.
            extra_link_args=[f"-Wl,--version-script={exports}", "-pthread"]
            + (["-lc++", "-s"] if zig else ["-static-libgcc", "-l:libstdc++.a"]),
            py_limited_api=True,
        )
        built = Path(ffi.compile(tmpdir=scratch))
        output.mkdir(parents=True, exist_ok=True)
        target = output / "_engine.abi3.so"
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
