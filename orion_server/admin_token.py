"""The token of those who may change a server: 32 random bytes in a file that only its user can read.

Tenants reach the same port as administrators, so the port alone proves nothing. One file for all servers of a user's
folder, made by the first: a second server must not take the first one's token away. To have a new one: remove the file
and start the servers again.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from orion_server.config import ConfigError

FILE_NAME = "admin-token"
_FORM = re.compile(r"[0-9a-f]{64}")


class AdminToken:
    """Compares in constant time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._token = _read(self.path) or _make(self.path)

    def admits(self, shown: str) -> bool:
        """Whether that is the token."""
        return hmac.compare_digest(shown.encode(), self._token.encode())


def _read(path: Path) -> str:
    """The token of the file; empty when there is none yet."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; remove it") from error
    with os.fdopen(fd) as file:
        status = os.fstat(fd)
        token = file.read(128).strip()
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077 or not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{path} is not a file of this user alone: remove it")
    if not _FORM.fullmatch(token):
        raise ConfigError(f"{path} does not hold a token (64 hexadecimal digits): remove it")
    return token


def _make(path: Path) -> str:
    token = secrets.token_hex(32)
    partial = path.with_name(f"{FILE_NAME}.{os.getpid()}")
    try:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(f"{token}\n")
        try:
            os.link(partial, path)  # appears whole, and never over another server's
        except FileExistsError:
            token = _read(path)
        finally:
            partial.unlink()
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    return token
