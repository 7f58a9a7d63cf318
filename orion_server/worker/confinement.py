"""What a worker gives up, step by step, before it serves a client (docs/security.md).

Everything here is for good: nothing that a tenant makes this process do can take it back.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import signal
from collections.abc import Sequence

from orion_server.engine._engine import lib

log = logging.getLogger("orion.worker")

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_DESCRIPTORS_MAX = 4096
_THREADS_MAX = 4096
READY, LANES = lib.ORION_ISOLATE_READY, lib.ORION_ISOLATE_LANES


class ConfinementError(Exception):
    """A step that was required did not succeed."""


class Confinement:
    """Steps of one worker, in the order of the methods. `uid` -1: the server's, which it stays."""

    def __init__(self, uid: int = -1, groups: Sequence[int] = (), seccomp: str = "on", tells: bool = False) -> None:
        self._uid = uid
        self._groups = list(groups)
        self.seccomp = seccomp
        self.tells = tells

    def limit(self) -> None:
        """Dies with the server; no core file, no debugger, no environment or memory for other processes to read."""
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _prctl(_PR_SET_DUMPABLE, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _lower(resource.RLIMIT_NOFILE, _DESCRIPTORS_MAX)
        _lower(resource.RLIMIT_MSGQUEUE, 0)
        # Not RLIMIT_AS: the driver reserves far more than it uses. Not RLIMIT_FSIZE: it would bound memfds.

    def allow_locked_memory(self) -> None:
        """RDMA devices lock what is registered with them. Only root may raise the limit; else it stays as it is."""
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def become(self) -> None:
        """Takes the uid: before the driver is initialised, which notes who opens it, and after all is imported, which
        may lie where only the server's user can read."""
        if self._uid < 0:
            return
        _lower(resource.RLIMIT_NPROC, _THREADS_MAX)  # counted for each uid: of a shared one it would be everybody's
        try:
            os.chdir("/")
            os.setgroups(self._groups)
            os.setresgid(self._uid, self._uid, self._uid)
            os.setresuid(self._uid, self._uid, self._uid)
        except OSError as error:
            raise ConfinementError(
                f"cannot become uid {self._uid}: {error.strerror}; start orion-server with --worker-uids off"
            ) from error
        if 0 in os.getresuid() + os.getresgid() or 0 in os.getgroups():
            raise ConfinementError(f"still root after becoming uid {self._uid}")
        self.limit()  # the kernel forgets whose end is ours, and who may look, with the uid

    def forbid(self, stage: int) -> None:
        """Installs the filter of system calls of a stage on all threads."""
        if self.seccomp == "off":
            return
        error = lib.orion_isolate(stage, self.tells)
        if error == 0:
            return
        text = f"no filter of system calls: {os.strerror(error)}"
        if self.seccomp == "required":
            raise ConfinementError(text)
        log.warning("%s: this worker may make every one", text)


def _lower(kind: int, limit: int) -> None:
    hard = resource.getrlimit(kind)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (limit, limit))


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None).prctl(option, value, 0, 0, 0) != 0:
        raise ConfinementError(f"prctl({option}) failed")
