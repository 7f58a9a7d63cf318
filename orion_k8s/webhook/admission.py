"""What the webhook says of a pod: a JSON patch, or a refusal. Pure.

Pods that ask for no vGPU are let through as they are. Of a ResourceClaim a pod tells the name, not the driver: all
containers with claims get the pod's token, which is of no use to them where the claim is another driver's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orion_k8s import asks
from orion_k8s.asks import GMEM, RATIO, Asks, BadAsk

SCHEDULER = "orion-scheduler"
TOKEN_VOLUME = "orion-token"
TOKEN_FOLDER = "/var/run/secrets/orion"
TOKEN_FILE = f"{TOKEN_FOLDER}/token"
TOKEN_S = 3600  # the kubelet renews it long before
AUDIENCE = "orion"
GROUP_FIELD = "metadata.uid"
_OF_POD = {"ORION_GROUP_ID": GROUP_FIELD, "ORION_K8S_POD_UID": GROUP_FIELD, "ORION_K8S_POD_NAME": "metadata.name",
           "ORION_K8S_POD_NS": "metadata.namespace"}  # fmt: skip
Object = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """`audience` empty: no token is added (the controller asks for none)."""

    resource: str = asks.RESOURCE
    scheduler: str = SCHEDULER
    audience: str = AUDIENCE
    token_s: int = TOKEN_S


@dataclass
class Verdict:
    """`patch`: RFC 6902; `refusal` empty: allowed."""

    refusal: str = ""
    patch: list[Object] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ask: Asks | None = None  # None: it asks for no vGPU, or cannot be understood


def mutate(pod: Object, options: Options | None = None) -> Verdict:
    """For a pod that is being made."""
    options = options or Options()
    verdict = validate(pod, options, is_final=False)
    if verdict.refusal:
        return verdict
    patch = verdict.patch
    with_claims = [(f"/spec/{kind}/{index}", dict(container)) for kind, index, container in asks.containers(pod)
                   if options.audience and asks.has_claims(container)
                   and (verdict.ask is None or not asks.count_of(container, options.resource))]  # fmt: skip
    if verdict.ask is None and not with_claims:
        return verdict
    spec = pod["spec"]
    if options.audience:
        _add_token_volume(patch, spec, options)
    for path, claiming in with_claims:
        _add_token(patch, claiming, path)
    if verdict.ask is None:
        return verdict
    name = spec.get("schedulerName") or "default-scheduler"
    if name == "default-scheduler":
        patch.append({"op": "add", "path": "/spec/schedulerName", "value": options.scheduler})
    elif name != options.scheduler:
        verdict.warnings.append(f"schedulerName is {name}: vGPUs are reserved only after that scheduler has bound the "
                                f"pod; {options.scheduler} reserves them before")  # fmt: skip
    for kind, index, container in asks.containers(pod):
        count = asks.count_of(container, options.resource)
        if count:
            _mutate_container(patch, dict(container), f"/spec/{kind}/{index}", count, pod, options)
    return verdict


def _add_token_volume(patch: list[Object], spec: Object, options: Options) -> None:
    if not any(isinstance(v, dict) and v.get("name") == TOKEN_VOLUME for v in spec.get("volumes") or []):
        _append(patch, spec, "/spec", "volumes", {
            "name": TOKEN_VOLUME,
            "projected": {"defaultMode": 0o444, "sources": [{"serviceAccountToken": {
                "audience": options.audience, "expirationSeconds": options.token_s, "path": "token"}}]},
        })  # fmt: skip


def _add_token(patch: list[Object], container: Object, path: str) -> None:
    if "ORION_TOKEN_FILE" not in asks.environment(container):
        _append(patch, container, path, "env", {"name": "ORION_TOKEN_FILE", "value": TOKEN_FILE})
    mounts = container.get("volumeMounts") or []
    if not any(isinstance(m, dict) and m.get("mountPath") in (TOKEN_FOLDER, TOKEN_FILE) for m in mounts):
        _append(patch, container, path, "volumeMounts",
                {"name": TOKEN_VOLUME, "mountPath": TOKEN_FOLDER, "readOnly": True})  # fmt: skip


def _mutate_container(patch: list[Object], container: Object, path: str, count: int, pod: Object,
                      options: Options) -> None:  # fmt: skip
    known = asks.environment(container)
    annotated_mib, annotated_percent = asks.annotated_sizes(pod)
    adds: list[Object] = [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": field_path}}}
        for name, field_path in _OF_POD.items()
        if name not in known
    ]
    for name, value in (("ORION_VGPU", count), ("ORION_GMEM", annotated_mib), ("ORION_RATIO", annotated_percent)):
        if value and name not in known:
            adds.append({"name": name, "value": str(value)})
    for entry in adds:
        _append(patch, container, path, "env", entry)
    if options.audience:
        _add_token(patch, container, path)


def _append(patch: list[Object], owner: Object, path: str, name: str, value: Object) -> None:
    """To a list that may not be there; `owner` is kept in step, so that the next one finds it."""
    if owner.get(name):
        patch.append({"op": "add", "path": f"{path}/{name}/-", "value": value})
        owner[name] = [*owner[name], value]
    else:
        patch.append({"op": "add", "path": f"{path}/{name}", "value": [value]})
        owner[name] = [value]


def validate(pod: Object, options: Options | None = None, *, is_final: bool = True) -> Verdict:
    """What of a pod makes no sense. `is_final`: all webhooks have changed it, so what this one adds must be there."""
    options = options or Options()
    verdict = Verdict()
    if not asks.asks_for_vgpus(pod, options.resource):
        return verdict
    try:
        ask = asks.read(pod, options.resource)
        annotated = asks.annotated_sizes(pod)
        for _, _, container in asks.containers(pod):
            if asks.count_of(container, options.resource):
                _validate_container(container, annotated if not is_final else (0, 0), is_final)
    except BadAsk as error:
        verdict.refusal = f"orion: {error}"
        return verdict
    verdict.ask = ask if ask.containers else None
    return verdict


def validate_update(pod: Object, options: Options | None = None) -> Verdict:
    """An edit of a pod: only its annotations can change what it has."""
    options = options or Options()
    verdict = Verdict()
    if asks.asks_for_vgpus(pod, options.resource):
        try:
            asks.annotated_sizes(pod)
        except BadAsk as error:
            verdict.refusal = f"orion: {error}"
    return verdict


def _validate_container(container: Any, annotated: tuple[int, int], is_final: bool) -> None:
    known = asks.environment(container)
    of = f"container {container.get('name')}: "
    group = known.get("ORION_GROUP_ID")
    if group is None:
        if is_final:
            raise BadAsk(f"{of}ORION_GROUP_ID is missing: it is the pod's uid, by fieldRef {GROUP_FIELD}")
    elif _field_of(group) != GROUP_FIELD:
        raise BadAsk(f"{of}ORION_GROUP_ID must be the pod's own uid, valueFrom.fieldRef.fieldPath: {GROUP_FIELD}; "
                     "leave it out, and it is set")  # fmt: skip
    for name, wanted, annotation in (("ORION_GMEM", annotated[0], GMEM), ("ORION_RATIO", annotated[1], RATIO)):
        entry = known.get(name)
        if wanted and entry is not None and str(entry.get("value") or "0").strip() not in ("0", str(wanted)):
            raise BadAsk(f"{of}{name} is {entry.get('value')!r} and the annotation {annotation} says {wanted}: leave "
                         "one of them out")  # fmt: skip


def _field_of(entry: Any) -> str:
    source = entry.get("valueFrom")
    reference = source.get("fieldRef") if isinstance(source, dict) else None
    return str(reference.get("fieldPath") or "") if isinstance(reference, dict) else ""
