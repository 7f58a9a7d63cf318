"""What is pure in the DRA driver: quantities, devices and slices for any pool, the examples, the generated modules."""

from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orion_controller.api.models import Gpu
from orion_k8s import gen
from orion_k8s.dra import DRIVER, quantity
from orion_k8s.dra.claims import check_parameters, claimed
from orion_k8s.dra.devices import Claimed, Index, Size, devices, gpu_name, pool_name, pools, share, slices, slot_count
from orion_k8s.dra.proto import dra_v1_pb2, dra_v1beta1_pb2, pluginregistration_pb2

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = sorted((ROOT / "examples" / "kubernetes-dra").glob("*.yaml"))
VERSIONS = ("1.34", "1.35", "1.36", "1.37")
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
POOL = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9.-]*[a-z0-9])?(/[a-z0-9]([a-z0-9.-]*[a-z0-9])?)*")


def gpu(node: str = "gpu-1", ordinal: int = 0, **values: Any) -> Gpu:
    return Gpu(**{  # type: ignore[arg-type]
        "node": node, "ordinal": ordinal, "uuid": f"GPU-{node}-{ordinal}", "name": "NVIDIA H200", "total_mib": 144000,
        "capacity_mib": 140000, "given_mib": 0, "used_mib": 0, "ratio_given_percent": 0, "ratio_percent": 100,
        "vgpus": 0, "max_vgpus": 4,
    } | values)  # fmt: skip


@pytest.mark.parametrize("text, number", [
    ("4Gi", 4 << 30), ("4096Mi", 4 << 30), ("1e3", 1000), ("1E3", 1000), ("1.5k", 1500), ("1500m", Decimal("1.5")),
    ("2E", 2 * 10**18), ("0", 0), (7, 7), ("+.5Ki", 512),
])  # fmt: skip
def test_quantities(text: Any, number: Any) -> None:
    assert quantity.parse(text) == number


@pytest.mark.parametrize("text", ["", "Gi", "4 Gi", "4gi", "4GiB", "1e", "0x10", "--1", None, [], "1" * 40, "NaN", "٣"])
def test_what_is_no_quantity(text: Any) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        quantity.parse(text)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1 << 33))
def test_mib_are_written_as_the_api_server_keeps_them(mib: int) -> None:
    text = quantity.of_mib(mib)
    assert quantity.mib(text) == mib
    number = int(re.match(r"\d+", text).group())  # type: ignore[union-attr]
    assert number == 0 or number % 1024  # else the next suffix


# ------------------------------------------------------------------------------------------------ any pool

_GPUS = st.builds(
    lambda node, ordinal, capacity, percent, places, given, ratio, vgpus: gpu(
        node, ordinal, capacity_mib=capacity, ratio_percent=percent, max_vgpus=places, given_mib=min(given, capacity),
        ratio_given_percent=min(ratio, percent), vgpus=min(vgpus, places),
    ),
    st.sampled_from(["gpu-1", "Gpu_1", "node.example.com", "x" * 255, "ü"]),
    st.integers(0, 15), st.integers(1, 1 << 18), st.sampled_from([1, 2, 100, 10_000]), st.integers(1, 100),
    st.integers(0, 1 << 18), st.integers(0, 10_000), st.integers(0, 100),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(_GPUS, max_size=12, unique_by=lambda g: (g.node, g.ordinal)), st.sampled_from(["consumable", "slots"]))
def test_slices_keep_the_rules_of_the_api_server(gpus: list[Gpu], mode: Any) -> None:
    found, known = pools(gpus, mode, Claimed(), "orion"), Index(gpus, "orion")
    for name, entries in found.items():
        assert POOL.fullmatch(name)
        made = slices(DRIVER, name, entries, 3, {})
        assert sum(len(item["spec"]["devices"]) for item in made) == len(entries)
        for item in made:
            assert 1 <= len(item["spec"]["devices"]) <= 128 and len(item["metadata"]["name"]) <= 253
            assert item["spec"]["pool"] == {"name": name, "generation": 3, "resourceSliceCount": len(made)}
        assert max(Counter(device["name"] for device in entries).values()) == 1
        for device in entries:
            assert LABEL.fullmatch(device["name"])
            named = known.get(name, device["name"])
            assert named is not None and (mode == "slots") == (named.slot is not None)
            assert all(len(a.get("string", "")) <= 64 for a in device["attributes"].values())
            for capacity in device["capacity"].values():
                _check_policy(capacity, device.get("allowMultipleAllocations", False))


def _check_policy(capacity: dict[str, Any], may_have_policy: bool) -> None:
    """What the API server checks of a DeviceCapacity besides its schema (KEP-5075)."""
    value, policy = quantity.parse(capacity["value"]), capacity.get("requestPolicy")
    assert value >= 1 and (policy is None or may_have_policy)
    if policy is None:
        return
    default = quantity.parse(policy["default"])
    if "validValues" in policy:
        assert default in [quantity.parse(text) for text in policy["validValues"]]
        return
    least, most = (quantity.parse(policy["validRange"][key]) for key in ("min", "max"))
    assert 0 <= least <= default <= most <= value
    if "step" in policy["validRange"]:
        step = quantity.parse(policy["validRange"]["step"])
        assert least + step <= value and not (most - least) % step and not (default - least) % step


@settings(deadline=None, max_examples=60)
@given(_GPUS, st.integers(0, 1 << 18), st.integers(0, 100), st.integers(0, 100))
def test_no_more_is_offered_than_there_is_room_for(one: Gpu, mib: int, ratio: int, vgpus: int) -> None:
    """Whatever the claims have and the controller has given, in any order of the two."""
    has = Claimed()
    has.sizes[one.node, one.ordinal] = Size(mib, ratio, vgpus)
    for entry in devices(one, "consumable", has, "orion"):
        for name, claims_have, given_out, all_of_it in (
            ("gmem", mib, one.given_mib, one.capacity_mib),
            ("ratio", ratio, one.ratio_given_percent, one.ratio_percent),
            ("vgpus", vgpus, one.vgpus, one.max_vgpus),
        ):
            text = entry["capacity"][name]["value"]
            value = quantity.mib(text) if name == "gmem" else int(text)
            assert value - claims_have <= all_of_it - max(given_out, claims_have)


@settings(deadline=None, max_examples=60)
@given(_GPUS, st.sets(st.integers(0, 99)))
def test_no_more_slots_are_free_than_there_is_room_for(one: Gpu, taken: set[int]) -> None:
    pool, every, has = pool_name("orion", one.node), Index([one], "orion"), Claimed()
    named = [every.get(pool, f"{gpu_name(one)}-s{slot}") for slot in taken]
    names = {(d.pool, d.name): d for d in named if d is not None}
    assert len(names) == sum(1 for slot in taken if slot < slot_count(one))
    for device in names.values():
        has.add(device, device.size)
    offered = {(pool_name("orion", one.node), d["name"]) for d in devices(one, "slots", has, "orion")}
    assert offered >= set(names)
    free, usual = len(offered - set(names)), share(one)
    others = Size(one.given_mib, one.ratio_given_percent, one.vgpus).beyond(has.sizes[one.node, one.ordinal])
    if free:
        used = free + len(names)
        assert used * usual.gmem_mib + others.gmem_mib <= one.capacity_mib
        assert used * usual.ratio_percent + others.ratio_percent <= one.ratio_percent
        assert used + others.vgpus <= one.max_vgpus


def test_names_of_servers_that_are_no_names_do_not_collide() -> None:
    names = ["a", "A", "a_b", "a-b", "ü", "x" * 300, "x" * 301, "a/b", ".", "-"]
    made = [pool_name("orion", name) for name in names]
    assert len(set(made)) == len(names) and all(POOL.fullmatch(name) for name in made)


def test_a_claim_on_a_device_that_is_gone_counts_for_nothing() -> None:
    result = {"request": "r", "driver": DRIVER, "pool": "orion/other", "device": "gpu-other-0"}
    claim = {"status": {"allocation": {"devices": {"results": [result, "odd", {"driver": "x"}]}}}}
    assert claimed([claim, {}, {"status": None}], Index([gpu()], "orion"), DRIVER).names == set()


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)
        for config in document["spec"].get("spec", {}).get("devices", {}).get("config", []):
            assert config["opaque"]["driver"] == DRIVER
            check_parameters(config["opaque"]["parameters"], DRIVER)
    assert len(EXAMPLES) == 3


def test_a_wrong_manifest_is_found() -> None:
    """That the schemas are there and are strict."""
    (document,) = yaml.safe_load_all((ROOT / "examples" / "kubernetes-dra" / "deviceclass.yaml").read_text())
    document["spec"]["selector"] = []
    for version in VERSIONS:
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(document, version, strict=True)


def test_generated_modules_are_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    assert gen.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_module_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = gen.made()
    assert {path.name for path in made} >= {"dra_v1_pb2.py", "dra_v1_pb2_grpc.py", "pluginregistration_pb2.py"}
    stale = {path: text + "#" if path.name == "dra_v1_pb2.py" else text for path, text in made.items()}
    monkeypatch.setattr(gen, "made", lambda: stale)
    assert gen.main(["--check"]) == 1


def test_the_interfaces_are_the_kubelets() -> None:
    """Names and numbers as k8s.io/kubelet has them: a kubelet of Go has to understand them."""
    v1, v1beta1 = dra_v1_pb2.DESCRIPTOR, dra_v1beta1_pb2.DESCRIPTOR
    for file, version in ((v1, "v1"), (v1beta1, "v1beta1")):
        assert file.package == f"k8s.io.kubelet.pkg.apis.dra.{version}"
        service = file.services_by_name["DRAPlugin"]
        assert [m.name for m in service.methods] == ["NodePrepareResources", "NodeUnprepareResources"]
        numbers = {name: {f.name: f.number for f in m.fields} for name, m in file.message_types_by_name.items()}
        assert numbers["Claim"] == {"namespace": 1, "uid": 2, "name": 3}
        assert numbers["Device"] == {"request_names": 1, "pool_name": 2, "device_name": 3, "cdi_device_ids": 4}
        assert numbers["NodePrepareResourceResponse"] == {"devices": 1, "error": 2}
        assert numbers["NodeUnprepareResourceResponse"] == {"error": 1}
        for name in ("NodePrepareResources", "NodeUnprepareResources"):
            assert numbers[f"{name}Request"] == numbers[f"{name}Response"] == {"claims": 1}
    registration = pluginregistration_pb2.DESCRIPTOR
    assert registration.package == "pluginregistration"
    info = registration.message_types_by_name["PluginInfo"]
    assert {f.name: f.number for f in info.fields} == {
        "type": 1, "name": 2, "endpoint": 3, "supported_versions": 4
    }  # fmt: skip
    assert [m.name for m in registration.services_by_name["Registration"].methods] == [
        "GetInfo", "NotifyRegistrationStatus"
    ]  # fmt: skip
