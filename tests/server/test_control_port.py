"""What comes in at the control port: right, wrong and hostile."""

from __future__ import annotations

import os
import random
import signal
import socket
from pathlib import Path

import msgpack
import pytest

from wire import control

SLOT_BASE = 0x200000000000
HOST_BASE = 0x100000000000


def bind_request(attached, transport="shm", **changes):
    slots = [
        control.DeviceSlot(ordinal=d.ordinal, base=SLOT_BASE + (i << 40), bytes=d.slot_bytes)
        for i, d in enumerate(attached.devices)
    ]
    fields = {
        "id": 2,
        "session": attached.session,
        "token": attached.token,
        "transport": transport,
        "host_base": HOST_BASE,
        "devices": slots,
    }
    return control.Bind(**{**fields, **changes})


def sessions(client):
    return client.ask(control.Stats(id=99)).sessions


def test_stats_names_the_device(client):
    answer = client.ask(control.Stats(id=7))
    assert answer.id == 7
    assert [gpu.name for gpu in answer.gpus] == ["softgpu (CPU)"]
    assert answer.gpus[0].used_bytes == 0
    assert answer.sessions == []


def test_attach_describes_devices_and_bind_agrees(client, attach):
    attached = client.ask(attach())
    assert isinstance(attached, control.Attached)
    assert attached.device_name_kind == "softgpu"
    device = attached.devices[0]
    assert (device.attributes[75], device.attributes[76]) == (8, 0)  # compute capability
    assert device.slot_bytes >= device.total_bytes
    assert Path(attached.shm_socket).is_socket()
    assert attached.tcp_ops.startswith("tcp://127.0.0.1:")
    assert isinstance(client.ask(bind_request(attached)), control.Bound)
    assert [s.transport for s in sessions(client)] == ["shm"]
    assert sessions(client)[0].engine["launches"] == 0


def test_session_that_never_connects_ends(connect, attach, eventually):
    from orion_client.private_server import PrivateServer

    with PrivateServer("softgpu", extra=("--bind-timeout", "0.3")) as server:
        client = connect(server.address)
        attached = client.ask(attach())
        assert len(sessions(client)) == 1
        eventually(lambda: not sessions(client))
        assert not Path(attached.shm_socket).exists()


def test_shm_is_offered_on_this_host_only(client, attach):
    attached = client.ask(attach(host="another boot"))
    assert attached.shm_socket == ""
    assert attached.tcp_ops
    refused = client.ask(attach(host="another boot", transports=["shm"]))
    assert isinstance(refused, control.Error)
    assert "transport" in refused.message


def test_shm_door_wants_the_token(client, attach, eventually):
    attached = client.ask(attach())
    assert isinstance(client.ask(bind_request(attached)), control.Bound)
    stranger = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stranger.connect(attached.shm_socket)
    stranger.send(b"x" * 32)
    assert stranger.recv(1) == b""
    friend = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    friend.connect(attached.shm_socket)
    friend.send(attached.token)
    answer, fds, _, _ = socket.recv_fds(friend, 1, 2)
    assert answer == b"\0"
    assert len(fds) == 2
    with pytest.raises(PermissionError):
        os.ftruncate(fds[0], 4096)  # sealed: a client cannot shrink it under the engine
    for fd in fds:
        os.close(fd)
    assert len(sessions(client)) == 1
    friend.close()
    eventually(lambda: not sessions(client))


def test_conflict_names_what_clashes(client, attach):
    attached = client.ask(attach())
    executable = int(Path("/proc/self/maps").read_text().split("-")[0], 16)
    assert executable < 1 << 47
    # The worker's stack is near the top of its address space: an arena of 64 GiB there cannot be had.
    answer = client.ask(bind_request(attached, host_base=0x7FFF_F000_0000))
    assert isinstance(answer, control.Conflict | control.Error)
    if isinstance(answer, control.Conflict):
        assert answer.host
        assert isinstance(client.ask(bind_request(attached)), control.Bound)


def test_wrong_wire_major_is_refused_with_a_sentence(client, attach):
    answer = client.ask(attach(wire=(control.WIRE_VERSION[0] + 1, 0)))
    assert isinstance(answer, control.Error)
    assert answer.code == 803
    assert "wire" in answer.message
    assert answer.hint


def test_one_minor_apart_is_served(client, attach):
    answer = client.ask(attach(wire=(control.WIRE_VERSION[0], control.WIRE_VERSION[1] + 1)))
    assert isinstance(answer, control.Attached)


def test_more_vgpus_than_gpus_is_invalid_device(client, attach):
    answer = client.ask(attach(vgpu=9))
    assert isinstance(answer, control.Error)
    assert answer.code == 101


def test_bind_needs_session_and_token(client, attach):
    attached = client.ask(attach())
    for wrong in ({"token": b"x" * 32}, {"session": "nobody"}):
        answer = client.ask(bind_request(attached, **wrong))
        assert isinstance(answer, control.Error)
        assert answer.code == 1
    foreign = [control.DeviceSlot(ordinal=5, base=SLOT_BASE, bytes=1 << 34)]
    answer = client.ask(bind_request(attached, devices=foreign))
    assert isinstance(answer, control.Error)
    assert answer.code == 101
    assert isinstance(client.ask(bind_request(attached)), control.Bound)
    assert isinstance(client.ask(bind_request(attached)), control.Error)  # not twice


def test_hostile_bytes_are_answered_or_dropped_and_never_fatal(server, client):
    random_bytes = random.Random(1)
    good = msgpack.packb({"v": 1, "type": "stats", "id": 3})
    hostile = [
        b"",
        b"\xff" * 100,
        b"\xdd\xff\xff\xff\xff",  # an array of 4 Gi elements
        b"\xc6\xff\xff\xff\xff",  # a 4 GiB string
        b"\x81" * 10_000,  # nested deeper than any stack
        msgpack.packb({"v": 2, "type": "stats", "id": 1}),
        msgpack.packb({"v": 1, "type": "nonsense", "id": 1}),
        msgpack.packb({"v": 1, "type": "stats", "id": "one"}),
        msgpack.packb({"v": 1, "type": "attach", "id": 1, "wire": [1, 0], "transports": ["carrier pigeon"]}),
        msgpack.packb([1, 2, 3]),
        good[:-1],
        *(random_bytes.randbytes(random_bytes.randrange(200)) for _ in range(60)),
    ]
    for body in hostile:
        client.send(body)
    client.send(good)
    while True:
        answer = client.receive()
        if answer.id == 3 and isinstance(answer, control.StatsAnswer):
            break
        assert isinstance(answer, control.Error)
    assert server.process.poll() is None


def test_oversized_message_ends_only_that_connection(server, client, connect):
    client.send(b"x" * (1 << 20))
    assert connect(server.address).ask(control.Stats(id=1)).id == 1


def test_flood_of_one_connection_does_not_starve_another(server, client, connect):
    body = msgpack.packb({"v": 1, "type": "stats", "id": 1})
    for _ in range(2000):
        client.send(body)
    assert connect(server.address).ask(control.Stats(id=5)).id == 5


def test_worker_death_ends_its_session_and_the_next_client_is_served(server, client, attach, eventually):
    attached = client.ask(attach())
    assert isinstance(client.ask(bind_request(attached)), control.Bound)
    for pid in worker_pids(server.process.pid):
        os.kill(pid, signal.SIGKILL)  # the session's worker and the warm one
    eventually(lambda: not sessions(client))
    assert isinstance(client.ask(attach(request_id=4)), control.Attached)


def test_a_waiting_worker_that_dies_at_the_attach_is_replaced(server, client, attach, eventually):
    eventually(lambda: worker_pids(server.process.pid))
    waiting = worker_pids(server.process.pid)
    for pid in waiting:
        os.kill(pid, signal.SIGSTOP)  # it looks well, but does not answer
    client.send(control.encode(attach()))
    with pytest.raises(TimeoutError):
        client.receive(timeout_s=0.5)
    for pid in waiting:
        os.kill(pid, signal.SIGKILL)
    assert isinstance(client.receive(), control.Attached)


def test_client_environment_gets_a_worker_of_its_own(server, client, attach):
    attached = client.ask(attach(env={"CUDA_DEVICE_MAX_CONNECTIONS": "1", "LD_PRELOAD": "/evil.so"}))
    assert isinstance(attached, control.Attached)
    environments = [environment(pid) for pid in worker_pids(server.process.pid)]
    assert sum(e.get("CUDA_DEVICE_MAX_CONNECTIONS") == "1" for e in environments) == 1
    assert not any("LD_PRELOAD" in e for e in environments)


def test_lazy_loading_is_served_by_the_waiting_worker(server, client, attach):
    waiting = worker_pids(server.process.pid)
    assert isinstance(client.ask(attach(env={"CUDA_MODULE_LOADING": "LAZY"})), control.Attached)
    assert not any("CUDA_MODULE_LOADING" in environment(pid) for pid in worker_pids(server.process.pid))
    assert set(waiting) & set(worker_pids(server.process.pid))


def test_drain_refuses_newcomers_and_answers_when_empty(server, client, connect, attach, eventually, admin_token):
    attached = client.ask(attach())
    other = connect(server.address)
    refused = other.ask(control.Drain(id=7))
    assert isinstance(refused, control.Error)
    assert "admin-token" in refused.hint  # says where the token lies
    other.send(control.encode(control.Drain(id=8, token=admin_token)))
    late = connect(server.address)
    eventually(lambda: isinstance(late.ask(attach(transports=["tcp"])), control.Error))
    answer = late.ask(attach())
    assert answer.code == 46
    assert "draining" in answer.message
    with pytest.raises(TimeoutError):
        other.receive(timeout_s=0.3)
    assert isinstance(client.ask(bind_request(attached)), control.Bound)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door.connect(attached.shm_socket)
    door.send(attached.token)
    door.close()
    assert isinstance(other.receive(), control.Drained)


def worker_pids(server_pid):
    children = Path(f"/proc/{server_pid}/task/{server_pid}/children").read_text().split()
    return [int(pid) for pid in children if b"orion_server.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def environment(pid):
    if os.geteuid() != 0:
        pytest.skip("what a worker has is closed to all but root")
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(entry.decode(errors="replace").split("=", 1) for entry in entries if b"=" in entry)
