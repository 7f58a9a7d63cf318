"""Programs that get their vGPUs from a controller: several servers behind one program, the queue, and all that can
go wrong there. The controller answers from a script; the servers are real ones, on softgpu.

The servers differ in their memory, by which a program tells their devices apart.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from orion_client.libraries import client_folder
from orion_client.private_server import PrivateServer
from tests.e2e.pool_controller import PoolController, Script, allocated, giving
from tests.e2e.transports import TRANSPORTS
from wire import pool

NO_DEVICE, OUT_OF_MEMORY, DEVICE_UNAVAILABLE, MISMATCH = 100, 2, 46, 803
SMALL_MIB, MIDDLE_MIB, LARGE_MIB = 256, 384, 512

# Uses every device: a fill of its own, copies from each to the next, a check of what has arrived.
PROGRAM = """
import ctypes, json, os, re, sys
cuda = ctypes.CDLL("libcuda.so.1")
code = cuda.cuInit(0)
count = ctypes.c_int()
def ok(result):
    assert result == 0, result
if code == 0:
    ok(cuda.cuDeviceGetCount(ctypes.byref(count)))
mib, contexts, blocks, size = [], [], [], 1 << 20
for ordinal in range(count.value):
    total, context, block = ctypes.c_size_t(), ctypes.c_void_p(), ctypes.c_uint64()
    ok(cuda.cuDeviceTotalMem_v2(ctypes.byref(total), ordinal))
    mib.append(total.value >> 20)
    ok(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), ordinal))
    ok(cuda.cuCtxSetCurrent(context))
    ok(cuda.cuMemAlloc_v2(ctypes.byref(block), ctypes.c_size_t(2 * size)))
    ok(cuda.cuMemsetD8_v2(block, ctypes.c_ubyte(ordinal + 1), ctypes.c_size_t(size)))
    ok(cuda.cuCtxSynchronize())
    contexts.append(context), blocks.append(block)
assert len({block.value for block in blocks}) == len(blocks)
for ordinal in range(count.value):
    other = (ordinal + 1) % count.value
    target, host = ctypes.c_uint64(blocks[other].value + size), (ctypes.c_ubyte * size)()
    ok(cuda.cuMemcpyPeer(target, contexts[other], blocks[ordinal], contexts[ordinal], ctypes.c_size_t(size)))
    ok(cuda.cuCtxSetCurrent(contexts[other]))
    ok(cuda.cuMemcpyDtoH_v2(host, target, ctypes.c_size_t(size)))
    assert set(host) == {ordinal + 1}
# Connections of this process to the controller's port.
inodes = set()
for fd in os.listdir("/proc/self/fd"):
    try:
        inodes.update(re.findall(r"socket:\\[(\\d+)\\]", os.readlink(f"/proc/self/fd/{fd}")))
    except FileNotFoundError:
        pass
port = int(sys.argv[1])
lines = [line.split() for line in open("/proc/self/net/tcp")][1:]
open_ones = [f for f in lines if f[9] in inodes and int(f[2].split(":")[1], 16) == port]
print(json.dumps({"code": code, "mib": mib, "to_controller": len(open_ones)}))
"""
INIT = "import ctypes; cuda = ctypes.CDLL('libcuda.so.1'); print(cuda.cuInit(0), cuda.cuInit(0), flush=True)"


def start_server(devices: int, mib: int) -> PrivateServer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTGPU_DEVICES", str(devices))
        patch.setenv("SOFTGPU_MEMORY_MIB", str(mib))
        return PrivateServer("softgpu")


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[str, str, str]]:
    """Addresses of three: with one small device, two middle ones, one large."""
    with (
        start_server(1, SMALL_MIB) as small,
        start_server(2, MIDDLE_MIB) as middle,
        start_server(1, LARGE_MIB) as large,
    ):
        yield small.address, middle.address, large.address


@pytest.fixture
def serve() -> Iterator[Callable[[Script], PoolController]]:
    running: list[PoolController] = []

    def start(script: Script) -> PoolController:
        running.append(PoolController(script))
        return running[-1]

    yield start
    for controller in running:
        controller.stop()


def environment(controllers: str, **extra: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "CUDA_"))}
    clean |= {"LD_LIBRARY_PATH": str(client_folder()), "HOME": "/nonexistent", "ORION_ATTACH_TIMEOUT_MS": "30000"}
    if controllers:
        clean["ORION_CONTROLLER"] = controllers
    return clean | extra


def init(controllers: str, program: str = INIT, **extra: str) -> tuple[list[int], list[str]]:
    """What two calls of cuInit return, and what is told."""
    variables = environment(controllers, **extra)
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()], done.stderr.splitlines()


def use(controller: PoolController, **extra: str) -> dict[str, Any]:
    command = [sys.executable, "-c", PROGRAM, controller.address.split(":")[1]]
    done = subprocess.run(
        command, env=environment(controller.address, **extra), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"told": done.stderr.splitlines()}


def one_line(lines: list[str], *words: str) -> None:
    assert len(lines) == 1, lines
    for word in ("orion: ", *words):
        assert word in lines[0], lines[0]


def queued(request: Any, position: int = 1, reason: str = "no GPU has 4096 MiB free") -> pool.Queued:
    return pool.Queued(id=request.id, position=position, reason=reason, ticket=7)


# ------------------------------------------------------------------------------------------------- many servers


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_two_devices_on_two_servers_in_the_order_of_the_tickets(serve, servers, nothing_left, transport):
    small, _, large = servers
    controller = serve(giving(large, small))
    result = use(controller, ORION_VGPU="2", ORION_TRANSPORT=transport, ORION_LOG="info")
    assert (result["code"], result["mib"]) == (0, [LARGE_MIB, SMALL_MIB])
    assert result["to_controller"] == 0
    (line,) = [line for line in result["told"] if "of allocation" in line]
    assert f"{large}: 0, {small}: 0, of allocation a-1 from {controller.address}" in line
    (request,) = controller.requests
    assert isinstance(request, pool.Allocate) and request.vgpu == 2
    for address in (small, large):
        nothing_left(address)


def test_four_devices_on_three_servers(serve, servers, nothing_left):
    small, middle, large = servers
    result = use(serve(giving(large, middle, small)), ORION_VGPU="4")
    assert (result["code"], result["mib"]) == (0, [LARGE_MIB, MIDDLE_MIB, MIDDLE_MIB, SMALL_MIB])
    assert result["told"] == []
    for address in servers:
        nothing_left(address)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_server_twice_is_two_sessions(serve, servers, nothing_left, transport):
    small, _, large = servers
    result = use(serve(giving(small, large, small)), ORION_VGPU="3", ORION_TRANSPORT=transport)
    assert (result["code"], result["mib"]) == (0, [SMALL_MIB, LARGE_MIB, SMALL_MIB])
    nothing_left(small)
    nothing_left(large)


def test_visible_devices_choose_among_the_vgpus(serve, servers, nothing_left):
    small, middle, large = servers
    controller = serve(giving(large, middle, small))
    for order in ("FASTEST_FIRST", "PCI_BUS_ID"):
        result = use(controller, CUDA_VISIBLE_DEVICES="3,0", CUDA_DEVICE_ORDER=order)
        assert (result["code"], result["mib"]) == (0, [SMALL_MIB, LARGE_MIB])
    for address in servers:
        nothing_left(address)


def test_six_sessions_on_one_server(serve, servers, nothing_left):
    small = servers[0]
    result = use(serve(giving(*[small] * 6)), ORION_VGPU="6")
    assert (result["code"], result["mib"]) == (0, [SMALL_MIB] * 6), result["told"]
    nothing_left(small)


def test_nothing_is_asked_before_the_first_use_and_once_by_many_threads(serve, servers):
    controller = serve(giving(servers[0]))
    init(controller.address, "import ctypes; ctypes.CDLL('libcuda.so.1')")
    assert controller.requests == []
    program = (
        "import ctypes, threading; cuda = ctypes.CDLL('libcuda.so.1'); codes = []\n"
        "threads = [threading.Thread(target=lambda: codes.append(cuda.cuInit(0))) for _ in range(8)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]; print(*codes)"
    )
    assert init(controller.address, program) == ([0] * 8, [])
    assert len(controller.of(pool.Allocate)) == 1


def test_a_child_asks_for_itself_where_its_parent_has_not(serve, servers):
    controller = serve(giving(servers[0]))
    program = (
        "import ctypes, os; cuda = ctypes.CDLL('libcuda.so.1')\n"
        "if os.fork() == 0:\n    print(cuda.cuInit(0), flush=True); os._exit(0)\n"
        "os.wait(); print(cuda.cuInit(0), flush=True)\n"
        "if os.fork() == 0:\n    print(cuda.cuInit(0), flush=True); os._exit(0)\n"
        "os.wait()"
    )
    assert init(controller.address, program) == ([0, 0, 3], [])
    assert len({request.pid for request in controller.of(pool.Allocate)}) == 2


# ------------------------------------------------------------------------------------------------- who decides


def test_a_replica_that_does_not_lead_names_the_leader(serve, servers):
    leader = serve(giving(servers[0]))
    follower = serve(lambda request, _: [pool.NotLeader(id=request.id, leader=leader.address)])
    assert init(follower.address) == ([0, 0], [])
    assert len(follower.requests) == len(leader.requests) == 1


def test_the_next_of_the_list_is_asked(serve, servers):
    follower = serve(lambda request, _: [pool.NotLeader(id=request.id)])
    silent = serve(lambda request, _: [])
    leader = serve(giving(servers[0]))
    listed = f"127.0.0.1:1,{follower.address},{silent.address},{leader.address}"
    assert init(listed, ORION_ATTACH_TIMEOUT_MS="4000") == ([0, 0], [])


def test_an_election_is_waited_for(serve, servers):
    def script(request: Any, controller: PoolController) -> Any:
        if len(controller.of(pool.Allocate)) < 3:
            return [pool.NotLeader(id=request.id)]
        return [allocated(request, [servers[0]])]

    assert init(serve(script).address) == ([0, 0], [])


def test_replicas_that_name_each_other_are_left(serve):
    names: list[str] = []
    first = serve(lambda request, _: [pool.NotLeader(id=request.id, leader=names[1])])
    second = serve(lambda request, _: [pool.NotLeader(id=request.id, leader=names[0])])
    names += [first.address, second.address]
    codes, lines = init(f"{first.address},{second.address}", ORION_ATTACH_TIMEOUT_MS="1000")
    assert codes == [NO_DEVICE, NO_DEVICE]
    one_line(lines, "leader", "try again")


# ------------------------------------------------------------------------------------------------- the queue


def test_what_is_queued_is_allocated_later(serve, servers):
    def script(request: Any, controller: PoolController) -> Any:
        if isinstance(request, pool.Allocate):
            return [queued(request, 2)]
        if isinstance(request, pool.StillWaiting) and len(controller.of(pool.StillWaiting)) == 1:
            return [queued(request, 1)]
        return [allocated(request, [servers[0]])]

    controller = serve(script)
    codes, lines = init(controller.address, ORION_WAIT_S="60")
    assert codes == [0, 0]
    one_line(lines, "waiting up to 60 s", "position 2", "no GPU has 4096 MiB free")
    kinds = [type(request) for request in controller.requests]
    assert kinds == [pool.Allocate, pool.StillWaiting, pool.StillWaiting]
    assert controller.requests[0].wait_s == 60
    assert [request.ticket for request in controller.requests[1:]] == [7, 7]


def test_an_allocation_may_come_unasked(serve, servers):
    """`allocated` follows with the id of the first request, before the client asks again."""
    controller = serve(lambda request, _: [queued(request), queued(request), allocated(request, [servers[0]])])
    assert init(controller.address, ORION_WAIT_S="60")[0] == [0, 0]
    assert [type(request) for request in controller.requests] == [pool.Allocate]


def test_a_controller_may_keep_its_answer(serve, servers):
    """Longer than a server may take to answer, and until there is something to say."""

    def script(request: Any, _: PoolController) -> Any:
        if isinstance(request, pool.StillWaiting):
            time.sleep(2)
            yield allocated(request, [servers[0]])
        else:
            yield queued(request)

    controller = serve(script)
    listed = f"{controller.address},127.0.0.1:1,127.0.0.1:2"  # a third of the time for each
    codes, lines = init(listed, ORION_WAIT_S="60", ORION_ATTACH_TIMEOUT_MS="4500")
    assert codes == [0, 0], lines
    assert [type(request) for request in controller.requests] == [pool.Allocate, pool.StillWaiting]


def test_who_does_not_wait_is_told_why(serve):
    controller = serve(lambda request, _: [queued(request, 3)] if isinstance(request, pool.Allocate) else [])
    codes, lines = init(controller.address)
    assert codes == [DEVICE_UNAVAILABLE] * 2
    one_line(lines, "no GPU has 4096 MiB free", "position 3", "ORION_WAIT_S")
    assert controller.wait_for(pool.GiveUp).ticket == 7


def test_who_has_waited_long_enough_gives_up(serve):
    def script(request: Any, _: PoolController) -> Any:
        return [] if isinstance(request, pool.GiveUp) else [queued(request)]

    controller = serve(script)
    codes, lines = init(controller.address, ORION_WAIT_S="2", ORION_CLIENT_KEY="secret")
    assert codes == [DEVICE_UNAVAILABLE] * 2
    assert len(lines) == 2 and "waiting up to 2 s" in lines[0]
    assert "no GPU has 4096 MiB free" in lines[1] and "greater ORION_WAIT_S" in lines[1]
    given_up = controller.wait_for(pool.GiveUp)
    assert (given_up.ticket, given_up.key) == (7, "secret")
    assert controller.of(pool.StillWaiting)


def test_a_controller_that_restarts_finds_its_queue_again(serve, servers):
    """The first forgets the client; the second, at another address of the list, has room."""
    second = serve(giving(servers[0]))

    def script(request: Any, _: PoolController) -> Any:
        if isinstance(request, pool.Allocate):
            return [queued(request)]
        return [pool.NotLeader(id=request.id, leader=second.address)]

    codes, lines = init(serve(script).address, ORION_WAIT_S="60")
    assert codes == [0, 0]
    one_line(lines, "waiting")
    assert 0 < second.requests[0].wait_s <= 60


WAITS = """
import ctypes, signal, sys
def handler(number, frame):
    print("handled", number, flush=True)
if sys.argv[1] == "handled":
    signal.signal(signal.SIGINT, handler), signal.signal(signal.SIGTERM, handler)
elif sys.argv[1] == "default":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
print(ctypes.CDLL("libcuda.so.1").cuInit(0), flush=True)
assert sys.argv[1] != "handled" or signal.getsignal(signal.SIGINT) is handler
signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize(
    ("how", "number"),
    [(how, number) for how in ("default", "handled", "python") for number in (signal.SIGINT, signal.SIGTERM)],
)
def test_signals_in_the_queue(serve, how, number):
    """They end the program as usual; where it has a handler, that runs and the wait ends."""

    def script(request: Any, _: PoolController) -> Any:
        return [] if isinstance(request, pool.GiveUp) else [queued(request)]

    controller = serve(script)
    variables = environment(controller.address, ORION_WAIT_S="3600")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    program = subprocess.Popen([sys.executable, "-c", WAITS, how], env=variables, text=True, **pipes)
    try:
        controller.wait_for(pool.StillWaiting)
        program.send_signal(number)
        out, err = program.communicate(timeout=30)
    finally:
        program.kill()
        program.wait()
    if how == "default" or (how == "python" and number == signal.SIGTERM):
        assert (program.returncode, out) == (-number, "")
    elif how == "python":
        assert "KeyboardInterrupt" in err and "interrupted in the queue" in err
        controller.wait_for(pool.GiveUp)
    else:
        assert program.returncode == 0, err
        assert sorted(out.splitlines()) == sorted([f"handled {int(number)}", "46", "handled 2"])
        assert "interrupted in the queue" in err
        controller.wait_for(pool.GiveUp)


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_a_server_that_cannot_be_reached_gives_all_back(serve, servers, nothing_left):
    small, middle, _ = servers
    controller = serve(giving(small, middle, "127.0.0.1:1"))
    codes, lines = init(controller.address, ORION_CLIENT_KEY="secret")
    assert codes == [NO_DEVICE] * 2
    one_line(lines, "no server at 127.0.0.1:1", controller.address)
    given_up = controller.wait_for(pool.GiveUp)
    assert (given_up.allocation, given_up.ticket, given_up.key) == ("a-1", 0, "secret")
    nothing_left(small)
    nothing_left(middle)


def test_all_servers_together_have_the_time_of_the_allocation(serve, servers):
    """A silent server is not waited for longer than the controller keeps the vGPUs."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as silent:
        address = f"127.0.0.1:{silent.bind_to_random_port('tcp://127.0.0.1')}"

        def script(request: Any, _: PoolController) -> Any:
            if isinstance(request, pool.Allocate):
                yield allocated(request, [address, servers[0]], attach_within_s=0.5)

        controller = serve(script)
        codes, lines = init(controller.address, ORION_ATTACH_TIMEOUT_MS="3600000")
    assert codes == [NO_DEVICE] * 2
    one_line(lines, address, "did not answer")
    controller.wait_for(pool.GiveUp)


def test_a_server_that_dies_is_the_end_of_its_devices_alone(serve, servers):
    small = servers[0]
    program = (
        "import ctypes, sys; cuda = ctypes.CDLL('libcuda.so.1'); contexts = []\n"
        "assert cuda.cuInit(0) == 0\n"
        "for ordinal in range(2):\n"
        "    context = ctypes.c_void_p(); contexts.append(context)\n"
        "    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), ordinal) == 0\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for context in contexts:\n"
        "    block = ctypes.c_uint64()\n"
        "    print(cuda.cuCtxSetCurrent(context) or cuda.cuMemAlloc_v2(ctypes.byref(block), ctypes.c_size_t(4096))"
        " or cuda.cuMemsetD8_v2(block, ctypes.c_ubyte(1), ctypes.c_size_t(4096)) or cuda.cuCtxSynchronize())"
    )
    with start_server(1, LARGE_MIB) as doomed:
        controller = serve(giving(small, doomed.address))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        client = subprocess.Popen(
            [sys.executable, "-c", program], env=environment(controller.address), text=True, **pipes
        )
        try:
            assert client.stdout.readline() == "ready\n"
            doomed.stop()
            out, err = client.communicate("go\n", timeout=60)
        finally:
            client.kill()
            client.wait()
    assert out.split() == ["0", str(DEVICE_UNAVAILABLE)], err
