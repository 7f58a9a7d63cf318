"""What a pod asks of the pool: read from its containers' resources, their ORION_* environment and its annotations.

Pure. The webhook and the scheduler read pods with the same eyes: what the one lets in, the other understands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orion_controller.api.pod_models import PodContainer

RESOURCE = "virtaitech.com/gpu"
GMEM = "virtaitech.com/gmem"  # annotations: MiB of each vGPU
RATIO = "virtaitech.com/ratio"  # percent
VGPUS_MOST = 64
GMEM_MOST_MIB = 1 << 30
RULES = ("local-first", "binpack", "spread")
Object = Mapping[str, Any]


class BadAsk(Exception):
    """What a pod asks for cannot be meant; the message is for who wrote it."""


@dataclass(frozen=True)
class Asks:
    """Of one pod. `containers` empty: it asks for no vGPU."""

    uid: str
    namespace: str
    name: str
    containers: tuple[PodContainer, ...]
    rule: Literal["", "local-first", "binpack", "spread"]
    cross_node: bool
    node: str  # it is bound to; empty: to none yet
    is_over: bool  # its containers have all ended, or it is being deleted and never ran

    @property
    def vgpus(self) -> int:
        return sum(c.vgpus * c.count for c in self.containers)


def _dict(value: Any) -> Object:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def metadata(pod: Object) -> Object:
    return _dict(pod.get("metadata"))


def containers(pod: Object) -> Iterator[tuple[str, int, Object]]:
    """(the list's name in the spec, index, container)."""
    spec = _dict(pod.get("spec"))
    for kind in ("containers", "initContainers"):
        for index, container in enumerate(_list(spec.get(kind))):
            if isinstance(container, Mapping):
                yield kind, index, container


def count_of(container: Object, resource: str = RESOURCE) -> int:
    """vGPUs that a container asks for; 0: none. BadAsk."""
    resources, of = _dict(container.get("resources")), f"container {container.get('name')}: "
    for kind in ("limits", "requests"):
        value = _dict(resources.get(kind)).get(resource)
        if value is not None:
            try:
                count = int(str(value))
            except ValueError:
                raise BadAsk(f"{of}{resource} is a whole number, not {value!r}") from None
            if not 0 <= count <= VGPUS_MOST:
                raise BadAsk(f"{of}{resource} is {count}: 0 to {VGPUS_MOST} can be asked for")
            return count
    return 0


def asks_for_vgpus(pod: Object, resource: str = RESOURCE) -> bool:
    """Whether any container names the resource (also when its amount makes no sense)."""
    for _, _, container in containers(pod):
        resources = _dict(container.get("resources"))
        for kind in ("limits", "requests"):
            if str(_dict(resources.get(kind)).get(resource, "0")) != "0":
                return True
    return False


def has_claims(container: Object) -> bool:
    """Whether it uses a ResourceClaim, of whatever driver."""
    return bool(_list(_dict(container.get("resources")).get("claims")))


def environment(container: Object) -> dict[str, Object]:
    """Entries by name; of two with one name the later one counts, as for the kubelet."""
    found = {}
    for entry in _list(container.get("env")):
        if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
            found[entry["name"]] = entry
    return found


def _plain(container: Object, name: str, default: str = "") -> str:
    entry = environment(container).get(name)
    if entry is None:
        return default
    if entry.get("valueFrom"):
        raise BadAsk(f"container {container.get('name')}: {name} must be a plain value: the scheduler has to know it")
    return str(entry.get("value") or "").strip() or default


def _number(text: str, what: str, least: int, most: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise BadAsk(f"{what} is a whole number, not {text[:40]!r}") from None
    if not least <= value <= most:
        raise BadAsk(f"{what} is {value}: {least} to {most} are possible")
    return value


def annotated_sizes(pod: Object) -> tuple[int, int]:
    """MiB and percent that the pod's annotations say, 0 for what they do not say. BadAsk."""
    told = _dict(metadata(pod).get("annotations"))
    gmem, ratio = told.get(GMEM), told.get(RATIO)
    return (
        0 if gmem is None else _number(str(gmem), f"the annotation {GMEM} (MiB)", 1, GMEM_MOST_MIB),
        0 if ratio is None else _number(str(ratio), f"the annotation {RATIO} (percent)", 1, 100),
    )


def _container(pod: Object, container: Object, count: int) -> PodContainer:
    name = str(container.get("name") or "")
    of = f"container {name}: "
    annotated_mib, annotated_percent = annotated_sizes(pod)
    per_process = _number(_plain(container, "ORION_VGPU", str(count)), f"{of}ORION_VGPU", 1, VGPUS_MOST)
    if per_process > count or count % per_process:
        raise BadAsk(f"{of}ORION_VGPU is {per_process}, and the limit of vGPUs is {count}: a process takes ORION_VGPU "
                     "of them, so the limit must be the same number or a multiple of it")  # fmt: skip
    gmem = _number(_plain(container, "ORION_GMEM", "0"), f"{of}ORION_GMEM (MiB)", 0, GMEM_MOST_MIB)
    ratio = _number(_plain(container, "ORION_RATIO", "0"), f"{of}ORION_RATIO (percent)", 0, 100)
    policy = _plain(container, "ORION_RATIO_POLICY")
    if policy not in ("", "hard", "elastic"):
        raise BadAsk(f"{of}ORION_RATIO_POLICY is {policy[:40]!r}: hard or elastic")
    return PodContainer(
        name=name, vgpus=per_process, count=count // per_process, gmem_mib=annotated_mib or gmem,
        ratio_percent=annotated_percent or ratio, policy=policy or None,  # type: ignore[arg-type]
    )  # fmt: skip


def read(pod: Object, resource: str = RESOURCE) -> Asks:
    """BadAsk: something of it makes no sense, and what."""
    told, spec, status = metadata(pod), _dict(pod.get("spec")), _dict(pod.get("status"))
    found: list[PodContainer] = []
    once: list[PodContainer] = []
    rules: set[Any] = set()
    crosses = set()
    for kind, _, container in containers(pod):
        count = count_of(container, resource)
        if not count:
            continue
        asked = _container(pod, container, count)
        # An init container has ended before the others begin: it uses what they have, where that is enough.
        (once if kind == "initContainers" and container.get("restartPolicy") != "Always" else found).append(asked)
        rule = _plain(container, "ORION_SCHEDULE_RULE")
        if rule and rule not in RULES:
            raise BadAsk(f"container {asked.name}: ORION_SCHEDULE_RULE is {rule[:40]!r}: {', '.join(RULES)}")
        rules.add(rule)
        cross = _plain(container, "ORION_CROSS_NODE", "1")
        if cross not in ("0", "1"):
            raise BadAsk(f"container {asked.name}: ORION_CROSS_NODE is {cross[:40]!r}: 0 or 1")
        crosses.add(cross)
    for asked in once:
        if all(c.vgpus != asked.vgpus or c.gmem_mib < asked.gmem_mib for c in found):
            found.append(asked)
    if sum(c.vgpus * c.count for c in found) > VGPUS_MOST:
        raise BadAsk(f"the pod asks for more than {VGPUS_MOST} vGPUs")
    return Asks(
        uid=str(told.get("uid") or ""), namespace=str(told.get("namespace") or ""), name=str(told.get("name") or ""),
        containers=tuple(found), rule=next(iter(sorted(rules - {""})), ""), cross_node="0" not in crosses,
        node=str(spec.get("nodeName") or ""),
        is_over=status.get("phase") in ("Succeeded", "Failed")
        or bool(told.get("deletionTimestamp") and not spec.get("nodeName")),
    )  # fmt: skip


__all__ = ["Asks", "BadAsk", "annotated_sizes", "asks_for_vgpus", "containers", "count_of", "environment", "read"]
