"""The kubelet's list of devices, and which of them it is told to take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orion_k8s.device_plugin.devices import FORGET_S, Device, Gpu, device_id, listed, preferred, seen

NAMES = st.text(min_size=1, max_size=255)


def gpus(*servers: str, vgpus: int = 2) -> list[Gpu]:
    return [Gpu(server, ordinal, vgpus, True) for server in servers for ordinal in range(2)]


def test_the_nodes_own_come_first_and_a_long_list_is_cut() -> None:
    known = seen({}, gpus("a", "b", "c"), 0.0)
    devices, count = listed(known, "b", 6)
    assert count == 12 and [device.server for device in devices] == ["b"] * 4 + ["a"] * 2
    assert listed(known, "nowhere", 100)[0] == sorted(listed(known, "nowhere", 100)[0], key=lambda d: d.server)


def test_a_gpu_that_leaves_is_unhealthy_for_a_while() -> None:
    known = seen({}, gpus("a", "b"), 100.0)
    known = seen(known, gpus("a"), 100.0 + FORGET_S - 1)
    devices, _ = listed(known, "a", 100)
    assert {(device.server, device.is_healthy) for device in devices} == {("a", True), ("b", False)}
    known = seen(known, gpus("a"), 100.0 + FORGET_S)
    assert {device.server for device in listed(known, "a", 100)[0]} == {"a"}
    known = seen(known, gpus("a", "b"), 101.0 + FORGET_S)
    assert all(device.is_healthy for device in listed(known, "a", 100)[0])


@given(st.lists(st.tuples(NAMES, st.integers(0, 63), st.integers(-1, 200)), max_size=8), NAMES, st.integers(1, 300))
def test_ids_are_few_enough_short_enough_and_different(rows: list[tuple[str, int, int]], node: str, most: int) -> None:
    known = seen({}, [Gpu(*row, True) for row in rows], 0.0)
    devices, count = listed(known, node, most)
    assert len({device.id for device in devices}) == len(devices) == min(count, most)
    assert all(0 < len(device.id.encode()) <= 63 and device.id.isascii() for device in devices)


def test_ids_stay() -> None:
    assert device_id(Gpu("node-1", 3, 4, True), 2) == "node-1-35971be6-3-2"


def of(servers: str) -> list[Device]:
    return [Device(f"{server}{number}", True, server) for server in servers for number in range(3)]


def test_devices_of_few_servers_are_preferred_the_nodes_own_first() -> None:
    devices = of("abc")
    free = [device.id for device in devices]
    assert preferred(devices, "b", free, [], 2) == ["b0", "b1"]
    assert preferred(devices, "b", free, ["c1"], 2) == ["c1", "c0"]
    assert preferred(devices, "", ["a0", "b0", "b1", "c0", "c1", "c2"], [], 2) == ["b0", "b1"]  # the fullest that fits
    assert preferred(devices, "a", ["a0", "b0", "b1", "b2"], [], 3) == ["b0", "b1", "b2"]
    assert preferred(devices, "a", ["unknown"], [], 1) == ["unknown"]


@given(st.data())
def test_what_is_preferred_is_what_was_asked_for(data: st.DataObject) -> None:
    devices = of("abcd")
    free = data.draw(st.lists(st.sampled_from([d.id for d in devices]), unique=True))
    must = data.draw(st.lists(st.sampled_from(free), unique=True)) if free else []
    count = data.draw(st.integers(-1, 13))
    if not len(must) <= count <= len(free):
        with pytest.raises(ValueError, match="are asked for"):
            preferred(devices, "a", free, must, count)
        return
    chosen = preferred(devices, "a", free, must, count)
    assert len(chosen) == len(set(chosen)) == count and set(must) <= set(chosen) <= set(free)
