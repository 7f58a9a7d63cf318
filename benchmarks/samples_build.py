"""Finds and builds the samples of a checkout of NVIDIA's cuda-samples, one by one, outside the checkout.

Two layouts: a folder with a CMakeLists.txt that has a project of its own (12.8 and later), or one with a Makefile. Each
is copied to WORK, at its place beside links to everything else of the checkout (Common, cmake), and built there: the
checkout is only read. What the toolkit lacks (OpenGL, MPI, cuDNN) costs the samples that need it, with the reason.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.places import Outcome, run_limited
from benchmarks.runtime_session import find_nvcc

BUILD_FOLDER = "build"
NEVER_ENTERED = {"bin", BUILD_FOLDER, "Common", "cmake", "CMakeFiles"}
# What compilers, linkers, CMake and the Makefiles' own checks say.
REASON = re.compile(
    r"\berror\b.*:|: error\b|CMake Error|undefined reference|cannot find|No rule to make|>>> WARNING|will not build"
    r"|not found|not supported",
    re.IGNORECASE,
)
# An error outweighs the warnings before it, which say no more than what was looked for.
HARD_REASON = re.compile(r"\berror\b.*:|: error\b|CMake Error|undefined reference|No rule to make", re.IGNORECASE)
# CMakeLists of the samples set CMAKE_CUDA_ARCHITECTURES themselves, to all that their toolkit knew, after project().
ARCHITECTURES = """\
macro(keep_architectures variable access)
  if("${access}" STREQUAL "MODIFIED_ACCESS")
    set(CMAKE_CUDA_ARCHITECTURES "@ARCHITECTURE@")
  endif()
endmacro()
variable_watch(CMAKE_CUDA_ARCHITECTURES keep_architectures)
"""


@dataclass(frozen=True)
class Sample:
    """`name` is its folder's path inside the checkout."""

    name: str
    kind: str  # cmake or make


@dataclass
class Built:
    sample: Sample
    programs: list[Path] = field(default_factory=list)
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Toolkit:
    nvcc: Path | None
    root: Path | None

    @property
    def library_folders(self) -> list[str]:
        return [str(self.root / "lib64")] if self.root else []

    def version(self) -> str:
        if self.nvcc is None:
            return ""
        text = subprocess.run([self.nvcc, "--version"], capture_output=True, text=True, check=False).stdout
        return next((line.strip() for line in text.splitlines() if "release" in line), "")


def find_toolkit() -> Toolkit:
    """The nvcc on PATH or in /usr/local, and the root that it names itself: what is on PATH may be a script."""
    nvcc = find_nvcc()
    if nvcc is None:
        return Toolkit(None, None)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.cu"
        source.touch()
        dry = subprocess.run([nvcc, "--dryrun", "-c", source], capture_output=True, text=True, check=False, cwd=folder)
    said = re.search(r"^#\$ TOP=(.+)$", dry.stderr, re.MULTILINE)
    root = Path(said[1].strip()) if said else Path(nvcc).resolve().parent.parent
    return Toolkit(Path(nvcc), root.resolve())


def device_architecture() -> str:
    """The first GPU's compute capability as nvcc writes it: 90 for 9.0."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        text = ""
    said = re.match(r"\s*(\d+)\.(\d+)", text)
    if not said:
        raise ValueError("nvidia-smi tells no compute capability: give --arch")
    return said[1] + said[2]


def kind_of(folder: Path) -> str | None:
    lists = folder / "CMakeLists.txt"
    if lists.is_file() and re.search(r"^\s*project\s*\(", lists.read_text(errors="replace"), re.MULTILINE | re.I):
        return "cmake"
    return "make" if any((folder / name).is_file() for name in ("Makefile", "GNUmakefile")) else None


def find_samples(checkout: Path) -> list[Sample]:
    """Every folder below the top that can be built alone; folders inside such a one belong to it. A Makefile above
    folders with build files of their own only collects them."""

    def below(folder: Path) -> Iterator[Sample]:
        for entry in sorted(folder.iterdir()):
            if not entry.is_dir() or entry.is_symlink() or entry.name in NEVER_ENTERED or entry.name.startswith("."):
                continue
            kind = kind_of(entry)
            inner = [] if kind == "cmake" else list(below(entry))
            if inner or kind is None:
                yield from inner
            else:
                yield Sample(str(entry.relative_to(checkout)), kind)

    return list(below(checkout))


def is_program(path: Path) -> bool:
    if not path.is_file() or path.is_symlink() or not os.access(path, os.X_OK) or ".so" in path.suffixes:
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def programs_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if "CMakeFiles" not in path.parts and is_program(path)]


def reason_in(log: str) -> str:
    """The first line that says what went wrong; CMake says it in the line after the place."""
    lines = [line.strip() for line in log.splitlines()]
    for pattern in (HARD_REASON, REASON):
        for at, line in enumerate(lines):
            if pattern.search(line):
                more = next((after for after in lines[at + 1 : at + 4] if after), "")
                return f"{line} {more}"[:400] if line.startswith("CMake Error") else line[:400]
    return next((line for line in reversed(lines) if line), "nothing said")[:400]


def _not_copied(folder: str, names: list[str]) -> set[str]:
    """Results of earlier builds inside the checkout, for other architectures maybe."""
    old = {BUILD_FOLDER, ".git", ".vscode"} & set(names)
    return old | {name for name in names if name.endswith(".o") or is_program(Path(folder) / name)}


def mirror(checkout: Path, work: Path, samples: list[Sample]) -> None:
    """WORK looks like the checkout: folders on the way to a sample are real, the samples copies, the rest links."""
    ours = {Path(sample.name) for sample in samples}
    on_the_way = {parent for path in ours for parent in path.parents}

    def fill(folder: Path) -> None:
        (work / folder).mkdir(parents=True, exist_ok=True)
        for entry in (checkout / folder).iterdir():
            path, copy = folder / entry.name, work / folder / entry.name
            if path in ours | on_the_way and copy.is_symlink():
                copy.unlink()  # of a run with other samples: what is written there would be written in the checkout
            if path in ours:
                shutil.copytree(entry, copy, symlinks=True, ignore=_not_copied, dirs_exist_ok=True)
            elif path in on_the_way:
                fill(path)
            elif entry.name not in {"bin", BUILD_FOLDER, ".git"} and not copy.exists() and not copy.is_symlink():
                copy.symlink_to(entry.resolve())

    fill(Path())


@dataclass(frozen=True)
class Builder:
    """`architecture` as CMake writes it: 90, or 80-virtual for PTX alone."""

    work: Path
    logs: Path
    toolkit: Toolkit
    architecture: str
    timeout_s: float
    make_variables: tuple[str, ...] = ()  # NAME=VALUE, for Makefiles older than the toolkit

    @property
    def settings(self) -> Path:
        return self.work.parent / "architectures.cmake"

    def prepare(self) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        self.settings.write_text(ARCHITECTURES.replace("@ARCHITECTURE@", self.architecture))

    def _environment(self) -> Mapping[str, str]:
        if self.toolkit.nvcc is None or self.toolkit.root is None:
            return os.environ
        path = f"{self.toolkit.root / 'bin'}:{os.environ.get('PATH', '')}"
        return {**os.environ, "PATH": path, "CUDACXX": str(self.toolkit.root / "bin" / "nvcc")}

    def commands(self, sample: Sample) -> list[list[str]]:
        folder = self.work / sample.name
        if sample.kind == "cmake":
            build = str(folder / BUILD_FOLDER)
            options = [f"-DCMAKE_CUDA_ARCHITECTURES={self.architecture}", "-DCMAKE_BUILD_TYPE=Release"]
            options.append(f"-DCMAKE_PROJECT_INCLUDE={self.settings}")
            return [["cmake", "-S", str(folder), "-B", build, *options], ["cmake", "--build", build]]
        number, _, form = self.architecture.partition("-")
        command = ["make", "-C", str(folder), f"SMS={number}"]
        if form == "virtual":
            command.append(f"GENCODE_FLAGS=-gencode arch=compute_{number},code=compute_{number}")
        if self.toolkit.root is not None:
            command.append(f"CUDA_PATH={self.toolkit.root}")
        return [[*command, *self.make_variables]]

    def build(self, sample: Sample) -> Built:
        built, log = Built(sample), ""
        for command in self.commands(sample):
            outcome: Outcome = run_limited(command, self._environment(), self.timeout_s, self.work)
            built.seconds += outcome.seconds
            log += f"$ {' '.join(command)}\n{outcome.stdout}{outcome.stderr}"
            if not outcome.good:
                built.reason = outcome.failure if outcome.code is None else reason_in(outcome.stdout + outcome.stderr)
                break
        else:
            # A build without an error and without a program is the samples' way to say that something is missing.
            built.programs = programs_in(self.work / sample.name)
            if not built.programs:
                built.reason = reason_in(log)
        (self.logs / f"{sample.name.replace('/', '.')}.build.log").write_text(log)
        return built
