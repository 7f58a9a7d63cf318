"""orionctl as an operator meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zmq

from orion_client import settings
from orion_client.private_server import PrivateServer
from wire import control

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
Ctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def server() -> Iterator[PrivateServer]:
    with PrivateServer("softgpu", extra=("--null-engine", "--vgpu-count", "4", "--bind-timeout", "300")) as running:
        yield running


def orionctl(server: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ORION_")}
    variables = {**kept, "PYTHONPATH": str(ROOT), "HOME": "/nonexistent", **environment}
    line = [sys.executable, "-m", "orion_client.ctl", "--server", server, *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=variables, timeout=60)


@pytest.fixture
def ctl(server: PrivateServer) -> Ctl:
    return partial(orionctl, server.address)


@pytest.fixture
def ctl_alone() -> Ctl:
    """Where nothing listens: what is told without asking."""
    return partial(orionctl, "127.0.0.1:1")


@pytest.fixture
def attach(server: PrivateServer) -> Iterator[Callable[..., Any]]:
    """A client process, as far as the server knows."""
    context = zmq.Context()
    connection = context.socket(zmq.DEALER)
    connection.connect(f"tcp://{server.address}")

    def ask(**changes: Any) -> Any:
        identity = {"pid": os.getpid(), "uid": os.geteuid(), "host": control.boot_id()}
        request = control.Attach(id=1, wire=control.WIRE_VERSION, transports=["shm", "tcp"], **{**identity, **changes})
        connection.send(control.encode(request))
        assert connection.poll(20_000)
        answer = control.decode_answer(connection.recv())
        assert isinstance(answer, control.Attached), answer
        return answer

    yield ask
    context.destroy(linger=0)


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("orionctl: ")
    return line


def test_help_teaches(ctl_alone: Ctl) -> None:
    text = ctl_alone("--help").stdout
    for command in ("orionctl list", "orionctl set GROUP --gmem 8192 --ratio 50", "orionctl configure", "drain"):
        assert command in text
    assert "ORION_ADMIN_TOKEN" in text and "Exit codes" in text
    assert "--shrink block" in ctl_alone("set", "--help").stdout
    for command in ("orionctl get nodes", "orionctl top", "orionctl login", "ORION_CONTROLLER_URL"):
        assert command in text
    assert ctl_alone("--version").stdout.startswith("orionctl ")


def test_list_and_set(ctl: Ctl, attach: Callable[..., Any]) -> None:
    empty = ctl("list")
    assert (empty.returncode, "no vGPUs" in empty.stdout) == (0, True)
    attach(group="team", res_group="BOX")
    attach(group="team", res_group="BOX")
    (listed,) = json.loads(ctl("list", "--json").stdout)["vgpus"]
    assert (listed["group"], listed["quota_bytes"], listed["ratio"], len(listed["sessions"])) == (
        "team", 2048 * MIB, 25, 2)  # fmt: skip
    done = ctl("set", "team", "--gmem", "4096", "--ratio", "50", "--policy", "elastic")
    assert done.returncode == 0, done.stderr
    assert "0 / 4,096" in done.stdout and "50 %" in done.stdout and "elastic" in done.stdout
    done = ctl("set", "team", "--ratio", "60", "--json")
    assert [v["ratio"] for v in json.loads(done.stdout)["vgpus"]] == [60]
    table = ctl("list").stdout
    assert "team" in table and "60 %" in table and "4,096 MiB and 40 % left" in table


def test_what_the_server_refuses_is_one_line_and_exit_code_1(ctl: Ctl, attach: Callable[..., Any]) -> None:
    attach(group="team-blue")
    text = one_line(ctl("set", "team-bleu", "--ratio", "50"), 1)
    assert "no group, session, process or vGPU is called 'team-bleu'" in text and "did you mean team-blue?" in text
    assert "left of 8,192 MiB" in one_line(ctl("set", "team-blue", "--gmem", "9000"), 1)
    text = one_line(ctl("set", "team-blue", "--ratio", "50", ORION_ADMIN_TOKEN="wrong"), 4)
    assert str(settings.runtime_folder() / "admin-token") in text
    assert "nothing answers" in one_line(ctl("--server", "127.0.0.1:1", "list"), 3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("set", "team"), "nothing to change"),
        (("configure",), "nothing to change"),
        (("set", "team", "--ratio", "0"), "--ratio"),
        (("set", "team", "--ratio", "101"), "--ratio"),
        (("set", "team", "--ratio", "abc"), "--ratio"),
        (("set", "team", "--gmem", "-5"), "--gmem"),
        (("set", "team", "--ratio", "5", "--policy", "soft"), "soft"),
        (("set",), "TARGET"),
        (("--server", "nonsense:port", "list"), "nonsense:port"),
        (("drain", "gpu1"), "no controller is named"),
        (("get", "nodes"), "leave --server out"),
        (("--token-file", "/nonexistent/token", "set", "team", "--ratio", "5"), "/nonexistent/token"),
    ],
)
def test_wrong_usage_is_exit_code_2(ctl_alone: Ctl, arguments: tuple[str, ...], sentence: str) -> None:
    done = ctl_alone(*arguments)
    assert done.returncode == 2, done
    assert sentence in done.stderr and "Traceback" not in done.stderr


def test_the_token_comes_from_a_file_or_the_environment(ctl: Ctl, attach: Callable[..., Any], tmp_path: Path) -> None:
    attach(group="team")
    token = settings.admin_token(None)
    file = tmp_path / "token"
    file.write_text(f"{token}\n")
    elsewhere = {"XDG_RUNTIME_DIR": "", "TMPDIR": str(tmp_path)}  # no server's folder is found there
    assert ctl("set", "team", "--ratio", "30", **elsewhere).returncode == 4
    assert ctl("--token-file", str(file), "set", "team", "--ratio", "30", **elsewhere).returncode == 0
    assert ctl("set", "team", "--ratio", "40", ORION_ADMIN_TOKEN=token, **elsewhere).returncode == 0


def test_configure(ctl: Ctl, attach: Callable[..., Any]) -> None:
    assert "1 of 2 parts" in ctl("configure", "--vgpu-count", "2").stdout
    assert attach().devices[0].total_bytes == 4096 * MIB
    done = ctl("configure", "--vgpu-count", "0", "--ratio-policy", "elastic", "--overcommit-ratio", "--json")
    assert json.loads(done.stdout)["defaults"] == {"vgpu_count": 0, "policy": "elastic", "overcommit_ratio": True}
    assert attach().devices[0].total_bytes == 8192 * MIB


def test_drain_waits_for_the_last_program(server: PrivateServer, ctl: Ctl, attach: Callable[..., Any]) -> None:
    assert json.loads(ctl("drain", "--json").stdout)["drained"] is True
    with pytest.raises(AssertionError, match="draining"):
        attach()
