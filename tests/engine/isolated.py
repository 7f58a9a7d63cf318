"""Runs a test in a process of its own: fixed addresses, a driver in the process, and faults that must not spread."""

from __future__ import annotations

import faulthandler
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

LIMIT_S = 120


def isolated(test: Callable[[], None]) -> Callable[[], None]:
    """Decorator for a test without arguments."""

    @functools.wraps(test)
    def outside() -> None:
        file = Path(sys.modules[test.__module__].__file__ or "")
        environment = {**os.environ, "SOFTGPU_MEMORY_MIB": "256", "SOFTGPU_DEVICES": "2"}
        command = [sys.executable, str(file), test.__name__]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S + 20)
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"

    outside.inside = test  # type: ignore[attr-defined]
    return outside


def main(namespace: dict[str, object]) -> None:
    """The end of a test file: runs the one test that the command line names."""
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    namespace[sys.argv[1]].inside()  # type: ignore[attr-defined]
