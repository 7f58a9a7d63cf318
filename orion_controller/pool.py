"""The pool's state: servers, allocations, who waits. Pure: no I/O; the time is an argument.

An allocation lives from `allocate` (a reservation: tickets are out, nobody has come) over its first session until its
last session has ended, as the servers report it; one that a group shares or has reserved outlives its sessions for a
while. A server that is silent for longer than its lease is lost: its GPUs leave the pool, and what was on them. It
comes back with all that it holds, which is adopted.

Two clocks: `now_s` is monotonic and decides; `wall_s` (Unix) is what people and tickets see.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from orion_controller.allocator import (
    AllocationError,
    Allocator,
    Gpu,
    Limits,
    NeverFits,
    NoRoom,
    Placement,
    Request,
    Rule,
)
from orion_controller.api import models
from orion_controller.backend import AllocationRecord
from wire import pool as wire
from wire.ticket import Ticket

CUDA_ERROR_INVALID_VALUE = 1
CUDA_ERROR_OUT_OF_MEMORY = 2
CUDA_ERROR_DEVICE_UNAVAILABLE = 46

ATTACH_WITHIN_S = 15.0  # from a ticket to its session
EVERYBODY_ELSE = "*"  # limits of groups that have none of their own


class Refused(Exception):
    """A request of a client or a server that is answered with an error: a CUresult, a sentence, what to do."""

    def __init__(self, code: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class Absent(Refused):
    """What was named is not there."""


class Away(Refused):
    """A server that it takes is not connected now."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(CUDA_ERROR_DEVICE_UNAVAILABLE, message, hint)


@dataclass(frozen=True)
class Policies:
    """What an operator can choose."""

    rule: Rule = Rule.BINPACK
    patience_s: float = 30.0
    idle_s: float = 30.0  # how long a group's allocation outlives its last session
    lease_s: float = wire.LEASE_S
    heartbeat_s: float = wire.HEARTBEAT_S
    attach_within_s: float = ATTACH_WITHIN_S


@dataclass(eq=False)
class Server:
    """A server of the pool as it last told of itself."""

    said: wire.Register
    since_s: float  # wall
    heard_s: float  # monotonic
    heard_wall_s: float
    is_lost: bool = False
    gpus: dict[int, wire.GpuReport] = field(default_factory=dict)
    vgpus: dict[str, dict[str, wire.VgpuReport]] = field(default_factory=dict)  # by allocation and name
    sessions: dict[str, wire.SessionReport] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.said.server


@dataclass(eq=False)
class Allocation:
    """vGPUs that belong together. `placements`: one, and one more for each server that has come back with its part."""

    record: AllocationRecord
    placements: list[int]
    tickets_until_s: float = 0.0  # monotonic: until then somebody may still come with a ticket
    gone_at_s: float | None = None  # monotonic: ends then unless a session comes
    sessions: dict[str, set[str]] = field(default_factory=dict)  # by server
    is_stored: bool = False  # else a restart forgets it, and nobody has been promised that it does not

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def session_count(self) -> int:
        return sum(len(ids) for ids in self.sessions.values())

    @property
    def servers(self) -> list[str]:
        """In device order."""
        return list(dict.fromkeys(server for server, _ in self.record.places))

    @property
    def state(self) -> models.GroupState:
        if self.session_count:
            return "active"
        return "idle" if self.record.was_used else "reserved"


@dataclass(eq=False)
class Waiting:
    """A client in the queue."""

    ticket: int
    wish: wire.Allocate
    request: Request
    since_wall_s: float
    heard_s: float
    reason: str


@dataclass
class Outcome:
    """What a change did, for the store, the event log and those who wait."""

    saved: list[Allocation] = field(default_factory=list)
    ended: list[Allocation] = field(default_factory=list)
    served: list[tuple[Waiting, Allocation]] = field(default_factory=list)
    notes: list[tuple[str, str, str, str]] = field(default_factory=list)  # level, kind, subject, message

    def note(self, level: str, kind: str, subject: str, message: str) -> None:
        self.notes.append((level, kind, subject, message))


class Pool:
    """Belongs to one thread: each change is whole before the next."""

    def __init__(self, policies: Policies | None = None) -> None:
        self.policies = policies or Policies()
        self.servers: dict[str, Server] = {}
        self.allocations: dict[str, Allocation] = {}
        self.waiting: dict[int, Waiting] = {}
        self.draining: set[str] = set()  # servers, also those that are not here now
        self.limits: dict[str, models.LimitsBody] = {}
        self.allocator = Allocator(self.policies.patience_s)
        self._default: tuple[int, int] | None = None  # as computed for the servers of now
        self._at_host: dict[str, str] = {}  # server by boot id
        self._of_group: dict[str, set[str]] = {}  # allocations by ORION_GROUP_ID
        self._absent: dict[str, AllocationRecord] = {}  # from the store, until their servers come or they expire
        self._expected: Counter[str] = Counter()  # groups of these

    # ------------------------------------------------------------------------------------------------ start

    def restore(self, records: Iterable[AllocationRecord], limits: dict[str, models.LimitsBody], drained: set[str],
                now_s: float, wall_s: float) -> None:  # fmt: skip
        """What a controller knows that has just become the leader. Allocations come to life with their servers."""
        self.draining = set(drained)
        for group, body in limits.items():
            self.set_limits(group, body)
        for record in records:
            if record.expires_s is None or record.expires_s > wall_s:
                self._absent[record.id] = record
                self._expected[record.group] += 1

    def forget_absent(self) -> list[AllocationRecord]:
        """Stored allocations whose servers have not come in time; called once, some leases after the start."""
        gone = list(self._absent.values())
        self._absent.clear()
        self._expected.clear()
        return gone

    # ------------------------------------------------------------------------------------------------ servers

    def register(self, said: wire.Register, now_s: float, wall_s: float) -> Outcome:
        """A server joins, comes back or has changed; Refused when its name is another's."""
        out = Outcome()
        before = self.servers.get(said.server)
        is_other = before is not None and before.said.instance != said.instance
        if before is not None and is_other and not before.is_lost and before.said.address != said.address:
            raise Refused(CUDA_ERROR_INVALID_VALUE,
                          f"{said.server} is in the pool already, at {before.said.address}",
                          "give each server a name of its own: orion-server --name")  # fmt: skip
        if len({gpu.ordinal for gpu in said.gpus}) != len(said.gpus):
            raise Refused(CUDA_ERROR_INVALID_VALUE, f"{said.server} names a GPU twice")
        server = Server(said, wall_s, now_s, wall_s)
        if before is not None and not is_other:
            server.since_s = before.since_s
        if before is not None and not before.is_lost:
            self._detach(said.server)
        self.servers[said.server] = server
        self._default = None
        self._at_host[said.host] = said.server
        self.allocator.add_node(said.server, [
            Gpu(said.server, g.ordinal, g.uuid, g.capacity_mib, g.max_vgpus, g.ratio_percent) for g in said.gpus
        ])  # fmt: skip
        self.allocator.set_accepting(said.server, not (said.draining or said.server in self.draining))
        self._adopt_all(server, now_s, wall_s, out)
        if before is None or is_other or before.is_lost:
            count = len(said.gpus)
            out.note("info", "node.registered", said.server,
                     f"{count} GPU{'' if count == 1 else 's'} at {said.address}")  # fmt: skip
        self._take_sessions(server, said.sessions, now_s, wall_s, out)
        self._serve(now_s, wall_s, out)
        return out

    def heartbeat(self, said: wire.Heartbeat, now_s: float, wall_s: float) -> Outcome | None:
        """None: this server has to register (again)."""
        server = self.servers.get(said.server)
        if server is None or server.is_lost or server.said.instance != said.instance:
            return None
        out = Outcome()
        server.heard_s, server.heard_wall_s = now_s, wall_s
        for report in said.gpus:
            server.gpus[report.ordinal] = report
        if said.vgpus is not None:
            if said.is_whole:
                server.vgpus = {}
            for vgpu in said.vgpus:
                server.vgpus.setdefault(vgpu.allocation, {})[vgpu.vgpu] = vgpu
        if said.draining != server.said.draining:
            server.said.draining = said.draining
            self.allocator.set_accepting(said.server, not (said.draining or said.server in self.draining))
        if said.sessions is not None:
            if any(s.allocation and s.allocation not in self.allocations for s in said.sessions):
                return None  # it holds what nobody here knows of
            self._take_sessions(server, said.sessions, now_s, wall_s, out)
        if out.ended:
            self._serve(now_s, wall_s, out)
        return out

    def leave(self, name: str, instance: str, now_s: float, wall_s: float) -> Outcome:
        """A server goes in good order."""
        out = Outcome()
        server = self.servers.get(name)
        if server is not None and server.said.instance == instance:
            if not server.is_lost:
                self._drop_server(server, now_s, wall_s, out)
            del self.servers[name]
            out.note("info", "node.left", name, "has left the pool")
        return out

    def forget_server(self, name: str) -> None:
        """An operator takes a lost server off the list."""
        server = self.servers.get(name)
        if server is None:
            raise Absent(CUDA_ERROR_INVALID_VALUE, f"there is no node {name}")
        if not server.is_lost:
            raise Refused(CUDA_ERROR_INVALID_VALUE, f"{name} is in the pool", "stop its orion-server first")
        del self.servers[name]

    def set_draining(self, name: str, draining: bool, now_s: float, wall_s: float) -> Outcome:
        """No new vGPUs on a server, or again new ones."""
        server = self.servers.get(name)
        if server is None:
            raise Absent(CUDA_ERROR_INVALID_VALUE, f"there is no node {name}")
        (self.draining.add if draining else self.draining.discard)(name)
        if not draining:
            server.said.draining = False
        if not server.is_lost:
            self.allocator.set_accepting(name, not draining)
        out = Outcome()
        out.note("info", "node.draining" if draining else "node.accepting", name,
                 "takes no new vGPUs" if draining else "takes new vGPUs again")  # fmt: skip
        if not draining:
            self._serve(now_s, wall_s, out)
        return out

    def _detach(self, name: str) -> list[Allocation]:
        """A server's GPUs leave the pool. The allocations that had vGPUs there, without them."""
        self._default = None
        if self._at_host.get(self.servers[name].said.host) == name:
            del self._at_host[self.servers[name].said.host]
        lost = {placement.id for placement in self.allocator.remove_node(name)}
        left = {placement.id for placement in self.allocator.placements()}
        found = []
        for allocation in self.allocations.values():
            if lost.intersection(allocation.placements):
                allocation.placements = [p for p in allocation.placements if p in left]
                allocation.sessions.pop(name, None)
                found.append(allocation)
        return found

    def _drop_server(self, server: Server, now_s: float, wall_s: float, out: Outcome) -> None:
        """It is gone, for now or for ever. Allocations that have vGPUs elsewhere keep these."""
        server.is_lost = True
        server.gpus, server.vgpus, server.sessions = {}, {}, {}
        for allocation in self._detach(server.name):
            if not allocation.placements:
                self._end(allocation, f"{server.name} is gone", out)
            elif allocation.record.was_used and not allocation.session_count:
                self._unused(allocation, now_s, wall_s, out)

    def _adopt_all(self, server: Server, now_s: float, wall_s: float, out: Outcome) -> None:
        held = {item.allocation: item for item in server.said.held}
        for record in list(self._absent.values()):
            is_here = record.id in held or any(name == server.name for name, _ in record.places)
            if not is_here:
                continue
            allocation = self._add(record, [])
            # Nobody remembers which tickets are out.
            allocation.tickets_until_s = now_s + self.policies.attach_within_s
            if record.expires_s is not None:
                allocation.gone_at_s = now_s + max(0.0, record.expires_s - wall_s)
            elif record.was_used and not record.reserved:
                allocation.gone_at_s = now_s + self.policies.idle_s  # unless its sessions are told
        for item in held.values():
            self._adopt(server, item, now_s, wall_s, out)
        for allocation in list(self.allocations.values()):
            mine = [where for where in allocation.record.places if where[0] == server.name]
            if mine and allocation.id not in held:
                self._adopt_unused(allocation, server, tuple(mine), now_s, wall_s, out)

    def _adopt(self, server: Server, item: wire.Held, now_s: float, wall_s: float, out: Outcome) -> None:
        """What a server holds is so, whatever was known of it."""
        held = [(server.name, ordinal) for ordinal in item.ordinals]
        allocation = self.allocations.get(item.allocation)
        if allocation is None:
            record = AllocationRecord(
                id=item.allocation, group=item.group, shared=item.shared, reserved=False, gmem_mib=item.gmem_mib,
                ratio_percent=item.ratio, policy=item.ratio_policy, places=list(held), owner="", program="",
                since_s=wall_s,
            )  # fmt: skip
            allocation = self._add(record, [])
            out.note("info", "group.adopted", item.allocation, f"{server.name} has it and nobody else knew of it")
        record = allocation.record
        record.was_used, record.expires_s = True, None
        record.gmem_mib, record.ratio_percent, record.policy = item.gmem_mib, item.ratio, item.ratio_policy
        known = [where for where in record.places if where[0] == server.name]
        # More than it holds may be promised: a client that has two tickets comes twice.
        is_promised = not Counter(held) - Counter(known) and allocation.tickets_until_s > now_s
        if not is_promised and Counter(held) != Counter(known):
            record.places = [where for where in record.places if where[0] != server.name] + held
        self._place_again(allocation, tuple(known if is_promised else held))
        out.saved.append(allocation)

    def _adopt_unused(self, allocation: Allocation, server: Server, places: tuple[tuple[str, int], ...],
                      now_s: float, wall_s: float, out: Outcome) -> None:  # fmt: skip
        """What is given of a server that knows nothing of it: promised, reserved, or ended while nobody heard."""
        record = allocation.record
        may_come = not record.was_used or record.shared or record.reserved or allocation.tickets_until_s > now_s
        if may_come:
            self._place_again(allocation, places)
            if not allocation.session_count and record.was_used and not record.reserved:
                idle_s = self.policies.idle_s if record.shared else 0.0
                until_s = max(allocation.tickets_until_s, now_s + idle_s)
                allocation.gone_at_s = min(allocation.gone_at_s or until_s, until_s)
            if allocation.placements:
                return
        record.places = [where for where in record.places if where[0] != server.name]
        if not record.places:
            self._end(allocation, "its program has ended", out)
        elif record.was_used and not allocation.session_count:
            self._unused(allocation, now_s, wall_s, out)
        else:
            out.saved.append(allocation)

    def _place_again(self, allocation: Allocation, places: tuple[tuple[str, int], ...]) -> None:
        record = allocation.record
        present = tuple(where for where in places if where[1] in {g.ordinal for g in self._gpus_of(where[0])})
        if not present:
            return
        request = Request(record.group, len(present), max(1, record.gmem_mib), max(1, record.ratio_percent))
        allocation.placements.append(self.allocator.adopt(request, present, force=True).id)

    def _gpus_of(self, name: str) -> list[wire.PoolGpu]:
        server = self.servers.get(name)
        return server.said.gpus if server is not None else []

    def _take_sessions(
        self, server: Server, sessions: list[wire.SessionReport], now_s: float, wall_s: float, out: Outcome
    ) -> None:
        """All sessions of a server as it has just told them."""
        now = {s.session: s for s in sessions}
        changed = {s.allocation for s in server.sessions.values()} | {s.allocation for s in sessions}
        server.sessions = now
        for allocation_id in changed:
            allocation = self.allocations.get(allocation_id)
            if allocation is None:
                continue
            ids = {s.session for s in sessions if s.allocation == allocation_id}
            if ids:
                allocation.sessions[server.name] = ids
            else:
                allocation.sessions.pop(server.name, None)
            if ids and (not allocation.record.was_used or allocation.record.expires_s is not None):
                allocation.record.was_used, allocation.record.expires_s = True, None
                out.saved.append(allocation)
            if allocation.session_count:
                allocation.gone_at_s = None
            elif allocation.record.was_used and allocation.gone_at_s is None:
                self._unused(allocation, now_s, wall_s, out)

    # ------------------------------------------------------------------------------------------------ allocations

    def allocate(self, wish: wire.Allocate, now_s: float, wall_s: float) -> Allocation:
        """vGPUs for a client process; Refused (`Later` when a wait may help)."""
        joined = self._joined(wish, now_s, wall_s)
        if joined is not None:
            return joined
        if not any(not server.is_lost for server in self.servers.values()):
            raise Later("the pool has no servers at present", "start orion-server --controller on a GPU node")
        request = self.request(wish)
        try:
            placement = self.allocator.place(request)
        except AllocationError as error:
            raise refusal_of(error) from error
        return self.placed(placement, wish, now_s, wall_s)

    def reserve(self, wish: wire.Allocate, ttl_s: float, now_s: float, wall_s: float) -> Allocation:
        """vGPUs for a group that will come within `ttl_s`."""
        allocation = self.allocate(wish, now_s, wall_s)
        if not allocation.record.was_used:
            allocation.gone_at_s, allocation.record.expires_s = now_s + ttl_s, wall_s + ttl_s
            allocation.tickets_until_s = 0.0
        return allocation

    def join_queue(self, wish: wire.Allocate, reason: str, now_s: float, wall_s: float) -> Waiting:
        """Waits for what did not fit; Refused when it never will."""
        request = self.request(wish)
        try:
            ticket = self.allocator.wait(request, now_s)
        except AllocationError as error:
            raise Refused(_code(error), str(error), "ask for less: ORION_VGPU, ORION_GMEM, ORION_RATIO") from error
        waiting = Waiting(ticket, wish, request, wall_s, now_s, reason)
        self.waiting[ticket] = waiting
        return waiting

    def leave_queue(self, ticket: int) -> None:
        """Waits no more."""
        if self.waiting.pop(ticket, None) is not None:
            self.allocator.leave(ticket)

    def position(self, ticket: int) -> int:
        """In the queue, from 1."""
        return self.allocator.waiting().index(ticket) + 1

    def give_up(self, allocation_id: str, now_s: float, wall_s: float) -> Outcome:
        """The client does not come for its allocation."""
        out = Outcome()
        allocation = self.allocations.get(allocation_id)
        if allocation is not None and not allocation.session_count and not allocation.record.reserved:
            if not (allocation.record.shared and allocation.record.was_used):
                self._end(allocation, "its client gave up", out)
                self._serve(now_s, wall_s, out)
        return out

    def end(self, allocation_id: str, reason: str, now_s: float, wall_s: float) -> Outcome:
        """Gives everything back; the servers have been told to end its sessions."""
        out = Outcome()
        self._end(self.allocation(allocation_id), reason, out)
        self._serve(now_s, wall_s, out)
        return out

    def allocation(self, allocation_id: str) -> Allocation:
        """By its id, or its group's name where that has one allocation; Absent, or Away if it has yet to come back."""
        found = self.allocations.get(allocation_id)
        if found is not None:
            return found
        of_group = self._of_group.get(allocation_id, set())
        if len(of_group) == 1:
            return self.allocations[next(iter(of_group))]
        if of_group:
            raise Refused(CUDA_ERROR_INVALID_VALUE, f"the group {allocation_id} has {len(of_group)} allocations",
                          f"name one: {', '.join(sorted(of_group)[:8])}")  # fmt: skip
        for record in self._absent.values():
            if allocation_id in (record.id, record.group):
                names = ", ".join(dict.fromkeys(server for server, _ in record.places))
                raise Away(f"{allocation_id} is known from before the controller's start, but not yet back: {names}",
                           "again in a moment: it is back then, or forgotten (orionctl get nodes)")  # fmt: skip
        raise Absent(CUDA_ERROR_INVALID_VALUE, f"there is no group {allocation_id}: it has ended or never was",
                     "orionctl get groups")  # fmt: skip

    def resize(self, allocation: Allocation, gmem_mib: int, ratio_percent: int, *, back: bool = False) -> None:
        """Room for other sizes, on all its GPUs or on none; Refused. `back`: to those it had before, also where a
        server has gone meanwhile."""
        record = allocation.record
        if not back and not self.is_whole(allocation):
            away = next(s for s in allocation.servers if s not in self.servers or self.servers[s].is_lost)
            raise Away(f"{away}, where it has vGPUs, is away: what is free there is not known",
                       "try again when it is back: orionctl get nodes")  # fmt: skip
        done: list[int] = []
        try:
            for placement in allocation.placements:
                self.allocator.resize(placement, gmem_mib, ratio_percent)
                done.append(placement)
        except AllocationError as error:
            for placement in done:
                self.allocator.resize(placement, record.gmem_mib, record.ratio_percent)
            raise Refused(_code(error), str(error), "make another group smaller, or ask for less") from error

    def tickets(self, allocation: Allocation, now_s: float, wall_s: float) -> list[Ticket]:
        """In device order; a server stands more than once where a GPU is given twice."""
        until_s = wall_s + self.policies.attach_within_s
        allocation.tickets_until_s = now_s + self.policies.attach_within_s
        record = allocation.record
        runs: list[tuple[str, list[int]]] = []
        for server, ordinal in record.places:
            if runs and runs[-1][0] == server and ordinal not in runs[-1][1]:
                runs[-1][1].append(ordinal)
            else:
                runs.append((server, [ordinal]))
        return [
            Ticket(allocation=record.id, server=server, ordinals=tuple(ordinals), gmem_mib=record.gmem_mib,
                   ratio=record.ratio_percent, ratio_policy=record.policy, group=record.group, shared=record.shared,
                   expires_s=until_s)
            for server, ordinals in runs
        ]  # fmt: skip

    def tick(self, now_s: float, wall_s: float) -> Outcome:
        """What time alone does: leases, reservations, idle allocations, clients that wait no more."""
        out = Outcome()
        for server in list(self.servers.values()):
            silent_s = now_s - server.heard_s
            if not server.is_lost and silent_s > self.policies.lease_s:
                out.note("error", "node.lost", server.name, f"no heartbeat for {silent_s:.0f} s")
                self._drop_server(server, now_s, wall_s, out)
        for allocation in list(self.allocations.values()):
            if allocation.gone_at_s is not None and allocation.gone_at_s <= now_s:
                why = "was idle" if allocation.record.was_used else "nobody came for it"
                self._end(allocation, why, out)
        for waiting in list(self.waiting.values()):
            if now_s - waiting.heard_s > self.policies.lease_s:
                self.leave_queue(waiting.ticket)
        self._serve(now_s, wall_s, out)
        return out

    def set_limits(self, group: str, body: models.LimitsBody | None) -> None:
        """Of a group's name, or of all that have none of their own."""
        key = "" if group == EVERYBODY_ELSE else group
        if body is None:
            self.limits.pop(group, None)
            self.allocator.set_limits(key, None)
        else:
            self.limits[group] = body
            self.allocator.set_limits(key, Limits(body.vgpus, body.gmem_mib, body.ratio_percent))

    def default_size(self) -> tuple[int, int]:
        """MiB and percent of a vGPU whose client does not say: the smallest share that a server would give."""
        if self._default is None:
            self._default = self._smallest_share()
        return self._default

    def _smallest_share(self) -> tuple[int, int]:
        shares = [
            (gpu.capacity_mib // gpu.max_vgpus, max(1, gpu.ratio_percent // gpu.max_vgpus))
            for server in self.servers.values()
            if not server.is_lost
            for gpu in server.said.gpus
        ]
        if not shares:
            return 1, 1
        return max(1, min(mib for mib, _ in shares)), min(100, min(percent for _, percent in shares))

    # ------------------------------------------------------------------------------------------------ inside

    def request(self, wish: wire.Allocate) -> Request:
        """What the allocator is asked; Refused."""
        if wish.rule not in ("", "local-first", "binpack", "spread"):
            raise Refused(CUDA_ERROR_INVALID_VALUE, f"ORION_SCHEDULE_RULE={wish.rule} is not known",
                          "local-first, binpack or spread")  # fmt: skip
        if wish.ratio > 100:
            raise Refused(CUDA_ERROR_INVALID_VALUE, f"a ratio of {wish.ratio} %: a vGPU has 1 to 100 % of one GPU")
        gmem_mib, ratio_percent = self.default_size()
        rule = Rule(wish.rule) if wish.rule in ("binpack", "spread") else self.policies.rule
        try:
            return Request(
                wish.group,
                wish.vgpu or 1,
                wish.gmem_mib or gmem_mib,
                wish.ratio or ratio_percent,
                wish.cross_node,
                self._server_at(wish.host, wish.node),
                rule,
            )
        except AllocationError as error:
            raise Refused(CUDA_ERROR_INVALID_VALUE, str(error)) from error

    def _server_at(self, host: str, node: str) -> str:
        """The server on the client's machine: same boot, else same name."""
        local = self._at_host.get(host, "") if host else ""
        return local or (node if node in self.servers else "")

    def _joined(self, wish: wire.Allocate, now_s: float, wall_s: float) -> Allocation | None:
        """What a group shares already, or what has been reserved for it."""
        if not wish.group:
            return None
        shares = wish.res_group == "BOX"
        if any(allocation.record.slot for allocation in self.of_group(wish.group)):
            return self._joined_pod(wish, now_s, wall_s)
        for allocation in self.of_group(wish.group):
            if not self.is_whole(allocation):
                continue
            if shares and allocation.record.shared:
                return allocation
            free = not allocation.session_count and allocation.tickets_until_s <= now_s
            if free and (allocation.record.reserved or not allocation.record.was_used):
                allocation.record.shared = allocation.record.shared or shares
                allocation.tickets_until_s = now_s + self.policies.attach_within_s
                return allocation
        return None

    def is_whole(self, allocation: Allocation) -> bool:
        """All its servers are there."""
        return all(s in self.servers and not self.servers[s].is_lost for s in allocation.servers)

    def _joined_pod(self, wish: wire.Allocate, now_s: float, wall_s: float) -> Allocation:
        """The part of a pod that a process of one of its containers uses: the one that was reserved for what it asks
        for, of these the one with the fewest programs. Never other vGPUs than the pod's; Refused."""
        asked = (wish.vgpu or 1, wish.gmem_mib, wish.ratio)
        parts = [a for a in self.of_group(wish.group) if a.record.slot and self.is_whole(a)]
        if not parts:
            raise Away(
                "the server of this pod's vGPUs is away", "start the program again when it is back: orionctl get nodes"
            )
        part = min(parts, key=lambda a: (
            a.record.asked != asked, a.record.asked[0] != asked[0],
            a.session_count + (a.tickets_until_s > now_s), a.record.slot,
        ))  # fmt: skip
        part.tickets_until_s = now_s + self.policies.attach_within_s
        if part.gone_at_s is not None:
            until_s = now_s + 2 * self.policies.attach_within_s
            if part.gone_at_s < until_s:
                part.gone_at_s, part.record.expires_s = until_s, wall_s + 2 * self.policies.attach_within_s
        return part

    # ------------------------------------------------------------------------------------------------ for pods.py

    def of_group(self, group: str) -> list[Allocation]:
        """All with this ORION_GROUP_ID, by id."""
        return [self.allocations[allocation_id] for allocation_id in sorted(self._of_group.get(group, ()))]

    def is_expected(self, group: str) -> bool:
        """The store knows of something of this group whose server has not come (back) yet."""
        return self._expected.get(group, 0) > 0

    def placements_of(self, allocation: Allocation) -> list[Placement]:
        return [self.allocator.placement(placement) for placement in allocation.placements]

    def take_off(self, allocation: Allocation) -> list[Placement]:
        """Its vGPUs are free; the allocation itself stays for `put_back`, for other placements or for `drop`."""
        taken = [self.allocator.release(placement) for placement in allocation.placements]
        allocation.placements = []
        return taken

    def put_back(self, allocation: Allocation, placements: list[Placement]) -> None:
        """What `take_off` took, as it was."""
        allocation.placements = [self.allocator.adopt(p.request, p.gpus, force=True).id for p in placements]

    def drop(self, allocation: Allocation, why: str, out: Outcome) -> None:
        """It has ended."""
        self._end(allocation, why, out)

    def placed(self, placement: Placement, wish: wire.Allocate, now_s: float, wall_s: float) -> Allocation:
        """An allocation of what was placed; it goes soon unless somebody comes."""
        pod = wish.pod
        owner = f"{pod.get('namespace', '')}/{pod['name']}" if pod.get("name") else f"{wish.uid}@{wish.node or '?'}"
        within_s = self.policies.attach_within_s
        record = AllocationRecord(
            id=f"a-{secrets.token_hex(6)}", group=wish.group, shared=wish.res_group == "BOX" and bool(wish.group),
            reserved=wish.reserved and bool(wish.group), gmem_mib=placement.request.gmem_mib,
            ratio_percent=placement.request.ratio_percent, policy=wish.ratio_policy, places=list(placement.gpus),
            owner=owner, program=wish.program, host=wish.host, uid=wish.uid, since_s=wall_s,
            expires_s=wall_s + 2 * within_s,
        )  # fmt: skip
        allocation = self._add(record, [placement.id])
        allocation.tickets_until_s = now_s + within_s
        allocation.gone_at_s = now_s + 2 * within_s  # after the tickets, whatever the clocks
        return allocation

    def _add(self, record: AllocationRecord, placements: list[int]) -> Allocation:
        was_absent = self._absent.pop(record.id, None) is not None
        if was_absent:
            self._expected[record.group] -= 1
        allocation = Allocation(record, placements, is_stored=was_absent)
        self.allocations[record.id] = allocation
        if record.group:
            self._of_group.setdefault(record.group, set()).add(record.id)
        return allocation

    def _unused(self, allocation: Allocation, now_s: float, wall_s: float, out: Outcome) -> None:
        """Its last session has ended."""
        record = allocation.record
        if record.reserved:
            allocation.gone_at_s = None
        elif record.shared:
            allocation.gone_at_s, record.expires_s = now_s + self.policies.idle_s, wall_s + self.policies.idle_s
            out.saved.append(allocation)
        elif len(allocation.servers) > 1 and allocation.tickets_until_s > now_s:
            allocation.gone_at_s = allocation.tickets_until_s  # others of its sessions may still begin
        else:
            self._end(allocation, "its program has ended", out)

    def _end(self, allocation: Allocation, why: str, out: Outcome) -> None:
        for placement in allocation.placements:
            self.allocator.release(placement)
        allocation.placements = []
        del self.allocations[allocation.id]
        of_group = self._of_group.get(allocation.record.group)
        if of_group is not None:
            of_group.discard(allocation.id)
            if not of_group:
                del self._of_group[allocation.record.group]
        out.ended.append(allocation)
        out.note("info", "group.ended", allocation.id, why)

    def _serve(self, now_s: float, wall_s: float, out: Outcome) -> None:
        for ticket, placement in self.allocator.serve(now_s):
            waiting = self.waiting.pop(ticket)
            allocation = self.placed(placement, waiting.wish, now_s, wall_s)
            out.served.append((waiting, allocation))
            out.saved.append(allocation)


class Later(Refused):
    """There is no room now; a wait may help."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(CUDA_ERROR_DEVICE_UNAVAILABLE, message, hint)


class Never(Refused):
    """Not in this pool, however empty, or not within the limits of its group."""


def refusal_of(error: AllocationError) -> Refused:
    """What the allocator says, as an answer."""
    if isinstance(error, NeverFits):
        return Never(_code(error), str(error), "ask for less: ORION_VGPU, ORION_GMEM, ORION_RATIO")
    if isinstance(error, NoRoom):
        return Later(str(error), "wait for it with ORION_WAIT_S=SECONDS, or ask for less")
    return Refused(_code(error), str(error))


def _code(error: AllocationError) -> int:
    return CUDA_ERROR_OUT_OF_MEMORY if "MiB" in str(error) else CUDA_ERROR_DEVICE_UNAVAILABLE
