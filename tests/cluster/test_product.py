"""Orion in a real Kubernetes: helm install, and pods of users that go all the way to a GPU."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster, Json
from tests.cluster.machine import Machine
from tests.cluster.product import NAMESPACE, RESOURCE, VGPU_LABEL, Product, vgpu_pod

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def product(cluster: Cluster) -> Product:
    return Product(cluster)


@pytest.fixture(autouse=True)
def no_pods_stay(product: Product) -> Iterator[None]:
    yield
    product.cluster.kubectl("delete", "pods", "--all", "--wait", "--timeout=120s")
    product.cluster.wait("all vGPUs are given back", lambda: not product.is_installed or not product.pods(), 120)


def told(cluster: Cluster, pod: str) -> list[Json]:
    """The lines of programs/vgpu.py."""
    lines = cluster.kubectl("logs", pod, check=False).splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def lines_on(machine: Machine, count: str) -> int:
    return int(machine.run(["sh", "-c", count], check=False).stdout.strip() or 0)


def uid_of(cluster: Cluster, pod: str) -> str:
    return str(cluster.get("pod", pod)["metadata"]["uid"])


def wait_for_lines(cluster: Cluster, pod: str, count: int = 1) -> list[Json]:
    cluster.wait(f"{pod} computes", lambda: len(told(cluster, pod)) >= count, 180)
    return told(cluster, pod)


def test_every_node_advertises_the_pool_and_the_portal_answers(cluster: Cluster, product: Product) -> None:
    cluster.wait(
        "both nodes advertise vGPUs",
        lambda: all(int(node["status"]["allocatable"].get(RESOURCE, 0)) > 0 for node in cluster.get("nodes")["items"]),
    )
    assert [node["name"] for node in product.api("nodes")["items"]] == ["node-1"]
    # By the node's port, which a browser outside uses.
    fetch = "import ssl, urllib.request as u; c = ssl._create_unverified_context(); "
    fetch += "print(u.urlopen('https://node-2:30007/', context=c, timeout=20).read().decode())"
    assert "<title>" in cluster.machines[0].run(["/usr/bin/python3", "-c", fetch]).stdout


def test_helm_test_passes(cluster: Cluster, product: Product) -> None:
    cluster.helm("test", "orion", "--namespace", NAMESPACE, "--logs", timeout_s=300)


@pytest.mark.parametrize("node", ["node-1", "node-2"])
def test_the_products_example_pod_computes_and_prints_its_vgpu(cluster: Cluster, product: Product, node: str) -> None:
    pod = vgpu_pod("example", seconds=0, node=node, schedulerName="orion-scheduler", hostIPC=True)
    env = [("ORION_VGPU", "1"), ("ORION_GMEM", "4096"), ("ORION_RATIO", "100")]
    group = {"name": "ORION_GROUP_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}
    pod["spec"]["containers"][0]["env"] = [*({"name": name, "value": value} for name, value in env), group]
    cluster.apply(pod)
    cluster.wait_for_pod("example", ["Succeeded", "Failed"])
    (line,) = told(cluster, "example")
    # Shared memory on the GPU's own node, the network from the other one.
    log = cluster.kubectl("logs", "-n", NAMESPACE, "daemonset/orion-server")
    assert re.findall(r"bound over (\w+)", log)[-1] == {"node-1": "shm", "node-2": "tcp"}[node]
    assert line == {"devices": 1, "name": "softgpu (CPU)", "mib": 4096, "sums": True, "device_nodes": []}
    placed = cluster.get("pod", "example")
    assert placed["spec"]["nodeName"] == node
    uid = placed["metadata"]["uid"]
    events = [one for one in cluster.get("events")["items"] if one["involvedObject"].get("uid") == uid]
    assert {one["reportingComponent"] for one in events if one["reason"] == "Scheduled"} == {"orion-scheduler"}


def test_a_container_lists_its_vgpu_with_nvidia_smi(cluster: Cluster, product: Product) -> None:
    image = "docker.io/orion-test/orion-client:test"
    command = ["sh", "-c", "orion-smi; python3 /program/vgpu.py"]
    cluster.apply(vgpu_pod("smi", env={"ORION_GMEM": "3000"}, image=image, command=command))
    cluster.wait_for_pod("smi", ["Succeeded", "Failed"])
    logs = cluster.kubectl("logs", "smi")
    assert re.search(r"softgpu \(CPU\)", logs)
    assert "3000" in logs


def test_a_pod_without_scheduler_and_group_is_completed(cluster: Cluster, product: Product) -> None:
    cluster.apply(vgpu_pod("plain", env={"ORION_GMEM": "2048"}, node="node-2"))
    completed = cluster.get("pod", "plain")
    assert completed["spec"]["schedulerName"] == "orion-scheduler"
    env = {one["name"]: one for one in completed["spec"]["containers"][0]["env"]}
    assert env["ORION_GROUP_ID"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.uid"
    assert env["ORION_TOKEN_FILE"]["value"] == "/var/run/secrets/orion/token"
    cluster.wait_for_pod("plain", ["Succeeded", "Failed"])
    assert [line["mib"] for line in told(cluster, "plain")] == [2048]


def test_pods_without_vgpus_are_left_alone(cluster: Cluster, product: Product) -> None:
    pod = vgpu_pod("other", command=["true"])
    del pod["spec"]["containers"][0]["resources"]
    cluster.apply(pod)
    completed = cluster.get("pod", "other")
    assert completed["spec"]["schedulerName"] == "default-scheduler"
    assert "ORION_GROUP_ID" not in json.dumps(completed["spec"])
    cluster.wait_for_pod("other", ["Succeeded", "Failed"])


def test_a_deleted_pod_gives_its_vgpu_back(cluster: Cluster, product: Product) -> None:
    cluster.apply(vgpu_pod("long", seconds=600))
    wait_for_lines(cluster, "long")
    uid = uid_of(cluster, "long")
    assert product.has_vgpus(uid)
    cluster.kubectl("delete", "pod", "long", "--wait", "--timeout=60s")
    cluster.wait("its vGPU is free", lambda: not product.has_vgpus(uid))


@pytest.mark.parametrize("node", ["node-1", "node-2"])
def test_an_edited_annotation_resizes_the_running_vgpu(cluster: Cluster, product: Product, node: str) -> None:
    cluster.apply(vgpu_pod("grows", seconds=600, env={"ORION_GMEM": "1024", "ORION_RATIO": "20"}, node=node))
    assert wait_for_lines(cluster, "grows")[-1]["mib"] == 1024
    cluster.kubectl("annotate", "pod", "grows", "virtaitech.com/gmem=3072", "virtaitech.com/ratio=40", "--overwrite")
    cluster.wait("the program sees the new quota", lambda: told(cluster, "grows")[-1]["mib"] == 3072)
    assert told(cluster, "grows")[-1]["sums"] is True
    (part,) = product.pods()[uid_of(cluster, "grows")]["parts"]
    assert (part["gmem_mib"], part["ratio_percent"]) == (3072, 40)


def test_annotations_say_what_a_pod_wants(cluster: Cluster, product: Product) -> None:
    wishes = {"virtaitech.com/gmem": "1536", "virtaitech.com/ratio": "30"}
    cluster.apply(vgpu_pod("annotated", annotations=wishes))
    cluster.wait_for_pod("annotated", ["Succeeded", "Failed"])
    assert [line["mib"] for line in told(cluster, "annotated")] == [1536]


def test_nobody_takes_the_group_of_another_pod(cluster: Cluster, product: Product) -> None:
    cluster.apply(vgpu_pod("victim", seconds=600, env={"ORION_GMEM": "1024"}))
    wait_for_lines(cluster, "victim")
    victim = uid_of(cluster, "victim")
    # Says at once, in its specification, that it is the other pod: admission refuses it, or it gets its own.
    claims = vgpu_pod("claims", env={"ORION_GROUP_ID": victim})
    with pytest.raises(RuntimeError, match="ORION_GROUP_ID"):
        cluster.apply(claims)
    # Says so later, from inside, with its own token.
    lies = f"ORION_GROUP_ID={victim} python3 /program/vgpu.py; echo ended $?"
    cluster.apply(vgpu_pod("lies", command=["sh", "-c", lies]))
    cluster.wait_for_pod("lies", ["Succeeded", "Failed"])
    logs = cluster.kubectl("logs", "lies")
    assert told(cluster, "lies")[-1]["in"] == "cuInit", logs
    # Has taken the other's token, and keeps its own group.
    token = cluster.kubectl("exec", "victim", "--", "cat", "/var/run/secrets/orion/token")
    uses = 'printf %s "$STOLEN" >/tmp/token; ORION_TOKEN_FILE=/tmp/token python3 /program/vgpu.py; echo ended $?'
    cluster.apply(vgpu_pod("uses", command=["sh", "-c", uses], env={"STOLEN": token}))
    cluster.wait_for_pod("uses", ["Succeeded", "Failed"])
    assert told(cluster, "uses")[-1]["in"] == "cuInit", cluster.kubectl("logs", "uses")
    assert told(cluster, "victim")[-1]["sums"] is True


def test_two_nodes_that_each_advertise_the_pool_place_no_more_than_it_has(cluster: Cluster, product: Product) -> None:
    # Eight pods of half a GPU: both nodes say that they have room for all, the pool has one GPU.
    env = {"ORION_GMEM": "1024", "ORION_RATIO": "50"}
    names = [f"crowd-{number}" for number in range(8)]
    cluster.apply(*(vgpu_pod(name, seconds=600, env=env, node=f"node-{i % 2 + 1}") for i, name in enumerate(names)))

    def running() -> list[str]:
        pods = cluster.get("pods")["items"]
        return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"]

    cluster.wait("two pods run", lambda: len(running()) == 2, 180)
    for name in running():
        wait_for_lines(cluster, name)
    waiting = [name for name in names if name not in running()]
    said = "FailedScheduling"
    cluster.wait("the others say why they wait", lambda: all(said in product.events(name) for name in waiting))
    assert len(running()) == 2
    assert sum(part["ratio_percent"] for pod in product.pods().values() for part in pod["parts"]) <= 100
    # One goes, one comes.
    cluster.kubectl("delete", "pod", running()[0], "--wait", "--timeout=60s")
    cluster.wait("another one runs", lambda: len(running()) == 2, 180)


def test_what_no_gpu_can_give_is_refused_with_a_reason(cluster: Cluster, product: Product) -> None:
    said = cluster.refused(vgpu_pod("huge", env={"ORION_GMEM": "99999999"}))
    assert "no GPU of the pool has 99999999 MiB" in said
    said = cluster.refused(vgpu_pod("wrong", env={"ORION_RATIO": "101"}))
    assert "ORION_RATIO" in said


def test_a_kubelet_that_starts_again_still_hands_out_vgpus(cluster: Cluster, product: Product) -> None:
    selector = ["-l", "app.kubernetes.io/component=device-plugin", "--field-selector", "spec.nodeName=node-2"]
    (plugin,) = cluster.get("pods", "-n", NAMESPACE, *selector)["items"]

    def registrations() -> int:
        logs = cluster.kubectl("logs", "-n", NAMESPACE, plugin["metadata"]["name"], check=False)
        return logs.count(f"registered {RESOURCE}")

    before = registrations()
    cluster.machines[1].end("kubelet")
    cluster.machines[1].start_again("kubelet")
    # Until then the node has none to give, and the kubelet would refuse a pod that the scheduler sends.
    cluster.wait("the plugin has registered again", lambda: registrations() > before)
    cluster.apply(vgpu_pod("after", node="node-2"))
    cluster.wait_for_pod("after", ["Succeeded", "Failed"])
    assert [line["sums"] for line in told(cluster, "after")] == [True]


def test_pods_compute_while_the_api_server_is_away_and_new_ones_come_when_it_is_back(
    cluster: Cluster, product: Product
) -> None:
    cluster.apply(vgpu_pod("through", seconds=600, env={"ORION_GMEM": "1024", "ORION_RATIO": "20"}))
    wait_for_lines(cluster, "through")
    uid = uid_of(cluster, "through")
    cluster.machines[0].end("kube-apiserver", signal.SIGKILL)
    # Its log on the node, since nobody else can be asked.
    count = f"cat /var/log/pods/default_through_{uid}/cuda/*.log 2>/dev/null | grep -c sums"
    where = next(machine for machine in cluster.machines if lines_on(machine, count))
    before = lines_on(where, count)
    cluster.wait("it goes on", lambda: lines_on(where, count) >= before + 5)
    cluster.machines[0].start_again("kube-apiserver")
    cluster.wait_for_api_server()
    assert product.has_vgpus(uid)
    cluster.apply(vgpu_pod("next", env={"ORION_GMEM": "1024", "ORION_RATIO": "20"}))
    cluster.wait_for_pod("next", ["Succeeded", "Failed"])
    assert [line["sums"] for line in told(cluster, "next")] == [True]
    assert told(cluster, "through")[-1]["sums"] is True


def test_without_the_webhook_a_pod_gets_no_vgpu(cluster: Cluster, product: Product) -> None:
    deployment = ["deployment/orion-scheduler", "-n", NAMESPACE]
    label = "app.kubernetes.io/component=scheduler"
    cluster.kubectl("scale", *deployment, "--replicas=0")
    try:
        cluster.wait("it is gone", lambda: not cluster.get("pods", "-n", NAMESPACE, "-l", label)["items"])
        # Kubernetes 1.20 has no conditions by which pods with vGPUs wait for the webhook: those with its label do.
        labelled = vgpu_pod("labelled")
        labelled["metadata"]["labels"] = {VGPU_LABEL: "true"}
        assert "failed calling webhook" in cluster.refused(labelled)
        # Others are let in as they are. The default scheduler places this one, and it has no token to show.
        cluster.apply(vgpu_pod("unseen"))
        cluster.wait_for_pod("unseen", ["Succeeded", "Failed"])
        assert told(cluster, "unseen")[-1]["in"] == "cuInit", cluster.kubectl("logs", "unseen")
        assert not product.has_vgpus(uid_of(cluster, "unseen"))
    finally:
        cluster.kubectl("scale", *deployment, "--replicas=1")
        cluster.kubectl("rollout", "status", *deployment, "--timeout=120s")


def test_without_a_controller_pods_wait_and_are_placed_once(cluster: Cluster, product: Product) -> None:
    cluster.apply(vgpu_pod("stays", seconds=600, env={"ORION_GMEM": "1024", "ORION_RATIO": "20"}))
    before = len(wait_for_lines(cluster, "stays"))
    cluster.kubectl("scale", "deployment/orion-controller", "-n", NAMESPACE, "--replicas=0")
    label = "app.kubernetes.io/component=controller"
    cluster.wait("it is gone", lambda: not cluster.get("pods", "-n", NAMESPACE, "-l", label)["items"])
    cluster.apply(vgpu_pod("waits"))
    cluster.wait("an event says why", lambda: "FailedScheduling" in product.events("waits"))
    wait_for_lines(cluster, "stays", before + 2)
    cluster.kubectl("scale", "deployment/orion-controller", "-n", NAMESPACE, "--replicas=1")
    cluster.wait_for_pod("waits", ["Succeeded", "Failed"])
    assert [line["sums"] for line in told(cluster, "waits")] == [True]
    wait_for_lines(cluster, "stays", before + 4)


def test_what_the_chart_grants_is_what_its_components_need(cluster: Cluster, product: Product) -> None:
    """Nobody of the chart may read Secrets or change nodes."""
    accounts = cluster.get("serviceaccounts", "-n", NAMESPACE)["items"]
    for account in accounts:
        user = f"system:serviceaccount:{NAMESPACE}:{account['metadata']['name']}"
        for verb, kind in (("get", "secrets"), ("create", "pods"), ("patch", "nodes"), ("*", "*")):
            with pytest.raises((RuntimeError, subprocess.CalledProcessError), match="no"):
                cluster.kubectl("auth", "can-i", verb, kind, "--as", user, "-A")


def test_an_upgrade_keeps_secrets_and_lets_programs_run_on(cluster: Cluster, product: Product) -> None:
    cluster.apply(vgpu_pod("runs-on", seconds=600, env={"ORION_GMEM": "1024", "ORION_RATIO": "20"}))
    wait_for_lines(cluster, "runs-on")
    names = {"orion-auth-operator": "token", "orion-auth-server": "key", "orion-controller-tls": "ca.crt"}
    before = [product.secret(name, key) for name, key in names.items()]
    product.upgrade({"controller": {"queuePatienceSeconds": 31}})
    assert [product.secret(name, key) for name, key in names.items()] == before
    lines = len(told(cluster, "runs-on"))
    assert wait_for_lines(cluster, "runs-on", lines + 3)[-1]["sums"] is True
    cluster.apply(vgpu_pod("comes", env={"ORION_GMEM": "1024", "ORION_RATIO": "20"}))
    cluster.wait_for_pod("comes", ["Succeeded", "Failed"])
    assert [line["sums"] for line in told(cluster, "comes")] == [True]


def test_uninstalled_it_leaves_its_data_and_nothing_in_anybodys_way(cluster: Cluster, product: Product) -> None:
    product.uninstall()
    assert [one["metadata"]["name"] for one in cluster.get("pvc", "-n", NAMESPACE)["items"]] == ["orion-controller"]
    kinds = "clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations"
    assert cluster.get(kinds, "-l", "app.kubernetes.io/name=orion")["items"] == []
    pod = vgpu_pod("after-all", command=["true"])
    del pod["spec"]["containers"][0]["resources"]
    cluster.apply(pod)
    cluster.wait_for_pod("after-all", ["Succeeded", "Failed"])
