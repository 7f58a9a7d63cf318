"""The cluster itself: what the tests of the chart stand on is really there."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster, Json

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(3600)]

APPLICATION = "docker.io/orion-test/application:1"


@pytest.fixture(autouse=True)
def nothing_stays(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.kubectl("delete", "deployments,pods,services", "-l", "app", "--wait", "--timeout=120s")


def pod(name: str, container: Json, node: str | None = None, **spec: object) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": APPLICATION, "imagePullPolicy": "Never", **container}],
            **({"nodeName": node} if node else {}),
            **spec,
        },
    }


def python(program: str) -> Json:
    return {"command": ["python3", "-c", textwrap.dedent(program)]}


def test_a_service_of_a_deployment_is_found_by_name_from_the_other_node(cluster: Cluster) -> None:
    command = "mkdir /tmp/www && echo hello >/tmp/www/index.html && exec python3 -m http.server -d /tmp/www 8080"
    serve = {"name": "web", "image": APPLICATION, "imagePullPolicy": "Never", "command": ["sh", "-c", command]}
    cluster.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {
                        "terminationGracePeriodSeconds": 1,
                        "nodeSelector": {"kubernetes.io/hostname": "node-1"},
                        "containers": [serve],
                    },
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {
                "type": "NodePort",
                "selector": {"app": "web"},
                "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}],
            },
        },
    )
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=120s")
    program = """
        import time, urllib.request
        for attempt in range(100):
            try:
                print(urllib.request.urlopen("http://web", timeout=2).read().decode())
                break
            except OSError as error:
                print(error)
                time.sleep(0.3)
    """
    cluster.apply(pod("asks", python(program), node="node-2"))
    cluster.wait_for_pod("asks", ["Succeeded", "Failed"])
    assert cluster.kubectl("logs", "asks").endswith("hello")
    fetch = "import urllib.request; print(urllib.request.urlopen('http://node-2:30080/', timeout=20).read().decode())"
    assert cluster.machines[1].run(["/usr/bin/python3", "-c", fetch]).stdout.strip() == "hello"


def test_a_projected_token_proves_its_pod_and_only_for_its_audience(cluster: Cluster) -> None:
    source = {"serviceAccountToken": {"audience": "orion", "expirationSeconds": 600, "path": "token"}}
    volume = {"name": "token", "projected": {"sources": [source]}}
    container = python("print(open('/var/run/secrets/orion/token').read())")
    container["volumeMounts"] = [{"name": "token", "mountPath": "/var/run/secrets/orion"}]
    cluster.apply(pod("proves", container, volumes=[volume]))
    cluster.wait_for_pod("proves", ["Succeeded", "Failed"])
    token = cluster.kubectl("logs", "proves")

    def review(audience: str) -> Json:
        question = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        answer: Json = json.loads(cluster.kubectl("create", "-o", "json", "-f", "-", stdin=json.dumps(question)))
        status: Json = answer["status"]
        return status

    answer = review("orion")
    assert answer["authenticated"] is True
    assert answer["user"]["username"] == "system:serviceaccount:default:default"
    uid = cluster.get("pod", "proves")["metadata"]["uid"]
    assert answer["user"]["extra"]["authentication.kubernetes.io/pod-uid"] == [uid]
    assert not review("something-else").get("authenticated")
    # The token is bound to its pod.
    cluster.kubectl("delete", "pod", "proves", "--wait")
    cluster.wait("the token of a deleted pod is refused", lambda: not review("orion").get("authenticated"))


def test_a_pod_reaches_the_api_server_as_its_service_account(cluster: Cluster) -> None:
    program = """
        import os, ssl, urllib.request
        folder = "/var/run/secrets/kubernetes.io/serviceaccount/"
        url = "https://%s:%s/api" % (os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"])
        request = urllib.request.Request(url, headers={"Authorization": "Bearer " + open(folder + "token").read()})
        trust = ssl.create_default_context(cafile=folder + "ca.crt")
        print(urllib.request.urlopen(request, context=trust, timeout=20).status)
    """
    cluster.apply(pod("calls", python(program), node="node-2"))
    cluster.wait_for_pod("calls", ["Succeeded", "Failed"])
    assert cluster.kubectl("logs", "calls") == "200"
