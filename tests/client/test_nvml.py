"""The client's libnvidia-ml.so.1 as nvidia-ml-py sees it, against softgpu and against a server with a stand-in NVML."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orion_client.libraries import LIBNVML, client_folder
from orion_client.private_server import PrivateServer

pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is a test dependency")

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "tests" / "programs" / "nvml_report.py"
NOT_SUPPORTED = {"error": 3}
HELD_BYTES = 64 << 20


def report(address: str, *arguments: str, **extra: str) -> dict[str, Any]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "CUDA_"))}
    environment = {**clean, "LD_LIBRARY_PATH": str(client_folder()), "ORION_SERVER": address, **extra}
    command = [sys.executable, str(REPORT), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.fixture(scope="module")
def softgpu() -> Iterator[PrivateServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTGPU_DEVICES", "2")
        running = PrivateServer("softgpu", extra=("--warm", "2"))
    with running:
        yield running


@pytest.fixture(scope="module")
def equipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    """softgpu behind a server that has an NVML: one whose values are known."""
    library = tmp_path_factory.mktemp("nvml") / LIBNVML
    source = ROOT / "tests" / "programs" / "fake_nvml.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wall", "-Werror", str(source), "-o", str(library)], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTGPU_DEVICES", "2")
        running = PrivateServer("softgpu", extra=("--nvml", str(library)))
    with running:
        yield running


def test_what_softgpu_knows_without_a_session(softgpu: PrivateServer) -> None:
    told = report(softgpu.address)
    assert told["before_init"] == {"error": 1} and told["after_shutdown"] == {"error": 1}
    assert told["DriverVersion"] == NOT_SUPPORTED  # there is no GPU driver
    assert told["CudaDriverVersion"] >= 13000
    assert told["ProcessName"] == sys.executable
    assert (told["no_device"], told["no_uuid"]) == ({"error": 2}, {"error": 6})
    assert told["event_set"] == NOT_SUPPORTED
    assert len(told["devices"]) == 2
    for index, device in enumerate(told["devices"]):
        assert device["Index"] == device["ByUUID"] == device["ByPciBusId"] == index
        assert device["Name"] and uuid.UUID(device["UUID"].removeprefix("GPU-"))
        assert device["PciInfo"]["busId"].endswith(device["PciInfo"]["busIdLegacy"])
        assert device["MemoryInfo"]["total"] == device["MemoryInfo"]["used"] + device["MemoryInfo"]["free"] > 1 << 30
        assert device["MemoryInfo_v2"]["total"] == device["MemoryInfo"]["total"]
        assert device["MemoryInfo_wrong_version"] == {"error": 25}
        assert device["CudaComputeCapability"][0] >= 7
        assert device["ComputeMode"] == 0 and device["IsMig"] == 0 and device["MaxMigDeviceCount"] == 0
        for name in "UtilizationRates PowerUsage Temperature TotalEnergyConsumption NvLinkState Serial MigMode".split():
            assert device[name] == NOT_SUPPORTED, name
        assert device["SetPersistenceMode"] == NOT_SUPPORTED
        assert device["ComputeRunningProcesses"] == device["GraphicsRunningProcesses"] == []
        assert device["P2P"][index] == [0, 0, 0]
        assert device["Ancestor"][index] == 0 and device["Ancestor"][1 - index] == 50
        cpus = {
            word * 64 + bit for word, bits in enumerate(device["CpuAffinity"]) for bit in range(64) if bits >> bit & 1
        }
        assert cpus == os.sched_getaffinity(0)
    assert told["devices"][0]["UUID"] != told["devices"][1]["UUID"]


def test_memory_and_processes_of_a_session_of_ones_own(softgpu: PrivateServer) -> None:
    idle = report(softgpu.address)["devices"][0]["MemoryInfo"]["used"]
    told = report(softgpu.address, str(HELD_BYTES))
    assert told["devices"][0]["MemoryInfo"]["used"] >= idle + HELD_BYTES
    (process,) = told["devices"][0]["ComputeRunningProcesses"]
    assert process["pid"] == told["pid"] and process["usedGpuMemory"] >= HELD_BYTES
    (idle_process,) = told["devices"][1]["ComputeRunningProcesses"]
    assert idle_process["pid"] == told["pid"] and idle_process["usedGpuMemory"] == 0


def test_processes_of_another_group_are_not_shown(softgpu: PrivateServer) -> None:
    program = [sys.executable, str(REPORT), str(HELD_BYTES)]
    waiting = "import sys, runpy; sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0]); sys.stdin.read()"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(client_folder()), "ORION_SERVER": softgpu.address}
    environment["ORION_GROUP_ID"] = "others"
    command = [program[0], "-c", waiting, *program[1:]]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().startswith("{")
        mine = report(softgpu.address)["devices"][0]
        theirs = report(softgpu.address, ORION_GROUP_ID="others")["devices"][0]
    assert mine["ComputeRunningProcesses"] == []
    assert mine["MemoryInfo"]["used"] >= HELD_BYTES  # but their memory is not free
    assert [p["pid"] for p in theirs["ComputeRunningProcesses"]] == [holder.pid]


@pytest.mark.parametrize("attached", [False, True])
def test_only_the_vgpus_that_are_wanted_are_shown(softgpu: PrivateServer, attached: bool) -> None:
    arguments = [str(HELD_BYTES)] if attached else []
    told = report(softgpu.address, *arguments, ORION_VGPU="1")
    assert len(told["devices"]) == 1
    if attached:
        assert [p["pid"] for p in told["devices"][0]["ComputeRunningProcesses"]] == [told["pid"]]


def test_live_values_come_from_the_servers_nvml(equipped: PrivateServer) -> None:
    told = report(equipped.address)
    assert told["DriverVersion"] == "999.88.07"
    assert told["NVMLVersion"] == "13.999.88.07"
    for index, device in enumerate(told["devices"]):
        handle = index + 1
        assert device["UtilizationRates"] == {"gpu": 70 + handle, "memory": 20 + handle}
        assert device["Temperature"] == device["TemperatureV"] == 40 + handle
        assert device["Threshold"] == [95, 90, {"error": 2}]
        assert device["ClockInfo"] == [1000 * (kind + 1) + handle for kind in range(4)] + [{"error": 2}]
        assert device["MaxClockInfo"] == [5000 * (kind + 1) + handle for kind in range(4)]
        assert device["PowerManagementLimitConstraints"] == [200000, 700000]
        assert device["PowerUsage"] > 100000
        assert device["TotalEnergyConsumption"] == 5000000000 + handle
        assert device["Fields"] == [[0, 5000000000 + handle], [3, device["Fields"][1][1]]]
        assert device["EccMode"] == [1, handle & 1] and device["MigMode"] == [0, 0]
        assert device["PciInfo"]["pciDeviceId"] == 0x233010DE + index
        assert device["MemoryInfo_v2"]["used"] == handle << 30
        assert device["MemoryInfo"]["used"] == (handle << 30) + (1 << 30)  # reserved memory is used there
        assert device["P2P"][1 - index] == [0, 0, 2] and device["Ancestor"][1 - index] == 30
        assert device["FanSpeed"] == NOT_SUPPORTED  # the stand-in has none, as a passively cooled GPU


def test_every_public_name_is_exported() -> None:
    """dlsym must succeed for all that nvidia-ml-py can look up."""
    source = Path(pynvml.__file__).read_text()
    wanted = {word for line in source.splitlines() if "_nvmlGetFunctionPointer(" in line
              for word in line.replace("'", '"').split('"')[1::2] if word.startswith("nvml")}  # fmt: skip
    listed = subprocess.run(["nm", "-D", "--defined-only", client_folder() / LIBNVML], capture_output=True, text=True)
    exported = {line.split()[-1] for line in listed.stdout.splitlines()}
    assert len(wanted) > 300
    assert wanted - exported == set()


def test_without_a_server_init_fails_and_says_why(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, str(REPORT)],
        env={**os.environ, "LD_LIBRARY_PATH": str(client_folder()), "ORION_SERVER": "127.0.0.1:1"},
        capture_output=True,
        text=True,
    )
    assert json.loads(told.stdout) == {"init": {"error": 9}}
    assert "no server at 127.0.0.1:1" in told.stderr


def test_a_child_of_fork_can_ask(softgpu: PrivateServer) -> None:
    code = (
        "import os, pynvml as n; n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(0); p = os.fork()\n"
        "ok = n.nvmlDeviceGetMemoryInfo(h).total > 0\n"
        "os._exit(0 if ok else 1) if p == 0 else exit(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]))"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(client_folder()), "ORION_SERVER": softgpu.address}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60).returncode == 0
