"""Least privilege: the roles allow what the code asks for, and nothing else."""

from __future__ import annotations

import ast

import pytest

from tests.chart import rbac
from tests.chart.rbac import COMPONENTS, OF_KUBE_SCHEDULER, Right, allowed, asked, rendered


@pytest.mark.parametrize("component", COMPONENTS)
def test_roles_are_what_the_code_asks_for(component: str) -> None:
    may = allowed(component, rendered())
    if component == "scheduler":
        assert may >= OF_KUBE_SCHEDULER
        may -= OF_KUBE_SCHEDULER
    asks = asked(component)
    assert may == asks, f"missing: {sorted(asks - may)}; not asked for: {sorted(may - asks)}"


def test_the_sources_are_really_read() -> None:
    assert Right("", "pods/binding", "create") in asked("scheduler")
    assert Right("authentication.k8s.io", "tokenreviews", "create") in asked("controller")
    assert Right("", "configmaps", "patch") in asked("controller")
    assert asked("server") == asked("device-plugin") == set()


def test_a_request_that_cannot_be_read_is_an_error() -> None:
    for source in ("await self._api.get(somewhere)", "await api.patch(path_of(kind, n), {})"):
        with pytest.raises(rbac.Unreadable, match=r"x\.py:1"):
            rbac._of_source(ast.parse(source), "x.py")
    found = rbac._of_source(ast.parse('async for c in self.kube.follow(path_of("pods", api="v1")): pass'), "x.py")
    assert found == {Right("", "pods", "list"), Right("", "pods", "watch")}


def test_nothing_has_all_rights_and_secrets_are_nobodys() -> None:
    for item in rendered():
        if item["kind"] in ("Role", "ClusterRole"):
            for rule in item["rules"]:
                assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
                assert not {"secrets", "serviceaccounts/token", "nodes/proxy"} & set(rule["resources"])
        if item["kind"].endswith("Binding"):
            assert item["roleRef"]["name"] != "cluster-admin"


def test_tokens_are_mounted_only_where_they_are_used() -> None:
    for item in rendered():
        if item["kind"] in ("Deployment", "DaemonSet"):
            spec = item["spec"]["template"]["spec"]
            assert spec["automountServiceAccountToken"] is False, item["metadata"]["name"]
            component = item["metadata"]["labels"]["app.kubernetes.io/component"]
            has_token = any(volume["name"] == "api-server" for volume in spec["volumes"])
            assert has_token == bool(asked(component)), component
        elif item["kind"] == "ServiceAccount":
            assert item["automountServiceAccountToken"] is False
