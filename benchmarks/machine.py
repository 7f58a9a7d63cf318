"""What a result must say about where and how it was measured."""

from __future__ import annotations

import glob
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from orion_client import __version__

ROOT = Path(__file__).resolve().parent.parent
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()
    except OSError:
        return ""


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")


def gpu() -> str:
    """Name and driver version of the GPUs here; empty where there is none."""
    return output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")


def commit() -> str:
    """The commit that is measured: ORION_COMMIT where there is no git; `+` behind it when files differ from it. An
    installed package knows its version only."""
    told = os.environ.get("ORION_COMMIT")
    if told:
        return told
    # An installed package may lie in somebody else's checkout (a virtual environment there): that is not its commit.
    if not output("git", "ls-files", "--", str(Path(__file__).resolve())):
        return f"version {__version__}"
    head = output("git", "rev-parse", "HEAD")
    return head + "+" if head and output("git", "status", "--porcelain", "--untracked-files=no") else head


def choose_device(asked: str) -> str:
    """`auto` is nvidia where a GPU's device node is, else softgpu."""
    if asked != "auto":
        return asked
    return "nvidia" if glob.glob("/dev/nvidia[0-9]*") else "softgpu"


def describe(program: str) -> dict[str, Any]:
    """Commit, command, time and hardware."""
    return {
        "commit": commit(),
        "command": " ".join(["python3", "-m", program, *sys.argv[1:]]),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "cpu": cpu_model(),
        "gpu": gpu(),
    }


def fingerprint(device: str) -> dict[str, Any]:
    """What two rows must have in common to be compared: code, hardware and boot. Rows of another machine, or of the
    same one after a restart, are measured again."""
    return {
        "device": device,
        "commit": commit(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "gpu": gpu() if device == "nvidia" else "",
        "boot": BOOT_ID.read_text().strip() if BOOT_ID.exists() else "",
    }
