"""Prometheus metrics of a server: /metrics and /healthz over HTTP, on loopback, off by default.

Requests are served on threads of their own; what they tell is asked of the event loop, which alone may look.
"""

from __future__ import annotations

import asyncio
import logging
import socketserver
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from wire import control

log = logging.getLogger("orion.metrics")

_ANSWER_TIMEOUT_S = 5.0
_REQUEST_TIMEOUT_S = 5.0
_VGPU = ("node", "gpu", "vgpu", "group")
_GPU = ("node", "gpu")
_NS = 1e-9
Report = Callable[[], Coroutine[Any, Any, control.StatsAnswer]]

# Of a vGPU: name, what it is, how it follows from its figures.
_GAUGES: tuple[tuple[str, str, Callable[[control.VgpuStats], float]], ...] = (
    ("orion_vgpu_memory_used_bytes", "Device memory that the vGPU uses.", lambda v: v.used_bytes),
    ("orion_vgpu_memory_limit_bytes", "Memory quota of the vGPU; 0: none.", lambda v: v.quota_bytes),
    ("orion_vgpu_pinned_memory_bytes", "Pinned host memory of its programs.", lambda v: v.pinned_bytes),
    ("orion_vgpu_ratio_configured", "Share of the GPU's time that it may have, 0 to 1; 0: no limit.",
     lambda v: v.ratio / 100),
    ("orion_vgpu_ratio_achieved", "Share of the GPU's time that it had over the last 10 s, 0 to 1.",
     lambda v: v.achieved_10s),
    ("orion_vgpu_clients", "Programs that share it.", lambda v: len(v.sessions)),
)  # fmt: skip
_COUNTERS: tuple[tuple[str, str, Callable[[control.VgpuStats], float]], ...] = (
    ("orion_vgpu_gpu_seconds", "GPU time of its work.", lambda v: v.spent_ns * _NS),
    ("orion_vgpu_throttled_seconds", "Time in which its work waited for a turn.", lambda v: v.throttled_ns * _NS),
    ("orion_vgpu_launches", "GPU work admitted: launches, graph launches, fills, copies on the device.",
     lambda v: v.works),
    ("orion_vgpu_turns", "Turns that it was given.", lambda v: v.turns),
)  # fmt: skip


def families(answer: control.StatsAnswer) -> Iterable[Metric]:
    """The metrics of one report."""
    node = answer.name
    uuids = {gpu.ordinal: f"GPU-{uuid.UUID(bytes=gpu.uuid)}" for gpu in answer.gpus}
    build = InfoMetricFamily("orion_build", "Version of orion-server.")
    build.add_metric((), {"version": answer.server, "node": node})
    yield build
    for name, text, value in _GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=_VGPU)
        for v in answer.vgpus:
            gauge.add_metric((node, uuids.get(v.gpu, ""), v.vgpu, v.group), value(v))
        yield gauge
    # One name for each kind of memory, as other vGPU exporters have them.
    for kind in sorted({kind for v in answer.vgpus for kind in v.kind_bytes}):
        gauge = GaugeMetricFamily(f"orion_vgpu_memory_{kind}_bytes", f"Of the memory used: {kind}.", labels=_VGPU)
        for v in answer.vgpus:
            gauge.add_metric((node, uuids.get(v.gpu, ""), v.vgpu, v.group), v.kind_bytes.get(kind, 0))
        yield gauge
    for name, text, value in _COUNTERS:
        counter = CounterMetricFamily(name, text, labels=_VGPU)
        for v in answer.vgpus:
            counter.add_metric((node, uuids.get(v.gpu, ""), v.vgpu, v.group), value(v))
        yield counter
    of_gpus: tuple[tuple[str, str, Callable[[control.GpuStats], float]], ...] = (
        ("orion_gpu_memory_total_bytes", "Memory of the GPU.", lambda g: g.total_bytes),
        ("orion_gpu_memory_capacity_bytes", "Memory that vGPUs can have.", lambda g: g.capacity_bytes),
        ("orion_gpu_memory_given_bytes", "Sum of the quotas of its vGPUs.", lambda g: g.given_bytes),
        ("orion_gpu_ratio_given", "Sum of the ratios of its vGPUs, 0 to 1.", lambda g: g.given_percent / 100),
    )
    for name, text, of_gpu in of_gpus:
        gauge = GaugeMetricFamily(name, text, labels=_GPU)
        for gpu in answer.gpus:
            gauge.add_metric((node, uuids[gpu.ordinal]), of_gpu(gpu))
        yield gauge


class _Collector:
    """Asks the event loop, from a request's thread."""

    def __init__(self, report: Report, loop: asyncio.AbstractEventLoop) -> None:
        self._report = report
        self._loop = loop

    def collect(self) -> Iterable[Metric]:
        future = asyncio.run_coroutine_threadsafe(self._report(), self._loop)
        return list(families(future.result(_ANSWER_TIMEOUT_S)))


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = _REQUEST_TIMEOUT_S  # who sends nothing does not keep its thread

    def log_message(self, format: str, *arguments: Any) -> None:
        log.debug(format, *arguments)


class MetricsPort:
    """Serves from its start until `close`."""

    def __init__(self, host: str, port: int, report: Report, loop: asyncio.AbstractEventLoop) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(report, loop))
        metrics: Any = make_wsgi_app(registry)

        def application(environment: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            path = environment.get("PATH_INFO")
            if path == "/metrics":
                return metrics(environment, start_response)  # type: ignore[no-any-return]
            known = path == "/healthz"
            start_response("200 OK" if known else "404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"ok\n" if known else b"there are /metrics and /healthz\n"]

        try:
            self._server = _Server((host, port), _Handler)
        except OSError as error:
            raise OSError(error.errno, f"cannot serve metrics on {host}:{port}: {error.strerror}") from error
        self._server.set_app(application)
        self.address = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No request is taken from now on."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
