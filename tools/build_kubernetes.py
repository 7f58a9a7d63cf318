"""Makes what the cluster tests run: Kubernetes 1.20.2 from Debian's source, etcd, containerd, runc, helm, kubectl.

Nothing is installed on the machine. Debian packages are downloaded with a private apt configuration (the machine's own
sources, plus their source packages) and unpacked into the cache. The build takes
3 to 6 minutes of two cores once per machine; afterwards the cache answers at once.
Kubernetes' own makefile is not used: it links each program by itself and compiles the clouds' SDKs and the Docker shim,
which no test here needs (344 s instead of 155).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
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
ALL_IN_ONE = Path(__file__).with_name("kubernetes_programs.go")
PACKAGE = "k8s.io/kubernetes"
GO_ROOT = "usr/lib/go-1.19"
REFLECT2 = "github.com/modern-go/reflect2"
# Raised when the way the packages are unpacked changes, or the way Kubernetes is built.
TOOLS_RECIPE = "2"
BUILD_RECIPE = "3"


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
    missing = [tool for tool in ("apt-get", "dpkg-deb", "dpkg-source") if not shutil.which(tool)]
    if missing:
        raise SystemExit(
            f"missing: {', '.join(missing)}. The cluster tests build Kubernetes from Debian's source package: "
            "on Debian 12, apt-get install -y dpkg-dev"
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
        say(f"building {', '.join(COMPONENTS)}: 3 to 6 minutes, once on this machine")
        started = time.monotonic()
        output = work / "bin"
        output.mkdir()
        _compile(source, work, tools / "root", output / ALL_IN_ONE.stem)
        for name in COMPONENTS:
            (output / name).symlink_to(ALL_IN_ONE.stem)
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

    key = recipe_key([BUILD_RECIPE, ALL_IN_ONE.read_bytes(), *COMPONENTS])
    return cached(f"kubernetes-{KUBERNETES_VERSION}-{key}", build)


def _replace_reflect2(source: Path, root: Path) -> None:
    """Kubernetes 1.20 carries reflect2 1.0.1, whose walk over a map breaks with Go 1.18 and newer: the API server
    crashes at the first patch of an admission webhook. Debian's package of it has the mended release."""
    carried = source / "vendor" / REFLECT2
    shutil.rmtree(carried)
    shutil.copytree(root / "usr/share/gocode/src" / REFLECT2, carried)


def _compile(source: Path, work: Path, root: Path, output: Path) -> None:
    """Makes the one program of all COMPONENTS, as Go did before modules: go.mod and vendor/ of Debian differ."""
    tree = work / "gopath" / "src" / PACKAGE
    tree.parent.mkdir(parents=True)
    tree.symlink_to(source)
    go = root / GO_ROOT / "bin" / "go"
    environment = {
        **tools_environment(root),
        "GOROOT": str(root / GO_ROOT),
        "GOPATH": str(work / "gopath"),
        "GO111MODULE": "off",
        "GOFLAGS": "",
        "GOPROXY": "off",
        "GOCACHE": str(work / "go-cache"),
        "GOMAXPROCS": str(job_count()),
        "CGO_ENABLED": "0",
        "PWD": str(tree),  # Go sees the link, not where it leads
    }

    def go_build(package: str, program: Path, *options: str) -> None:
        line = [str(go), "build", *options, "-o", str(program), f"{PACKAGE}/{package}"]
        run(line, cwd=tree, env=environment, quiet=True)

    # The one generated file that the source package lacks: the types' OpenAPI definitions.
    go_build("vendor/k8s.io/kube-openapi/cmd/openapi-gen", work / "openapi-gen")
    line = [str(work / "openapi-gen"), "--logtostderr", "-i", ",".join(_openapi_packages(source))]
    line += ["-p", f"{PACKAGE}/pkg/generated/openapi", "-O", "zz_generated.openapi"]
    line += ["-h", "vendor/k8s.io/code-generator/hack/boilerplate.go.txt", "-r", str(work / "openapi-violations")]
    run(line, cwd=tree, env=environment, quiet=True)
    command = source / "cmd" / ALL_IN_ONE.stem
    command.mkdir()
    shutil.copy(ALL_IN_ONE, command)
    go_build(f"cmd/{ALL_IN_ONE.stem}", output, "-tags", "providerless,dockerless", "-ldflags", _linker_flags())


def _openapi_packages(source: Path) -> list[str]:
    found: set[str] = set()
    for part in ("pkg", "staging/src"):
        for path in (source / part).rglob("*.go"):
            if b"+k8s:openapi-gen=" in path.read_bytes():
                found.add(str(path.parent.relative_to(source)).replace("staging/src", "vendor"))
    unwanted = ("code-generator", "sample-apiserver")
    return [f"{PACKAGE}/{name}" for name in sorted(found) if not any(part in name for part in unwanted)]


def _linker_flags() -> str:
    major, minor, _ = KUBERNETES_VERSION.split(".")
    facts = {
        "gitVersion": f"v{KUBERNETES_VERSION}",
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        "gitCommit": "debian",
        "buildDate": "1970-01-01T00:00:00Z",
    }
    # The linker knows a carried package by the path that has vendor/ in it.
    packages = [f"{PACKAGE}/vendor/k8s.io/{name}" for name in ("component-base/version", "client-go/pkg/version")]
    variables = [f"-X {package}.{name}={value}" for package in packages for name, value in facts.items()]
    return " ".join(["-s", "-w", *variables])


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
