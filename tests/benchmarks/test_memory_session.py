"""Every kind of memory stops at its quota and comes back, whatever the driver may be: the program that a GPU session
runs, on softgpu."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.memory_program import ROWS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_all_kinds_are_held_to_the_quota_and_given_back(transport: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.memory_session", "--device", "softgpu", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--parts", "rows,kill", "--places", transport, "--quota-mib", "128", "--kill-limit-s", "60"],
        env={**os.environ, "SOFTGPU_MEMORY_MIB": "2048"}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "all as promised\n"), done.stdout + done.stderr
    result = json.loads((tmp_path / "memory.json").read_text())
    assert set(result["rows"][transport]) == set(ROWS) and result["kill"]["pieces"] > 0
