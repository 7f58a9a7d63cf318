"""What `stats` tells: operators all of it, a tenant's management library what belongs to its own vGPUs."""

from __future__ import annotations

import os
from collections.abc import Iterable

from orion_server import __version__
from orion_server.image_cache import ImageCache
from orion_server.session import Session
from orion_server.slices import Owner, Slice, Wish
from orion_server.telemetry import Telemetry
from orion_server.vgpus import Vgpus, bounded
from wire import control

_RATES = ("utilization_gpu_percent", "utilization_memory_percent")


class Reports:
    """Belongs to the event loop's thread."""

    def __init__(self, telemetry: Telemetry, vgpus: Vgpus, images: ImageCache, sessions: dict[str, Session]) -> None:
        self._telemetry = telemetry
        self._vgpus = vgpus
        self._images = images
        self._sessions = sessions
        self._gpus: list[control.Device] = []
        self._driver_version = 0

    def describe(self, gpus: list[control.Device], driver_version: int) -> None:
        """The GPUs, which do not change."""
        self._gpus, self._driver_version = gpus, driver_version

    def whole(self, request: control.Stats) -> control.StatsAnswer:
        """For operators: every GPU, vGPU and session."""
        answer = self._head(request, [self._gpu(gpu) for gpu in self._gpus], self._sessions.values())
        answer.vgpus = self.vgpus(self._vgpus.registry.slices)
        answer.defaults = self.defaults()
        return answer

    def of_group(self, request: control.Stats) -> control.StatsAnswer:
        """As `whole`, of one group: its vGPUs and sessions, and the GPUs on which they are."""
        slices = [s for s in self._vgpus.registry.slices if s.owner.group == request.group]
        ordinals = {s.gpu for s in slices}
        sessions = [session for session in self._sessions.values() if session.owner.group == request.group]
        gpus = [self._gpu(gpu) for gpu in self._gpus if gpu.ordinal in ordinals]
        for gpu in gpus:  # what others have is theirs to know
            held = sum(session.used_bytes(gpu.ordinal) for session in sessions)
            gpu.used_bytes, gpu.given_bytes, gpu.given_percent = min(held, gpu.total_bytes), 0, 0
        answer = self._head(request, gpus, sessions)
        answer.images = None
        answer.vgpus = self.vgpus(slices)
        answer.defaults = self.defaults()
        return answer

    def for_tenant(self, request: control.Stats) -> control.StatsAnswer:
        """For the management library of one process: the GPUs that it has or would get, each as large as its vGPU; the
        sessions of its user, and on a vGPU with a quota those of that vGPU alone."""
        owner = Owner(request.host, request.uid, request.group)
        registry = self._vgpus.registry
        seen = [session for session in self._sessions.values() if session.owner == owner]
        own = [session for session in seen if session.pid == request.pid]
        slices = registry.slices_of(own[0].id) if own else []
        if not slices and request.res_group == "BOX" and request.group:
            slices = registry.group_slices(owner)
        wish = Wish(request.vgpu, request.gmem_mib)
        ordinals = [s.gpu for s in slices] or registry.candidates(wish)
        by_gpu = {s.gpu: s for s in slices}
        gpus = []
        for ordinal in ordinals:
            mine = by_gpu.get(ordinal)
            quota_bytes = (mine.limits if mine else registry.default_limits(ordinal, wish)).quota_bytes
            gpus.append(self._gpu_of_tenant(ordinal, ordinals, mine, quota_bytes))
        if any(s.limits.quota_bytes for s in slices):
            shared = {session for s in slices for session in s.sessions}
            seen = [session for session in seen if session.id in shared]
        return self._head(request, gpus, seen)

    def vgpus(self, slices: Iterable[Slice]) -> list[control.VgpuStats]:
        """What vGPUs may use and use."""
        return self._vgpus.stats(slices, self._mapped_bytes)

    def defaults(self) -> control.Defaults:
        """What later vGPUs get."""
        registry = self._vgpus.registry
        return control.Defaults(
            vgpu_count=registry.vgpu_count,
            policy="elastic" if registry.policy else "hard",
            overcommit_ratio=registry.overcommit_ratio,
        )

    def _head(
        self, request: control.Stats, gpus: list[control.GpuStats], sessions: Iterable[Session]
    ) -> control.StatsAnswer:
        return control.StatsAnswer(
            id=request.id,
            server=__version__,
            name=os.uname().nodename,
            driver=self._telemetry.driver,
            driver_version=self._driver_version,
            gpus=gpus,
            sessions=[_session(session) for session in sessions],
            images=self._images.stats(),
        )

    def _mapped_bytes(self, of: Slice) -> int:
        """Device memory that the sessions of a vGPU hold there, as their workers last told."""
        return sum(self._sessions[s].used_bytes(of.gpu) for s in of.sessions if s in self._sessions)

    def _gpu(self, gpu: control.Device) -> control.GpuStats:
        registry = self._vgpus.registry
        used = sum(session.used_bytes(gpu.ordinal) for session in self._sessions.values())
        return control.GpuStats(
            ordinal=gpu.ordinal,
            name=gpu.name,
            uuid=gpu.uuid,
            total_bytes=gpu.total_bytes,
            used_bytes=min(used, gpu.total_bytes),
            pci_bus_id=gpu.pci_bus_id,
            capacity_bytes=registry.capacity_bytes(gpu.ordinal),
            given_bytes=bounded(registry.given_bytes(gpu.ordinal)),
            given_percent=registry.given_percent(gpu.ordinal),
        )

    def _gpu_of_tenant(
        self, ordinal: int, ordinals: list[int], mine: Slice | None, quota_bytes: int
    ) -> control.GpuStats:
        index = next(i for i, gpu in enumerate(self._gpus) if gpu.ordinal == ordinal)
        answer = self._gpu(self._gpus[index])
        # What others have is theirs to know.
        answer.capacity_bytes = answer.given_bytes = answer.given_percent = 0
        metrics = {name: max(0, value) for name, value in self._telemetry.metrics(index).items()}
        if quota_bytes:
            usage = self._vgpus.usage(mine) if mine else None
            used_bytes = max(usage.charged_bytes, self._mapped_bytes(mine)) if usage and mine else 0
            answer.total_bytes = min(quota_bytes, answer.total_bytes)
            answer.used_bytes = min(used_bytes, answer.total_bytes)
            metrics = {name: value for name, value in metrics.items() if not name.startswith("memory_")
                       or name == "memory_bus_bits"}  # fmt: skip
            if all(name in metrics for name in _RATES) and mine and usage and mine.limits.ratio_percent:
                share = usage.achieved_1s * 100 / mine.limits.ratio_percent
                metrics["utilization_gpu_percent"] = max(0, min(100, round(share * 100)))
        answer.metrics = metrics
        peers = self._telemetry.peers(index)
        answer.peers = [peers[i] for i, other in enumerate(self._gpus) if other.ordinal in ordinals]
        return answer


def _session(session: Session) -> control.SessionStats:
    used = {ordinal: bounded(session.used_bytes(ordinal)) for ordinal in session.devices}
    return control.SessionStats(
        session=session.id,
        pid=session.pid,
        program=session.program,
        transport=session.transport,
        devices=session.devices,
        used_bytes=bounded(sum(used.values())),
        since=session.since,
        used_by_device=used,
        engine=session.engine_counters(),
    )
