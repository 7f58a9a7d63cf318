"""What the routes share: the pool, the accounts, and how this controller is set up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from orion_controller.api.auth import Accounts, LoginGuard, Refusal
from orion_controller.api.lists import Lists
from orion_controller.backend import Backend
from orion_controller.metrics import Metrics

if TYPE_CHECKING:
    from orion_controller.api.routes import Route

SESSION_TTL_S = 12 * 3600.0


@dataclass
class Context:
    """`clock` for intervals, `wall_clock` for Unix time. `opened`: routes that ask for no log-in here."""

    backend: Backend
    accounts: Accounts
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    secure_cookies: bool = False
    session_ttl_s: float = SESSION_TTL_S
    follower_reads: bool = False
    metrics: Metrics = field(default_factory=Metrics)
    opened: frozenset[Route] = frozenset()

    def __post_init__(self) -> None:
        self.lists = Lists(self.backend, self.clock)
        self.guard = LoginGuard(self.clock)
        self.document = b""  # OpenAPI, once the routes are known

    def require_leader(self, request: web.Request) -> None:
        """Refusal: 307 to where the leader is, or 503."""
        if self.backend.is_leader:
            return
        leader = self.leader_url()
        if leader:
            raise Refusal(307, "not_leader", "another replica leads the pool", f"ask {leader}",
                          Location=leader + request.raw_path)  # fmt: skip
        raise Refusal(503, "not_leader", "no replica leads the pool now", "try again in some seconds", Retry_After="2")

    def leader_url(self) -> str:
        """Where another replica serves that leads; empty: nowhere, or it is this one."""
        url = "" if self.backend.is_leader else self.backend.leader_url.rstrip("/")
        return url if url.startswith(("http://", "https://")) else ""
