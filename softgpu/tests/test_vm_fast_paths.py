"""What the machine does once instead of for each lane, block or access: results must be those of doing it each time.

Values that a launch fixes are computed in a prologue, special registers are filled in once, loads and stores share what
is known of their addresses, and handlers exist in two builds (docs/softgpu.md, "Speed").
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from softgpu.tests import vm

ROOT = Path(__file__).resolve().parents[2]
HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"
REGISTERS = (
    ".reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<32>; .reg .b64 %x<32>; .reg .f32 %f<8>;\n"
    "mov.u32 %r0, %tid.x; ld.param.u64 %x0, [a]; ld.param.u64 %x1, [b]; ld.param.u32 %r1, [n];\n"
    "mul.wide.u32 %x9, %r0, 4; add.u64 %x8, %x1, %x9;\n"
)


def machine(body: str, extra: str = "") -> vm.Machine:
    """A kernel k(a, b, n). %r0 = tid.x, %x0 = a, %x1 = b, %r1 = n, %x8 = address of b[tid.x], 4 bytes each."""
    params = ".param .u64 a, .param .u64 b, .param .u32 n"
    return vm.Machine(f"{HEAD}{extra}.visible .entry k({params}) {{\n{REGISTERS}{body}\nret;\n}}\n")


def outcome(body: str, n: int = 5, threads: int = 32, extra: str = "") -> list[int]:
    m = machine(body, extra)
    out = m.buffer(np.zeros(threads, np.uint32))
    m.run("k", 1, threads, out, out, n)
    return list(map(int, out.get()))


T = list(range(32))
LANES: dict[str, tuple[str, Callable[[int], int]]] = {
    # Written again by some lanes only: the first value is not the register's only one.
    "guarded write over a fixed value": (
        "mul.lo.u32 %r2, %r1, 3; and.b32 %r3, %r0, 1; setp.eq.u32 %p1, %r3, 1; @%p1 add.u32 %r2, %r2, 100;",
        lambda t: 15 + 100 * (t & 1),
    ),
    "guarded fixed value over a lane's": (
        "mov.u32 %r2, %r0; setp.lt.u32 %p1, %r0, 9; @%p1 mul.lo.u32 %r2, %r1, 7;",
        lambda t: 35 if t < 9 else t,
    ),
    "guarded load of a parameter": (
        "mov.u32 %r2, %r0; setp.gt.u32 %p1, %r0, 20; @%p1 ld.param.u32 %r2, [n];",
        lambda t: 5 if t > 20 else t,
    ),
    "branch on a fixed value among divided lanes": (
        """and.b32 %r3, %r0, 1; setp.eq.u32 %p1, %r3, 0; mov.u32 %r2, 1; @%p1 bra E;
        setp.gt.u32 %p2, %r1, 3; @%p2 bra G; add.u32 %r2, %r1, 7; bra E; G: mul.lo.u32 %r2, %r1, 2; E:""",
        lambda t: 10 if t & 1 else 1,
    ),
    "fixed value whose only writer some lanes pass by": (
        "mov.u32 %r2, %r0; setp.lt.u32 %p1, %r0, 16; @%p1 bra E; mad.lo.u32 %r4, %r1, 3, 1; add.u32 %r2, %r4, %r0; E:",
        lambda t: t if t < 16 else 16 + t,
    ),
    "written again after the lanes part": (
        """mov.u32 %r2, %r1; setp.lt.u32 %p1, %r0, 4; @%p1 bra E; mov.u32 %r2, 77; E: add.u32 %r2, %r2, %r0;""",
        lambda t: (5 if t < 4 else 77) + t,
    ),
    "loop counter of fixed step": (
        """mov.u32 %r2, 0; mov.u32 %r3, 0; L: add.u32 %r2, %r2, %r1; add.u32 %r3, %r3, 1;
        setp.le.u32 %p1, %r3, %r0; @%p1 bra L;""",
        lambda t: 5 * (t + 1),
    ),
    "value of the round before": (
        """mov.u32 %r2, 0; mov.u32 %r3, 0; mov.u32 %r4, 0; mov.u32 %r6, 9; L: add.u32 %r2, %r2, %r6;
        add.u32 %r4, %r4, 1; add.u32 %r5, %r4, %r1; mov.u32 %r6, %r5; setp.lt.u32 %p1, %r4, 4; @%p1 bra L;""",
        lambda t: 9 + 6 + 7 + 8,
    ),
    "carry between fixed values": (
        "mov.u32 %r3, 0xffffffff; add.cc.u32 %r4, %r3, %r1; addc.u32 %r2, %r1, 0;",
        lambda t: 6,
    ),
    "comparison of fixed values as a guard": (
        "setp.eq.u32 %p1, %r1, 5; mov.u32 %r2, 3; @%p1 mov.u32 %r2, 4; @!%p1 add.u32 %r2, %r2, %r0;",
        lambda t: 4,
    ),
    "predicate written by a lane's comparison too": (
        "setp.eq.u32 %p1, %r1, 5; and.b32 %r3, %r0, 2; @%p1 setp.eq.u32 %p1, %r3, 0; selp.u32 %r2, 8, 9, %p1;",
        lambda t: 9 if t & 2 else 8,
    ),
    "parameter in a signed wide register": (
        "ld.param.s8 %x5, [n]; cvt.u32.u64 %r2, %x5; add.u32 %r2, %r2, %r0;",
        lambda t: 5 + t,
    ),
    "result of a call": (
        "mov.u32 %r2, %r1; call (%r2), twice, (%r2); setp.lt.u32 %p1, %r0, 3; @%p1 call (%r2), twice, (%r2);",
        lambda t: 20 if t < 3 else 10,
    ),
    "copies of special registers": (
        "mov.u32 %r3, %tid.x; mov.u32 %r4, %ntid.x; mov.u32 %r5, %laneid; mad.lo.u32 %r2, %r3, %r4, %r5;",
        lambda t: 33 * t,
    ),
    "special register copied and read": ("mov.u32 %r3, %tid.x; add.u32 %r2, %r3, %tid.x;", lambda t: 2 * t),
    "a copy that is written again": ("mov.u32 %r2, %tid.x; @%p7 mov.u32 %r2, 1; add.u32 %r2, %r2, 1;", lambda t: t + 1),
}
TWICE = ".func (.reg .b32 %q1) twice(.reg .b32 %q0) { add.u32 %q1, %q0, %q0; ret; }\n"


@pytest.mark.parametrize("name", LANES)
def test_values_that_a_launch_fixes(name: str) -> None:
    body, want = LANES[name]
    prefix = "setp.ne.u32 %p7, %r1, %r1; "
    assert outcome(prefix + body + " st.global.u32 [%x8], %r2;", extra=TWICE) == [want(t) for t in T]


def test_other_parameters_blocks_and_grids_in_each_launch() -> None:
    """Frames keep what they hold from block to block, warp to warp and launch to launch."""
    body = """mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %ctaid.y; mov.u32 %r5, %ntid.y;
    mov.u32 %r6, %tid.y; mov.u32 %r7, %nctaid.x; mov.u32 %r10, %tid.z; mov.u32 %r11, %ntid.z;
    mad.lo.u32 %r12, %r4, %r7, %r2;
    mad.lo.u32 %r13, %r10, %r5, %r6; mad.lo.u32 %r13, %r13, %r3, %r0; mul.lo.u32 %r14, %r3, %r5;
    mul.lo.u32 %r14, %r14, %r11; mad.lo.u32 %r15, %r12, %r14, %r13; mul.wide.u32 %x9, %r15, 4; add.u64 %x8, %x1, %x9;
    mul.lo.u32 %r16, %r1, 1000; shl.b32 %r17, %r10, 8; shl.b32 %r18, %r6, 4; add.u32 %r17, %r17, %r18;
    add.u32 %r17, %r17, %r0; mad.lo.u32 %r17, %r12, 65536, %r17; add.u32 %r17, %r17, %r16; st.global.u32 [%x8], %r17;"""
    m = machine(body)
    shapes = [
        ((3, 2), (64, 1, 1)),
        ((5, 1), (8, 8, 1)),
        ((2, 2), (5, 3, 2)),
        ((1, 1), (32, 2, 2)),
        ((700, 1), (96, 1, 1)),
    ]
    for n, (grid, block) in enumerate(shapes * 2):
        threads = block[0] * block[1] * block[2]
        out = m.buffer(np.zeros(grid[0] * grid[1] * threads, np.uint32))
        m.run("k", grid, block, out, out, n)
        t = np.arange(threads, dtype=np.uint32)
        place = t % block[0] + (t // block[0] % block[1] << 4) + (t // block[0] // block[1] << 8)
        index = np.arange(grid[0] * grid[1], dtype=np.uint32)[:, None]
        assert np.array_equal(out.get(), (index * 65536 + place + n * 1000).ravel())


def test_warps_that_end_at_different_times() -> None:
    """The first warp leaves its frame while the others wait at a barrier or have not begun."""
    body = """setp.lt.u32 %p1, %r0, 32; mov.u32 %r3, %warpid; @%p1 bra E; bar.sync 0; add.u32 %r4, %r3, %r1;
    add.u32 %r4, %r4, %r0;    bar.sync 0; st.global.u32 [%x8], %r4; bra F; E: st.global.u32 [%x8], %r3; F:"""
    for _ in range(2):
        assert outcome(body, 7, 128) == [0] * 32 + [t // 32 + 7 + t for t in range(32, 128)]


SIZES = {"u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64}
rng = np.random.default_rng(7)
PATTERNS: dict[str, list[int]] = {
    "dense": T,
    "the same": [9] * 32,
    "backwards": T[::-1],
    "two halves": [t % 16 for t in T],
    "rows of eight that are the same": [t // 8 for t in T],
    "rows that overlap": [t % 8 + 3 * (t // 8) for t in T],
    "mixed rows": [t if t < 8 else 5 if t < 16 else t - 16 for t in T],
    "strided": [2 * t for t in T],
    "one astray": [t if t != 19 else 2 for t in T],
    "last astray": [*T[:31], 60],
    "any": [int(i) for i in rng.integers(0, 60, 32)],
}


def at(index: str, size: int, space: str) -> str:
    """Code that leaves the address of an element in %x5 (%r5 in shared memory)."""
    if space == "shared":
        return f"mov.u32 %r4, s; mad.lo.u32 %r5, {index}, {size}, %r4;"
    return f"mul.wide.u32 %x4, {index}, {size}; add.u64 %x5, %x0, %x4;"


@pytest.mark.parametrize("space", ["global", "shared", "generic"])
@pytest.mark.parametrize("kind", SIZES)
def test_loads_and_stores_by_how_addresses_lie(kind: str, space: str) -> None:
    """Loads at +0, +1, +3 of one register and a store at it; where lanes store to one place the highest wins."""
    dtype = SIZES[kind]
    size = np.dtype(dtype).itemsize
    base, mid = ("%r5", ".shared") if space == "shared" else ("%x5", "" if space == "generic" else ".global")
    value = "%x" if size == 8 else "%h" if size < 4 else "%r"
    move = f"cvt.{kind}.u32 {value}6, %r0;" if size != 4 else "mov.u32 %r6, %r0;"
    places = f"mul.wide.u32 %x4, %r0, {size}; add.u64 %x5, %x0, %x4; mov.u32 %r4, s; mad.lo.u32 %r5, %r0, {size}, %r4;"
    fill, back = places, "bar.sync 0;"
    for step in (0, 32 * size, 64 * size):
        fill += f"ld.global.{kind} {value}7, [%x5+{step}]; st.shared.{kind} [%r5+{step}], {value}7;"
        back += f"ld.shared.{kind} {value}7, [%r10+{step}]; st.global.{kind} [%x11+{step}], {value}7;"
    fill += "bar.sync 0;"
    shared = f".shared .align 8 .b8 s[{96 * size}];\n"
    body = f"""{fill if space == "shared" else ""} mov.u32 %r10, %r5; mov.u64 %x11, %x5; ld.global.u32 %r20, [%x8];
      {at("%r20", size, space)}
      mul.wide.u32 %x12, %r0, {size}; add.u64 %x12, %x12, %x1; add.u64 %x12, %x12, 128;
      ld{mid}.{kind} {value}3, [{base}]; st.global.{kind} [%x12], {value}3;
      ld{mid}.{kind} {value}3, [{base}+{size}]; st.global.{kind} [%x12+{32 * size}], {value}3;
      ld{mid}.{kind} {value}3, [{base}+{3 * size}]; st.global.{kind} [%x12+{64 * size}], {value}3;
      bar.sync 0; {move} setp.ge.u32 %p1, %r0, %r1; @!%p1 st{mid}.{kind} [{base}+{size}], {value}6;
      {back if space == "shared" else ""}"""
    m = machine(body, shared)
    for threads in (32, 20):
        for guarded in (32, 11):
            for name, pattern in PATTERNS.items():
                memory = rng.integers(0, 250, 96).astype(dtype)
                data = m.buffer(memory)
                tail = np.zeros(32 * 4 + 96 * size, np.uint8)
                tail[:128] = np.array(pattern, np.uint32).view(np.uint8)
                out = m.buffer(tail)
                if space == "shared" and threads == 20:
                    continue  # the kernel's copy of the memory needs all threads
                m.run("k", 1, threads, data, out, guarded)
                got = out.get()[128:].view(dtype).reshape(3, 32)
                index = np.array(pattern)
                for row, offset in zip(got, (0, 1, 3), strict=True):
                    assert np.array_equal(row[:threads], memory[index + offset][:threads]), (name, offset)
                want = memory.copy()
                for lane in range(min(threads, guarded)):
                    want[pattern[lane] + 1] = lane
                assert np.array_equal(data.get(), want), name


def test_an_address_register_that_changes_between_loads() -> None:
    memory = np.arange(64, dtype=np.uint32) * 3
    bodies: dict[str, Callable[[int], int]] = {
        """ld.global.u32 %r2, [%x8]; add.u64 %x8, %x8, 4;
           ld.global.u32 %r3, [%x8]; add.u32 %r4, %r2, %r3;""": lambda t: 6 * t + 3,
        """ld.global.u32 %r2, [%x8]; setp.lt.u32 %p1, %r0, 5; @%p1 add.u64 %x8, %x8, 8;
           ld.global.u32 %r3, [%x8]; add.u32 %r4, %r2, %r3;""": lambda t: 6 * t + (6 if t < 5 else 0),
        """ld.global.u32 %r2, [%x8]; setp.lt.u32 %p1, %r0, 5; @!%p1 bra E; add.u64 %x8, %x8, 8;
           E: ld.global.u32 %r3, [%x8]; add.u32 %r4, %r2, %r3;""": lambda t: 6 * t + (6 if t < 5 else 0),
        """ld.global.u32 %r2, [%x8]; setp.lt.u32 %p1, %r0, 5; mov.u32 %r3, 0; @%p1 ld.global.u32 %r3, [%x8+8];
           add.u32 %r4, %r2, %r3;""": lambda t: 3 * t + (3 * t + 6 if t < 5 else 0),
        """ld.global.u32 %r2, [%x8]; shl.b32 %r2, %r0, 1; setp.gt.u32 %p1, %r0, 90; @%p1 ld.global.u32 %r2, [%x8+4];
           ld.global.u32 %r4, [%x8+8];""": lambda t: 3 * t + 6,
    }  # fmt: skip
    for body, want in bodies.items():
        m = machine(body + " mul.wide.u32 %x9, %r0, 4; add.u64 %x9, %x9, %x0; st.global.u32 [%x9], %r4;")
        data, out = m.buffer(memory), m.buffer(np.zeros(32, np.uint32))
        m.run("k", 1, 32, out, data, 0)
        assert list(out.get()) == [want(t) for t in T], body


def test_a_load_into_its_own_address_register() -> None:
    m = machine(
        "ld.global.u64 %x0, [%x0]; ld.global.u64 %x3, [%x0]; ld.global.u64 %x3, [%x0+8]; st.global.u32 [%x8], %x3;"
    )
    second = m.buffer(np.array([5, 6], np.uint64))
    first, out = m.buffer(np.array([second.address], np.uint64)), m.buffer(np.zeros(32, np.uint32))
    m.run("k", 1, 32, first, out, 0)
    assert list(out.get()) == [6] * 32


@pytest.mark.parametrize(
    "offset,code,lane",
    [(4, 700, 31), (128, 700, 0), (-4, 700, 0), (2, 716, 0), (-(1 << 30), 700, 0), (1 << 40, 700, 0)],
)
@pytest.mark.parametrize("what", ["ld.global.u32 %r3, [%x8{}]", "ld.u32 %r3, [%x8{}]", "st.global.u32 [%x8{}], %r0"])
def test_a_fault_at_a_shared_plan_names_the_lane_s_address(what: str, offset: int, code: int, lane: int) -> None:
    m = machine("ld.global.u32 %r2, [%x8]; " + what.format(f"+{offset}" if offset >= 0 else str(offset)) + ";")
    data = m.buffer(np.zeros(32, np.uint32))
    with pytest.raises(vm.Fault) as caught:
        m.run("k", 1, 32, data, data, 0)
    assert caught.value.code == code
    assert f"0x{(data.address + 4 * lane + offset) & (1 << 64) - 1:x}" in caught.value.text
    assert "kernel k, line" in caught.value.text


def test_narrow_addresses_that_wrap_around_are_faults() -> None:
    """32-bit registers: lane 0 just below 4 GiB, the others above it, which is address 0 and up."""
    body = "shl.b32 %r2, %r0, 2; add.u32 %r3, %r2, 0xfffffffc; ld.shared.u32 %r4, [%r3]; st.global.u32 [%x8], %r4;"
    m = machine(body, ".shared .align 4 .b32 s[64];\n")
    out = m.buffer(np.zeros(32, np.uint32))
    with pytest.raises(vm.Fault) as caught:
        m.run("k", 1, 32, out, out, 0)
    assert (caught.value.code, "0xfffffffc" in caught.value.text) == (700, True)


def test_memory_that_was_freed_between_launches_is_gone() -> None:
    m = machine("ld.global.u32 %r2, [%x0]; ld.global.u32 %r2, [%x0+4]; st.global.u32 [%x8], %r2;")
    data, out = m.buffer(np.full(32, 3, np.uint32)), m.buffer(np.zeros(32, np.uint32))
    m.run("k", 1, 32, data, out, 0)
    assert list(out.get()) == [3] * 32
    vm.LIB.sgt_free(m.session, data.address)
    with pytest.raises(vm.Fault) as caught:
        m.run("k", 1, 32, data, out, 0)
    assert caught.value.code == 700


def digest() -> str:
    """Of what kernels of the tests compute: any bit that differs between the builds shows."""
    m = vm.Machine((ROOT / "softgpu/tests/ptx/basic.ptx").read_text())
    data = np.random.default_rng(3)
    sums = hashlib.sha256()
    n = 1000
    f, g = (data.standard_normal(n).astype(np.float32) for _ in range(2))
    out = m.buffer(np.zeros(n, np.float32))
    m.run("vecadd", 8, 128, m.buffer(f), m.buffer(g), out, n)
    sums.update(out.get().tobytes())
    a, b = (data.standard_normal((48, 48)).astype(np.float32) for _ in range(2))
    out = m.buffer(np.zeros((48, 48), np.float32))
    m.run("matmul", (3, 3), (16, 16), m.buffer(a), m.buffer(b), out, 48)
    sums.update(out.get().tobytes())
    for name, dtype, rows in (("math_f32", np.float32, 7), ("math_f64", np.float64, 7)):
        out = m.buffer(np.zeros(rows * n, dtype))
        m.run(name, 8, 128, m.buffer(f.astype(dtype) * 50), out, n)
        sums.update(out.get().tobytes())
    i, j = (data.integers(-(1 << 62), 1 << 62, n) for _ in range(2))
    out = m.buffer(np.zeros(6 * n, np.int64))
    m.run("int64_ops", 8, 128, m.buffer(i), m.buffer(j), out, n)
    sums.update(out.get().tobytes())
    out = m.buffer(np.zeros(4 * n, np.float16))
    m.run("half_ops", 8, 128, m.buffer(f.astype(np.float16)), m.buffer(g.astype(np.float16)), out, n)
    sums.update(out.get().tobytes())
    return sums.hexdigest()


def environment(isa: str) -> dict[str, str]:
    return os.environ | {"SOFTGPU_ISA": isa, "PYTHONPATH": str(ROOT)}


def test_both_builds_compute_the_same_bits() -> None:
    program = "from softgpu.tests import vm, test_vm_fast_paths as t; print(vm.LIB.sgt_instruction_set(), t.digest())"
    lines = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=environment(isa),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout.split()
        for isa in ("baseline", "")
    ]
    assert lines[0][0] == "b'baseline'"
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert lines[1][0] == ("b'avx2'" if {"avx2", "fma", "bmi1", "bmi2"} <= flags else "b'baseline'")
    assert lines[0][1] == lines[1][1]


@pytest.mark.skipif(os.environ.get("SOFTGPU_ISA") == "baseline", reason="is the baseline run")
def test_the_machine_s_tests_on_the_baseline_build() -> None:
    """The other build than the one that this process uses (where the processor has AVX2)."""
    files = [str(p) for p in sorted(Path(__file__).parent.glob("test_vm_*.py"))]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, env=environment("baseline"), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump")
def test_instructions_of_avx2_are_only_in_the_build_for_it() -> None:
    """The linker must not have given the baseline build an inline function that was compiled for AVX2."""
    if vm.LIB.sgt_instruction_set() == b"baseline" and os.environ.get("SOFTGPU_ISA") != "baseline":
        pytest.skip("there is no build for AVX2")
    listing = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", vm.LIB._name], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    function, inside, outside = "", 0, set()
    for line in listing.splitlines():
        if line.endswith(">:"):
            function = line
        elif re.search(r"\tv[a-z]+[a-z0-9]* .*%[xy]mm|\t(shlx|shrx|sarx|andn|blsr|mulx|rorx) ", line):
            if "avx2::" in function:
                inside += 1
            else:
                outside.add(function)
    assert inside > 1000
    assert not outside
