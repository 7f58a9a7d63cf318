"""What sets tenants' workers apart from each other and from the server: uids, and how strictly each is confined.

A worker runs a tenant's kernels and reads a tenant's bytes. Where the server is root, each worker takes a uid and gid
that only workers of its tenant have (`WorkerPool` decides which), before it touches the driver. What a worker does to
itself is in orion_server/worker/confinement.py.
"""

from __future__ import annotations

import fcntl
import glob
import logging
import os
import random
import re
import stat
import tempfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orion_server.config import ConfigError, Settings, private_directory

log = logging.getLogger("orion.server")

# Of uids that no distribution and no systemd gives to anybody, and below 65536, so that a container usually has them.
DEFAULT_WORKER_UIDS = "60578-61183"
_UIDS_MAX = 1 << 20
# Worker uids are the host's, not one server's: servers lock the byte of each that they use.
_LOCK_FILE = "worker-uids"
_DEVICE_NODES = ("/dev/nvidia*", "/dev/nvidia-caps/*", "/dev/dxg")
_CAP_KILL, _CAP_SETGID, _CAP_SETUID = 5, 6, 7
_CAPABILITIES = {_CAP_KILL: "CAP_KILL", _CAP_SETGID: "CAP_SETGID", _CAP_SETUID: "CAP_SETUID"}
_SECCOMP_ACTIONS = "/proc/sys/kernel/seccomp/actions_avail"

# Of the server's environment, what a worker may need: where its libraries are and how they behave. No tokens, no keys.
_ENVIRONMENT = frozenset(
    {
        "GLIBC_TUNABLES",
        "HOME",
        "LANG",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "ORION_ENGINE_LAUNCHERS",
        "ORION_ENGINE_LAUNCHERS_ALWAYS",
        "ORION_UCX_DIRECT",
        "ORION_UCX_SPIN_US",
        "PATH",
        "TZ",
    }
)
_ENVIRONMENT_FAMILIES = ("CUDA_", "PYTHON", "LC_", "SOFTGPU_", "OMP_", "OPENBLAS_", "MALLOC_", "ASAN_", "LSAN_",
                         "TSAN_", "UBSAN_", "UCX_")  # fmt: skip


class IsolationError(Exception):
    """A worker cannot be set apart as it should be: the message says what to do."""


@dataclass(frozen=True)
class Confinement:
    """What one worker is told. `uid` (its gid too) is -1 where it stays the server's."""

    uid: int = -1
    groups: tuple[int, ...] = ()
    seccomp: str = "on"  # or off, required

    def arguments(self) -> list[str]:
        """For the worker's command line."""
        told = ["--seccomp", self.seccomp]
        if self.uid >= 0:
            told += ["--uid", str(self.uid)]
        return [*told, "--groups", *map(str, self.groups)] if self.groups else told

    def environment(self, whole: Mapping[str, str]) -> dict[str, str]:
        """Of what is meant for a worker, what it gets."""
        kept = {k: v for k, v in whole.items() if k in _ENVIRONMENT or k.startswith(_ENVIRONMENT_FAMILIES)}
        if self.uid >= 0 and not {"CUDA_CACHE_PATH", "CUDA_CACHE_DISABLE"} & kept.keys():
            # The driver's cache of compiled code would be read and written by all tenants, or by none.
            kept["CUDA_CACHE_DISABLE"] = "1"
        return kept


class WorkerUids:
    """Uids that each serve live workers of one tenant at a time, whichever server of this host they belong to.

    The one that was free for the longest is given first: little that the system still keeps under it is left by then.
    """

    def __init__(self, first: int, last: int, lock_file: Path, excluded: frozenset[int] = frozenset()) -> None:
        self.first, self.last = first, last
        free = [uid for uid in range(first, last + 1) if uid not in excluded]
        start = random.randrange(len(free)) if free else 0
        self._free = deque(free[start:] + free[:start])
        self._workers: dict[int, int] = {}  # of each uid that this server has given
        self._lock_fd = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def take(self) -> int:
        """A uid that nobody has; raises IsolationError when there is none."""
        for _ in range(len(self._free)):
            uid = self._free.popleft()
            try:
                fcntl.lockf(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, uid)
            except OSError:  # another server's
                self._free.append(uid)
                continue
            self._workers[uid] = 1
            return uid
        raise IsolationError(
            f"no uid is left for a worker: {self.first}-{self.last} are in use; name more with --worker-uids"
        )

    def share(self, uid: int) -> None:
        """Another worker of the same tenant gets a uid that a live one has."""
        if uid not in self._workers:
            raise IsolationError(f"no worker has uid {uid} any more")
        self._workers[uid] += 1

    def release(self, uid: int) -> None:
        """One of its workers is dead."""
        self._workers[uid] -= 1
        if self._workers[uid]:
            return
        del self._workers[uid]
        fcntl.lockf(self._lock_fd, fcntl.LOCK_UN, 1, uid)
        self._free.append(uid)

    def close(self) -> None:
        """Gives all locks back; for tests, a server keeps them until its end."""
        os.close(self._lock_fd)


class Isolation:
    """Of one server. `uids` is None where workers stay its user's."""

    def __init__(self, uids: WorkerUids | None = None, seccomp: str = "on") -> None:
        self.uids = uids
        self.seccomp = seccomp

    def take(self, uid: int = -1) -> Confinement:
        """For a new worker: with a uid of its own, or with that of another live one; raises IsolationError."""
        if self.uids is None:
            return Confinement(seccomp=self.seccomp)
        if uid < 0:
            uid = self.uids.take()
        else:
            self.uids.share(uid)
        return Confinement(uid, device_groups(), self.seccomp)

    def release(self, confinement: Confinement) -> None:
        """Its worker is dead, or was never started."""
        if self.uids is not None and confinement.uid >= 0:
            self.uids.release(confinement.uid)


def parse_uids(text: str) -> tuple[int, int] | None:
    """`FIRST-LAST`; None for "off"."""
    if text == "off":
        return None
    form = re.fullmatch(r"(\d{1,10})-(\d{1,10})", text)
    if form is None:
        raise ConfigError(f"--worker-uids {text}: it is FIRST-LAST, such as {DEFAULT_WORKER_UIDS}, or off")
    first, last = int(form[1]), int(form[2])
    if not 0 < first <= last < (1 << 32) - 1:
        raise ConfigError(f"--worker-uids {text}: uids are 1 to 4294967294, and the first is not above the last")
    if first <= 65534 <= last:
        raise ConfigError(f"--worker-uids {text}: 65534 is nobody, whom other services are too; leave it out")
    if last - first >= _UIDS_MAX:
        raise ConfigError(f"--worker-uids {text}: at most {_UIDS_MAX} uids")
    return first, last


def plan(settings: Settings) -> Isolation:
    """What this server can do and was told to do; raises ConfigError where that is less than is required."""
    required = settings.require_isolation
    if required and not settings.seccomp:
        raise ConfigError("--require-isolation and --no-seccomp contradict each other: give one of them")
    if settings.seccomp and not os.path.exists(_SECCOMP_ACTIONS):
        text = "this kernel has no seccomp filters: workers may make every system call"
        if required:
            raise ConfigError(f"{text}, and --require-isolation was given")
        log.warning("%s", text)
    seccomp = "off" if not settings.seccomp else "required" if required else "on"
    if not settings.seccomp:
        log.warning("--no-seccomp: workers may make every system call; for debugging only")
    wanted = parse_uids(settings.worker_uids or DEFAULT_WORKER_UIDS)
    if wanted is None:
        obstacle = "--worker-uids off"
    else:
        obstacle = _obstacle(*wanted)
        if not obstacle:
            return Isolation(_uids(*wanted, settings), seccomp)
    text = f"workers run as this server's user, uid {os.geteuid()}: {obstacle}"
    if required:
        raise ConfigError(f"{text}, and --require-isolation was given")
    if settings.worker_uids and wanted is not None:
        raise ConfigError(f"--worker-uids {settings.worker_uids} cannot be used: {obstacle}")
    log.log(logging.WARNING if os.geteuid() == 0 else logging.INFO, "%s", text)
    return Isolation(None, seccomp)


def _uids(first: int, last: int, settings: Settings) -> WorkerUids:
    excluded = _taken_uids()
    count = sum(uid not in excluded for uid in range(first, last + 1))
    if count < settings.max_sessions:
        log.warning("%d uids for workers are fewer than max_sessions, %d: later clients will be refused", count,
                    settings.max_sessions)  # fmt: skip
    uids = WorkerUids(first, last, _lock_file(), excluded)
    log.debug("workers have uids of their own, of %d-%d", first, last)
    return uids


def _obstacle(first: int, last: int) -> str:
    """Why this process cannot give workers these uids; empty when it can."""
    if os.geteuid() != 0:
        return "only root can give workers uids of their own"
    held = int(_status_field("self", "CapEff") or "0", 16)
    missing = [name for bit, name in _CAPABILITIES.items() if not held >> bit & 1]
    if missing:
        return f"root here lacks {', '.join(missing)}"
    for kind in ("uid", "gid"):
        table = Path(f"/proc/self/{kind}_map")  # not there in a kernel without user namespaces
        if table.exists() and not _is_mapped(table.read_text(), first, last):
            return f"this user namespace has no {kind}s {first}-{last}"
    return ""


def _is_mapped(table: str, first: int, last: int) -> bool:
    ranges = [(int(inside), int(count)) for inside, _, count in (line.split() for line in table.splitlines())]
    return any(inside <= first and last < inside + count for inside, count in ranges)


def _status_field(pid: str, name: str) -> str:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""
    return next((line.split(":", 1)[1] for line in text.splitlines() if line.startswith(f"{name}:")), "")


def _taken_uids() -> frozenset[int]:
    """Uids and gids of accounts of this host, and of processes: workers of a server that has just died, for one."""
    taken: set[int] = set()
    for file in ("/etc/passwd", "/etc/group"):
        try:
            lines = Path(file).read_text(errors="replace").splitlines()
        except OSError:
            continue
        taken.update(int(row[2]) for row in (line.split(":") for line in lines) if len(row) > 2 and row[2].isdigit())
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            taken.update(int(uid) for uid in _status_field(pid, "Uid").split())
    return frozenset(taken)


def _lock_file() -> Path:
    # /run, else where servers of this user would look too.
    folder = Path("/run" if os.access("/run", os.W_OK) else tempfile.gettempdir())
    try:
        return private_directory(folder / "orion-workers") / _LOCK_FILE
    except ConfigError as error:
        raise ConfigError(f"cannot note which uids workers have: {error} (or start with --worker-uids off)") from error


def device_groups() -> tuple[int, ...]:
    """Groups that a process needs to open the GPUs' nodes, where those are not open to everybody."""
    groups: set[int] = set()
    for pattern in _DEVICE_NODES:
        for node in glob.glob(pattern):
            status = os.stat(node)
            if stat.S_ISCHR(status.st_mode) and status.st_mode & 0o006 != 0o006 and status.st_mode & 0o060 == 0o060:
                groups.add(status.st_gid)
    return tuple(sorted(groups - {0}))
