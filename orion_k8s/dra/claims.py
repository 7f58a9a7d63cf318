"""What an allocated ResourceClaim asks of the pool. Pure: objects in, a wish out; every refusal is a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orion_k8s.dra import quantity
from orion_k8s.dra.devices import Claimed, Device, Index, Size

VGPUS_MOST = 64  # of one claim, as in a reservation
_TAKEN = frozenset({"apiVersion", "kind", "gmem", "ratio"})
Object = dict[str, Any]


class ClaimError(Exception):
    """A claim that cannot be prepared as it is; the message says why, and what to do."""


@dataclass(frozen=True)
class Wish:
    """`pod_uid`: for whom. `size`: of each vGPU. `results`: request, pool and device of each, in the claim's order."""

    pod_uid: str
    pod_name: str
    size: Size
    places: tuple[tuple[str, int], ...]
    results: tuple[tuple[str, str, str], ...]


def results_of(claim: Object, driver: str) -> list[Object]:
    """The devices of this driver that the claim has; none before it is allocated."""
    allocation = _object(_object(claim.get("status")).get("allocation"))
    found = _object(allocation.get("devices")).get("results") or []
    return [result for result in found if isinstance(result, dict) and result.get("driver") == driver]


def claimed(claims: list[Object], devices: Index, driver: str) -> Claimed:
    """What all claims have together. A device that is not in the pool any more counts for nothing."""
    total = Claimed()
    for claim in claims:
        for result in results_of(claim, driver):
            device = devices.get(str(result.get("pool")), str(result.get("device")))
            if device is not None:
                total.add(device, _counted(result, device, driver))
    return total


def read(claim: Object, devices: Index, driver: str) -> Wish:
    """ClaimError."""
    results = results_of(claim, driver)
    if not results:
        raise ClaimError(f"the claim has no device of {driver}: it is not allocated, or by another driver")
    if len(results) > VGPUS_MOST:
        raise ClaimError(f"the claim has {len(results)} vGPUs: a pod can have {VGPUS_MOST}")
    pod = _pod(claim)
    sizes, places, named = [], [], []
    for result in results:
        pool, name = str(result.get("pool")), str(result.get("device"))
        device = devices.get(pool, name)
        if device is None:
            raise ClaimError(f"the device {name} of the pool {pool} is not there: its server is lost or was removed")
        request = str(result.get("request") or "").partition("/")[0]
        sizes.append(_reduced(_counted(result, device, driver), _parameters(claim, result, driver), name))
        places.append((device.node, device.ordinal))
        named.append((request, pool, name))
    if len(set(sizes)) > 1:
        raise ClaimError("the claim's vGPUs are not of one size: ask for the same gmem and ratio in each request")
    return Wish(str(pod["uid"]), str(pod["name"]), sizes[0], tuple(places), tuple(named))


def _pod(claim: Object) -> Object:
    reserved = [r for r in _object(claim.get("status")).get("reservedFor") or [] if isinstance(r, dict)]
    pods = [r for r in reserved if r.get("resource") == "pods" and not r.get("apiGroup")]
    if not pods or any(not isinstance(r.get(name), str) or not r.get(name) for r in pods for name in ("uid", "name")):
        raise ClaimError("the claim is not reserved for a pod")
    if len(reserved) > 1:
        raise ClaimError(
            f"the claim is reserved for {len(reserved)} pods, and a vGPU belongs to one: let each pod have a claim of "
            "its own with resourceClaimTemplateName"
        )
    return pods[0]


def _counted(result: Object, device: Device, driver: str) -> Size:
    """As the scheduler counts it: what was consumed of a whole GPU, or the slot."""
    consumed = _object(result.get("consumedCapacity"))
    values = []
    for name, usual in (("gmem", device.size.gmem_mib), ("ratio", device.size.ratio_percent)):
        text = consumed.get(name, consumed.get(f"{driver}/{name}"))
        if text is None:
            values.append(usual)
            continue
        try:
            number = quantity.mib(text) if name == "gmem" else quantity.floor(quantity.parse(text))
        except ValueError as error:
            raise ClaimError(f"consumedCapacity.{name}: {error}") from error
        values.append(max(1, number))
    return Size(values[0], min(100, values[1]))


def _parameters(claim: Object, result: Object, driver: str) -> Object:
    """Of the class, then of the claim: later ones replace earlier ones, name by name."""
    allocation = _object(_object(claim.get("status")).get("allocation"))
    merged: Object = {}
    request = str(result.get("request") or "")
    for entry in _object(allocation.get("devices")).get("config") or []:
        opaque = _object(_object(entry).get("opaque"))
        requests = _object(entry).get("requests") or []
        if opaque.get("driver") != driver:
            continue
        if requests and request not in requests and request.partition("/")[0] not in requests:
            continue
        merged |= check_parameters(opaque.get("parameters"), driver)
    return merged


def check_parameters(parameters: object, driver: str) -> dict[str, int]:
    """`gmem` (MiB) and `ratio` (percent), where they are given. ClaimError."""
    if not isinstance(parameters, dict):
        raise ClaimError(f"the parameters for {driver} are no object: write gmem: 4096 and ratio: 50")
    unknown = sorted(str(name)[:40] for name in set(parameters) - _TAKEN)
    if unknown:
        raise ClaimError(f"the parameter {unknown[0]!r} for {driver} is not known: there are gmem and ratio")
    version, kind = parameters.get("apiVersion", f"{driver}/v1"), parameters.get("kind", "VgpuParameters")
    if version != f"{driver}/v1" or kind != "VgpuParameters":
        raise ClaimError(f"the parameters are {kind!r:.60} of {version!r:.60}: write VgpuParameters of {driver}/v1")
    bounds = {"gmem": (1 << 30, "MiB"), "ratio": (100, "percent")}
    found = {}
    for name, (most, unit) in bounds.items():
        value = parameters.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise ClaimError(f"the parameter {name} is {value!r:.40}: it is a whole number of {unit} from 1 to {most}")
        found[name] = value
    return found


def _reduced(counted: Size, parameters: Object, device: str) -> Size:
    """Parameters make a vGPU smaller than what the scheduler counts, never larger: it would not know."""
    gmem_mib, ratio = parameters.get("gmem", counted.gmem_mib), parameters.get("ratio", counted.ratio_percent)
    if gmem_mib > counted.gmem_mib:
        raise ClaimError(f"the parameter gmem is {gmem_mib} MiB, but the claim has {counted.gmem_mib} MiB of {device}: "
                         "ask for more in the request's capacity, or for another device")  # fmt: skip
    if ratio > counted.ratio_percent:
        raise ClaimError(f"the parameter ratio is {ratio} %, but the claim has {counted.ratio_percent} % of {device}: "
                         "ask for more in the request's capacity, or for another device")  # fmt: skip
    return Size(gmem_mib, ratio)


def _object(value: object) -> Object:
    return value if isinstance(value, dict) else {}
