"""The C programs of the benchmarks (native/), compiled where they run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent


class NoCompiler(Exception):
    """There is no gcc; the message says what to install."""


def compile_program(name: str, folder: Path) -> Path:
    """Compiles native/NAME.c into `folder`."""
    if shutil.which("gcc") is None:
        raise NoCompiler(f"native/{name}.c has to be compiled and there is no gcc: install gcc and libc6-dev")
    output = folder / name
    subprocess.run(
        ["gcc", "-O2", "-std=gnu11", "-w", f"-I{HERE.parent / 'wire/include'}", str(HERE / "native" / f"{name}.c"),
         "-o", str(output), "-lpthread", "-ldl", "-lm"], check=True)  # fmt: skip
    return output
