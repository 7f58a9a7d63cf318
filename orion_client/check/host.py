"""What Orion needs of any machine."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterator
from pathlib import Path

from orion_client.check.finding import Finding, ok, wrong

_MIN_GLIBC = (2, 17)
_ARENA_BYTES = 64 << 30
_MIN_SHM_BYTES = 64 << 20
_MIN_MEMLOCK_BYTES = 64 << 20
_MIN_DESCRIPTORS = 1024


def install() -> Iterator[Finding]:
    """The kind of machine."""
    name, version = platform.libc_ver()
    machine = platform.machine()
    detail = f"{platform.system()} {machine}, {name or 'unknown libc'} {version}"
    if platform.system() != "Linux" or machine != "x86_64":
        yield wrong("platform-unsupported", "platform", detail)
    elif name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < _MIN_GLIBC:
        yield wrong("glibc-too-old", "platform", detail)
    else:
        yield ok("platform", detail)


def runtime(is_server: bool) -> Iterator[Finding]:
    """Limits that programs, or a server, meet."""
    yield _overcommit()
    yield _address_limit()
    yield _dev_shm()
    yield _memlock(is_server)
    yield _descriptors()
    yield _memfd()


def _overcommit() -> Finding:
    try:
        mode = Path("/proc/sys/vm/overcommit_memory").read_text().strip()
    except OSError:
        mode = "unknown"
    if mode == "2":
        return wrong("overcommit-strict", "overcommit", "vm.overcommit_memory=2")
    return ok("overcommit", f"vm.overcommit_memory={mode}")


def _address_limit() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and soft < 2 * _ARENA_BYTES:
        return wrong("address-space-limited", "address space", f"limited to {soft >> 20} MiB (ulimit -v)")
    return ok("address space", "not limited")


def _dev_shm() -> Finding:
    try:
        information = os.statvfs("/dev/shm")
    except OSError:
        return wrong("dev-shm-missing", "/dev/shm", "is missing")
    size_bytes = information.f_blocks * information.f_frsize
    if size_bytes < _MIN_SHM_BYTES:
        return wrong("dev-shm-small", "/dev/shm", f"has {size_bytes >> 20} MiB")
    return ok("/dev/shm", f"{size_bytes >> 20} MiB")


def _memlock(is_server: bool) -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return ok("locked memory", "not limited")
    if is_server and soft < _MIN_MEMLOCK_BYTES:
        return wrong("memlock-limited", "locked memory", f"limited to {soft >> 10} KiB")
    return ok("locked memory", f"limited to {soft >> 10} KiB; shm and tcp do not need it")


def _descriptors() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _MIN_DESCRIPTORS:
        return wrong("descriptors-few", "open files", f"at most {soft}")
    return ok("open files", "not limited" if soft == resource.RLIM_INFINITY else f"at most {soft}")


def _memfd() -> Finding:
    try:
        os.close(os.memfd_create("orion-check", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    except OSError as error:
        return wrong("no-memfd", "shared memory", f"memfd_create: {error.strerror}")
    return ok("shared memory", "memfd_create is allowed")
