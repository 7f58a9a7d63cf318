"""orion-check: what is wrong with a set-up and how to mend it."""

from __future__ import annotations

import ctypes
import importlib.util
import ipaddress
import json
import os
import platform
import resource
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from orion_client import __version__, libraries, settings
from orion_client.control_client import ServerUnreachable, stats

_HELP = """Says what is wrong with this machine's Orion set-up and how to mend it.

Looks at the client libraries, the configuration, the server and the limits that programs meet. Exit code 0 when
nothing failed (warnings are allowed), 1 otherwise.
"""
_MIN_GLIBC = (2, 17)
_ARENA_BYTES = 64 << 30
_MIN_SHM_BYTES = 64 << 20
_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}

app = typer.Typer(add_completion=True, rich_markup_mode=None)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    status: str  # ok, warn, fail
    detail: str
    fix: str = ""


@app.command(help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
def check(
    server: Annotated[str | None, typer.Option(help="HOST:PORT to look at instead of the configured one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for a server.")] = 3.0,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Runs every check and shows the findings."""
    if version:
        print(f"orion-check {__version__}")
        return
    findings = list(examine(server, timeout))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        console = Console()
        for finding in findings:
            line = Text(f"{finding.status:<5}", style=_STYLES[finding.status])
            line.append(f"{finding.check}: {finding.detail}", style="none")
            console.print(line, soft_wrap=True)
            if finding.fix:
                console.print(Text(f"      -> {finding.fix}"), soft_wrap=True)
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


def examine(server: str | None, timeout_s: float) -> Iterator[Finding]:
    """All findings, in the order in which a program would meet the troubles."""
    steps: list[Callable[[], Finding]] = [_platform, _client_libraries, _preload, _configuration, _overcommit]
    steps += [_address_limit, _dev_shm, _memlock]
    for step in steps:
        yield step()
    try:
        named = [settings.parse_server(s) for s in server.split(",")] if server else settings.servers()
    except settings.SettingError:
        return  # told by _configuration
    for address in named or [settings.DEFAULT_SERVER]:
        yield from _server(address, timeout_s, is_default=not named)
    if not named:
        yield _private_server()


def _platform() -> Finding:
    name, version = platform.libc_ver()
    machine = platform.machine()
    detail = f"{platform.system()} {machine}, {name or 'unknown libc'} {version}"
    if platform.system() != "Linux" or machine != "x86_64":
        return Finding("platform", "fail", detail, "the client library is built for Linux on x86_64")
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < _MIN_GLIBC:
        return Finding("platform", "fail", detail, "the client library needs glibc 2.17 or newer")
    return Finding("platform", "ok", detail)


def _client_libraries() -> Finding:
    try:
        folder = libraries.client_folder()
        for name in (libraries.LIBCUDA, libraries.LIBNVML):
            if not (folder / name).is_file():
                return Finding("client libraries", "fail", f"{folder} has no {name}", "install again or `make build`")
            ctypes.CDLL(str(folder / name))
    except libraries.LibrariesMissing as error:
        return Finding("client libraries", "fail", str(error), "install the wheel, or `make build` in a source tree")
    except OSError as error:
        return Finding("client libraries", "fail", f"cannot be loaded: {error}", "install again or `make build`")
    return Finding("client libraries", "ok", str(folder))


def _preload() -> Finding:
    entries = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    foreign = [e for e in entries if os.path.basename(e).startswith("libcuda.so") and not _is_orion(e)]
    if foreign:
        return Finding("LD_PRELOAD", "fail", f"preloads another libcuda: {' '.join(foreign)}",
                       "take it out of LD_PRELOAD: only one libcuda can serve a program")  # fmt: skip
    missing = [e for e in entries if os.sep in e and not os.path.exists(e)]
    if missing:
        return Finding("LD_PRELOAD", "warn", f"names files that are not there: {' '.join(missing)}",
                       "the loader ignores them with a message for every program")  # fmt: skip
    for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
        candidate = Path(folder) / libraries.LIBCUDA
        if folder and candidate.is_file() and not _is_orion(str(candidate)):
            return Finding("LD_LIBRARY_PATH", "warn", f"{folder} holds another libcuda.so.1",
                           "orion-run puts Orion's first; without orion-run remove the folder")  # fmt: skip
    return Finding("LD_PRELOAD", "ok", "nothing in the way of Orion's libcuda")


def _is_orion(path: str) -> bool:
    try:
        return os.path.samefile(path, libraries.client_folder() / libraries.LIBCUDA)
    except (OSError, libraries.LibrariesMissing):
        return False


def _configuration() -> Finding:
    try:
        configured = settings.servers()
    except settings.SettingError as error:
        return Finding("configuration", "fail", f"ORION_SERVER: {error}", "set ORION_SERVER=host:port")
    transport = settings.setting("ORION_TRANSPORT")
    if transport is not None and transport.lower() not in ("auto", "shm", "tcp"):
        return Finding("configuration", "fail", f"ORION_TRANSPORT={transport}", "it is auto, shm or tcp")
    ranges = {"ORION_VGPU": (1, 64), "ORION_GMEM": (1, 1 << 30), "ORION_RATIO": (1, 100)}
    for key, (low, high) in ranges.items():
        value = settings.setting(key)
        if value is not None and not (value.isdigit() and low <= int(value) <= high):
            return Finding("configuration", "fail", f"{key}={value}", f"it is a number from {low} to {high}")
    files = [str(path) for path in settings.config_files() if path.is_file()]
    servers = ", ".join(configured) or f"none named (default {settings.DEFAULT_SERVER})"
    return Finding("configuration", "ok", f"servers: {servers}; files: {', '.join(files) or 'none'}")


def _overcommit() -> Finding:
    try:
        mode = Path("/proc/sys/vm/overcommit_memory").read_text().strip()
    except OSError:
        mode = "unknown"
    if mode == "2":
        return Finding("overcommit", "fail", "vm.overcommit_memory=2 refuses large reservations of addresses",
                       "sysctl vm.overcommit_memory=0 (Orion reserves addresses, not memory)")  # fmt: skip
    return Finding("overcommit", "ok", f"vm.overcommit_memory={mode}")


def _address_limit() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and soft < 2 * _ARENA_BYTES:
        return Finding("address space", "fail", f"limited to {soft >> 20} MiB (ulimit -v)",
                       "ulimit -v unlimited: device memory and pinned memory need addresses")  # fmt: skip
    return Finding("address space", "ok", "not limited")


def _dev_shm() -> Finding:
    try:
        information = os.statvfs("/dev/shm")
    except OSError:
        return Finding("/dev/shm", "warn", "is missing", "Orion itself needs none; data loaders and NCCL do: mount it")
    size_bytes = information.f_blocks * information.f_frsize
    if size_bytes < _MIN_SHM_BYTES:
        return Finding("/dev/shm", "warn", f"has {size_bytes >> 20} MiB",
                       "Orion itself needs none; data loaders and NCCL do: docker run --shm-size=1g")  # fmt: skip
    return Finding("/dev/shm", "ok", f"{size_bytes >> 20} MiB")


def _memlock() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Finding("locked memory", "ok", "not limited")
    return Finding("locked memory", "ok", f"limited to {soft >> 10} KiB; shm and tcp do not need it")


def _server(address: str, timeout_s: float, is_default: bool) -> Iterator[Finding]:
    try:
        answer = stats(address, timeout_s)
    except ServerUnreachable as error:
        if is_default:
            yield Finding("server", "warn", f"none configured, and {error}",
                          "set ORION_SERVER=host:port, or let orion-run start a private server")  # fmt: skip
        else:
            yield Finding("server", "fail", str(error), error.hint)
        return
    names = ", ".join(gpu.name for gpu in answer.gpus)
    yield Finding("server", "ok", f"{address}: orion-server {answer.server}, GPUs: {names}")
    if answer.server != __version__:
        yield Finding("versions", "warn", f"server {answer.server}, client {__version__}",
                      "one minor version apart works; install the same version if attach is refused")  # fmt: skip
    else:
        yield Finding("versions", "ok", f"both {__version__}")
    yield _shared_memory(address)


def _shared_memory(address: str) -> Finding:
    host = address.rpartition(":")[0]
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        return Finding("transport", "ok", "the server is on another host: tcp will be used")
    wish = (settings.setting("ORION_TRANSPORT") or "auto").lower()
    if wish == "tcp":
        return Finding("transport", "ok", "tcp, because ORION_TRANSPORT=tcp; shm would be faster on this host")
    try:
        os.close(os.memfd_create("orion-check", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    except OSError as error:
        return Finding("transport", "warn", f"no memfd here ({error.strerror}): tcp will be used",
                       "allow memfd_create in this container's seccomp profile to use shm")  # fmt: skip
    return Finding("transport", "ok", "shm is possible when client and server run under the same user")


def _private_server() -> Finding:
    """Whether orion-run could start a server of its own here."""
    try:
        from orion_server.libcuda import LibcudaError, choose
    except ImportError as error:
        return Finding("private server", "warn", f"not installed: {error}", "install the whole wheel")
    try:
        chosen = choose("auto", None)
    except LibcudaError as error:
        return Finding("private server", "warn", str(error))
    for module, what in (("orion_server.engine._engine", "make build"), ("pycuda", "python tools/build_pycuda.py")):
        if importlib.util.find_spec(module) is None:
            return Finding("private server", "warn", f"the module {module} is missing", what)
    return Finding("private server", "ok", f"orion-run can start one on {chosen.kind} ({chosen.path})")


def main() -> None:
    """Entry of the installed command."""
    app(prog_name="orion-check")


if __name__ == "__main__":
    main()
