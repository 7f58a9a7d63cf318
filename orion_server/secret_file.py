"""A secret of the server in a file that only its user can read, made by whoever needs it first."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from orion_server.config import ConfigError


def read_or_make(path: Path, form: re.Pattern[str], described: str, make: Callable[[], str]) -> str:
    """The secret in `path`. Servers of one folder share it: a second one must not take the first one's away.
    `described`: what the file holds, for the sentence that says that it holds something else."""
    return _read(path, form, described) or _write(path, form, described, make())


def _read(path: Path, form: re.Pattern[str], described: str) -> str:
    """The secret of the file; empty when there is none yet."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; remove it") from error
    with os.fdopen(fd) as file:
        status = os.fstat(fd)
        secret = file.read(128).strip()
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077 or not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{path} is not a file of this user alone: remove it")
    if not form.fullmatch(secret):
        raise ConfigError(f"{path} does not hold {described}: remove it")
    return secret


def _write(path: Path, form: re.Pattern[str], described: str, secret: str) -> str:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(f"{secret}\n")
        try:
            os.link(partial, path)  # appears whole, and never over another server's
        except FileExistsError:
            secret = _read(path, form, described)
        finally:
            partial.unlink()
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    return secret
