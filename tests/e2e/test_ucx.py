"""UCX's lanes end to end, over UCX's own tcp on loopback (real verbs: tests/rdma): programs, who gets them, strangers,
losses."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from benchmarks.rows import NATIVE_DIGESTS, ROWS
from orion_client.control_client import stats
from orion_client.private_server import PrivateServer
from tests.e2e.transports import UCX, environment_of
from tests.rdma.end_of_client import is_end_of_client
from wire import control

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = ROOT / "tests" / "programs"
SCRIPTED = str(PROGRAMS / "scripted.py")
DEVICE_UNAVAILABLE, NO_DEVICE = 46, 100


class Server(PrivateServer):
    """With UCX, and a log that can be read."""

    def __init__(self, folder: Path, *extra: str) -> None:
        self.log = folder / "server.log"
        with self.log.open("w") as file:
            saved = os.dup(2)
            os.dup2(file.fileno(), 2)
            try:
                super().__init__("softgpu", "info", extra)
            finally:
                os.dup2(saved, 2)
                os.close(saved)

    def await_line(self, text: str, timeout_s: float = 20.0) -> str:
        deadline_s = time.monotonic() + timeout_s
        while True:
            for line in self.log.read_text().splitlines():
                if text in line:
                    return line
            assert time.monotonic() < deadline_s, f"{text!r} is not in the log:\n{self.log.read_text()}"
            time.sleep(0.02)

    def await_end_of_client(self) -> None:
        line = self.await_line(": ended: ")
        assert is_end_of_client(line, self.log.read_text()), self.log.read_text()


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with environment_of(UCX):
        yield


@pytest.fixture(scope="module")
def server(environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("ucx"), "--enable-rdma") as running:
        yield running


@pytest.fixture
def own_server(environment: None, tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, "--enable-rdma") as running:
        yield running


def compile_program(source: Path, folder: Path, *libraries: str) -> str:
    program = folder / source.stem
    include = [f"-I{ROOT / 'wire' / 'include'}", f"-I{PROGRAMS}"]
    subprocess.run(["gcc", "-O1", "-std=gnu11", *include, str(source), "-o", str(program), "-ldl", "-lpthread",
                    *libraries], check=True)  # fmt: skip
    return str(program)


@pytest.mark.timeout(180)
def test_driver_api(server: Server, run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path,
                    nothing_left: Callable[[str], None]) -> None:  # fmt: skip
    program = compile_program(PROGRAMS / "driver_api.c", tmp_path)
    result = run(server.address, "ucx", program, ORION_LOG="info")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert "over ucx (tcp/lo), not encrypted" in result.stderr
    nothing_left(server.address)


def sections(name: str, server: Server, run: Callable[..., subprocess.CompletedProcess[str]], folder: Path) -> None:
    """Every section of an area's program, each in a process of its own."""
    program = compile_program(PROGRAMS / f"{name}.c", folder)
    listed = subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout
    for line in listed.splitlines():
        section, *marks = line.split()
        if "hardware" in marks:
            continue
        result = run(server.address, "ucx", program, section)
        assert result.returncode == 0, section + result.stdout[-4000:] + result.stderr[-4000:]


QUICK = ["copy_api"]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", QUICK)
def test_area(server: Server, run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, name: str) -> None:
    sections(name, server, run, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted({p.stem for p in PROGRAMS.glob("*_api.c")} - {"driver_api", *QUICK}))
def test_other_area(
    server: Server, run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, name: str
) -> None:
    sections(name, server, run, tmp_path)


QUICK_ROWS = ["copy_h2d_pinned", "copy_d2h_4b", "copy_bounce_pinned", "launch_pipelined", "launch_and_sync", "reply"]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "name", [*QUICK_ROWS, *(pytest.param(n, marks=pytest.mark.slow) for n in ROWS if n not in QUICK_ROWS)]
)
def test_row_has_the_native_digest(
    server: Server, run: Callable[..., subprocess.CompletedProcess[str]], name: str
) -> None:
    result = run(server.address, "ucx", sys.executable, "-m", "benchmarks.rows", name)
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["digest"] == NATIVE_DIGESTS[name]


def test_both_sides_say_what_is_used(own_server: Server, start: Callable[..., subprocess.Popen[str]]) -> None:
    client = start(own_server.address, "ucx", sys.executable, SCRIPTED)
    assert step(client, "attach", "allocate", "fill", "read") == [0, 0, 0, 0]
    own_server.await_line("the client uses RDMA (UCX)")
    own_server.await_line("(tcp/lo), not encrypted; copies go through pinned host memory")
    assert [session.transport for session in stats(own_server.address).sessions] == ["ucx"]


@pytest.mark.parametrize("lanes", ["1", "4"])
def test_lanes_for_large_copies(
    server: Server, run: Callable[..., subprocess.CompletedProcess[str]], lanes: str
) -> None:
    script = str(PROGRAMS / "copies.py")
    result = run(server.address, "ucx", sys.executable, script, "20", ORION_TCP_STRIPES=lanes)
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout) == {"code": 0, "rounds": 20, "same": True}


def test_a_short_spin_and_none(server: Server, run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    for spin_us in ("0", "50"):
        result = run(server.address, "ucx", sys.executable, "-m", "benchmarks.rows", "launch_and_sync",
                     ORION_UCX_SPIN_US=spin_us)  # fmt: skip
        assert result.returncode == 0, result.stderr


# ---------------------------------------------------------------------------------------------- who gets it


def test_auto_does_not_take_it_without_an_rdma_device(
    own_server: Server, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    if any(Path("/sys/class/infiniband").glob("*")):
        pytest.skip("this machine has an RDMA device")
    result = run(own_server.address, "auto", sys.executable, "-m", "benchmarks.rows", "launch_and_sync",
                 ORION_LOG="info")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert " over shm" in result.stderr


def test_a_server_that_does_not_enable_it(run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    with Server(tmp_path) as plain:
        result = run(plain.address, "ucx", sys.executable, "-m", "benchmarks.rows", "launch_and_sync")
        assert result.returncode != 0
        assert "offers no UCX lanes: RDMA is not enabled there (orion-server --enable-rdma)" in result.stderr
        plain.await_line("a client asks for RDMA and gets tcp")


def test_a_client_that_wants_encryption_does_not_get_it(
    server: Server, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    result = run(server.address, "ucx", sys.executable, "-m", "benchmarks.rows", "launch_and_sync", ORION_ENCRYPT="on",
                 ORION_SERVER_KEY="none")  # fmt: skip
    assert result.returncode != 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--enable-rdma", "--encrypt", "required", "--curve", "on"], "contradict each other"),
        (["--bind-net", "none0"], "has no IPv4 address"),
        (["--bind-net", "lo", "--listen", "127.0.0.2:0"], "name one of them"),
    ],
)
def test_settings_that_cannot_be(options: list[str], words: str) -> None:
    line = [sys.executable, "-m", "orion_server", "--device", "softgpu", *options]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
    assert done.returncode == 2
    assert words in done.stderr


# ---------------------------------------------------------------------------------------------- strangers


class Control:
    """Speaks the control protocol by hand."""

    def __init__(self, address: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.connect(f"tcp://{address}")

    def ask(self, request: control.Request) -> control.Answer:
        self.socket.send(control.encode(request))
        assert self.socket.poll(20_000), "no answer"
        return control.decode_answer(self.socket.recv())

    def open(self) -> control.Attached:
        attach = control.Attach(id=1, wire=control.WIRE_VERSION, pid=os.getpid(), uid=os.geteuid(), program="stranger",
                                transports=["tcp"], lanes=["raw"], ucx="any")  # fmt: skip
        attached = self.ask(attach)
        assert isinstance(attached, control.Attached), attached
        assert attached.ucx.startswith("ucx://127.0.0.1:"), attached.ucx_refused
        slots = [
            control.DeviceSlot(ordinal=d.ordinal, base=0x200000000000, bytes=d.slot_bytes) for d in attached.devices
        ]
        bound = self.ask(control.Bind(id=2, session=attached.session, token=attached.token, transport="tcp",
                                      host_base=0x100000000000, devices=slots))  # fmt: skip
        assert isinstance(bound, control.Bound), bound
        return attached

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def by_hand(own_server: Server) -> Iterator[Control]:
    client = Control(own_server.address)
    yield client
    client.close()


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> str:
    sodium = next(Path.home().glob(".cache/orion-build/libzmq-*-gcc-*/lib/libsodium.a"))
    source = PROGRAMS / "ucx_stranger.c"
    return compile_program(source, tmp_path_factory.mktemp("stranger"), f"-I{sodium.parent.parent / 'include'}",
                           str(sodium))  # fmt: skip


def port_of(attached: control.Attached) -> str:
    """Of "ucx://127.0.0.1:PORT#RELEASE"."""
    return attached.ucx.rpartition(":")[2].partition("#")[0]


def greet(stranger: str, attached: control.Attached, token: bytes, *more: str) -> str:
    port = port_of(attached)
    done = subprocess.run([stranger, port, token.hex(), *more], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_who_has_no_token_is_dropped_and_the_client_still_gets_in(
    own_server: Server, by_hand: Control, stranger: str
) -> None:
    attached = by_hand.open()
    assert greet(stranger, attached, bytes(32)) == "dropped"
    assert greet(stranger, attached, attached.token, "leave") == "welcome"
    own_server.await_line("a connection without this session's token was ignored")
    own_server.await_line("ended: the client broke the protocol: malformed frame")


def test_garbage_at_its_port_ends_that_session_at_most(
    own_server: Server, by_hand: Control, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """UCX 1.13's tcp ends the process that gets it, before the client has come."""
    attached = by_hand.open()
    with socket.create_connection(("127.0.0.1", int(port_of(attached)))) as garbage:
        garbage.sendall(b"\xff" * 4096)
    result = run(own_server.address, "ucx", sys.executable, "-m", "benchmarks.rows", "launch_and_sync")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("harm", ["order", "lane", "offer", "unknown"])
def test_frames_that_no_client_sends_end_the_session(
    own_server: Server, by_hand: Control, stranger: str, harm: str
) -> None:
    attached = by_hand.open()
    greet(stranger, attached, attached.token, harm)
    own_server.await_line("ended: the client broke the protocol: malformed frame")


@pytest.mark.parametrize("stripes", [0, 3])
def test_a_client_may_come_over_tcp_after_all(
    own_server: Server, by_hand: Control, nothing_left: Callable[[str], None], stripes: int
) -> None:
    """Its other lanes before lane 0, so that their threads run while UCX is still offered."""
    attached = by_hand.open()
    host, _, port = attached.tcp_ops.removeprefix("raw://").rpartition(":")
    with contextlib.ExitStack() as lanes:
        for number in (*range(1, stripes + 1), 0):
            lane = lanes.enter_context(socket.create_connection((host, int(port))))
            lane.sendall(struct.pack("<HHIQQQ", 1, 0, 32, 0, number, stripes) + attached.token)
            assert len(lane.recv(32)) == 32
        own_server.await_line("the client does not come over UCX and uses tcp")
        own_server.await_line("the client uses tcp, although it asked for RDMA")
    nothing_left(own_server.address)


# ---------------------------------------------------------------------------------------------- losses


def step(process: subprocess.Popen[str], *names: str) -> list[int]:
    assert process.stdin is not None and process.stdout is not None
    results = []
    for name in names:
        process.stdin.write(name + "\n")
        process.stdin.flush()
        results.append(int(process.stdout.readline()))
    return results


def worker_of(server: Server) -> int:
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    workers = [int(c) for c in children if b"orion_server.worker" in Path(f"/proc/{c}/cmdline").read_bytes()]
    return min(workers, key=lambda p: int(Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()[19]))


def in_mid_copy(server: Server, start: Callable[..., subprocess.Popen[str]]) -> subprocess.Popen[str]:
    client = start(server.address, "ucx", sys.executable, SCRIPTED)
    assert step(client, "attach", "allocate", "fill", "read") == [0, 0, 0, 0]
    assert client.stdin is not None
    client.stdin.write("copies\n")
    client.stdin.flush()
    before = stats(server.address).sessions[0].engine["operations"]
    deadline_s = time.monotonic() + 30
    while stats(server.address).sessions[0].engine["operations"] < before + 20:
        assert time.monotonic() < deadline_s, "no copies are made"
        time.sleep(0.02)
    return client


def test_a_worker_that_dies_in_mid_copy(own_server: Server, start: Callable[..., subprocess.Popen[str]]) -> None:
    client = in_mid_copy(own_server, start)
    os.kill(worker_of(own_server), signal.SIGKILL)
    assert client.stdout is not None and client.stdin is not None and client.stderr is not None
    assert int(client.stdout.readline()) == DEVICE_UNAVAILABLE
    assert step(client, "allocate") == [DEVICE_UNAVAILABLE]
    client.stdin.close()
    told = [line for line in client.stderr.read().splitlines() if line.startswith("orion:")]
    assert len(told) == 1 and "lost" in told[0], told
    assert client.wait(60) == 0


def test_a_client_that_vanishes_in_mid_copy(
    own_server: Server, start: Callable[..., subprocess.Popen[str]], nothing_left: Callable[[str], None]
) -> None:
    client = in_mid_copy(own_server, start)
    client.kill()
    client.wait(10)
    own_server.await_end_of_client()
    nothing_left(own_server.address)


def test_a_program_that_exits_while_its_copy_is_not_taken(
    own_server: Server, start: Callable[..., subprocess.Popen[str]], nothing_left: Callable[[str], None]
) -> None:
    """Soon and in good order, although its endpoints cannot be closed: the other end does nothing."""
    program = (
        "import ctypes, sys\n"
        "cuda = ctypes.CDLL('libcuda.so.1'); context, pinned = ctypes.c_void_p(), ctypes.c_void_p()\n"
        "pointer, size = ctypes.c_uint64(), ctypes.c_size_t(16 << 20)\n"
        "assert cuda.cuInit(0) == 0 and cuda.cuCtxCreate_v2(ctypes.byref(context), 0, 0) == 0\n"
        "assert cuda.cuMemAlloc_v2(ctypes.byref(pointer), size) == 0\n"
        "assert cuda.cuMemHostAlloc(ctypes.byref(pinned), size, 0) == 0\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "assert cuda.cuMemcpyHtoDAsync_v2(pointer, pinned, size, None) == 0\n"
    )
    client = start(own_server.address, "ucx", sys.executable, "-c", program)
    assert client.stdin is not None and client.stdout is not None and client.stderr is not None
    assert client.stdout.readline() == "ready\n"
    worker = worker_of(own_server)
    os.kill(worker, signal.SIGSTOP)
    try:
        client.stdin.close()
        assert client.wait(60) == 0, client.stderr.read()
    finally:
        os.kill(worker, signal.SIGCONT)
    nothing_left(own_server.address)


def test_a_forked_child_does_not_keep_the_connection(
    own_server: Server, run: Callable[..., subprocess.CompletedProcess[str]], nothing_left: Callable[[str], None]
) -> None:
    program = (
        "import ctypes, os, signal, time\n"
        "cuda = ctypes.CDLL('libcuda.so.1'); context = ctypes.c_void_p()\n"
        "assert cuda.cuInit(0) == 0 and cuda.cuCtxCreate_v2(ctypes.byref(context), 0, 0) == 0\n"
        "child = os.fork()\n"
        "if child == 0: os.close(0); os.close(1); os.close(2); time.sleep(20); os._exit(0)\n"
        "print(child, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = run(own_server.address, "ucx", sys.executable, "-c", program)
    child = int(result.stdout.split()[0])
    try:
        own_server.await_line("the client closed a lane", timeout_s=15)
        os.kill(child, 0)  # it lives still: it was not its end that told the worker
        nothing_left(own_server.address)
    finally:
        os.kill(child, signal.SIGKILL)
