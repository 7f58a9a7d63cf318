"""A real Kubernetes on one machine: control plane and nodes, each node in namespaces of its own.

Addresses exist inside those namespaces only: this machine has no route to them, and they have none out.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.cluster import pki
from tests.cluster.machine import Machine, connect

NODE_NETWORK = "10.77.0"
SERVICE_RANGE = "10.96.0.0/16"
POD_RANGE = "10.88.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
CLUSTER_DOMAIN = "cluster.local"
API_PORT = 6443
ADMIN_KUBECONFIG = "/etc/kubernetes/admin.json"

Json = dict[str, Any]

PAUSE_IMAGE = "docker.io/orion-test/pause:1"

CONTAINERD = f"""\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
# Machines of CI refuse to lower the score.
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/cni/net.d"
"""

KUBELET: Json = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    # Nobody outside the cluster's namespaces reaches it.
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "cgroupDriver": "cgroupfs",
    "cgroupsPerQOS": False,
    "enforceNodeAllocatable": [],
    "failSwapOn": False,
    "clusterDomain": CLUSTER_DOMAIN,
    "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
    "imageGCHighThresholdPercent": 100,
    "nodeStatusUpdateFrequency": "2s",
    "syncFrequency": "2s",
}

PROXY: Json = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "clientConnection": {"kubeconfig": "/etc/kubernetes/proxy.json"},
    "mode": "iptables",
    "clusterCIDR": POD_RANGE,
    # These are settings of the whole kernel, which stays as it is.
    "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
}


def node_address(number: int) -> str:
    return f"{NODE_NETWORK}.{number}"


class Cluster:
    """Node 1 also runs the control plane. `programs` holds the Kubernetes programs, `commands` helm and kubectl."""

    def __init__(self, work: Path, *, tools: Path, programs: Path, commands: Path, nodes: int = 1) -> None:
        self._work = work
        self._tools = tools
        self._programs = programs
        self.machines: list[Machine] = []
        self._tokens: dict[str, str] = {}
        try:
            for number in range(1, nodes + 1):
                self._add_machine(number, commands)
            self._start_control_plane()
            for number in range(1, nodes + 1):
                self._start_node(number)
            self._wait_for_nodes(nodes)
        except BaseException as error:
            if not isinstance(error, AssertionError):
                error.add_note(self.describe_trouble())
            self.stop()
            raise

    # Machines and files

    def _add_machine(self, number: int, commands: Path) -> None:
        work = self._work / f"node-{number}"
        work.mkdir()
        machine = Machine(f"node-{number}", work, self._tools)
        self.machines.append(machine)
        for program in (*self._programs.iterdir(), commands / "helm", commands / "kubectl"):
            machine.run(["ln", "-sf", str(program), f"/usr/local/bin/{program.name}"])
        hosts = "".join(f"{node_address(one)} node-{one}\n" for one in range(1, 10))
        self.write(machine, "/etc/hosts", f"127.0.0.1 localhost\n{hosts}")
        # Pods of the nodes' network ask here too.
        search = f"svc.{CLUSTER_DOMAIN} {CLUSTER_DOMAIN}"
        self.write(machine, "/etc/resolv.conf", f"nameserver {node_address(1)}\nsearch {search}\n")
        if number == 1:
            machine.run(["ip", "link", "add", "nodes", "type", "bridge"])
            machine.run(["ip", "address", "add", f"{node_address(1)}/24", "dev", "nodes"])
            machine.run(["ip", "link", "set", "nodes", "up"])
            # Without a port a bridge has no carrier, and then no route.
            machine.run(["ip", "link", "add", "spare", "type", "veth", "peer", "name", "spare-end"])
            for name in ("spare", "spare-end"):
                machine.run(["ip", "link", "set", name, "up"])
            machine.run(["ip", "link", "set", "spare", "master", "nodes"])
        else:
            connect(self.machines[0], machine, f"cable{number}", "nodes")
            machine.run(["ip", "address", "add", f"{node_address(number)}/24", "dev", "nodes"])
            self.machines[0].run(["ip", "link", "set", f"cable{number}", "master", "nodes"])
            for one, other in ((self.machines[0], number), (machine, 1)):
                one.run(["ip", "route", "add", f"10.88.{other}.0/24", "via", node_address(other)])
        # The kubelet and kube-proxy look for a default route. It leads to no machine.
        machine.run(["ip", "route", "add", "default", "via", f"{NODE_NETWORK}.254", "dev", "nodes"])

    @staticmethod
    def write(machine: Machine, path: str, text: str) -> None:
        machine.run(["sh", "-c", 'mkdir -p "$(dirname "$0")" && cat >"$0"', path], stdin=text)

    def _write_json(self, machine: Machine, path: str, value: Json) -> None:
        self.write(machine, path, json.dumps(value))

    def _kubeconfig(self, machine: Machine, user: str, path: str) -> None:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": f"https://{node_address(1)}:{API_PORT}",
                        "certificate-authority-data": base64.b64encode(self._ca).decode(),
                    },
                }
            ],
            "users": [{"name": user, "user": {"token": self._tokens[user]}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        }
        self._write_json(machine, path, config)

    # Control plane

    def _start_control_plane(self) -> None:
        control = self.machines[0]
        keys = control.work / "pki"
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        names.append(f"kubernetes.default.svc.{CLUSTER_DOMAIN}")
        pki.make(keys, [*names, "localhost"], [node_address(1), API_SERVICE_ADDRESS, "127.0.0.1"])
        self._ca = (keys / "ca.crt").read_bytes()
        users: dict[str, list[str]] = {
            "admin": ["system:masters"],
            "system:kube-controller-manager": [],
            "system:kube-scheduler": [],
            "system:kube-proxy": [],
        }
        users.update({f"system:node:{machine.name}": ["system:nodes"] for machine in self.machines})
        self._tokens = {user: secrets.token_hex(16) for user in users}
        rows = [f'{self._tokens[user]},{user},{user},"{",".join(groups)}"' for user, groups in users.items()]
        (keys / "tokens.csv").write_text("\n".join(rows) + "\n")

        client = "http://127.0.0.1:2379"
        control.start(
            "etcd",
            ["etcd", "--data-dir=/run/etcd", f"--listen-client-urls={client}", f"--advertise-client-urls={client}"],
        )
        control.start(
            "kube-apiserver",
            [
                "kube-apiserver",
                f"--etcd-servers={client}",
                "--bind-address=0.0.0.0",
                f"--advertise-address={node_address(1)}",
                f"--secure-port={API_PORT}",
                "--insecure-port=0",
                f"--tls-cert-file={keys}/server.crt",
                f"--tls-private-key-file={keys}/server.key",
                # Without it there is no ConfigMap extension-apiserver-authentication, which schedulers in pods read.
                f"--client-ca-file={keys}/ca.crt",
                f"--service-cluster-ip-range={SERVICE_RANGE}",
                "--service-node-port-range=30000-32767",
                f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
                f"--service-account-key-file={keys}/sa.pub",
                f"--service-account-signing-key-file={keys}/sa.key",
                f"--token-auth-file={keys}/tokens.csv",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
                "--profiling=false",
            ],
        )
        for machine in self.machines:
            self._kubeconfig(machine, "admin", ADMIN_KUBECONFIG)
        self.wait_for_api_server()
        self._kubeconfig(control, "system:kube-controller-manager", "/etc/kubernetes/controller-manager.json")
        control.start(
            "kube-controller-manager",
            [
                "kube-controller-manager",
                "--kubeconfig=/etc/kubernetes/controller-manager.json",
                "--use-service-account-credentials",
                f"--service-account-private-key-file={keys}/sa.key",
                f"--root-ca-file={keys}/ca.crt",
                "--leader-elect=false",
                "--port=0",
            ],
        )
        self._kubeconfig(control, "system:kube-scheduler", "/etc/kubernetes/scheduler.json")
        control.start(
            "kube-scheduler", ["kube-scheduler", "--kubeconfig=/etc/kubernetes/scheduler.json", "--leader-elect=false"]
        )
        self.write(control, "/etc/dnsmasq.d/services", "")
        control.start(
            "dnsmasq",
            [
                *("dnsmasq", "--keep-in-foreground", "--log-facility=-", "--user=root", "--conf-file=/dev/null"),
                *("--no-resolv", "--no-hosts", "--hostsdir=/etc/dnsmasq.d", f"--listen-address={node_address(1)}"),
                *("--bind-interfaces", f"--local=/{CLUSTER_DOMAIN}/", "--pid-file=/run/dnsmasq.pid"),
            ],
        )
        columns = "custom-columns=A:.metadata.namespace,B:.metadata.name,C:.spec.clusterIP"
        watch = f"kubectl --kubeconfig {ADMIN_KUBECONFIG} get services -A --watch --no-headers -o {columns}"
        line = f'echo "$ip $name.$space.svc.{CLUSTER_DOMAIN}" >"/etc/dnsmasq.d/$space.$name"'
        control.start("names", ["bash", "-c", f"while :; do {watch} | while read space name ip; do {line}; done; done"])

    # Nodes

    def _start_node(self, number: int) -> None:
        machine = self.machines[number - 1]
        machine.run(["mkdir", "-p", "/etc/cni/net.d", "/etc/containerd"])
        network = {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "ptp",
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": f"10.88.{number}.0/24"}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
        self._write_json(machine, "/etc/cni/net.d/10-pods.conflist", network)
        self.write(machine, "/etc/containerd/config.toml", CONTAINERD)
        machine.start("containerd", ["containerd", "--config", "/etc/containerd/config.toml"])
        self.wait("containerd answers", lambda: machine.run(["ctr", "version"], check=False).returncode == 0, 60)
        self._kubeconfig(machine, f"system:node:{machine.name}", "/etc/kubernetes/kubelet.json")
        self._write_json(machine, "/etc/kubernetes/kubelet-config.json", KUBELET | {"clusterDNS": [node_address(1)]})
        machine.start(
            "kubelet",
            [
                "kubelet",
                "--config=/etc/kubernetes/kubelet-config.json",
                "--kubeconfig=/etc/kubernetes/kubelet.json",
                f"--hostname-override={machine.name}",
                f"--node-ip={node_address(number)}",
                "--container-runtime=remote",
                "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
                "--network-plugin=cni",
            ],
        )
        self._kubeconfig(machine, "system:kube-proxy", "/etc/kubernetes/proxy.json")
        proxy = PROXY | {"hostnameOverride": machine.name}
        self._write_json(machine, "/etc/kubernetes/proxy-config.json", proxy)
        machine.start("kube-proxy", ["kube-proxy", "--config=/etc/kubernetes/proxy-config.json"])

    def wait_for_api_server(self) -> None:
        self.wait("the API server is ready", lambda: self.kubectl("get", "--raw", "/readyz", check=False) == "ok", 120)

    def _wait_for_nodes(self, count: int) -> None:
        def ready() -> bool:
            nodes = self.get("nodes")["items"]
            return sum(condition(node, "Ready") == "True" for node in nodes) == count

        self.wait(f"{count} nodes are ready", ready, 120)

    def import_image(self, archive: Path) -> None:
        """Gives an OCI archive to every node's containerd."""
        for machine in self.machines:
            copy = machine.work / archive.name
            with contextlib.suppress(FileNotFoundError):
                copy.unlink()
            # The archive may lie anywhere; a machine sees only its work folder as it is now.
            copy.hardlink_to(archive) if same_device(archive, machine.work) else shutil.copyfile(archive, copy)
            machine.run(["ctr", "-n", "k8s.io", "images", "import", copy], timeout_s=300)
            copy.unlink()

    # Talking to it

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout_s: float = 120) -> str:
        command = ["kubectl", "--kubeconfig", ADMIN_KUBECONFIG, *arguments]
        return self.machines[0].run(command, stdin=stdin, check=check, timeout_s=timeout_s).stdout.strip()

    def helm(self, *arguments: str, timeout_s: float = 300) -> str:
        command = ["helm", "--kubeconfig", ADMIN_KUBECONFIG, *arguments]
        return self.machines[0].run(command, timeout_s=timeout_s).stdout.strip()

    def get(self, *what: str) -> Json:
        value: Json = json.loads(self.kubectl("get", *what, "-o", "json"))
        return value

    def apply(self, *objects: Json) -> None:
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def refused(self, item: Json) -> str:
        """What the API server says when it refuses to create `item`."""
        command = ["kubectl", "--kubeconfig", ADMIN_KUBECONFIG, "create", "-f", "-"]
        done = self.machines[0].run(command, stdin=json.dumps(item), check=False)
        assert done.returncode != 0, f"was created: {done.stdout}"
        return done.stderr

    def wait(self, what: str, holds: Callable[[], object], timeout_s: float = 120) -> None:
        """Waits until `holds()`. Fails, with what the cluster says, if it never does or if a program of it ends."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            gone = [f"{machine.name}/{name}" for machine in self.machines for name in machine.ended()]
            if gone or time.monotonic() > deadline:
                reason = f"ended: {', '.join(gone)}" if gone else f"not within {timeout_s:.0f} s"
                raise AssertionError(f"{what}: {reason}\n{self.describe_trouble()}")
            time.sleep(0.3)

    def pod_phase(self, name: str, namespace: str = "default") -> str:
        return str(self.get("pod", name, "-n", namespace)["status"].get("phase"))

    def wait_for_pod(self, name: str, phases: Iterable[str], namespace: str = "default", timeout_s: float = 180) -> str:
        wanted = set(phases)
        self.wait(
            f"pod {name} is {' or '.join(sorted(wanted))}", lambda: self.pod_phase(name, namespace) in wanted, timeout_s
        )
        return self.pod_phase(name, namespace)

    def describe_trouble(self) -> str:
        """Everything that a person would look at first."""
        parts = []
        for machine in self.machines:
            for name, code in machine.ended().items():
                parts.append(f"--- {machine.name}: {name} ended with {code}\n{machine.log(name)}")
        for command in (["get", "pods", "-A", "-o", "wide"], ["get", "events", "-A", "--sort-by=.lastTimestamp"]):
            with contextlib.suppress(Exception):
                parts.append(f"--- kubectl {' '.join(command)}\n{self.kubectl(*command, check=False, timeout_s=20)}")
        for path in sorted(self._work.rglob("logs/*.log")):
            parts.append(
                f"--- {path.relative_to(self._work)}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-8:])
            )
        return "\n".join(parts)

    def stop(self) -> None:
        for machine in reversed(self.machines):
            machine.stop()


def condition(item: Json, kind: str) -> str | None:
    """The status ("True", "False", "Unknown") of a condition of a node or pod."""
    for one in item.get("status", {}).get("conditions", []):
        if one["type"] == kind:
            return str(one["status"])
    return None


def same_device(first: Path, second: Path) -> bool:
    return first.stat().st_dev == second.stat().st_dev
