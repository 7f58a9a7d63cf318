"""C driver-API programs through the shim, as separate processes, over both transports. Their expected codes were
checked against NVIDIA's driver on an H100; on softgpu alone they are run by its own tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orion_client.libraries import client_folder
from orion_client.private_server import PrivateServer

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "tests" / "programs"
SECTIONS = (
    "devices contexts memory pinned copies copies2d memset pointers modules launches library link occupancy streams "
    "events callbacks threads misc mapped callback_writes fault"
).split()
TRANSPORTS = ("shm", "tcp")


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with PrivateServer("softgpu", extra=("--warm", "2")) as running:
        yield running


def build(name: str, folder: Path) -> Path:
    program = folder / name
    command = ["gcc", "-std=gnu11", "-Wall", "-Werror", f"-I{ROOT / 'wire' / 'include'}", str(PROGRAMS / f"{name}.c")]
    subprocess.run([*command, "-o", str(program), "-ldl", "-lpthread"], check=True)
    return program


@pytest.fixture(scope="module")
def driver_api(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("driver_api", tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("two_devices", tmp_path_factory.mktemp("programs"))


def run(address: str, transport: str, *command: str, **extra: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "CUDA_"))},
        "LD_LIBRARY_PATH": str(client_folder()),
        "ORION_SERVER": address,
        "ORION_TRANSPORT": transport,
        **extra,
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def failures_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    lines = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    if not lines and (done.returncode != 0 or "checks, 0 failures" not in done.stdout):
        lines = [f"exit status {done.returncode}", done.stderr[-2000:]]
    return lines


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("section", SECTIONS)
def test_section(server: PrivateServer, driver_api: Path, section: str, transport: str) -> None:
    assert failures_of(run(server.address, transport, str(driver_api), section)) == []


def test_all_sections_in_one_process(server: PrivateServer, driver_api: Path) -> None:
    assert failures_of(run(server.address, "shm", str(driver_api))) == []


@pytest.mark.parametrize("variable", ["ORION_SYNC", "CUDA_LAUNCH_BLOCKING"])
def test_waiting_after_each_call(server: PrivateServer, driver_api: Path, variable: str) -> None:
    sections = ("contexts", "memory", "copies", "modules", "launches")  # none that holds a stream meanwhile
    assert failures_of(run(server.address, "shm", str(driver_api), *sections, **{variable: "1"})) == []


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_two_servers(server: PrivateServer, two_devices: Path, transport: str) -> None:
    with PrivateServer("softgpu") as second:
        done = run(f"{server.address},{second.address}", transport, str(two_devices), "remote")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_two_devices_of_one_server(two_devices: Path, transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTGPU_DEVICES", "2")
    with PrivateServer("softgpu") as both:
        done = run(both.address, transport, str(two_devices), "remote")
    assert done.returncode == 0, done.stdout + done.stderr
