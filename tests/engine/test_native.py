"""The engine's native tests under sanitizers, as the sanitizer stage runs them, with a short fuzz run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sanitizers_find_nothing() -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "FUZZ_ROUNDS": "5000"}
    done = subprocess.run([str(ROOT / "tests/native/engine.sh")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for test in ("engine_ring", "engine_lanes", "lanes_unit"):
        assert done.stdout.count(f"{test}: ok") == 2
    assert "fuzz_frame: 5000 inputs" in done.stdout
