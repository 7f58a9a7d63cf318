"""Entry of a worker: make contexts, wait for one session, serve it, end."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import logging
import os
import selectors
import socket
import threading
import time
from typing import Any

from orion_server import log as log_setup
from orion_server.channel import BlockingChannel
from orion_server.worker.confinement import LANES, READY, Confinement, ConfinementError
from orion_server.worker.doorway import Doorway
from orion_server.worker.driver import Driver, load, null_snapshot
from orion_server.worker.engine import (
    BindConflict,
    Engine,
    EngineError,
    Files,
    Seat,
    reserve_addresses,
    ucx_problem,
    usable_cipher,
)

log = logging.getLogger("orion.worker")

_STOP_WAIT_S = 0.3
_LANES_POLL_S = 0.05


class Worker:
    """One thread that talks to the server and the client's doorway, and one that runs the engine."""

    def __init__(
        self,
        channel: BlockingChannel,
        kind: str,
        libcuda: str,
        transport: str,
        log_level: str,
        image_fd: int,
        log_fd: int,
        seat: Seat,
        door: socket.socket,
        confinement: Confinement,
        ucx_devices: str | None = None,
    ) -> None:
        self._channel = channel
        self._kind = kind
        self._libcuda = libcuda
        self._transport = transport
        self._log_level = log_level
        self._image_fd = image_fd
        self._log_fd = log_fd
        self._seat = seat
        self._door = door
        self._confinement = confinement
        self._ucx_devices = ucx_devices  # None: no UCX
        self._isolates_later = False  # the engine installs the filter LANES when the client has come
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel.socket, selectors.EVENT_READ, self._on_channel)
        self._engine: Engine | None = None
        self._thread: threading.Thread | None = None
        self._doorway: Doorway | None = None
        self._client: socket.socket | None = None
        self._driver: Driver | None = None  # keeps pycuda's references to the contexts
        self._end_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._end_reason = ""
        self._end: str | None = None
        self._awaits_lanes = False

    def warm(self) -> None:
        """Makes all that needs no client, and tells the server what the devices are."""
        watch = Stopwatch()
        driver_version = 13000
        handles: list[int] = []
        if self._kind != "null":
            load(self._libcuda)
        ucx_missing = ""
        if self._ucx_devices is not None:
            self._confinement.allow_locked_memory()
            ucx_missing = ucx_problem()
        self._confinement.become()
        watch.lap("load")
        if self._kind == "null":
            devices = null_snapshot()
        else:
            self._driver = Driver(self._libcuda)
            devices = self._driver.snapshot()
            driver_version = self._driver.driver_version
            handles = self._driver.primary_handles
        watch.lap("contexts")
        if self._driver is not None:
            self._driver.exercise()
        watch.lap("exercise")
        files = Files(_replace("orion-stdout", 1), _replace("orion-stderr", 2), self._log_fd)
        self._engine = Engine(self._kind, self._libcuda, handles, self._log_level, self._image_fd, files, self._seat)
        try:
            self._engine.prepare(self._transport, {d["ordinal"]: d["slot_bytes"] for d in devices})
        except EngineError as error:
            log.warning("nothing is prepared for a client: %s", error)  # its bind does all, or tells it why not
        watch.lap("prepare")
        self._confinement.forbid(READY)
        watch.lap("confine")
        free_bytes = self._driver.free_bytes() if self._driver is not None else [d["total_bytes"] for d in devices]
        self._channel.send(
            {"type": "hello", "driver_version": driver_version, "devices": devices, "free_bytes": free_bytes,
             "times": watch.laps, "ucx_missing": ucx_missing}
        )  # fmt: skip

    def serve(self) -> str:
        """Handles events until the session ends; returns why it did."""
        while self._end is None:
            events = self._selector.select(_LANES_POLL_S if self._awaits_lanes else None)
            if self._awaits_lanes and self._engine is not None and self._engine.lanes_connected():
                self._awaits_lanes = False
                self._channel.send({"type": "connected", "lanes": self._engine.lanes()})
            for key, _ in events:
                key.data()
                if self._end is not None:
                    break
        return self._end

    def shut(self, reason: str) -> None:
        """Stops the engine if it can be stopped soon; the process ends in any case."""
        if self._doorway is not None:
            self._doorway.close()
        if self._engine is not None and self._thread is not None:
            self._engine.stop()
            self._thread.join(_STOP_WAIT_S)
        try:
            self._channel.send({"type": "ended", "reason": reason})
        except OSError:
            pass  # the server went first

    # ------------------------------------------------------------------------------------------ events

    def _on_channel(self) -> None:
        messages = self._channel.receive()
        if messages is None:
            self._end = "the server is gone"
            return
        for message in messages:
            kind = message.get("type")
            if kind == "stop":
                self._end = "stopped by the server"
                return
            handler = {"prepare": self._prepare, "bind": self._bind, "stats": self._stats}[str(kind)]
            try:
                answer = handler(message)
            except (EngineError, ConfinementError, OSError) as error:
                log.error("%s failed: %s", kind, error)
                answer = {"ok": False, "code": getattr(error, "code", 999), "message": str(error)}
            self._channel.send({"type": "answer", "id": message["id"], **answer})

    def _prepare(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._engine is not None
        watch = Stopwatch()
        answer: dict[str, Any] = {"ok": True, "times": watch.laps}
        if message["shm"]:
            _, fds, _, _ = socket.recv_fds(self._door, 1, 1, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
            self._doorway = Doorway(socket.socket(fileno=fds[0]), message["uid"], message["token"])
            self._selector.register(self._doorway.listener, selectors.EVENT_READ, self._on_knock)
        if message["tcp"]:
            cipher = usable_cipher(message["ciphers"])
            if message["ciphers"] and not cipher:
                return {"ok": False, "message": f"this machine can use none of the ciphers {message['ciphers']}"}
            endpoints = self._engine.open_lanes(message["token"], message["raw_lanes"], message["address"], cipher)
            answer["tcp_ops"], answer["tcp_bulk"] = endpoints
            answer["cipher"] = cipher
            watch.lap("lanes")
            if message.get("ucx"):
                self._open_ucx(answer)
                watch.lap("ucx")
        if not self._isolates_later:
            self._confinement.forbid(LANES)
        return answer

    def _open_ucx(self, answer: dict[str, Any]) -> None:
        assert self._engine is not None and self._ucx_devices is not None
        seccomp = self._confinement.seccomp
        endpoint, why = self._engine.open_ucx(self._ucx_devices, seccomp, self._confinement.tells)
        answer["ucx"], answer["ucx_refused"] = endpoint, why
        self._isolates_later = bool(endpoint)
        if why:
            log.warning("no UCX for this client, which may use tcp: %s", why)

    def _bind(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._engine is not None
        devices = [(int(ordinal), int(base), int(size)) for ordinal, base, size in message["devices"]]
        host_base = int(message["host_base"])
        try:
            if message["transport"] == "shm":
                assert self._doorway is not None
                self._engine.bind_shm(host_base, devices)
                if self._isolates_later:  # the lanes have just been closed
                    self._confinement.forbid(LANES)
                self._doorway.fds = self._engine.memory
            else:
                self._close_doorway()
                self._engine.bind_tcp(host_base, devices)
                self._awaits_lanes = True
        except BindConflict as conflict:
            return {"ok": False, "conflict": [conflict.host, conflict.devices]}
        self._selector.register(self._end_fd, selectors.EVENT_READ, self._on_engine_end)
        self._thread = threading.Thread(target=self._run_engine, name="engine", daemon=True)
        self._thread.start()
        return {"ok": True, "times": self._engine.bind_times()}

    def _stats(self, message: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, **(self._engine.stats() if self._engine is not None else {})}

    def _on_knock(self) -> None:
        assert self._doorway is not None
        connection = self._doorway.accept()
        if connection is None:
            self._refused()
        else:
            self._selector.register(connection, selectors.EVENT_READ, functools.partial(self._on_token, connection))

    def _on_token(self, connection: socket.socket) -> None:
        assert self._doorway is not None
        self._selector.unregister(connection)
        if not self._doorway.admit(connection):
            self._doorway.turn_away(connection)
            self._refused()
            return
        self._close_doorway()
        self._client = connection
        self._selector.register(connection, selectors.EVENT_READ, self._on_client)
        self._channel.send({"type": "connected"})

    def _refused(self) -> None:
        assert self._doorway is not None
        log.warning("somebody without the session's token was turned away")
        if self._doorway.is_besieged:
            self._end = "too many attempts to enter the session without its token"

    def _close_doorway(self) -> None:
        if self._doorway is not None and self._doorway.listener.fileno() >= 0:
            for gone in (self._doorway.listener, *self._doorway.waiting):
                self._selector.unregister(gone)
            self._doorway.close()

    def _on_client(self) -> None:
        # Nothing is ever sent here after the handshake: readable means that the client is gone.
        assert self._client is not None and self._engine is not None
        self._selector.unregister(self._client)
        self._engine.client_lost()
        self._thread_wait()

    def _thread_wait(self) -> None:
        assert self._thread is not None
        self._thread.join(_STOP_WAIT_S)
        if self._thread.is_alive():
            self._end = "the client is gone"

    def _on_engine_end(self) -> None:
        os.eventfd_read(self._end_fd)
        self._end = self._end_reason

    def _run_engine(self) -> None:
        assert self._engine is not None
        try:
            self._end_reason = self._engine.run()
        except Exception as error:  # whatever it is, the session must end and say so
            self._end_reason = f"engine failed: {error}"
        os.eventfd_write(self._end_fd, 1)


class Stopwatch:
    """Microseconds of stages, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, int] = {}
        self._from_ns = time.monotonic_ns()

    def lap(self, name: str) -> None:
        now_ns = time.monotonic_ns()
        self.laps[name] = (now_ns - self._from_ns) // 1000
        self._from_ns = now_ns


def _replace(name: str, standard_fd: int) -> int:
    """Puts a file in memory in the place of stdout or stderr: what the driver writes there is the client's."""
    file = os.memfd_create(name)
    fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND)
    os.dup2(file, standard_fd)
    return file


def main() -> None:
    """Runs one worker; started by orion-server only."""
    parser = argparse.ArgumentParser(prog="orion_server.worker")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--image-fd", type=int, required=True)
    parser.add_argument("--seat-fds", type=int, nargs=3, required=True, metavar=("MEMORY", "DOORBELL", "WAKE"))
    parser.add_argument("--door-fd", type=int, required=True)
    parser.add_argument("--uid", type=int, default=-1)
    parser.add_argument("--groups", type=int, nargs="+", default=[])
    parser.add_argument("--seccomp", choices=["on", "off", "required"], default="on")
    parser.add_argument("--kind", required=True)
    parser.add_argument("--libcuda", required=True)
    parser.add_argument("--transport", choices=["shm", "tcp"], default="shm")
    parser.add_argument("--ucx-devices", default=None)
    parser.add_argument("--log-level", default="info")
    arguments = parser.parse_args()
    confinement = Confinement(arguments.uid, arguments.groups, arguments.seccomp, tells=arguments.log_level == "debug")
    confinement.limit()
    reserve_addresses()
    log_fd = os.dup(2)
    log_setup.configure(arguments.log_level, False, os.fdopen(log_fd, "w", buffering=1))
    channel = BlockingChannel(socket.socket(fileno=arguments.channel_fd))
    for fd in (arguments.channel_fd, arguments.image_fd, arguments.door_fd, *arguments.seat_fds):
        os.set_inheritable(fd, False)
    worker = Worker(
        channel,
        arguments.kind,
        arguments.libcuda,
        arguments.transport,
        arguments.log_level,
        arguments.image_fd,
        log_fd,
        Seat(*arguments.seat_fds),
        socket.socket(fileno=arguments.door_fd),
        confinement,
        arguments.ucx_devices,
    )
    try:
        worker.warm()
    except BrokenPipeError:
        os._exit(1)  # the server stopped meanwhile
    except Exception as error:  # the server tells it to the operator; a traceback would say less
        with contextlib.suppress(OSError):
            channel.send({"type": "failed", "message": f"{type(error).__name__}: {error}"})
        os._exit(1)
    try:
        reason = worker.serve()
    except Exception:  # stderr is the client's by now: the log is the only place where this can be seen
        log.exception("the worker failed")
        os._exit(1)
    worker.shut(reason)
    # The kernel frees everything at once; Python's and CUDA's own tear-down would only take longer.
    os._exit(0)


if __name__ == "__main__":
    main()
