"""The configuration with which kube-scheduler runs as orion-scheduler, with the extender beside it."""

from __future__ import annotations

from typing import Any

import yaml

from orion_k8s.asks import RESOURCE
from orion_k8s.webhook.admission import SCHEDULER

GROUP = "kubescheduler.config.k8s.io"
NEWEST = f"{GROUP}/v1"  # Kubernetes 1.25 and later


def api_version(kubernetes: str) -> str:
    """Of a cluster's version, "1.20" or "v1.20.2". ValueError: it is none, or older than the format."""
    parts = kubernetes.lstrip("v").split(".")
    if len(parts) < 2 or parts[0] != "1" or not parts[1].rstrip("+").isdecimal():
        raise ValueError(f"a Kubernetes version like 1.37, not {kubernetes!r}")
    minor = int(parts[1].rstrip("+"))
    if minor < 19:
        raise ValueError("Kubernetes 1.19 and later can be configured like this")
    return f"{GROUP}/v1beta1" if minor < 22 else f"{GROUP}/v1beta2" if minor < 25 else NEWEST


def configuration(
    *, api_version: str = NEWEST, scheduler: str = SCHEDULER, resource: str = RESOURCE,
    extender: str = "http://127.0.0.1:8888", kubeconfig: str = "", leader_elect: bool = True,
    namespace: str = "kube-system", weight: int = 10,
) -> dict[str, Any]:  # fmt: skip
    """A KubeSchedulerConfiguration. Not ignorable: without the extender pods that ask for vGPUs wait, others do not
    notice, since it is asked about the managed resource alone. `weight`: of being near the GPU, against
    kube-scheduler's own scores."""
    made: dict[str, Any] = {
        "apiVersion": api_version,
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": leader_elect, "resourceName": scheduler, "resourceNamespace": namespace,
                           "resourceLock": "leases"},
        "profiles": [{"schedulerName": scheduler}],
        "extenders": [{
            "urlPrefix": extender, "filterVerb": "filter", "prioritizeVerb": "prioritize", "bindVerb": "bind",
            "weight": weight, "enableHTTPS": False, "nodeCacheCapable": True, "ignorable": False,
            "httpTimeout": "10s", "managedResources": [{"name": resource, "ignoredByScheduler": False}],
        }],
    }  # fmt: skip
    if kubeconfig:
        made["clientConnection"] = {"kubeconfig": kubeconfig}
    return made


def text(**options: Any) -> str:
    return yaml.safe_dump(configuration(**options), sort_keys=False)
