"""The TCP lanes of real sessions, with somebody on the wire who listens, or changes what passes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs.copies import PATTERN
from tests.security.between import Between, Harm, Tamper
from tests.security.server import TIMEOUT_S, Server, copy

DEVICE_UNAVAILABLE = 46
HAS_AES = {"aes", "pclmulqdq", "avx"} <= set(Path("/proc/cpuinfo").read_text().split())
HARMS: list[Harm] = ["flip", "length", "repeat", "drop", "swap", "cut"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("s"), "--curve", "on") as running:
        yield running


def await_end(server: Server, session: str) -> str:
    """The log's line about the end of that session: of an earlier one it may still be to come."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        log = server.log
        for line in log.splitlines(keepends=True):
            if f"session {session}: ended: " in line and line.endswith("\n"):
                return line
        assert time.monotonic() < deadline_s, log
        time.sleep(0.02)


@pytest.mark.parametrize("cipher", ["auto", "chacha20poly1305"])
def test_copies_are_whole_where_lanes_are_encrypted(server: Server, cipher: str) -> None:
    ran = copy(server.address, server.key, rounds=20, ORION_ENCRYPT="on", ORION_TCP_STRIPES="4", ORION_CIPHER=cipher)
    assert ran.found == {"code": 0, "rounds": 20, "same": True}
    name = "ChaCha20-Poly1305" if cipher == "chacha20poly1305" or not HAS_AES else "AES-256-GCM"
    assert any(f"encrypted ({name})" in line for line in ran.said), ran.said


def test_a_listener_sees_nothing_of_what_is_copied(server: Server) -> None:
    with Between(server.address, server.key) as between:
        assert copy(between.address, between.key, ORION_ENCRYPT="on").found["same"]
    assert len(between.passed) > 4 << 20  # two rounds, there and back
    assert between.token and PATTERN not in between.passed and between.token not in between.passed


def test_the_same_listener_sees_it_without_encryption(server: Server) -> None:
    with Between(server.address, server.key) as between:
        assert copy(between.address, between.key, ORION_ENCRYPT="off").found["same"]
    assert PATTERN in between.passed and between.token in between.passed


@pytest.mark.parametrize("lane", [0, 1], ids=["lane 0", "stripe"])
@pytest.mark.parametrize("to_worker", [True, False], ids=["to worker", "to client"])
@pytest.mark.parametrize("harm", HARMS)
def test_whoever_changes_what_passes_ends_that_session_alone(
    server: Server, harm: Harm, to_worker: bool, lane: int
) -> None:
    tamper = Tamper(harm, lane, to_worker)
    with Between(server.address, server.key, tamper) as between:
        ran = copy(between.address, between.key, rounds=50, ORION_ENCRYPT="on")
        assert tamper.done
        assert ran.found["code"] == DEVICE_UNAVAILABLE and ran.found["same"], ran
        reason = await_end(server, between.session)
    if harm != "cut" and to_worker:
        assert "that the client did not seal" in reason
    elif harm != "cut":
        assert any("were changed, repeated, reordered or left out" in line for line in ran.said), ran.said
    assert server.process.poll() is None
    if harm == "flip":
        assert copy(server.address, server.key, ORION_ENCRYPT="on").found == {"code": 0, "rounds": 2, "same": True}
