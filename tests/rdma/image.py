"""A machine for the tests of RDMA: Debian's kernel, and a root file system in memory that holds this checkout's builds,
the Python that runs the tests, rdma-core and UCX. QEMU boots it without KVM; soft-RoCE (rdma_rxe) is its RDMA device.

The image is made anew each time from what is installed; only the kernel's package is kept (in the build cache).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("ORION_BUILD_CACHE") or Path.home() / ".cache" / "orion-build")
MODULES = ("crc32_generic", "virtio_pci", "virtio_net", "ib_uverbs", "rdma_ucm", "rdma_rxe")
PACKAGES = ("qemu-system-x86", "linux-image-amd64", "rdma-core", "ibverbs-providers", "libucx0", "ucx-utils",
            "busybox-static", "iproute2")  # fmt: skip
COMMANDS = ("ip", "rdma", "ucx_perftest", "ucx_info")
# What server, worker and rows import from site-packages; and single files there.
SITE = ("zmq", "pyzmq.libs", "annotated_doc", "msgspec", "typer", "shellingham", "uvloop", "typing_extensions.py",
        "prometheus_client", "pycuda", "pytools", "siphash24", "platformdirs", "mako", "markupsafe", "numpy",
        "numpy.libs", "click", "pygments", "rich", "markdown_it", "mdurl",
        "pydantic", "pydantic_core", "annotated_types", "typing_inspection", "_distutils_hack")  # fmt: skip
OURS = ("orion_client", "orion_server", "wire", "benchmarks")
LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", "test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip", "turtledemo", "site-packages",
    "config-*", "results", "*.a", "pydoc_data", "*.pdb", "*.lib", "curses", "_pyrepl",
)  # fmt: skip


class MissingError(Exception):
    """Something that the image needs is not installed: the message says how to get it."""


def modules_folder() -> tuple[Path, Path]:
    """Debian's kernel and the folder of its modules: the package is unpacked, never installed."""
    listed = subprocess.run(["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True).stdout
    names = [line.split()[-1] for line in listed.splitlines() if "Depends: linux-image-" in line]
    if not names:
        raise MissingError("no Debian kernel is known to apt: run `apt-get update` (package linux-image-amd64)")
    folder = CACHE / names[0]
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        scratch = folder.with_suffix(f".{os.getpid()}")
        scratch.mkdir()
        try:
            subprocess.run(["apt-get", "download", "-q", names[0]], cwd=scratch, check=True, capture_output=True)
            package = next(scratch.glob("*.deb"))
            subprocess.run(["dpkg-deb", "-x", str(package), str(scratch)], check=True)
            package.unlink()
            scratch.rename(folder)
        except (OSError, subprocess.CalledProcessError) as error:
            raise MissingError(f"the kernel package {names[0]} cannot be had: {error}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return next((folder / "boot").glob("vmlinuz-*")), next((folder / "lib" / "modules").iterdir())


def in_order(modules: Path) -> list[Path]:
    """Files of MODULES and of what they need, in the order in which they can be loaded."""
    by_name = {p.name.removesuffix(".ko").replace("-", "_"): p for p in modules.rglob("*.ko")}
    ordered: list[Path] = []

    def add(name: str) -> None:
        file = by_name.get(name.replace("-", "_"))
        if file is None or file in ordered:  # built into the kernel, or there already
            return
        told = re.search(rb"\0depends=([^\0]*)\0", file.read_bytes())
        for other in told[1].decode().split(",") if told and told[1] else []:
            add(other)
        ordered.append(file)

    for name in MODULES:
        add(name)
    return ordered


def libraries_of(files: Iterable[Path]) -> set[Path]:
    """What the dynamic linker would load for them, as it names it."""
    found: set[Path] = set()
    batch = [str(f) for f in files]
    for start in range(0, len(batch), 200):
        told = subprocess.run(["ldd", *batch[start : start + 200]], capture_output=True, text=True).stdout
        for line in told.splitlines():
            words = line.split()
            path = words[2] if len(words) > 2 and words[1] == "=>" else words[0] if words else ""
            if path.startswith("/") and not path.endswith(":") and Path(path).exists():
                found.add(Path(path))
    return found


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


class Image:
    """The root file system, as a folder that becomes an archive."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernel, self._modules = modules_folder()

    def make(self, init: str) -> Path:
        """Writes the archive that the kernel unpacks; `init` is its first program, a script for /bin/sh."""
        for name in ("dev", "proc", "sys", "tmp", "etc", "root", "run", "bin", "sbin", "lib64", "dev/shm"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._busybox()
        self._kernel_modules()
        for command in COMMANDS:
            found = shutil.which(command)
            if found is None:
                raise MissingError(f"{command} is missing: apt-get install {' '.join(PACKAGES)}")
            self._copy(Path(found).resolve(), Path("/usr/bin") / command)
        self._python()
        self._ucx()
        self._ucx_with_cuda()
        self._shared_libraries()
        (self.folder / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")
        (self.folder / "etc" / "group").write_text("root:x:0:\nuser:x:1000:\n")
        (self.folder / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
        script = self.folder / "init"
        script.write_text(init)
        script.chmod(0o755)
        return self._archive()

    def _copy(self, source: Path, target: Path | None = None) -> None:
        to = self.folder / str(target or source).lstrip("/")
        to.parent.mkdir(parents=True, exist_ok=True)
        if not to.exists():
            shutil.copy2(source.resolve(), to)

    def _busybox(self) -> None:
        found = shutil.which("busybox")
        if found is None:
            raise MissingError("busybox is missing: apt-get install busybox-static")
        self._copy(Path(found), Path("/bin/busybox"))
        for name in ("sh", "mount", "insmod", "sleep", "poweroff", "cat", "echo", "ls", "mkdir", "dmesg", "uname"):
            (self.folder / "bin" / name).symlink_to("busybox")

    def _kernel_modules(self) -> None:
        target = self.folder / "modules"
        target.mkdir()
        for i, file in enumerate(in_order(self._modules)):
            shutil.copy2(file, target / f"{i:02}-{file.name}")

    def _python(self) -> None:
        """The interpreter with its library, the packages that are needed, and ours, all at one place: /py."""
        library = Path(sysconfig.get_path("stdlib"))
        base = self.folder / "py"
        shutil.copytree(library, base / "lib" / library.name, ignore=LEFT_OUT)
        self._copy(Path(sys.executable).resolve(), Path("/py/bin/python3"))
        site = base / "lib" / library.name / "site-packages"
        site.mkdir()
        installed = Path(sysconfig.get_path("platlib"))
        for name in SITE:
            source = installed / name
            if source.is_dir():
                shutil.copytree(source, site / name, ignore=LEFT_OUT)
            elif source.exists():
                shutil.copy2(source, site / name)
        for extension in installed.glob("_cffi_backend*.so"):
            shutil.copy2(extension, site)
        for name in OURS:
            shutil.copytree(ROOT / name, base / "orion" / name, ignore=LEFT_OUT)
        shutil.copytree(ROOT / "tests" / "rdma", base / "orion" / "tests" / "rdma", ignore=LEFT_OUT)
        programs = base / "orion" / "tests" / "programs"
        programs.mkdir()
        for program in ("scripted.py", "direct.py"):
            shutil.copy2(ROOT / "tests" / "programs" / program, programs)
        # Compiled here: there it would take minutes. Whether the sources are newer is not looked at.
        subprocess.run([sys.executable, "-m", "compileall", "-q", "-j", "2", "--invalidation-mode", "unchecked-hash",
                        str(base)], stdout=subprocess.DEVNULL, check=False)  # fmt: skip
        for library_file in ("shim/libcuda.so.1", "shim/libnvidia-ml.so.1", "softgpu/libcuda.so.1"):
            target = base / "orion" / "build" / library_file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / "build" / library_file, target)

    def _ucx(self) -> None:
        library = next(Path("/usr/lib").glob("*/libucp.so.0"), None)
        if library is None:
            raise MissingError("UCX is missing: apt-get install libucx0")
        folder = library.parent
        for pattern in ("libuc[pstm].so*", "ucx/*.so*", "libibverbs/*rxe*.so", "librdmacm.so.1", "libibverbs.so.1"):
            for file in folder.glob(pattern):
                self._copy(file)
        for driver in Path("/etc/libibverbs.d").glob("rxe.driver"):
            self._copy(driver)

    def _ucx_with_cuda(self) -> None:
        """Another UCX, in /ucx-cuda/lib."""
        tool = ROOT / "tools" / "fetch_ucx.py"
        options = ["--verbs", "--softgpu", "--copy-to", str(self.folder / "ucx-cuda")]
        subprocess.run([sys.executable, str(tool), *options], check=True, stdout=subprocess.DEVNULL)

    def _files(self) -> Iterator[Path]:
        for path in self.folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield path

    def _shared_libraries(self) -> None:
        programs = [p for p in self._files() if (".so" in p.name or os.access(p, os.X_OK)) and is_elf(p)]
        for library in libraries_of(programs):
            if not library.is_relative_to(self.folder):
                self._copy(library)
        # Loaded by name at run time, by threads that are cancelled and by resolvers of names.
        for name in ("libgcc_s.so.1", "libnss_files.so.2"):
            for found in Path("/lib").glob(f"*/{name}"):
                self._copy(found)

    def _archive(self) -> Path:
        archive = self.folder.with_suffix(".cpio")
        with archive.open("wb") as out:
            for number, path in enumerate(sorted(self.folder.rglob("*")), 1):  # folders before what is in them
                status = path.lstat()
                body = b""
                if path.is_symlink():
                    body = os.fsencode(os.readlink(path))
                elif path.is_file():
                    body = path.read_bytes()
                write_entry(out, number, os.fsencode(path.relative_to(self.folder)), status.st_mode, body)
            write_entry(out, 0, b"TRAILER!!!", 0, b"")
        return archive


def write_entry(out: IO[bytes], number: int, name: bytes, mode: int, body: bytes) -> None:
    """One file of an archive as the kernel reads it (cpio, "newc"): all of it root's, dated 1970."""
    fields = (number, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % value for value in fields) + name + b"\0"
    out.write(head + bytes(-len(head) % 4) + body + bytes(-len(body) % 4))


def boot(kernel: Path, archive: Path, log: Path, timeout_s: float, checks: str = "", memory_mib: int = 3072) -> str:
    """Runs the machine until it powers itself off; what it printed. Its network ends at QEMU. `checks`: names of
    guest.py with commas between them; empty: all."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise MissingError("QEMU is missing: apt-get install qemu-system-x86")
    command = [qemu, "-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", str(memory_mib)]
    command += ["-kernel", str(kernel), "-initrd", str(archive), "-nographic", "-no-reboot", "-nodefaults"]
    command += ["-serial", "stdio", "-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-pci,netdev=n0,romfile="]
    command += ["-append", "console=ttyS0 quiet panic=-1 mitigations=off" + (f" checks={checks}" if checks else "")]
    with log.open("wb") as out:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, timeout=timeout_s,
                       check=True)  # fmt: skip
    return log.read_text(errors="replace")
