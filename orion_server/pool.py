"""Warm workers: processes whose CUDA contexts are already made, one for each client process to come."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping

from orion_server.image_cache import ImageCache
from orion_server.libcuda import Libcuda
from orion_server.worker_process import State, WorkerDied, WorkerError, WorkerProcess

log = logging.getLogger("orion.pool")

_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class WorkerPool:
    """Keeps `warm` workers ready and replaces each one that is taken or dies."""

    def __init__(
        self,
        libcuda: Libcuda,
        devices: str | None,
        warm: int,
        start_timeout_s: float,
        log_level: str,
        images: ImageCache,
    ) -> None:
        self._libcuda = libcuda
        self._devices = devices
        self._warm = warm
        self._start_timeout_s = start_timeout_s
        self._log_level = log_level
        self._images = images
        self._idle: set[WorkerProcess] = set()  # starting or warm, without a client environment of their own
        self.workers: set[WorkerProcess] = set()  # every process that has not been reaped
        self._failures = 0
        self._closing = False
        self._changed = asyncio.Event()
        self._filler: asyncio.Task[None] | None = None
        self._watchers: set[asyncio.Task[None]] = set()

    async def start(self) -> WorkerProcess:
        """Starts the first worker and waits for it: what it says of its devices is what the server serves."""
        worker = await self._spawn({})
        await self._wait_ready(worker)
        if self._warm > 0:
            self._idle.add(worker)
        else:
            worker.stop("no warm workers wanted")
        self._filler = asyncio.create_task(self._fill())
        return worker

    async def take(self, client_environment: Mapping[str, str]) -> WorkerProcess:
        """A worker for one session: a warm one, or a cold one when its CUDA settings differ."""
        if self._closing:
            raise WorkerError("the server is stopping")
        candidates = sorted(self._idle, key=lambda w: (w.state is not State.WARM, w.pid))
        candidates = [w for w in candidates if w.state in (State.WARM, State.STARTING)]
        if client_environment or not candidates:
            worker = await self._spawn(client_environment)
        else:
            worker = candidates[0]
            self._idle.discard(worker)
        self._changed.set()
        await self._wait_ready(worker)
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

    async def _spawn(self, client_environment: Mapping[str, str]) -> WorkerProcess:
        try:
            worker = await WorkerProcess.spawn(
                self._libcuda, self._devices, client_environment, self._log_level, self._images
            )
        except OSError as error:
            raise WorkerError(f"cannot start a worker: {error}") from error
        self.workers.add(worker)
        watcher = asyncio.create_task(self._watch(worker))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return worker

    async def _wait_ready(self, worker: WorkerProcess) -> None:
        try:
            await asyncio.wait_for(asyncio.shield(worker.ready), self._start_timeout_s)
        except TimeoutError:
            worker.kill()
            raise WorkerError(f"worker {worker.pid} was not ready in {self._start_timeout_s:g} s") from None

    async def _watch(self, worker: WorkerProcess) -> None:
        await worker.dead
        self.workers.discard(worker)
        if worker in self._idle:
            self._idle.discard(worker)
            if not self._closing:
                log.warning("idle worker lost: %s", worker.reason)
        self._changed.set()

    async def _fill(self) -> None:
        while True:
            self._changed.clear()
            while len(self._idle) < self._warm:
                try:
                    worker = await self._spawn({})
                    self._idle.add(worker)
                    await self._wait_ready(worker)
                    self._failures = 0
                except WorkerError as error:
                    delay_s = _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
                    self._failures += 1
                    log.error("no warm worker: %s; next try in %g s", error, delay_s)
                    await asyncio.sleep(delay_s)
            await self._changed.wait()
