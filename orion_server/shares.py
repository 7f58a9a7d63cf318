"""Device memory that one tenant's processes share: descriptors that workers have exported, by token.

A worker runs a tenant's kernels, so what it says is hostile. A token is 128 random bits made here; it opens memory only
for workers whose clients have the same host, user and group as the exporter's. A descriptor is kept until its worker
takes it back or ends; memory that somebody has imported lives on in the driver.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import secrets
from collections.abc import Callable, Hashable
from dataclasses import dataclass

log = logging.getLogger("orion.shares")

# orion_server/engine/share.c
FIRST_KIND = 16
_GIVE, _TAKE, _DROP = 16, 17, 18
_REFUSED, _HERE = 16, 17
_TOKEN_BYTES = 16

_OF_ONE_WORKER_MAX = 1024


@dataclass(eq=False)
class _Share:
    fd: int
    size_bytes: int
    owner: Hashable
    desk: ShareDesk


class Shares:
    """All that is exported on this server. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._shares: dict[bytes, _Share] = {}

    def __len__(self) -> int:
        return len(self._shares)

    def open(self, session: str, owner: Hashable) -> ShareDesk:
        """What the worker of a session of `owner` talks to."""
        return ShareDesk(self, session, owner)

    def add(self, share: _Share) -> bytes | None:
        """The new token, or None when there is no room. Owns the descriptor only then."""
        of_one = sum(other.desk is share.desk for other in self._shares.values())
        # The rest of the descriptors is for sessions and images.
        if of_one >= _OF_ONE_WORKER_MAX or len(self) >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2:
            return None
        token = secrets.token_bytes(_TOKEN_BYTES)
        self._shares[token] = share
        return token

    def find(self, token: bytes) -> _Share | None:
        """What the token stands for, whoever owns it."""
        return self._shares.get(token)

    def drop(self, token: bytes) -> None:
        """Its memory is gone."""
        os.close(self._shares.pop(token).fd)

    def drop_all(self, desk: ShareDesk) -> None:
        """Its worker has ended."""
        for token in [token for token, share in self._shares.items() if share.desk is desk]:
            self.drop(token)


class ShareDesk:
    """One worker's side: its packets come through its ImageDesk, whose socket both use."""

    def __init__(self, shares: Shares, session: str, owner: Hashable) -> None:
        self._shares = shares
        self._session = session
        self._owner = owner

    def handle(
        self, kind: int, size_bytes: int, token: bytes, fd: int, answer: Callable[[int, int, bytes, int], None]
    ) -> bool:
        """Answers one packet with (kind, size, token, descriptor). True when it keeps `fd`."""
        token = token[:_TOKEN_BYTES]
        if kind == _GIVE:
            given = self._shares.add(_Share(fd, size_bytes, self._owner, self)) if fd >= 0 else None
            if given is None:
                log.warning("session %s: too much shared memory: not exported", self._session)
                answer(_REFUSED, 0, b"", -1)
                return False
            answer(_HERE, size_bytes, given, -1)
            return True
        share = self._shares.find(token)
        if kind == _TAKE:
            if share is None:
                log.info("session %s: asked for shared memory that is not, or no longer, exported", self._session)
                answer(_REFUSED, 0, b"", -1)
            elif share.owner != self._owner:
                log.warning("session %s: asked for shared memory of another host, user or group", self._session)
                answer(_REFUSED, 0, b"", -1)
            else:
                answer(_HERE, share.size_bytes, b"", share.fd)
        elif kind == _DROP and share is not None and share.desk is self:
            self._shares.drop(token)
        return False

    def close(self) -> None:
        """The worker has ended."""
        self._shares.drop_all(self)


def raise_descriptor_limit() -> None:
    """Lets the server keep as many descriptors as the system allows it, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(65536, hard) if hard != resource.RLIM_INFINITY else 65536
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
