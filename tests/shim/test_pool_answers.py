"""cuInit with a controller: what is asked, what of the configuration counts, and answers that are none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.e2e.pool_controller import PoolController, Reply, Script, allocated
from tests.shim.test_attach_failures import FakeServer, attached
from wire import pool
from wire.control import Attach, decode_request

LIBRARY = Path(__file__).resolve().parents[2] / "build" / "shim" / "libcuda.so.1"
PROGRAM = "import ctypes; cu = ctypes.CDLL('libcuda.so.1'); print(cu.cuInit(0), cu.cuInit(0))"


def run_init(**settings: str) -> tuple[list[int], list[str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORION_", "CUDA_"))}
    environment |= {"LD_PRELOAD": str(LIBRARY), "HOME": "/nonexistent"} | settings
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()], done.stderr.splitlines()


def one_line(lines: list[str], *words: str) -> None:
    assert len(lines) == 1, lines
    for word in ("orion: ", *words):
        assert word in lines[0], lines[0]


@pytest.fixture
def serve() -> Iterator[Callable[[Script], PoolController]]:
    running: list[PoolController] = []

    def start(script: Script) -> PoolController:
        running.append(PoolController(script))
        return running[-1]

    yield start
    for controller in running:
        controller.stop()


def refusing(code: int, message: str = "no GPU for this", hint: str = "") -> Script:
    return lambda request, _: [pool.Error(id=request.id, code=code, message=message, hint=hint)]


# ------------------------------------------------------------------------------------------------- asking


def test_what_is_asked(serve: Callable[[Script], PoolController]) -> None:
    controller = serve(refusing(1, "not\nso", "but so"))
    codes, lines = run_init(
        ORION_CONTROLLER=controller.address, ORION_VGPU="4", ORION_GMEM="4096", ORION_RATIO="25",
        ORION_RATIO_POLICY="elastic", ORION_GROUP_ID="team", ORION_RES_GROUP="BOX", ORION_CROSS_NODE="0",
        ORION_RESERVED="1", ORION_SCHEDULE_RULE="binpack", ORION_WAIT_S="30", ORION_CLIENT_KEY="key",
        ORION_K8S_POD_NAME="p-0", ORION_K8S_POD_UID="12-34", ORION_K8S_POD_NS="prod",
    )  # fmt: skip
    assert codes == [1, 1]
    one_line(lines, f"{controller.address} refused: not so; but so")
    (asked,) = controller.requests
    assert (asked.vgpu, asked.gmem_mib, asked.ratio, asked.ratio_policy) == (4, 4096, 25, "elastic")
    assert (asked.group, asked.res_group, asked.cross_node, asked.reserved) == ("team", "BOX", False, True)
    assert (asked.rule, asked.wait_s, asked.key) == ("binpack", 30, "key")
    assert asked.pod == {"name": "p-0", "uid": "12-34", "namespace": "prod"}
    assert asked.host == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (asked.node, asked.uid, asked.wire) == (os.uname().nodename, os.getuid(), (1, 0))
    assert asked.pid > 0 and os.path.samefile(asked.program, sys.executable)


def test_what_is_asked_by_default(serve: Callable[[Script], PoolController]) -> None:
    controller = serve(refusing(2))
    codes, lines = run_init(ORION_CONTROLLER=controller.address)
    assert codes == [2, 2]
    one_line(lines, "no GPU for this", "ORION_WAIT_S")  # no room: waiting helps
    (asked,) = controller.requests
    assert (asked.vgpu, asked.gmem_mib, asked.ratio, asked.ratio_policy, asked.group) == (1, 0, 0, "", "")
    assert (asked.cross_node, asked.reserved, asked.rule, asked.wait_s) == (True, False, "", 0)
    assert (asked.key, asked.pod, asked.res_group) == ("", {}, "")


def test_a_ticket_goes_to_its_server(serve: Callable[[Script], PoolController]) -> None:
    """As the bytes that they are; what the ticket says is not asked for beside it. `server` is no controller: it keeps
    what it cannot read."""
    ticket = bytes(range(256)) * 8
    given: list[bytes] = []

    class Server(PoolController):
        def stop(self) -> None:
            given.extend(self.unread)
            self.bad.clear()
            super().stop()

    server = Server(lambda request, _: [])
    grant = pool.ServerTicket(server="s", address=server.address, ticket=ticket)
    controller = serve(lambda request, _: [allocated(request, [], servers=[grant])])
    codes, lines = run_init(
        ORION_CONTROLLER=controller.address, ORION_VGPU="2", ORION_GMEM="99", ORION_RATIO="9", ORION_GROUP_ID="team",
        ORION_RATIO_POLICY="hard", ORION_ATTACH_TIMEOUT_MS="1000",
    )  # fmt: skip
    server.stop()
    assert codes == [100, 100]
    one_line(lines, server.address, "did not answer")
    attach = decode_request(given[0])
    assert isinstance(attach, Attach) and attach.ticket == ticket
    assert (attach.vgpu, attach.gmem_mib, attach.ratio, attach.ratio_policy) == (0, 0, 0, "")
    assert attach.group == "team"


@pytest.mark.parametrize("order", ["FASTEST_FIRST", "PCI_BUS_ID"])
def test_devices_stand_as_the_controller_has_put_them(serve: Callable[[Script], PoolController], order: str) -> None:
    """Neither by bus id nor by speed, which put the second device of this server first."""

    def answer(request: dict[str, Any]) -> bytes | None:
        kinds = [(1, "0000:02:00.0", 4), (0, "0000:01:00.0", 8)]
        devices = [
            {"ordinal": n, "name": "d", "uuid": bytes([n] * 16), "pci_bus_id": bus, "slot_bytes": 1 << 32,
             "attributes": {16: processors, 13: 1000, 39: 1024}} for n, bus, processors in kinds
        ]  # fmt: skip
        return attached(request, devices=devices) if request["type"] == "attach" else None

    def bound(**settings: str) -> list[int]:
        server.requests.clear()
        run_init(CUDA_DEVICE_ORDER=order, CUDA_VISIBLE_DEVICES="0", ORION_ATTACH_TIMEOUT_MS="1000", **settings)
        (bind,) = [request for request in server.requests if request["type"] == "bind"]
        return [device["ordinal"] for device in bind["devices"]]

    server = FakeServer(answer)
    try:
        controller = serve(lambda request, _: [allocated(request, [server.address])])
        assert bound(ORION_CONTROLLER=controller.address) == [1]
        assert bound(ORION_SERVER=server.address) == [0]
    finally:
        server.stop()


# ------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ORION_CONTROLLER", "host:port"),
        ("ORION_CONTROLLER", "tcp://127.0.0.1:9123"),
        ("ORION_CONTROLLER", ",".join(["127.0.0.1:1"] * 17)),
        ("ORION_CROSS_NODE", "2"),
        ("ORION_RESERVED", "yes"),
        ("ORION_SCHEDULE_RULE", "random"),
        ("ORION_WAIT_S", "-1"),
        ("ORION_WAIT_S", "86401"),
        ("ORION_WAIT_S", "5m"),
        ("ORION_VGPU", "65"),
        ("ORION_K8S_POD_NAME", "x" * 256),
    ],
)
def test_bad_setting(name: str, value: str) -> None:
    codes, lines = run_init(**{"ORION_CONTROLLER": "127.0.0.1:1", name: value})
    assert codes == [1, 1]
    one_line(lines, f"{name}={value[:100]}", "expected")


def test_a_key_is_not_shown() -> None:
    codes, lines = run_init(ORION_CONTROLLER="127.0.0.1:1", ORION_CLIENT_KEY="s3cret" * 50)
    assert codes == [1, 1]
    one_line(lines, "ORION_CLIENT_KEY", "at most 256 bytes")
    assert "s3cret" not in lines[0]


def test_no_controller_there() -> None:
    codes, lines = run_init(ORION_CONTROLLER="127.0.0.1:1,127.0.0.1:2")
    assert codes == [100, 100]
    one_line(lines, "no controller at 127.0.0.1:2 (Connection refused)", "orion-controller", "ORION_SERVER")


def test_a_silent_controller(serve: Callable[[Script], PoolController]) -> None:
    codes, lines = run_init(ORION_CONTROLLER=serve(lambda *_: []).address, ORION_ATTACH_TIMEOUT_MS="300")
    assert codes == [100, 100]
    one_line(lines, "did not answer within 300 ms", "port (9123) of an orion-controller")


def test_named_servers_go_before_a_controller_of_the_same_place(tmp_path: Path) -> None:
    _, lines = run_init(ORION_CONTROLLER="127.0.0.1:1", ORION_SERVER="127.0.0.1:2", ORION_LOG="info")
    assert len(lines) == 2
    assert "ORION_CONTROLLER=127.0.0.1:1 is not asked" in lines[0] and "no server at 127.0.0.1:2" in lines[1]
    (tmp_path / ".orion").mkdir()
    settings = tmp_path / ".orion" / "client.conf"
    settings.write_text("orion_server = 127.0.0.1:3\norion_controller = 127.0.0.1:4\n")
    one_line(run_init(HOME=str(tmp_path))[1], "no server at 127.0.0.1:3")
    one_line(run_init(HOME=str(tmp_path), ORION_CONTROLLER="127.0.0.1:5")[1], "no controller at 127.0.0.1:5")
    settings.write_text("[controller]\ncontroller_addr = 127.0.0.1:6\n")  # as the files have it that exist
    one_line(run_init(HOME=str(tmp_path))[1], "no controller at 127.0.0.1:6")
    one_line(run_init(HOME=str(tmp_path), ORION_SERVER="127.0.0.1:7")[1], "no server at 127.0.0.1:7")
    settings.write_text("[controller]\ncontroller_addr = nowhere:at:all\n")
    one_line(run_init(HOME=str(tmp_path))[1], "controller_addr=nowhere:at:all is not valid")


# ------------------------------------------------------------------------------------------------- hostile answers


def packed(request: Any, **changes: Any) -> bytes:
    """An `allocated` whose fields may be anything."""
    server = {"server": "s", "address": "127.0.0.1:1", "ticket": b"t"}
    fields = {"v": 1, "type": "allocated", "id": request.id, "allocation": "a-1", "servers": [server]}
    return msgspec.msgpack.encode(fields | {"attach_within_s": 1.0} | changes)


def with_server(**changes: Any) -> Callable[[Any], bytes]:
    return lambda request: packed(
        request, servers=[{"server": "s", "address": "127.0.0.1:1", "ticket": b"t"} | changes]
    )


def queued_as(**changes: Any) -> Callable[[Any], bytes]:
    fields = {"v": 1, "type": "queued", "position": 1, "reason": "r", "ticket": 1} | changes
    return lambda request: msgspec.msgpack.encode(fields | {"id": request.id})


HOSTILE: dict[str, Callable[[Any], bytes]] = {
    "empty": lambda request: b"",
    "random": lambda request: b"\xc1\xff\x00garbage",
    "truncated": lambda request: packed(request)[:-20],
    "deep": lambda request: b"\x91" * 100_000,
    "huge_map": lambda request: b"\xdf\xff\xff\xff\xff",
    "another_type": lambda request: packed(request, type="registered"),
    "no_servers": lambda request: packed(request, servers=[]),
    "too_many_servers": lambda request: packed(
        request, servers=[{"server": "s", "address": "127.0.0.1:1", "ticket": b"t"}] * 65
    ),
    "servers_a_map": lambda request: packed(request, servers={"0": "s"}),
    "servers_numbers": lambda request: packed(request, servers=[1, 2]),
    "ticket_empty": with_server(ticket=b""),
    "ticket_long": with_server(ticket=b"t" * 2049),
    "ticket_1_mib": with_server(ticket=b"t" * (1 << 20)),
    "ticket_number": with_server(ticket=7),
    "address_long": with_server(address="a" * 200 + ":1"),
    "address_no_port": with_server(address="127.0.0.1"),
    "address_bad_port": with_server(address="127.0.0.1:0"),
    "address_transport": with_server(address="ipc:///tmp/x:1"),
    "address_null": with_server(address=None),
    "key_short": with_server(public_key="short"),
    "allocation_empty": lambda request: packed(request, allocation=""),
    "allocation_long": lambda request: packed(request, allocation="a" * 65),
    "allocation_lines": lambda request: packed(request, allocation="a\nb"),
    "time_nan": lambda request: packed(request, attach_within_s=float("nan")),
    "time_text": lambda request: packed(request, attach_within_s="soon"),
    "time_none": lambda request: packed(request, attach_within_s=0),
    "queue_place_0": queued_as(position=0),
    "queue_ticket": queued_as(ticket=1 << 40),
    "queue_text": queued_as(position="first"),
    "queue_nothing": lambda request: msgspec.msgpack.encode({"v": 1, "type": "queued", "id": request.id}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answer(serve: Callable[[Script], PoolController], name: str) -> None:
    def script(request: Any, _: PoolController) -> list[Reply]:
        return [HOSTILE[name](request)] if isinstance(request, pool.Allocate) else []

    codes, lines = run_init(ORION_CONTROLLER=serve(script).address, ORION_WAIT_S="5")
    assert codes == [100, 100]
    one_line(lines, "ORION_CONTROLLER")


def test_another_version(serve: Callable[[Script], PoolController]) -> None:
    codes, lines = run_init(ORION_CONTROLLER=serve(lambda request, _: [packed(request, v=7)]).address)
    assert codes == [803, 803]
    one_line(lines, "version 7", "same release")


def test_unknown_fields_and_a_megabyte_of_them_are_passed_over(serve: Callable[[Script], PoolController]) -> None:
    controller = serve(lambda request, _: [packed(request, more=b"x" * (1 << 20))])
    codes, lines = run_init(ORION_CONTROLLER=controller.address)
    assert codes == [100, 100]
    one_line(lines, "no server at 127.0.0.1:1")
    assert controller.wait_for(pool.GiveUp).allocation == "a-1"


def test_an_allocation_that_cannot_be_used_is_given_up(serve: Callable[[Script], PoolController]) -> None:
    controller = serve(lambda request, _: [packed(request, servers=[])])
    run_init(ORION_CONTROLLER=controller.address)
    assert controller.wait_for(pool.GiveUp).allocation == "a-1"


@pytest.mark.parametrize("leader", ["", "nowhere", "ipc:///tmp/x:1", "a" * 250 + ":1", 7, None])
def test_hostile_leader(serve: Callable[[Script], PoolController], leader: Any) -> None:
    def script(request: Any, _: PoolController) -> list[Reply]:
        return [msgspec.msgpack.encode({"v": 1, "type": "not_leader", "id": request.id, "leader": leader})]

    codes, lines = run_init(ORION_CONTROLLER=serve(script).address, ORION_ATTACH_TIMEOUT_MS="600")
    assert codes == [100, 100]
    one_line(lines, "leader")
