"""One process on two servers: every address that the program sees is one thing only, copies and events go across, and
when one server dies the other's devices work on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from orion_client.private_server import PrivateServer

PROGRAMS = Path(__file__).resolve().parent.parent / "programs"
ROOT = PROGRAMS.parent.parent
PAIR = str(PROGRAMS / "scripted_pair.py")
DEVICE_UNAVAILABLE = 46
# Each in a process of its own. The slow one, "large", moves more than all staging of a session.
SECTIONS = (
    "sizes volumes arrays order chains serialized context_events pinned threads ends attributes refusals"
).split()
SECTIONS_OF_ANY_TWO_DEVICES = "sizes volumes arrays order chains pinned".split()


@pytest.fixture(scope="module")
def other_server():
    with PrivateServer("softgpu") as running:
        yield running


@pytest.fixture(scope="module")
def peer_copies(tmp_path_factory):
    program = tmp_path_factory.mktemp("programs") / "peer_copies"
    command = ["gcc", "-std=gnu11", "-Wall", "-Werror", f"-I{ROOT / 'wire' / 'include'}"]
    subprocess.run([*command, str(PROGRAMS / "peer_copies.c"), "-o", str(program), "-ldl", "-lpthread"], check=True)
    return str(program)


def failures_of(result):
    lines = [line for line in result.stdout.splitlines() if line.startswith("FAIL")]
    if not lines and (result.returncode != 0 or " checks, 0 failures" not in result.stdout):
        lines = [f"exit status {result.returncode}", result.stderr[-2000:]]
    return lines


def test_no_address_twice_nor_in_client_memory(server, other_server, transport, run, nothing_left):
    both = f"{server.address},{other_server.address}"
    result = run(both, transport, sys.executable, str(PROGRAMS / "two_servers.py"), "10000")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert "10000 allocations on 2 devices" in result.stdout
    nothing_left(server.address)
    nothing_left(other_server.address)


@pytest.mark.parametrize("section", [*SECTIONS, pytest.param("large", marks=pytest.mark.slow)])
def test_copies_and_order_across(server, other_server, transport, run, peer_copies, section, nothing_left):
    assert failures_of(run(f"{server.address},{other_server.address}", transport, peer_copies, section)) == []
    nothing_left(server.address)
    nothing_left(other_server.address)


def test_copies_across_through_zmq_lanes(server, other_server, run, peer_copies):
    both = f"{server.address},{other_server.address}"
    result = run(both, "tcp", peer_copies, "order", "chains", "serialized", ORION_TCP_LANES="zmq")
    assert failures_of(result) == []


@pytest.mark.slow
def test_every_call_waits(server, other_server, transport, run, peer_copies):
    """ORION_SYNC: nothing that is held by the program meanwhile."""
    both = f"{server.address},{other_server.address}"
    assert failures_of(run(both, transport, peer_copies, "volumes", "arrays", "threads", ORION_SYNC="1")) == []


@pytest.mark.slow
def test_two_devices_of_one_server_do_the_same(transport, run, peer_copies, monkeypatch):
    monkeypatch.setenv("SOFTGPU_DEVICES", "2")
    with PrivateServer("softgpu") as both:
        assert failures_of(run(both.address, transport, peer_copies, *SECTIONS_OF_ANY_TWO_DEVICES)) == []


# ------------------------------------------------------------------------------------------------ one of them dies


def workers(server):
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(c) for c in children if b"orion_server.worker" in Path(f"/proc/{c}/cmdline").read_bytes()}


def warm_worker(server):
    """The one that the next session gets, when those of former sessions are gone."""
    deadline_s = time.monotonic() + 30
    while len(workers(server)) != 1:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    return workers(server).pop()


def step(process, *lines):
    answers = []
    for line in lines:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answers.append(int(process.stdout.readline()))
    return answers


def told(process):
    process.stdin.close()
    lines = process.stderr.read().splitlines()
    process.wait(60)
    return [line for line in lines if line.startswith("orion:")]


# A server for each test takes longer than the test.
WHAT_DIES = ["worker", pytest.param("server", marks=pytest.mark.slow)]


@dataclass
class Pair:
    process: subprocess.Popen[str]
    victim: PrivateServer
    worker: int  # the victim's, which serves the process

    def kill(self, what):
        if what == "worker":
            os.kill(self.worker, signal.SIGKILL)
        else:
            self.victim.process.kill()
            self.victim.process.wait()


@pytest.fixture
def pair(request, other_server, transport, start):
    """A process on a server that will be harmed, with device 0, and one that will not."""
    killed = request.node.callspec.params.get("what") == "server"
    victim = request.getfixturevalue("own_server" if killed else "server")
    worker = warm_worker(victim)
    process = start(f"{victim.address},{other_server.address}", transport, sys.executable, PAIR)
    assert step(process, "attach", "count") == [0, 2]
    return Pair(process, victim, worker)


def goes_on(process, device):
    """The other server's device works, alone and with nobody's help."""
    return step(process, f"fill {device}", f"sync {device}", f"read {device}") == [0, 0, 77]


@pytest.mark.parametrize("what", ["worker", "server"])
def test_a_wait_for_a_dead_server_ends_with_its_error(pair, other_server, what, nothing_left):
    process = pair.process
    assert step(process, "hold 0", "fill 0", "record 0", "wait 1 0", "fill 1") == [0] * 5
    pair.kill(what)
    # Told once, to the thread that asked for the wait; the stream has gone on.
    assert step(process, "sync 1", "sync 1", "read 1") == [DEVICE_UNAVAILABLE, 0, 77]
    assert step(process, "sync 0", "fill 0", "read 0") == [DEVICE_UNAVAILABLE, DEVICE_UNAVAILABLE, -DEVICE_UNAVAILABLE]
    assert step(process, "wait 1 0", "count") == [DEVICE_UNAVAILABLE, 2]
    assert goes_on(process, 1)
    assert step(process, "release") == [0]
    lines = told(process)
    assert process.returncode == 0
    assert [line for line in lines if "has ended" in line] != []
    nothing_left(other_server.address)


@pytest.mark.parametrize("what", WHAT_DIES)
@pytest.mark.parametrize("source", [0, 1])
def test_copies_with_a_dead_server_end_with_its_error(pair, other_server, what, source, nothing_left):
    """Copies that have begun and some that have not, on the stream of the server that stays."""
    process = pair.process
    assert step(process, *[f"copy {source} 1"] * 10) == [0] * 10
    pair.kill(what)
    assert step(process, "sync 1") == [DEVICE_UNAVAILABLE]
    assert step(process, f"copy {source} 1", f"peer {source}", "count") == [DEVICE_UNAVAILABLE, DEVICE_UNAVAILABLE, 2]
    assert goes_on(process, 1)
    assert step(process, "free 1") == [0]
    told(process)
    assert process.returncode == 0
    nothing_left(other_server.address)


@pytest.mark.parametrize("what", WHAT_DIES)
def test_exit_with_copies_to_a_dead_server(pair, other_server, what, nothing_left):
    """On the dead server's own stream: nobody lets it go on, and nothing waits for it at exit or before frees."""
    process = pair.process
    assert step(process, "hold 0", *["copy 1 0"] * 3, "peer 1") == [0] * 5
    pair.kill(what)
    assert step(process, "sync 0", "free 1") == [DEVICE_UNAVAILABLE, 0]
    assert step(process, "release") == [0]
    told(process)
    assert process.returncode == 0
    nothing_left(other_server.address)


def test_exit_in_the_middle_of_copies(pair, other_server, nothing_left):
    process = pair.process
    assert step(process, "hold 0", "copy 0 0", *["copy 1 1"] * 5, "peer 0", "release") == [0] * 9
    assert told(process) == []
    assert process.returncode == 0
    nothing_left(pair.victim.address)
    nothing_left(other_server.address)
