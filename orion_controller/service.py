"""The controller: the pool's state joined to its port, its store and its clock. What the REST API stands on.

Whoever gets vGPUs gets them after the store has them: a controller that dies behind the answer still knows of it.
"""

from __future__ import annotations

import asyncio
import collections
import hmac
import logging
import os
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from orion_controller import __version__, pods, views
from orion_controller.api import models, pod_models
from orion_controller.backend import ServiceError
from orion_controller.history import STEP_S, History
from orion_controller.identity import Identities
from orion_controller.link import AskError, Link
from orion_controller.pool import Absent, Allocation, Away, Later, Never, Outcome, Policies, Pool, Refused, Waiting
from orion_controller.store import Store, StoreError
from wire import pool as wire
from wire import ticket
from wire.control import WIRE_VERSION
from wire.router import Envelope

log = logging.getLogger("orion.controller")

CUDA_ERROR_SYSTEM_DRIVER_MISMATCH = 803
CUDA_ERROR_NOT_PERMITTED = 800
CUDA_ERROR_DEVICE_UNAVAILABLE = 46

TICK_S = 0.5
HOLD_ANSWER_S = 1.0  # how long a waiting client's question may stay open
SETTLE_LEASES = 6  # after a start, servers have this many leases to come back with what they hold
RELEASE_WITHIN_S = 2.5  # who releases pods is answered; schedulers give the controller 4 s
_ENDINGS_AT_ONCE = 256
_ANSWERS_AT_ONCE = 4096  # clients that wait for the store
_GIVEN_TO_MOST = 64  # connections of one allocation that may still give it up
_Limits = tuple[int, int, Literal["", "hard", "elastic"]]  # MiB, percent, policy


class Leadership(Protocol):
    """The part of leader.Election that this needs."""

    @property
    def is_leader(self) -> bool: ...
    @property
    def leader_address(self) -> str: ...
    @property
    def leader_url(self) -> str: ...


@dataclass(frozen=True)
class Keys:
    """What servers and clients have to know; empty: nothing is asked for."""

    server: str = ""
    client: str = ""


class Controller:
    """One replica. Belongs to the event loop's thread."""

    def __init__(self, store: Store, leadership: Leadership, *, name: str = "", policies: Policies | None = None,
                 keys: Keys | None = None, identities: Identities | None = None, only_reserved: bool = False,
                 observe_allocation: Callable[[float], None] = lambda seconds: None,
                 clock: Callable[[], float] = time.monotonic,
                 wall_clock: Callable[[], float] = time.time) -> None:  # fmt: skip
        """`identities`: pods prove who they are; clients outside of Kubernetes have the client key, where there is one.
        `only_reserved`: and a pod gets only what has been reserved for it."""
        self._store = store
        self._leadership = leadership
        self._keys = keys or Keys()
        self._identities = identities
        self._only_reserved = only_reserved
        self._policies = policies or Policies()
        self._clock, self._wall_clock = clock, wall_clock
        self.name = name or os.uname().nodename
        self.pool = Pool(self._policies)
        self.past = History()
        self.link: Link | None = None
        self._secret = b""
        self._since_s = wall_clock()
        self._loaded = False
        self._settle_until_s: float | None = None
        self._sample_at_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: dict[int, tuple[Envelope, int, asyncio.TimerHandle]] = {}  # open questions of the queue
        self._served: dict[int, tuple[bytes, Allocation]] = {}  # of clients that have not asked again yet
        # Tickets of the queue and allocations are easy to guess: they count on the connections to which they were told.
        self._queued_at: weakref.WeakKeyDictionary[Waiting, bytes] = weakref.WeakKeyDictionary()
        self._given_to: weakref.WeakKeyDictionary[Allocation, collections.deque[bytes]] = weakref.WeakKeyDictionary()
        self._changing: weakref.WeakKeyDictionary[Allocation, asyncio.Lock] = weakref.WeakKeyDictionary()
        self._releasing: dict[str, asyncio.Task[None]] = {}  # pods whose programs are being ended, by uid
        self._endings = asyncio.Semaphore(_ENDINGS_AT_ONCE)
        self._ticker: asyncio.TimerHandle | None = None
        self._observe_allocation = observe_allocation
        self._answering = 0

    # ------------------------------------------------------------------------------------------------ life

    def listen(self, host: str, port: int, *, per_connection: float = 200.0, secret_key: str = "") -> str:
        """Opens the ZeroMQ port, encrypted with `secret_key` (z85) unless that is empty; its address."""
        self.link = Link(host, port, self, per_second=per_connection, secret_key=secret_key)
        self._tick()
        return self.link.address

    async def take_over(self) -> None:
        """This replica leads from now on."""
        self._secret = await asyncio.to_thread(self._store.secret, "tickets")
        stored = await self._store.load()
        self.pool = Pool(self._policies)
        self.pool.restore(stored.allocations.values(), stored.limits, stored.drained, self._clock(), self._wall_clock())
        self._settle_until_s = self._clock() + SETTLE_LEASES * self._policies.lease_s
        self._loaded = True
        log.info("leading: %d allocation(s) known, waiting for their servers", len(stored.allocations))

    async def step_down(self) -> None:
        """Another replica leads; what this one knew is old."""
        self._loaded = False
        self.pool = Pool(self._policies)
        log.info("leading no more")

    async def close(self) -> None:
        """Servers and programs go on without this replica."""
        if self._ticker is not None:
            self._ticker.cancel()
        for _, _, timer in self._held.values():
            timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._identities is not None:
            await self._identities.close()
        if self.link is not None:
            self.link.close()

    @property
    def is_leader(self) -> bool:
        """May decide now."""
        return self._loaded and self._leadership.is_leader

    @property
    def leader_url(self) -> str:
        """Where the leader serves HTTP; empty when it is this one."""
        return "" if self.is_leader else self._leadership.leader_url

    def _tick(self) -> None:
        self._ticker = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        if not self.is_leader:
            return
        now_s, wall_s = self._clock(), self._wall_clock()
        self._apply(self.pool.tick(now_s, wall_s))
        if self._settle_until_s is not None and now_s >= self._settle_until_s:
            self._settle_until_s = None
            for record in self.pool.forget_absent():
                self.note("warning", "group.ended", record.id, "its servers have not come back", "")
                self._spawn(self._store.delete(record.id))
        if now_s >= self._sample_at_s:
            self._sample_at_s = now_s + STEP_S
            self._sample(wall_s)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s", task.exception(), exc_info=task.exception())

    def _apply(self, out: Outcome) -> None:
        for level, kind, subject, message in out.notes:
            self.note(level, kind, subject, message, "")  # type: ignore[arg-type]
        ended = {allocation.id for allocation in out.ended}
        for allocation in out.ended:
            self._spawn(self._store.delete(allocation.id))
        for allocation in {a.id: a for a in out.saved if a.id not in ended}.values():
            if not any(allocation is served for _, served in out.served):
                self._spawn(self._save(allocation))
        for waiting, allocation in out.served:
            self._spawn(self._serve_waiting(waiting, allocation))

    # ------------------------------------------------------------------------------------------------ the port

    def receive(self, envelope: Envelope, message: wire.ToController) -> None:
        """Any request of a server or a client."""
        assert self.link is not None
        if not self.is_leader:
            self.link.send(envelope, wire.NotLeader(id=message.id, leader=self._leadership.leader_address))
            return
        try:
            match message:
                case wire.Heartbeat():
                    self._heartbeat(envelope, message)
                case wire.Register():
                    self._register(envelope, message)
                case wire.Leave():
                    self._leave(envelope, message)
                case wire.Allocate() | wire.Lookup():
                    self._admit(envelope, message)
                case wire.StillWaiting():
                    self._still_waiting(envelope, message)
                case wire.GiveUp():
                    self._give_up(envelope, message)
        except Refused as refusal:
            self._refuse(envelope, message.id, refusal)

    def _refuse(self, envelope: Envelope, request_id: int, refusal: Refused) -> None:
        assert self.link is not None
        log.info("refused: %s", refusal)
        self.link.send(envelope, wire.Error(id=request_id, code=refusal.code, message=str(refusal)[:400],
                                            hint=refusal.hint[:400]))  # fmt: skip

    def _register(self, envelope: Envelope, said: wire.Register) -> None:
        assert self.link is not None
        if not _is_key(self._keys.server, said.key):
            raise Refused(CUDA_ERROR_NOT_PERMITTED, "the server's key is missing or wrong",
                          "give orion-server the pool's server-key: --pool-key-file")  # fmt: skip
        if said.wire[0] != WIRE_VERSION[0]:
            raise Refused(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
                          f"{said.server} speaks wire {said.wire[0]}.{said.wire[1]}, this pool "
                          f"{WIRE_VERSION[0]}.{WIRE_VERSION[1]}", "install the same major release")  # fmt: skip
        wanted = said.server in self.pool.draining
        out = self.pool.register(said, self._clock(), self._wall_clock())
        self.link.bind_server(said.server, envelope)
        answer = wire.Registered(
            id=said.id, controller=self.name, ticket_key=ticket.server_key(self._secret, said.server),
            now_s=self._wall_clock(), heartbeat_s=self._policies.heartbeat_s, lease_s=self._policies.lease_s,
            draining=wanted,
        )  # fmt: skip
        self.link.send(envelope, answer)
        self._apply(out)

    def _heartbeat(self, envelope: Envelope, said: wire.Heartbeat) -> None:
        assert self.link is not None
        out = self.pool.heartbeat(said, self._clock(), self._wall_clock())
        if out is None:
            self.link.send(envelope, wire.Unknown(id=said.id))
            return
        self.link.bind_server(said.server, envelope)
        if said.asks:
            self.link.send(envelope, wire.HeartbeatOk(id=said.id, now_s=self._wall_clock()))
        self._apply(out)

    def _leave(self, envelope: Envelope, said: wire.Leave) -> None:
        assert self.link is not None
        self._apply(self.pool.leave(said.server, said.instance, self._clock(), self._wall_clock()))
        self.link.unbind_server(said.server)
        self.link.send(envelope, wire.HeartbeatOk(id=said.id, now_s=self._wall_clock()))

    def _admit(self, envelope: Envelope, said: wire.Allocate | wire.Lookup) -> None:
        """Who names a group has the client key, or is the pod whose group it is."""
        if self._identities is not None and (said.token or not self._keys.client):
            if not said.token:
                raise Refused(CUDA_ERROR_NOT_PERMITTED, "this pool asks pods for their service account's token, and "
                              "none came", "project one with the audience orion, name its file in ORION_TOKEN_FILE, "
                              "and set ORION_CONTROLLER_KEY: it is shown to nobody in clear")  # fmt: skip
            if self._answering >= _ANSWERS_AT_ONCE:
                raise Refused(CUDA_ERROR_DEVICE_UNAVAILABLE, "the controller is overloaded", "try again in a second")
            self._spawn(self._admit_pod(self._identities, envelope, said))
            return
        if not _is_key(self._keys.client, said.key):
            hint = "set ORION_CLIENT_KEY, or client_key in client.conf"
            if self._identities is not None:
                hint += "; a pod shows its token instead (ORION_TOKEN_FILE and ORION_CONTROLLER_KEY)"
            raise Refused(CUDA_ERROR_NOT_PERMITTED, "this pool asks for a client key, and it is missing or wrong", hint)
        self._go_on(envelope, said, is_pod=False)

    async def _admit_pod(self, identities: Identities, envelope: Envelope, said: wire.Allocate | wire.Lookup) -> None:
        self._answering += 1
        try:
            await identities.check(said.token, said.group)
            if not self.is_leader:  # no more
                assert self.link is not None
                self.link.send(envelope, wire.NotLeader(id=said.id, leader=self._leadership.leader_address))
                return
            self._go_on(envelope, said, is_pod=True)
        except Refused as refusal:
            self._refuse(envelope, said.id, refusal)
        finally:
            self._answering -= 1

    def _go_on(self, envelope: Envelope, said: wire.Allocate | wire.Lookup, *, is_pod: bool) -> None:
        said.key = said.token = ""
        if isinstance(said, wire.Lookup):
            self._lookup(envelope, said, is_pod)
            return
        if is_pod and self._only_reserved:
            self._check_reserved(said.group)
        self._allocate(envelope, said)

    def _check_reserved(self, pod: str) -> None:
        """A pod has what orion-scheduler has reserved for it, and nothing else."""
        if any(allocation.record.slot for allocation in self.pool.of_group(pod)):
            return
        if self.pool.is_expected(pod):
            raise Refused(CUDA_ERROR_DEVICE_UNAVAILABLE, "the controller has just started, and the servers with this "
                          "pod's vGPUs have not come back yet", "try again in a moment")  # fmt: skip
        raise Refused(CUDA_ERROR_NOT_PERMITTED, "nothing is reserved for this pod", "pods get their vGPUs from "
                      "orion-scheduler: schedulerName, and limits for the resource")  # fmt: skip

    def _allocate(self, envelope: Envelope, wish: wire.Allocate) -> None:
        assert self.link is not None
        if wish.wire[0] != WIRE_VERSION[0]:
            raise Refused(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
                          f"the client speaks wire {wish.wire[0]}.{wish.wire[1]}, this pool "
                          f"{WIRE_VERSION[0]}.{WIRE_VERSION[1]}", "install the same major release")  # fmt: skip
        if self._answering >= _ANSWERS_AT_ONCE:
            raise Refused(CUDA_ERROR_DEVICE_UNAVAILABLE, "the controller is overloaded", "try again in a second")
        now_s, wall_s = self._clock(), self._wall_clock()
        try:
            allocation = self.pool.allocate(wish, now_s, wall_s)
        except Later as later:
            if not wish.wait_s:
                raise
            waiting = self.pool.join_queue(wish, str(later), now_s, wall_s)
            self._queued_at[waiting] = envelope.identity
            self._tell_queued(envelope, wish.id, waiting)
            return
        self._spawn(self._hand_out(envelope, wish.id, allocation, now_s))

    async def _save(self, allocation: Allocation) -> None:
        await self._store.save(allocation.record)
        allocation.is_stored = True

    async def _hand_out(self, envelope: Envelope, request_id: int, allocation: Allocation, began_s: float) -> None:
        """Tickets, once the store has the allocation."""
        assert self.link is not None
        self._answering += 1
        try:
            await self._save(allocation)
        except StoreError as error:
            log.error("allocation %s is taken back: %s", allocation.id, error)
            self._apply(self.pool.give_up(allocation.id, self._clock(), self._wall_clock()))
            self._refuse(envelope, request_id, Refused(CUDA_ERROR_DEVICE_UNAVAILABLE, "the controller's database does "
                         "not answer", "try again later; see the log of orion-controller"))  # fmt: skip
            return
        finally:
            self._answering -= 1
        if allocation.id not in self.pool.allocations or not self.is_leader:
            self._refuse(envelope, request_id, Refused(CUDA_ERROR_DEVICE_UNAVAILABLE, "the allocation has ended "
                         "before it began", "try again"))  # fmt: skip
            return
        servers = [
            wire.ServerTicket(
                server=one.server, address=self.pool.servers[one.server].said.address,
                public_key=self.pool.servers[one.server].said.public_key,
                ticket=ticket.sign(one, ticket.server_key(self._secret, one.server)),
            )
            for one in self.pool.tickets(allocation, self._clock(), self._wall_clock())
            if one.server in self.pool.servers
        ]  # fmt: skip
        given_to = self._given_to.setdefault(allocation, collections.deque(maxlen=_GIVEN_TO_MOST))
        given_to.append(envelope.identity)
        self.link.send(envelope, wire.Allocated(id=request_id, allocation=allocation.id, servers=servers,
                                                attach_within_s=self._policies.attach_within_s))  # fmt: skip
        record = allocation.record
        where = ", ".join(f"{server}/{ordinal}" for server, ordinal in record.places)
        self.note("info", "group.allocated", allocation.id,
                  f"{record.owner}: {len(record.places)} x {record.gmem_mib} MiB, {record.ratio_percent} % on {where}",
                  "")  # fmt: skip
        self._observe_allocation(self._clock() - began_s)

    # ------------------------------------------------------------------------------------------------ the queue

    def _tell_queued(self, envelope: Envelope, request_id: int, waiting: Waiting) -> None:
        assert self.link is not None
        self.link.send(envelope, wire.Queued(id=request_id, position=self.pool.position(waiting.ticket),
                                             reason=waiting.reason[:400], ticket=waiting.ticket))  # fmt: skip

    def _still_waiting(self, envelope: Envelope, said: wire.StillWaiting) -> None:
        at, served = self._served.get(said.ticket, (b"", None))
        if served is not None and at == envelope.identity:
            del self._served[said.ticket]
            self._spawn(self._hand_out(envelope, said.id, served, self._clock()))
            return
        waiting = self.pool.waiting.get(said.ticket)
        if waiting is None or self._queued_at.get(waiting) != envelope.identity:
            raise Refused(CUDA_ERROR_DEVICE_UNAVAILABLE, "not in the queue any more", "ask again")
        waiting.heard_s = self._clock()
        timer = asyncio.get_running_loop().call_later(HOLD_ANSWER_S, self._answer_held, said.ticket)
        before = self._held.pop(said.ticket, None)
        if before is not None:
            before[2].cancel()
        self._held[said.ticket] = (envelope, said.id, timer)

    def _answer_held(self, ticket_number: int) -> None:
        envelope, request_id, _ = self._held.pop(ticket_number)
        waiting = self.pool.waiting.get(ticket_number)
        if waiting is not None:
            waiting.heard_s = self._clock()
            self._tell_queued(envelope, request_id, waiting)

    async def _serve_waiting(self, waiting: Waiting, allocation: Allocation) -> None:
        held = self._held.pop(waiting.ticket, None)
        if held is None:
            self._served[waiting.ticket] = self._queued_at.get(waiting, b""), allocation
            await self._save(allocation)
            return
        held[2].cancel()
        await self._hand_out(held[0], held[1], allocation, self._clock())

    def _give_up(self, envelope: Envelope, said: wire.GiveUp) -> None:
        waiting = self.pool.waiting.get(said.ticket)
        if waiting is not None and self._queued_at.get(waiting) == envelope.identity:
            held = self._held.pop(said.ticket, None)
            if held is not None:
                held[2].cancel()
            self.pool.leave_queue(said.ticket)
        at, served = self._served.get(said.ticket, (b"", None))
        if served is not None and at == envelope.identity:
            del self._served[said.ticket]
            self._apply(self.pool.give_up(served.id, self._clock(), self._wall_clock()))
        given = self.pool.allocations.get(said.allocation)
        if given is not None and envelope.identity in self._given_to.get(given, ()):
            self._apply(self.pool.give_up(given.id, self._clock(), self._wall_clock()))

    def _lookup(self, envelope: Envelope, said: wire.Lookup, is_pod: bool) -> None:
        """A pod learns of its own group: process ids, hosts and users are what a client says."""
        assert self.link is not None
        if is_pod:
            said.pid = 0
        only = said.group if is_pod else ""
        found: dict[str, tuple[str, str]] = {}  # keys by address, in the order in which programs count devices
        for allocation in self._allocations_of(said):
            for name in allocation.servers:
                if name in self.pool.servers and allocation.sessions.get(name):
                    server = self.pool.servers[name].said
                    told = ticket.stats_key(ticket.server_key(self._secret, name), only)
                    found[server.address] = server.public_key, told
        summary = self.summary()
        totals = {"gpus": summary.gpus, "vgpus": summary.vgpus, "vgpus_free": summary.vgpus_free,
                  "nodes": summary.nodes_ready}  # fmt: skip
        self.link.send(envelope, wire.LookedUp(id=said.id, servers=list(found)[:64],
                                               public_keys=[public for public, _ in found.values()][:64],
                                               stats_keys=[told for _, told in found.values()][:64],
                                               totals=totals))  # fmt: skip

    def _allocations_of(self, said: wire.Lookup) -> list[Allocation]:
        """Those of a process, or of its group."""
        own = {
            s.allocation
            for server in self.pool.servers.values()
            for s in server.sessions.values()
            if said.pid and (s.pid, s.host, s.uid) == (said.pid, said.host, said.uid)
        }
        return [
            allocation
            for allocation in self.pool.allocations.values()
            if allocation.id in own or (said.group and allocation.record.group == said.group)
        ]

    # ------------------------------------------------------------------------------------------------ reads

    def summary(self) -> models.Summary:
        """The pool in numbers."""
        return views.summary(self.pool, self.name, self.is_leader, __version__, self._since_s)

    def nodes(self) -> list[models.Node]:
        return [views.node(self.pool, self.pool.servers[name]) for name in sorted(self.pool.servers)]

    def gpus(self, node: str = "") -> list[models.Gpu]:
        return list(views.gpus(self.pool, node))

    def vgpus(self, node: str = "", group: str = "") -> list[models.Vgpu]:
        of = [self.pool.allocations[group]] if group in self.pool.allocations else list(self.pool.allocations.values())
        if group and group not in self.pool.allocations:
            of = []
        of = [allocation for allocation in of if not node or node in allocation.servers]
        return [v for allocation in of for v in views.vgpus_of(self.pool, allocation) if node in ("", v.node)]

    def groups(self) -> list[models.Group]:
        return [views.group(self.pool, allocation) for allocation in self.pool.allocations.values()]

    def group_ids(self) -> list[str]:
        """For who looks at groups one by one: a large pool must not hold up those who ask for vGPUs."""
        return list(self.pool.allocations)

    def group(self, group_id: str) -> models.Group | None:
        """None: it has ended."""
        allocation = self.pool.allocations.get(group_id)
        return None if allocation is None else views.group(self.pool, allocation)

    def sessions(self, node: str = "", group: str = "") -> list[models.Session]:
        return [s for s in views.sessions(self.pool) if node in ("", s.node) and group in ("", s.group)]

    def pods(self) -> Iterator[pod_models.Pod]:
        for uid in list(pods.pods(self.pool)):
            found = pods.view(self.pool, uid)
            if found is not None:
                yield found

    def queue(self) -> list[models.Waiting]:
        return views.queue(self.pool)

    def limits(self) -> list[models.Limits]:
        return [
            models.Limits(group=group, vgpus=b.vgpus, gmem_mib=b.gmem_mib, ratio_percent=b.ratio_percent)
            for group, b in sorted(self.pool.limits.items())
        ]

    async def events(self, after: int = 0, limit: int = 200, audit: bool = False) -> list[models.Event]:
        return await self._store.events(after, limit, audit)

    def history(self, scope: str) -> models.History:
        shown = views.history(self.past, scope)
        if shown is None:
            raise ServiceError(404, "not_found", f"nothing is known of {scope[:200]!r}",
                               "pool, node/NAME, gpu/NODE/ORDINAL or group/ID")  # fmt: skip
        return shown

    def _sample(self, wall_s: float) -> None:
        views.sample(self.pool, self.past, self.summary(), wall_s)

    # ------------------------------------------------------------------------------------------------ changes

    def note(
        self, level: Literal["info", "warning", "error"], kind: str, subject: str, message: str, user: str
    ) -> None:
        """Writes an event."""
        getattr(log, level)("%s %s: %s%s", kind, subject, message, f" (by {user})" if user else "")
        self._store.add_event(level, kind, subject, message, user, self._wall_clock())

    def _found(self, group_id: str) -> Allocation:
        try:
            return self.pool.allocation(group_id)
        except Refused as error:
            raise _as_service_error(error) from error

    async def patch_group(self, group_id: str, change: models.PatchGroup, user: str) -> models.Group:
        """Room first, then every server, then the record; what a server refuses is taken back everywhere. Of two at
        once each is whole, and the last one stays."""
        allocation = self._found(group_id)
        async with self._changing.setdefault(allocation, asyncio.Lock()):
            before, after = await self._resize(self._found(allocation.id), change)
        self.note("info", "group.resized", allocation.id,
                  f"{before[0]} -> {after[0]} MiB, {before[1]} -> {after[1]} %", user)  # fmt: skip
        return views.group(self.pool, self._found(allocation.id))

    async def _resize(self, allocation: Allocation, change: models.PatchGroup) -> tuple[_Limits, _Limits]:
        assert self.link is not None
        record = allocation.record
        before: _Limits = (record.gmem_mib, record.ratio_percent, record.policy)
        after: _Limits = (
            change.gmem_mib or record.gmem_mib,
            change.ratio_percent or record.ratio_percent,
            change.policy or record.policy,
        )
        try:
            self.pool.resize(allocation, after[0], after[1])
        except Refused as error:
            raise _as_service_error(error) from error
        record.gmem_mib, record.ratio_percent, record.policy = after
        done: list[str] = []
        try:
            for server in list(allocation.sessions):
                await self.link.ask(server, wire.ResizeAllocation(
                    id=0, allocation=allocation.id, gmem_mib=change.gmem_mib, ratio=change.ratio_percent,
                    ratio_policy=change.policy, shrink=change.shrink))  # fmt: skip
                done.append(server)
        except AskError as error:
            self._found(allocation.id)  # it has ended meanwhile: that is the answer
            await self._take_back(allocation, before, done)
            code = "below_usage" if "uses" in str(error) else "refused"
            raise ServiceError(409 if error.code else 504, code, str(error), error.hint) from error
        self._found(allocation.id)
        await self._save(allocation)
        return before, after

    async def _take_back(self, allocation: Allocation, before: _Limits, done: list[str]) -> None:
        assert self.link is not None
        record = allocation.record
        for server in done:
            try:
                await self.link.ask(server, wire.ResizeAllocation(
                    id=0, allocation=allocation.id, gmem_mib=before[0], ratio=before[1],
                    ratio_policy=before[2] or None, shrink="block"))  # fmt: skip
            except AskError as error:
                log.error("%s keeps new limits for %s: %s", server, allocation.id, error)
        if allocation.id in self.pool.allocations:
            try:
                self.pool.resize(allocation, before[0], before[1], back=True)
            except Refused:  # others have the room by now: the accounts keep the larger one
                log.error("%s keeps what it asked for in the accounts: its old size is taken", allocation.id)
                return
        record.gmem_mib, record.ratio_percent, record.policy = before

    async def end_group(self, group_id: str, user: str) -> None:
        """Ends its sessions on all servers, then gives its vGPUs back."""
        assert self.link is not None
        allocation = self._found(group_id)
        for server in list(allocation.sessions):
            try:
                request = wire.EndSessions(id=0, allocation=allocation.id, reason=f"ended by {user}")
                await self.link.ask(server, request)
            except AskError as error:
                raise ServiceError(504, "no_answer", str(error), "is the server well? orionctl get nodes") from error
        self.note("warning", "group.end", allocation.id, "was told to end", user)
        if allocation.id in self.pool.allocations:
            self._apply(self.pool.end(allocation.id, f"ended by {user}", self._clock(), self._wall_clock()))

    async def end_session(self, session_id: str, user: str) -> None:
        """Ends one program's session on one server."""
        assert self.link is not None
        for server in self.pool.servers.values():
            if session_id in server.sessions:
                try:
                    await self.link.ask(server.name, wire.EndSessions(id=0, session=session_id,
                                                                      reason=f"ended by {user}"))  # fmt: skip
                except AskError as error:
                    raise ServiceError(504, "no_answer", str(error)) from error
                self.note("warning", "session.end", session_id, f"was told to end on {server.name}", user)
                return
        raise ServiceError(404, "not_found", f"there is no session {session_id}: it has ended or never was",
                           "orionctl get sessions")  # fmt: skip

    async def forget_node(self, node: str, user: str) -> None:
        """Takes a server off the list that is lost and will not come back."""
        try:
            self.pool.forget_server(node)
        except Refused as error:
            raise _as_service_error(error, otherwise=409) from error
        self.pool.draining.discard(node)
        await self._store.set_draining(node, False)
        self.note("info", "node.forgotten", node, "is not expected any more", user)

    async def set_draining(self, node: str, draining: bool, user: str) -> models.Node:
        """No new vGPUs there, or new ones again; remembered over restarts of either side."""
        assert self.link is not None
        try:
            out = self.pool.set_draining(node, draining, self._clock(), self._wall_clock())
        except Refused as error:
            raise _as_service_error(error) from error
        await self._store.set_draining(node, draining)
        for level, kind, subject, message in out.notes:
            self.note(level, kind, subject, message, user)  # type: ignore[arg-type]
        out.notes = []
        self._apply(out)
        server = self.pool.servers[node]
        if not server.is_lost:
            try:
                await self.link.ask(node, wire.SetDraining(id=0, draining=draining))
            except AskError as error:
                log.warning("%s was not told: %s", node, error)  # it hears it when it registers
        return views.node(self.pool, server)

    async def reserve(self, wish: models.Reserve, user: str) -> models.Group:
        """vGPUs for a group that comes later."""
        asked = wire.Allocate(
            id=0, wire=WIRE_VERSION, vgpu=wish.vgpus, gmem_mib=wish.gmem_mib, ratio=wish.ratio_percent,
            group=wish.group, cross_node=wish.cross_node, node=wish.node, rule=wish.rule, program="",
        )  # fmt: skip
        try:
            allocation = self.pool.reserve(asked, wish.ttl_s, self._clock(), self._wall_clock())
        except Refused as error:
            raise _as_service_error(error) from error
        allocation.record.owner = allocation.record.owner if allocation.record.was_used else user
        await self._save(allocation)
        self.note("info", "group.reserved", allocation.id, f"for {wish.group}, {wish.ttl_s:g} s", user)
        return views.group(self.pool, allocation)

    async def reserve_pods(self, wishes: list[pod_models.PodWish], user: str) -> list[pod_models.PodOutcome]:
        """Each pod's vGPUs, or why not. What was reserved and cannot be stored is given back."""
        outcomes: list[pod_models.PodOutcome] = []
        saves: list[Coroutine[Any, Any, None]] = []
        reserved: list[list[Allocation]] = []
        for wish in wishes:
            try:
                allocations, out = pods.reserve(self.pool, wish, self._clock(), self._wall_clock())
            except Refused as error:
                outcomes.append(pod_models.PodOutcome(uid=wish.uid, refusal=_pod_refusal(error), message=str(error)))
                continue
            saves += [self._save(a) for a in out.saved if a.is_stored or not wish.provisional]
            out.saved = []
            self._apply(out)
            reserved.append(allocations)
            outcomes.append(pod_models.PodOutcome(uid=wish.uid, parts=[pods.part_view(a) for a in allocations]))
        failed = [r for r in await asyncio.gather(*saves, return_exceptions=True) if isinstance(r, BaseException)]
        if failed:
            # Nobody has been told of them: what was there before is in the store and stays.
            for allocation in (a for allocations in reserved for a in allocations):
                if allocation.gone_at_s is not None and allocation.id in self.pool.allocations:
                    self._apply(self.pool.end(allocation.id, "the database does not answer", self._clock(),
                                              self._wall_clock()))  # fmt: skip
            raise failed[0]
        return outcomes

    async def release_pods(self, gone: pod_models.PodsGone, user: str) -> pod_models.PodsReleased:
        """Ends what still runs of them, then gives their vGPUs back."""
        assert self.link is not None
        told = pod_models.PodsReleased(released=[], kept=[])
        under_way: list[str] = []
        for uid in dict.fromkeys(gone.uids):
            if self.pool.is_expected(uid):  # it would come back with its server, and nobody would ask for its end again
                told.kept.append(uid)
                continue
            allocations = pods.parts_of(self.pool, uid)
            if not any(a.session_count for a in allocations):
                for allocation in allocations:
                    self._apply(self.pool.end(allocation.id, gone.reason, self._clock(), self._wall_clock()))
                told.released.append(uid)
            elif gone.unless_used:
                told.kept.append(uid)
            else:
                under_way.append(uid)
        # Servers take seconds to end a program that is stuck. All at once, and who asks does not wait for the slowest:
        # that one goes on, and whoever asks again finds it done.
        tasks: list[asyncio.Task[None]] = []
        for uid in under_way:
            if uid not in self._releasing:
                task = asyncio.get_running_loop().create_task(self._release_pod(uid, gone.reason))
                self._releasing[uid] = task
                self._tasks.add(task)
                task.add_done_callback(self._done)
                task.add_done_callback(lambda _, uid=uid: self._releasing.pop(uid, None))  # type: ignore[misc]
            tasks.append(self._releasing[uid])
        if tasks:
            await asyncio.wait(tasks, timeout=RELEASE_WITHIN_S)
        for uid in under_way:
            (told.kept if pods.parts_of(self.pool, uid) else told.released).append(uid)
        return told

    async def _release_pod(self, uid: str, reason: str) -> None:
        assert self.link is not None
        async with self._endings:
            try:
                for allocation in pods.parts_of(self.pool, uid):
                    for server in list(allocation.sessions):
                        request = wire.EndSessions(id=0, allocation=allocation.id, reason=reason)
                        await self.link.ask(server, request)
                    if self.pool.allocations.get(allocation.id) is allocation:
                        self._apply(self.pool.end(allocation.id, reason, self._clock(), self._wall_clock()))
            except AskError as error:
                log.warning("pod %s keeps its vGPUs for now: %s", uid, error)

    async def set_limits(self, group: str, limits: models.LimitsBody | None, user: str) -> models.Limits | None:
        """Of a group's name; None takes them away."""
        if limits is None and group not in self.pool.limits:
            raise ServiceError(404, "not_found", f"{group!r} has no limits of its own", "orionctl get limits")
        await self._store.set_limits(group, limits)
        self.pool.set_limits(group, limits)
        told = "none" if limits is None else f"{limits.vgpus} vGPUs, {limits.gmem_mib} MiB, {limits.ratio_percent} %"
        self.note("info", "limits.set", group, told, user)
        if limits is None:
            return None
        return models.Limits(group=group, vgpus=limits.vgpus, gmem_mib=limits.gmem_mib,
                             ratio_percent=limits.ratio_percent)  # fmt: skip


def _is_key(wanted: str, told: str) -> bool:
    return not wanted or hmac.compare_digest(wanted.encode(), told.encode())


def _pod_refusal(error: Refused) -> pod_models.Refusal:
    if isinstance(error, pods.NotReady):
        return "not_ready"
    return "never" if isinstance(error, Never) else "no_room" if isinstance(error, Later) else "refused"


def _as_service_error(error: Refused, otherwise: int = 422) -> ServiceError:
    if isinstance(error, Absent):
        return ServiceError(404, "not_found", str(error), error.hint)
    if isinstance(error, Away):
        return ServiceError(409, "away", str(error), error.hint)
    if isinstance(error, Later) or error.code in (2, CUDA_ERROR_DEVICE_UNAVAILABLE):
        return ServiceError(409, "no_room", str(error), error.hint)
    return ServiceError(otherwise, "refused", str(error), error.hint)
