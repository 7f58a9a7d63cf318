"""Who gets an answer on an encrypted control port, and what the others are told."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from orion_server.config import ConfigError, Settings
from orion_server.network import ClientKey, cautions, check_exposed, uses_curve
from tests.security.server import ROOT, TIMEOUT_S, Server, copy, environment

CLIENT_KEY = "0123456789abcdef0123456789abcdef"
NO_DEVICE = 100
NOT_PERMITTED = 800


@pytest.fixture(scope="module")
def client_key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "client-key"
    path.write_text(f"{CLIENT_KEY}\n")
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, client_key_file: Path) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("s"), "--client-key-file", str(client_key_file)) as running:
        yield running


def smi(server: Server, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orion_client.smi", "--server", server.address],
        env=environment(**settings), capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip


def test_the_key_pair_is_made_once_and_is_nobody_elses(server: Server, tmp_path: Path) -> None:
    secret = server.log_file.parent / "server-key"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert zmq.curve_public(secret.read_text().strip().encode()).decode() == server.key
    assert server.key in server.log and secret.read_text().strip() not in server.log


def test_both_keys_open_a_session(server: Server) -> None:
    ran = copy(server.address, server.key, ORION_CLIENT_KEY=CLIENT_KEY)
    assert ran.found == {"code": 0, "rounds": 2, "same": True}


def test_keys_from_client_conf(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".orion").mkdir()
    (tmp_path / ".orion" / "client.conf").write_text(
        f"[client]\nORION_SERVER = {server.address}\nORION_SERVER_KEY = {server.key}\nORION_CLIENT_KEY = {CLIENT_KEY}\n"
    )
    assert copy("", "", HOME=str(tmp_path)).found["code"] == 0
    shown = smi(server, HOME=str(tmp_path))
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(
    ("key", "code", "words"),
    [
        ("", NO_DEVICE, ["takes encrypted connections only", "ORION_SERVER_KEY", "orion-server key"]),
        ("other", NO_DEVICE, ["no encrypted connection", "ORION_SERVER_KEY"]),
        ("short", 1, ["ORION_SERVER_KEY=short is not valid", "orion-server key"]),
    ],
)
def test_without_the_servers_key(server: Server, key: str, code: int, words: list[str]) -> None:
    named = zmq.curve_keypair()[0].decode() if key == "other" else key
    ran = copy(server.address, named, ORION_CLIENT_KEY=CLIENT_KEY)
    assert ran.found["code"] == code
    assert len(ran.said) == 1 and all(word in ran.said[0] for word in words), ran.said
    shown = smi(server, **({"ORION_SERVER_KEY": named} if named else {}))
    assert shown.returncode != 0 and "ORION_SERVER_KEY" in shown.stdout + shown.stderr


@pytest.mark.parametrize(("key", "word"), [("", "missing"), ("f" * 32, "wrong"), (CLIENT_KEY + "0", "wrong")])
def test_without_the_clients_key(server: Server, key: str, word: str) -> None:
    ran = copy(server.address, server.key, ORION_CLIENT_KEY=key)
    assert ran.found["code"] == NOT_PERMITTED
    assert len(ran.said) == 1 and f"it is {word}" in ran.said[0] and "ORION_CLIENT_KEY" in ran.said[0], ran.said
    shown = smi(server, ORION_SERVER_KEY=server.key, **({"ORION_CLIENT_KEY": key} if key else {}))
    assert shown.returncode != 0 and f"it is {word}" in shown.stdout + shown.stderr


def test_a_server_that_does_not_encrypt_is_not_taken_for_one_that_does(tmp_path: Path) -> None:
    with Server(tmp_path / "s") as plain:
        ran = copy(plain.address, plain.key)
        assert ran.found["code"] == NO_DEVICE
        assert len(ran.said) == 1 and "does not encrypt" in ran.said[0] and "--curve on" in ran.said[0], ran.said
        wanted = copy(plain.address, "", ORION_ENCRYPT="on")
        assert wanted.found["code"] == 1 and "ORION_SERVER_KEY" in wanted.said[0]


def test_what_both_ends_want_of_the_lanes(tmp_path: Path) -> None:
    with Server(tmp_path / "s", "--encrypt", "required", "--curve", "on") as server:
        off = copy(server.address, server.key, ORION_ENCRYPT="off")
        assert off.found["code"] == NOT_PERMITTED and "ORION_ENCRYPT" in off.said[0]
        other = copy(server.address, server.key, ORION_TCP_LANES="zmq")
        assert other.found["code"] == NOT_PERMITTED and "ORION_TCP_LANES" in other.said[0]
        auto = copy(server.address, server.key)
        assert auto.found["code"] == 0 and any("encrypted (" in line for line in auto.said)
    with Server(tmp_path / "s", "--encrypt", "off", "--curve", "on") as server:
        on = copy(server.address, server.key, ORION_ENCRYPT="on")
        assert on.found["code"] == NOT_PERMITTED and "ORION_ENCRYPT" in on.said[0]
        auto = copy(server.address, server.key)
        assert auto.found["code"] == 0 and not any("encrypted (" in line for line in auto.said)


def refused(**settings: Any) -> str:
    with pytest.raises(ConfigError) as error:
        check_exposed(Settings(**settings))
    return str(error.value)


def test_an_exposed_address_needs_both(client_key_file: Path) -> None:
    told = refused(host="192.0.2.1", curve="off")
    assert "--curve on" in told and "--client-key-file" in told
    told = refused(host="0.0.0.0")
    assert "--curve on" not in told and "--client-key-file" in told
    assert "--curve on" in refused(client_key_file=client_key_file, curve="off")
    assert "--curve on" in refused(encrypt="required", curve="off")
    check_exposed(Settings(host="0.0.0.0", client_key_file=client_key_file))
    check_exposed(Settings())
    assert uses_curve(Settings(host="0.0.0.0")) and not uses_curve(Settings())
    assert uses_curve(Settings(client_key_file=client_key_file))


def test_tickets_are_proof_enough_when_their_key_was_not_overheard(client_key_file: Path) -> None:
    check_exposed(Settings(host="0.0.0.0", controller="127.0.0.1:9123"))
    check_exposed(Settings(host="0.0.0.0", controller="pool:9123", controller_key="k" * 40))
    told = refused(host="0.0.0.0", controller="127.0.0.1:9123,pool:9123")
    assert "--controller-key" in told and "--client-key-file" not in told
    assert "--curve on" in refused(host="0.0.0.0", controller="pool:9123", controller_key="k" * 40, curve="off")
    assert "--controller" in refused(controller="127.0.0.1:9123", client_key_file=client_key_file)
    [caution] = cautions(Settings(controller="127.0.0.1:9123,pool:9123"))
    assert "in clear to pool:9123" in caution
    assert not cautions(Settings(controller="pool:9123", controller_key="k" * 40))


@pytest.mark.parametrize("text", ["short", "x" * 129, "sixteen and blanks", ""])
def test_a_client_key_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(f"{text}\n")
    with pytest.raises(ConfigError, match="openssl rand"):
        ClientKey(tmp_path / "key")


def test_another_address_is_reached_with_keys_and_encrypted_by_itself(client_key_file: Path, tmp_path: Path) -> None:
    """In a network namespace, where 198.51.100.1 is an address of loopback's interface and not a loopback address."""
    own_network = ["unshare", "--net"]
    if subprocess.run([*own_network, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a network namespace")
    done = subprocess.run(
        [*own_network, sys.executable, "-m", "tests.security.exposed", str(client_key_file), str(tmp_path / "s")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for address, line in zip(("198.51.100.1", "0.0.0.0"), done.stdout.splitlines(), strict=True):
        assert line == f"{address} 0 encrypted", done.stdout
