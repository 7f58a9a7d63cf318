"""The chart in the cluster, and what its users and operators see of it."""

from __future__ import annotations

import base64
import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster, Json

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/orion"
PROGRAM = Path(__file__).with_name("programs") / "vgpu.py"
NAMESPACE = "orion"
REGISTRY = "docker.io/orion-test"
APPLICATION = f"{REGISTRY}/application:1"
RESOURCE = "virtaitech.com/gpu"
VGPU_LABEL = "virtaitech.com/vgpu"

VALUES: Json = {
    "global": {"imageRegistry": REGISTRY, "imageTag": "test"},
    "image": {"pullPolicy": "Never"},
    # This cluster has no storage classes: the volume is made beforehand.
    "controller": {"persistence": {"storageClass": "-"}},
    "scheduler": {"kubeScheduler": {"image": {"registry": REGISTRY, "tag": "v1.20.2"}}},
    # One GPU node; the other node has none, and its pods use a GPU of the first.
    "server": {"device": "softgpu", "nodeSelector": {"kubernetes.io/hostname": "node-1"}},
}

# The chart's own, without a power that machines of CI lack (pinned memory beyond the limit of locked memory).
SERVER_SECURITY: Json = {
    "runAsUser": 0,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {
        "drop": ["ALL"],
        "add": ["SETUID", "SETGID", "KILL", "CHOWN", "DAC_OVERRIDE", "IPC_LOCK"],
    },
}
CAP_SYS_RESOURCE = 24

VOLUME: Json = {
    "apiVersion": "v1",
    "kind": "PersistentVolume",
    "metadata": {"name": "pool"},
    "spec": {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "local": {"path": "/srv/pool"},
        "nodeAffinity": {
            "required": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-1"]}]}
                ]
            }
        },
    },
}

FETCH = """
import json, ssl, sys, urllib.request
url, token, ca, method, body = json.load(sys.stdin)
request = urllib.request.Request(url, method=method, data=body.encode() if body else None)
request.add_header("Content-Type", "application/json")
if token:
    request.add_header("Authorization", "Bearer " + token)
trust = ssl.create_default_context(cadata=ca)
with urllib.request.urlopen(request, context=trust, timeout=20) as answer:
    print(answer.read().decode())
"""


def values_of_this_machine() -> Json:
    values: Json = copy.deepcopy(VALUES)
    (held,) = re.findall(r"CapBnd:\s*(\w+)", Path("/proc/self/status").read_text())
    if not int(held, 16) >> CAP_SYS_RESOURCE & 1:
        values["server"]["securityContext"] = SERVER_SECURITY
    return values


class Product:
    """One release of the chart."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        cluster.machines[0].run(["mkdir", "-p", "/srv/pool"])
        cluster.apply(VOLUME)
        self._helm("install", "--create-namespace", values=values_of_this_machine())
        self.is_installed = True
        data = {"vgpu.py": PROGRAM.read_text()}
        cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "program"}, "data": data})

    def _helm(self, verb: str, *options: str, values: Json) -> None:
        path = "/root/values.json"
        self.cluster.write(self.cluster.machines[0], path, json.dumps(values))
        chart = ["orion", str(CHART), "--namespace", NAMESPACE, "--values", path]
        try:
            self.cluster.helm(verb, *chart, "--wait", "--timeout", "240s", *options, timeout_s=300)
        except RuntimeError as error:
            error.add_note(self.describe())
            raise

    def upgrade(self, changed: Json) -> None:
        """With these values besides those it has."""
        self._helm("upgrade", "--reuse-values", values=changed)

    def uninstall(self) -> None:
        self.cluster.helm("uninstall", "orion", "--namespace", NAMESPACE, "--wait", timeout_s=300)
        self.is_installed = False

    def describe(self) -> str:
        parts = [self.cluster.kubectl("describe", "pods", "-n", NAMESPACE, check=False)]
        for name in self.cluster.kubectl("get", "pods", "-n", NAMESPACE, "-o", "name", check=False).split():
            for previous in ([], ["--previous"]):
                arguments = ["logs", "-n", NAMESPACE, "--all-containers", "--tail=40", *previous, name]
                parts.append(f"--- {name} {previous}\n{self.cluster.kubectl(*arguments, check=False)}")
        return "\n".join([*parts, self.cluster.describe_trouble()])

    def secret(self, name: str, key: str) -> str:
        return base64.b64decode(self.cluster.get("secret", name, "-n", NAMESPACE)["data"][key]).decode()

    def fetch(self, url: str, *, token: str = "", method: str = "GET", body: Json | None = None) -> str:
        """Over TLS, whose certificate is checked against the chart's."""
        question = [url, token, self.secret("orion-controller-tls", "ca.crt"), method, json.dumps(body) if body else ""]
        return self.cluster.machines[0].run([sys.executable, "-c", FETCH], stdin=json.dumps(question)).stdout

    def api(self, path: str) -> Any:
        """What the controller's API says to somebody who may look."""
        url = f"https://orion-controller.{NAMESPACE}.svc:15500/api/v1/{path}"
        return json.loads(self.fetch(url, token=self.secret("orion-auth-viewer", "token")))

    def pods(self) -> dict[str, Json]:
        """Pods that have vGPUs, by uid."""
        return {one["uid"]: one for one in self.api("pods")["items"]}

    def has_vgpus(self, uid: str) -> bool:
        return uid in self.pods()

    def events(self, pod: str, namespace: str = "default") -> str:
        events = self.cluster.get("events", "-n", namespace, "--field-selector", f"involvedObject.name={pod}")["items"]
        return "\n".join(f"{event['reason']}: {event['message']}" for event in events)


def vgpu_pod(
    name: str,
    *,
    seconds: int = 0,
    env: dict[str, str] | None = None,
    node: str | None = None,
    image: str = APPLICATION,
    command: list[str] | None = None,
    count: int = 1,
    annotations: dict[str, str] | None = None,
    **spec: object,
) -> Json:
    """A pod that asks for a vGPU and runs programs/vgpu.py for so long; nothing of Orion is in its image."""
    container: Json = {
        "name": "cuda",
        "image": image,
        "imagePullPolicy": "Never",
        "command": command or ["python3", "/program/vgpu.py", str(seconds)],
        "env": [{"name": key, "value": value} for key, value in (env or {}).items()],
        "resources": {"limits": {RESOURCE: count}},
        "volumeMounts": [{"name": "program", "mountPath": "/program"}],
    }
    selector = {"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations or {}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 2,
            "containers": [container],
            "volumes": [{"name": "program", "configMap": {"name": "program"}}],
            **selector,
            **spec,
        },
    }
