"""A machine that serves its GPUs."""

from __future__ import annotations

import importlib.util
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orion_client import settings
from orion_client.check import rdma
from orion_client.check.client import versions
from orion_client.check.finding import Finding, ok, wrong
from orion_client.control_client import ServerUnreachable, stats


def install() -> Iterator[Finding]:
    """What orion-server consists of, and the driver."""
    missing = [m for m in ("orion_server.engine._engine", "orion_server.arbiter._arbiter") if not _has(m)]
    if missing:
        yield wrong("server-not-built", "orion-server", f"missing: {', '.join(missing)}")
    else:
        yield ok("orion-server", "engine and arbiter are there")
    if _has("pycuda"):
        yield ok("pycuda", "is there")
    else:
        yield wrong("pycuda-missing", "pycuda", "cannot be imported")
    if _has("orion_server"):
        yield from _driver()


def runtime(timeout_s: float, config: Path | None = None) -> Iterator[Finding]:
    """What a server meets when it starts, or the one that runs."""
    if not _has("orion_server"):
        return
    configured: Any = None
    for finding, value in _configuration(config):
        configured = value or configured
        yield finding
    yield from _private_folder(getattr(configured, "socket_dir", None))
    yield _seccomp()
    if configured is not None:
        yield from rdma.runtime(configured.enable_rdma, configured.ibverbs_device)
        yield from _port(configured.host, configured.port, timeout_s)


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _driver() -> Iterator[Finding]:
    from orion_server.libcuda import LibcudaError, choose, find_nvidia, has_nvidia_device

    nvidia = find_nvidia()
    if nvidia is None:
        yield wrong("driver-missing", "driver", "no NVIDIA libcuda.so.1 is known to the loader")
        try:
            yield ok("device", f"softgpu: {choose('auto', None).path}")
        except LibcudaError as error:
            yield wrong("libcuda-not-usable", "device", str(error))
        return
    yield ok("driver", str(nvidia))
    if not has_nvidia_device():
        yield wrong("device-nodes-missing", "GPUs", "there is no /dev/nvidia0")
    else:
        yield ok("GPUs", "/dev/nvidia* are there")
    nvml = Path(nvidia).parent / "libnvidia-ml.so.1"
    if nvml.is_file():
        yield ok("NVML", str(nvml))
    else:
        yield wrong("nvml-missing", "NVML", f"no {nvml}")


def _configuration(named: Path | None) -> Iterator[tuple[Finding, Any]]:
    from orion_server.config import DEFAULT_CONFIG_FILE, ConfigError, Settings, load_file

    path = named or DEFAULT_CONFIG_FILE
    if not path.is_file():
        if named is not None:
            yield wrong("server-conf-invalid", "configuration", f"there is no file {named}"), None
        else:
            yield ok("configuration", f"{path} is not there: defaults"), Settings()
        return
    try:
        loaded = load_file(path, Settings())
    except ConfigError as error:
        yield wrong("server-conf-invalid", "configuration", str(error)), None
        return
    if loaded.ignored:
        yield wrong("server-conf-unknown", "configuration", f"{path}: {', '.join(loaded.ignored)}"), loaded
    else:
        yield ok("configuration", str(path)), loaded


def _private_folder(configured: Path | None) -> Iterator[Finding]:
    folder = configured or settings.runtime_folder()
    try:
        status = folder.lstat()
    except OSError:
        yield ok("private folder", f"{folder} is not there yet: the server makes it")
        return
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or mode & 0o077:
        yield wrong("private-folder-open", "private folder", f"{folder}: user {status.st_uid}, mode {mode:o}")
    else:
        yield ok("private folder", f"{folder}, mode {mode:o}")
    token = folder / "admin-token"
    try:
        mode = stat.S_IMODE(token.lstat().st_mode)
    except OSError:
        return
    if mode & 0o077:
        yield wrong("admin-token-readable", "admin token", f"{token}: mode {mode:o}")
    else:
        yield ok("admin token", f"{token}, mode {mode:o}")


def _seccomp() -> Finding:
    try:
        actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text(encoding="ascii").split()
    except OSError:
        return wrong("no-seccomp", "seccomp", "the kernel does not tell of seccomp filters")
    return ok("seccomp", f"filters are possible ({len(actions)} actions)")


def _port(host: str, port: int, timeout_s: float) -> Iterator[Finding]:
    address = f"{host}:{port}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            bind_error: OSError | None = error
        else:
            bind_error = None
    if bind_error is None:
        yield wrong("server-not-running", "port", f"{address} is free")
        return
    try:
        answer = stats(address, timeout_s)
    except ServerUnreachable as error:
        in_use = bind_error.errno == 98
        yield wrong("port-in-use" if in_use else "port-not-bindable", "port",
                    f"{address}: {error if in_use else bind_error.strerror}")  # fmt: skip
        return
    yield ok("port", f"orion-server {answer.server} runs on {address}")
    yield versions(f"server {address}", answer.server)
