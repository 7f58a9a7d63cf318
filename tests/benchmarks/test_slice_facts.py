"""The programs that ask a driver what slices rest on, on softgpu: they run, and find what softgpu is known to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


def run(*command: str) -> dict[str, Any]:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(ROOT / "build" / "softgpu"), "SOFTGPU_MEMORY_MIB": "512"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_facts_of_slices():
    found = run("benchmarks.slice_facts")
    assert found["fresh_memory"]["looked_at_bytes"] > 0 and found["fresh_memory"]["words_of_the_other"] == 0
    assert found["moves"]["huge"]["out_gb_s"] > 0 and found["moves"]["small"]["pieces"] == 64
    assert found["charges"]["buffer_64_mib"] == 64 << 20
    assert found["events"]["spin_2000000"]["median_us"] > found["events"]["spin_20000"]["median_us"]


def test_facts_of_sharing_in_space():
    rows = {row["name"]: row for row in run("benchmarks.spatial_facts", "--seconds", "0.3")["rows"]}
    for name in ("alone", "processes", "both", "streams"):
        assert rows[name]["batch_a_second"] > 0 and rows[name]["latency_us"]["p99"] >= rows[name]["latency_us"]["p50"]
    assert all("error" in rows[name] for name in rows if name.startswith("green"))  # softgpu has no green contexts
