"""The pool's vGPUs as a kubelet counts them. Pure: no I/O; the time is an argument.

A device is a right to be admitted, not a place: which GPU a container's vGPU is on, the pool's controller decides. So
every node may list the whole pool, and the lists of all nodes together may be longer than the pool.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ID_CHARACTERS_MOST = 63  # of the kubelet's API
FORGET_S = 300.0  # a GPU that has left the pool is unhealthy for so long before it leaves the list
_NAME_CHARACTERS_MOST = 36
_SLOTS_MOST = 100


@dataclass(frozen=True)
class Gpu:
    """A GPU of the pool. `vgpus`: how many it is divided into at most."""

    server: str
    ordinal: int
    vgpus: int
    is_well: bool


@dataclass(frozen=True)
class Device:
    """One line of the kubelet's list."""

    id: str
    is_healthy: bool
    server: str


@dataclass(frozen=True)
class Seen:
    """A GPU as it was last in the pool."""

    gpu: Gpu
    at_s: float


Known = dict[tuple[str, int], Seen]


def seen(before: Known, gpus: Iterable[Gpu], now_s: float) -> Known:
    """What is known after the pool has told its GPUs: these, and as unhealthy those that left it not long ago. A server
    that restarts shall not take its devices off the lists of all nodes."""
    now = {(gpu.server, gpu.ordinal): Seen(gpu, now_s) for gpu in gpus}
    for key, old in before.items():
        if key not in now and now_s - old.at_s < FORGET_S:
            gone = old.gpu
            now[key] = Seen(Gpu(gone.server, gone.ordinal, gone.vgpus, False), old.at_s)
    return now


def listed(known: Known, node: str, most: int) -> tuple[list[Device], int]:
    """The first `most` devices, those of the node's own server before others, and how many there are in all."""
    gpus = sorted((s.gpu for s in known.values()), key=lambda g: (g.server != node, g.server, g.ordinal))
    made: list[Device] = []
    count = 0
    for gpu in gpus:
        slots = max(0, min(gpu.vgpus, _SLOTS_MOST))
        count += slots
        made += [Device(device_id(gpu, slot), gpu.is_well, gpu.server) for slot in range(min(slots, most - len(made)))]
    return made, count


def device_id(gpu: Gpu, slot: int) -> str:
    """Readable, within the kubelet's bounds, and of one GPU of one server alone."""
    name = re.sub(r"[^A-Za-z0-9.-]", "-", gpu.server)[:_NAME_CHARACTERS_MOST]
    digest = hashlib.sha256(gpu.server.encode()).hexdigest()[:8]
    return f"{name}-{digest}-{gpu.ordinal}-{slot}"


def preferred(devices: Sequence[Device], node: str, available: Sequence[str], must: Sequence[str],
              count: int) -> list[str]:  # fmt: skip
    """`count` of `available`, with all of `must`: of as few servers as can be, the node's own first. ValueError: there
    are not so many."""
    server_of = {device.id: device.server for device in devices}
    chosen = list(dict.fromkeys(must))
    left = [device for device in dict.fromkeys(available) if device not in chosen]
    wanted = count - len(chosen)
    if wanted < 0 or wanted > len(left) or count < 0:
        raise ValueError(f"{count} devices are asked for, {len(chosen)} must be among them, {len(left)} are free")
    by_server: dict[str, list[str]] = {}
    for device in sorted(left):
        by_server.setdefault(server_of.get(device, ""), []).append(device)
    used = {server_of.get(device, "") for device in chosen}
    while wanted:
        # One that has room for all of them is better than a larger one; of equals the fullest.
        server = min(by_server, key=lambda s: (
            s not in used, len(by_server[s]) < wanted, s != node,
            len(by_server[s]) if len(by_server[s]) >= wanted else -len(by_server[s]), s,
        ))  # fmt: skip
        taken = by_server.pop(server)[:wanted]
        chosen += taken
        wanted -= len(taken)
    return chosen
