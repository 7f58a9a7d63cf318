"""Admission: attach, bind, stats, changes and drain, and the life of sessions. Never touches CUDA."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from orion_server import __version__, isolation, runtime_validation
from orion_server.admin_token import AdminToken
from orion_server.arbitration import Arbiter
from orion_server.config import CLIENT_ENVIRONMENT, Settings
from orion_server.image_cache import ImageCache
from orion_server.libcuda import Libcuda
from orion_server.network import ClientKey, LanesRefused, is_loopback, key_pair, lanes_encrypted, uses_curve
from orion_server.pool import WorkerPool
from orion_server.pool_link import PoolLink
from orion_server.pool_offer import PoolOffer
from orion_server.rdma import Rdma, active_ports
from orion_server.reports import Reports
from orion_server.session import Session
from orion_server.shares import Shares
from orion_server.slices import MIB, Change, Gpu, Member, Owner, Policy, Registry, Slice, SliceError, Wish
from orion_server.telemetry import Telemetry, find_library
from orion_server.vgpus import Vgpus
from orion_server.worker_process import State, WorkerDied, WorkerError, WorkerProcess
from wire import control
from wire.router import ControlSocket, Envelope
from wire.ticket import Ticket, TicketError

log = logging.getLogger("orion.server")

CUDA_ERROR_INVALID_VALUE = 1
CUDA_ERROR_DEVICE_UNAVAILABLE = 46
CUDA_ERROR_INVALID_DEVICE = 101
CUDA_ERROR_NOT_PERMITTED = 800
CUDA_ERROR_UNKNOWN = 999

_STATS_TIMEOUT_S = 0.5
_MAX_TASKS = 256
_TELEMETRY_S = 1.0
_STAGES_MAX = 8
# One for the client that comes and one for the next, who may come before there is another. Each has a context on each
# GPU.
_WARM = {"nvidia": 2, "softgpu": 1, "null": 1}
# What a worker's context takes where NVML does not tell it apart from what others hold.
_CONTEXT_MOST_BYTES = 1 << 30


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, code: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class Server:
    """orion-server without its command line."""

    def __init__(self, settings: Settings, libcuda: Libcuda, socket_dir: Path) -> None:
        self._settings = settings
        self._libcuda = libcuda
        self._socket_dir = socket_dir
        self._images = ImageCache(settings.image_cache_mib << 20)
        self._shares = Shares()
        self._admin = AdminToken(socket_dir)
        self._keys = key_pair(socket_dir) if uses_curve(settings) else None
        self._client_key = ClientKey(settings.client_key_file)
        self._warm = settings.warm if settings.warm is not None else _WARM[libcuda.kind]
        isolated = isolation.plan(settings)
        self._rdma = Rdma(settings, active_ports())
        if self._rdma.enabled:
            log.info("%s", self._rdma.describe())
        self._arbiter = Arbiter()
        self._pool = WorkerPool(
            libcuda,
            settings.devices,
            self._warm,
            settings.worker_start_timeout_s,
            settings.log_level,
            self._images,
            self._arbiter,
            isolation=isolated,
            ucx_devices=self._rdma.devices if self._rdma.enabled else None,
        )
        self._vgpus = Vgpus(self._registry([]), self._arbiter, settings.pinned_mib * MIB)
        if not settings.enable_shm:
            self._pool.transport = "tcp"
        self._sessions: dict[str, Session] = {}
        self._attaching = 0
        self._draining = False
        self._started = asyncio.Event()  # what the devices are is known
        self._idle = asyncio.Event()
        self._idle.set()
        self._socket: ControlSocket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._boot_id = control.boot_id()
        self._lanes_address = "127.0.0.1" if settings.host == "localhost" else settings.host
        self._gpus: list[control.Device] = []
        self._driver_version = 0
        self._runtime = runtime_validation.Outcome()
        self._telemetry = Telemetry(find_library(libcuda, settings.nvml))
        self._reports = Reports(self._telemetry, self._vgpus, self._images, self._sessions)
        self._link: PoolLink | None = None
        self._offer: PoolOffer | None = None

    @property
    def address(self) -> str:
        """host:port of the control port."""
        assert self._socket is not None
        return self._socket.address

    @property
    def public_key(self) -> str:
        """What clients name in ORION_SERVER_KEY; empty where the control port is not encrypted."""
        return "" if self._keys is None else self._keys.public

    @property
    def gpus(self) -> list[control.Device]:
        """The devices as the first worker described them."""
        return self._gpus

    async def start(self) -> None:
        """Opens the control port once a first worker has shown that the devices work."""
        secret_key = "" if self._keys is None else self._keys.secret
        self._socket = ControlSocket(self._settings.host, self._settings.port, self._receive, secret_key=secret_key)
        foreign_bytes = self._telemetry.used_bytes()
        try:
            first = await self._pool.start()
            # At once: what is there more than before is this one worker's contexts, and nobody else's of ours.
            used_bytes = self._telemetry.used_bytes()
            self._runtime = await runtime_validation.validate(self._libcuda, self._settings.devices)
        except WorkerError:
            await self.close()
            raise
        try:
            self._gpus = msgspec.convert(first.hello.get("devices"), list[control.Device])
            self._driver_version = msgspec.convert(first.hello.get("driver_version"), int)
            free_bytes = msgspec.convert(first.hello.get("free_bytes"), list[int])
            gpus = [
                gpu_memory(gpu, free, foreign_bytes.get(gpu.uuid), used_bytes.get(gpu.uuid))
                for gpu, free in zip(self._gpus, free_bytes, strict=True)
            ]
        except (msgspec.ValidationError, ValueError) as error:
            await self.close()
            raise WorkerError(f"the driver's description of its devices cannot be used: {error}") from error
        self._vgpus = Vgpus(self._registry(gpus), self._arbiter, self._settings.pinned_mib * MIB)
        self._vgpus.oversubscribe()
        self._telemetry.describe(self._gpus)
        self._reports = Reports(self._telemetry, self._vgpus, self._images, self._sessions)
        self._reports.describe(self._gpus, self._driver_version)
        if self._settings.controller:
            self._join_pool()
        self._started.set()

    def _join_pool(self) -> None:
        kind = "nvidia" if self._libcuda.kind == "nvidia" else "softgpu"
        self._offer = PoolOffer(
            self._settings, self._settings.name, self.address, kind, self._gpus, self._vgpus, self._reports,
            self._telemetry, self._sessions, self._set_draining, self.public_key,
        )  # fmt: skip
        self._link = PoolLink(self._settings.controller.split(","), self._settings.name, self._offer,
                              controller_key=self._settings.controller_key)  # fmt: skip
        self._link.start()
        task = asyncio.create_task(self._watch_telemetry())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch_telemetry(self) -> None:
        while True:
            await self._telemetry.refresh()
            await asyncio.sleep(_TELEMETRY_S)

    def _set_draining(self, draining: bool) -> None:
        """As the controller wants it."""
        if draining != self._draining:
            log.info("the controller says: %s", "no new clients" if draining else "new clients again")
        self._draining = draining

    def _registry(self, gpus: list[Gpu]) -> Registry:
        return Registry(
            gpus,
            warm=self._warm,
            vgpu_count=self._settings.vgpu_count,
            policy=Policy[self._settings.ratio_policy.upper()],
            overcommit_ratio=self._settings.overcommit_ratio,
            reserve_bytes=self._settings.reserve_mib * MIB,
            swap_bytes=self._settings.swap_mib * MIB,
        )

    async def drain(self) -> None:
        """Admits nobody from now on; returns when the last session has ended."""
        if not self._draining:
            self._draining = True
            log.info("draining: %d session(s) left", len(self._sessions))
            if self._link is not None and self._offer is not None:
                self._offer.draining = True
                self._link.changed()
        await self._idle.wait()

    async def close(self) -> None:
        """Ends all sessions and workers and closes the port."""
        self._draining = True
        await self._pool.close()
        if self._link is not None:
            self._link.close()
        self._arbiter.close()
        self._images.close()
        for task in list(self._tasks):
            task.cancel()
        if self._socket is not None:
            self._socket.close()

    # ------------------------------------------------------------------------------------------ requests

    def _receive(self, envelope: Envelope, body: bytes) -> None:
        if len(self._tasks) >= _MAX_TASKS:
            log.warning("too many requests at once: one dropped")
            return
        try:
            request = control.decode_request(body)
        except control.ControlError as error:
            log.warning("refused a control message: %s", error)
            if error.request_id is not None:
                self._refuse(envelope, error.request_id, Refused(error.code, str(error), error.hint))
            return
        handlers: dict[type, Callable[[Envelope, Any], Awaitable[None]]] = {
            control.Attach: self._attach,
            control.Bind: self._bind,
            control.Detach: self._detach,
            control.Stats: self._stats,
            control.Drain: self._drain,
            control.Resize: self._resize,
            control.Configure: self._configure,
        }
        task = asyncio.create_task(self._handle(handlers[type(request)], envelope, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(
        self, handler: Callable[[Envelope, Any], Awaitable[None]], envelope: Envelope, request: Any
    ) -> None:
        try:
            await handler(envelope, request)
        except Refused as refusal:
            self._refuse(envelope, request.id, refusal)
        except SliceError as error:
            self._refuse(envelope, request.id, Refused(error.code, str(error), error.hint))
        except WorkerError as error:
            self._refuse(envelope, request.id, Refused(CUDA_ERROR_DEVICE_UNAVAILABLE, str(error), _SEE_SERVER_LOG))
        except Exception:
            log.exception("request %s failed", type(request).__name__)
            internal = Refused(CUDA_ERROR_DEVICE_UNAVAILABLE, "internal error of orion-server", _SEE_SERVER_LOG)
            self._refuse(envelope, request.id, internal)

    def _send(self, envelope: Envelope, answer: Any) -> None:
        if self._socket is not None:
            self._socket.send(envelope, control.encode(answer))

    def _refuse(self, envelope: Envelope, request_id: int, refusal: Refused) -> None:
        log.info("refused: %s", refusal)
        self._send(
            envelope, control.Error(id=request_id, code=refusal.code, message=str(refusal)[:400], hint=refusal.hint)
        )

    # ------------------------------------------------------------------------------------------ attach and bind

    async def _attach(self, envelope: Envelope, request: control.Attach) -> None:
        self._authenticate(request.key)
        await self._started.wait()  # the port is open before the first worker is ready
        if self._draining:
            raise Refused(CUDA_ERROR_DEVICE_UNAVAILABLE, "the server is draining and takes no new clients",
                          "name another server in ORION_SERVER or try again later")  # fmt: skip
        if len(self._sessions) + self._attaching >= self._settings.max_sessions:
            raise Refused(CUDA_ERROR_DEVICE_UNAVAILABLE, f"the server already has {len(self._sessions)} clients",
                          "try again when one has ended, or raise max_sessions on the server")  # fmt: skip
        self._attaching += 1
        self._idle.clear()
        try:
            try:
                session = await self._open_session(request, envelope)
            except WorkerDied as death:  # a waiting one, of whose end nobody had heard yet
                log.warning("%s: another one is taken", death)
                session = await self._open_session(request, envelope)
        finally:
            self._attaching -= 1
            self._update_idle()
        log.info(
            "session %s: attached pid %d (%s), worker %d", session.id, session.pid, session.program, session.worker.pid
        )

    def _authenticate(self, key: str) -> None:
        if not self._client_key.admits(key):
            raise Refused(CUDA_ERROR_NOT_PERMITTED, "this server asks its clients for a key, and it is "
                          + ("wrong" if key else "missing"),
                          "set ORION_CLIENT_KEY to what the server's --client-key-file holds")  # fmt: skip

    async def _open_session(self, request: control.Attach, envelope: Envelope) -> Session:
        environment = {k: v for k, v in request.env.items() if k in CLIENT_ENVIRONMENT}
        ticket = self._ticket(request)
        owner = Owner(request.host, request.uid, ticket.group if ticket else request.group)
        member = Member(secrets.token_hex(6), request.pid, owner, ticket.shared if ticket else _shares(request),
                        ticket.allocation if ticket else "")  # fmt: skip
        worker: WorkerProcess | None = None
        try:
            slices = self._vgpus.admit(member, _wish_of_ticket(ticket) if ticket else _wish(request))
            began_s = time.monotonic()
            worker = await self._pool.take(environment, owner)
            stages = {"worker": _us_since(began_s)}
            self._vgpus.assign(member.session, worker.seat)
            return await self._prepare(worker, request, envelope, stages, member, slices)
        except BaseException:
            if self._link is not None:
                self._link.give_back(request.ticket)
            if worker is None or worker.state is State.DEAD:
                self._vgpus.release(member.session)
            else:  # it has its seat until it is dead
                worker.dead.add_done_callback(lambda _: self._vgpus.release(member.session))
                worker.stop("attach failed")
            raise

    def _ticket(self, request: control.Attach) -> Ticket | None:
        """The client's right to be here, in a pool."""
        if self._link is None:
            return None
        if not request.ticket:
            raise Refused(CUDA_ERROR_NOT_PERMITTED, "this server belongs to a pool and takes only clients that its "
                          "controller sends",
                          f"set ORION_CONTROLLER={self._settings.controller}, not ORION_SERVER")  # fmt: skip
        try:
            return self._link.check(request.ticket)
        except TicketError as error:
            raise Refused(CUDA_ERROR_NOT_PERMITTED, str(error), "start the program again: the controller gives it a "
                          "new one") from error  # fmt: skip

    async def _prepare(
        self,
        worker: WorkerProcess,
        request: control.Attach,
        envelope: Envelope,
        stages: dict[str, int],
        member: Member,
        slices: list[Slice],
    ) -> Session:
        devices = [mine.gpu for mine in slices]
        session_id, owner = member.session, member.owner
        token = secrets.token_bytes(32)
        # Where clients of other users can come to a session's socket, they see a folder with nothing else in it.
        serves_all = self._settings.shm_dir is not None and os.geteuid() == 0
        same_host = request.host == self._boot_id and (serves_all or request.uid in (os.geteuid(), 0))
        transports = [
            t for t in request.transports if t == "tcp" or (t == "shm" and same_host and self._settings.enable_shm)
        ]
        if not transports:
            raise Refused(CUDA_ERROR_INVALID_VALUE, f"no transport of {request.transports} can work here",
                          "shared memory needs client and server on one host under one user: use tcp")  # fmt: skip
        try:
            encrypted = "tcp" in transports and lanes_encrypted(self._settings, request)
        except LanesRefused as refusal:
            raise Refused(CUDA_ERROR_NOT_PERMITTED, str(refusal), refusal.hint) from None
        ucx_refused = self._ucx_refusal(request, worker) if request.ucx and "tcp" in transports else ""
        offers_ucx = bool(request.ucx) and "tcp" in transports and not ucx_refused
        folder = self._settings.shm_dir or self._socket_dir
        socket_path = str(folder / f"{session_id}.sock") if "shm" in transports else ""
        began_s = time.monotonic()
        if socket_path:
            worker.open_doorway(socket_path, request.uid if serves_all else None)
        prepared = await worker.request(
            {"type": "prepare", "token": token, "uid": request.uid, "shm": bool(socket_path),
             "tcp": "tcp" in transports, "raw_lanes": "raw" in request.lanes, "address": self._lanes_address,
             "ciphers": request.ciphers if encrypted else [], "ucx": offers_ucx},
            self._settings.bind_timeout_s,
        )  # fmt: skip
        if not prepared.get("ok"):
            raise WorkerError(str(prepared.get("message", "the worker refused the session"))[:400])
        stages["prepare"] = _us_since(began_s)
        stages.update(_stages(prepared))
        session = Session(session_id, token, worker, request.pid, request.program, devices, time.time(), owner)
        session.stages = stages
        session.asked_for_ucx = bool(request.ucx)
        session.allocation = member.allocation
        self._sessions[session_id] = session
        self._tell_pool()
        if worker.images is not None:
            worker.images.open(session_id, owner.uid, owner.group, self._shares.open(session_id, owner))
        worker.on_connected = lambda lanes: self._connected(session, lanes)
        worker.dead.add_done_callback(lambda _: self._ended(session))
        self._set_deadline(session, self._settings.bind_timeout_s, "the client did not bind in time")
        self._send(
            envelope,
            control.Attached(
                id=request.id,
                session=session_id,
                token=token,
                wire=control.WIRE_VERSION,
                server=__version__,
                device_name_kind="nvidia" if self._libcuda.kind == "nvidia" else "softgpu",
                driver_version=self._driver_version,
                runtime_validated=self._runtime.covers(devices),
                shm_socket=socket_path,
                tcp_ops=str(prepared.get("tcp_ops", "")),
                tcp_bulk=str(prepared.get("tcp_bulk", "")),
                cipher=str(prepared.get("cipher", "")),
                ucx=str(prepared.get("ucx", "")),
                ucx_refused=(ucx_refused or str(prepared.get("ucx_refused", "")))[:200],
                warm=worker.was_warm,
                stages=stages,
                devices=[self._as_seen(mine) for mine in slices],
            ),
        )
        return session

    def _ucx_refusal(self, request: control.Attach, worker: WorkerProcess) -> str:
        refusal = self._rdma.refusal(request, str(worker.hello.get("ucx_missing", ""))[:200])
        if refusal:
            log.info("a client asks for RDMA and gets tcp: %s", refusal)
        return refusal

    def _as_seen(self, mine: Slice) -> control.Device:
        """The GPU of a vGPU as its programs see it: as large as their quota."""
        device = next(gpu for gpu in self._gpus if gpu.ordinal == mine.gpu)
        return msgspec.structs.replace(device, total_bytes=mine.limits.quota_bytes or device.total_bytes)

    async def _bind(self, envelope: Envelope, request: control.Bind) -> None:
        session = self._sessions.get(request.session)
        if session is None or not hmac.compare_digest(session.token, request.token):
            raise Refused(CUDA_ERROR_INVALID_VALUE, "no such session", "attach again")
        if session.transport or session.worker.state is not State.SERVING:
            raise Refused(CUDA_ERROR_INVALID_VALUE, "the session is bound already or has ended", "attach again")
        if any(device.ordinal not in session.devices for device in request.devices):
            raise Refused(CUDA_ERROR_INVALID_DEVICE, "bind names a GPU that is not of this session")
        slots = [[d.ordinal, d.base, d.bytes] for d in request.devices]
        began_s = time.monotonic()
        answer = await session.worker.request(
            {"type": "bind", "transport": request.transport, "host_base": request.host_base, "devices": slots},
            self._settings.bind_timeout_s,
        )
        if answer.get("ok"):
            session.transport = self._pool.transport = request.transport
            log.info("session %s: bound over %s", session.id, session.transport)
            session.bound_at_s = time.monotonic()
            stages = {"bind": _us_since(began_s), **_stages(answer)}
            session.stages |= stages
            # A client whose UCX does not connect comes over tcp afterwards.
            limit_s = self._settings.connect_timeout_s * (2 if session.asked_for_ucx else 1)
            self._set_deadline(session, limit_s, "the client did not connect in time")
            self._send(envelope, control.Bound(id=request.id, stages=stages))
        elif "conflict" in answer:
            host, clashing = answer["conflict"]
            self._send(envelope, control.Conflict(id=request.id, host=bool(host), devices=list(clashing)))
        else:
            session.worker.stop("bind failed")
            told = answer.get("code")
            code = told if isinstance(told, int) and 0 < told < 1000 else CUDA_ERROR_UNKNOWN
            raise Refused(code, str(answer.get("message", "bind failed"))[:400], _SEE_SERVER_LOG)

    async def _detach(self, envelope: Envelope, request: control.Detach) -> None:
        session = self._sessions.get(request.session)
        if session is not None and hmac.compare_digest(session.token, request.token):
            session.worker.stop("the client gave the session back")

    # ------------------------------------------------------------------------------------------ life of sessions

    def _set_deadline(self, session: Session, delay_s: float, reason: str) -> None:
        if session.deadline is not None:
            session.deadline.cancel()
        if not session.connected:
            session.deadline = asyncio.get_running_loop().call_later(delay_s, session.worker.stop, reason)

    def _connected(self, session: Session, lanes: object) -> None:
        session.connected = True
        if session.transport == "tcp" and lanes == "ucx":
            session.transport = "ucx"
        if session.asked_for_ucx:
            uses = "RDMA (UCX)" if session.transport == "ucx" else f"{session.transport}, although it asked for RDMA"
            log.info("session %s: the client uses %s", session.id, uses)
        session.stages["connected"] = _us_since(session.bound_at_s)
        told = ", ".join(f"{name} {us / 1000:.2f}" for name, us in session.stages.items())
        log.info("session %s: attach took, ms: %s (%s worker)", session.id, told,
                 "warm" if session.worker.was_warm else "cold")  # fmt: skip
        if session.deadline is not None:
            session.deadline.cancel()
            session.deadline = None

    def _ended(self, session: Session) -> None:
        if session.deadline is not None:
            session.deadline.cancel()
        self._sessions.pop(session.id, None)
        self._vgpus.release(session.id)
        self._tell_pool()
        log.info("session %s: ended: %s", session.id, session.worker.reason)
        self._update_idle()

    def _tell_pool(self) -> None:
        if self._link is not None:
            self._link.changed()

    def _update_idle(self) -> None:
        if not self._sessions and self._attaching == 0:
            self._idle.set()

    # ------------------------------------------------------------------------------------------ stats

    def _only_of_its_group(self, request: control.Stats) -> bool:
        """`stats` names what tenants run. Whether its asker is a pod, who may know of its own group alone."""
        self._authenticate(request.key)
        if self._link is None or self._admin.admits(request.key) or self._link.admits_to_stats(request.key):
            return False
        if request.group and self._link.admits_to_stats(request.key, request.group):
            return True
        if is_loopback(self._settings.host):
            return False
        raise Refused(CUDA_ERROR_NOT_PERMITTED, "this server belongs to a pool and tells what it does to those "
                      "whom its controller sends", "set ORION_CONTROLLER instead of a server")  # fmt: skip

    async def _stats(self, envelope: Envelope, request: control.Stats) -> None:
        only_of_group = self._only_of_its_group(request)
        await self._refresh_sessions()
        if request.telemetry:
            await self._telemetry.refresh()
            answer = self._reports.for_tenant(request)
        else:
            answer = self._reports.of_group(request) if only_of_group else self._reports.whole(request)
        self._send(envelope, answer)

    async def report(self) -> control.StatsAnswer:
        """What `stats` tells an operator, now."""
        await self._refresh_sessions()
        return self._reports.whole(control.Stats(id=0))

    async def _refresh_sessions(self) -> None:
        await asyncio.gather(*(self._refresh(session) for session in list(self._sessions.values())))

    async def _refresh(self, session: Session) -> None:
        try:
            answer = await session.worker.request({"type": "stats"}, _STATS_TIMEOUT_S)
        except WorkerError:
            return  # busy inside the driver or ending: the last figures stand
        session.stats = answer

    # ------------------------------------------------------------------------------------------ changes and drain

    def _authorize(self, token: str) -> None:
        if not self._admin.admits(token):
            raise Refused(CUDA_ERROR_NOT_PERMITTED, "only an administrator may do that, and the token is missing or "
                          "wrong", f"it lies in {self._admin.path} on the server's machine: set ORION_ADMIN_TOKEN or "
                          "use orionctl --token-file")  # fmt: skip

    async def _resize(self, envelope: Envelope, request: control.Resize) -> None:
        self._authorize(request.token)
        policy = None if request.policy is None else Policy[request.policy.upper()]
        change = Change(request.gmem_mib, request.ratio, policy)
        slices = self._vgpus.resize(request.target, request.gpu, change, request.shrink == "block")
        self._send(envelope, control.Resized(id=request.id, vgpus=self._reports.vgpus(slices)))

    async def _configure(self, envelope: Envelope, request: control.Configure) -> None:
        self._authorize(request.token)
        policy = None if request.policy is None else Policy[request.policy.upper()]
        self._vgpus.registry.configure(request.vgpu_count, policy, request.overcommit_ratio)
        defaults = self._reports.defaults()
        log.info("vGPUs made from now on: %s", defaults)
        if self._link is not None:
            self._link.register_again()
        self._send(envelope, control.Configured(id=request.id, defaults=defaults))

    async def _drain(self, envelope: Envelope, request: control.Drain) -> None:
        self._authorize(request.token)
        await self.drain()
        self._send(envelope, control.Drained(id=request.id))


def gpu_memory(gpu: control.Device, free_bytes: int, before_bytes: int | None, after_bytes: int | None) -> Gpu:
    """What of a GPU others hold, and what a worker's context takes: from NVML's figures before and after the first
    worker started, else from what that worker saw left."""
    if before_bytes is not None and after_bytes is not None:
        return Gpu(gpu.ordinal, gpu.total_bytes, before_bytes, max(0, after_bytes - before_bytes))
    used_bytes = max(0, gpu.total_bytes - free_bytes)
    context_bytes = min(used_bytes, _CONTEXT_MOST_BYTES)
    return Gpu(gpu.ordinal, gpu.total_bytes, used_bytes - context_bytes, context_bytes)


def _wish(request: control.Attach) -> Wish:
    policy = Policy[request.ratio_policy.upper()] if request.ratio_policy else None
    return Wish(request.vgpu, request.gmem_mib, request.ratio, policy)


def _wish_of_ticket(ticket: Ticket) -> Wish:
    policy = Policy[ticket.ratio_policy.upper()] if ticket.ratio_policy else None
    return Wish(len(ticket.ordinals), ticket.gmem_mib, ticket.ratio, policy, ticket.ordinals)


def _shares(request: control.Attach) -> bool:
    return request.res_group == "BOX" and bool(request.group)


def _us_since(began_s: float) -> int:
    return max(0, min(int((time.monotonic() - began_s) * 1e6), 0xFFFFFFFF))


def _stages(answer: dict[str, Any]) -> dict[str, int]:
    """What a worker says of its own stages; it runs a tenant's kernels, and the client's control plane is strict."""
    times = answer.get("times")
    if not isinstance(times, dict):
        return {}
    return {
        name: us
        for name, us in list(times.items())[:_STAGES_MAX]
        if isinstance(name, str) and len(name) < 20 and isinstance(us, int) and 0 <= us <= 0xFFFFFFFF
    }


_SEE_SERVER_LOG = "see the log of orion-server"
