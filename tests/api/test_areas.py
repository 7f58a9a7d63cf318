"""Every tests/programs/AREA_api.c, section by section: on softgpu alone, and on softgpu through the shim over both
transports. On a GPU machine the same programs run natively first (benchmarks/gpu_session.sh)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from orion_client.libraries import client_folder
from orion_client.private_server import PrivateServer

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "tests" / "programs"
BUILD = ROOT / "build" / "tests" / "areas"


@dataclass(frozen=True)
class Section:
    program: str
    name: str
    marks: frozenset[str]

    def __str__(self) -> str:
        return f"{self.program.removesuffix('_api')}-{self.name}"


@cache
def build(name: str) -> Path:
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / f"{name}.{os.getpid()}"
    command = ["gcc", "-std=gnu11", "-Wall", "-Werror", f"-I{ROOT / 'wire' / 'include'}", str(PROGRAMS / f"{name}.c")]
    subprocess.run([*command, "-o", str(program), "-ldl", "-lpthread"], check=True)
    final = BUILD / name
    program.rename(final)
    return final


def sections() -> list[Section]:
    found = []
    for source in sorted(PROGRAMS.glob("*_api.c")):
        if source.stem == "driver_api":
            continue
        listed = subprocess.run([build(source.stem), "--list"], check=True, capture_output=True, text=True).stdout
        for line in listed.splitlines():
            name, *marks = line.split()
            found.append(Section(source.stem, name, frozenset(marks)))
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with PrivateServer("softgpu", extra=("--warm", "2")) as running:
        yield running


def check(section: Section, **environment: str) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "CUDA_"))}
    done = subprocess.run(
        [build(section.program), section.name],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert failed == [], done.stderr[-2000:]
    assert done.returncode == 0 and "checks, 0 failures" in done.stdout, done.stdout[-500:] + done.stderr[-2000:]


SECTIONS = [s for s in sections() if "hardware" not in s.marks]


@pytest.mark.parametrize("section", [s for s in SECTIONS if "tables" not in s.marks], ids=str)
def test_on_softgpu_alone(section: Section) -> None:
    check(section, LD_LIBRARY_PATH=str(ROOT / "build" / "softgpu"))


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_through_the_shim(server: PrivateServer, section: Section, transport: str) -> None:
    check(section, LD_LIBRARY_PATH=str(client_folder()), ORION_SERVER=server.address, ORION_TRANSPORT=transport)
