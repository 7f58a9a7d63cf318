"""Who may use the API: users with passwords, their sessions, and tokens for programs."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from orion_controller.api.models import Role
from orion_controller.store import passwords, tables
from orion_controller.store.passwords import Cost
from orion_controller.store.store import Store

ROLES: tuple[Role, ...] = ("viewer", "operator")
FIRST_USER = "admin"
PASSWORD_FILE = "admin-password"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_TOKEN_PREFIX = "orion_"
_TOKEN_MAX = 128
_KEY_MAX = 256
# What another replica has revoked is still accepted for this long.
CACHE_S = 2.0
_CACHE_ENTRIES_MAX = 4096
_USE_WRITTEN_EVERY_S = 60.0
_CHECKS_AT_ONCE = 2
_CHECKS_WAITING_MAX = 64


class AccountError(Exception):
    """What cannot be done with an account; the message says why."""


class TooBusy(AccountError):
    """Too many passwords are being checked: try again later."""


@dataclass(frozen=True)
class Identity:
    """Who shows a token. `user`: the account, or "token:NAME"; `expires`: Unix seconds, None: when revoked."""

    user: str
    role: Role
    expires: float | None


@dataclass(frozen=True)
class User:
    """An account as lists show it."""

    name: str
    role: Role
    created_s: float


@dataclass(frozen=True)
class TokenInfo:
    """A token as lists show it: never the token."""

    name: str
    role: Role
    created_s: float
    expires_s: float | None
    used_s: float | None


class Accounts:
    """All of it is in the store: every replica sees the same, what is revoked within CACHE_S. Every method may raise
    StoreError."""

    def __init__(self, store: Store, cost: Cost | None = None, now_s: Callable[[], float] = time.time,
                 clock: Callable[[], float] = time.monotonic, *,
                 keys: Mapping[Role, str] | None = None) -> None:  # fmt: skip
        """`keys`: of the configuration, which programs show as tokens; empty ones are nobody's."""
        self._store = store
        self._cost = cost or passwords.DEFAULT_COST
        self._now_s = now_s
        self._clock = clock
        self._hashers = ThreadPoolExecutor(_CHECKS_AT_ONCE, "password")
        self._checks = 0
        self._nobody = passwords.of_nobody(self._cost)
        self._keys = {_digest(key): Identity(f"key:{role}", role, None) for role, key in (keys or {}).items() if key}
        self._cache: OrderedDict[bytes, tuple[Identity, float]] = OrderedDict()
        self._generation = 0  # grows with each change here: an answer from before it is not kept
        self._use_written: OrderedDict[bytes, float] = OrderedDict()

    def close(self) -> None:
        """Ends its threads; the store stays open."""
        self._hashers.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------------------------------------ users

    async def ensure_first(self, password: str = "", show: TextIO | None = None, folder: Path | None = None) -> str:
        """Where there is no account, makes the operator "admin" with this password, or with one that is made up and
        shown once on stderr; where that goes into the system's log, it is put into a file in `folder` instead. The
        name of the account that was made; empty: there was one."""
        if await self.users():
            return ""
        chosen = password or secrets.token_urlsafe(12)
        try:
            await self.add_user(FIRST_USER, "operator", chosen)
        except AccountError:
            if await self.users():
                return ""  # another replica was quicker
            raise
        if not password:
            print(_announcement(chosen, folder), file=show or sys.stderr, flush=True)
        return FIRST_USER

    async def add_user(self, name: str, role: str, password: str) -> None:
        """AccountError: there is one of that name, or the name, role or password cannot be used."""
        _check_name(name)
        _check_role(role)
        row = {"id": name, "role": role, "password": await self._hash(password), "created_s": self._now_s()}

        def work(connection: sa.Connection) -> None:
            try:
                connection.execute(sa.insert(tables.accounts).values(row))
            except IntegrityError:
                raise AccountError(f"there is a user {name} already") from None

        await self._store.change(work)

    async def remove_user(self, name: str) -> None:
        """And ends its sessions. The last operator stays: nobody could undo it."""

        def work(connection: sa.Connection) -> None:
            role = self._role(connection, name)
            if role == "operator" and self._operators(connection) == 1:
                raise AccountError(f"{name} is the last operator: add another one first")
            connection.execute(sa.delete(tables.sessions).where(tables.sessions.c.username == name))
            connection.execute(sa.delete(tables.accounts).where(tables.accounts.c.id == name))

        await self._store.change(work)
        self._forget()

    async def set_password(self, name: str, password: str) -> None:
        """And ends the sessions that the old one has begun."""
        stored = await self._hash(password)

        def work(connection: sa.Connection) -> None:
            self._role(connection, name)
            connection.execute(sa.update(tables.accounts).where(tables.accounts.c.id == name).values(password=stored))
            connection.execute(sa.delete(tables.sessions).where(tables.sessions.c.username == name))

        await self._store.change(work)
        self._forget()

    async def users(self) -> list[User]:
        """By name."""
        query = sa.select(tables.accounts).order_by(tables.accounts.c.id)
        rows = await self._store.read(lambda connection: connection.execute(query).all())
        return [User(row.id, cast(Role, row.role), row.created_s) for row in rows]

    async def check_password(self, name: str, password: str) -> Identity | None:
        """The user, if that is the password. Takes as long for a user that does not exist. TooBusy."""
        query = sa.select(tables.accounts).where(tables.accounts.c.id == name)
        is_possible = bool(_NAME.fullmatch(name)) and len(password) <= passwords.LENGTH_MAX
        row = await self._store.read(lambda connection: connection.execute(query).first()) if is_possible else None
        if self._checks >= _CHECKS_WAITING_MAX:
            raise TooBusy("too many log-ins at once: try again in some seconds")
        self._checks += 1
        try:
            is_right = await asyncio.get_running_loop().run_in_executor(
                self._hashers, passwords.matches, password[: passwords.LENGTH_MAX],
                self._nobody if row is None else row.password,
            )  # fmt: skip
        finally:
            self._checks -= 1
        return Identity(row.id, cast(Role, row.role), None) if row is not None and is_right else None

    # ------------------------------------------------------------------------------------------------ tokens

    async def create_session(self, user: str, ttl: float) -> str:
        """A token for `ttl` seconds with the user's role; it is kept as a hash alone. Ends the expired ones."""
        token = _new_token()
        now_s = self._now_s()
        row = {"id": _digest(token), "username": user, "created_s": now_s, "expires_s": now_s + ttl, "used_s": now_s}

        def work(connection: sa.Connection) -> None:
            self._role(connection, user)
            connection.execute(sa.delete(tables.sessions).where(tables.sessions.c.expires_s <= now_s))
            connection.execute(sa.insert(tables.sessions).values(row))

        await self._store.change(work)
        return token

    async def create_token(self, name: str, role: str, ttl: float | None) -> str:
        """A token for a program, for `ttl` seconds or (None) until it is revoked. AccountError: the name is taken."""
        _check_name(name)
        _check_role(role)
        token = _new_token()
        now_s = self._now_s()
        row = {"id": _digest(token), "name": name, "role": role, "created_s": now_s,
               "expires_s": None if ttl is None else now_s + ttl, "used_s": None}  # fmt: skip

        def work(connection: sa.Connection) -> None:
            gone = (tables.api_tokens.c.name == name) & (tables.api_tokens.c.expires_s <= now_s)
            connection.execute(sa.delete(tables.api_tokens).where(gone))
            try:
                connection.execute(sa.insert(tables.api_tokens).values(row))
            except IntegrityError:
                raise AccountError(f"there is a token {name} already: revoke it, or take another name") from None

        await self._store.change(work)
        return token

    async def tokens(self) -> list[TokenInfo]:
        """Those of programs, by name; also the expired ones."""
        query = sa.select(tables.api_tokens).order_by(tables.api_tokens.c.name)
        rows = await self._store.read(lambda connection: connection.execute(query).all())
        return [TokenInfo(row.name, cast(Role, row.role), row.created_s, row.expires_s, row.used_s) for row in rows]

    async def lookup(self, token: str) -> Identity | None:
        """Who shows it; None: nobody, or not any more."""
        if self._keys and len(token) <= _KEY_MAX and token.isascii():
            named = self._keys.get(_digest(token))
            if named is not None:
                return named
        if not token.startswith(_TOKEN_PREFIX) or len(token) > _TOKEN_MAX or not token.isascii():
            return None
        digest = _digest(token)
        now_s = self._now_s()
        cached = self._cache.get(digest)
        if cached is not None and self._clock() < cached[1]:
            identity: Identity | None = cached[0]
        else:
            generation, began_s = self._generation, self._clock()
            identity = await self._store.read(lambda connection: _find(connection, digest))
            self._cache.pop(digest, None)
            if identity is not None and generation == self._generation:
                self._cache[digest] = (identity, began_s + CACHE_S)
                while len(self._cache) > _CACHE_ENTRIES_MAX:
                    self._cache.popitem(last=False)
        if identity is None or (identity.expires is not None and identity.expires <= now_s):
            return None
        self._note_use(digest, now_s)
        return identity

    async def revoke(self, token: str) -> bool:
        """Ends a session or a program's token, for instance at log-out; whether there was one."""
        digest = _digest(token)

        def work(connection: sa.Connection) -> bool:
            return any(
                connection.execute(sa.delete(table).where(table.c.id == digest)).rowcount
                for table in (tables.sessions, tables.api_tokens)
            )

        was_there = await self._store.change(work)
        self._forget()
        return was_there

    async def revoke_token(self, name: str) -> None:
        """Ends a program's token by its name. AccountError: there is none."""

        def work(connection: sa.Connection) -> None:
            if not connection.execute(sa.delete(tables.api_tokens).where(tables.api_tokens.c.name == name)).rowcount:
                raise AccountError(f"there is no token {name}")

        await self._store.change(work)
        self._forget()

    # ------------------------------------------------------------------------------------------------ inside

    async def _hash(self, password: str) -> str:
        if not passwords.LENGTH_MIN <= len(password) <= passwords.LENGTH_MAX:
            raise AccountError(f"a password has {passwords.LENGTH_MIN} to {passwords.LENGTH_MAX} characters, "
                               f"not {len(password)}")  # fmt: skip
        return await asyncio.get_running_loop().run_in_executor(self._hashers, passwords.make, password, self._cost)

    def _role(self, connection: sa.Connection, name: str) -> str:
        role = connection.execute(sa.select(tables.accounts.c.role).where(tables.accounts.c.id == name)).scalar()
        if role is None:
            raise AccountError(f"there is no user {name}")
        return str(role)

    def _operators(self, connection: sa.Connection) -> int:
        """Held until the transaction ends, or two could remove each other at the same time."""
        query = sa.select(tables.accounts.c.id).where(tables.accounts.c.role == "operator").with_for_update()
        return len(connection.execute(query).all())

    def _forget(self) -> None:
        self._generation += 1
        self._cache.clear()

    def _note_use(self, digest: bytes, now_s: float) -> None:
        """Writes the time of the last use, now and then: nobody waits for it."""
        if now_s - self._use_written.get(digest, -_USE_WRITTEN_EVERY_S) < _USE_WRITTEN_EVERY_S:
            return
        self._use_written[digest] = now_s
        while len(self._use_written) > _CACHE_ENTRIES_MAX:
            self._use_written.popitem(last=False)

        def work(connection: sa.Connection) -> None:
            for table in (tables.sessions, tables.api_tokens):
                connection.execute(sa.update(table).where(table.c.id == digest).values(used_s=now_s))

        task = asyncio.ensure_future(self._store.change(work))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())


def _announcement(password: str, folder: Path | None) -> str:
    how = f"change it with: orion-controller user passwd {FIRST_USER}"
    if folder is None or not _is_logged(sys.stderr):
        return (
            f"orion-controller: the first account is {FIRST_USER!r} with the password {password}\n"
            f"orion-controller: it is not shown again; {how}"
        )
    path = folder / PASSWORD_FILE
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        os.fchmod(fd, 0o600)
        file.write(password + "\n")
    return f"orion-controller: the password of the first account {FIRST_USER!r} is in {path}; {how}, remove the file"


def _is_logged(stream: TextIO) -> bool:
    """Whether systemd keeps what is written there."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _find(connection: sa.Connection, digest: bytes) -> Identity | None:
    session = connection.execute(
        sa.select(tables.sessions.c.username, tables.accounts.c.role, tables.sessions.c.expires_s)
        .join(tables.accounts, tables.accounts.c.id == tables.sessions.c.username)
        .where(tables.sessions.c.id == digest)
    ).first()
    if session is not None:
        return Identity(session.username, cast(Role, session.role), session.expires_s)
    token = connection.execute(sa.select(tables.api_tokens).where(tables.api_tokens.c.id == digest)).first()
    return None if token is None else Identity(f"token:{token.name}", cast(Role, token.role), token.expires_s)


def _new_token() -> str:
    return _TOKEN_PREFIX + secrets.token_urlsafe(32)


def _digest(token: str) -> bytes:
    """A fast hash will do: a token is 256 random bits, nobody guesses it."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise AccountError(f"a name {name!r}: 1 to 64 of A-Z a-z 0-9 . _ @ -, the first a letter or digit")


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise AccountError(f"a role {role!r}: it is one of {', '.join(ROLES)}")
