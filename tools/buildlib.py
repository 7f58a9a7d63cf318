"""What the build scripts share: the cache folder, locked atomic cache entries, sources fetched through pip."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# One release of zig for every build: its glibc stubs and libc++ end up in what is shipped.
ZIG_REQUIREMENT = "ziglang==0.17.1"
ZIG_TARGET = "x86_64-linux-gnu.2.17"


def cache_dir() -> Path:
    """Third-party builds live outside the clone, so that a second clone does not repeat minutes of compiling."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = Path(base) / "orion-build"
    path.mkdir(parents=True, exist_ok=True)
    return path


def job_count() -> int:
    return int(os.environ.get("ORION_BUILD_JOBS") or len(os.sched_getaffinity(0)))


def run(command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None, quiet: bool = False) -> None:
    """Runs a command; with `quiet` its output is shown only when it fails."""
    if not quiet:
        subprocess.run(command, cwd=cwd, env=env, check=True)
        return
    done = subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        sys.stderr.write(done.stdout.decode(errors="replace"))
        raise subprocess.CalledProcessError(done.returncode, command)


def recipe_key(parts: Iterable[str | bytes]) -> str:
    """A short digest of everything that decides what a build produces."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:12]


def compiler_commands(compiler: str, language: str) -> tuple[list[str], list[str], str]:
    """The compiler ("gcc" or "zig") of a language ("cc" or "c++"), the archiver, and what identifies them."""
    if compiler == "zig":
        zig = [sys.executable, "-m", "ziglang"]
        return [*zig, language, "-target", ZIG_TARGET], [*zig, "ar"], ZIG_REQUIREMENT + ZIG_TARGET
    command = os.environ.get("CC", "gcc").split() if language == "cc" else os.environ.get("CXX", "g++").split()
    version = subprocess.run([*command, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()
    return command, ["ar"], version[0]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The cache entry `name`, made by `build(folder)` on first use.

    An entry appears by one rename, so an interrupted build leaves nothing that looks finished;
    the lock keeps two builds on one machine from doing the same work.
    """
    root = cache_dir()
    entry = root / name
    if entry.is_dir():
        return entry
    with _locked(root / f"{name}.lock"):
        if entry.is_dir():
            return entry
        work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
        try:
            build(work)
            work.rename(entry)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    return entry


def fetch_sdist(project: str, version: str, sha256: str) -> Path:
    """The unpacked source of a release, fetched by pip from whatever index pip is configured for.

    The digest is checked because the configured index is not ours to trust.
    """

    def build(work: Path) -> None:
        download = work / "download"
        run(
            [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "--no-binary"]
            + [project, "--dest", str(download), f"{project}=={version}"],
            quiet=True,
        )
        (archive,) = download.iterdir()
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != sha256:
            raise SystemExit(f"{archive.name}: sha256 is {found}, expected {sha256}")
        with tarfile.open(archive) as tar:
            if sys.version_info >= (3, 12) or hasattr(tarfile, "data_filter"):
                tar.extractall(work, filter="data")
            else:
                tar.extractall(work)  # the digest above already says exactly which bytes these are
        shutil.rmtree(download)
        (source,) = work.iterdir()
        for item in source.iterdir():
            item.rename(work / item.name)
        source.rmdir()

    return cached(f"{project}-{version}-source", build)


def install_target(requirements: list[str], name: str) -> Path:
    """A folder holding the unpacked wheels of `requirements`, apart from any environment."""

    def build(work: Path) -> None:
        run(
            [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
            + ["--only-binary", ":all:", "--target", str(work), *requirements],
            quiet=True,
        )

    return cached(f"{name}-{recipe_key(requirements)}", build)
