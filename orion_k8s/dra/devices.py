"""The pool as devices in ResourceSlices. Pure: GPUs and claims in, objects out.

Each server of the pool is a DRA pool of its own, so that a change on one server touches the slices of that server alone
(docs/decisions/0024). A device is a whole GPU of which any number of claims take memory, share and one of its places
(`consumable`, KEP-5075), or else one of the equal parts into which a GPU is cut (`slots`).
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orion_controller.api.models import Gpu
from orion_k8s.dra import API, quantity

Mode = Literal["consumable", "slots"]
Object = dict[str, Any]
DEVICES_A_SLICE = 128
ATTRIBUTE_MOST = 64  # characters
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?")  # leaves room for a slot's number in 63 characters
_SUBDOMAIN = re.compile(r"(?=.{1,200}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


@dataclass(frozen=True)
class Size:
    """Of a vGPU, or what is given of a GPU: MiB, percent of its time, number of vGPUs."""

    gmem_mib: int
    ratio_percent: int
    vgpus: int = 1

    def plus(self, other: Size) -> Size:
        return Size(self.gmem_mib + other.gmem_mib, self.ratio_percent + other.ratio_percent, self.vgpus + other.vgpus)

    def beyond(self, other: Size) -> Size:
        """What is more here than there, each by itself."""
        return Size(
            max(0, self.gmem_mib - other.gmem_mib),
            max(0, self.ratio_percent - other.ratio_percent),
            max(0, self.vgpus - other.vgpus),
        )


NOTHING = Size(0, 0, 0)


@dataclass(frozen=True)
class Device:
    """A device that a claim can name: a GPU, or slot `slot` of it. `size`: what a vGPU on it has by default."""

    pool: str
    name: str
    node: str
    ordinal: int
    size: Size
    slot: int | None = None


@dataclass
class Claimed:
    """What ResourceClaims have of the pool, as the scheduler counts it."""

    sizes: dict[tuple[str, int], Size] = field(default_factory=lambda: defaultdict(lambda: NOTHING))
    names: set[tuple[str, str]] = field(default_factory=set)  # (pool, device)

    def add(self, device: Device, size: Size) -> None:
        self.sizes[device.node, device.ordinal] = self.sizes[device.node, device.ordinal].plus(size)
        self.names.add((device.pool, device.name))


def pool_name(prefix: str, node: str) -> str:
    """A server's name where it can be one; pools share no name whatever servers are called."""
    return f"{prefix}/{node if _SUBDOMAIN.fullmatch(node) else 'server-' + _digest(node)}"


def gpu_name(gpu: Gpu) -> str:
    name = gpu.uuid.lower()
    return name if _LABEL.fullmatch(name) else f"gpu-{_digest(gpu.uuid, str(gpu.ordinal))}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def share(gpu: Gpu) -> Size:
    """One of the equal parts of a GPU."""
    places = max(1, gpu.max_vgpus)
    return Size(max(1, gpu.capacity_mib // places), min(100, max(1, gpu.ratio_percent // places)))


def slot_count(gpu: Gpu) -> int:
    """Into how many parts a GPU is cut: no more than it has MiB and percent for."""
    usual = share(gpu)
    return max(0, min(gpu.max_vgpus, gpu.capacity_mib // usual.gmem_mib, gpu.ratio_percent // usual.ratio_percent))


class Index:
    """Finds the device of either mode that a claim names: claims made before a change of mode stay good."""

    def __init__(self, gpus: Iterable[Gpu], prefix: str) -> None:
        self._gpus = {(pool_name(prefix, gpu.node), gpu_name(gpu)): gpu for gpu in gpus}

    def get(self, pool: str, name: str) -> Device | None:
        gpu, slot = self._gpus.get((pool, name)), None
        if gpu is None:
            base, _, number = name.rpartition("-s")
            gpu = self._gpus.get((pool, base))
            if gpu is None or not number.isascii() or not number.isdecimal() or int(number) >= slot_count(gpu):
                return None
            slot = int(number)
        return Device(pool, name, gpu.node, gpu.ordinal, share(gpu), slot)


# ------------------------------------------------------------------------------------------------ devices of a GPU


def devices(gpu: Gpu, mode: Mode, claimed: Claimed, prefix: str) -> list[Object]:
    """Entries of a slice. What others than ResourceClaims have of the GPU (programs outside the cluster, pods of the
    device plugin) is not offered; what claims have is, since the scheduler subtracts it itself."""
    given = Size(gpu.given_mib, gpu.ratio_given_percent, gpu.vgpus)
    others = given.beyond(claimed.sizes.get((gpu.node, gpu.ordinal), NOTHING))
    return _whole(gpu, others) if mode == "consumable" else _slots(gpu, others, claimed, prefix)


def _whole(gpu: Gpu, others: Size) -> list[Object]:
    left = Size(gpu.capacity_mib, gpu.ratio_percent, gpu.max_vgpus).beyond(others)
    if min(left.gmem_mib, left.ratio_percent, left.vgpus) < 1:
        return []
    usual = share(gpu)
    gmem = _range(quantity.of_mib(left.gmem_mib), quantity.of_mib(min(usual.gmem_mib, left.gmem_mib)), "1Mi",
                  quantity.of_mib(left.gmem_mib), has_steps=left.gmem_mib > 1)  # fmt: skip
    percent = min(100, left.ratio_percent)
    ratio = _range(str(left.ratio_percent), str(min(usual.ratio_percent, percent)), "1", str(percent),
                   has_steps=left.ratio_percent > 1)  # fmt: skip
    places = {"value": str(left.vgpus), "requestPolicy": {"default": "1", "validValues": ["1"]}}
    return [{
        "name": gpu_name(gpu), "attributes": _attributes(gpu), "allowMultipleAllocations": True,
        "capacity": {"gmem": gmem, "ratio": ratio, "vgpus": places},
    }]  # fmt: skip


def _range(value: str, default: str, least: str, most: str, has_steps: bool) -> Object:
    # The API server wants least + step within the value.
    valid = {"min": least, "max": most} | ({"step": least} if has_steps else {})
    return {"value": value, "requestPolicy": {"default": default, "validRange": valid}}


def _slots(gpu: Gpu, others: Size, claimed: Claimed, prefix: str) -> list[Object]:
    usual = share(gpu)
    # As many as others' vGPUs use up, whatever their sizes.
    hidden = max(
        -(-others.gmem_mib // usual.gmem_mib), -(-others.ratio_percent // usual.ratio_percent), others.vgpus
    )  # fmt: skip
    pool, name = pool_name(prefix, gpu.node), gpu_name(gpu)
    free = [s for s in range(slot_count(gpu)) if (pool, f"{name}-s{s}") not in claimed.names]
    gone = set(free[len(free) - hidden :] if hidden < len(free) else free)
    capacity = {"gmem": {"value": quantity.of_mib(usual.gmem_mib)}, "ratio": {"value": str(usual.ratio_percent)}}
    attributes = _attributes(gpu)
    return [
        {"name": f"{name}-s{slot}", "attributes": attributes, "capacity": capacity}
        for slot in range(slot_count(gpu))
        if slot not in gone
    ]


def _attributes(gpu: Gpu) -> Object:
    texts = {"server": gpu.node, "uuid": gpu.uuid, "model": gpu.name}
    return {name: {"string": text} for name, text in texts.items() if 0 < len(text) <= ATTRIBUTE_MOST} | {
        "ordinal": {"int": gpu.ordinal}
    }


# ------------------------------------------------------------------------------------------------ slices


def pools(gpus: Iterable[Gpu], mode: Mode, claimed: Claimed, prefix: str) -> dict[str, list[Object]]:
    """All devices by the name of their pool; a pool without devices is not there."""
    made: dict[str, list[Object]] = defaultdict(list)
    for gpu in sorted(gpus, key=lambda g: (g.node, g.ordinal)):
        made[pool_name(prefix, gpu.node)] += devices(gpu, mode, claimed, prefix)
    return {name: entries for name, entries in made.items() if entries}


def slices(driver: str, pool: str, entries: list[Object], generation: int, nodes: Mapping[str, str]) -> list[Object]:
    """The ResourceSlices of one pool. `nodes`: labels of the nodes whose pods reach the pool; empty: all nodes."""
    parts = [entries[at : at + DEVICES_A_SLICE] for at in range(0, len(entries), DEVICES_A_SLICE)]
    reach: Object = {"allNodes": True}
    if nodes:
        wanted = [{"key": k, "operator": "In", "values": [v]} for k, v in sorted(nodes.items())]
        reach = {"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": wanted}]}}
    return [
        {
            "apiVersion": API,
            "kind": "ResourceSlice",
            "metadata": {"name": f"{driver}-{_digest(pool)}-{number}"},
            "spec": {
                "driver": driver,
                "pool": {"name": pool, "generation": generation, "resourceSliceCount": len(parts)},
                **reach,
                "devices": part,
            },
        }
        for number, part in enumerate(parts)
    ]
