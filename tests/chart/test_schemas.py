"""Every object of the chart against the schemas of every Kubernetes that it is for, offline; and helm's own lint."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.helm import CHART, CLUSTER, NEWEST, VALUES, VERSIONS, helm, objects, only, setting
from tests.chart.schemas import complaints

MATRIX: dict[str, list[str]] = {
    "default": [],
    "product": ["-f", str(VALUES / "product.yaml")],
    "laptop": ["-f", str(VALUES / "laptop.yaml")],
    "several replicas": ["-f", str(VALUES / "production.yaml"), *setting(dra__enabled="false")],
    "everything optional off": setting(
        server__enabled="false", plugin__enabled="false", scheduler__enabled="false", networkPolicy__enabled="false",
        rbac__create="false", test__enabled="false", controller__identity__enabled="false",
        portal__service__enabled="false",
    ),
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(version: str) -> None:
    # The oldest schemas at hand are 1.25's; what 1.20 has not is looked for by hand below.
    schema = "1.25" if version == CLUSTER else version.rpartition(".")[0]
    # Everything for the ends; between them what has most in it.
    names = MATRIX if version in (CLUSTER, "1.25.0", NEWEST) else ["default", "several replicas"]
    told = {name: complaints(objects(*MATRIX[name], kube_version=version), schema) for name in names}
    assert not {name: found for name, found in told.items() if found}


@pytest.mark.parametrize("version", ["1.34.0", "1.36.0", "1.37.0"])
def test_the_dra_driver_is_valid(version: str) -> None:
    found = objects("-f", str(VALUES / "production.yaml"), kube_version=version)
    assert only(found, "DeviceClass")["apiVersion"] == "resource.k8s.io/v1"
    assert not complaints(found, version.rpartition(".")[0])


def test_the_oldest_cluster_is_asked_for_nothing_that_it_does_not_have() -> None:
    newer = {"policy/v1", "batch/v1", "autoscaling/v2", "flowcontrol.apiserver.k8s.io/v1", "resource.k8s.io/v1"}
    for arguments in MATRIX.values():
        found = objects(*arguments, kube_version=CLUSTER)
        assert not newer & {item["apiVersion"] for item in found}
        for item in found:
            if item["kind"] == "MutatingWebhookConfiguration":
                assert all("matchConditions" not in webhook for webhook in item["webhooks"])


def test_the_validation_can_fail() -> None:
    (item,) = (o for o in objects() if o["kind"] == "Deployment" and o["metadata"]["name"] == "orion-controller")
    broken: dict[str, Any] = {**item, "spec": {**item["spec"], "replicas": "one"}}
    assert complaints([broken], "1.37")
    assert complaints([{**item, "spec": {**item["spec"], "replica": 1}}], "1.37")


def test_lint() -> None:
    for arguments in MATRIX.values():
        told = helm("lint", "--strict", str(CHART), *arguments).stdout
        assert "0 chart(s) failed" in told
