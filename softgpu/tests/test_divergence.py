"""Lanes that part and meet must compute what each computes by itself (softgpu/tests/divergence.py)."""

from __future__ import annotations

import dataclasses

import pytest

from softgpu.tests import divergence, test_agreement
from softgpu.tests.test_vm_control import run

SEED = 1


def test_random_kernels_agree_with_lanes_alone() -> None:
    tried, found = divergence.search(SEED, seconds=30.0, most=400)
    assert found is None, found.text()
    assert tried > 20


@pytest.mark.slow
def test_many_random_kernels_agree_with_lanes_alone() -> None:
    _, found = divergence.search(1_000_000, seconds=30.0)
    assert found is None, found.text()


def test_a_difference_is_found_and_shrunk() -> None:
    """What lanes run together with is something that the two modes must not agree on."""
    kernel = divergence.Maker(5).kernel()
    culprit = divergence.Op(["activemask.b32 %t1;", "red.shared.max.u32 [sums], %t1;"])
    kernel.body[:0] = [divergence.If(["setp.lt.u32 %q, %lane, 9;"], [culprit], [])]
    assert len(kernel.body) > 2 and divergence.differs(kernel)
    small = divergence.shrink(kernel, divergence.differs, 60.0)
    assert small.body == [culprit] and not any(small.functions) and small.blocks == 1


def test_lanes_alone_are_alone_until_they_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTGPU_ONE_LANE", "1")
    assert run("activemask.b32 %r1; st.global.u32 [%x1], %r1;") == [1 << t for t in range(32)]
    body = "vote.sync.any.pred %p1, 1, 0xffffffff; activemask.b32 %r1; st.global.u32 [%x1], %r1;"
    assert run(body.replace("1, 0x", "%p2, 0x")) == [1 << t for t in range(32)]
    exchange = "redux.sync.add.u32 %r1, %r0, 0xffffffff; st.global.u32 [%x1], %r1;"
    assert run(exchange) == [sum(range(32))] * 32


@pytest.mark.parametrize("group", test_agreement.GROUPS)
def test_every_instruction_gives_the_same_for_a_lane_alone(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers have a path for whole warps and one for some lanes. activemask tells them apart by what it is."""
    cases = [c for c in test_agreement.of_group(group) if test_agreement.opcode(c) not in ("activemask", "elect")]
    together = {c.name: raw for c, raw in test_agreement.answers(cases)}
    monkeypatch.setenv("SOFTGPU_ONE_LANE", "1")
    wrong = []
    for case, raw in test_agreement.answers(cases):
        exact = dataclasses.replace(case, kind="bits")  # which NaN an x86 gives depends on the order of operands
        if raw != together[case.name]:
            wrong += [
                f"{case.name}: {d}" for d in exact.differences(exact.columns(raw), exact.columns(together[case.name]))
            ]
    assert together and not wrong, wrong[:20]
