"""Control flow, warps and barriers, faults, refusals: hand-written PTX."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from softgpu.tests import vm

ROOT = Path(__file__).resolve().parents[2]
HEAD = ".version 8.6\n.target sm_80\n.address_size 64\n"
BUMP = (
    HEAD.replace("8.6", "7.0")
    + """
.visible .entry bump(.param .u64 p, .param .u32 n)
{ .reg .u64 %rd<2>; .reg .u32 %r<3>;
  ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [n];
  atom.global.add.u32 %r2, [%rd1], %r1;
  ret; }
"""
)
START = """{ .reg .pred %p<9>; .reg .b32 %r<20>; .reg .b64 %x<9>; .reg .f32 %f<4>;
  mov.u32 %r0, %tid.x; ld.param.u64 %x0, [out]; mad.wide.u32 %x1, %r0, 4, %x0;
"""


def kernel(body: str, extra: str = "") -> str:
    """A kernel k(u64 out) whose body has %r0 = tid.x and %x1 = &out[tid.x]."""
    return HEAD + extra + ".visible .entry k(.param .u64 out)\n" + START + body + "\nret; }\n"


def run(
    body: str, threads: int = 32, grid: int = 1, extra: str = "", shared: int = 0, cooperative: bool = False
) -> list[int]:
    m = vm.Machine(kernel(body, extra))
    out = m.buffer(np.zeros(max(threads, 32), np.uint32))
    m.run("k", grid, threads, out, shared=shared, cooperative=cooperative)
    return out.get().tolist()


def fault(body: str, threads: int = 32, extra: str = "") -> vm.Fault:
    with pytest.raises(vm.Fault) as e:
        run(body, threads, extra=extra)
    return e.value


def refusal(text: str) -> vm.PtxError:
    with pytest.raises(vm.PtxError) as e:
        m = vm.Machine(text)
        for name in m.kernel_names():
            m.kernel(name)
    return e.value


def test_bump() -> None:
    m = vm.Machine(BUMP)
    value = m.buffer(np.zeros(1, np.uint32))
    for _ in range(10):
        m.run("bump", 1, 1, value, 3)
    m.run("bump", 1000, 64, value, 1)
    assert value.get()[0] == 30 + 64000
    assert m.info("bump")["param_bytes"] == 12


def test_nested_divergence() -> None:
    body = """and.b32 %r1, %r0, 1; setp.eq.u32 %p1, %r1, 0; and.b32 %r2, %r0, 2; setp.eq.u32 %p2, %r2, 0;
      mov.u32 %r3, 0;
      @%p1 bra A;
      @%p2 bra B; add.u32 %r3, %r3, 1; bra C;
      B: add.u32 %r3, %r3, 2;
      C: add.u32 %r3, %r3, 10; bra D;
      A: mov.u32 %r4, 0;
      L: add.u32 %r3, %r3, 100; add.u32 %r4, %r4, 1; setp.lt.u32 %p3, %r4, %r0; @%p3 bra L;
      D: activemask.b32 %r5; setp.ne.u32 %p4, %r5, 0xffffffff; @%p4 mov.u32 %r3, 7777;
      st.global.u32 [%x1], %r3;"""
    want = [100 * max(t, 1) if t % 2 == 0 else (12 if t & 2 == 0 else 11) for t in range(32)]
    assert run(body) == want  # 7777 would mean that the lanes did not come together again


def test_early_exit_and_partial_warp() -> None:
    body = """mov.u32 %r1, 5; setp.lt.u32 %p1, %r0, 10; @%p1 exit; bar.sync 0; vote.sync.ballot.b32 %r2, 1, 0xffffffff;
      st.global.u32 [%x1], %r2;"""
    got = run(body, 40)
    assert got[:10] == [0] * 10 and got[10:32] == [0xFFFFFC00] * 22 and got[32:40] == [0xFF] * 8


def test_branch_table() -> None:
    body = """ts: .branchtargets A, B, C; and.b32 %r1, %r0, 3; min.u32 %r1, %r1, 2; brx.idx %r1, ts;
      A: mov.u32 %r2, 100; bra E; B: mov.u32 %r2, 200; bra E; C: mov.u32 %r2, 300; E: st.global.u32 [%x1], %r2;"""
    assert run(body) == [[100, 200, 300, 300][t % 4] for t in range(32)]
    bad = body.replace("min.u32 %r1, %r1, 2;", "")
    assert fault(bad).code == 718


def test_labels_are_local_to_their_block() -> None:
    block = "{ setp.lt.u32 %p1, %r0, N; @%p1 bra SKIP; add.u32 %r1, %r1, 1; SKIP: }"
    body = "mov.u32 %r1, 0;" + block.replace("N", "4") + block.replace("N", "8") + "st.global.u32 [%x1], %r1;"
    assert run(body) == [(t >= 4) + (t >= 8) for t in range(32)]


def test_shuffle_modes() -> None:
    for mode, b, c, f in [
        ("up", 3, 0, lambda t: (t - 3, t >= 3)),
        ("down", 5, 31, lambda t: (t + 5, t + 5 < 32)),
        ("bfly", 9, 31, lambda t: (t ^ 9, True)),
        ("idx", 37, 31, lambda t: (5, True)),
        ("down", 2, 0x181F, lambda t: (t + 2, t % 8 + 2 < 8)),
        ("up", 1, 0x1800, lambda t: (t - 1, t % 8 >= 1)),
        ("idx", 3, 0x1C1F, lambda t: (t // 4 * 4 + 3, True)),
    ]:
        body = f"""add.u32 %r1, %r0, 100; shfl.sync.{mode}.b32 %r2|%p1, %r1, {b}, {c:#x}, 0xffffffff;
          selp.u32 %r3, 1000, 0, %p1; add.u32 %r2, %r2, %r3; st.global.u32 [%x1], %r2;"""
        want = [100 + (f(t)[0] if f(t)[1] else t) + 1000 * f(t)[1] for t in range(32)]
        assert run(body) == want, (mode, b, c)


def test_sync_waits_for_members() -> None:
    # Odd lanes arrive late at a shuffle that stands behind the point where they come together.
    body = """mov.u32 %r1, 0; and.b32 %r2, %r0, 1; setp.eq.u32 %p1, %r2, 0; @%p1 bra S;
      mov.u32 %r3, 0; L: add.u32 %r3, %r3, 1; setp.lt.u32 %p2, %r3, 100; @%p2 bra L; mov.u32 %r1, %r3;
      S: shfl.sync.bfly.b32 %r4, %r1, 1, 31, 0xffffffff; st.global.u32 [%x1], %r4;"""
    assert run(body) == [100 if t % 2 == 0 else 0 for t in range(32)]


def test_match_and_redux() -> None:
    body = "shr.u32 %r1, %r0, 3; match.any.sync.b32 %r2, %r1, 0xffffffff; st.global.u32 [%x1], %r2;"
    assert run(body) == [0xFF << (t // 8 * 8) for t in range(32)]
    body = "match.all.sync.b32 %r2|%p1, 5, 0xffffffff; selp.u32 %r3, %r2, 9, %p1; st.global.u32 [%x1], %r3;"
    assert run(body) == [0xFFFFFFFF] * 32
    body = "sub.u32 %r1, %r0, 10; redux.sync.min.s32 %r2, %r1, 0xffffffff; st.global.u32 [%x1], %r2;"
    assert run(body) == [0xFFFFFFF6] * 32
    body = "elect.sync %r2|%p1, 0xfffffff0; selp.u32 %r3, 1, 0, %p1; st.global.u32 [%x1], %r3;"
    assert run(body) == [int(t == 4) for t in range(32)]


def test_named_barriers_between_warps() -> None:
    # Warp 0 produces and only arrives; warp 1 waits, consumes.
    extra = ".shared .align 4 .b32 s[32];\n"
    body = """mov.u32 %r9, s; and.b32 %r1, %r0, 31; mad.lo.u32 %r2, %r1, 4, %r9; setp.ge.u32 %p1, %r0, 32; @%p1 bra W;
      mul.lo.u32 %r3, %r0, 11; st.shared.u32 [%r2], %r3; bar.arrive 3, 64; bra E;
      W: bar.sync 3, 64; ld.shared.u32 %r4, [%r2]; st.global.u32 [%x1], %r4; E:"""
    assert run(body, 64, extra=extra)[32:] == [11 * t for t in range(32)]


def test_barrier_reduction_and_mismatch() -> None:
    body = """setp.gt.u32 %p1, %r0, 40; bar.red.popc.u32 %r1, 0, %p1; bar.red.or.pred %p2, 0, %p1;
      selp.u32 %r2, 1000, 0, %p2; add.u32 %r1, %r1, %r2; st.global.u32 [%x1], %r1;"""
    assert run(body, 64) == [1023] * 64
    stuck = fault("setp.lt.u32 %p1, %r0, 8; @%p1 bra A; bar.sync 1; bra E; A: bar.sync 2; E:")
    assert stuck.code == 719 and "barrier" in stuck.text


def test_atomics_wrap_and_compare() -> None:
    body = """atom.global.inc.u32 %r1, [%x0+64], 4; atom.global.dec.u32 %r1, [%x0+68], 4;
      atom.global.min.s32 %r1, [%x0+72], -5; atom.global.exch.b32 %r2, [%x0+76], 99; atom.cas.b32 %r3, [%x0+80], 0, 17;
      red.global.xor.b32 [%x0+84], 1; red.global.add.f32 [%x0+88], 0f3F000000;
      st.global.u32 [%x1], %r3;"""
    m = vm.Machine(kernel(body))
    out = m.buffer(np.zeros(32, np.uint32))
    m.run("k", 1, 7, out)
    got = out.get()
    assert got[:7].tolist() == [0, 17, 17, 17, 17, 17, 17]
    assert got[16:22].tolist() == [2, 3, 0xFFFFFFFB, 99, 17, 1]
    assert got[22:23].view("f4")[0] == 3.5


def test_cp_async_and_vectors() -> None:
    extra = ".shared .align 16 .b8 s[1024];\n"
    body = """shl.b32 %r1, %r0, 4; mov.u32 %r2, s; add.u32 %r2, %r2, %r1; and.b32 %r3, %r0, 7;
      mul.wide.u32 %x2, %r3, 16;
      add.u64 %x2, %x0, %x2; cp.async.cg.shared.global [%r2], [%x2], 16; cp.async.commit_group; cp.async.wait_group 0;
      ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r2]; add.u32 %r4, %r4, %r7; bar.sync 0; st.global.u32 [%x1], %r4;"""
    m = vm.Machine(kernel(body, extra))
    data = np.arange(32, dtype=np.uint32)
    out = m.buffer(data)
    m.run("k", 1, 32, out)
    assert out.get().tolist() == [(t % 8 * 4) * 2 + 3 for t in range(32)]


def test_device_functions_and_registers_as_parameters() -> None:
    extra = """.func (.reg .u32 r) twice(.reg .u32 a) { add.u32 r, a, a; ret; }
      .func (.param .b32 r) choose(.param .b32 a) { .reg .b32 %v; .reg .pred %q; ld.param.b32 %v, [a];
        setp.gt.u32 %q, %v, 5; @%q bra BIG; st.param.b32 [r], %v; ret; BIG: st.param.b32 [r], 1000; ret; }\n"""
    body = """call (%r1), twice, (%r0); { .param .b32 a; .param .b32 r; st.param.b32 [a], %r1; call (r), choose, (a);
      ld.param.b32 %r2, [r]; } activemask.b32 %r3; setp.ne.u32 %p1, %r3, 0xffffffff; @%p1 mov.u32 %r2, 7777;
      st.global.u32 [%x1], %r2;"""
    assert run(body, extra=extra) == [2 * t if 2 * t <= 5 else 1000 for t in range(32)]


def test_endless_recursion_is_a_fault() -> None:
    extra = ".func f(.param .b32 a) { .param .b32 b; .reg .b32 %v; st.param.b32 [b], 1; call f, (b); ret; }\n"
    e = fault("{ .param .b32 a; st.param.b32 [a], 1; call f, (a); }", extra=extra)
    assert e.code == 719 and "overflow" in e.text


def test_call_of_a_wild_pointer() -> None:
    body = "proto: .callprototype _ (); mov.u64 %x3, 4096; call %x3, (), proto;"
    assert fault(body).code == 718


def test_linking_two_texts() -> None:
    a = (
        HEAD
        + ".visible .func (.param .b32 r) seven() { st.param.b32 [r], 7; ret; } .visible .global .u32 shared_word = 35;"
    )
    extra = ".extern .func (.param .b32 r) seven(); .extern .global .u32 shared_word;\n"
    body = """{ .param .b32 r; call (r), seven; ld.param.b32 %r1, [r]; } ld.global.u32 %r2, [shared_word];
      add.u32 %r1, %r1, %r2; st.global.u32 [%x1], %r1;"""
    m = vm.Machine(kernel(body, extra), a)
    out = m.buffer(np.zeros(32, np.uint32))
    m.run("k", 1, 32, out)
    assert out.get().tolist() == [42] * 32
    e = refusal(kernel(body, extra))
    assert e.code == 302 and "shared_word" in e.text
    assert "defined twice" in refusal_of_two(a, a).text


def refusal_of_two(a: str, b: str) -> vm.PtxError:
    with pytest.raises(vm.PtxError) as e:
        vm.Machine(a, b)
    return e.value


@pytest.mark.parametrize(
    "body,code",
    [
        ("ld.global.u32 %r1, [%x1+128];", 700),
        ("st.global.u32 [%x1+-4], %r0;", 700),
        ("mov.u64 %x2, 0; ld.u32 %r1, [%x2];", 700),
        ("mov.u64 %x2, -4; ld.u32 %r1, [%x2];", 700),
        ("mov.u64 %x2, -4; ld.v4.u32 {%r1,%r2,%r3,%r4}, [%x2+4];", 700),
        ("ld.global.u32 %r1, [%x1+2];", 716),
        ("ld.global.v2.u32 {%r1, %r2}, [%x1+4];", 716),
        ("mov.u32 %r1, 1024; ld.shared.u32 %r1, [%r1];", 700),
        ("add.u64 %x2, %x1, 4096; atom.add.u32 %r1, [%x2], 1;", 700),
        ("bar.sync 16;", 715),
        ("trap;", 719),
    ],
)
def test_faults(body: str, code: int) -> None:
    e = fault(body)
    assert e.code == code
    assert "kernel k" in e.text and "line 7" in e.text


def test_only_guarded_lanes_are_checked() -> None:
    assert run("setp.eq.u32 %p1, %r0, 31; @!%p1 st.global.u32 [%x1+4], %r0;") == [0, *range(31)]


def test_use_after_free() -> None:
    m = vm.Machine(kernel("st.global.u32 [%x1], 1;"))
    out = m.buffer(np.zeros(32, np.uint32))
    m.run("k", 1, 32, out)
    vm.LIB.sgt_free(m.session, out.address)
    with pytest.raises(vm.Fault) as e:
        m.run("k", 1, 32, out)
    assert e.value.code == 700


def test_a_fault_leaves_the_program_usable() -> None:
    m = vm.Machine(kernel("setp.eq.u32 %p1, %r0, 3; bar.sync 0; @%p1 trap; st.global.u32 [%x1], 1;"))
    out = m.buffer(np.zeros(32, np.uint32))
    for _ in range(3):
        with pytest.raises(vm.Fault):
            m.run("k", 2, 32, out)
        m.run("k", 1, 3, out)
        assert out.get()[:3].tolist() == [1, 1, 1]


def test_step_limit_ends_an_endless_loop() -> None:
    script = """
from softgpu.tests.test_vm_control import fault
e = fault("L: bra L;")
assert e.code == 702 and "100000" in e.text, e
"""
    environment = {**os.environ, "SOFTGPU_STEP_LIMIT": "100000"}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, env=environment, timeout=120)


def test_cancel() -> None:
    m = vm.Machine(kernel("L: bra L;"))
    out = m.buffer(np.zeros(32, np.uint32))
    timer = threading.Timer(0.2, lambda: vm.LIB.sgt_cancel(m.session, 1))
    timer.start()
    with pytest.raises(vm.Fault) as e:
        m.run("k", 1, 32, out)
    timer.join()
    assert e.value.code == 719


@pytest.mark.parametrize(
    "body,word",
    [
        ("wgmma.fence.sync.aligned;", "wgmma.fence"),
        ("tcgen05.wait::ld.sync.aligned;", "tcgen05"),
        ("cp.async.bulk.commit_group;", "bulk"),
        ("barrier.cluster.arrive;", "cluster"),
        ("mapa.u64 %x2, %x1, 0;", "mapa"),
        ("frobnicate.u32 %r1, %r2;", "frobnicate"),
        ("add.sat.u32 %r1, %r2, %r3;", "add.sat.u32"),
        ("min.NaN.u32 %r1, %r2, %r3;", "NaN"),
        ("fma.f32 %f1, %f1, %f1, %f1;", "fma"),
        ("add.f32 %f1, %f1, %f9;", "%f9"),
        ("add.u32 %r1, %x1, %r1;", "%x1"),
        ("add.u32 %r1, %r1;", "operands"),
        ("bra NOWHERE;", "NOWHERE"),
        ("call nobody;", "nobody"),
        ("ld.param.u64 %x2, [out+4];", "out"),
        ("setp.lt.b32 %p1, %r1, %r2;", "setp"),
        ("@%r1 add.u32 %r1, %r1, 1;", "%r1"),
    ],
)
def test_refusals_name_the_instruction_and_line(body: str, word: str) -> None:
    e = refusal(kernel("\n" + body))
    assert e.code == 218
    assert "line 8" in e.text and word in e.text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "\0",
        ".version 7.0",
        HEAD + ".visible .entry k(",
        HEAD + ".visible .entry k() {",
        HEAD + ".visible .entry k() { add.u32 ; }",
        HEAD + ".visible .entry k() { .reg .u32 %r<99999999999>; }",
        HEAD + ".global .b8 x[99999999999999999999];",
        HEAD + ".global .b8 x[2] = {1,2,3};",
        HEAD + ".global .u64 x = nobody;",
        HEAD + "/* no end",
        HEAD + '.file 1 "no end',
        HEAD + ".global .texref t;",
        HEAD + "{" * 5000,
        HEAD + ".global .u32 x[1] = " + "{" * 5000,
        HEAD + ".visible .entry k() { mov.b64 %a, " + "{" * 5000,
    ],
)
def test_malformed_texts(text: str) -> None:
    e = refusal(text)
    assert e.code in (218, 2)


def test_versions() -> None:
    assert refusal(BUMP.replace("7.0", "10.0")).code == 222
    vm.Machine(BUMP.replace("7.0", "9.0")).kernel("bump")


def test_truncated_text_never_crashes() -> None:
    text = (Path(__file__).parent / "ptx" / "basic.ptx").read_text()
    refused = 0
    for end in range(0, len(text), 997):
        try:
            m = vm.Machine(text[:end])
            for name in m.kernel_names():
                m.kernel(name)
        except vm.PtxError:
            refused += 1
    assert refused > 50


def test_cooperative_blocks_wait_for_each_other() -> None:
    # Every block counts itself and then waits for all: only blocks that exist together can do this.
    body = """mov.u32 %r1, %nctaid.x; atom.global.add.u32 %r2, [%x0], 1;
      L: ld.volatile.global.u32 %r3, [%x0]; setp.lt.u32 %p1, %r3, %r1; @%p1 bra L;"""
    assert run(body, threads=1, grid=40, cooperative=True)[0] == 40
