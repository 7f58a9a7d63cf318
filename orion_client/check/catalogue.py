"""Every trouble that orion-check can find, and its remedy.

`python -m orion_client.check.catalogue` writes docs/troubleshooting.md from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"


@dataclass(frozen=True)
class Trouble:
    """`meaning`: what a finding of this kind says, without the particulars."""

    status: Literal["warn", "fail"]
    meaning: str
    remedy: str


MACHINE = {
    "platform-unsupported": Trouble(
        "fail", "The machine is not Linux on x86_64.", "Use a machine, a container or a VM with Linux on x86_64."),
    "glibc-too-old": Trouble(
        "fail", "The C library is not glibc 2.17 or newer (musl, an old distribution).",
        "Run the program in a container with glibc 2.17 or newer: Debian 8, Ubuntu 14.04, CentOS 7 or later, not "
        "Alpine."),
    "overcommit-strict": Trouble(
        "fail", "`vm.overcommit_memory` is 2: large reservations of addresses are refused.",
        "`sysctl vm.overcommit_memory=0`: Orion reserves addresses, not memory."),
    "address-space-limited": Trouble(
        "fail", "The address space is limited (`ulimit -v`).",
        "`ulimit -v unlimited`: device memory and pinned memory need addresses."),
    "dev-shm-missing": Trouble(
        "warn", "`/dev/shm` is missing.", "Orion itself needs none; data loaders and NCCL do: mount a tmpfs there."),
    "dev-shm-small": Trouble(
        "warn", "`/dev/shm` has less than 64 MiB.",
        "Orion itself needs none; data loaders and NCCL do: `docker run --shm-size=1g`, or an emptyDir with medium "
        "Memory."),
    "memlock-limited": Trouble(
        "warn", "A server's locked memory is limited below 64 MiB (`ulimit -l`).",
        "shm and tcp do not need it; drivers for RDMA do: `LimitMEMLOCK=infinity` in the unit, `--ulimit memlock=-1`."),
    "descriptors-few": Trouble(
        "warn", "Less than 1024 open files are allowed (`ulimit -n`).",
        "`ulimit -n 4096`, or `LimitNOFILE=65536` in the unit: each session needs some."),
    "no-memfd": Trouble(
        "warn", "`memfd_create` is not allowed here, so there is no shared memory: tcp is used.",
        "Allow `memfd_create` in the container's seccomp profile."),
}  # fmt: skip
RDMA = {
    "rdma-no-device": Trouble(
        "warn", "RDMA is asked for and no RDMA device has a link.",
        "`rdma link` shows the devices: load the network vendor's driver and cable it, or correct `ibverbs_device` "
        "(ORION_IBVERBS_DEVICE). Until then tcp is used."),
    "ucx-missing": Trouble(
        "warn", "UCX (libucp.so.0) cannot be loaded, so there is no RDMA; everything else works.",
        "`apt-get install libucx0` (verbs, no CUDA), or the network vendor's UCX; in a container, inside it."),
    "ucx-too-old": Trouble(
        "warn", "UCX is older than 1.13, so there is no RDMA.", "Install UCX 1.13 or newer."),
    "ucx-without-verbs": Trouble(
        "warn", "This UCX was built without verbs or rdmacm: it moves bytes over tcp alone.",
        "Put another UCX in the loader's path: Debian's libucx0, or the network vendor's. The wheels on PyPI have "
        "none."),
    "rdma-nodes": Trouble(
        "warn", "The nodes in /dev/infiniband are not there or may not be opened.",
        "`docker run --device /dev/infiniband`; in Kubernetes the device plugin of the network's vendor."),
    "rdma-memlock": Trouble(
        "warn", "Less memory may be locked than RDMA registers.",
        "`ulimit -l unlimited`, `--ulimit memlock=-1`, `LimitMEMLOCK=infinity`; else tcp is used."),
}  # fmt: skip
CLIENT = {
    "libraries-missing": Trouble(
        "fail", "Orion's libcuda.so.1 or libnvidia-ml.so.1 is not there.",
        "Install the wheel again, or `make build` in a source tree."),
    "libraries-wrong-architecture": Trouble(
        "fail", "Orion's libraries were built for another processor.", "Install the wheel for x86_64."),
    "libraries-not-loadable": Trouble(
        "fail", "The loader refuses Orion's libraries.", "Install the wheel again; the message names what is missing."),
    "preload-foreign": Trouble(
        "fail", "LD_PRELOAD names another libcuda.",
        "Take it out of LD_PRELOAD: only one libcuda can serve a program."),
    "preload-missing": Trouble(
        "warn", "LD_PRELOAD names files that are not there.",
        "Take them out: the loader ignores them, with a message for every program."),
    "preload-ineffective": Trouble(
        "warn", "LD_PRELOAD names Orion's library, but it is not loaded in programs that start from here.",
        "Programs with set-user-id bits or file capabilities ignore LD_PRELOAD; so do static ones. Otherwise: the file "
        "must be readable for this user."),
    "library-path-foreign": Trouble(
        "warn", "LD_LIBRARY_PATH leads to another libcuda.so.1.",
        "orion-run puts Orion's first; without orion-run take the folder out."),
    "setting-invalid": Trouble(
        "fail", "A variable or a key in client.conf has a value that it cannot have.",
        "Correct it: the message names the place and what is allowed."),
    "setting-unknown": Trouble(
        "warn", "client.conf has a key that does not exist.",
        "Correct its spelling, or take it out; it changes nothing."),
    "setting-without-effect": Trouble(
        "warn", "client.conf has a key of the original product that changes nothing here.",
        "Take it out, or use what the message names instead."),
    "config-unreadable": Trouble(
        "fail", "client.conf cannot be read.", "`chmod a+r` the file, or take it away."),
    "config-syntax": Trouble(
        "warn", "client.conf has a line that is none of NAME = VALUE, [section] and # comment.", "Correct the line."),
    "server-unreachable": Trouble(
        "fail", "A configured server does not answer.",
        "Start orion-server there, correct ORION_SERVER=host:port, or let port 9960 through."),
    "server-key": Trouble(
        "fail", "A server and this client do not agree on encryption, or on the server's key.",
        "Set ORION_SERVER_KEY to what `orion-server key` prints there; unset it where the server does not encrypt."),
    "server-none": Trouble(
        "warn", "No server and no controller is configured, and none is at 127.0.0.1:9960.",
        "Set ORION_SERVER=host:port or ORION_CONTROLLER=host:9123, or let orion-run start a private server."),
    "version-apart": Trouble(
        "warn", "Server or controller and client have different versions.",
        "One minor version apart works together; install the same version where attaching is refused."),
    "server-no-gpu": Trouble(
        "fail", "A server answers and has no GPU.", "Look at the server with `orion-check runtime server` there."),
    "server-full": Trouble(
        "warn", "No vGPU of the default size is free on a server.",
        "`orionctl list` shows who has what; ask for less with ORION_GMEM and ORION_RATIO, or wait."),
    "shm-not-possible": Trouble(
        "warn", "ORION_TRANSPORT is shm, and the server is on another host.",
        "Set ORION_TRANSPORT=auto: tcp is used between hosts."),
    "private-server-not-possible": Trouble(
        "warn", "orion-run could not start a server of its own here.",
        "Install the whole wheel with the extra `gpu`, or `make build`; where a server is configured none is needed."),
    "nvidia-smi-not-executable": Trouble(
        "warn", "Orion's nvidia-smi cannot be executed.", "`chmod 755` the file that the message names."),
}  # fmt: skip
SERVER = {
    "server-not-built": Trouble(
        "fail", "A compiled part of orion-server is missing.", "Install the wheel again, or `make build`."),
    "pycuda-missing": Trouble(
        "fail", "pycuda is not installed: workers cannot start.",
        "`pip install 'orion-vgpu[gpu]'`, or `python tools/build_pycuda.py` where there is no CUDA toolkit."),
    "driver-missing": Trouble(
        "warn", "There is no NVIDIA driver: the server would use softgpu, which is for tests.",
        "Install the GPU driver on GPU nodes; in a container start it with `--gpus all`."),
    "device-nodes-missing": Trouble(
        "fail", "libcuda.so.1 of NVIDIA is there, and no /dev/nvidia*.",
        "Load the kernel module (`nvidia-modprobe`, `nvidia-smi` as root); in a container: `--gpus all`."),
    "nvml-missing": Trouble(
        "warn", "No libnvidia-ml.so.1 lies beside the driver's libcuda: no utilisation, temperature or power.",
        "Install the driver's package with the management library, or name it with `orion-server --nvml PATH`."),
    "libcuda-not-usable": Trouble(
        "fail", "No library for the GPU and no softgpu can be used.", "The message says what is missing."),
    "server-conf-invalid": Trouble(
        "fail", "server.conf cannot be used.", "Correct it: the message names file, key and what is allowed."),
    "server-conf-unknown": Trouble(
        "warn", "server.conf has keys that change nothing.", "Correct their spelling, or take them out."),
    "private-folder-open": Trouble(
        "fail", "The server's private folder belongs to somebody else, or is open to others.",
        "`chmod 700` the folder, or remove it while no server runs."),
    "admin-token-readable": Trouble(
        "fail", "The file with the admin token can be read by other users.",
        "Remove it and start the server again: it makes a new one, for its user alone."),
    "no-seccomp": Trouble(
        "warn", "The kernel has no seccomp filters: workers run without one.",
        "Use a kernel with CONFIG_SECCOMP_FILTER (every distribution's has it)."),
    "port-in-use": Trouble(
        "fail", "The server's port is taken by something that is no orion-server.",
        "Stop it, or `orion-server --listen ADDRESS:PORT`; `ss -ltnp` shows who has it."),
    "port-not-bindable": Trouble(
        "fail", "The server's address and port cannot be bound.",
        "Name an address of this machine, and a port above 1023 where the server is not root."),
    "server-not-running": Trouble(
        "warn", "No orion-server runs at the configured address.",
        "`orion-server`, or `systemctl start orion-server`."),
}  # fmt: skip
CONTROLLER = {
    "controller-not-installed": Trouble(
        "fail", "Packages of orion-controller are missing.", "Install the whole wheel with its dependencies."),
    "controller-conf-invalid": Trouble(
        "fail", "controller.yaml, or a variable for orion-controller, cannot be used.",
        "Correct it: the message names file, key and what is allowed."),
    "controller-conf-unknown": Trouble(
        "warn", "controller.yaml has keys that change nothing.", "Correct their spelling, or take them out."),
    "controller-exposed": Trouble(
        "fail", "The controller would listen where other machines reach it, without what that needs.",
        "Set what the message names; orion-controller refuses to start without."),
    "controller-caution": Trouble(
        "warn", "The controller's configuration works, and somebody could regret it.", "The message says what to do."),
    "controller-none": Trouble(
        "warn", "No controller is configured.",
        "Set ORION_CONTROLLER=host:9123 for programs and ORION_CONTROLLER_URL=http://host:port for orionctl."),
    "controller-unreachable": Trouble(
        "fail", "The controller's ZeroMQ port (9123) does not answer.",
        "Start orion-controller there, correct ORION_CONTROLLER, or let the port through."),
    "controller-key": Trouble(
        "fail", "The controller and this client do not agree on encryption, or on the controller's key.",
        "Set ORION_CONTROLLER_KEY to what `orion-controller key` prints there; unset it where it does not encrypt."),
    "controller-refused": Trouble(
        "fail", "The controller refuses this client.",
        "Set ORION_CLIENT_KEY to the pool's client key; in a pod, see docs/security.md, Pods."),
    "controller-http-unreachable": Trouble(
        "fail", "The controller's HTTP port does not answer.",
        "Start orion-controller there, correct ORION_CONTROLLER_URL, or let the port through."),
    "controller-token": Trouble(
        "warn", "The controller does not accept the token, or there is none.", "`orionctl login`, or set ORION_TOKEN."),
    "controller-no-leader": Trouble(
        "fail", "No replica of the controller leads.",
        "Wait some seconds; then look at the replicas' logs: they need their database."),
    "clock-skew": Trouble(
        "warn", "The clocks of the controller and of this machine differ by more than 10 s.",
        "Run chrony or systemd-timesyncd on both: log-in tokens and reservations expire by these clocks."),
    "nodes-lost": Trouble(
        "warn", "Nodes of the pool have not been heard of.",
        "`orionctl get nodes --state lost`; look at orion-server there."),
    "pool-empty": Trouble(
        "fail", "The controller has no server with a GPU.",
        "Start servers with `orion-server --controller HOST:9123` and the pool's server key."),
    "pool-full": Trouble(
        "warn", "No vGPU of the default size is free.",
        "`orionctl top` shows who has what; `orionctl get queue` who waits."),
}  # fmt: skip
SECTIONS = {"The machine": MACHINE, "RDMA": RDMA, "Clients": CLIENT, "Servers": SERVER, "The controller": CONTROLLER}
TROUBLES: dict[str, Trouble] = {name: trouble for section in SECTIONS.values() for name, trouble in section.items()}


def document() -> str:
    """The text of docs/troubleshooting.md."""
    lines = [
        "# Troubleshooting",
        "",
        "What `orion-check` can find, and what to do. Made from `orion_client/check/catalogue.py` by",
        "`python -m orion_client.check.catalogue`; do not edit.",
        "",
        "```",
        "orion-check                      # this machine as a client: libraries, settings, servers, controller",
        "orion-check runtime server       # this machine as a server that is to run; also client, controller, all",
        "orion-check install server       # only what has to be installed",
        "orion-check runtime all --json   # for programs: id, check, status, message, remedy",
        "```",
        "",
        "Exit code 0: nothing failed (warnings are allowed); 1: something failed; 2: wrong usage.",
    ]
    for title, section in SECTIONS.items():
        lines += ["", f"## {title}", "", "| finding | | what it says | remedy |", "|---|---|---|---|"]
        for name, trouble in section.items():
            lines.append(f"| `{name}` | {trouble.status} | {trouble.meaning} | {trouble.remedy} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
