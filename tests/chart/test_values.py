"""Values: the product's keys, refusals, and what a value changes."""

from __future__ import annotations

import json

import cel
import pytest
import yaml

from tests.chart.helm import CHART, VALUES, Object, container, environment, helm, objects, only, refusal, setting


def test_the_products_values_file_works() -> None:
    found = objects("-f", str(VALUES / "product.yaml"))
    controller, server = only(found, "Deployment", "orion-controller"), only(found, "DaemonSet", "orion-server")
    portal = only(found, "Service", "orion-portal")
    assert portal["spec"]["ports"][0]["nodePort"] == 30009
    assert "--http=0.0.0.0:15500" in container(controller)["args"]
    admin = only(found, "Secret", "orion-auth-admin")
    assert admin["data"]["password"] == "YWRtaW4="
    arguments = container(server)["args"]
    assert "--vgpu-count=8" in arguments and "--listen={address}:9960" in arguments
    assert container(server)["command"][:4] == ["python", "-m", "orion_k8s.chart.on_interface", "eth1"]
    assert environment(container(server))["ORION_IB_NAME"] == "mlx5_0"
    sockets = [v["hostPath"]["path"] for v in server["spec"]["template"]["spec"]["volumes"] if v["name"] == "sockets"]
    assert sockets == ["/var/tmp/orion/comm"]
    scheduler = only(found, "Deployment", "orion-scheduler")
    assert "--v=4" in container(scheduler, "kube-scheduler")["args"]
    configuration = yaml.safe_load(only(found, "ConfigMap", "orion-scheduler")["data"]["configuration.yaml"])
    assert configuration["extenders"][0]["urlPrefix"] == "http://127.0.0.1:8889"
    for workload in (controller, server, scheduler):
        assert workload["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "regcred"}]
        assert container(workload)["imagePullPolicy"] == "Always"


def test_keys_of_the_product_that_mean_nothing_here_are_named() -> None:
    notes = helm("install", "orion", str(CHART), "--dry-run=client", "-f", str(VALUES / "product.yaml")).stdout
    (line,) = (line for line in notes.splitlines() if line.startswith("Without effect:"))
    for key in ("license.key", "controller.enableQuota", "server.cudaVersion", "monitor.*", "helper.*", "volumes.*"):
        assert key in line
    assert "Without effect" not in helm("install", "orion", str(CHART), "--dry-run=client").stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (setting(server__vgpus="101"), "'/server/vgpus': maximum: got 101, want 100"),
        (setting(server__vgpuCuont="3"), "additional properties 'vgpuCuont' not allowed"),
        (setting(controller__replicas="two"), "'/controller/replicas': got string, want integer"),
        (setting(scheduler__webhook__failurePolicy="Open"), "value must be one of 'Fail', 'Ignore'"),
        (setting(resources__name="gpu"), "'/resources/name'"),
        (setting(auth__server__value="short"), "'/auth/server/value'"),
        (setting(controller__database__url="mysql://db/orion"), "'/controller/database/url'"),
        (setting(server__socketDir="run/orion"), "'/server/socketDir'"),
        (setting(server__device="amd"), "value must be one of 'nvidia', 'softgpu'"),
        (setting(controller__replicas="2"), "controller.database.existingSecret or controller.database.url"),
        (setting(controller__tls__enabled="false"), "set controller.behindProxy=true"),
        (setting(certificates__source="secret"), "controller.tls.existingSecret"),
        (setting(server__interface="eth1", server__hostNetwork="false"), "needs server.hostNetwork=true"),
        (
            setting(certificates__source="secret", controller__tls__existingSecret="a",
                    scheduler__webhook__tls__existingSecret="b"),
            "set caBundle (PEM), or put ca.crt into the Secret b",
        ),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_name(arguments: list[str], told: str) -> None:
    assert told in refusal(*arguments)


def test_dra_says_which_cluster_it_needs() -> None:
    told = refusal(*setting(dra__enabled="true"), kube_version="1.33.1")
    assert "dra.enabled needs resource.k8s.io/v1, which Kubernetes has from 1.34 on; this cluster is v1.33.1" in told


@pytest.mark.parametrize(
    ("version", "api", "devices"),
    [("1.20.2", "v1beta1", ""), ("1.22.17", "v1beta1", ""), ("1.23.0", "v1beta3", ""), ("1.24.3", "v1beta3", ""),
     ("v1.25.16+k3s1", "v1", ""), ("v1.35.1-gke.100", "v1", "slots"), ("1.36.0", "v1", "consumable")],
)  # fmt: skip
def test_each_kubernetes_gets_what_it_knows(version: str, api: str, devices: str) -> None:
    found = objects(*setting(dra__enabled="true" if devices else "false"), kube_version=version)
    configuration = yaml.safe_load(only(found, "ConfigMap", "orion-scheduler")["data"]["configuration.yaml"])
    assert configuration["apiVersion"] == f"kubescheduler.config.k8s.io/{api}"
    scheduler = container(only(found, "Deployment", "orion-scheduler"), "kube-scheduler")
    plain = version.removeprefix("v").partition("+")[0].partition("-")[0]
    assert scheduler["image"] == f"registry.k8s.io/kube-scheduler:v{plain}"
    if devices:
        assert f"--devices={devices}" in container(only(found, "Deployment", "orion-dra-publish"))["args"]


def test_pods_that_ask_for_vgpus_fail_closed_and_no_others() -> None:
    for kind, path in (("Mutating", "/mutate"), ("Validating", "/validate")):
        webhook, *edits = only(objects(), f"{kind}WebhookConfiguration")["webhooks"]
        assert webhook["failurePolicy"] == "Fail" and webhook["clientConfig"]["service"]["path"] == path
        assert webhook["rules"][0]["operations"] == ["CREATE"]
        assert "'virtaitech.com/gpu' in c.resources.limits" in webhook["matchConditions"][0]["expression"]
        # A Job's pods lose their finalizers by edits.
        assert all(entry["failurePolicy"] == "Ignore" for entry in edits)
        labelled, *others = only(objects(kube_version="1.20.2"), f"{kind}WebhookConfiguration")["webhooks"]
        expression = {"key": "virtaitech.com/vgpu", "operator": "Exists"}
        assert labelled["failurePolicy"] == "Fail" and labelled["objectSelector"]["matchExpressions"] == [expression]
        assert all(entry["failurePolicy"] == "Ignore" for entry in others) and others


def test_the_condition_is_true_for_pods_with_vgpus_alone() -> None:
    """Evaluated as the API server would: no cluster here is new enough to do it."""
    configuration = only(objects(), "MutatingWebhookConfiguration")
    expression = configuration["webhooks"][0]["matchConditions"][0]["expression"]

    def asks(*containers: Object, **spec: object) -> object:
        context = cel.Context()
        context.add_variable("object", {"spec": {"containers": [{"name": "other"}, *containers], **spec}})
        return cel.evaluate(expression, context)

    gpu = {"virtaitech.com/gpu": "1"}
    assert asks({"resources": {"limits": gpu}}) is True
    assert asks({"resources": {"requests": gpu}}) is True
    assert asks(initContainers=[{"resources": {"limits": gpu}}]) is True
    for other in ({}, {"resources": {}}, {"resources": {"limits": {"cpu": "1"}, "requests": {"nvidia.com/gpu": "1"}}}):
        assert asks(other) is False


def test_no_gpu_node_is_asked_for_by_the_software_gpu() -> None:
    def server(*arguments: str) -> dict[str, object]:
        return dict(only(objects(*arguments), "DaemonSet", "orion-server")["spec"]["template"]["spec"])

    label = "feature.node.kubernetes.io/pci-10de.present"
    assert server()["nodeSelector"] == {label: "true"}
    assert "nodeSelector" not in server(*setting(server__device="softgpu"))
    own = server("--set-json", json.dumps({"server": {"gpuNodeSelector": None, "nodeSelector": {"gpu": "yes"}}})
                 .join(["", ""]).replace('{"server": ', "server=").removesuffix("}"))  # fmt: skip
    assert own["nodeSelector"] == {"gpu": "yes"}


def test_names_and_namespaces_can_be_others() -> None:
    found = objects(*setting(nameOverride="pool", namespaceOverride="gpus"), release="x")
    for item in found:
        namespace = item["metadata"].get("namespace")
        if namespace is None:
            assert item["kind"] in ("ClusterRole", "ClusterRoleBinding") or item["kind"].endswith(
                "WebhookConfiguration"
            )
        elif namespace == "kube-system":
            assert item["kind"] == "RoleBinding"
        else:
            assert namespace == "gpus", item["metadata"]["name"]
    names = {o["metadata"]["name"] for o in found}
    assert {"x-pool-controller", "x-pool-server", "x-pool-scheduler", "gpus-x-pool-webhook"} <= names
    server = container(only(found, "DaemonSet", "x-pool-server"))
    assert "--controller=x-pool-controller.gpus.svc:9123" in server["args"]
    other = {o["metadata"]["name"] for o in objects(*setting(fullnameOverride="o"))}
    assert "o-controller" in other


def test_images_come_from_ones_own_registry_by_digest_too() -> None:
    digest = "sha256:" + "a" * 64
    found = objects(*setting(global__imageRegistry="r.example:5000", server__image__digest=digest),
                    "--set-string", "global.imageTag=7,controller.image.tag=8")  # fmt: skip
    images = {container(o)["image"] for o in found if o["kind"] in ("Deployment", "DaemonSet")}
    images.add(container(only(found, "Deployment", "orion-scheduler"), "orion-scheduler")["image"])
    assert images == {
        "r.example:5000/orion-controller:8", f"r.example:5000/orion-server@{digest}",
        "r.example:5000/kube-scheduler:v1.37.0", "r.example:5000/orion-controller:7",
    }  # fmt: skip


def test_the_service_of_several_replicas_leads_to_the_leader() -> None:
    several = objects("-f", str(VALUES / "production.yaml"))
    for found, label in ((several, "leader"), (objects(), None)):
        for name in ("orion-controller", "orion-portal"):
            assert only(found, "Service", name)["spec"]["selector"].get("orion/role") == label
        pod = only(found, "Deployment", "orion-controller")["spec"]["template"]
        assert [c["name"] for c in pod["spec"]["containers"]] == ["controller"] + ["leader-label"] * (label is not None)
        # The label is the sidecar's: a pod that has just been made does not lead.
        assert "orion/role" not in pod["metadata"]["labels"]
