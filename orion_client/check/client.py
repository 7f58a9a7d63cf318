"""A machine whose programs use the pool."""

from __future__ import annotations

import ctypes
import importlib.util
import ipaddress
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from orion_client import __version__, config_file, libraries, settings
from orion_client.check import rdma
from orion_client.check.finding import Finding, ok, wrong
from orion_client.control_client import KeyTrouble, ServerUnreachable, stats

_ELF_X86_64 = 62
_ENVIRONMENT_PREFIX = "ORION_"
_FILE_TROUBLES = {
    "invalid": "setting-invalid",
    "unknown": "setting-unknown",
    "without_effect": "setting-without-effect",
    "unreadable": "config-unreadable",
    "syntax": "config-syntax",
}


def install() -> Iterator[Finding]:
    """The libraries and the stand-in nvidia-smi."""
    yield _client_libraries()
    script = Path(libraries.__file__).parent / "bin" / libraries.NVIDIA_SMI
    if script.is_file() and not os.access(script, os.X_OK):
        yield wrong("nvidia-smi-not-executable", "nvidia-smi", str(script))


def runtime(server: str | None, timeout_s: float) -> Iterator[Finding]:
    """What a program would meet, in that order."""
    yield from _preload()
    yield _device_nodes()
    yield from _configuration()
    wish = (settings.setting("ORION_TRANSPORT") or "auto").lower()
    if wish in ("auto", "ucx"):
        yield from rdma.runtime(wish == "ucx", settings.setting("ORION_IBVERBS_DEVICE") or "")
    try:
        named = [settings.parse_server(s) for s in server.split(",")] if server else settings.servers()
        if not server and settings.controllers():
            return  # a controller names the servers
    except settings.SettingError:
        return  # told by _configuration
    for address in named or [settings.DEFAULT_SERVER]:
        yield from _server(address, timeout_s, is_default=not named)
    if not named:
        yield _private_server()


def _client_libraries() -> Finding:
    check = "client libraries"
    try:
        folder = libraries.client_folder()
        for name in (libraries.LIBCUDA, libraries.LIBNVML):
            path = folder / name
            if not path.is_file():
                return wrong("libraries-missing", check, f"{folder} has no {name}")
            with path.open("rb") as file:
                head = file.read(20)
            if head[:4] != b"\x7fELF" or int.from_bytes(head[18:20], "little") != _ELF_X86_64:
                return wrong("libraries-wrong-architecture", check, f"{path} is no library for x86_64")
            ctypes.CDLL(str(path))
    except libraries.LibrariesMissing as error:
        return wrong("libraries-missing", check, str(error))
    except OSError as error:
        return wrong("libraries-not-loadable", check, str(error))
    return ok(check, str(folder))


def _preload() -> Iterator[Finding]:
    entries = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    foreign = [e for e in entries if os.path.basename(e).startswith("libcuda.so") and not _is_orion(e)]
    missing = [e for e in entries if os.sep in e and not os.path.exists(e)]
    ours = [e for e in entries if _is_orion(e)]
    if foreign:
        yield wrong("preload-foreign", "LD_PRELOAD", f"names another libcuda: {' '.join(foreign)}")
    elif missing:
        yield wrong("preload-missing", "LD_PRELOAD", f"names files that are not there: {' '.join(missing)}")
    elif ours and not _is_mapped(ours[0]):
        yield wrong("preload-ineffective", "LD_PRELOAD", f"{ours[0]} is not in a program that was started")
    elif ours:
        yield ok("LD_PRELOAD", f"{ours[0]} is in programs that are started")
    else:
        yield ok("LD_PRELOAD", "not set; orion-run sets it")
    for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
        candidate = Path(folder) / libraries.LIBCUDA
        if folder and candidate.is_file() and not _is_orion(str(candidate)):
            yield wrong("library-path-foreign", "LD_LIBRARY_PATH", f"{folder} holds another libcuda.so.1")


def _is_orion(path: str) -> bool:
    try:
        return os.path.samefile(path, libraries.client_folder() / libraries.LIBCUDA)
    except (OSError, libraries.LibrariesMissing):
        return False


def _is_mapped(library: str) -> bool:
    """Whether a program that starts in this environment has the library."""
    show = "import sys; sys.stdout.write(open('/proc/self/maps').read())"
    done = subprocess.run([sys.executable, "-S", "-c", show], capture_output=True, text=True, timeout=30, check=False)
    return os.path.realpath(library) in done.stdout


def _device_nodes() -> Finding:
    found = sorted(Path("/dev").glob("nvidia[0-9]*"))
    if found:
        return ok("GPUs here", f"{', '.join(map(str, found))}: programs use them only without Orion's libcuda")
    return ok("GPUs here", "no /dev/nvidia*, and none is needed: the GPUs are on servers")


def _configuration() -> Iterator[Finding]:
    is_well = True
    for name, value in sorted(os.environ.items()):
        if name.startswith(_ENVIRONMENT_PREFIX) and value:
            allowed = config_file.value_trouble(name, value)
            if allowed:
                is_well = False
                shown = "(not shown)" if name.endswith("_KEY") else value[:80]
                yield wrong("setting-invalid", "configuration", f"{name}={shown} (environment): it is {allowed}")
    for path in settings.config_files():
        for trouble in config_file.troubles(path):
            is_well = False
            where = f"{trouble.path}:{trouble.line}" if trouble.line else trouble.path
            yield wrong(_FILE_TROUBLES[trouble.kind], "configuration", f"{where}: {trouble.message}")
    if is_well:
        files = ", ".join(str(path) for path in settings.config_files() if path.is_file()) or "none"
        controllers, servers = settings.controllers(), settings.servers()
        who = f"controller: {', '.join(controllers)}" if controllers else f"servers: {', '.join(servers)}"
        if not controllers and not servers:
            who = f"no server named (default {settings.DEFAULT_SERVER})"
        yield ok("configuration", f"{who}; files: {files}")


def _server(address: str, timeout_s: float, is_default: bool) -> Iterator[Finding]:
    try:
        answer = stats(address, timeout_s)
    except KeyTrouble as error:
        yield wrong("server-key", "server", str(error))
        return
    except ServerUnreachable as error:
        yield wrong("server-none" if is_default else "server-unreachable", "server", str(error))
        return
    if not answer.gpus:
        yield wrong("server-no-gpu", "server", f"{address}: orion-server {answer.server}")
    else:
        names = ", ".join(gpu.name for gpu in answer.gpus)
        yield ok("server", f"{address}: orion-server {answer.server}, GPUs: {names}")
    yield versions(f"server {address}", answer.server)
    count = answer.defaults.vgpu_count if answer.defaults else 0
    if answer.gpus and count:
        part_percent = 100 // count
        full = [
            g.given_percent + part_percent > 100 or g.given_bytes + g.capacity_bytes // count > g.capacity_bytes
            for g in answer.gpus
        ]
        if all(full) and not (answer.defaults and answer.defaults.overcommit_ratio):
            yield wrong("server-full", "vGPUs", f"{address}: {len(answer.vgpus)} vGPU(s) on {len(full)} GPU(s)")
        else:
            yield ok("vGPUs", f"{address}: {full.count(False)} of {len(full)} GPU(s) have room for a default vGPU")
    yield _transport(address)


def versions(who: str, theirs: str) -> Finding:
    """Whether both ends are the same release."""
    if theirs != __version__:
        return wrong("version-apart", "versions", f"{who} has {theirs}, this machine {__version__}")
    return ok("versions", f"{who} and this machine have {__version__}")


def _transport(address: str) -> Finding:
    wish = (settings.setting("ORION_TRANSPORT") or "auto").lower()
    if not is_loopback(address.rpartition(":")[0]):
        if wish == "shm":
            return wrong("shm-not-possible", "transport", f"ORION_TRANSPORT=shm, and {address} is another host")
        with_rdma = wish in ("auto", "ucx") and bool(rdma.ports()[0])
        used = "RDMA where the server enables it, else tcp," if with_rdma else "tcp"
        return ok("transport", f"{address} is another host: {used} will be used")
    if wish == "ucx":
        return ok("transport", "ucx, because ORION_TRANSPORT=ucx; shm would be faster on this host")
    if wish == "tcp":
        return ok("transport", "tcp, because ORION_TRANSPORT=tcp; shm would be faster on this host")
    return ok("transport", "shm is possible when client and server run under the same user")


def is_loopback(host: str) -> bool:
    """Of an address or localhost; any other name is another host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _private_server() -> Finding:
    """Whether orion-run could start a server of its own here."""
    check, id = "private server", "private-server-not-possible"
    try:
        from orion_server.libcuda import LibcudaError, choose
    except ImportError as error:
        return wrong(id, check, f"not installed: {error}")
    try:
        chosen = choose("auto", None)
    except LibcudaError as error:
        return wrong(id, check, str(error))
    for module in ("orion_server.engine._engine", "pycuda"):
        if importlib.util.find_spec(module) is None:
            return wrong(id, check, f"the module {module} is missing")
    return ok(check, f"orion-run can start one on {chosen.kind} ({chosen.path})")
