"""What RDMA needs of a machine: a device with a link, its nodes, memory that may be locked, and UCX with verbs."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from orion_client.check.finding import Finding, ok, wrong

_DEVICES = Path("/sys/class/infiniband")
_NODES = Path("/dev/infiniband")
_STAGING_BYTES = 64 << 20
_LEAST = (1, 13)
# In a process of its own: UCX sets signal handlers and prints when it is loaded.
_PROBE = """
import ctypes
library = ctypes.CDLL("libucp.so.0")
library.ucp_get_version_string.restype = ctypes.c_char_p
path = next(line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if "libucp.so" in line)
print(library.ucp_get_version_string().decode(), path)
"""


def ports(folder: Path = _DEVICES) -> tuple[list[str], list[str]]:
    """Ports of RDMA devices, as UCX names them: those with a link, and the others."""
    active: list[str] = []
    other: list[str] = []
    for state in sorted(folder.glob("*/ports/*/state")):
        name = f"{state.parent.parent.parent.name}:{state.parent.name}"
        (active if state.read_text().startswith("4:") else other).append(name)
    return active, other


def runtime(is_wanted: bool, device: str = "") -> Iterator[Finding]:
    """Nothing where there is no RDMA device and nobody asks for one. `device`: the one that is to be used."""
    active, other = ports()
    if not is_wanted and not active:
        return
    fitting = [port for port in active if device in ("", port, port.rpartition(":")[0])]
    if fitting:
        yield ok("RDMA", f"{', '.join(fitting)} has a link")
    else:
        named = f"{device} is not among {', '.join(active) or 'active devices'}" if device else "no device has a link"
        yield wrong("rdma-no-device", "RDMA", f"{named}{' (without: ' + ', '.join(other) + ')' if other else ''}")
    yield ucx()
    if fitting:
        yield from _access()


def ucx() -> Finding:
    """Whether UCX can be loaded, and speaks verbs."""
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=30)
    if probe.returncode != 0:
        reason = (probe.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        return wrong("ucx-missing", "UCX", reason.removeprefix("OSError: "))
    version, _, path = probe.stdout.strip().partition(" ")
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < _LEAST:
        return wrong("ucx-too-old", "UCX", f"{version} ({path})")
    folder = Path(path).resolve().parent
    if not list((folder / "ucx").glob("libuct_ib*")) or not list((folder / "ucx").glob("libuct_rdmacm*")):
        return wrong("ucx-without-verbs", "UCX", f"{version} ({path}) has no libuct_ib or no libuct_rdmacm")
    return ok("UCX", f"{version} with verbs ({path})")


def _access() -> Iterator[Finding]:
    nodes = [*_NODES.glob("uverbs*"), _NODES / "rdma_cm"]
    closed = [str(node) for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    if closed or len(nodes) < 2:
        yield wrong("rdma-nodes", "RDMA devices", f"cannot be opened: {', '.join(closed) or str(_NODES / 'uverbs*')}")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY and soft < 2 * _STAGING_BYTES and os.geteuid() != 0:
        yield wrong("rdma-memlock", "RDMA memory", f"locked memory is limited to {soft >> 10} KiB")
