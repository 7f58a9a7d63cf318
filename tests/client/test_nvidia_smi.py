"""nvidia-smi of client environments, read as scripts read it."""

from __future__ import annotations

import asyncio
import csv
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from orion_client import libraries, pool_port, settings
from orion_client.control_client import ServerUnreachable
from orion_client.libraries import LIBNVML, client_folder
from orion_client.private_server import PrivateServer
from orion_client.smi import nvidia
from orion_client.smi.gather import Device, Process, devices
from tests.controller.linked import Keys, World, world
from tests.controller.simulated import SimulatedServer

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(libraries.__file__).parent / "bin" / "nvidia-smi"
REPORT = ROOT / "tests" / "programs" / "nvml_report.py"
HELD_MIB = 64
METRICS = {
    "utilization_gpu_percent": 37, "utilization_memory_percent": 12, "temperature_c": 41, "power_mw": 123_456,
    "power_limit_mw": 700_000, "power_enforced_mw": 700_000, "compute_major": 9, "compute_minor": 0, "compute_mode": 0,
    "performance_state": 0, "persistence_mode": 1, "ecc_current": 1, "mig_current": 0, "clock_sm_mhz": 1980,
}  # fmt: skip


def device(index: int = 0, **changes: object) -> Device:
    values = {
        "index": index, "name": "NVIDIA H200", "uuid": f"GPU-0000000{index}-aaaa-bbbb-cccc-dddddddddddd",
        "pci_bus_id": f"0000:1{index}:00.0", "total_bytes": 8192 << 20, "used_bytes": 1000 << 20, "server": "gpu1:9960",
        "driver": "580.95.05", "cuda_version": 13020, "metrics": METRICS,
        "processes": [Process(4711, "/usr/bin/python3", 900 << 20)],
    }  # fmt: skip
    return Device(**{**values, **changes})  # type: ignore[arg-type]


def smi(capsys: pytest.CaptureFixture[str], *arguments: str, found: list[Device] | None = None) -> str:
    known = [device(0), device(1, processes=[])] if found is None else found
    assert nvidia.run(list(arguments), lambda: known, lambda: 1_800_000_000.5) == 0
    return capsys.readouterr().out


def ending(*arguments: str, found: list[Device] | None = None) -> nvidia.Ending:
    with pytest.raises(nvidia.Ending) as raised:
        nvidia.run(list(arguments), lambda: [device()] if found is None else found, lambda: 0.0)
    return raised.value


# ------------------------------------------------------------------------------------------------ formats


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    lines = smi(capsys, "-L").splitlines()
    assert lines[0] == "GPU 0: NVIDIA H200 (UUID: GPU-00000000-aaaa-bbbb-cccc-dddddddddddd)"
    assert len(lines) == 2 == len(smi(capsys, "--list-gpus").splitlines())  # nvidia-smi -L | wc -l


def test_the_box_has_its_width_and_what_scripts_look_for(capsys: pytest.CaptureFixture[str]) -> None:
    text = smi(capsys)
    lines = text.splitlines()
    assert {len(line) for line in lines[1:]} == {91}, [line for line in lines if len(line) != 91]
    # torch.utils.collect_env and others
    assert re.search(r"Driver Version: (.*?) ", text).group(1) == "580.95.05"  # type: ignore[union-attr]
    assert re.search(r"CUDA Version:\s*([\d.]+)", text).group(1) == "13.2"  # type: ignore[union-attr]
    assert re.search(r"(\d+)MiB\s*/\s*(\d+)MiB", text).groups() == ("1000", "8192")  # type: ignore[union-attr]
    assert "00000000:10:00.0" in text and "37%" in text and "41C" in text and "123W / 700W" in text
    assert re.search(r"\|\s+0\s+N/A\s+N/A\s+4711\s+C\s+/usr/bin/python3\s+900MiB \|", text)
    assert "No running processes found" in smi(capsys, "-i", "1")
    long = device(name="A" * 60, processes=[Process(1, "/" + "b" * 90, 1)])
    assert {len(line) for line in smi(capsys, found=[long]).splitlines()[1:]} == {91}


def test_csv_as_gputil_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    fields = "index,uuid,utilization.gpu,memory.total,memory.used,memory.free,driver_version,name,gpu_serial," \
             "display_active,display_mode,temperature.gpu"  # fmt: skip
    output = smi(capsys, f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    lines = output.split(os.linesep)
    assert lines[-1] == "" and len(lines) == 3
    values = lines[0].split(", ")
    assert len(values) == 12
    assert int(values[0]) == 0 and values[1].startswith("GPU-")
    assert (float(values[2]), float(values[3]), float(values[4]), float(values[5])) == (37, 8192, 1000, 7192)
    assert values[7:11] == ["NVIDIA H200", "[N/A]", "Disabled", "Disabled"] and float(values[11]) == 41


def test_csv_headers_units_and_aliases(capsys: pytest.CaptureFixture[str]) -> None:
    fields = "timestamp,gpu_name,gpu_bus_id,count,compute_cap,memory.used,power.draw,utilization.memory,pstate," \
             "clocks.sm,fan.speed,mig.mode.current,gpu_uuid,persistence_mode"  # fmt: skip
    output = smi(capsys, f"--query-gpu={fields}", "--format=csv")
    rows = list(csv.DictReader(io.StringIO(output), skipinitialspace=True))
    assert len(rows) == 2
    first = rows[0]
    assert re.fullmatch(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.500", first["timestamp"])
    assert (first["name"], first["pci.bus_id"], first["count"]) == ("NVIDIA H200", "00000000:10:00.0", "2")
    assert (first["compute_cap"], first["memory.used [MiB]"], first["power.draw [W]"]) == (
        "9.0",
        "1000 MiB",
        "123.46 W",
    )
    assert (first["utilization.memory [%]"], first["pstate"], first["fan.speed [%]"]) == ("12 %", "P0", "[N/A]")
    assert (first["clocks.current.sm [MHz]"], first["mig.mode.current"]) == ("1980 MHz", "Disabled")
    bare = smi(capsys, "--query-gpu=power.draw,fan.speed", "--format=csv,nounits", "-i", "0")
    assert bare.splitlines() == ["power.draw [W], fan.speed [%]", "123.46, [N/A]"]
    # What is told with spaces between, or in two words, is the same.
    assert (
        smi(capsys, "--query-gpu", "name, memory.total", "--format", "csv,noheader", "--id=1")
        == "NVIDIA H200, 8192 MiB\n"
    )


def test_compute_apps(capsys: pytest.CaptureFixture[str]) -> None:
    output = smi(capsys, "--query-compute-apps=pid,name,used_memory,gpu_uuid", "--format=csv")
    assert output.splitlines() == [
        "pid, process_name, used_gpu_memory [MiB], gpu_uuid",
        "4711, /usr/bin/python3, 900 MiB, GPU-00000000-aaaa-bbbb-cccc-dddddddddddd",
    ]
    assert smi(capsys, "--query-compute-apps=pid", "--format=csv,noheader", "-i", "1").strip() == ""


def test_every_field_that_is_offered_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for option, flag in (("--query-gpu", "--help-query-gpu"), ("--query-compute-apps", "--help-query-compute-apps")):
        names = re.findall(r'^"(.+)"$', smi(capsys, flag), re.MULTILINE)
        assert len(names) >= 8
        for known in (device(), device(metrics={}, driver="", pci_bus_id="", cuda_version=0, total_bytes=0)):
            line = smi(capsys, f"{option}={','.join(names)}", "--format=csv,noheader", found=[known])
            assert len(line.strip().split(", ")) == len(names)


def test_q_as_text_and_xml(capsys: pytest.CaptureFixture[str]) -> None:
    text = smi(capsys, "-q")
    assert re.search(r"^Attached GPUs\s+: 2$", text, re.MULTILINE)
    assert re.search(r"^GPU 00000000:10:00\.0$", text, re.MULTILINE)
    memory = text[text.index("FB Memory Usage") :]
    assert re.search(r"Total\s+: 8192 MiB\n", memory)
    root = ElementTree.fromstring(smi(capsys, "-q", "-x").partition("?>")[2])
    assert root.findtext("driver_version") == "580.95.05" and root.findtext("attached_gpus") == "2"
    gpu = root.findall("gpu")[0]
    assert gpu.findtext("product_name") == "NVIDIA H200" and gpu.findtext("fb_memory_usage/used") == "1000 MiB"
    assert gpu.findtext("utilization/gpu_util") == "37 %" and gpu.findtext("processes/process_info/pid") == "4711"
    evil = device(processes=[Process(1, "a\x00\x1b]<&>\ud800b", 1)])
    ElementTree.fromstring(smi(capsys, "-q", "-x", found=[evil]).encode("utf-8", "replace"))
    short = smi(capsys, "-q", "-d", "MEMORY", "-i", "1")
    assert "FB Memory Usage" in short and "Product Name" not in short


def test_devices_are_chosen_by_index_uuid_and_bus(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("1", device(1).uuid, "00000000:11:00.0", "0000:11:00.0"):
        assert smi(capsys, "-L", "-i", word).startswith("GPU 1:")
    assert len(smi(capsys, "-L", "-i", "1,0").splitlines()) == 2
    for word in ("2", "0,7", ""):
        refused = ending("-L", "-i", word)
        assert (str(refused), refused.code) == ("No devices were found", 6)
    assert ending(found=[]).code == 6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--query-gpu=index,memory.totl", "--format=csv"), 'Field "memory.totl" is not a valid field to query.'),
        (("--query-gpu=", "--format=csv"), 'Field "" is not a valid field to query.'),
        (("--query-compute-apps=utilization.gpu", "--format=csv"), "is not a valid field to query."),
        (("--query-gpu=index",), "--format="),
        (("--query-gpu=index", "--format=json"), "--format="),
        (("--wrong",), "Invalid combination of input arguments. Please run 'nvidia-smi -h' for help."),
        (("-r",), "Invalid combination"),
        (("-pl", "300"), "Invalid combination"),
        (("-L", "-q"), "Only one of"),
        (("-x",), "belong to -q"),
        (("-q", "-d", "COLOUR"), "COLOUR"),
        (("-i",), "needs a value"),
        (("-l", "0"), "not an interval"),
    ],
)
def test_wrong_arguments_end_with_2_before_anybody_is_asked(arguments: tuple[str, ...], sentence: str) -> None:
    def ask() -> list[Device]:
        raise AssertionError("asked")

    with pytest.raises(nvidia.Ending) as raised:
        nvidia.run(list(arguments), ask, lambda: 0.0)
    assert sentence in str(raised.value) and raised.value.code == 2


# ------------------------------------------------------------------------------------------------ with a server


def run(address: str, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "PYTHON"))}
    variables = {**kept, "HOME": "/nonexistent", "ORION_SERVER": address, "ORION_PYTHON": sys.executable, **extra}
    return subprocess.run([SCRIPT, *arguments], env=variables, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def equipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    """Two softgpus behind a server that has an NVML whose values are known, and gives quarters."""
    library = tmp_path_factory.mktemp("nvml") / LIBNVML
    source = ROOT / "tests" / "programs" / "fake_nvml.c"
    subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTGPU_DEVICES", "2")
        running = PrivateServer("softgpu", extra=("--nvml", str(library), "--vgpu-count", "4"))
    with running:
        yield running


def holder(address: str, **extra: str) -> subprocess.Popen[str]:
    """A program that holds memory on its device 0 until its stdin ends. nvidia-ml-py is there for tests."""
    pytest.importorskip("pynvml")
    code = "import sys, runpy; sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0]); sys.stdin.read()"
    variables = {**os.environ, "LD_LIBRARY_PATH": str(client_folder()), "ORION_SERVER": address, **extra}
    program = subprocess.Popen([sys.executable, "-c", code, str(REPORT), str(HELD_MIB << 20)], env=variables, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert program.stdout is not None and program.stdout.readline().startswith("{")
    return program


def test_before_a_program_runs_one_sees_what_it_would_get(equipped: PrivateServer) -> None:
    listed = run(equipped.address, "-L")
    assert listed.returncode == 0, listed
    assert len(listed.stdout.splitlines()) == 2
    assert len(run(equipped.address, "-L", ORION_VGPU="1").stdout.splitlines()) == 1
    fields = "--query-gpu=memory.total,memory.used,utilization.gpu,temperature.gpu,driver_version"
    line = run(equipped.address, fields, "--format=csv,noheader", ORION_GMEM="512", ORION_VGPU="1").stdout
    assert line == "512 MiB, 0 MiB, 71 %, 41, 999.88.07\n"


def test_programs_of_this_container_and_no_others(equipped: PrivateServer) -> None:
    mine = {"ORION_GROUP_ID": "mine", "ORION_GMEM": "256", "ORION_VGPU": "1"}
    with holder(equipped.address, **mine) as one, holder(equipped.address, ORION_GROUP_ID="others", ORION_VGPU="1"):
        apps = run(
            equipped.address, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits", **mine
        ).stdout
        (line,) = apps.splitlines()
        pid, used = line.split(", ")
        assert int(pid) == one.pid and int(used) >= HELD_MIB
        memory = ("--query-gpu=memory.total,memory.used", "--format=csv,noheader,nounits")
        (held,) = run(equipped.address, *memory, **mine).stdout.splitlines()
        assert held.split(", ")[0] == "256" and HELD_MIB <= int(held.split(", ")[1]) <= 256
        with holder(equipped.address, **mine) as two:
            answers = run(equipped.address, *memory, **mine).stdout.splitlines()
            assert sum(int(a.split(", ")[0]) for a in answers) == 512  # on one GPU or on two
            assert sum(int(a.split(", ")[1]) for a in answers) >= 2 * HELD_MIB
            apps = run(equipped.address, "--query-compute-apps=pid", "--format=csv,noheader", **mine).stdout
            assert {int(pid) for pid in apps.split()} == {one.pid, two.pid}


def test_a_shared_vgpu_is_counted_once(equipped: PrivateServer) -> None:
    box = {"ORION_GROUP_ID": "box", "ORION_RES_GROUP": "BOX", "ORION_GMEM": "256", "ORION_VGPU": "1"}
    with holder(equipped.address, **box), holder(equipped.address, **box):
        (line,) = run(equipped.address, "--query-gpu=memory.total,memory.used", "--format=csv,noheader,nounits",
                      **box).stdout.splitlines()  # fmt: skip
        assert line.split(", ")[0] == "256" and int(line.split(", ")[1]) >= 2 * HELD_MIB


def test_without_a_server_it_fails_as_without_a_driver() -> None:
    done = run("127.0.0.1:1", "-L")
    assert done.returncode == 9
    assert "couldn't communicate with the NVIDIA driver" in done.stdout
    assert "nothing answers at 127.0.0.1:1" in done.stderr
    assert run("nonsense:port").returncode == 9


def test_loops_until_nobody_reads(equipped: PrivateServer) -> None:
    command = f"{SCRIPT} --query-gpu=index --format=csv -lms 50 | head -4"
    variables = {**os.environ, "ORION_SERVER": equipped.address, "ORION_PYTHON": sys.executable}
    done = subprocess.run(["sh", "-c", command], env=variables, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["index", "0", "1", "0"] and done.stderr == ""


def test_orion_smi_answers_options_of_nvidia_smi(equipped: PrivateServer) -> None:
    line = [sys.executable, "-m", "orion_client.smi", "-L"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "ORION_SERVER": equipped.address}
    done = subprocess.run(line, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("GPU 0: ")
    table = subprocess.run(line[:-1], env=variables, capture_output=True, text=True, timeout=60)
    assert "71 %" in table.stdout and "41 C" in table.stdout and "+=====" in table.stdout


# ------------------------------------------------------------------------------------------------ with a controller


def test_with_a_controller_the_groups_servers_are_asked(
    equipped: PrivateServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("ORION_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ORION_GROUP_ID", "mine")
    monkeypatch.setenv("ORION_VGPU", "2")
    monkeypatch.setenv("ORION_GMEM", "256")
    plain = SimulatedServer.register

    def register(self: SimulatedServer) -> Any:
        said = plain(self)
        said.address = equipped.address
        return said

    monkeypatch.setattr(SimulatedServer, "register", register)

    async def body(pool: World) -> None:
        monkeypatch.setenv("ORION_CONTROLLER", pool.address)
        linked = pool.server("a", key="server key")
        await pool.joined("a")
        with pytest.raises(ServerUnreachable, match="client key"):
            await asyncio.to_thread(devices)
        monkeypatch.setenv("ORION_CLIENT_KEY", "client key")
        # Nothing is given out yet: scripts must count what will be.
        expected = await asyncio.to_thread(devices)
        assert [(d.is_placed, d.total_bytes >> 20) for d in expected] == [(False, 256)] * 2
        assert len({d.uuid for d in expected}) == 2
        assert nvidia.run(["-L"], lambda: expected, lambda: 0.0) == 0
        assert nvidia.run([], lambda: expected, lambda: 0.0) == 0
        assert nvidia.run(["-q", "-x"], lambda: expected, lambda: 0.0) == 0
        given = await pool.client().allocate(group="mine", key="client key")
        session = linked.attach(given.servers[0].ticket)
        linked.simulated.sessions[session].group = "mine"  # as orion-server tells it
        linked.link.changed()
        await pool.until(lambda: any(s.group == "mine" for s in pool.controller.pool.servers["a"].sessions.values()))
        told = await asyncio.to_thread(pool_port.lookup, settings.controllers(), "mine")
        assert list(told.servers) == [equipped.address] and told.totals["nodes"] == 1
        with holder(equipped.address, ORION_GROUP_ID="mine", ORION_VGPU="1", ORION_GMEM="256") as program:
            (held,) = await asyncio.to_thread(devices)
            assert held.is_placed and [p.pid for p in held.processes] == [program.pid]

    async def whole() -> None:
        async with world(tmp_path, keys=Keys(server="server key", client="client key")) as pool:
            await body(pool)

    asyncio.run(whole())


def test_a_replica_that_does_not_lead_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORION_CLIENT_KEY", raising=False)

    async def whole() -> None:
        async with world(tmp_path) as pool:
            found = await asyncio.to_thread(pool_port.lookup, ["127.0.0.1:1", pool.address], "g")
            assert list(found.servers) == []
            pool.controller._loaded = False  # it has stepped down
            with pytest.raises(ServerUnreachable, match="does not lead"):
                await asyncio.to_thread(pool_port.lookup, [pool.address], "g")

    asyncio.run(whole())
