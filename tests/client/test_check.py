"""orion-check: what it finds, what it says of it, and that the document says the same."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orion_client import config_file
from orion_client.check import catalogue, client, rdma
from orion_client.check.controller import pool_size
from orion_client.private_server import PrivateServer
from tests.client.pool_http import PoolServer

ROOT = Path(__file__).resolve().parents[2]
Check = Callable[..., tuple[int, dict[str, dict[str, Any]]]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Exit code, and findings by id, or by what was looked at where all is well."""

    def run(*arguments: str, **extra: str) -> tuple[int, dict[str, dict[str, Any]]]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("ORION_")}
        variables = {**kept, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), **extra}
        line = [sys.executable, "-m", "orion_client.check", *arguments, "--json"]
        done = subprocess.run(line, capture_output=True, text=True, env=variables, timeout=60)
        assert done.returncode in (0, 1), done
        findings = json.loads(done.stdout)
        assert all(finding["status"] == "ok" or finding["remedy"] for finding in findings)
        return done.returncode, {finding["id"] or finding["check"]: finding for finding in findings}

    return run


def dead_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with PrivateServer("softgpu", extra=("--vgpu-count", "4")) as running:
        yield running


def test_the_document_is_what_the_catalogue_says() -> None:
    assert catalogue.DOCUMENT.read_text(encoding="utf-8") == catalogue.document(), (
        "run python -m orion_client.check.catalogue"
    )


def test_every_trouble_of_the_catalogue_is_looked_for() -> None:
    folder = Path(client.__file__).parent
    sources = {p: p.read_text() for p in folder.glob("*.py") if p.name != "catalogue.py"}
    used = {word for text in sources.values() for word in re.findall(r'"([a-z]+(?:-[a-z0-9]+)+)"', text)}
    assert catalogue.TROUBLES.keys() <= used
    named = {id for text in sources.values() for id in re.findall(r'wrong\(\s*"([a-z0-9-]+)"', text)}
    assert named <= catalogue.TROUBLES.keys()


def test_a_good_set_up_passes(check: Check, server: PrivateServer) -> None:
    code, found = check("--server", server.address)
    assert code == 0, found
    assert "softgpu (CPU)" in found["server"]["message"]
    assert "1 of 1 GPU(s) have room" in found["vGPUs"]["message"]
    for name in ("platform", "client libraries", "versions", "transport", "configuration", "shared memory"):
        assert found[name]["status"] == "ok", found[name]


def test_text_and_usage(server: PrivateServer) -> None:
    line = [sys.executable, "-m", "orion_client.check"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "ORION_SERVER": dead_address()}
    done = subprocess.run([*line, "runtime", "client"], capture_output=True, text=True, env=variables, timeout=60)
    assert done.returncode == 1 and "\x1b" not in done.stdout
    assert "[server-unreachable]" in done.stdout and "      -> Start orion-server there" in done.stdout
    assert subprocess.run([*line, "runtime", "moon"], capture_output=True, env=variables, timeout=60).returncode == 2


def test_faults_of_a_client(check: Check, tmp_path: Path) -> None:
    code, found = check(ORION_SERVER=dead_address(), ORION_TRANSPORT="pigeon")
    assert code == 1 and "ORION_TRANSPORT=pigeon" in found["setting-invalid"]["message"]
    assert "auto, shm, ucx or tcp" in found["setting-invalid"]["message"]
    assert found["server-unreachable"]["status"] == "fail"
    other = tmp_path / "libcuda.so.1"
    other.write_bytes(b"another driver")
    code, found = check("install", LD_PRELOAD=str(other))
    assert code == 0
    code, found = check(LD_PRELOAD=str(other), LD_LIBRARY_PATH=str(tmp_path))
    assert code == 1 and {"preload-foreign", "library-path-foreign", "server-none"} <= found.keys()
    code, found = check(LD_PRELOAD="/nonexistent/lib.so")
    assert code == 0 and found["preload-missing"]["status"] == "warn"
    assert "server-none" in check()[1]


def test_a_preloaded_library_is_seen_in_programs(check: Check, server: PrivateServer) -> None:
    library = client.libraries.client_folder() / "libcuda.so.1"
    code, found = check("--server", server.address, LD_PRELOAD=str(library))
    assert code == 0 and "is in programs" in found["LD_PRELOAD"]["message"]


def test_each_line_of_client_conf_is_judged(check: Check, tmp_path: Path) -> None:
    (tmp_path / ".orion").mkdir()
    file = tmp_path / ".orion" / "client.conf"
    file.write_text(
        "[controller]\ncontroller_addr = 10.0.0.1:9123\n[client]\nenable_net = true\nORION_RATIOO = 5\n"
        "ORION_RATIO = 500\nnonsense\n[client-log]\nlog_level = INFO\n[client-shm]\nshm_path_base = /dev/shm/\n"
    )
    kinds = [(t.kind, t.line) for t in config_file.troubles(file)]
    assert kinds == [("without_effect", 4), ("unknown", 5), ("invalid", 6), ("syntax", 7), ("without_effect", 9),
                     ("without_effect", 11)]  # fmt: skip
    code, found = check("install")
    assert code == 0  # what is installed is well
    code, found = check("--server", dead_address())
    assert code == 1
    assert f"{file}:6: ORION_RATIO = 500 is not a number from 1 to 100" in found["setting-invalid"]["message"]
    assert "ORION_RATIOO" in found["setting-unknown"]["message"]
    assert config_file.troubles(tmp_path / "none") == []


def test_what_rdma_needs(check: Check, server: PrivateServer, tmp_path: Path) -> None:
    _, found = check("--server", server.address)
    assert "UCX" not in found  # nobody asks for it, and there is no device
    _, found = check("--server", server.address, ORION_TRANSPORT="ucx", ORION_IBVERBS_DEVICE="mlx5_7")
    assert "mlx5_7" in found["rdma-no-device"]["message"]
    (tmp_path / "libucp.so.0").write_text("not a library")
    _, found = check("--server", server.address, ORION_TRANSPORT="ucx", LD_LIBRARY_PATH=str(tmp_path))
    assert found["ucx-missing"]["status"] == "warn"
    for port, state in (("mlx5_0/ports/1", "4: ACTIVE"), ("mlx5_0/ports/2", "1: DOWN")):
        (tmp_path / port).mkdir(parents=True)
        (tmp_path / port / "state").write_text(state + "\n")
    assert rdma.ports(tmp_path) == (["mlx5_0:1"], ["mlx5_0:2"])


def test_keys_that_the_library_reads_are_known() -> None:
    source = (ROOT / "shim" / "src" / "session" / "config.c").read_text()
    read = set(re.findall(r'"(ORION_[A-Z_0-9]+)"', source))
    assert len(read) > 15
    assert {name.lower() for name in read} <= config_file.KEYS.keys()


def test_faults_of_a_server(check: Check, server: PrivateServer, tmp_path: Path) -> None:
    host, _, port = server.address.rpartition(":")
    conf = tmp_path / "server.conf"
    conf.write_text(f"[server]\nlisten_port = {port}\nbind_addr = {host}\nenable_kvm = true\nenable_rdma = true\n")
    folder = tmp_path / f"orion-{os.geteuid()}"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    token = folder / "admin-token"
    token.write_text("secret")
    token.chmod(0o644)
    private = {"XDG_RUNTIME_DIR": "", "TMPDIR": str(tmp_path)}
    code, found = check("runtime", "server", "--config", str(conf), **private)
    assert code == 1
    assert {"private-folder-open", "admin-token-readable", "server-conf-unknown"} <= found.keys()
    if not rdma.ports()[0]:
        assert "no device has a link" in found["rdma-no-device"]["message"]
        assert "with verbs" in found["UCX"]["message"]
    assert "runs on" in found["port"]["message"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        conf.write_text(f"[server]\nlisten_port = {taken.getsockname()[1]}\n")
        assert "port-in-use" in check("runtime", "server", "--config", str(conf), "--timeout", "0.5", **private)[1]
    conf.write_text("[server]\nvgpu_count = many\n")
    code, found = check("runtime", "server", "--config", str(conf), **private)
    assert code == 1 and "vgpu_count" in found["server-conf-invalid"]["message"]
    conf.write_text("[server]\nlisten_port = 1\nbind_addr = 127.0.0.1\n")
    assert {"server-not-running", "port-not-bindable"} & check("runtime", "server", "--config", str(conf))[1].keys()


def test_a_controller_is_asked(check: Check, tmp_path: Path) -> None:
    pool = PoolServer()
    try:
        code, found = check("runtime", "controller", "--controller", pool.url, ORION_TOKEN="viewer-token")
        assert code == 0, found
        expected = "There are 16 vGPUs under control of the controller, 12 are free now"
        assert found["pool"]["message"] == expected
        assert found["clocks"]["status"] == "ok" and found["nodes"]["status"] == "ok"
        code, found = check("runtime", "controller", "--controller", pool.url)
        assert code == 0 and "controller-token" in found
    finally:
        pool.close()
    code, found = check("runtime", "controller", "--controller", pool.url, ORION_CONTROLLER=dead_address())
    assert code == 1 and {"controller-http-unreachable", "controller-unreachable"} <= found.keys()
    assert "controller-none" in check("runtime", "controller")[1]
    assert (pool_size(4, 0, 1).id, pool_size(0, 0, 0).id, pool_size(0, 4, 1).id) == ("pool-full", "pool-empty", "")
    conf = tmp_path / "controller.yaml"
    conf.write_text("controller: [\n")
    code, found = check("install", "controller")
    assert "orion-controller" in found or "controller-not-installed" in found
    assert str(conf) in check("runtime", "controller", "--config", str(conf))[1]["controller-conf-invalid"]["message"]
    conf.write_text("controller:\n  listen_ip: 0.0.0.0\n  listen_portt: 1\n")
    found = check("runtime", "controller", "--config", str(conf))[1]
    assert "listen_portt" in found["controller-conf-unknown"]["message"]
    assert "client-key" in found["controller-exposed"]["message"] or "0.0.0.0" in found["controller-exposed"]["message"]
