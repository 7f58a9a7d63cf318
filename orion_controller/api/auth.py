"""Who asks: tokens, the browser's cookie, and how often somebody may guess a password."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol
from urllib.parse import urlsplit

from aiohttp import web

from orion_controller.api.models import Role
from orion_controller.backend import ServiceError

COOKIE = "orion_token"


class Identity(Protocol):
    """Who shows a token. `expires`: Unix seconds; None: when it is revoked."""

    @property
    def user(self) -> str: ...
    @property
    def role(self) -> Role: ...
    @property
    def expires(self) -> float | None: ...


class Accounts(Protocol):
    """What the API needs of store.Accounts."""

    async def check_password(self, name: str, password: str) -> Identity | None: ...
    async def create_session(self, user: str, ttl: float) -> str: ...
    async def lookup(self, token: str) -> Identity | None: ...
    async def revoke(self, token: str) -> bool: ...


class Refusal(ServiceError):
    """A refusal that carries headers."""

    def __init__(self, status: int, code: str, message: str, hint: str = "", **headers: str) -> None:
        super().__init__(status, code, message, hint)
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


# ------------------------------------------------------------------------------------------------ credentials


def token_of(request: web.Request, bearer_only: bool = False) -> tuple[str, bool]:
    """The token that a request shows, and whether it is a cookie, which browsers send by themselves."""
    header = request.headers.get("Authorization", "")
    if header:
        scheme, _, token = header.partition(" ")
        return (token.strip(), False) if scheme.lower() == "bearer" else ("", False)
    return ("", False) if bearer_only else (request.cookies.get(COOKIE, ""), True)


async def identify(
    request: web.Request, accounts: Accounts, role: Role, *, bearer_only: bool = False, changes: bool = False
) -> Identity:
    """Who asks, if that role is theirs. Refusal 401 or 403."""
    token, is_cookie = token_of(request, bearer_only)
    identity = await accounts.lookup(token) if token else None
    if identity is None:
        what = "the token is unknown, has expired or was revoked" if token else "this needs a log-in"
        hint = "log in again: POST /api/v1/login, or `orionctl login`; programs send `Authorization: Bearer TOKEN`"
        raise Refusal(401, "unauthorized", what, hint, WWW_Authenticate='Bearer realm="orion"')
    if is_cookie and changes and not is_same_origin(request):
        raise Refusal(403, "cross_site", "a change with a cookie must come from this controller's own pages",
                      "programs send `Authorization: Bearer TOKEN` instead of the cookie")  # fmt: skip
    if role == "operator" and identity.role != "operator":
        raise Refusal(403, "forbidden", f"{identity.user} is a viewer: this needs the role operator",
                      "ask an operator, or log in as one")  # fmt: skip
    return identity


def is_same_origin(request: web.Request, when_unknown: bool = False) -> bool:
    """Whether a page of this controller makes the request. Browsers tell it; `when_unknown`: for others."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("Origin")
    if origin is None:
        return when_unknown
    try:
        # Not the scheme: behind a proxy that ends TLS, this side does not know it.
        return bool(request.host) and urlsplit(origin).netloc.lower() == request.host.lower()
    except ValueError:
        return False


def address_key(remote: str | None) -> str:
    """Who counts as one machine: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        address = ipaddress.ip_address((remote or "").partition("%")[0])
    except ValueError:
        return remote or ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


# ------------------------------------------------------------------------------------------------ guessing


class Backoff:
    """Counts failures by key. After `free` of them each further one doubles the wait, from 1 s to `most_s`. A key is
    forgotten `forget_s` after its last failure; the table is bounded, the oldest go first."""

    def __init__(
        self, clock: Callable[[], float], free: int, most_s: float, forget_s: float = 900.0, keys_most: int = 10_000
    ) -> None:
        self._clock = clock
        self._free, self._most_s, self._forget_s, self._keys_most = free, most_s, forget_s, keys_most
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()  # count, when the last was

    def wait_s(self, key: str) -> float:
        """How long until the next try; 0: now."""
        count, last_s = self._failures.get(key, (0, 0.0))
        if count < self._free or self._clock() - last_s >= self._forget_s:
            return 0.0
        pause_s = min(2.0 ** min(count - self._free, 30), self._most_s)
        return max(0.0, last_s + pause_s - self._clock())

    def count(self, key: str) -> None:
        """A try that failed, or whose end is not known yet: a thousand at once must not all be free."""
        now_s = self._clock()
        count, last_s = self._failures.pop(key, (0, now_s))
        self._failures[key] = ((0 if now_s - last_s >= self._forget_s else count) + 1, now_s)
        while len(self._failures) > self._keys_most:
            self._failures.popitem(last=False)

    def take_back(self, key: str) -> None:
        """One that was counted and did not fail."""
        count, last_s = self._failures.get(key, (0, 0.0))
        if count > 1:
            self._failures[key] = (count - 1, last_s)
        else:
            self._failures.pop(key, None)

    def clear(self, key: str) -> None:
        self._failures.pop(key, None)


class LoginGuard:
    """Three counts of failed log-ins. A user at an address soon waits long, an address later; a user from anywhere
    waits 10 s at most, so that a stranger's guesses slow each other down but cannot lock the operator out."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._pairs = Backoff(clock, free=5, most_s=300.0)
        self._addresses = Backoff(clock, free=20, most_s=300.0)
        self._users = Backoff(clock, free=100, most_s=10.0)

    def _keys(self, user: str, remote: str | None) -> tuple[tuple[Backoff, str], ...]:
        address = address_key(remote)
        return (self._pairs, f"{address} {user}"), (self._addresses, address), (self._users, user)

    def enter(self, user: str, remote: str | None) -> None:
        """Before a password is checked. Refusal 429; otherwise it counts as failed until `passed` or `not_tried`."""
        keys = self._keys(user, remote)
        wait_s = max(counts.wait_s(key) for counts, key in keys)
        if wait_s > 0:
            seconds = int(wait_s) + 1
            raise Refusal(429, "too_many_logins", f"too many failed log-ins: try again in {seconds} s",
                          "a forgotten password is set anew with `orion-controller user passwd`",
                          Retry_After=str(seconds))  # fmt: skip
        for counts, key in keys:
            counts.count(key)

    def passed(self, user: str, remote: str | None) -> None:
        """The password was right. The address keeps its other failures: somebody with an account of their own could
        wipe them between guesses at another's."""
        pair, address, name = self._keys(user, remote)
        pair[0].clear(pair[1])
        address[0].take_back(address[1])
        name[0].take_back(name[1])

    def not_tried(self, user: str, remote: str | None) -> None:
        """The password was not checked after all."""
        for counts, key in self._keys(user, remote):
            counts.take_back(key)
