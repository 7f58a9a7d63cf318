"""Runs a command where no NVIDIA driver can be reached: a mount namespace of its own with device nodes and driver
libraries covered.

    python3 -m benchmarks.isolation -- COMMAND ARGS...

Needs root (or CAP_SYS_ADMIN). On a machine without any of these files it changes nothing. The check beside it, in
`rows.traces_of_a_local_driver`, looks from inside the process at what it really mapped and opened.
"""

from __future__ import annotations

import ctypes
import glob
import os
import subprocess
import sys

CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE, MS_BIND = 0x4000, 1 << 18, 4096
libc = ctypes.CDLL(None, use_errno=True)

DEVICE_NODES = "/dev/nvidia*"
LIBRARY_PATTERNS = ("libcuda.so*", "libnvidia-*.so*", "libcudadebugger.so*")
LIBRARY_FOLDERS = ("/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/lib", "/usr/lib", "/lib64", "/usr/lib64",
                   "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu")  # fmt: skip
LOADER_CACHE, LDCONFIG = "/etc/ld.so.cache", "/sbin/ldconfig"


def _mount(source: str, target: str, flags: int, kind: str = "") -> None:
    if libc.mount(source.encode(), target.encode(), kind.encode() or None, flags, None):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {source} on {target}: {os.strerror(error)}")


def hide_driver() -> list[str]:
    """Enters a new mount namespace and covers every driver file with an empty one. Returns what was covered."""
    if libc.unshare(CLONE_NEWNS):
        error = ctypes.get_errno()
        raise OSError(error, f"unshare: {os.strerror(error)} (root is needed)")
    _mount("none", "/", MS_REC | MS_PRIVATE)
    targets: dict[str, str] = {}
    for path in glob.glob(DEVICE_NODES):
        targets[os.path.realpath(path)] = path
    for folder in LIBRARY_FOLDERS:
        for pattern in LIBRARY_PATTERNS:
            for path in glob.glob(f"{folder}/{pattern}"):
                targets[os.path.realpath(path)] = path
    empty_file = "/dev/null"
    empty_folder = f"/tmp/.orion-empty-{os.getpid()}"
    os.makedirs(empty_folder, exist_ok=True)
    for path in targets:
        _mount(empty_folder if os.path.isdir(path) else empty_file, path, MS_BIND)
    if targets:
        _hide_from_loader_cache()
    return sorted(targets)


def _hide_from_loader_cache() -> None:
    """`ldconfig -p` prints a cache, which names covered libraries until one made without them covers it. Where none can
    be made the old one stays, and a line says so: a program that goes by it then opens an empty file."""
    cache = f"/tmp/.orion-ld.so.cache-{os.getpid()}"
    try:
        subprocess.run([LDCONFIG, "-X", "-C", cache], check=True, stderr=subprocess.DEVNULL)
        _mount(cache, LOADER_CACHE, MS_BIND)
        os.unlink(cache)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"the loader's cache still names the driver: {error}", file=sys.stderr)


def main() -> None:
    command = sys.argv[1:]
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        sys.exit(__doc__)
    hide_driver()
    for node in glob.glob("/dev/nvidia[0-9]*"):
        if os.stat(node).st_rdev != os.stat("/dev/null").st_rdev:
            sys.exit(f"{node} is still visible")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
