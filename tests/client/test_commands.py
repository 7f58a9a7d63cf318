"""orion-run, orion-smi and orion-check as a user meets them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from orion_client import libraries, settings
from orion_client.private_server import PrivateServer
from orion_client.smi.tables import vgpu_table
from orion_client.text import printable

ROOT = Path(__file__).resolve().parent.parent.parent


def command(name, *arguments, home=None, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ORION_")}
    variables = {**kept, "PYTHONPATH": str(ROOT), "HOME": str(home or "/nonexistent"), **environment}
    line = [sys.executable, "-m", f"orion_client.{name}", *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=variables, timeout=120)


def dead_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def server():
    with PrivateServer("softgpu") as running:
        yield running


@pytest.mark.parametrize("name", ["run", "smi", "check"])
def test_help_and_version(name):
    helped = command(name, "--help")
    assert helped.returncode == 0
    assert f"orion-{name}" in helped.stdout
    assert command(name, "--version").stdout.startswith(f"orion-{name} ")


def test_run_sets_the_environment_and_keeps_the_users_preload(server, tmp_path):
    show = "import os, json; print(json.dumps(dict(os.environ)))"
    result = command("run", "--server", server.address, "--transport", "tcp", "--vgpu", "1", "--gmem", "512",
                     "--sync", "--", sys.executable, "-c", show,
                     LD_PRELOAD="libm.so.6", LD_LIBRARY_PATH="/elsewhere", PATH="/usr/bin:/bin")  # fmt: skip
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    folder = libraries.client_folder()
    assert seen["LD_PRELOAD"].split(":") == [str(folder / "libcuda.so.1"), "libm.so.6"]
    assert seen["LD_LIBRARY_PATH"].split(":") == [str(folder), "/elsewhere"]
    assert seen["TRITON_LIBCUDA_PATH"] == str(folder)
    assert seen["ORION_SERVER"] == server.address
    assert seen["PATH"] == f"{Path(libraries.__file__).parent / 'bin'}:/usr/bin:/bin"
    wanted = {"ORION_TRANSPORT": "tcp", "ORION_VGPU": "1", "ORION_GMEM": "512", "ORION_SYNC": "1"}
    assert {key: seen[key] for key in wanted} == wanted


def test_run_leaves_another_nvidia_smi_alone(server, tmp_path):
    real = tmp_path / "nvidia-smi"
    real.write_text("#!/bin/sh\necho the real one\n")
    real.chmod(0o755)
    done = command("run", "--server", server.address, "--", "nvidia-smi", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert done.stdout == "the real one\n", done


def test_run_with_a_controller_names_no_server():
    show = "import os; print(os.environ['ORION_CONTROLLER'], os.environ.get('ORION_SERVER'))"
    program = ("--", sys.executable, "-c", show)
    assert command("run", "--controller", "pool", *program).stdout == "pool:9123 None\n"
    assert command("run", *program, ORION_CONTROLLER="a:1,b").stdout == "a:1,b:9123 None\n"
    # A server that is named goes before, as it does in the library.
    assert command("run", *program, ORION_CONTROLLER="a:1", ORION_SERVER="s").stdout == "a:1 s:9960\n"
    assert command("run", "--server", "s", "--controller", "c", *program).returncode == 125


def test_run_ends_as_the_program_does(server):
    on = ("--server", server.address, "--", sys.executable, "-c")
    assert command("run", *on, "import sys; sys.exit(7)").returncode == 7
    killed = command("run", *on, "import os; os.kill(os.getpid(), 15)")
    assert killed.returncode == -signal.SIGTERM


def test_private_server_run_ends_as_the_program_does():
    on = ("--device", "softgpu", "--", sys.executable, "-c")
    assert command("run", *on, "import sys; sys.exit(7)").returncode == 7
    assert command("run", *on, "import os; os.kill(os.getpid(), 15)").returncode == -signal.SIGTERM


def test_private_server_run_passes_signals_on():
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(9))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    line = [sys.executable, "-m", "orion_client.run", "--device", "softgpu", "--", sys.executable, "-c", program]
    variables = {k: v for k, v in os.environ.items() if not k.startswith("ORION_")}
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env={**variables, "PYTHONPATH": str(ROOT)}) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        run.send_signal(signal.SIGUSR1)
        assert run.wait(60) == 9


def test_run_says_what_is_wrong(tmp_path):
    missing = command("run", "--server", "127.0.0.1:1", "--", "no-such-program-here")
    assert (missing.returncode, "no such program" in missing.stderr) == (127, True)
    text = tmp_path / "text"
    text.write_text("not a program")
    text.chmod(0o644)
    refused = command("run", "--server", "127.0.0.1:1", "--", str(text))
    assert (refused.returncode, "not executable" in refused.stderr) == (126, True)
    for arguments in ([], ["--transport", "pigeon", "--", "true"], ["--server", "nonsense:port", "--", "true"]):
        result = command("run", *arguments)
        assert result.returncode == 125
        assert len(result.stderr.splitlines()) == 1


def test_smi_shows_the_gpu(server):
    table = command("smi", "--server", server.address)
    assert table.returncode == 0, table.stderr
    assert "softgpu (CPU)" in table.stdout
    assert "no clients" in table.stdout
    assert "\x1b" not in table.stdout  # no colours into a pipe
    data = json.loads(command("smi", "--server", server.address, "--json").stdout)
    assert data[0]["gpus"][0]["name"] == "softgpu (CPU)"
    assert data[0]["gpus"][0]["uuid"].startswith("GPU-")
    assert data[0]["sessions"] == []


def test_smi_shows_vgpus_at_a_hundred_columns():
    vgpu = {"vgpu": "vgpu-12", "gpu": 0, "group": "a-team-with-a-name", "pids": [1], "quota_bytes": 79 << 30,
            "used_bytes": 40 << 30, "ratio": 50, "policy": "elastic", "achieved_10s": 0.4987,
            "throttled_ns": 12_345_600_000_000}  # fmt: skip
    free = {**vgpu, "vgpu": "vgpu-13", "group": "", "pids": [4711], "quota_bytes": 0, "ratio": 0}
    console = Console(width=100)
    with console.capture() as capture:
        console.print(vgpu_table([("127.0.0.1:9960", vgpu), ("127.0.0.1:9960", free)]))
    text = capture.get()
    assert len(text.splitlines()) == 7  # nothing is folded
    for cell in ("a-team-with-a-name", "40,960 / 80,896", "50 %", "49.9 %", "12,345.6 s", "elastic", "pid 4711",
                 "no quota"):  # fmt: skip
        assert cell in text, text


def test_smi_without_a_server_says_what_to_do():
    address = dead_address()
    result = command("smi", "--server", address)
    assert result.returncode == 1
    assert address in result.stdout and "ORION_SERVER" in result.stdout
    data = json.loads(command("smi", "--server", address, "--json").stdout)
    assert "error" in data[0]


def test_smi_shows_no_control_characters_of_a_client():
    assert printable("a\x1b[2Jb\n") == "a?[2Jb?"


def test_settings_environment_first_then_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ORION_SERVER", raising=False)
    assert settings.servers() == []
    (tmp_path / ".orion").mkdir()
    (tmp_path / ".orion" / "client.conf").write_text(
        "[client]\n# ORION_SERVER = 1.1.1.1:1\norion_server = gpu1, gpu2:77\n"
    )
    assert settings.servers() == ["gpu1:9960", "gpu2:77"]
    monkeypatch.setenv("ORION_SERVER", "gpu3:1")
    assert settings.servers() == ["gpu3:1"]
    monkeypatch.delenv("ORION_SERVER")
    for bad in ("host:", "host:99999", ":1", "host:port"):
        with pytest.raises(settings.SettingError):
            settings.parse_server(bad)


def test_controllers_and_servers_the_place_decides(tmp_path, monkeypatch):
    for name in ("ORION_SERVER", "ORION_CONTROLLER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings.controllers() == []
    (tmp_path / ".orion").mkdir()
    file = tmp_path / ".orion" / "client.conf"
    file.write_text("[controller]\ncontroller_addr = 10.0.0.1\n[client]\nenable_net = true\n")
    assert settings.controllers() == ["10.0.0.1:9123"]
    file.write_text("controller_addr = 10.0.0.1\nORION_SERVER = gpu1\n")
    assert settings.controllers() == []  # in one place the servers count
    monkeypatch.setenv("ORION_CONTROLLER", "a,b:7")
    assert settings.controllers() == ["a:9123", "b:7"]
    monkeypatch.setenv("ORION_SERVER", "gpu1")
    assert settings.controllers() == []
