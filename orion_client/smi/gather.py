"""What this container has: its vGPUs as nvidia-smi's devices.

The servers are those of ORION_SERVER; with a controller (ORION_CONTROLLER) those on which this group has something.
Each is asked as the management library asks: other tenants are not seen. nvidia-smi is a process of its own, without a
vGPU: so each program of the same user and group is asked for, and what they have on one GPU is one device.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, field

from orion_client import pool_port, settings
from orion_client.control_client import ask, next_id
from wire import control

_MAX_PROGRAMS = 64
_PLACELESS = uuid.UUID("0f1e9c3a-6c1d-5b0e-9d0f-6f72696f6e00")


@dataclass
class Process:
    """A program that uses a device."""

    pid: int
    name: str
    used_bytes: int


@dataclass
class Device:
    """A GPU as this container sees it. `metrics`: what it tells about itself, by the server's names."""

    index: int
    name: str
    uuid: str
    pci_bus_id: str
    total_bytes: int
    used_bytes: int
    server: str
    driver: str
    cuda_version: int  # 13000 for 13.0; 0: not known
    metrics: dict[str, int] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    is_placed: bool = True  # False: the pool decides at first use which GPU it will be


def devices(timeout_s: float = 3.0) -> list[Device]:
    """In the order in which a program counts them: what programs here have, or what one would get. ServerUnreachable
    and SettingError go through."""
    controllers = settings.controllers()
    group = _setting("ORION_GROUP_ID")
    if controllers:
        servers = list(pool_port.lookup(controllers, group, os.getpid(), timeout_s).servers)
    else:
        servers = settings.servers() or [settings.DEFAULT_SERVER]
    firsts = {server: _ask(server, os.getpid(), timeout_s) for server in dict.fromkeys(servers)}
    found = [device for server, first in firsts.items() for device in _held(server, first, timeout_s)]
    if not found and controllers:
        found = _expected(controllers[0], group)
    elif not found:
        wanted = _count("ORION_VGPU", 64)
        found = [_device(server, first, gpu) for server, first in firsts.items() for gpu in first.gpus][
            : wanted or None
        ]
    for index, device in enumerate(found):
        device.index = index
    return found


def _held(server: str, first: control.StatsAnswer, timeout_s: float) -> list[Device]:
    """What the programs of this user and group have on a server. `first`: its answer to a process without a vGPU."""
    merged: dict[int, Device] = {}
    counted: set[tuple[int, frozenset[str]]] = set()
    for pid in list(dict.fromkeys(s.pid for s in first.sessions))[:_MAX_PROGRAMS]:
        answer = _ask(server, pid, timeout_s)
        if pid not in {s.pid for s in answer.sessions}:
            continue  # it has ended meanwhile
        # With a quota the server tells the sessions of one vGPU, without one all: equal sets are the same memory.
        sharers = frozenset(s.session for s in answer.sessions)
        for gpu in answer.gpus:
            if (gpu.ordinal, sharers) in counted:
                continue
            counted.add((gpu.ordinal, sharers))
            device = _device(server, answer, gpu)
            known = merged.setdefault(gpu.ordinal, device)
            if known is not device:
                # Another program's vGPU on the same GPU: what this container has there is both.
                known.total_bytes += device.total_bytes
                known.used_bytes += device.used_bytes
    for session in first.sessions:
        for ordinal in session.devices:
            if ordinal in merged:
                used_bytes = session.used_by_device.get(ordinal, 0)
                merged[ordinal].processes.append(Process(session.pid, session.program, used_bytes))
    return [merged[ordinal] for ordinal in sorted(merged)]


def _device(server: str, answer: control.StatsAnswer, gpu: control.GpuStats) -> Device:
    return Device(
        index=0,
        name=gpu.name,
        uuid=f"GPU-{uuid.UUID(bytes=gpu.uuid)}",
        pci_bus_id=gpu.pci_bus_id,
        total_bytes=gpu.metrics.get("memory_total_bytes", gpu.total_bytes),
        used_bytes=gpu.metrics.get("memory_used_bytes", gpu.used_bytes),
        server=server,
        driver=answer.driver,
        cuda_version=answer.driver_version,
        metrics=gpu.metrics,
    )


def _ask(server: str, pid: int, timeout_s: float) -> control.StatsAnswer:
    request = control.Stats(
        id=next_id(), telemetry=True, pid=pid, uid=os.geteuid(), host=control.boot_id(),
        vgpu=_count("ORION_VGPU", 64), gmem_mib=_count("ORION_GMEM", 1 << 30),
        group=_setting("ORION_GROUP_ID"), res_group=_setting("ORION_RES_GROUP"),
    )  # fmt: skip
    return ask(server, request, control.StatsAnswer, timeout_s)


def _expected(controller: str, group: str) -> list[Device]:
    """What a program will get that has not begun: scripts count GPUs before they use one."""
    memory_bytes = _count("ORION_GMEM", 1 << 30) << 20
    return [
        Device(0, "Orion vGPU (placed at first use)", f"GPU-{uuid.uuid5(_PLACELESS, f'{controller} {group} {i}')}",
               "", memory_bytes, 0, controller, "", 0, is_placed=False)
        for i in range(_count("ORION_VGPU", 64) or 1)
    ]  # fmt: skip


def _setting(key: str) -> str:
    return (settings.setting(key) or "")[:255]


def _count(key: str, most: int) -> int:
    value = settings.setting(key) or ""
    return int(value) if value.isdecimal() and len(value) < 20 and 0 < int(value) <= most else 0
