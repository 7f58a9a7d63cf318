"""What a result must say about where and how it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()
    except OSError:
        return ""


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")


def describe(program: str) -> dict[str, Any]:
    """Commit (ORION_COMMIT where there is no git), command, time and hardware."""
    return {
        "commit": os.environ.get("ORION_COMMIT") or output("git", "rev-parse", "HEAD"),
        "command": " ".join(["python3", "-m", program, *sys.argv[1:]]),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "cpu": cpu_model(),
        "gpu": output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
    }
