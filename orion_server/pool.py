"""Warm workers: processes whose CUDA contexts are already made, one for each client process to come."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Hashable, Mapping

from orion_server.arbitration import Arbiter, ArbiterError
from orion_server.image_cache import ImageCache
from orion_server.isolation import Isolation, IsolationError
from orion_server.libcuda import Libcuda
from orion_server.worker_process import State, WorkerDied, WorkerError, WorkerProcess, needed_environment

log = logging.getLogger("orion.pool")

_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# A worker that starts takes CPUs and the driver's locks from the client that has just come. The replacement waits until
# that client is attached; while another one is ready, until it is past its whole start.
ATTACH_S = 0.05
HOLD_S = 1.0


class WorkerPool:
    """Keeps `warm` workers ready and replaces those that are taken or die, all missing ones at a time.

    Workers of one tenant have one uid, and no worker of another has it: the driver opens an event of another process
    (cuIpcOpenEventHandle) only under the exporter's uid. A warm worker has a uid before its tenant is known, so a
    tenant's second process at a time gets one that was started for it: where two or more are kept warm, one of them is
    for whoever came last.
    """

    def __init__(
        self,
        libcuda: Libcuda,
        devices: str | None,
        warm: int,
        start_timeout_s: float,
        log_level: str,
        images: ImageCache,
        arbiter: Arbiter,
        clock: Callable[[], float] = time.monotonic,
        isolation: Isolation | None = None,
        ucx_devices: str | None = None,
    ) -> None:
        self._clock = clock
        self.transport = "shm"  # for which new workers are prepared: the next client probably comes like the last one
        self._libcuda = libcuda
        self._devices = devices
        self._warm = warm
        self._start_timeout_s = start_timeout_s
        self._log_level = log_level
        self._images = images
        self._arbiter = arbiter
        self._isolation = isolation if isolation is not None else Isolation()
        self._ucx_devices = ucx_devices  # None: workers do not load UCX
        self._idle: set[WorkerProcess] = set()  # starting or warm, without a client environment of their own
        self.workers: set[WorkerProcess] = set()  # every process that has not been reaped
        self._failures = 0
        self._retry_at_s = 0.0
        self._taken_at_s = float("-inf")
        self._last_owner: Hashable | None = None
        self._waiting = 0  # clients for whom no worker was ready
        self._driver_version = 0
        self._closing = False
        self._changed = asyncio.Event()
        self._filler: asyncio.Task[None] | None = None
        self._watchers: set[asyncio.Task[None]] = set()

    async def start(self) -> WorkerProcess:
        """Starts the first worker and waits for it: what it says of its devices is what the server serves."""
        worker = await self._spawn({})
        await self._wait_ready(worker)
        told = worker.hello.get("driver_version")
        self._driver_version = told if isinstance(told, int) else 0
        if self._warm > 0:
            self._idle.add(worker)
        else:
            worker.stop("no warm workers wanted")
        self._filler = asyncio.create_task(self._fill())
        return worker

    async def take(self, client_environment: Mapping[str, str], owner: Hashable | None = None) -> WorkerProcess:
        """A worker for one session of `owner`: a warm one, or a cold one when its CUDA settings differ or none of the
        warm ones may be its."""
        if self._closing:
            raise WorkerError("the server is stopping")
        environment = needed_environment(client_environment, self._driver_version)
        uid = self._uid_of(owner)
        candidates = [w for w in self._idle if w.state in (State.WARM, State.STARTING) and self._suits(w, owner, uid)]
        candidates.sort(key=lambda w: (w.state is not State.WARM, w.owner is None, w.pid))
        if environment or not candidates:
            if uid < 0 and owner is not None:  # those that wait for it shall not become useless
                uid = next((w.uid for w in self._idle if w.owner == owner), -1)
            worker = await self._spawn(environment, owner, uid)
        else:
            worker = candidates[0]
            self._idle.discard(worker)
        worker.owner = self._last_owner = owner
        self._taken_at_s = self._clock()
        worker.was_warm = worker.state is State.WARM
        self._waiting += not worker.was_warm
        self._changed.set()
        try:
            await self._wait_ready(worker)
        finally:
            self._waiting -= not worker.was_warm
            self._changed.set()
        if worker.state is not State.WARM:
            raise WorkerDied(worker.reason)
        worker.state = State.SERVING
        return worker

    async def close(self) -> None:
        """Ends every worker and waits for their processes."""
        self._closing = True
        if self._filler is not None:
            self._filler.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._filler
        workers = list(self.workers)
        for worker in workers:
            worker.stop("the server stops")
        if workers:
            await asyncio.wait([worker.dead for worker in workers])

    def _uid_of(self, owner: Hashable | None) -> int:
        """The uid that workers of its processes have now; -1: none has one."""
        if owner is None:
            return -1
        serving = (w for w in self.workers if w.owner == owner and w not in self._idle)
        return next((w.uid for w in serving if w.state not in (State.ENDING, State.DEAD)), -1)

    @staticmethod
    def _suits(idle: WorkerProcess, owner: Hashable | None, uid: int) -> bool:
        if uid >= 0:
            return idle.uid == uid
        return idle.owner is None or idle.owner == owner

    async def _spawn(
        self, client_environment: Mapping[str, str], owner: Hashable | None = None, uid: int = -1
    ) -> WorkerProcess:
        try:
            worker = await WorkerProcess.spawn(
                self._libcuda,
                self._devices,
                client_environment,
                self._log_level,
                self._images,
                self._arbiter,
                self._isolation,
                self.transport,
                uid,
                self._ucx_devices,
            )
        except (OSError, ArbiterError, IsolationError) as error:
            raise WorkerError(f"cannot start a worker: {error}") from error
        worker.owner = owner
        self.workers.add(worker)
        watcher = asyncio.create_task(self._watch(worker))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return worker

    async def _wait_ready(self, worker: WorkerProcess) -> None:
        try:
            await asyncio.wait_for(asyncio.shield(worker.ready), self._start_timeout_s)
        except TimeoutError:
            late = WorkerError(f"worker {worker.pid} was not ready in {self._start_timeout_s:g} s")
            worker.reason = worker.reason or str(late)
            worker.kill()
            raise late from None

    async def _watch(self, worker: WorkerProcess) -> None:
        await worker.dead
        self.workers.discard(worker)
        if worker in self._idle:
            self._idle.discard(worker)
            if not self._closing and worker.hello:
                log.warning("idle worker lost: %s", worker.reason)
            elif not self._closing:
                self._failed(worker.reason)
        self._changed.set()

    async def _fill(self) -> None:
        while True:
            self._changed.clear()
            self._retire()
            missing = self._warm - len(self._idle)
            delay_s = self._delay_s() if missing > 0 else None
            if delay_s == 0.0:
                await asyncio.gather(*(self._add(owner, uid) for owner, uid in self._next_spares(missing)))
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), delay_s)

    def _retire(self) -> None:
        """Those that nobody could have: their tenant uses another uid, or has gone and is not the last who came."""
        for worker in list(self._idle):
            if worker.owner is None:
                continue
            uid = self._uid_of(worker.owner)
            if uid not in (-1, worker.uid) or (uid < 0 and worker.owner != self._last_owner):
                self._idle.discard(worker)
                worker.stop("its tenant has gone")

    def _next_spares(self, count: int) -> list[tuple[Hashable | None, int]]:
        """For whom the next warm workers are, and with which uid."""
        for_anybody = any(worker.owner is None for worker in self._idle)
        for_last = any(worker.owner is not None and worker.owner == self._last_owner for worker in self._idle)
        uid = self._uid_of(self._last_owner)
        spares: list[tuple[Hashable | None, int]] = []
        for _ in range(count):
            if for_anybody and not for_last and uid >= 0:
                spares.append((self._last_owner, uid))
                for_last = True
            else:
                spares.append((None, -1))
                for_anybody = True
        return spares

    def _delay_s(self) -> float | None:
        """How long the missing workers have to wait; None: until something changes."""
        now_s = self._clock()
        if now_s < self._retry_at_s:
            return self._retry_at_s - now_s
        if self._waiting:
            return None
        ready = any(worker.state is State.WARM for worker in self._idle)
        return max(0.0, self._taken_at_s + (HOLD_S if ready else ATTACH_S) - now_s)

    async def _add(self, owner: Hashable | None, uid: int) -> None:
        try:
            worker = await self._spawn({}, owner, uid)
        except WorkerError as error:
            self._failed(str(error))
            return
        self._idle.add(worker)
        settling = asyncio.create_task(self._settle(worker))
        self._watchers.add(settling)
        settling.add_done_callback(self._watchers.discard)

    async def _settle(self, worker: WorkerProcess) -> None:
        with contextlib.suppress(WorkerError):  # told by whoever watches it
            await self._wait_ready(worker)
            self._failures = 0
            self._retry_at_s = 0.0

    def _failed(self, reason: str) -> None:
        now_s = self._clock()
        if now_s >= self._retry_at_s:  # several that fail together count as one
            delay_s = _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
            self._failures += 1
            self._retry_at_s = now_s + delay_s
            log.error("no warm worker: %s; next try in %g s", reason, delay_s)
        self._changed.set()
