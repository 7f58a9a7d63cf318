"""Which vGPU a session gets, and that no more is given out than there is: the registry alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orion_server.server import gpu_memory
from orion_server.slices import (
    GRANULE_BYTES,
    MIB,
    Change,
    Gpu,
    Limits,
    Member,
    Owner,
    Policy,
    Registry,
    SliceError,
    Wish,
)
from orion_server.telemetry import Telemetry
from wire import control

GIB = 1 << 30
CARD = Gpu(0, total_bytes=80 * GIB, foreign_bytes=1 * GIB, context_bytes=512 * MIB)


def registry(*gpus: Gpu, vgpu_count: int = 4, warm: int = 2, **more: int | Policy) -> Registry:
    return Registry(gpus or (CARD,), warm=warm, vgpu_count=vgpu_count, **more)  # type: ignore[arg-type]


def member(name: str, group: str = "", pid: int = 0, shares: bool = False, uid: int = 1000) -> Member:
    return Member(name, pid or hash(name) % 30000 + 1, Owner("host", uid, group), shares)


def refusal(error: pytest.ExceptionInfo[SliceError]) -> tuple[int, str]:
    assert error.value.hint
    return error.value.code, str(error.value)


def two_cards() -> tuple[Gpu, Gpu]:
    return Gpu(0, 10 * GIB), Gpu(1, 10 * GIB)


def test_the_default_is_one_of_vgpu_count_parts_of_what_the_node_leaves() -> None:
    slices = registry()
    # 80 GiB without 1 GiB of others and the contexts of two warm workers and four expected ones.
    assert slices.capacity_bytes(0) == 76 * GIB
    assert slices.admit(member("a"), Wish())[0].limits == Limits(19 * GIB, 25, Policy.HARD)
    uneven = registry(Gpu(0, 10 * GIB + 12345), vgpu_count=3)
    limits = uneven.admit(member("a"), Wish())[0].limits
    assert limits.quota_bytes % GRANULE_BYTES == 0 and limits.ratio_percent == 33
    assert 0 <= (10 * GIB + 12345) // 3 - limits.quota_bytes < GRANULE_BYTES


def test_what_is_reserved_for_other_programs_is_given_to_no_vgpu() -> None:
    assert registry(reserve_bytes=10 * GIB).capacity_bytes(0) == 67 * GIB  # what others have already is part of it
    assert registry(reserve_bytes=1).capacity_bytes(0) == 76 * GIB
    assert registry(reserve_bytes=90 * GIB).left_bytes(0) == 0


def test_vgpu_count_default_vgpus_fit_and_one_more_does_not() -> None:
    for count in (1, 2, 3, 4, 7, 100):
        slices = registry(vgpu_count=count)
        for i in range(count):
            slices.admit(member(f"s{i}"), Wish())
        with pytest.raises(SliceError):
            slices.admit(member("one more"), Wish())
        slices.release("s0")
        slices.admit(member("one more"), Wish())


def test_without_a_vgpu_count_only_what_is_asked_for_is_limited() -> None:
    slices = registry(vgpu_count=0)
    assert slices.admit(member("a"), Wish())[0].limits == Limits(0, 0, Policy.HARD)
    assert slices.admit(member("b"), Wish(gmem_mib=512))[0].limits == Limits(512 * MIB, 0, Policy.HARD)
    assert slices.admit(member("c"), Wish(ratio_percent=30))[0].limits == Limits(0, 30, Policy.HARD)


def test_policy_is_the_clients_else_the_servers() -> None:
    slices = registry(policy=Policy.ELASTIC)
    assert slices.admit(member("a"), Wish())[0].limits.policy is Policy.ELASTIC
    assert slices.admit(member("b"), Wish(policy=Policy.HARD))[0].limits.policy is Policy.HARD


def test_more_memory_than_the_card_has_is_out_of_memory_and_says_what_is_left() -> None:
    slices = registry()
    with pytest.raises(SliceError) as error:
        slices.admit(member("a"), Wish(gmem_mib=200 << 10))
    assert refusal(error) == (
        2,
        "no GPU has 204,800 MiB left for a vGPU: GPU 0 has 77,824 MiB left of 81,920 MiB",
    )
    assert slices.slices == [] and slices.members == {}


def test_more_memory_than_is_left() -> None:
    slices = registry()
    slices.admit(member("a"), Wish(gmem_mib=70 << 10))
    with pytest.raises(SliceError) as error:
        slices.admit(member("b"), Wish(gmem_mib=8 << 10, ratio_percent=10))
    assert refusal(error)[0] == 2 and "GPU 0 has 6,144 MiB left" in str(error.value)
    slices.admit(member("b"), Wish(gmem_mib=6 << 10, ratio_percent=10))


@pytest.mark.parametrize("ratio", [101, 1000, -1])
def test_a_ratio_outside_1_to_100_is_invalid(ratio: int) -> None:
    with pytest.raises(SliceError) as error:
        registry().admit(member("a"), Wish(ratio_percent=ratio))
    assert refusal(error) == (1, f"a ratio of {ratio} %: it is 1 to 100")


@pytest.mark.parametrize("gmem", [-1, -8192])
def test_a_negative_quota_is_invalid(gmem: int) -> None:
    with pytest.raises(SliceError) as error:
        registry().admit(member("a"), Wish(gmem_mib=gmem))
    assert refusal(error) == (1, f"a memory quota of {gmem} MiB: it is at least 1 MiB")


def test_ratios_above_100_choose_another_gpu_else_are_refused() -> None:
    slices = registry(*two_cards(), warm=0)
    wish = Wish(count=1, gmem_mib=100, ratio_percent=60)
    assert slices.admit(member("a"), wish)[0].gpu == 0
    assert slices.admit(member("b"), wish)[0].gpu == 1
    with pytest.raises(SliceError) as error:
        slices.admit(member("c"), wish)
    code, text = refusal(error)
    assert code == 46
    assert text == "no GPU has 60 % left: GPU 0: 1 vGPU holds 60 %; GPU 1: 1 vGPU holds 60 %"
    alone = registry(vgpu_count=4)
    for i, ratio in enumerate((30, 30, 20)):
        alone.admit(member(str(i)), Wish(gmem_mib=1, ratio_percent=ratio))
    with pytest.raises(SliceError) as error:
        alone.admit(member("c"), Wish(gmem_mib=1, ratio_percent=50))
    assert str(error.value) == "no GPU has 50 % left: 3 vGPUs hold 80 %"


def test_with_overcommit_ratios_may_sum_above_100() -> None:
    slices = registry(overcommit_ratio=True)
    for i in range(3):
        slices.admit(member(str(i)), Wish(gmem_mib=1, ratio_percent=70))
    assert slices.given_percent(0) == 210


def test_placement_takes_gpus_with_room_and_the_fewest_vgpus() -> None:
    slices = registry(Gpu(0, 4 * GIB), Gpu(1, 10 * GIB), Gpu(2, 10 * GIB), warm=0, vgpu_count=10)
    one = Wish(count=1, gmem_mib=5 << 10)
    assert [slices.admit(member(str(i)), one)[0].gpu for i in range(3)] == [1, 2, 1]
    assert [s.gpu for s in slices.admit(member("all"), Wish(gmem_mib=5 << 10))] == [2]  # every one that has room
    assert [s.gpu for s in slices.admit(member("small"), Wish(count=1, gmem_mib=1))] == [0]
    with pytest.raises(SliceError) as error:
        slices.admit(member("two"), Wish(count=2, gmem_mib=4 << 10))
    assert refusal(error)[0] == 2 and "not 2 GPUs have" in str(error.value)
    with pytest.raises(SliceError) as error:
        slices.admit(member("many"), Wish(count=4))
    assert refusal(error)[0] == 101


def test_a_group_shares_one_vgpu_that_ends_with_its_last_session() -> None:
    slices = registry(*two_cards(), warm=0)
    (first,) = slices.admit(member("a", "g", shares=True), Wish(count=1, gmem_mib=1024, ratio_percent=40))
    # What later sessions ask for does not matter: the vGPU is there.
    assert slices.admit(member("b", "g", shares=True), Wish(gmem_mib=9 << 10, ratio_percent=90)) == [first]
    assert slices.given_bytes(0) == GIB and slices.given_percent(0) == 40
    assert slices.release("a") == []
    assert slices.release("b") == [first]
    assert slices.given_bytes(0) == 0


def test_a_group_with_more_gpus_later() -> None:
    slices = registry(*two_cards(), warm=0)
    (first,) = slices.admit(member("a", "g", shares=True), Wish(count=1))
    both = slices.admit(member("b", "g", shares=True), Wish(count=2))
    assert both[0] is first and [s.gpu for s in both] == [0, 1]
    assert slices.admit(member("c", "g", shares=True), Wish(count=1)) == [both[1]]  # fewest sessions
    assert slices.admit(member("d", "g", shares=True), Wish()) == both


@pytest.mark.parametrize(
    "other",
    [member("b", "h", shares=True), member("b", "g", shares=True, uid=1001), member("b", "g", shares=False)],
    ids=["another group", "another user", "without BOX"],
)
def test_who_is_not_of_the_group_has_a_vgpu_of_its_own(other: Member) -> None:
    slices = registry()
    (first,) = slices.admit(member("a", "g", shares=True), Wish())
    assert slices.admit(other, Wish()) != [first]


def test_contexts_of_more_sessions_than_expected_are_the_nodes_too() -> None:
    slices = registry(Gpu(0, 10 * GIB, context_bytes=GIB), vgpu_count=1, warm=1)
    slices.admit(member("a", "g", shares=True), Wish(gmem_mib=1024, ratio_percent=10))
    assert slices.capacity_bytes(0) == 8 * GIB
    for name in "bcd":
        slices.admit(member(name, "g", shares=True), Wish())
    assert slices.capacity_bytes(0) == 5 * GIB  # of one warm worker and four that serve


def test_what_a_context_takes_is_measured_by_nvml_else_by_what_the_first_worker_sees() -> None:
    device = control.Device(
        ordinal=3, name="", uuid=bytes(16), pci_bus_id="", total_bytes=80 * GIB, attributes={}, priority_range=(0, 0),
        slot_bytes=0,
    )  # fmt: skip
    assert gpu_memory(device, 70 * GIB, 2 * GIB, 3 * GIB) == Gpu(3, 80 * GIB, 2 * GIB, GIB)
    assert gpu_memory(device, 70 * GIB, 3 * GIB, 2 * GIB) == Gpu(3, 80 * GIB, 3 * GIB, 0)  # others freed meanwhile
    assert gpu_memory(device, 80 * GIB - 600 * MIB, None, None) == Gpu(3, 80 * GIB, 0, 600 * MIB)
    assert gpu_memory(device, 70 * GIB, None, None) == Gpu(3, 80 * GIB, 9 * GIB, GIB)


def test_nvml_tells_the_memory_of_every_gpu_of_the_machine(tmp_path: Path) -> None:
    library = tmp_path / "libnvidia-ml.so.1"
    source = Path(__file__).resolve().parents[1] / "programs" / "fake_nvml.c"
    subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    assert Telemetry(library).used_bytes() == {bytes([*bytes(15), n]): n * GIB for n in (1, 2)}
    assert Telemetry(None).used_bytes() == {}


# ---------------------------------------------------------------------------------------------- change


def test_a_target_is_a_group_a_session_a_process_or_a_vgpu() -> None:
    slices = registry(*two_cards(), warm=0)
    mine = slices.admit(member("aa", "g", pid=11, shares=True), Wish())
    for target in ("g", "aa", "11"):
        assert slices.find(target) == mine
    assert slices.find(mine[1].name) == [mine[1]]
    assert slices.find("g", 1) == [mine[1]]


def test_an_unknown_target_is_told_what_is_near() -> None:
    slices = registry()
    slices.admit(member("aa", "team-blue", shares=True), Wish())
    with pytest.raises(SliceError) as error:
        slices.find("team-bleu")
    assert refusal(error) == (1, "no group, session, process or vGPU is called 'team-bleu'")
    assert error.value.hint == "did you mean team-blue?"
    with pytest.raises(SliceError):
        slices.find("")


@pytest.mark.parametrize("target", ["aa", "g", "11", "vgpu-1"])
def test_a_vgpu_that_is_gone_is_said_to_be(target: str) -> None:
    slices = registry()
    slices.admit(member("aa", "g", pid=11, shares=True), Wish())
    slices.release("aa")
    with pytest.raises(SliceError) as error:
        slices.find(target)
    assert refusal(error) == (1, f"the vGPU of {target!r} is gone: its last program has ended")


def test_a_group_of_two_users_is_ambiguous() -> None:
    slices = registry()
    slices.admit(member("a", "g", shares=True), Wish())
    slices.admit(member("b", "g", shares=True, uid=1001), Wish())
    with pytest.raises(SliceError) as error:
        slices.find("g")
    assert "several users" in str(error.value) and error.value.hint == "name the vGPU: vgpu-1, vgpu-2"


def test_a_target_without_a_vgpu_on_that_gpu() -> None:
    slices = registry(*two_cards(), warm=0)
    slices.admit(member("a", "g"), Wish(count=1))
    with pytest.raises(SliceError) as error:
        slices.find("g", 1)
    assert refusal(error) == (101, "'g' has no vGPU on GPU 1")


def test_a_change_must_fit() -> None:
    slices = registry(vgpu_count=4)
    (a,) = slices.admit(member("a"), Wish(gmem_mib=40 << 10, ratio_percent=50))
    slices.admit(member("b"), Wish(gmem_mib=30 << 10, ratio_percent=30))
    with pytest.raises(SliceError) as error:
        slices.resized([a], Change(gmem_mib=47 << 10))
    assert refusal(error) == (2, "GPU 0 has 6,144 MiB left of 81,920 MiB, the change needs 7,168 MiB more")
    with pytest.raises(SliceError) as error:
        slices.resized([a], Change(ratio_percent=71))
    assert refusal(error) == (46, "GPU 0 has 20 % left: 2 vGPUs hold 80 %")
    for _, limits in slices.resized([a], Change(46 << 10, 70, Policy.ELASTIC)):
        slices.commit(a, limits)
    assert a.limits == Limits(46 * GIB, 70, Policy.ELASTIC)
    slices.resized([a], Change(gmem_mib=1, ratio_percent=1))  # less always fits


def test_what_changes_of_several_vgpus_of_a_gpu_must_fit_together() -> None:
    slices = registry(vgpu_count=4)
    slices.admit(member("a", "g"), Wish(gmem_mib=1, ratio_percent=40))
    slices.admit(member("b", "g"), Wish(gmem_mib=1, ratio_percent=40))
    with pytest.raises(SliceError):
        slices.resized(slices.find("g"), Change(ratio_percent=51))
    slices.resized(slices.find("g"), Change(ratio_percent=50))


@pytest.mark.parametrize("change", [Change(ratio_percent=0), Change(ratio_percent=101), Change(ratio_percent=-1),
                                    Change(gmem_mib=0), Change(gmem_mib=-1), Change()])  # fmt: skip
def test_a_change_to_what_no_vgpu_can_have_is_invalid(change: Change) -> None:
    slices = registry()
    mine = slices.admit(member("a"), Wish())
    with pytest.raises(SliceError) as error:
        slices.resized(mine, change)
    assert refusal(error)[0] == 1


def test_a_new_count_is_for_later_vgpus() -> None:
    slices = registry(Gpu(0, 8 * GIB), warm=0)
    (before,) = slices.admit(member("a"), Wish())
    slices.configure(2, Policy.ELASTIC, None)
    (after,) = slices.admit(member("b"), Wish())
    assert before.limits == Limits(2 * GIB, 25, Policy.HARD)
    assert after.limits == Limits(4 * GIB, 50, Policy.ELASTIC)
    for bad in (-1, 101):
        with pytest.raises(SliceError):
            slices.configure(bad, None, None)
    assert slices.vgpu_count == 2


# ---------------------------------------------------------------------------------------------- for all


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), st.integers(0, 2), st.integers(0, 12 << 10), st.integers(0, 100),
                  st.sampled_from(["", "g", "h"]), st.booleans()),
        st.tuples(st.just("release"), st.integers(0, 30)),
        st.tuples(st.just("resize"), st.integers(0, 30), st.integers(1, 12 << 10), st.integers(1, 100)),
        st.tuples(st.just("configure"), st.integers(0, 8)),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, vgpu_count=st.integers(0, 8), warm=st.integers(0, 3), context_mib=st.integers(0, 700))
def test_never_more_is_given_out_than_there_is(
    steps: list[tuple[object, ...]], vgpu_count: int, warm: int, context_mib: int
) -> None:
    gpus = [Gpu(o, (o + 1) * 8 * GIB + 777, 300 * MIB, context_mib * MIB) for o in range(2)]
    slices = Registry(gpus, warm=warm, vgpu_count=vgpu_count)
    made = 0
    for step in steps:
        before = [(s, s.limits, set(s.sessions)) for s in slices.slices]
        try:
            match step:
                case ("admit", int(count), int(gmem), int(ratio), str(group), bool(shares)):
                    made += 1
                    wish = Wish(count, gmem, ratio)
                    mine = slices.admit(member(f"s{made}", group, shares=shares and bool(group)), wish)
                    assert len(mine) >= max(1, count) and len({s.gpu for s in mine}) == len(mine)
                case ("release", int(number)):
                    slices.release(f"s{number}")
                case ("resize", int(number), int(gmem), int(ratio)):
                    for s, limits in slices.resized(slices.slices_of(f"s{number}"), Change(gmem, ratio)):
                        slices.commit(s, limits)
                case ("configure", int(count)):
                    slices.configure(count, None, None)
        except SliceError:
            assert [(s, s.limits, set(s.sessions)) for s in slices.slices] == before  # a refusal changes nothing
        held = {s: limits.quota_bytes for s, limits, _ in before}
        for s in slices.slices:
            if s.limits.quota_bytes > held.get(s, 0):
                # What has just grown fits beside the contexts of the warm workers and of those that serve or may come.
                gpu = gpus[s.gpu]
                contexts = warm + max(slices.vgpu_count, len(slices.members))
                left = gpu.total_bytes - gpu.foreign_bytes - gpu.context_bytes * contexts
                assert slices.given_bytes(s.gpu) <= left
        for gpu in gpus:
            assert slices.given_bytes(gpu.ordinal) <= gpu.total_bytes - gpu.foreign_bytes - gpu.context_bytes * warm
            assert slices.given_percent(gpu.ordinal) <= 100
        assert all(s.sessions for s in slices.slices)
        assert {session for s in slices.slices for session in s.sessions} == set(slices.members)
