"""A session: one client process on this server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from orion_server.slices import Owner
from orion_server.worker_process import WorkerProcess

_MAX_BYTES = (1 << 63) - 1
_ENGINE_COUNTERS = (
    "busy_ns",
    "looking_ns",
    "asleep_ns",
    "operations",
    "launches",
    "launches_timed",
    "launches_timed_ns",
    "launches_handed",
)


@dataclass(eq=False)
class Session:
    """One client process on this server, and the worker that is its own."""

    id: str
    token: bytes
    worker: WorkerProcess
    pid: int
    program: str
    devices: list[int]
    since: float
    owner: Owner
    allocation: str = ""  # of the pool's controller
    transport: str = ""
    connected: bool = False
    asked_for_ucx: bool = False
    deadline: asyncio.TimerHandle | None = None
    stages: dict[str, int] = field(default_factory=dict)
    bound_at_s: float = 0.0
    stats: dict[str, Any] = field(default_factory=dict)

    def used_bytes(self, ordinal: int) -> int:
        """Device memory that the session holds, as its worker last told."""
        used = self.stats.get("used_bytes")
        value = used.get(ordinal, 0) if isinstance(used, dict) else 0
        return value if isinstance(value, int) and value >= 0 else 0

    def engine_counters(self) -> dict[str, int]:
        """Of its engine, as its worker last told. A worker is its tenant's: what is no counter is left out."""
        told = self.stats.get("engine")
        values = {name: told.get(name) for name in _ENGINE_COUNTERS} if isinstance(told, dict) else {}
        return {name: v for name, v in values.items() if isinstance(v, int) and 0 <= v <= _MAX_BYTES}
