"""The three commands as processes: help, wrong usage, a controller and an API server that are away, and SIGTERM."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orion_k8s.dra import DRIVER

ROOT = Path(__file__).resolve().parent.parent.parent
MODULES = {
    "orion-scheduler": "orion_k8s.scheduler.cli",
    "orion-device-plugin": "orion_k8s.device_plugin.cli",
    "orion-dra-driver": "orion_k8s.dra.cli",
}
WAIT_S = 60.0


def command(name: str) -> list[str]:
    return [sys.executable, "-c", f"from {MODULES[name]} import main; main()"]


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ORION_", "KUBE"))}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}


def ended(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command(name), *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True,
                          timeout=WAIT_S, check=False)  # fmt: skip


@pytest.mark.parametrize(("name", "says"), [
    ("orion-scheduler", "--controller-token-file"), ("orion-device-plugin", "--kubelet-dir"),
    ("orion-dra-driver", "publish"),
])  # fmt: skip
def test_help_names_the_options(name: str, says: str) -> None:
    told = ended(name, "--help")
    assert told.returncode == 0 and says in told.stdout and not told.stderr


@pytest.mark.parametrize(("name", "arguments", "sentence"), [
    ("orion-scheduler", ["--no-such-option"], "No such option"),
    ("orion-scheduler", ["--controller", "somewhere"], "--controller is the URL"),
    ("orion-scheduler", ["--listen", "0.0.0.0:8888"], "loopback only"),
    ("orion-scheduler", ["--webhook-listen", "127.0.0.1:0"], "--tls-cert"),
    ("orion-scheduler", [], "give a kubeconfig"),
    ("orion-device-plugin", ["--no-such-option"], "No such option"),
    ("orion-device-plugin", [], "ORION_CONTROLLER"),
    ("orion-dra-driver", ["publish", "--no-such-option"], "No such option"),
    ("orion-dra-driver", ["publish", "--controller-url", "http://127.0.0.1:9"], "give a kubeconfig"),
])  # fmt: skip
def test_wrong_usage_ends_with_two_and_a_sentence(name: str, arguments: list[str], sentence: str) -> None:
    told = ended(name, *arguments)
    assert told.returncode == 2 and sentence in told.stderr and "Traceback" not in told.stderr


def closed_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def started(folder: Path, name: str) -> list[str]:
    """Arguments with which it starts, and finds nobody: neither a controller nor an API server nor a kubelet."""
    url = f"http://127.0.0.1:{closed_port()}"
    kubeconfig, token = folder / "kubeconfig", folder / "token"
    token.write_text("t")
    kubeconfig.write_text(json.dumps({
        "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}], "users": [{"name": "u", "user": {}}],
    }))  # fmt: skip
    dra = ["--controller-url", url, "--controller-token-file", str(token), "--kubeconfig", str(kubeconfig)]
    return {
        "orion-scheduler": ["--controller", url, "--controller-token-file", str(token), "--kubeconfig",
                            str(kubeconfig), "--listen", "127.0.0.1:0"],
        "orion-device-plugin": ["--controller", "127.0.0.1:9123", "--controller-url", url, "--kubelet-dir",
                                str(folder), "--api-token-file", str(token), "--poll", "0.1"],
        "publish": ["publish", *dra],
        "node": ["node", *dra, "--controller", "127.0.0.1:9123", "--cdi-folder", str(folder / "cdi"),
                 "--plugins-folder", str(folder / "plugins"), "--registry-folder", str(folder / "registry")],
    }[name]  # fmt: skip


@pytest.fixture
def short_path() -> Iterator[Path]:
    """pytest's own folders have names that are too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="orion-k8s-") as folder:
        yield Path(folder)


@pytest.mark.parametrize(("name", "part", "says"), [
    ("orion-scheduler", "orion-scheduler", "could not be compared"),
    ("orion-device-plugin", "orion-device-plugin", "no list of vGPUs"),
    ("orion-dra-driver", "publish", "is not followed"),
    ("orion-dra-driver", "node", "(it says nothing: it has registered)"),
])  # fmt: skip
def test_it_waits_for_who_is_away_and_ends_well_when_told(short_path: Path, name: str, part: str, says: str) -> None:
    for folder in ("plugins", "registry", "cdi"):
        (short_path / folder).mkdir()
    process = subprocess.Popen([*command(name), *started(short_path, part)], cwd=ROOT, env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    assert process.stdout is not None
    told = b""
    try:
        until_s = time.monotonic() + WAIT_S
        registered = short_path / "registry" / f"{DRIVER}-reg.sock"
        while says.encode() not in told and not (part == "node" and registered.exists()):
            assert process.poll() is None and time.monotonic() < until_s, told.decode()
            if select.select([process.stdout], [], [], 0.1)[0]:
                told += os.read(process.stdout.fileno(), 65536)
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0 and b"Traceback" not in told + rest, (told + rest).decode()
