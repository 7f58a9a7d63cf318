"""Servers as a controller sees them, without sockets: for tests of what is pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from orion_controller.pool import Outcome, Pool
from wire import pool as wire
from wire.control import WIRE_VERSION
from wire.ticket import Ticket


@dataclass
class SimulatedServer:
    """Keeps what a server keeps: sessions, and what their allocations have."""

    name: str
    gpus: int = 2
    capacity_mib: int = 16000
    max_vgpus: int = 4
    instance: str = "instance-1"
    sessions: dict[str, wire.SessionReport] = field(default_factory=dict)
    held: dict[str, wire.Held] = field(default_factory=dict)
    made: int = 0
    reports: list[wire.VgpuReport] | None = None  # as last made, until something changes

    def register(self) -> wire.Register:
        offered = [
            wire.PoolGpu(
                ordinal=o,
                uuid=f"GPU-{self.name}-{o}",
                name="softgpu (CPU)",
                total_mib=self.capacity_mib + 500,
                capacity_mib=self.capacity_mib,
                max_vgpus=self.max_vgpus,
            )
            for o in range(self.gpus)
        ]
        return wire.Register(
            id=1,
            server=self.name,
            instance=self.instance,
            address=f"{self.name}:9960",
            wire=WIRE_VERSION,
            gpus=offered,
            host=f"boot-{self.name}",
            held=list(self.held.values()),
            sessions=list(self.sessions.values()),
        )

    def heartbeat(self) -> wire.Heartbeat:
        return wire.Heartbeat(
            id=2, server=self.name, instance=self.instance, sessions=list(self.sessions.values()), vgpus=self.vgpus()
        )

    def vgpus(self) -> list[wire.VgpuReport]:
        if self.reports is None:
            self.reports = self._made_reports()
        return self.reports

    def _made_reports(self) -> list[wire.VgpuReport]:
        return [
            wire.VgpuReport(
                vgpu=f"vgpu-{item.allocation}-{ordinal}",
                allocation=item.allocation,
                ordinal=ordinal,
                quota_mib=item.gmem_mib,
                used_mib=10,
                ratio=item.ratio,
                ratio_policy="hard",
                achieved_percent=item.ratio / 2,
                throttled_ms=0,
                launches=1,
                sessions=1,
            )
            for item in self.held.values()
            for ordinal in item.ordinals
        ]

    def attach(self, ticket: Ticket, pid: int = 1) -> str:
        """A client comes with its ticket; the session's name."""
        assert ticket.server == self.name
        self.reports = None
        self.made += 1
        session = f"s-{self.name}-{self.made}"
        self.sessions[session] = wire.SessionReport(
            session=session,
            allocation=ticket.allocation,
            pid=pid,
            uid=1000,
            host="boot",
            program="train.py",
            transport="tcp",
            since_s=0.0,
        )
        held = self.held.get(ticket.allocation)
        if held is None:
            self.held[ticket.allocation] = wire.Held(
                allocation=ticket.allocation,
                group=ticket.group,
                ordinals=list(ticket.ordinals),
                gmem_mib=ticket.gmem_mib,
                ratio=ticket.ratio,
                ratio_policy="hard",
                shared=ticket.shared,
            )
        elif not ticket.shared:
            held.ordinals += ticket.ordinals
        return session

    def end(self, session: str) -> None:
        self.reports = None
        allocation = self.sessions.pop(session).allocation
        if all(s.allocation != allocation for s in self.sessions.values()):
            self.held.pop(allocation, None)

    def beat(self, pool: Pool, now_s: float) -> Outcome | None:
        """A heartbeat, and a registration where that is asked for."""
        out = pool.heartbeat(self.heartbeat(), now_s, now_s)
        return pool.register(self.register(), now_s, now_s) if out is None else out


def wish(**values: object) -> wire.Allocate:
    return wire.Allocate(**({"id": 1, "wire": WIRE_VERSION, "vgpu": 1, "uid": 1000, "node": "box"} | values))  # type: ignore[arg-type]
