"""What Orion's components ask of the API server, read from their sources, against what the chart's roles allow.

`python -m tests.chart.rbac` prints both. A request is a call of KubeApi's methods; its path is a call of `path_of`, or
the method stands for one. What cannot be read is an error: a request that nobody sees is one that no role allows.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.chart.helm import ROOT, VALUES, Object, objects


class Right(NamedTuple):
    """One verb on one resource, "pods/binding" where it is a subresource."""

    group: str
    resource: str
    verb: str


# What the methods of KubeApi ask for, whose path stands in the first argument.
_VERBS = {
    "get": ("get",), "list": ("list",), "watch": ("watch",), "follow": ("list", "watch"), "create": ("create",),
    "replace": ("update",), "patch": ("patch",), "delete": ("delete",),
}  # fmt: skip
# Methods that make their path themselves.
_WHOLE = {
    "bind_pod": Right("", "pods/binding", "create"), "create_event": Right("", "events", "create"),
    "cluster_id": Right("", "namespaces", "get"),
    "token_review": Right("authentication.k8s.io", "tokenreviews", "create"),
}  # fmt: skip
# Sources that run with a service account, and the objects of the chart that give it its rights.
COMPONENTS: dict[str, list[str]] = {
    "controller": ["orion_controller/identity.py", "orion_controller/daemon.py", "orion_k8s/chart"],
    "scheduler": ["orion_k8s/scheduler", "orion_k8s/webhook"],
    "device-plugin": ["orion_k8s/device_plugin"],
    "server": ["orion_server"],
    "dra-publish": ["orion_k8s/dra/publish.py"],
    "dra-node": ["orion_k8s/dra/node.py", "orion_k8s/dra/plugin.py"],
}


class Unreadable(Exception):
    """A request whose path is not seen here: where it is."""


def _files(names: Iterable[str]) -> Iterator[Path]:
    for name in names:
        path = ROOT / name
        assert path.exists(), f"{path} is gone: name the component's sources in COMPONENTS"
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def asked(component: str) -> set[Right]:
    """Everything that a component's sources ask for."""
    found: set[Right] = set()
    for file in _files(COMPONENTS[component]):
        if "kube_api" not in file.read_text():
            continue
        found |= _of_source(ast.parse(file.read_text()), str(file.relative_to(ROOT)))
    return found


def _of_source(tree: ast.Module, where: str) -> set[Right]:
    constants = _constants(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("orion_"):
            constants |= _constants(ast.parse(_module(str(node.module)).read_text()))
    # Variables and functions whose value is a path.
    paths: dict[str, list[ast.Call]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            calls = _path_calls(node.value)
            for target in node.targets:
                if calls and isinstance(target, ast.Name | ast.Attribute):
                    name = target.id if isinstance(target, ast.Name) else target.attr
                    paths.setdefault(name, []).extend(calls)
        elif isinstance(node, ast.FunctionDef):
            calls = [call for inner in ast.walk(node) if isinstance(inner, ast.Return) and inner.value is not None
                     for call in _path_calls(inner.value)]  # fmt: skip
            if calls:
                paths.setdefault(node.name, []).extend(calls)
    found: set[Right] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        if node.attr in _WHOLE and _is_api(node.value):
            found.add(_WHOLE[node.attr])
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr not in _VERBS or not _is_api(node.func.value):
            continue
        calls = _path_calls(node.args[0]) if node.args else []
        if not calls and node.args:
            names = [n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(node.args[0])
                     if isinstance(n, ast.Name | ast.Attribute)]  # fmt: skip
            calls = [call for name in names for call in paths.get(name, [])]
        if not calls:
            raise Unreadable(f"{where}:{node.lineno}: the path of this request is not seen; name it by path_of")
        for call in calls:
            group, resource = _resource(call, constants, where)
            found |= {Right(group, resource, verb) for verb in _VERBS[node.func.attr]}
    return found


def _constants(tree: ast.Module) -> dict[str, object]:
    return {
        target.id: node.value.value
        for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets if isinstance(target, ast.Name)
    }  # fmt: skip


def _module(name: str) -> Path:
    path = ROOT / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _is_api(owner: ast.expr) -> bool:
    """Whether it is called like a KubeApi: api, kube, self._api, self.kube, ..."""
    name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
    return name.strip("_") in ("api", "kube", "kube_api")


def _path_calls(value: ast.expr) -> list[ast.Call]:
    calls = (node for node in ast.walk(value) if isinstance(node, ast.Call))
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "path_of"]


def _resource(call: ast.Call, constants: dict[str, object], where: str) -> tuple[str, str]:
    def text(node: ast.expr | None) -> str:
        if node is None:
            return ""
        if isinstance(node, ast.Name) and node.id in constants:
            return str(constants[node.id])
        if not isinstance(node, ast.Constant):
            raise Unreadable(f"{where}:{call.lineno}: path_of is given what is not written here")
        return str(node.value)

    named = {keyword.arg: keyword.value for keyword in call.keywords}
    api = text(named.get("api") or (call.args[4] if len(call.args) > 4 else None)) or "v1"
    subresource = text(named.get("subresource") or (call.args[3] if len(call.args) > 3 else None))
    resource = text(call.args[0])
    return api.rpartition("/")[0], f"{resource}/{subresource}" if subresource else resource


def allowed(component: str, found: list[Object]) -> set[Right]:
    """What the roles of this chart allow the component's service account. kube-scheduler's own (system:...) are the
    cluster's."""
    account = f"orion-{component}"
    roles = set()
    for item in found:
        if item["kind"].endswith("Binding") and any(s["name"] == account for s in item["subjects"]):
            roles.add((item["roleRef"]["kind"], item["roleRef"]["name"]))
    return {
        Right(group, resource, verb)
        for item in found if (item["kind"], item["metadata"]["name"]) in roles
        for rule in item["rules"] for group in rule["apiGroups"] for resource in rule["resources"]
        for verb in rule["verbs"]
    }  # fmt: skip


# Of kube-scheduler, which shares the scheduler's account: its lease, where there are several replicas.
OF_KUBE_SCHEDULER = {Right("coordination.k8s.io", "leases", verb) for verb in ("create", "get", "update")}


def rendered() -> list[Object]:
    """The chart with everything that has rights switched on."""
    return objects("-f", str(VALUES / "production.yaml"))


if __name__ == "__main__":
    everything = rendered()
    for each in COMPONENTS:
        asks, may = asked(each), allowed(each, everything)
        for right in sorted(asks | may):
            state = "needed" if right in asks and right in may else "MISSING" if right in asks else "not asked for"
            print(f"{each:14} {state:14} {right.group or 'core'} {right.resource} {right.verb}")
