"""The shm doorway: memory that both ends map, and the unix socket over which the client receives it."""

from __future__ import annotations

import array
import fcntl
import hmac
import os
import socket
import struct

TOKEN_BYTES = 32
_F_ADD_SEALS = 1033
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 1, 2, 4
_UCRED = struct.Struct("3i")
# Strangers may knock (and a stale client may come late); each is turned away without ending the session.
_MAX_REFUSALS = 16
_MAX_WAITING = 8


def sealed_memory(name: str, size_bytes: int) -> int:
    """A sparse memfd that nobody can resize any more: a client that could shrink it would fault the engine."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_SEAL)
    except OSError:
        os.close(fd)
        raise
    return fd


class Doorway:
    """Waits at a unix socket, which orion-server made, until the one client with the token has come.

    A client knocks before it binds, to see whether it can reach the socket at all, and shows its token afterwards; so
    nothing here waits for anybody.
    """

    def __init__(self, listener: socket.socket, uid: int, token: bytes) -> None:
        self._uid = uid
        self._token = token
        self._refusals = 0
        self.waiting: set[socket.socket] = set()
        self.listener = listener
        self.fds: tuple[int, int] | None = None

    @property
    def is_besieged(self) -> bool:
        """Too many came without the token: the session is better ended than its worker kept busy."""
        return self._refusals > _MAX_REFUSALS

    def accept(self) -> socket.socket | None:
        """One knock at the door: a connection whose token is awaited, or None when it was turned away."""
        try:
            connection, _ = self.listener.accept()
        except BlockingIOError:
            return None
        connection.setblocking(False)
        _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        self.waiting.add(connection)
        if uid != self._uid or len(self.waiting) > _MAX_WAITING:
            self.turn_away(connection)
            return None
        return connection

    def admit(self, connection: socket.socket) -> bool:
        """Checks the token that a waiting connection sent and hands over the memory; False when it is not the one."""
        try:
            token = connection.recv(TOKEN_BYTES + 1)
            if not hmac.compare_digest(token, self._token) or self.fds is None:
                return False
            rights = array.array("i", self.fds)
            connection.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except OSError:
            return False
        self.waiting.discard(connection)
        return True

    def turn_away(self, connection: socket.socket) -> None:
        """Closes a connection that has no business here."""
        self._refusals += 1
        self.waiting.discard(connection)
        connection.close()

    def close(self) -> None:
        """Shuts the door; the socket's file is the server's."""
        for connection in self.waiting:
            connection.close()
        self.waiting.clear()
        self.listener.close()
