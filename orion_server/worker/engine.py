"""The C engine behind a small Python face: the cffi module, its codes turned into exceptions and sentences."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from orion_server.engine._engine import ffi, lib
from orion_server.worker.doorway import sealed_memory

_ENDS = {
    1: "the client detached",
    2: "the client is gone",
    3: "the client broke the protocol",
    4: "stopped",
    5: "the engine failed",
}
_SPIN_US = 50
# By the names of the protocol, as enum orion_engine_cipher numbers them.
_CIPHERS = {
    "aes256gcm": lib.ORION_ENGINE_CIPHER_AES256GCM,
    "chacha20poly1305": lib.ORION_ENGINE_CIPHER_CHACHA20POLY1305,
}
_ISOLATE = {
    "off": lib.ENGINE_ISOLATE_NOT,
    "on": lib.ENGINE_ISOLATE_ON,
    "required": lib.ENGINE_ISOLATE_REQUIRED,
}
_LOG_LEVELS = {"error": 0, "warning": 1, "info": 2, "debug": 3}


class Files(NamedTuple):
    """Descriptors: what the process has as stdout and stderr, and where its log goes."""

    stdout: int
    stderr: int
    log: int


def usable_cipher(offered: list[str]) -> str:
    """The first of the client's ciphers that this machine can use too; empty when there is none."""
    return next((name for name in offered if name in _CIPHERS and lib.orion_engine_cipher_usable(_CIPHERS[name])), "")


def ucx_problem() -> str:
    """Loads UCX into this process; why it cannot be used, or nothing."""
    version, why = ffi.new("char[32]"), ffi.new("char[256]")
    if lib.orion_engine_ucx_usable(version, why):
        return ""
    return str(ffi.string(why).decode(errors="replace"))


class Seat(NamedTuple):
    """Descriptors of this worker's seat (orion_seat.h): its memory, and the eventfds to orion-server and from it."""

    memory: int
    doorbell: int
    wake: int


def reserve_addresses() -> None:
    """Keeps addresses free where clients have memory that they may register: before this process maps much itself."""
    lib.orion_engine_reserve_addresses()


class EngineError(Exception):
    """The engine refused: `code` is the CUresult."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(f"{what} returned {code}")
        self.code = code


def default_launchers(cpus: int) -> int:
    """Threads that launch beside the engine's own: none where cores are few (docs/decisions/0013)."""
    return min(8, cpus // 4) if cpus >= 8 else 0


class BindConflict(Exception):
    """Addresses that the client proposed are taken in this process."""

    def __init__(self, host: bool, devices: list[int]) -> None:
        super().__init__("address conflict")
        self.host = host
        self.devices = devices


class Engine:
    """One session's engine. What every session needs is made before its client is known (`prepare`)."""

    def __init__(
        self,
        kind: str,
        libcuda: str,
        primary_handles: list[int],
        log_level: str,
        image_fd: int,
        files: Files,
        seat: Seat | None = None,
    ) -> None:
        self._ordinals: list[int] = []
        self._memory: tuple[int, int] | None = None
        self.segment_bytes: int = lib.orion_engine_segment_bytes()
        self.arena_bytes: int = lib.orion_engine_arena_bytes()
        config = ffi.new("orion_engine_config *")
        path = ffi.new("char[]", libcuda.encode())
        config.libcuda_path = ffi.NULL if kind == "null" else path
        config.null_engine = kind == "null"
        config.transport = lib.ORION_ENGINE_SHM
        config.cpu_count = len(os.sched_getaffinity(0))
        config.spin_us = _SPIN_US
        config.ucx_spin_us = int(os.environ.get("ORION_UCX_SPIN_US") or -1)
        config.launchers = int(os.environ.get("ORION_ENGINE_LAUNCHERS") or default_launchers(config.cpu_count))
        config.launchers_always = os.environ.get("ORION_ENGINE_LAUNCHERS_ALWAYS") == "1"
        config.image_fd = image_fd
        config.stdout_fd, config.stderr_fd, config.log_fd = files
        if seat is not None:
            config.seat_fd, config.doorbell_fd, config.wake_fd = seat
        config.log_level = _LOG_LEVELS[log_level]
        made = ffi.new("orion_engine **")
        result = lib.orion_engine_new(config, made)
        if result != 0:
            raise EngineError("orion_engine_new", result)
        self._engine: Any = made[0]
        for ordinal, handle in enumerate(primary_handles):
            result = lib.orion_engine_set_primary(self._engine, ordinal, handle)
            if result != 0:
                raise EngineError("orion_engine_set_primary", result)

    @property
    def memory(self) -> tuple[int, int]:
        """Segment and host arena: descriptors of sealed memory, made once, for a client that comes by shm."""
        if self._memory is None:
            self._memory = (
                sealed_memory("orion-segment", self.segment_bytes),
                sealed_memory("orion-arena", self.arena_bytes),
            )
        return self._memory

    def prepare(self, transport: str, slot_bytes: dict[int, int]) -> None:
        """Agrees with the client to come: nearly every one proposes the first candidates. `slot_bytes` by ordinal."""
        devices = [
            (ordinal, lib.orion_engine_slot_candidate(i), size)
            for i, (ordinal, size) in enumerate(sorted(slot_bytes.items()))
        ]
        arena = self.memory[1] if transport == "shm" else -1
        request, keep = self._request(arena, lib.orion_engine_host_candidate(0), devices)
        result = lib.orion_engine_prepare(self._engine, request)
        del keep
        if result != 0:
            raise EngineError("orion_engine_prepare", result)

    def open_lanes(self, token: bytes, raw: bool, address: str, cipher: str) -> tuple[str, str]:
        """Opens the TCP lanes (`raw`: plain sockets, else ZeroMQ's) on an IPv4 address; returns their endpoints.
        `cipher`: of plain sockets, empty for none."""
        self._set_transport(lib.ORION_ENGINE_TCP)
        ops, bulk = ffi.new("char[64]"), ffi.new("char[64]")
        kind = lib.ORION_ENGINE_LANES_RAW if raw else lib.ORION_ENGINE_LANES_ZMQ
        number = _CIPHERS[cipher] if cipher else lib.ORION_ENGINE_CIPHER_NONE
        result = lib.orion_engine_tcp_listen(self._engine, kind, address.encode(), number, token, len(token), ops, bulk)
        if result != 0:
            raise EngineError("orion_engine_tcp_listen", result)
        return ffi.string(ops).decode(), ffi.string(bulk).decode()

    def open_ucx(self, devices: str, seccomp: str, tells: bool) -> tuple[str, str]:
        """Offers UCX's lanes beside plain TCP ones that are open; their endpoint, or nothing and why not. The engine
        installs the filter of system calls LANES once the client has come, as `seccomp` says."""
        endpoint, why = ffi.new("char[64]"), ffi.new("char[256]")
        result = lib.orion_engine_ucx_listen(self._engine, devices.encode(), _ISOLATE[seccomp], tells, endpoint, why)
        if result == 0:
            return ffi.string(endpoint).decode(), ""
        return "", ffi.string(why).decode(errors="replace") or f"orion_engine_ucx_listen returned {result}"

    def lanes(self) -> str:
        """What carries the session, once the client has come: tcp or ucx."""
        return str(ffi.string(lib.orion_engine_lanes(self._engine)).decode())

    def bind_shm(self, host_base: int, devices: list[tuple[int, int, int]]) -> None:
        """Agrees on addresses with a client that maps `memory` too; closes lanes that were offered."""
        self._set_transport(lib.ORION_ENGINE_SHM)
        self._bind(self.memory[1], host_base, devices)

    def bind_tcp(self, host_base: int, devices: list[tuple[int, int, int]]) -> None:
        """Agrees on addresses with a client that comes over the lanes."""
        self._bind(-1, host_base, devices)

    def bind_times(self) -> dict[str, int]:
        """Microseconds of the last bind, by stage."""
        times = ffi.new("orion_engine_bind_times *")
        lib.orion_engine_get_bind_times(self._engine, times)
        return {
            "map": times.map_ns // 1000,
            "reserve": times.reserve_ns // 1000,
            "register": times.register_ns // 1000,
        }

    def run(self) -> str:
        """Serves until the session ends; says why it did."""
        end = lib.orion_engine_run(self._engine)
        text = ffi.new("char[256]")
        lib.orion_engine_reason(self._engine, text, 256)
        reason = ffi.string(text).decode(errors="replace")
        sentence = _ENDS.get(end, f"engine ended with {end}")
        return f"{sentence}: {reason}" if reason else sentence

    def lanes_connected(self) -> bool:
        """Whether the client has come in on all TCP lanes."""
        stats = ffi.new("orion_engine_stats *")
        lib.orion_engine_get_stats(self._engine, stats)
        return bool(stats.lanes >= 2)

    def stop(self) -> None:
        """Makes `run` return soon."""
        lib.orion_engine_stop(self._engine)

    def client_lost(self) -> None:
        """Tells the engine that the client's end of the socket closed."""
        lib.orion_engine_client_lost(self._engine)

    def stats(self) -> dict[str, Any]:
        """Counters of the session; `used_bytes` by device ordinal."""
        if not self._ordinals:
            return {}
        stats = ffi.new("orion_engine_stats *")
        lib.orion_engine_get_stats(self._engine, stats)
        return {
            "used_bytes": {ordinal: stats.mapped_bytes[i] for i, ordinal in enumerate(self._ordinals)},
            "pinned_bytes": stats.pinned_bytes,
            "operations": stats.operations,
            "launches": stats.launches,
            "late_errors": stats.late_errors,
            "bytes_in": stats.bytes_in,
            "bytes_out": stats.bytes_out,
            "image_bytes": stats.image_bytes,
            "engine": {
                "busy_ns": stats.busy_ns,
                "looking_ns": stats.looking_ns,
                "asleep_ns": stats.asleep_ns,
                "operations": stats.operations,
                "launches": stats.launches,
                "launches_timed": stats.launches_timed,
                "launches_timed_ns": stats.launches_timed_ns,
                "launches_handed": stats.launches_handed,
            },
        }

    def _set_transport(self, transport: int) -> None:
        result = lib.orion_engine_set_transport(self._engine, transport)
        if result != 0:
            raise EngineError("orion_engine_set_transport", result)

    def _request(self, arena_fd: int, host_base: int, devices: list[tuple[int, int, int]]) -> tuple[Any, Any]:
        """The request, and what must live as long."""
        request = ffi.new("orion_engine_bind_request *")
        slots = ffi.new("orion_engine_device[]", len(devices) or 1)
        for slot, (ordinal, base, size) in zip(slots, devices, strict=False):
            slot.ordinal, slot.base, slot.bytes = ordinal, base, size
        # The segment is the same memory over tcp, where nobody else maps it.
        request.segment_fd, request.arena_fd = self.memory[0], arena_fd
        request.host_base, request.arena_bytes = host_base, self.arena_bytes
        request.device_count, request.devices = len(devices), slots
        return request, slots

    def _bind(self, arena_fd: int, host_base: int, devices: list[tuple[int, int, int]]) -> None:
        request, keep = self._request(arena_fd, host_base, devices)
        conflicts = ffi.new("uint64_t *")
        result = lib.orion_engine_bind(self._engine, request, conflicts)
        del keep
        if result == -1:
            bits = conflicts[0]
            raise BindConflict(bool(bits & 1), [d[0] for i, d in enumerate(devices) if bits >> (i + 1) & 1])
        if result != 0:
            raise EngineError("orion_engine_bind", result)
        self._ordinals = [ordinal for ordinal, _, _ in devices]
