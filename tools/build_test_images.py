"""Makes the container images of the cluster tests from Debian packages and this tree's wheel. Prints their archives.

No container engine: a layer is a tar of unpacked packages, an image an OCI layout in a tar, which `ctr images import`
takes. They are for tests. The images that are shipped are described by docker/.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

from build_kubernetes import KUBERNETES_VERSION, debian_tools, kubernetes
from buildlib import cached, recipe_key, run
from debian_packages import Apt, merge_usr

ROOT = Path(__file__).resolve().parent.parent
REGISTRY = "docker.io/orion-test"
# What a program of a user finds: Python, a shell, nothing of ours.
BASE_PACKAGES = [
    "python3",
    "libstdc++6",
    "base-files",
    "bash",
    "coreutils",
    "dash",
    "grep",
    "libc-bin",
    "procps",
    "sed",
]
PYTHON = "python3.11"
VENV = "opt/orion"
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
RECIPE = "1"
OCI = "application/vnd.oci.image"


def say(text: str) -> None:
    print(f"images: {text}", file=sys.stderr, flush=True)


def tar_of(folder: Path, target: Path) -> None:
    """A tar of `folder` that is the same for the same content: sorted, root's, without times."""

    def plain(item: tarfile.TarInfo) -> tarfile.TarInfo:
        item.uid = item.gid = item.mtime = 0
        item.uname = item.gname = ""
        return item

    with tarfile.open(target, "w") as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, str(path.relative_to(folder)), recursive=False, filter=plain)


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def write_image(target: Path, names: list[str], layers: list[Path], config: dict[str, object]) -> None:
    """An OCI layout with one image under each of `names`, whose layers are uncompressed tars."""
    parts = [(digest_of(one), one.stat().st_size) for one in layers]
    kind = f"{OCI}.layer.v1.tar"
    with tarfile.open(target, "w") as tar:

        def add(path: str, data: bytes) -> None:
            item = tarfile.TarInfo(path)
            item.size = len(data)
            tar.addfile(item, io.BytesIO(data))

        def blob(kind: str, value: object) -> dict[str, object]:
            data = json.dumps(value).encode()
            digest = hashlib.sha256(data).hexdigest()
            add(f"blobs/sha256/{digest}", data)
            return {"mediaType": f"{OCI}.{kind}.v1+json", "digest": f"sha256:{digest}", "size": len(data)}

        add("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        for layer, (digest, _) in zip(layers, parts, strict=True):
            tar.add(layer, f"blobs/sha256/{digest.removeprefix('sha256:')}")
        rootfs = {"type": "layers", "diff_ids": [digest for digest, _ in parts]}
        description = blob("config", {"architecture": "amd64", "os": "linux", "config": config, "rootfs": rootfs})
        listed = [{"mediaType": kind, "digest": digest, "size": size} for digest, size in parts]
        manifest = blob("manifest", {"schemaVersion": 2, "config": description, "layers": listed})
        named = [{**manifest, "annotations": {"io.containerd.image.name": name}} for name in names]
        add("index.json", json.dumps({"schemaVersion": 2, "manifests": named}).encode())


def base_layer() -> Path:
    """Debian with Python: a tar."""

    def build(work: Path) -> None:
        say(f"Debian packages for the base: {', '.join(BASE_PACKAGES)}")
        apt = Apt(work / "apt", whole=True)
        apt.run("update")
        root = work / "root"
        root.mkdir()
        versions = apt.unpack(BASE_PACKAGES, root)
        merge_usr(root)
        for folder in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info"):
            shutil.rmtree(root / folder, ignore_errors=True)
        for folder in ("tmp", "proc", "sys", "dev", "run", "root", "etc"):
            (root / folder).mkdir(exist_ok=True)
        (root / "tmp").chmod(0o1777)
        (root / "usr/bin/sh").unlink(missing_ok=True)
        (root / "usr/bin/sh").symlink_to("dash")
        (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\norion:x:1000:1000:orion:/tmp:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\norion:x:1000:\n")
        tar_of(root, work / "layer.tar")
        (work / "versions.json").write_text(json.dumps(versions, indent=1, sort_keys=True) + "\n")
        shutil.rmtree(root)
        shutil.rmtree(work / "apt")

    return cached(f"debian-base-{recipe_key([RECIPE, *BASE_PACKAGES])}", build) / "layer.tar"


def install(root: Path, *requirements: str) -> None:
    """Installs into the virtual environment of an image, with its commands."""
    packages = root / VENV / "lib" / PYTHON / "site-packages"
    packages.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile"]
    run([*command, "--only-binary", ":all:", "--target", str(packages), *requirements], quiet=True)
    commands = root / VENV / "bin"
    commands.mkdir(exist_ok=True)
    if (packages / "bin").is_dir():
        for script in (packages / "bin").iterdir():
            # pip writes the interpreter that ran it.
            lines = script.read_text().split("\n", 1)
            (commands / script.name).write_text(f"#!/{VENV}/bin/python\n{lines[1]}")
            (commands / script.name).chmod(0o755)
        shutil.rmtree(packages / "bin")


def requirements_of(wheel: Path, extras: list[str]) -> list[str]:
    """The packages that the wheel needs, with those of extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    found = []
    for line in metadata.get_all("Requires-Dist") or []:
        requirement, _, marker = str(line).partition(";")
        if not marker or any(f'extra == "{extra}"' in marker for extra in extras):
            found.append(requirement.strip())
    return sorted(found)


def dependencies_layer(wanted: list[str]) -> Path:
    """The virtual environment with these packages and pycuda: a tar."""
    build_pycuda = [sys.executable, str(ROOT / "tools/build_pycuda.py")]
    pycuda = subprocess.run(build_pycuda, check=True, capture_output=True, text=True).stdout.split()[-1]

    def build(work: Path) -> None:
        say("Python packages")
        root = work / "root"
        install(root, *wanted, pycuda)
        (root / VENV / "pyvenv.cfg").write_text(
            "home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.11\n"
        )
        (root / VENV / "bin/python").symlink_to(f"/usr/bin/{PYTHON}")
        tar_of(root, work / "layer.tar")
        shutil.rmtree(root)

    return cached(f"image-packages-{recipe_key([RECIPE, *wanted, Path(pycuda).name])}", build) / "layer.tar"


def build_wheel(folder: Path) -> Path:
    say("the wheel of this tree")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    run([*command, str(ROOT)], quiet=True)
    (wheel,) = folder.glob("orion_vgpu-*.whl")
    return wheel


def pause(folder: Path) -> Path:
    """The image that holds a pod's namespaces, and any number of applets."""
    root = folder / "pause"
    (root / "bin").mkdir(parents=True)
    shutil.copy2(debian_tools() / "root/usr/bin/busybox", root / "bin/busybox")
    loop = "trap 'exit 0' TERM INT; while :; do /bin/busybox sleep 1000 & wait; done"
    return image_of(root, [], ["pause:1"], {"Entrypoint": ["/bin/busybox", "sh", "-c", loop]})


def kube_scheduler(folder: Path) -> Path:
    root = folder / "kube-scheduler"
    (root / "usr/local/bin").mkdir(parents=True)
    shutil.copy2(kubernetes() / "bin/kube-scheduler", root / "usr/local/bin/kube-scheduler")
    return image_of(root, [], [f"kube-scheduler:v{KUBERNETES_VERSION}"], {"Env": ["PATH=/usr/local/bin"]})


def application(folder: Path) -> Path:
    """What a user's image is: Python, nothing of ours in it."""
    root = folder / "application"
    root.mkdir()
    return image_of(root, [base_layer()], ["application:1"], {"Env": [f"PATH={SYSTEM_PATH}"]})


def orion(folder: Path, wheel: Path) -> Path:
    """All that the wheel holds, under the names of the chart's images."""
    root = folder / "orion"
    install(root, "--no-deps", str(wheel))
    wanted = requirements_of(wheel, ["postgres", "kubernetes"])
    names = ["orion-controller:test", "orion-server:test", "orion-client:test"]
    config: dict[str, object] = {"Env": [f"PATH=/{VENV}/bin:{SYSTEM_PATH}", "PYTHONDONTWRITEBYTECODE=1"]}
    return image_of(root, [base_layer(), dependencies_layer(wanted)], names, config)


def image_of(root: Path, below: list[Path], names: list[str], config: dict[str, object]) -> Path:
    """The archive ROOT.tar of an image that has the folder `root` over the layers `below`."""
    layer = root.with_suffix(".layer")
    target = root.with_suffix(".tar")
    tar_of(root, layer)
    write_image(target, [f"{REGISTRY}/{name}" for name in names], [*below, layer], config)
    layer.unlink()
    shutil.rmtree(root)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the archives are written")
    parser.add_argument("--wheel", type=Path, help="a wheel that is already there, instead of this tree's")
    arguments = parser.parse_args()
    if sys.version_info[:2] != (3, 11):
        raise SystemExit("the images hold Debian 12's Python 3.11: make .venv with it (PYTHON=python3.11 make setup)")
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    wheel = arguments.wheel or build_wheel(folder)
    for archive in (pause(folder), kube_scheduler(folder), application(folder), orion(folder, wheel)):
        print(archive)


if __name__ == "__main__":
    main()
