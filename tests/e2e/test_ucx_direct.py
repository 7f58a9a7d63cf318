"""Copies straight between the network and device memory (ORION_UCX_DIRECT), over UCX's own tcp: softgpu's device memory
is memory of the worker that UCX takes as it is. On real verbs: tests/rdma."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.rows import NATIVE_DIGESTS
from orion_client.control_client import stats
from tests.e2e.test_ucx import DEVICE_UNAVAILABLE, PROGRAMS, SCRIPTED, Server, in_mid_copy, step, worker_of
from tests.e2e.transports import UCX, environment_of

COPIES = str(PROGRAMS / "direct.py")
STRAIGHT = "copies go straight to and from device memory"
STEPS = ["sizes", "rows", "bounce", "order", "same_place", "two_streams", "a_stream_that_waits", "host_function",
         "freed_and_made_again", "contexts"]  # fmt: skip
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    # Where there are launchers, as on machines with many CPUs, the session does without them.
    with environment_of({**UCX, "ORION_UCX_DIRECT": "on", "ORION_ENGINE_LAUNCHERS": "2"}):
        yield


@pytest.fixture
def own_server(environment: None, tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, "--enable-rdma") as running:
        yield running


def went_straight(server: Server) -> list[tuple[int, int]]:
    """Bytes to the device and from it, of each session that has ended."""
    said = re.findall(r"went straight: (\d+) to device memory, (\d+) from it", server.log.read_text())
    return [(int(to), int(back)) for to, back in said]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("lanes", ["1", "4"])
def test_bytes_and_order(own_server: Server, run: Run, nothing_left: Callable[[str], None], lanes: str) -> None:
    result = run(own_server.address, "ucx", sys.executable, COPIES, ORION_TCP_STRIPES=lanes)
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout) == dict.fromkeys(STEPS, "")
    nothing_left(own_server.address)
    own_server.await_line(STRAIGHT)
    own_server.await_line("bytes that went straight")
    [(to, back)] = went_straight(own_server)
    # Most of what comes finds its stream ready; all that goes back waits for it.
    assert to > 64 << 20 and back > 256 << 20


@pytest.mark.timeout(240)
def test_rows_have_the_native_digests(own_server: Server, run: Run) -> None:
    names = ["copy_h2d_pageable", "copy_d2h_pageable", "copy_h2d_pinned", "copy_d2h_pinned", "copy_bounce_pinned"]
    result = run(own_server.address, "ucx", sys.executable, "-m", "benchmarks.rows", *names)
    assert result.returncode == 0, result.stdout + result.stderr
    told = {row["name"]: row["digest"] for row in map(json.loads, result.stdout.splitlines())}
    assert told == {name: NATIVE_DIGESTS[name] for name in names}


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ("auto", "copies go through pinned host memory: this UCX has no CUDA support"),
        ("off", "copies go through pinned host memory: ORION_UCX_DIRECT is off"),
        ("on", STRAIGHT),
    ],
)
def test_the_choice_is_said_once(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, wish: str, words: str
) -> None:
    monkeypatch.setenv("ORION_UCX_DIRECT", wish)
    with Server(tmp_path, "--enable-rdma") as server:
        result = run(server.address, "ucx", sys.executable, COPIES, "order", "bounce")
        assert json.loads(result.stdout) == {"order": "", "bounce": ""}, result.stderr
        server.await_line("ended: the client detached")
        lines = [line for line in server.log.read_text().splitlines() if "copies go " in line]
        assert len(lines) == 1 and words in lines[0], lines
        assert bool(went_straight(server)) == (wish == "on")


def test_a_worker_that_dies_in_mid_copy(own_server: Server, start: Callable[..., subprocess.Popen[str]]) -> None:
    client = in_mid_copy(own_server, start)
    os.kill(worker_of(own_server), signal.SIGKILL)
    assert client.stdout is not None
    assert int(client.stdout.readline()) == DEVICE_UNAVAILABLE
    assert step(client, "allocate") == [DEVICE_UNAVAILABLE]


@pytest.mark.parametrize("harm", ["killed", "stopped"])
def test_a_client_that_is_gone_in_mid_copy(
    own_server: Server, start: Callable[..., subprocess.Popen[str]], run: Run,
    nothing_left: Callable[[str], None], harm: str,
) -> None:  # fmt: skip
    """Killed: with pieces on their way. Stopped: its worker is asked to end with a copy that can never end."""
    client = start(own_server.address, "ucx", sys.executable, COPIES, "endless")
    assert client.stdout is not None and client.stdout.readline() == "ready\n"
    first = stats(own_server.address).sessions[0].engine["operations"]
    deadline_s = time.monotonic() + 30
    while stats(own_server.address).sessions[0].engine["operations"] < first + 60:
        assert time.monotonic() < deadline_s, "nothing is copied"
        time.sleep(0.02)
    if harm == "killed":
        client.kill()
        own_server.await_end_of_client()
        nothing_left(own_server.address)
    else:
        client.send_signal(signal.SIGSTOP)
        own_server.stop()
        client.kill()


def test_scripted_copies_then_a_clean_end(own_server: Server, start: Callable[..., subprocess.Popen[str]]) -> None:
    client = start(own_server.address, "ucx", sys.executable, SCRIPTED)
    assert step(client, "attach", "allocate", "fill", "read") == [0, 0, 0, 0]
    assert client.stdin is not None
    client.stdin.close()
    assert client.wait(60) == 0
    own_server.await_line("ended: the client detached")
