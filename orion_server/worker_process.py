"""The server's side of one worker process: spawn it, talk to it, learn of its end."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

from orion_server.arbitration import Arbiter, ArbiterError
from orion_server.channel import ChannelProtocol
from orion_server.image_cache import ImageCache, ImageDesk
from orion_server.isolation import Confinement, Isolation
from orion_server.libcuda import Libcuda, is_orion_client_library
from orion_server.worker_log import WorkerLog

log = logging.getLogger("orion.worker")

# A worker that was told to stop, or said that it ends, has this long before it is killed. Clients are promised that a
# dead client's memory is gone within a second.
KILL_AFTER_S = 0.7
# Of the server's own settings, what its workers look at.
_WORKER_SETTINGS = frozenset(
    {"ORION_ENGINE_LAUNCHERS", "ORION_ENGINE_LAUNCHERS_ALWAYS", "ORION_UCX_DIRECT", "ORION_UCX_SPIN_US"}
)


class State(enum.Enum):
    """Life of a worker; it serves one session and is never used again."""

    STARTING = "starting"
    WARM = "warm"
    SERVING = "serving"
    ENDING = "ending"
    DEAD = "dead"


class WorkerError(Exception):
    """The worker died, or refused a request: the message is for the client."""


class WorkerDied(WorkerError):
    """The process is gone."""


# What the driver does without the variable. Lazy loading: since CUDA 12.2.
_DRIVER_DEFAULTS = {
    "CUDA_DEVICE_MAX_CONNECTIONS": ("8",),
    "CUDA_DISABLE_PTX_JIT": ("0",),
    "CUDA_FORCE_PTX_JIT": ("0",),
    "CUDA_MODULE_DATA_LOADING": ("DEFAULT",),
    "CUDA_MODULE_LOADING": ("LAZY", "DEFAULT"),
}
_LAZY_BY_DEFAULT_SINCE = 12020


def needed_environment(client: Mapping[str, str], driver_version: int) -> dict[str, str]:
    """What of a client's CUDA settings a warm worker does not do already. PyTorch, for one, sets CUDA_MODULE_LOADING to
    what it is anyway: its processes shall not wait for a worker of their own."""
    needed: dict[str, str] = {}
    for name, value in client.items():
        same = (os.environ[name],) if name in os.environ else _DRIVER_DEFAULTS.get(name, ())
        if name == "CUDA_MODULE_LOADING" and name not in os.environ and driver_version < _LAZY_BY_DEFAULT_SINCE:
            same = ("DEFAULT",)
        if value not in same:
            needed[name] = value
    return needed


def worker_environment(libcuda: Libcuda, devices: str | None, client: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker: the server's, without what belongs to clients, with the client's CUDA settings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ORION_") or k in _WORKER_SETTINGS}
    preload = [p for p in environment.pop("LD_PRELOAD", "").replace(":", " ").split() if not _is_ours(p)]
    if preload:
        environment["LD_PRELOAD"] = ":".join(preload)
    folders = [f for f in environment.pop("LD_LIBRARY_PATH", "").split(":") if f and not _is_ours(f"{f}/libcuda.so.1")]
    if libcuda.path:
        folders.insert(0, str(Path(libcuda.path).parent))
    if folders:
        environment["LD_LIBRARY_PATH"] = ":".join(folders)
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices
    environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    root = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = ":".join([root, *filter(None, environment.get("PYTHONPATH", "").split(":"))])
    environment.update(client)
    return environment


def _is_ours(path: str) -> bool:
    return os.path.basename(path).startswith("libcuda.so") and is_orion_client_library(Path(path))


class WorkerProcess:
    """One worker. All methods run on the event loop's thread."""

    def __init__(self, process: subprocess.Popen[bytes], client_environment: Mapping[str, str]) -> None:
        self.process = process
        self.pid = process.pid
        self.client_environment = dict(client_environment)
        self.state = State.STARTING
        self.was_warm = False  # when its client came
        self.owner: Hashable | None = None  # the one tenant that may have it; None: whoever comes
        self.hello: dict[str, Any] = {}
        self.reason = ""
        self._broken = ""
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.dead: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_connected: Callable[[object], None] | None = None  # with the kind of its lanes, as the worker says
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next_id = 1
        self._protocol: ChannelProtocol | None = None
        self._pidfd = -1
        self._kill_timer: asyncio.TimerHandle | None = None
        self.images: ImageDesk | None = None
        self.seat = 0  # the arbiter's handle
        self._arbiter: Arbiter | None = None
        self._isolation = Isolation()
        self._confinement = Confinement()
        self._door: socket.socket | None = None  # over which a listening socket is handed to the worker
        self._doorway: Path | None = None
        self._log: WorkerLog | None = None

    @classmethod
    async def spawn(
        cls,
        libcuda: Libcuda,
        devices: str | None,
        client_environment: Mapping[str, str],
        log_level: str,
        images: ImageCache,
        arbiter: Arbiter,
        isolation: Isolation,
        transport: str = "shm",
        uid: int = -1,
        ucx_devices: str | None = None,
    ) -> WorkerProcess:
        """Starts a worker; `ready` completes when its contexts are made. `transport`: what it prepares for; `uid`: that
        of a live worker of the same tenant, or -1. `ucx_devices`: those that UCX may use there, empty for all; None: it
        does not load UCX."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        desk, desk_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        door, door_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, desk_theirs, door_theirs, contextlib.ExitStack() as given, contextlib.ExitStack() as made:
            for end in (ours, desk, door):
                made.callback(end.close)
            confinement = isolation.take(uid)
            made.callback(isolation.release, confinement)
            told_fd, log_fd = os.pipe2(os.O_CLOEXEC)
            made.callback(os.close, told_fd)
            given.callback(os.close, log_fd)
            seat = arbiter.add_seat()
            made.callback(arbiter.remove_seat, seat.handle)
            command = [sys.executable, "-P", "-m", "orion_server.worker", "--channel-fd", str(theirs.fileno())]
            command += ["--kind", libcuda.kind, "--libcuda", libcuda.path, "--log-level", log_level]
            command += ["--image-fd", str(desk_theirs.fileno()), "--transport", transport]
            command += ["--door-fd", str(door_theirs.fileno()), "--seat-fds", *map(str, seat.fds)]
            command += ["--ucx-devices", ucx_devices] if ucx_devices is not None else []
            command += confinement.arguments()
            environment = confinement.environment(worker_environment(libcuda, devices, client_environment))
            if ucx_devices is not None:
                # Which memory is a GPU's UCX's cache hears from hooks of another module of it (libucm_cuda). Where that
                # cannot be loaded, UCX 1.23 registers nothing of it and says that all is well. The engine tells with
                # each address what it is.
                environment.setdefault("UCX_MEMTYPE_CACHE", "n")
            try:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log_fd,
                    stderr=log_fd,
                    pass_fds=[theirs.fileno(), desk_theirs.fileno(), door_theirs.fileno(), *seat.fds],
                    # Ctrl-C at a terminal is for the server, which drains; workers end when it says so. Nor shall they
                    # have a terminal into which they could type.
                    start_new_session=True,
                )
            finally:
                seat.close_fds()
            made.pop_all()  # the worker's, from now on
        worker = cls(process, client_environment)
        worker.images = ImageDesk(images, desk)
        worker.seat, worker._arbiter = seat.handle, arbiter
        worker._isolation, worker._confinement = isolation, confinement
        worker._door, worker._log = door, WorkerLog(told_fd)
        door.setblocking(False)
        worker._pidfd = os.pidfd_open(process.pid)
        loop.add_reader(worker._pidfd, worker._reap)
        ours.setblocking(False)
        worker._protocol = ChannelProtocol(worker._on_message, worker._on_channel_end)
        protocol = worker._protocol
        await loop.create_connection(lambda: protocol, sock=ours)
        return worker

    @property
    def uid(self) -> int:
        """Of the process, where it is not the server's: else -1."""
        return self._confinement.uid

    async def request(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
        if self.state is State.DEAD or self._protocol is None:
            raise WorkerDied(self.reason or "the worker is gone")
        request_id = self._next_id
        self._next_id += 1
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[request_id] = future
        self._protocol.send({**message, "id": request_id})
        try:
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            raise WorkerError(f"worker {self.pid} did not answer {message['type']!r} in {timeout_s:g} s") from None
        finally:
            self._answers.pop(request_id, None)

    def open_doorway(self, path: str, client_uid: int | None) -> None:
        """Makes the unix socket of a session and hands it over before the worker is asked to prepare: the folder is
        closed to a worker with another uid, and its clients see this server's uid at the other end. `client_uid`: who
        may connect besides this server's user."""
        assert self._door is not None
        self._doorway = Path(path)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as listener:
                listener.bind(path)
                os.chmod(path, 0o600)
                if client_uid is not None:
                    os.chown(path, client_uid, -1)
                listener.listen(4)
                listener.setblocking(False)
                socket.send_fds(self._door, [b"\0"], [listener.fileno()])
        except OSError as error:
            raise WorkerError(f"cannot open a socket for worker {self.pid}: {error}") from error

    def _remove_doorway(self) -> None:
        if self._doorway is not None:
            self._doorway.unlink(missing_ok=True)
            self._doorway = None

    def stop(self, reason: str) -> None:
        """Tells the worker to end; kills it when it does not."""
        if self.state in (State.ENDING, State.DEAD):
            return
        self.state = State.ENDING
        self.reason = self.reason or reason
        if self._protocol is not None:
            self._protocol.send({"type": "stop"})
        self._kill_timer = asyncio.get_running_loop().call_later(KILL_AFTER_S, self.kill)

    def kill(self) -> None:
        """Ends the process at once."""
        if self.state is not State.DEAD:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _on_message(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if kind == "answer":
            request_id = message.get("id")
            future = self._answers.get(request_id) if isinstance(request_id, int) else None
            if future is not None and not future.done():
                future.set_result(message)
        elif kind == "hello":
            if self.state is State.STARTING:
                self.hello = message
                log.debug("worker %d is ready; us: %s", self.pid, message.get("times"))
                self.state = State.WARM
                self.ready.set_result(None)
        elif kind == "failed" and self.state is State.STARTING:
            self.reason = str(message.get("message", ""))[:500]
        elif kind == "connected":
            self._remove_doorway()
            if self.on_connected is not None:
                self.on_connected(message.get("lanes"))
        elif kind == "ended":
            self.stop(str(message.get("reason", ""))[:500])
        else:
            log.warning("worker %d sent an unexpected %r", self.pid, str(kind)[:40])

    def _on_channel_end(self, reason: str) -> None:
        self._protocol = None
        if self.state not in (State.ENDING, State.DEAD):
            # The exit status, which follows at once, says more than a closed channel.
            self._broken = reason
            self._kill_timer = asyncio.get_running_loop().call_later(KILL_AFTER_S, self.kill)

    def _reap(self) -> None:
        status = self.process.poll()
        if status is None:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        if self.state is not State.ENDING:
            how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            causes = [cause for cause in (self.reason, self._broken) if cause]
            self.reason = f"worker {self.pid} died ({how}){': ' if causes else ''}{', '.join(causes)}"
        self.state = State.DEAD
        if self._protocol is not None:
            self._protocol.close()
        if self.images is not None:
            self.images.close()
        if self._door is not None:
            self._door.close()
        if self._log is not None:
            self._log.close()
        self._remove_doorway()
        self._isolation.release(self._confinement)
        if self._arbiter is not None:
            with contextlib.suppress(ArbiterError):  # the server has stopped
                self._arbiter.remove_seat(self.seat)
        error = WorkerDied(self.reason)
        for future in self._answers.values():
            if not future.done():
                future.set_exception(error)
        if not self.ready.done():
            self.ready.set_exception(error)
            self.ready.exception()  # a worker may die with nobody waiting for it
        self.dead.set_result(None)
