"""Makes what the cluster tests run: Kubernetes 1.20.2 from Debian's source, etcd, containerd, runc, helm, kubectl.

Nothing is installed on the machine. Debian packages are downloaded with a private apt configuration (the machine's own
sources, plus their source packages) and unpacked into the cache. The build takes
6 to 15 minutes of two cores once per machine; afterwards the cache answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fetch_helm
from buildlib import cached, job_count, recipe_key, run
from debian_packages import Apt, merge_usr

KUBERNETES_VERSION = "1.20.2"
COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet")
# What the build needs, and what a cluster is made of besides Kubernetes itself.
PACKAGES = [
    "golang-1.19-go",
    "rsync",
    "jq",
    "etcd-server",
    "containerd",
    "runc",
    "containernetworking-plugins",
    "busybox-static",
    "iptables",
    "conntrack",
    "dnsmasq-base",
    "golang-github-modern-go-reflect2-dev",
]
GO_ROOT = "usr/lib/go-1.19"
REFLECT2 = "github.com/modern-go/reflect2"
# Raised when the way the packages are unpacked changes, or the way Kubernetes is built.
TOOLS_RECIPE = "2"
BUILD_RECIPE = "2"


def say(text: str) -> None:
    print(f"kubernetes: {text}", file=sys.stderr, flush=True)


def tools_environment(root: Path) -> dict[str, str]:
    """The environment in which the programs under `root` (unpacked Debian packages) run where they lie."""
    libraries = [root / "usr/lib/x86_64-linux-gnu", root / "lib/x86_64-linux-gnu"]
    programs = [root / name for name in ("usr/sbin", "usr/bin", "sbin", "bin")]
    return {
        **os.environ,
        "PATH": ":".join([*map(str, programs), os.environ.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "XTABLES_LIBDIR": str(root / "usr/lib/x86_64-linux-gnu/xtables"),
    }


def _check_machine() -> None:
    if os.uname().machine != "x86_64":
        raise SystemExit("the cluster tests are for x86_64 only")
    missing = [tool for tool in ("apt-get", "dpkg-deb", "dpkg-source", "make", "gcc") if not shutil.which(tool)]
    if missing:
        raise SystemExit(
            f"missing: {', '.join(missing)}. The cluster tests build Kubernetes from Debian's source package: "
            "on Debian 12, apt-get install -y dpkg-dev make gcc"
        )


def debian_tools() -> Path:
    """The folder with the unpacked Debian packages: etcd, containerd, runc, CNI plugins, busybox, iptables, Go."""

    def build(work: Path) -> None:
        _check_machine()
        say(f"downloading Debian packages: {', '.join(PACKAGES)}")
        apt = Apt(work / "apt")
        apt.run("update")
        root = work / "root"
        root.mkdir()
        versions = apt.unpack(PACKAGES, root)
        merge_usr(root)
        # The packages' scripts did not run, so the alternatives that they would have chosen are made here.
        for name in ("iptables", "ip6tables"):
            for tool in ("", "-save", "-restore"):
                (root / f"usr/sbin/{name}{tool}").symlink_to("xtables-nft-multi")
        (work / "versions.json").write_text(json.dumps(versions, indent=1, sort_keys=True) + "\n")
        shutil.rmtree(work / "apt")

    return cached(f"kubernetes-tools-{recipe_key([TOOLS_RECIPE, *PACKAGES])}", build)


def kubernetes() -> Path:
    """The folder with the programs of COMPONENTS and versions.json."""

    def build(work: Path) -> None:
        tools = debian_tools()
        apt = Apt(work / "apt")
        apt.run("update")
        say("downloading Debian's source package")
        apt.run("source", "kubernetes", cwd=work)
        (source,) = (path for path in work.glob("kubernetes-*") if path.is_dir())
        (description,) = work.glob("kubernetes_*.dsc")
        if KUBERNETES_VERSION not in description.name:
            raise SystemExit(f"{description.name} is not {KUBERNETES_VERSION}: these tests are for Debian 12")
        _replace_reflect2(source, tools / "root")
        major, minor, _ = KUBERNETES_VERSION.split(".")
        environment = {
            **tools_environment(tools / "root"),
            "GOROOT": str(tools / "root" / GO_ROOT),
            "GOFLAGS": "-mod=vendor",
            "GOPROXY": "off",
            "GOCACHE": str(work / "go-cache"),
            "GOMAXPROCS": str(job_count()),
            "CGO_ENABLED": "0",
            "KUBE_GIT_VERSION": f"v{KUBERNETES_VERSION}",
            "KUBE_GIT_MAJOR": major,
            "KUBE_GIT_MINOR": minor,
            "KUBE_GIT_TREE_STATE": "clean",
            "KUBE_GIT_COMMIT": "debian",
            "GOLDFLAGS": "-s -w",
        }
        environment["PATH"] = f"{tools / 'root' / GO_ROOT / 'bin'}:{environment['PATH']}"
        environment.pop("MAKEFLAGS", None)
        environment.pop("MAKELEVEL", None)
        say(f"building {', '.join(COMPONENTS)}: 6 to 15 minutes, once on this machine")
        started = time.monotonic()
        targets = " ".join(f"cmd/{name}" for name in COMPONENTS)
        _build(["make", f"WHAT={targets}"], source, environment)
        output = work / "bin"
        output.mkdir()
        for name in COMPONENTS:
            shutil.move(source / "_output/local/go/bin" / name, output / name)
        facts = {
            "kubernetes": KUBERNETES_VERSION,
            "debian_source": description.stem,
            "build_s": round(time.monotonic() - started),
        }
        (work / "versions.json").write_text(json.dumps(facts, indent=1) + "\n")
        for path in list(work.iterdir()):
            if path.name not in ("bin", "versions.json"):
                _remove(path)
        say(f"built in {facts['build_s']} s")

    return cached(f"kubernetes-{KUBERNETES_VERSION}-{recipe_key([BUILD_RECIPE, *COMPONENTS])}", build)


def _replace_reflect2(source: Path, root: Path) -> None:
    """Kubernetes 1.20 carries reflect2 1.0.1, whose walk over a map breaks with Go 1.18 and newer: the API server
    crashes at the first patch of an admission webhook. Debian's package of it has the mended release."""
    carried = source / "vendor" / REFLECT2
    shutil.rmtree(carried)
    shutil.copytree(root / "usr/share/gocode/src" / REFLECT2, carried)


def _build(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Runs make and passes on its headings; the whole output is shown only if it fails."""
    lines: list[str] = []
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith(("+++", "    cmd/")):
                say(line.strip())
    if process.returncode != 0:
        sys.stderr.writelines(lines[-200:])
        raise SystemExit(f"building Kubernetes failed ({' '.join(command)}); its last lines are above")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        # Go's module cache, should one appear, is read-only.
        run(["chmod", "-R", "u+w", str(path)], quiet=True)
        shutil.rmtree(path)
    else:
        path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools-only", action="store_true", help="only helm, kubectl and the Debian packages")
    arguments = parser.parse_args()
    folders = [fetch_helm.folder(), debian_tools()]
    if not arguments.tools_only:
        folders.append(kubernetes())
    for folder in folders:
        print(folder)


if __name__ == "__main__":
    main()
