"""Prometheus metrics of the pool.

Counters and the latency histogram are prometheus_client's. The lines of GPUs and vGPUs are written here, in slices:
the library would keep the controller's thread for seconds over 64,000 vGPUs, and would hold all lines at once.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from orion_controller import __version__
from orion_controller.api import models
from orion_controller.backend import Backend

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MIB = 1 << 20
_LABEL_MAX = 256
_CHUNK = 256
_SLICE_S = 0.005
_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0)
_POD = re.compile(r"([a-z0-9][a-z0-9.-]*)/([a-z0-9][a-z0-9.-]*)")
Value = Callable[[Any], float | int | None]

# Name, type, what it is, how it follows; None: no line.
_VGPU: tuple[tuple[str, str, str, Value], ...] = (
    ("orion_vgpu_memory_used_bytes", "gauge", "Device memory that the vGPU uses.", lambda v: v.used_mib * _MIB),
    ("orion_vgpu_memory_limit_bytes", "gauge", "Memory quota of the vGPU.", lambda v: v.quota_mib * _MIB),
    ("orion_vgpu_ratio_configured", "gauge", "Share of the GPU's time that it may have, 0 to 1.",
     lambda v: v.ratio_percent / 100),
    ("orion_vgpu_ratio_achieved", "gauge", "Share of the GPU's time that it had lately, 0 to 1.",
     lambda v: v.achieved_percent / 100),
    ("orion_vgpu_throttled_seconds_total", "counter", "Time in which its work waited for a turn.",
     lambda v: v.throttled_ms / 1000),
    ("orion_vgpu_launches_total", "counter", "GPU work admitted: launches, graph launches, fills, copies.",
     lambda v: v.launches),
    ("orion_vgpu_clients", "gauge", "Programs that share it.", lambda v: v.sessions),
)  # fmt: skip
_GPU: tuple[tuple[str, str, str, Value], ...] = (
    ("orion_gpu_memory_total_bytes", "gauge", "Memory of the GPU.", lambda g: g.total_mib * _MIB),
    ("orion_gpu_memory_capacity_bytes", "gauge", "Memory that vGPUs can have.", lambda g: g.capacity_mib * _MIB),
    ("orion_gpu_memory_given_bytes", "gauge", "Sum of the quotas of its vGPUs.", lambda g: g.given_mib * _MIB),
    ("orion_gpu_memory_used_bytes", "gauge", "Memory of the GPU that is in use.", lambda g: g.used_mib * _MIB),
    ("orion_gpu_ratio_given", "gauge", "Sum of the ratios of its vGPUs, 0 to 1.",
     lambda g: g.ratio_given_percent / 100),
    ("orion_gpu_vgpus", "gauge", "vGPUs given out on it.", lambda g: g.vgpus),
    ("orion_gpu_utilization_ratio", "gauge", "How busy it is, 0 to 1; no line where the node does not tell.",
     lambda g: None if g.utilization_percent is None else g.utilization_percent / 100),
    ("orion_gpu_temperature_celsius", "gauge", "Its temperature.", lambda g: g.temperature_c),
    ("orion_gpu_power_watts", "gauge", "What it draws.", lambda g: g.power_w),
    ("orion_gpu_healthy", "gauge", "1: well; 0: its node reports trouble.", lambda g: int(not g.health)),
)  # fmt: skip


class Lists(Protocol):
    """The part of api.lists.Lists that this needs."""

    def groups(self) -> AsyncIterator[models.Group]: ...
    def vgpus(self) -> AsyncIterator[models.Vgpu]: ...


class Metrics:
    """What is counted while the controller runs, and the report. One object a controller."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        Info("orion_build", "Version of orion-controller.", registry=self._registry).info({"version": __version__})
        self._allocation = Histogram(
            "orion_controller_allocation_seconds", "From a request for vGPUs to its answer, without time in the queue.",
            buckets=_BUCKETS_S, registry=self._registry,
        )  # fmt: skip
        self._requests = Counter("orion_controller_http_requests", "HTTP requests answered.",
                                 ("method", "route", "status"), registry=self._registry)  # fmt: skip
        self._pool = CollectorRegistry(auto_describe=False)
        gauges = {
            "leader": "1: this replica leads the pool.", "reservations": "Allocations for which nobody has come yet.",
            "groups": "Allocations.", "sessions": "Programs on the pool's servers.",
            "queue_length": "Requests that wait for room.", "vgpus": "vGPUs given out.",
            "vgpus_free": "vGPUs of the default size that would still fit.",
        }  # fmt: skip
        self._gauges = {
            name: Gauge(f"orion_controller_{name}", text, registry=self._pool) for name, text in gauges.items()
        }
        self._nodes = Gauge("orion_controller_nodes", "Servers by state.", ("state",), registry=self._pool)
        self._report = asyncio.Lock()

    def observe_allocation(self, seconds: float) -> None:
        """How long a client waited for the answer to its request for vGPUs."""
        self._allocation.observe(seconds)

    def count_request(self, method: str, route: str, status: int) -> None:
        """`route`: as declared, not as asked for: there are few of them."""
        self._requests.labels(method, route, str(status)).inc()

    async def report(self, backend: Backend, lists: Lists) -> AsyncGenerator[bytes]:
        """The text format, in parts. One report at a time; it gives way to others every few milliseconds."""
        async with self._report:
            owners: dict[str, str] = {}
            reservations = 0
            async for group in lists.groups():
                owners[group.id] = _owner_labels(group)
                reservations += group.state == "reserved"
            self._set_gauges(backend.summary(), reservations)
            yield generate_latest(self._registry) + generate_latest(self._pool)
            gpus = [(_gpu_labels(gpu), gpu) for gpu in backend.gpus()]
            async for part in _families(_GPU, gpus):
                yield part
            uuids = {(gpu.node, gpu.ordinal): gpu.uuid for _, gpu in gpus}
            del gpus
            vgpus: list[tuple[str, models.Vgpu]] = []
            # A group that came meanwhile is in the next report.
            async for vgpu in lists.vgpus():
                if vgpu.group in owners:
                    uuid = uuids.get((vgpu.node, vgpu.ordinal), "")
                    vgpus.append((_labels(node=vgpu.node, gpu=uuid, vgpu=vgpu.id) + "," + owners[vgpu.group], vgpu))
            async for part in _families(_VGPU, vgpus):
                yield part

    def _set_gauges(self, summary: models.Summary, reservations: int) -> None:
        values = {
            "leader": int(summary.leader), "reservations": reservations,
            "groups": summary.groups, "sessions": summary.sessions, "queue_length": summary.queue,
            "vgpus": summary.vgpus, "vgpus_free": summary.vgpus_free,
        }  # fmt: skip
        for name, value in values.items():
            self._gauges[name].set(value)
        states = (("ready", summary.nodes_ready), ("draining", summary.nodes_draining), ("lost", summary.nodes_lost))
        for state, count in states:
            self._nodes.labels(state).set(count)


async def _families(
    families: Sequence[tuple[str, str, str, Value]], items: Sequence[tuple[str, Any]]
) -> AsyncIterator[bytes]:
    began_s = time.perf_counter()
    for name, kind, text, value in families:
        yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n".encode()
        lines: list[str] = []
        for start in range(0, len(items), _CHUNK):
            for labels, item in items[start : start + _CHUNK]:
                number = value(item)
                if number is not None:
                    lines.append(f"{name}{{{labels}}} {number}\n")
            if time.perf_counter() - began_s > _SLICE_S:
                yield "".join(lines).encode()
                lines.clear()
                await asyncio.sleep(0)
                began_s = time.perf_counter()
        yield "".join(lines).encode()


def _labels(**values: str) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items())


def _escaped(value: str) -> str:
    short = value[:_LABEL_MAX]
    if '"' in short or "\\" in short or "\n" in short:
        short = short.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return short


def _gpu_labels(gpu: models.Gpu) -> str:
    return _labels(node=gpu.node, gpu=gpu.uuid, ordinal=str(gpu.ordinal), model=gpu.name)


def _owner_labels(group: models.Group) -> str:
    """Whose it is: the owner is "namespace/pod" or "uid@machine"."""
    pod = _POD.fullmatch(group.owner)
    namespace, name = (pod[1], pod[2]) if pod else ("", "")
    return _labels(group=group.group, namespace=namespace, pod=name, owner="" if pod else group.owner)
