"""Matrix instructions, mbarrier and alloca where they meet memory and divergent code; what is refused."""

from __future__ import annotations

import re

import pytest

from softgpu.tests.test_vm_control import fault, kernel, refusal, run

MMA = "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%r1, %r2}, {%r3}, {%r4}, {%r5, %r6};"


def test_matrix_instructions_need_the_whole_warp() -> None:
    setup = "mov.b32 %r3, 0x01010101; mov.b32 %r4, 0x02020202; mov.b32 %r5, 5; mov.b32 %r6, 5;"
    assert run(setup + MMA + "st.global.u32 [%x1], %r2;") == [16 * 2 + 5] * 32
    assert fault(setup + MMA, threads=20).code == 715


def test_lanes_of_a_matrix_instruction_come_together() -> None:
    body = """mov.b32 %r3, 0x01010101; mov.b32 %r4, 0x02020202; mov.b32 %r5, 0; mov.b32 %r6, 0;
      setp.lt.u32 %p1, %r0, 7; @!%p1 bra S; mov.u32 %r7, 0;
      L: add.u32 %r7, %r7, 1; setp.lt.u32 %p2, %r7, 50; @%p2 bra L; S: """
    assert run(body + MMA + "st.global.u32 [%x1], %r1;") == [32] * 32


@pytest.mark.parametrize(
    "body,code",
    [
        ("mov.u32 %r1, 64; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1];", 700),
        ("ldmatrix.sync.aligned.m8n8.x1.b16 {%r2}, [%x0+2];", 716),
        ("add.u64 %x2, %x0, 4096; stmatrix.sync.aligned.m8n8.x4.b16 [%x2], {%r1, %r2, %r3, %r4};", 700),
        ("wmma.load.a.sync.aligned.row.m16n16k16.s8 {%r1, %r2}, [%x0], 4096;", 700),
        ("wmma.store.d.sync.aligned.row.m8n8k32.s32 [%x0], {%r1, %r2}, 100000;", 700),
        ("mbarrier.init.b64 [%x0+4096], 1;", 700),
        ("mbarrier.init.b64 [%x0+4], 1;", 716),
        ("red.global.add.v4.f32 [%x0+120], {%f1, %f1, %f1, %f1};", 716),
        ("red.global.add.v4.f32 [%x0+128], {%f1, %f1, %f1, %f1};", 700),
    ],
)
def test_faults_of_wide_accesses(body: str, code: int) -> None:
    e = fault(body)
    assert e.code == code
    assert "kernel k" in e.text and "line" in e.text


def test_mbarrier_between_warps() -> None:
    """The second warp waits for what the first has stored."""
    extra = ".shared .align 8 .b64 bar; .shared .align 4 .b32 s[32];\n"
    body = """setp.ne.u32 %p1, %r0, 0; @!%p1 mbarrier.init.shared.b64 [bar], 32; bar.sync 0;
      mov.u32 %r9, s; and.b32 %r1, %r0, 31; mad.lo.u32 %r2, %r1, 4, %r9; setp.ge.u32 %p2, %r0, 32; @%p2 bra W;
      mul.lo.u32 %r3, %r0, 13; st.shared.u32 [%r2], %r3; mbarrier.arrive.shared.b64 %x2, [bar]; bra E;
      W: mbarrier.try_wait.parity.shared.b64 %p3, [bar], 0; @!%p3 bra W;
      ld.shared.u32 %r4, [%r2]; st.global.u32 [%x1], %r4; E:"""
    assert run(body, 64, extra=extra)[32:] == [13 * t for t in range(32)]


def test_mbarrier_has_too_many_arrivals() -> None:
    extra = ".shared .align 8 .b64 bar;\n"
    body = "mbarrier.init.shared.b64 [bar], 3; mbarrier.arrive.shared.b64 %x2, [bar], 4;"
    assert fault(body, threads=1, extra=extra).code == 715


def test_alloca_is_bounded() -> None:
    body = "mov.u64 %x2, 1000; alloca.u64 %x3, %x2; st.local.u32 [%x3+996], %r0; ld.u32 %r1, [%x3+996]; "
    assert run(body + "st.global.u32 [%x1], %r1;") == list(range(32))
    loop = "mov.u64 %x2, 4096; L: alloca.u64 %x3, %x2; bra L;"
    e = fault(loop)
    assert e.code == 719 and "overflow" in e.text
    # Given back, it can be had again and again.
    again = """mov.u64 %x2, 40000; mov.u32 %r1, 0; L: stacksave.u64 %x4; alloca.u64 %x3, %x2; stackrestore.u64 %x4;
      add.u32 %r1, %r1, 1; setp.lt.u32 %p1, %r1, 50; @%p1 bra L; st.global.u32 [%x1], %r1;"""
    assert run(again) == [50] * 32


@pytest.mark.parametrize(
    "body",
    [
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%f1}, %x0, %x1, 1, 1, 1, 0, 0;",
        "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%x0], 32;",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%x0], [%x1], 16, [%x0];",
        "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [%x0], [%x1, {%r1}], [%x0];",
        "mbarrier.arrive.shared::cluster.b64 _, [%x0];",
        "ld.shared::cluster.u32 %r1, [%x0];",
        "barrier.cluster.wait;",
        "mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%f1}, {%r1}, {%r2}, {%f1}, %r3, 0;",
        "fence.proxy.tensormap::generic.acquire.gpu [%x0], 128;",
    ],
)
def test_refused_by_name(body: str) -> None:
    e = refusal(kernel(body))
    assert e.code == 218 and body.split()[0].rstrip(";") in e.text


@pytest.mark.parametrize("depth", [1000, 100_000])  # a little too much, and what would use up the stack
@pytest.mark.parametrize(
    ("what", "before", "after"),
    [
        ("initialiser", ".global .b32 g[2] = ", ";\n.visible .entry k() { ret; }"),
        ("blocks", ".visible .entry k() ", ""),
        ("operand", ".visible .entry k() { .reg .b32 %r1; mov.b32 %r1, ", "; ret; }"),
    ],
)
def test_nesting_is_bounded(what: str, before: str, after: str, depth: int) -> None:
    text = ".version 8.3\n.target sm_90\n.address_size 64\n" + before + "{" * depth + "1" + "}" * depth + after
    assert re.search(rf"{what} (is|are) nested too deeply", str(refusal(text)))
