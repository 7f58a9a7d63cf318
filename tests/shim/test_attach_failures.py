"""cuInit against servers that are absent, wrong or hostile: the CUDA code, one line on stderr, no crash."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

LIBRARY = Path(__file__).resolve().parents[2] / "build" / "shim" / "libcuda.so.1"
PROGRAM = "import ctypes; cu = ctypes.CDLL('libcuda.so.1'); print(cu.cuInit(0), cu.cuInit(0))"
Answer = Callable[[dict[str, Any]], bytes | None]


def run_init(server: str, program: str = PROGRAM, **settings: str) -> tuple[list[int], list[str], float]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORION_", "CUDA_"))}
    environment |= {"LD_PRELOAD": str(LIBRARY), "ORION_SERVER": server, "HOME": "/nonexistent"} | settings
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()], done.stderr.splitlines(), time.monotonic() - began


class FakeServer:
    """A ROUTER that answers every request with what `answer` makes of it (None: nothing)."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.address = f"127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        while not self.stopping.is_set():
            if not self.socket.poll(20):
                continue
            identity, body = self.socket.recv_multipart()
            request = msgpack.unpackb(body)
            self.requests.append(request)
            answer = self.answer(request)
            if answer is not None:
                self.socket.send_multipart([identity, answer])

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join()
        self.context.destroy(linger=0)


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], FakeServer]]:
    servers: list[FakeServer] = []

    def start(answer: Answer) -> FakeServer:
        servers.append(FakeServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def one_line(lines: list[str], *words: str) -> None:
    assert len(lines) == 1, lines
    assert lines[0].startswith("orion: ")
    for word in words:
        assert word in lines[0], lines[0]


def attached(request: dict[str, Any], **changes: Any) -> bytes:
    device = {
        "ordinal": 0,
        "name": "fake",
        "uuid": bytes(range(16)),
        "pci_bus_id": "0000:01:00.0",
        "total_bytes": 1 << 30,
        "attributes": {16: 4},
        "priority_range": [0, 0],
        "primary_flags": 0,
        "slot_bytes": 1 << 34,
    }
    answer = {
        "v": 1,
        "type": "attached",
        "id": request["id"],
        "session": "s",
        "token": bytes(32),
        "wire": [1, 0],
        "server": "fake 1",
        "device_name_kind": "softgpu",
        "driver_version": 13000,
        "shm_socket": "",
        "tcp_ops": "tcp://127.0.0.1:1",
        "tcp_bulk": "tcp://127.0.0.1:1",
        "devices": [device],
    }
    result: bytes = msgpack.packb(answer | changes)
    return result


def refusal(request: dict[str, Any], code: int, message: str) -> bytes:
    answer = {"v": 1, "type": "error", "id": request["id"], "code": code, "message": message, "hint": "do that"}
    result: bytes = msgpack.packb(answer)
    return result


def test_no_server() -> None:
    codes, lines, _ = run_init("127.0.0.1:1")
    assert codes == [100, 100]  # the second call repeats the first one's answer, and says nothing
    one_line(lines, "no server at 127.0.0.1:1", "orion-server", "ORION_SERVER")


def test_unknown_host() -> None:
    codes, lines, _ = run_init("no-such-host.invalid:9960")
    assert codes == [100, 100]
    one_line(lines, "no-such-host.invalid")


def test_port_of_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def speak() -> None:
            for _ in range(2):  # the probe, then ZeroMQ
                connection, _peer = listener.accept()
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n" * 4)
                connection.close()

        thread = threading.Thread(target=speak)
        thread.start()
        codes, lines, _ = run_init(f"127.0.0.1:{port}", ORION_ATTACH_TIMEOUT_MS="3000")
        thread.join()
    assert codes == [100, 100]
    one_line(lines, f"127.0.0.1:{port}", "9960")


def test_silent_server(serve: Callable[[Answer], FakeServer]) -> None:
    server = serve(lambda request: None)
    codes, lines, seconds = run_init(server.address, ORION_ATTACH_TIMEOUT_MS="300")
    assert codes == [100, 100]
    assert seconds >= 0.3
    one_line(lines, "did not answer within 300 ms")


def test_refusal_and_what_attach_says(serve: Callable[[Answer], FakeServer]) -> None:
    server = serve(lambda request: refusal(request, 2, "no memory for\nthis quota"))
    codes, lines, _ = run_init(
        server.address, ORION_GMEM="512", ORION_RATIO="25", ORION_VGPU="2", CUDA_MODULE_LOADING="EAGER",
        ORION_GROUP_ID="team", ORION_RES_GROUP="BOX", ORION_RATIO_POLICY="elastic",
    )  # fmt: skip
    assert codes == [2, 2]
    one_line(lines, "refused", "no memory for this quota", "do that")
    request = server.requests[0]
    assert (request["v"], request["type"], request["wire"]) == (1, "attach", [1, 0])
    assert (request["vgpu"], request["gmem_mib"], request["ratio"]) == (2, 512, 25)
    assert (request["group"], request["res_group"], request["ratio_policy"]) == ("team", "BOX", "elastic")
    assert request["transports"] == ["shm", "tcp"]
    assert request["env"] == {"CUDA_MODULE_LOADING": "EAGER"}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ORION_TCP_LANES", "udp", "auto, raw or zmq"),
        ("ORION_TCP_LANES", "raw,zmq", "auto, raw or zmq"),
        ("ORION_TCP_STRIPES", "9", "0 to 8"),
        ("ORION_TCP_STRIPES", "-1", "0 to 8"),
        ("ORION_TCP_STRIPES", "many", "0 to 8"),
        ("ORION_EMULATE_RTT_US", "-1", "0 to 1000000"),
        ("ORION_EMULATE_RTT_US", "1000001", "0 to 1000000"),
        ("ORION_EMULATE_RTT_US", "20ms", "0 to 1000000"),
        ("ORION_EMULATE_RTT_US", "nan", "0 to 1000000"),
        ("ORION_EMULATE_GBIT", "fast", "0 to 10000"),
        ("ORION_EMULATE_GBIT", "10001", "0 to 10000"),
    ],
)
def test_bad_lane_settings(name: str, value: str, expected: str) -> None:
    codes, lines, _ = run_init("127.0.0.1:1", **{name: value})
    assert codes[0] != 0 and codes[0] == codes[1]
    one_line(lines, f"{name}={value}", "not valid", expected)


@pytest.mark.parametrize("setting", [{"ORION_EMULATE_RTT_US": "100"}, {"ORION_EMULATE_GBIT": "10"}])
def test_emulated_network_needs_plain_lanes(serve: Callable[[Answer], FakeServer], setting: dict[str, str]) -> None:
    def answer(request: dict[str, Any]) -> bytes:
        if request["type"] == "attach":
            return attached(request)
        return bytes(msgpack.packb({"v": 1, "type": "bound", "id": request["id"]}))

    server = serve(answer)
    codes, lines, _ = run_init(server.address, ORION_TRANSPORT="tcp", ORION_TCP_LANES="zmq", **setting)
    assert codes[0] != 0 and codes[0] == codes[1]
    assert server.requests[0]["lanes"] == ["zmq"]
    one_line(lines, "ORION_EMULATE_RTT_US", "plain TCP lanes", "ORION_TCP_LANES")


def test_wire_version_mismatch(serve: Callable[[Answer], FakeServer]) -> None:
    server = serve(lambda request: attached(request, wire=[2, 0]))
    codes, lines, _ = run_init(server.address)
    assert codes == [803, 803]
    one_line(lines, "2.0", "1.0", "same release")


def test_protocol_version_mismatch(serve: Callable[[Answer], FakeServer]) -> None:
    server = serve(lambda request: attached(request, v=7))
    codes, lines, _ = run_init(server.address)
    assert codes == [803, 803]
    one_line(lines, "version 7", "same release")


HOSTILE: dict[str, Answer] = {
    "empty": lambda request: b"",
    "random": lambda request: b"\xc1\xff\x00garbage",
    "truncated": lambda request: attached(request)[:-40],
    "deep": lambda request: b"\x91" * 100_000,
    "huge_map": lambda request: b"\xdf\xff\xff\xff\xff",
    "huge_string": lambda request: b"\x81\xdb\xff\xff\xff\xf0type",
    "short_token": lambda request: attached(request, token=b"x"),
    "long_socket": lambda request: attached(request, shm_socket="/" * 4000),
    "many_devices": lambda request: attached(request, devices=[{}] * 65),
    "huge_slot": lambda request: attached(
        request, devices=[{"ordinal": 0, "name": "x", "uuid": bytes(16), "slot_bytes": 1 << 60}]
    ),
    "bad_ordinal": lambda request: attached(request, devices=[{"ordinal": 1 << 40, "slot_bytes": 1 << 30}]),
    "wrong_type": lambda request: attached(request, type="bound"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answer(serve: Callable[[Answer], FakeServer], name: str) -> None:
    codes, lines, _ = run_init(serve(HOSTILE[name]).address)
    assert codes == [100, 100]
    one_line(lines, "ORION_SERVER")


def test_endless_conflicts_end(serve: Callable[[Answer], FakeServer]) -> None:
    bases: set[int] = set()

    def answer(request: dict[str, Any]) -> bytes | None:
        if request["type"] == "attach":
            return attached(request)
        if request["type"] != "bind":
            return None
        assert request["host_base"] not in bases, "a refused address was offered again"
        bases.add(request["host_base"])
        return bytes(msgpack.packb({"v": 1, "type": "conflict", "id": request["id"], "host": True, "devices": [0]}))

    codes, lines, _ = run_init(serve(answer).address)
    assert codes == [2, 2]
    assert len(lines) == 1
    assert len(bases) > 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ORION_SERVER", "host:port"),
        ("ORION_SERVER", "127.0.0.1:70000"),
        ("ORION_TRANSPORT", "pigeon"),
        ("ORION_RATIO", "101"),
        ("ORION_RATIO", "0"),
        ("ORION_RATIO", "abc"),
        ("ORION_RATIO_POLICY", "soft"),
        ("ORION_RES_GROUP", "box of mine"),
        ("ORION_RES_GROUP", "BOX"),  # of which group?
        ("ORION_GMEM", "-5"),
        ("ORION_VGPU", "many"),
        ("ORION_LOG", "loud"),
        ("ORION_ATTACH_TIMEOUT_MS", "0"),
        ("ORION_SYNC", "yes"),
    ],
)
def test_bad_setting(name: str, value: str) -> None:
    settings = {"ORION_SERVER": "127.0.0.1:1"} | {name: value}
    codes, lines, _ = run_init(settings.pop("ORION_SERVER"), **settings)
    assert codes == [1, 1]
    one_line(lines, f"{name}={value}", "expected")


def test_configuration_files(tmp_path: Path) -> None:
    (tmp_path / ".orion").mkdir()
    (tmp_path / ".orion" / "client.conf").write_text("# ours\n[client]\norion_server = 127.0.0.1:3\n")
    _, lines, _ = run_init("", HOME=str(tmp_path))
    one_line(lines, "no server at 127.0.0.1:3")
    _, lines, _ = run_init("127.0.0.1:1", HOME=str(tmp_path))  # the environment goes first
    one_line(lines, "no server at 127.0.0.1:1")


@pytest.mark.parametrize(
    ("visible", "code"), [("", 100), ("-1", 100), ("7", 100), ("0,0", 100), ("GPU-ffff", 100), ("x", 100)]
)
def test_hidden_devices(serve: Callable[[Answer], FakeServer], visible: str, code: int) -> None:
    server = serve(lambda request: attached(request) if request["type"] == "attach" else None)
    codes, lines, _ = run_init(server.address, CUDA_VISIBLE_DEVICES=visible)
    assert codes == [code, code]
    assert lines == []  # the program asked for it
    assert [request["type"] for request in server.requests if request["type"] == "bind"] == []


@pytest.mark.parametrize(
    ("visible", "ordinals"), [("1", [1]), ("2,0,9,1", [2, 0]), ("GPU-0101", [1]), ("gpu-02,0", [2, 0])]
)
def test_visible_devices_are_bound(serve: Callable[[Answer], FakeServer], visible: str, ordinals: list[int]) -> None:
    devices = [{"ordinal": i, "name": f"d{i}", "uuid": bytes([i] * 16), "slot_bytes": 1 << 32} for i in range(3)]

    def answer(request: dict[str, Any]) -> bytes | None:
        if request["type"] == "attach":
            return attached(request, devices=devices)
        return refusal(request, 2, "enough seen") if request["type"] == "bind" else None

    server = serve(answer)
    run_init(server.address, CUDA_VISIBLE_DEVICES=visible)
    bind = next(request for request in server.requests if request["type"] == "bind")
    assert sorted(slot["ordinal"] for slot in bind["devices"]) == sorted(ordinals)
    assert len({slot["base"] for slot in bind["devices"]}) == len(ordinals)


def test_nothing_happens_before_init() -> None:
    program = (
        "import os; print(len(os.listdir('/proc/self/task')), "
        "sum('socket:' in os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') "
        "if os.path.exists(f'/proc/self/fd/{fd}') or os.path.islink(f'/proc/self/fd/{fd}')))"
    )
    codes, lines, _ = run_init("127.0.0.1:1", program)
    assert codes == [1, 0]
    assert lines == []


def test_a_failed_init_leaves_no_thread() -> None:
    program = (
        "import ctypes, os; result = ctypes.CDLL('libcuda.so.1').cuInit(0); "
        "print(result, len(os.listdir('/proc/self/task')))"
    )
    codes, _, _ = run_init("127.0.0.1:1", program)
    assert codes == [100, 1]
