"""Device memory and events that one tenant's processes share, by token: descriptors of memory that workers have
exported, and the driver's handles of events.

A worker runs a tenant's kernels, so what it says is hostile. A token is 128 random bits made here; it opens something
only for workers whose clients have the same host, user and group as the exporter's. A descriptor is kept until its
worker takes it back or ends; what somebody has imported lives on in the driver. What a handle's bytes name is for the
driver to judge: whoever could make them up could open them too.
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
_GIVE, _TAKE, _DROP, _GIVE_EVENT, _TAKE_EVENT = 16, 17, 18, 19, 20
_REFUSED, _HERE = 16, 17
_TOKEN_BYTES = 16
_HANDLE_BYTES = 64

_OF_ONE_WORKER_MAX = 1024
_EVENTS_OF_ONE_WORKER_MAX = 8192


@dataclass(eq=False)
class _Share:
    fd: int  # -1: an event
    size_bytes: int
    handle: bytes
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
        is_event = share.fd < 0
        alike = [other for other in self._shares.values() if (other.fd < 0) == is_event]
        of_one = sum(other.desk is share.desk for other in alike)
        if of_one >= (_EVENTS_OF_ONE_WORKER_MAX if is_event else _OF_ONE_WORKER_MAX):
            return None
        # The rest of the descriptors is for sessions and images.
        if not is_event and len(alike) >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2:
            return None
        token = secrets.token_bytes(_TOKEN_BYTES)
        self._shares[token] = share
        return token

    def find(self, token: bytes) -> _Share | None:
        """What the token stands for, whoever owns it."""
        return self._shares.get(token)

    def drop(self, token: bytes) -> None:
        """Its memory is gone."""
        share = self._shares.pop(token)
        if share.fd >= 0:
            os.close(share.fd)

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
        self, kind: int, size_bytes: int, body: bytes, fd: int, answer: Callable[[int, int, bytes, int], None]
    ) -> bool:
        """Answers one packet with (kind, size, token or handle, descriptor). `body`: of the packet, a token or a
        handle. True when it keeps `fd`."""
        token = body[:_TOKEN_BYTES]
        if kind in (_GIVE, _GIVE_EVENT):
            is_event = kind == _GIVE_EVENT
            handle = body[:_HANDLE_BYTES] if is_event else b""
            share = _Share(-1 if is_event else fd, size_bytes, handle, self._owner, self)
            given = self._shares.add(share) if is_event or fd >= 0 else None
            if given is None:
                log.warning("session %s: too much shared memory or too many shared events: not exported", self._session)
                answer(_REFUSED, 0, b"", -1)
                return False
            answer(_HERE, size_bytes, given, -1)
            return not is_event
        known = self._shares.find(token)
        if kind in (_TAKE, _TAKE_EVENT):
            if known is None or (known.fd < 0) != (kind == _TAKE_EVENT):
                log.info("session %s: asked for what is not, or no longer, exported", self._session)
                answer(_REFUSED, 0, b"", -1)
            elif known.owner != self._owner:
                log.warning("session %s: asked for what another host, user or group shares", self._session)
                answer(_REFUSED, 0, b"", -1)
            else:
                answer(_HERE, known.size_bytes, known.handle, known.fd)
        elif kind == _DROP and known is not None and known.desk is self:
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
