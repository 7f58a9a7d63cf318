"""A device that misbehaves (softgpu's SOFTGPU_FAULT, in every worker of the server): its program is told, others go on,
and the server has all of it back. The kernels and sizes that a rule names are those of one of two programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orion_client.control_client import stats
from orion_client.private_server import PrivateServer
from tests.e2e.test_trouble import oldest_worker, step, told, workers

SCRIPTED = str(Path(__file__).resolve().parent.parent / "programs" / "scripted.py")
OUT_OF_MEMORY, NOT_READY, ILLEGAL_ADDRESS, UNKNOWN = 2, 600, 700, 999
MIB = 1 << 20
ServerWith = Callable[[str], PrivateServer]


@pytest.fixture
def server_with(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerWith]:
    running: list[PrivateServer] = []

    def make(fault: str) -> PrivateServer:
        monkeypatch.setenv("SOFTGPU_FAULT", fault)
        running.append(PrivateServer("softgpu"))
        return running[-1]

    yield make
    for server in running:
        server.stop()


def attached(server, start, transport):
    client = start(server.address, transport, sys.executable, SCRIPTED)
    assert step(client, "attach", "allocate", "fill", "read") == [0, 0, 0, 0]
    return client


def test_a_fault_of_a_kernel_is_its_programs_alone(server_with, start, transport, nothing_left):
    server = server_with("launch(victim)#2=700")
    victim, other = attached(server, start, transport), attached(server, start, transport)
    assert step(victim, "launch=victim", "sync", "launch=victim", "sync") == [0, 0, 0, ILLEGAL_ADDRESS]
    assert step(victim, "read", "allocate_more=64") == [ILLEGAL_ADDRESS] * 2
    assert step(other, "launch=bystander", "sync", "launch=victim", "sync", "read") == [0] * 5
    told(victim)
    told(other)
    nothing_left(server.address)


def test_a_device_that_falls_off_takes_its_program_only(server_with, start, transport, nothing_left):
    server = server_with("launch(victim)=lost")
    victim, other = attached(server, start, transport), attached(server, start, transport)
    worker = oldest_worker(server)
    assert step(victim, "launch=victim") == [0]
    assert step(victim, "read", "sync", "allocate_more=64") == [UNKNOWN] * 3
    assert step(other, "launch=bystander", "sync", "read") == [0] * 3
    told(victim)
    # Its worker ends with it, and whoever comes next has another.
    third = attached(server, start, transport)
    assert worker not in workers(server)
    assert step(third, "launch=bystander", "sync", "read") == [0] * 3
    assert step(other, "launch=bystander", "sync", "read") == [0] * 3
    told(third)
    told(other)
    nothing_left(server.address)


def test_an_allocation_that_fails_is_out_of_memory_and_counts_for_nothing(server_with, start, transport, nothing_left):
    server = server_with(f"alloc({6 * MIB})=2")
    client = attached(server, start, transport)
    before = stats(server.address).gpus[0].used_bytes
    assert step(client, f"allocate_more={6 * MIB}") == [OUT_OF_MEMORY]
    assert stats(server.address).gpus[0].used_bytes == before
    assert step(client, f"allocate_more={6 * MIB}", "read") == [0, 0]
    assert stats(server.address).gpus[0].used_bytes == before + 6 * MIB
    told(client)
    nothing_left(server.address)


def test_a_slow_copy_holds_up_its_stream_only_and_ends_with_its_program(server_with, start, transport, nothing_left):
    slow_bytes = 3 * MIB
    server = server_with(f"copy({slow_bytes})=slow:600000")
    client, other = attached(server, start, transport), attached(server, start, transport)
    assert step(client, f"copy={slow_bytes}", f"copy={MIB}", "wait=1") == [0, 0, 0]
    assert step(client, "query=0", "query=1") == [NOT_READY, 0]
    assert step(other, f"copy={MIB}", "wait=0", "sync") == [0, 0, 0]
    client.kill()
    client.wait(10)
    assert step(other, "launch=bystander", "sync", f"copy={MIB}", "wait=1") == [0, 0, 0, 0]
    told(other)
    nothing_left(server.address)


def test_a_fault_that_cannot_be_understood_is_said_by_the_server(server_with, capfd):
    with pytest.raises(Exception, match="could not start"):
        server_with("launch=never")
    assert "SOFTGPU_FAULT" in capfd.readouterr().err
