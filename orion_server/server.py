"""Admission: attach, bind, stats and drain, and the life of sessions. Never touches CUDA."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from orion_server import __version__, runtime_validation
from orion_server.config import CLIENT_ENVIRONMENT, Settings
from orion_server.control_socket import ControlSocket, Envelope
from orion_server.image_cache import ImageCache
from orion_server.libcuda import Libcuda
from orion_server.pool import WorkerPool
from orion_server.shares import Shares
from orion_server.telemetry import Telemetry, find_library
from orion_server.worker_process import State, WorkerDied, WorkerError, WorkerProcess
from wire import control

log = logging.getLogger("orion.server")

CUDA_ERROR_INVALID_VALUE = 1
CUDA_ERROR_DEVICE_UNAVAILABLE = 46
CUDA_ERROR_INVALID_DEVICE = 101
CUDA_ERROR_UNKNOWN = 999

_STATS_TIMEOUT_S = 0.5
_MAX_TASKS = 256
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


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, code: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


@dataclass(frozen=True)
class Owner:
    """Whose sessions a client may see: those of its own user and group on its own host."""

    host: str
    uid: int
    group: str


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
    transport: str = ""
    connected: bool = False
    deadline: asyncio.TimerHandle | None = None
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


class Server:
    """orion-server without its command line."""

    def __init__(self, settings: Settings, libcuda: Libcuda, socket_dir: Path) -> None:
        self._settings = settings
        self._libcuda = libcuda
        self._socket_dir = socket_dir
        self._images = ImageCache(settings.image_cache_mib << 20)
        self._shares = Shares()
        self._pool = WorkerPool(
            libcuda,
            settings.devices,
            settings.warm,
            settings.worker_start_timeout_s,
            settings.log_level,
            self._images,
        )
        self._sessions: dict[str, Session] = {}
        self._attaching = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._socket: ControlSocket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._boot_id = control.boot_id()
        self._gpus: list[control.Device] = []
        self._driver_version = 0
        self._runtime = runtime_validation.Outcome()
        self._telemetry = Telemetry(find_library(libcuda, settings.nvml))

    @property
    def address(self) -> str:
        """host:port of the control port."""
        assert self._socket is not None
        return self._socket.address

    @property
    def gpus(self) -> list[control.Device]:
        """The devices as the first worker described them."""
        return self._gpus

    async def start(self) -> None:
        """Opens the control port once a first worker has shown that the devices work."""
        self._socket = ControlSocket(self._settings.host, self._settings.port, self._receive)
        try:
            first, self._runtime = await asyncio.gather(
                self._pool.start(), runtime_validation.validate(self._libcuda, self._settings.devices)
            )
        except WorkerError:
            await self.close()
            raise
        try:
            self._gpus = msgspec.convert(first.hello.get("devices"), list[control.Device])
            self._driver_version = msgspec.convert(first.hello.get("driver_version"), int)
        except msgspec.ValidationError as error:
            await self.close()
            raise WorkerError(f"the driver's description of its devices cannot be used: {error}") from error
        self._telemetry.describe(self._gpus)

    async def drain(self) -> None:
        """Admits nobody from now on; returns when the last session has ended."""
        if not self._draining:
            self._draining = True
            log.info("draining: %d session(s) left", len(self._sessions))
        await self._idle.wait()

    async def close(self) -> None:
        """Ends all sessions and workers and closes the port."""
        self._draining = True
        await self._pool.close()
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

    async def _open_session(self, request: control.Attach, envelope: Envelope) -> Session:
        environment = {k: v for k, v in request.env.items() if k in CLIENT_ENVIRONMENT}
        worker = await self._pool.take(environment)
        try:
            return await self._prepare(worker, request, envelope)
        except BaseException:
            worker.stop("attach failed")
            raise

    async def _prepare(self, worker: WorkerProcess, request: control.Attach, envelope: Envelope) -> Session:
        devices = self._choose_devices(request.vgpu)
        session_id = secrets.token_hex(6)
        token = secrets.token_bytes(32)
        same_host = request.host == self._boot_id and request.uid in (os.geteuid(), 0)
        transports = [
            t for t in request.transports if t == "tcp" or (t == "shm" and same_host and self._settings.enable_shm)
        ]
        if not transports:
            raise Refused(CUDA_ERROR_INVALID_VALUE, f"no transport of {request.transports} can work here",
                          "shared memory needs client and server on one host under one user: use tcp")  # fmt: skip
        socket_path = str(self._socket_dir / f"{session_id}.sock") if "shm" in transports else ""
        prepared = await worker.request(
            {"type": "prepare", "token": token, "uid": request.uid, "shm_socket": socket_path,
             "tcp": "tcp" in transports, "raw_lanes": "raw" in request.lanes},
            self._settings.bind_timeout_s,
        )  # fmt: skip
        if not prepared.get("ok"):
            raise WorkerError(str(prepared.get("message", "the worker refused the session"))[:400])
        owner = Owner(request.host, request.uid, request.group)
        session = Session(session_id, token, worker, request.pid, request.program, devices, time.time(), owner)
        self._sessions[session_id] = session
        if worker.images is not None:
            worker.images.open(session_id, request.uid, request.group, self._shares.open(session_id, owner))
        worker.on_connected = lambda: self._connected(session)
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
                devices=[device for device in self._gpus if device.ordinal in devices],
            ),
        )
        return session

    def _choose_devices(self, count: int) -> list[int]:
        """`count` devices (0: all), those with the fewest sessions first; told in ordinal order."""
        ordinals = [gpu.ordinal for gpu in self._gpus]
        if count > len(ordinals):
            raise Refused(CUDA_ERROR_INVALID_DEVICE, f"{count} vGPUs wanted, this server has {len(ordinals)} GPU(s)",
                          "lower ORION_VGPU or name more servers in ORION_SERVER")  # fmt: skip
        if count == 0:
            return ordinals
        load = {o: sum(o in session.devices for session in self._sessions.values()) for o in ordinals}
        return sorted(sorted(ordinals, key=lambda o: (load[o], o))[:count])

    async def _bind(self, envelope: Envelope, request: control.Bind) -> None:
        session = self._sessions.get(request.session)
        if session is None or not hmac.compare_digest(session.token, request.token):
            raise Refused(CUDA_ERROR_INVALID_VALUE, "no such session", "attach again")
        if session.transport or session.worker.state is not State.SERVING:
            raise Refused(CUDA_ERROR_INVALID_VALUE, "the session is bound already or has ended", "attach again")
        if any(device.ordinal not in session.devices for device in request.devices):
            raise Refused(CUDA_ERROR_INVALID_DEVICE, "bind names a GPU that is not of this session")
        slots = [[d.ordinal, d.base, d.bytes] for d in request.devices]
        answer = await session.worker.request(
            {"type": "bind", "transport": request.transport, "host_base": request.host_base, "devices": slots},
            self._settings.bind_timeout_s,
        )
        if answer.get("ok"):
            session.transport = request.transport
            log.info("session %s: bound over %s", session.id, session.transport)
            self._set_deadline(session, self._settings.connect_timeout_s, "the client did not connect in time")
            self._send(envelope, control.Bound(id=request.id))
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

    def _connected(self, session: Session) -> None:
        session.connected = True
        if session.deadline is not None:
            session.deadline.cancel()
            session.deadline = None

    def _ended(self, session: Session) -> None:
        if session.deadline is not None:
            session.deadline.cancel()
        self._sessions.pop(session.id, None)
        log.info("session %s: ended: %s", session.id, session.worker.reason)
        self._update_idle()

    def _update_idle(self) -> None:
        if not self._sessions and self._attaching == 0:
            self._idle.set()

    # ------------------------------------------------------------------------------------------ stats and drain

    async def _stats(self, envelope: Envelope, request: control.Stats) -> None:
        refreshes = [self._refresh(session) for session in list(self._sessions.values())]
        await asyncio.gather(*refreshes, *([self._telemetry.refresh()] if request.telemetry else []))
        sessions = list(self._sessions.values())
        ordinals = [gpu.ordinal for gpu in self._gpus]
        if request.telemetry:
            owner = Owner(request.host, request.uid, request.group)
            sessions = [session for session in sessions if session.owner == owner]
            own = [session.devices for session in sessions if session.pid == request.pid]
            ordinals = own[0] if own else self._choose_devices(min(request.vgpu, len(ordinals)))
        self._send(
            envelope,
            control.StatsAnswer(
                id=request.id,
                server=__version__,
                name=os.uname().nodename,
                driver=self._telemetry.driver,
                driver_version=self._driver_version,
                gpus=[self._gpu_stats(ordinal, ordinals, request.telemetry) for ordinal in ordinals],
                sessions=[self._session_stats(session) for session in sessions],
                images=self._images.stats(),
            ),
        )

    def _gpu_stats(self, ordinal: int, ordinals: list[int], telemetry: bool) -> control.GpuStats:
        index = next(i for i, gpu in enumerate(self._gpus) if gpu.ordinal == ordinal)
        gpu = self._gpus[index]
        used = sum(session.used_bytes(ordinal) for session in self._sessions.values())
        answer = control.GpuStats(
            ordinal=ordinal,
            name=gpu.name,
            uuid=gpu.uuid,
            total_bytes=gpu.total_bytes,
            used_bytes=min(used, gpu.total_bytes),
            pci_bus_id=gpu.pci_bus_id,
        )
        if telemetry:
            answer.metrics = {name: max(0, value) for name, value in self._telemetry.metrics(index).items()}
            peers = self._telemetry.peers(index)
            answer.peers = [peers[i] for i, other in enumerate(self._gpus) if other.ordinal in ordinals]
        return answer

    def _session_stats(self, session: Session) -> control.SessionStats:
        used = {ordinal: min(session.used_bytes(ordinal), _MAX_BYTES) for ordinal in session.devices}
        return control.SessionStats(
            session=session.id,
            pid=session.pid,
            program=session.program,
            transport=session.transport,
            devices=session.devices,
            used_bytes=min(sum(used.values()), _MAX_BYTES),
            since=session.since,
            used_by_device=used,
            engine=session.engine_counters(),
        )

    async def _refresh(self, session: Session) -> None:
        try:
            answer = await session.worker.request({"type": "stats"}, _STATS_TIMEOUT_S)
        except WorkerError:
            return  # busy inside the driver or ending: the last figures stand
        session.stats = answer

    async def _drain(self, envelope: Envelope, request: control.Drain) -> None:
        await self.drain()
        self._send(envelope, control.Drained(id=request.id))


_SEE_SERVER_LOG = "see the log of orion-server"
