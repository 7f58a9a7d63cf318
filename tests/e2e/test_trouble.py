"""Whoever dies or is not there: the right CUDA code, one line that says it, nothing left on the server."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from orion_client.control_client import stats

SCRIPTED = str(Path(__file__).resolve().parent.parent / "programs" / "scripted.py")
NO_DEVICE, NOT_INITIALIZED, DEVICE_UNAVAILABLE, MISMATCH = 100, 3, 46, 803


def step(process, *names):
    results = []
    for name in names:
        process.stdin.write(name + "\n")
        process.stdin.flush()
        results.append(int(process.stdout.readline()))
    return results


def told(process):
    """What Orion said on the program's stderr, once the program has ended."""
    process.stdin.close()
    lines = process.stderr.read().splitlines()
    process.wait(60)
    return [line for line in lines if line.startswith("orion:")]


def workers(server):
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(c) for c in children if b"orion_server.worker" in Path(f"/proc/{c}/cmdline").read_bytes()]


def attach_only(server, start, transport):
    client = start(server.address, transport, sys.executable, SCRIPTED)
    assert step(client, "attach", "allocate", "fill", "read") == [0, 0, 0, 0]
    return client


def test_killed_client_leaves_nothing(server, transport, start, nothing_left):
    client = attach_only(server, start, transport)
    assert stats(server.address).gpus[0].used_bytes > 0
    client.send_signal(signal.SIGKILL)  # orion-run became the program by exec
    client.wait(10)
    nothing_left(server.address)


def test_clean_end_leaves_nothing_and_says_nothing(server, transport, start, nothing_left):
    client = attach_only(server, start, transport)
    assert step(client, "free", "sync") == [0, 0]
    assert told(client) == []
    assert client.returncode == 0
    nothing_left(server.address)


def test_forked_child_is_not_initialised_and_the_parent_goes_on(server, transport, start, nothing_left):
    client = attach_only(server, start, transport)
    assert step(client, "fork", "read") == [NOT_INITIALIZED, 0]
    assert told(client) == []
    nothing_left(server.address)


def test_killed_worker_fails_its_client_only(own_server, transport, start, nothing_left):
    victim = attach_only(own_server, start, transport)
    other = attach_only(own_server, start, transport)
    os.kill(oldest_worker(own_server), signal.SIGKILL)
    # A sync whose work is known to be done is answered locally; a copy needs the worker, and then all calls fail.
    assert step(victim, "read", "sync", "allocate") == [DEVICE_UNAVAILABLE] * 3
    assert step(other, "read", "sync") == [0, 0]
    assert len(told(victim)) == 1
    assert told(other) == []
    nothing_left(own_server.address)


def oldest_worker(server):
    """The worker of the first session: it was started first."""
    return min(
        workers(server), key=lambda pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    )


def test_killed_server_fails_the_client(own_server, transport, start):
    client = attach_only(own_server, start, transport)
    own_server.process.kill()
    own_server.process.wait()
    assert step(client, "read", "sync") == [DEVICE_UNAVAILABLE] * 2
    assert len(told(client)) == 1


def test_no_server(transport, start):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    client = start(address, transport, sys.executable, SCRIPTED)
    assert step(client, "attach") == [NO_DEVICE]
    lines = told(client)
    assert len(lines) == 1
    assert address in lines[0]


def test_wrong_port_where_something_else_listens(transport, run):
    """A port that speaks another protocol, and one that says nothing at all."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        stop = threading.Event()

        def serve():
            listener.settimeout(0.1)
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            code = "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))"
            result = run(address, transport, sys.executable, "-c", code, ORION_ATTACH_TIMEOUT_MS="700")
        finally:
            stop.set()
            thread.join()
    assert result.stdout.split() == [str(NO_DEVICE)]
    assert len([line for line in result.stderr.splitlines() if line.startswith("orion:")]) == 1


@pytest.mark.parametrize("visible", ["7", "GPU-00000000-0000-0000-0000-000000000000", "-1"])
def test_gpu_index_that_does_not_exist(server, transport, run, visible, nothing_left):
    code = "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))"
    result = run(server.address, transport, sys.executable, "-c", code, CUDA_VISIBLE_DEVICES=visible)
    assert result.stdout.split() == [str(NO_DEVICE)]
    nothing_left(server.address)


def test_more_vgpus_than_there_are(server, transport, run, nothing_left):
    code = "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))"
    result = run(server.address, transport, sys.executable, "-c", code, ORION_VGPU="5")
    assert result.stdout.split() == ["101"]
    assert len([line for line in result.stderr.splitlines() if line.startswith("orion:")]) == 1
    nothing_left(server.address)


def test_killed_clients_leave_no_descriptor_on_the_server(own_server, start, nothing_left):
    def descriptors():
        return len(os.listdir(f"/proc/{own_server.process.pid}/fd"))

    def settled():
        """One warm worker and no other: the state between clients."""
        deadline_s = time.monotonic() + 20
        while len(workers(own_server)) != 1:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        return descriptors()

    before = settled()
    for transport in ("shm", "tcp") * 2:
        attach_only(own_server, start, transport).kill()
        nothing_left(own_server.address)
    assert settled() <= before + 1  # the control connection of `stats` may still be closing
