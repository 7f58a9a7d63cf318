"""The token of those who may change a server: 32 random bytes in a file that only its user can read.

Tenants reach the same port as administrators, so the port alone proves nothing. One file for all servers of a user's
folder, made by the first. To have a new one: remove the file and start the servers again.
"""

from __future__ import annotations

import hmac
import re
import secrets
from pathlib import Path

from orion_server.secret_file import read_or_make

FILE_NAME = "admin-token"
_FORM = re.compile(r"[0-9a-f]{64}")


class AdminToken:
    """Compares in constant time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        described = "a token (64 hexadecimal digits)"
        self._token = read_or_make(self.path, _FORM, described, lambda: secrets.token_hex(32))

    def admits(self, shown: str) -> bool:
        """Whether that is the token."""
        return hmac.compare_digest(shown.encode(), self._token.encode())
