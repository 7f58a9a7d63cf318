"""What a server tells the controller of its pool, and how it does what that asks."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable
from typing import Literal

from orion_server import __version__
from orion_server.config import Settings
from orion_server.pool_link import Command, CommandError
from orion_server.reports import Reports
from orion_server.session import Session
from orion_server.slices import MIB, Change, Policy, Slice, SliceError
from orion_server.telemetry import Telemetry
from orion_server.vgpus import Vgpus
from wire import control, pool

_ENDED_WITHIN_S = 4.0
VGPUS_S = 1.9  # with every second heartbeat
WHOLE_S = 20.0
_OVERCOMMITTED_PERCENT = 10_000  # a ratio that may be overcommitted has this much percent


def uuid_text(uuid: bytes) -> str:
    """As NVIDIA's tools write it."""
    digits = uuid.hex()
    return f"GPU-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class PoolOffer:
    """Belongs to the event loop's thread."""

    def __init__(self, settings: Settings, name: str, address: str, device_kind: str, gpus: list[control.Device],
                 vgpus: Vgpus, reports: Reports, telemetry: Telemetry, sessions: dict[str, Session],
                 set_draining: Callable[[bool], None], public_key: str = "",
                 clock: Callable[[], float] = time.monotonic) -> None:  # fmt: skip
        self._settings = settings
        self._name = name
        self._address = settings.advertise or address
        self._device_kind = device_kind
        self._gpus = gpus
        self._vgpus = vgpus
        self._reports = reports
        self._telemetry = telemetry
        self._sessions = sessions
        self._set_draining = set_draining
        self._public_key = public_key
        self._clock = clock
        self._told: dict[str, pool.VgpuReport] = {}
        self._told_at_s = self._whole_at_s = -math.inf
        self.draining = False

    def registration(self, request_id: int, instance: str) -> pool.Register:
        """All that the server offers and holds."""
        self._whole_at_s = -math.inf
        return pool.Register(
            id=request_id,
            server=self._name,
            instance=instance,
            address=self._address,
            public_key=self._public_key,
            version=__version__,
            wire=control.WIRE_VERSION,
            host=control.boot_id(),
            node=os.uname().nodename,
            driver=self._telemetry.driver,
            device_kind=self._device_kind,
            key=self._settings.pool_key,
            gpus=[self._gpu(gpu) for gpu in self._gpus],
            held=self._held(),
            sessions=self._session_reports(),
            defaults=self._reports.defaults(),
            draining=self.draining,
        )

    def heartbeat(self, request_id: int, instance: str, with_sessions: bool) -> pool.Heartbeat:
        """What the GPUs do now, and each VGPUS_S those vGPUs that do something else than when they were last told."""
        vgpus, is_whole = self._changed_vgpus()
        return pool.Heartbeat(
            id=request_id,
            server=self._name,
            instance=instance,
            gpus=[self._gpu_report(index, gpu) for index, gpu in enumerate(self._gpus)],
            vgpus=vgpus,
            is_whole=is_whole,
            sessions=self._session_reports() if with_sessions else None,
            draining=self.draining,
        )

    async def command(self, asked: Command) -> None:
        """Does it; CommandError."""
        match asked:
            case pool.ResizeAllocation():
                self._resize(asked)
            case pool.EndSessions():
                await self._end(asked)
            case pool.SetDraining():
                self.draining = asked.draining
                self._set_draining(asked.draining)

    # ------------------------------------------------------------------------------------------ inside

    def _changed_vgpus(self) -> tuple[list[pool.VgpuReport] | None, bool]:
        now_s = self._clock()
        if now_s - self._told_at_s < VGPUS_S:
            return None, False
        self._told_at_s = now_s
        is_whole = now_s - self._whole_at_s >= WHOLE_S
        reports = {report.vgpu: report for report in self._vgpu_reports()}
        told, self._told = self._told, reports
        if is_whole:
            self._whole_at_s = now_s
            return list(reports.values()), True
        return [report for name, report in reports.items() if told.get(name) != report], False

    def _gpu(self, gpu: control.Device) -> pool.PoolGpu:
        registry = self._vgpus.registry
        count = registry.vgpu_count
        return pool.PoolGpu(
            ordinal=gpu.ordinal,
            uuid=uuid_text(gpu.uuid),
            name=gpu.name,
            total_mib=gpu.total_bytes // MIB,
            # Of a server without sessions. What idle vGPUs may leave to others counts too.
            capacity_mib=(registry.capacity_bytes(gpu.ordinal, workers=0) + registry.swap_bytes) // MIB,
            max_vgpus=count or 100,
            ratio_percent=_OVERCOMMITTED_PERCENT if registry.overcommit_ratio else 100,
        )

    def _gpu_report(self, index: int, gpu: control.Device) -> pool.GpuReport:
        told = self._telemetry.metrics(index)
        used_bytes = told.get("memory_used_bytes")
        if used_bytes is None:
            slices = [s for s in self._vgpus.registry.slices if s.gpu == gpu.ordinal]
            used_bytes = sum(self._used_bytes(s) for s in slices)
        utilization, temperature = told.get("utilization_gpu_percent"), told.get("temperature_c")
        power_mw = told.get("power_mw")
        return pool.GpuReport(
            ordinal=gpu.ordinal,
            used_mib=max(0, used_bytes) // MIB,
            utilization_percent=None if utilization is None else max(0, min(100, utilization)),
            temperature_c=temperature,
            power_w=None if power_mw is None else max(0, power_mw) // 1000,
        )

    def _used_bytes(self, s: Slice) -> int:
        mapped = sum(self._sessions[name].used_bytes(s.gpu) for name in s.sessions if name in self._sessions)
        return max(self._vgpus.usage(s).charged_bytes, mapped)

    def _vgpu_reports(self) -> list[pool.VgpuReport]:
        reports = []
        for s in self._vgpus.registry.slices:
            usage = self._vgpus.usage(s)
            reports.append(
                pool.VgpuReport(
                    vgpu=s.name,
                    allocation=s.allocation,
                    ordinal=s.gpu,
                    quota_mib=s.limits.quota_bytes // MIB,
                    used_mib=self._used_bytes(s) // MIB,
                    ratio=s.limits.ratio_percent,
                    ratio_policy=_policy(s),
                    achieved_percent=round(100 * usage.achieved_1s, 2),
                    throttled_ms=max(0, usage.throttled_ns) // 1_000_000,
                    launches=max(0, usage.works),
                    sessions=len(s.sessions),
                    group=s.owner.group,
                )
            )
        return reports

    def _held(self) -> list[pool.Held]:
        held: dict[str, pool.Held] = {}
        for s in self._vgpus.registry.slices:
            if not s.allocation:
                continue
            if s.allocation in held:
                held[s.allocation].ordinals.append(s.gpu)
                continue
            held[s.allocation] = pool.Held(
                allocation=s.allocation,
                group=s.owner.group,
                ordinals=[s.gpu],
                gmem_mib=s.limits.quota_bytes // MIB,
                ratio=s.limits.ratio_percent,
                ratio_policy=_policy(s),
                shared=s.is_shared,
            )
        return list(held.values())

    def _session_reports(self) -> list[pool.SessionReport]:
        return [
            pool.SessionReport(
                session=session.id,
                allocation=session.allocation,
                pid=session.pid,
                uid=session.owner.uid,
                host=session.owner.host,
                program=session.program,
                transport=session.transport,
                since_s=session.since,
                group=session.owner.group,
            )
            for session in self._sessions.values()
        ]

    def _resize(self, asked: pool.ResizeAllocation) -> None:
        policy = None if asked.ratio_policy is None else Policy[asked.ratio_policy.upper()]
        try:
            change = Change(asked.gmem_mib, asked.ratio, policy)
            self._vgpus.resize(asked.allocation, None, change, asked.shrink == "block")
        except SliceError as error:
            raise CommandError(error.code, str(error), error.hint) from error

    async def _end(self, asked: pool.EndSessions) -> None:
        ended = [s for s in self._sessions.values() if s.id == asked.session
                 or (asked.allocation and s.allocation == asked.allocation)]  # fmt: skip
        for session in ended:
            session.worker.stop(asked.reason or "ended by the controller")
        if ended:
            await asyncio.wait([asyncio.ensure_future(asyncio.shield(s.worker.dead)) for s in ended],
                               timeout=_ENDED_WITHIN_S)  # fmt: skip


def _policy(s: Slice) -> Literal["hard", "elastic"]:
    return "elastic" if s.limits.policy else "hard"
