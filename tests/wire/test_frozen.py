"""The wire stays compatible with every frozen release of its major version, and control messages across one minor."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest

from wire import control, freeze


def test_the_current_wire_fits_every_frozen_one() -> None:
    major = control.WIRE_VERSION[0]
    copies = {version: wire for version, wire in freeze.frozen().items() if version[0] == major}
    assert (major, 0) in copies
    for version, wire in copies.items():
        assert freeze.incompatibilities(wire, freeze.current()) == [], version


@pytest.fixture
def newer() -> dict[str, Any]:
    return copy.deepcopy(freeze.current())


def test_what_a_minor_may_add(newer: dict[str, Any]) -> None:
    newer["operations"]["9999"] = {"name": "LATER", "flags": [], "fields": [], "reply": [], "tail": False}
    newer["operations"]["42"]["reply"].append({"name": "used_bytes", "type": "u64", "offset": 16, "bytes": 8})
    newer["constants"]["ORION_LATER"] = "1"
    newer["control"]["Attach"]["later"] = ["str", False]
    assert freeze.incompatibilities(freeze.current(), newer) == []


def _swap_codes(wire: dict[str, Any]) -> None:
    operations = wire["operations"]
    operations["51"], operations["52"] = operations["52"], operations["51"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: w["operations"].pop("70"), "is gone"),
        (_swap_codes, "was COPY_D2H and is COPY_D2D"),
        (lambda w: w["operations"]["22"]["fields"].reverse(), "its fields changed"),
        (lambda w: w["operations"]["70"]["fields"].append({"name": "x"}), "its fields changed"),
        (lambda w: w["operations"]["42"]["reply"].pop(), "its reply changed"),
        (lambda w: w["operations"]["42"]["flags"].remove("reply"), "whether it answers"),
        (lambda w: w["constants"].update(ORION_SLOT_PAYLOAD="248u"), "ORION_SLOT_PAYLOAD"),
        (lambda w: w["control"].pop("Bind"), "Bind is gone"),
        (lambda w: w["control"]["Bind"].pop("token"), "token changed or is gone"),
        (lambda w: w["control"]["Bind"].update(later=["str", True]), "must have a default"),
    ],
)
def test_what_a_minor_may_not_change(newer: dict[str, Any], change: Any, complaint: str) -> None:
    change(newer)
    assert any(complaint in line for line in freeze.incompatibilities(freeze.current(), newer))


# ---------------------------------------------------------------------------------------------- one minor apart

DEVICE = {
    "ordinal": 0, "name": "GPU", "uuid": bytes(16), "pci_bus_id": "0000:01:00.0", "total_bytes": 1 << 30,
    "attributes": {1: 1024}, "priority_range": [0, -5], "primary_flags": 0, "slot_bytes": 1 << 30,
}  # fmt: skip
REQUESTS: list[dict[str, Any]] = [
    {"type": "attach", "id": 1, "v": 1, "wire": [1, 0], "transports": ["tcp"]},
    {"type": "bind", "id": 2, "v": 1, "session": "s", "token": bytes(32), "transport": "shm", "host_base": 1 << 44,
     "devices": [{"ordinal": 0, "base": 1 << 45, "bytes": 1 << 30}]},
    {"type": "detach", "id": 5, "v": 1, "session": "s", "token": bytes(32)},
    {"type": "stats", "id": 3, "v": 1},
    {"type": "drain", "id": 4, "v": 1},
]  # fmt: skip
ANSWERS: list[dict[str, Any]] = [
    {"type": "attached", "id": 1, "v": 1, "session": "s", "token": bytes(32), "wire": [1, 1], "server": "1.1",
     "device_name_kind": "softgpu", "driver_version": 13000, "devices": [DEVICE]},
    {"type": "bound", "id": 2, "v": 1},
    {"type": "conflict", "id": 2, "v": 1, "host": True, "devices": []},
    {"type": "drained", "id": 4, "v": 1},
    {"type": "error", "id": 1, "v": 1, "code": 100, "message": "no"},
]  # fmt: skip


def pack(message: dict[str, Any], **more: Any) -> bytes:
    return msgspec.msgpack.encode({**message, **more})


@pytest.mark.parametrize("message", REQUESTS, ids=lambda m: m["type"])
def test_requests_of_a_newer_minor_are_understood(message: dict[str, Any]) -> None:
    newer = {**message, "later": {"nested": [1, 2]}}
    if "wire" in newer:
        newer["wire"] = [control.WIRE_VERSION[0], control.WIRE_VERSION[1] + 1]
    request = control.decode_request(pack(newer))
    assert request.id == message["id"] and type(request).__struct_config__.tag == message["type"]


@pytest.mark.parametrize("message", ANSWERS, ids=lambda m: m["type"])
def test_answers_of_a_newer_minor_are_understood(message: dict[str, Any]) -> None:
    answer = control.decode_answer(pack(message, later=True))
    assert answer.id == message["id"] and type(answer).__struct_config__.tag == message["type"]


@pytest.mark.parametrize("message", [*REQUESTS], ids=lambda m: m["type"])
def test_requests_come_back_as_encoded(message: dict[str, Any]) -> None:
    request = control.decode_request(pack(message))
    assert control.decode_request(control.encode(request)) == request


def test_another_major_is_refused_with_a_sentence() -> None:
    other = control.WIRE_VERSION[0] + 1
    with pytest.raises(control.ControlError, match=f"the client speaks wire {other}.0, this server") as caught:
        control.decode_request(pack(REQUESTS[0], wire=[other, 0]))
    assert (caught.value.code, caught.value.request_id) == (803, 1) and caught.value.hint


def test_another_control_version_is_refused_with_a_sentence() -> None:
    with pytest.raises(control.ControlError, match="control protocol version 2 is not understood") as caught:
        control.decode_request(pack(REQUESTS[3], v=2))
    assert (caught.value.code, caught.value.request_id) == (803, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"transports": []}, {"transports": ["carrier pigeon"]}, {"transports": ["tcp"] * 9}, {"wire": [1]},
        {"wire": [1, 65536]}, {"vgpu": 65}, {"vgpu": -1}, {"ratio": -1}, {"gmem_mib": 1 << 40}, {"program": "x" * 401},
        {"env": {"k" * 65: ""}}, {"env": {str(i): "" for i in range(65)}}, {"pid": "1"}, {"id": 1 << 32}, {"id": None},
    ],
    ids=str,
)  # fmt: skip
def test_fields_out_of_bounds_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(control.ControlError) as caught:
        control.decode_request(pack(REQUESTS[0], **change))
    assert caught.value.code == 1


@pytest.mark.parametrize(
    "change",
    [
        {"token": bytes(31)}, {"host_base": 4096}, {"host_base": 1 << 47}, {"session": ""}, {"transport": "ucx"},
        {"devices": [{"ordinal": 64, "base": 0, "bytes": 1 << 21}]},
        {"devices": [{"ordinal": 0, "base": 1 << 45, "bytes": 0}]},
        {"devices": [{"ordinal": 0, "base": 1, "bytes": 1 << 21}]},
    ],
    ids=str,
)  # fmt: skip
def test_bind_out_of_bounds_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(control.ControlError):
        control.decode_request(pack(REQUESTS[1], **change))


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\xc1", b"\xff" * 100, b"\x91" * 100_000, b"\x81\xa1v\xc0", bytes(2 << 20)]
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(control.ControlError):
        control.decode_request(data)
    with pytest.raises(control.ControlError):
        control.decode_answer(data)
