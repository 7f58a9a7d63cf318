"""ORION_STATS: what the client library counts, on softgpu."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orion_client.libraries import client_folder
from orion_client.private_server import PrivateServer

ROOT = Path(__file__).resolve().parents[2]
COPIED_BYTES = 3_000_000


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with PrivateServer("softgpu") as running:
        yield running


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("statistics") / "counted"
    source = ROOT / "tests" / "programs" / "counted.c"
    command = ["gcc", "-std=gnu11", "-Wall", "-Werror", f"-I{ROOT / 'wire' / 'include'}", str(source), "-o", str(built)]
    subprocess.run([*command, "-ldl"], check=True)
    return built


def run(server: PrivateServer, program: Path, stats: str | None, **extra: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "CUDA_"))}
    environment = {**clean, "LD_LIBRARY_PATH": str(client_folder()), "ORION_SERVER": server.address, **extra}
    if stats is not None:
        environment["ORION_STATS"] = stats
    return subprocess.run([program], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_json_counts_calls_waits_and_bytes(
    server: PrivateServer, program: Path, transport: str, tmp_path: Path
) -> None:
    done = run(server, program, f"json:{tmp_path}/%p.json", ORION_TRANSPORT=transport)
    assert (done.returncode, done.stderr) == (0, "")
    (file,) = tmp_path.iterdir()  # the forked child, which exits normally too, wrote none
    told = json.loads(file.read_text())
    assert file.name == f"{told['pid']}.json"
    functions = told["functions"]
    assert all(name.startswith("cu") or name == "(outside)" for name in functions)
    assert functions["cuMemsetD8Async"]["calls"] == 100
    assert functions["cuMemsetD8Async"]["waits"] == 0
    assert functions["cuMemcpyHtoD_v2"]["calls"] == 2
    assert COPIED_BYTES <= functions["cuMemcpyHtoD_v2"]["bytes_out"] < COPIED_BYTES + 4096
    assert COPIED_BYTES <= functions["cuMemcpyDtoH_v2"]["bytes_in"] < COPIED_BYTES + 4096
    # Asked and answered once; the device's attributes are local.
    assert functions["cuDevicePrimaryCtxRetain"]["waits"] == 1
    assert functions["cuDeviceGetAttribute"] == {
        "calls": 7, "waits": 0, "bytes_out": 0, "bytes_in": 0, "wait_ns": 0,
        **{key: functions["cuDeviceGetAttribute"][key] for key in ("total_ns", "first_at_ns", "first_ns")},
    }  # fmt: skip
    for key in ("calls", "waits", "bytes_out", "bytes_in", "total_ns", "wait_ns"):
        assert told["total"][key] == sum(row[key] for row in functions.values())
    assert all(row["wait_ns"] <= row["total_ns"] for name, row in functions.items() if name != "(outside)")


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_attach_is_told_by_stages(server: PrivateServer, program: Path, transport: str, tmp_path: Path) -> None:
    assert run(server, program, f"json:{tmp_path}/it", ORION_TRANSPORT=transport).returncode == 0
    told = json.loads((tmp_path / "it").read_text())
    attach = told["attach"]
    assert 0 < attach["config_ns"] < attach["total_ns"]
    (one,) = attach["servers"]
    assert (one["address"], one["transport"]) == (server.address, transport)
    assert isinstance(one["warm"], bool)
    assert set(one["stages_ns"]) == {"connect", "attach", "reserve", "bind", "open", "close"}
    assert sum(one["stages_ns"].values()) <= attach["total_ns"]
    assert {"worker", "prepare", "bind", "map", "reserve", "register"} <= set(one["server_ns"])
    assert ("lanes" in one["server_ns"]) == (transport == "tcp")
    # When a function was called first: after the attach, in the order of the program.
    first = {name: row["first_at_ns"] for name, row in told["functions"].items()}
    assert attach["total_ns"] <= first["cuDevicePrimaryCtxRetain"] < first["cuMemcpyHtoD_v2"]
    assert all(0 < row["first_ns"] <= row["total_ns"] for name, row in told["functions"].items() if row["calls"])


def test_the_log_tells_the_stages_too(server: PrivateServer, program: Path) -> None:
    (line,) = (s for s in run(server, program, None, ORION_LOG="info").stderr.splitlines() if "attach took" in s)
    assert server.address in line and "bind" in line and line.endswith(" worker)")


def test_table_on_stderr(server: PrivateServer, program: Path) -> None:
    lines = run(server, program, "1").stderr.splitlines()
    assert lines[1].split()[:3] == ["function", "calls", "waits"]
    assert any(line.split()[:3] == ["cuMemsetD8Async", "100", "0"] for line in lines)
    assert any(line.startswith("total ") for line in lines)
    assert any(line.startswith("images: 0 known to the server") for line in lines)
    assert lines[-1].startswith("attach: ") and lines[-1].endswith(" worker)")


@pytest.mark.parametrize("wish", [None, "0"])
def test_off_says_nothing(server: PrivateServer, program: Path, wish: str | None) -> None:
    done = run(server, program, wish)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("wish", ["2", "json:", "yes"])
def test_a_wrong_value_is_refused_by_name(server: PrivateServer, program: Path, wish: str) -> None:
    done = run(server, program, wish)
    assert done.returncode != 0
    assert f"ORION_STATS={wish} is not valid: expected 0, 1 or json:PATH" in done.stderr


def test_a_path_that_cannot_be_written_is_told(server: PrivateServer, program: Path, tmp_path: Path) -> None:
    done = run(server, program, f"json:{tmp_path}/none/x.json")
    assert done.returncode == 0
    assert "cannot write the statistics to" in done.stderr
