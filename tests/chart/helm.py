"""The real helm on the chart, without a cluster."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "orion"
VALUES = Path(__file__).with_name("values")
NEWEST = "1.37.0"
CLUSTER = "1.20.2"  # of the cluster tests
# Those whose schemas are at hand, and the oldest that runs the chart.
VERSIONS = [CLUSTER, *(f"1.{minor}.0" for minor in range(25, 38))]
Object = dict[str, Any]


@cache
def program() -> str:
    """helm's path; fetched when it is not there."""
    command = [sys.executable, str(ROOT / "tools" / "fetch_helm.py")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() + "/helm"


def helm(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs helm; what it says when it fails is shown."""
    done = subprocess.run([program(), *arguments], capture_output=True, text=True, check=False, timeout=120)
    if check and done.returncode:
        raise AssertionError(f"helm {' '.join(arguments)}: {done.stderr}")
    return done


def template(*arguments: str, kube_version: str = NEWEST, release: str = "orion", namespace: str = "orion") -> str:
    """What would be installed, as text."""
    return helm("template", release, str(CHART), "--namespace", namespace, "--kube-version", kube_version,
                *arguments).stdout  # fmt: skip


def objects(
    *arguments: str, kube_version: str = NEWEST, release: str = "orion", namespace: str = "orion"
) -> list[Object]:
    """What would be installed."""
    text = template(*arguments, kube_version=kube_version, release=release, namespace=namespace)
    return [item for item in yaml.load_all(text, yaml.CSafeLoader) if item]


def refusal(*arguments: str, kube_version: str = NEWEST) -> str:
    """What helm says to values that cannot be used."""
    done = helm("template", "orion", str(CHART), "--kube-version", kube_version, *arguments, check=False)
    assert done.returncode, "these values were accepted"
    return done.stderr


def setting(**values: str) -> list[str]:
    """`--set` of each; double underscores are dots."""
    return [part for name, value in values.items() for part in ("--set", f"{name.replace('__', '.')}={value}")]


def only(found: list[Object], kind: str, name: str = "") -> Object:
    """The one object of that kind (and name)."""
    (item,) = (o for o in found if o["kind"] == kind and (not name or o["metadata"]["name"] == name))
    return item


def container(workload: Object, name: str = "") -> Object:
    """Of a Deployment or DaemonSet; the first one."""
    containers = workload["spec"]["template"]["spec"]["containers"]
    (found,) = (c for c in containers if c["name"] == name) if name else containers[:1]
    return dict(found)


def environment(of: Object) -> dict[str, Any]:
    """Its variables: text, or what the text comes from."""
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in of.get("env") or []}
