"""One instruction at a time, on edge values, against Python integers and numpy.

The references are written from the PTX ISA's text, not from the machine's source. Results are compared bit for bit,
but for the .approx instructions; a NaN equals any NaN.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from softgpu.tests import vm

REGISTER = {1: "b16", 2: "b16", 4: "b32", 8: "b64"}
rng = np.random.default_rng(7)


def run_op(body: str, inputs: Sequence[np.ndarray], out: type | str, outputs: int = 1) -> np.ndarray:
    """Runs `body` on each row of inputs: registers %a %b %c %e in, %d (and %q) out, predicates %p1..%p4."""
    n = len(inputs[0])
    dtype = np.dtype(out)
    names = "abce"[: len(inputs)]
    lines = [".version 8.6", ".target sm_90", ".address_size 64", ".visible .entry k("]
    lines.append(", ".join(f".param .u64 p{x}" for x in [*names, "d"]) + ", .param .u32 n)")
    lines.append("{ .reg .b64 %x<9>; .reg .u32 %i<4>; .reg .pred %p<9>; .reg .b32 %t<9>; .reg .b64 %w<9>;")
    lines.append(".reg .b16 %h<9>;")
    for name, array in zip(names, inputs, strict=False):
        lines.append(f".reg .{REGISTER[array.dtype.itemsize]} %{name};")
    lines.append(f".reg .{REGISTER[dtype.itemsize]} %d, %q;")
    lines.append("mov.u32 %i1, %tid.x; mov.u32 %i2, %ctaid.x; mad.lo.u32 %i1, %i2, 64, %i1;")
    lines.append("ld.param.u32 %i3, [n]; setp.ge.u32 %p8, %i1, %i3; @%p8 ret;")
    for name, array in zip(names, inputs, strict=False):
        size = array.dtype.itemsize
        lines.append(
            f"ld.param.u64 %x1, [p{name}]; mad.wide.u32 %x1, %i1, {size}, %x1; ld.global.b{8 * size} %{name}, [%x1];"
        )
    lines.append(body)
    size = dtype.itemsize
    lines.append(
        f"ld.param.u64 %x1, [pd]; mad.wide.u32 %x1, %i1, {size * outputs}, %x1; st.global.b{8 * size} [%x1], %d;"
    )
    if outputs == 2:
        lines.append(f"st.global.b{8 * size} [%x1+{size}], %q;")
    lines.append("ret; }")
    m = vm.Machine("\n".join(lines))
    result = m.buffer(np.zeros(n * outputs, dtype))
    m.run("k", (n + 63) // 64, 64, *[m.buffer(x) for x in inputs], result, n)
    return result.get().reshape(n, outputs) if outputs > 1 else result.get()


def signed(v: int, bits: int) -> int:
    v %= 1 << bits
    return v - (1 << bits) if v >> (bits - 1) else v


def clamp(v: int, low: int, high: int) -> int:
    return max(low, min(high, v))


def edge_ints(bits: int, is_signed: bool) -> list[int]:
    values = {0, 1, 2, 3, 7, 31, 32, 33, (1 << bits) - 1, (1 << bits) - 2, 1 << (bits - 1), (1 << (bits - 1)) - 1}
    values |= {int(x) for x in rng.integers(0, 1 << 63, 6)}
    values = {v % (1 << bits) for v in values}
    return sorted(signed(v, bits) if is_signed else v for v in values)


def int_cases(ptx_type: str, count: int) -> list[np.ndarray]:
    bits, is_signed = int(ptx_type[1:]), ptx_type[0] == "s"
    dtype = f"{'i' if is_signed else 'u'}{bits // 8}"
    rows = list(itertools.product(edge_ints(bits, is_signed), repeat=count))
    if len(rows) > 3000:
        rows = [rows[i] for i in rng.permutation(len(rows))[:3000]]
    return [np.array(column, dtype) for column in zip(*rows, strict=False)]


def wrapped(values: list[int], dtype: np.dtype) -> np.ndarray:
    bits = dtype.itemsize * 8
    return np.array([v % (1 << bits) for v in values], f"u{dtype.itemsize}").view(dtype)


def truncated_div(a: int, b: int) -> int:
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


def div(a: int, b: int) -> int:
    return truncated_div(a, b) if b else -1


def rem(a: int, b: int) -> int:
    return a - b * truncated_div(a, b) if b else -1


ALL = ["u16", "s16", "u32", "s32", "u64", "s64"]
BINARY: dict[str, tuple[list[str], Callable[[int, int], int]]] = {
    "add": (ALL, lambda a, b: a + b),
    "sub": (ALL, lambda a, b: a - b),
    "mul.lo": (ALL, lambda a, b: a * b),
    "div": (ALL, div),
    "rem": (ALL, rem),
    "min": (ALL, min),
    "max": (ALL, max),
    "add.sat": (["s32"], lambda a, b: clamp(a + b, -(1 << 31), (1 << 31) - 1)),
    "sub.sat": (["s32"], lambda a, b: clamp(a - b, -(1 << 31), (1 << 31) - 1)),
    "and": (["b16", "b32", "b64"], lambda a, b: a & b),
    "or": (["b16", "b32", "b64"], lambda a, b: a | b),
    "xor": (["b16", "b32", "b64"], lambda a, b: a ^ b),
}


@pytest.mark.parametrize("op,t", [(op, t) for op, (types, _) in BINARY.items() for t in types])
def test_int_binary(op: str, t: str) -> None:
    a, b = int_cases(t.replace("b", "u"), 2)
    got = run_op(f"{op}.{t} %d, %a, %b;", [a, b], a.dtype)
    want = wrapped([BINARY[op][1](int(x), int(y)) for x, y in zip(a, b, strict=False)], a.dtype)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("t", ALL)
def test_mul_hi(t: str) -> None:
    a, b = int_cases(t, 2)
    got = run_op(f"mul.hi.{t} %d, %a, %b;", [a, b], a.dtype)
    assert np.array_equal(got, wrapped([int(x) * int(y) >> int(t[1:]) for x, y in zip(a, b, strict=False)], a.dtype))


@pytest.mark.parametrize("t", ["u16", "s16", "u32", "s32"])
def test_wide(t: str) -> None:
    a, b = int_cases(t, 2)
    wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
    assert np.array_equal(
        run_op(f"mul.wide.{t} %d, %a, %b;", [a, b], wide),
        wrapped([int(x) * int(y) for x, y in zip(a, b, strict=False)], wide),
    )
    c = rng.integers(0, 1 << 30, len(a)).astype(wide)
    got = run_op(f"mad.wide.{t} %d, %a, %b, %c;", [a, b, c], wide)
    assert np.array_equal(got, wrapped([int(x) * int(y) + int(z) for x, y, z in zip(a, b, c, strict=False)], wide))


@pytest.mark.parametrize("t", ALL)
def test_mad_and_sad(t: str) -> None:
    a, b, c = int_cases(t, 3)
    rows = [(int(x), int(y), int(z)) for x, y, z in zip(a, b, c, strict=False)]
    bits = int(t[1:])
    for op, f in [
        ("mad.lo", lambda x, y, z: x * y + z),
        ("mad.hi", lambda x, y, z: (x * y >> bits) + z),
        ("sad", lambda x, y, z: z + abs(x - y)),
    ]:
        got = run_op(f"{op}.{t} %d, %a, %b, %c;", [a, b, c], a.dtype)
        assert np.array_equal(got, wrapped([f(*r) for r in rows], a.dtype)), op


@pytest.mark.parametrize("t", ["u32", "s32"])
def test_mul24(t: str) -> None:
    a, b = int_cases(t, 2)

    def low(v: int) -> int:
        return signed(v, 24) if t == "s32" else v % (1 << 24)

    for part, shift in (("lo", 0), ("hi", 16)):
        got = run_op(f"mul24.{part}.{t} %d, %a, %b;", [a, b], a.dtype)
        assert np.array_equal(
            got, wrapped([low(int(x)) * low(int(y)) >> shift for x, y in zip(a, b, strict=False)], a.dtype)
        )
        got = run_op(f"mad24.{part}.{t} %d, %a, %b, %a;", [a, b], a.dtype)
        want = [(low(int(x)) * low(int(y)) >> shift) + int(x) for x, y in zip(a, b, strict=False)]
        assert np.array_equal(got, wrapped(want, a.dtype))


def test_carry_chain() -> None:
    a, b = int_cases("u64", 2)
    body = """mov.b64 {%t1,%t2}, %a; mov.b64 {%t3,%t4}, %b;
      OP.cc.u32 %t1, %t1, %t3; OPc.u32 %t2, %t2, %t4; mov.b64 %d, {%t1,%t2};"""
    assert np.array_equal(run_op(body.replace("OP", "add"), [a, b], "u8"), a + b)
    assert np.array_equal(run_op(body.replace("OP", "sub"), [a, b], "u8"), a - b)
    body = """mov.b64 {%t1,%t2}, %a; mov.b64 {%t3,%t4}, %b; mul.lo.u32 %t5, %t1, %t3; mul.hi.u32 %t6, %t1, %t3;
      mad.lo.cc.u32 %t6, %t1, %t4, %t6; madc.hi.u32 %t7, %t1, %t4, 0; mad.lo.cc.u32 %t6, %t2, %t3, %t6;
      madc.hi.u32 %t7, %t2, %t3, %t7; mov.b64 %d, {%t6,%t7};"""
    want = [
        (
            (int(x) % 2**32 * (int(y) % 2**32) >> 32)
            + int(x) % 2**32 * (int(y) >> 32)
            + (int(x) >> 32) * (int(y) % 2**32)
        )
        % 2**64
        for x, y in zip(a, b, strict=False)
    ]
    assert run_op(body, [a, b], "u8").tolist() == want


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts(bits: int) -> None:
    shifts = np.array([0, 1, 5, bits - 1, bits, bits + 1, 63, 64, 65, 0xFFFFFFFF] * 8, np.uint32)
    for t in (f"u{bits}", f"s{bits}"):
        (a,) = int_cases(t, 1)
        a = np.resize(a, len(shifts))
        got = run_op(f"shr.{t} %d, %a, %b;", [a, shifts], a.dtype)
        assert np.array_equal(got, wrapped([int(x) >> int(s) for x, s in zip(a, shifts, strict=False)], a.dtype))
        got = run_op(f"shl.b{bits} %d, %a, %b;", [a, shifts], a.dtype)
        assert np.array_equal(
            got, wrapped([int(x) << min(int(s), 64) for x, s in zip(a, shifts, strict=False)], a.dtype)
        )


def test_funnel_shift() -> None:
    a, b, c = int_cases("u32", 3)
    for mode, amount in (("clamp", lambda s: min(s, 32)), ("wrap", lambda s: s & 31)):
        rows = [(int(x) | int(y) << 32, amount(int(s))) for x, y, s in zip(a, b, c, strict=False)]
        assert run_op(f"shf.r.{mode}.b32 %d, %a, %b, %c;", [a, b, c], "u4").tolist() == [
            v >> s & 0xFFFFFFFF for v, s in rows
        ]
        assert run_op(f"shf.l.{mode}.b32 %d, %a, %b, %c;", [a, b, c], "u4").tolist() == [
            v << s >> 32 & 0xFFFFFFFF for v, s in rows
        ]


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_counting(bits: int) -> None:
    for t in (f"u{bits}", f"s{bits}"):
        (a,) = int_cases(t, 1)
        u = [int(x) % (1 << bits) for x in a]
        assert run_op(f"popc.b{bits} %d, %a;", [a], "u4").tolist() == [bin(x).count("1") for x in u]
        assert run_op(f"clz.b{bits} %d, %a;", [a], "u4").tolist() == [bits - x.bit_length() for x in u]
        assert run_op(f"brev.b{bits} %d, %a;", [a], f"u{bits // 8}").tolist() == [
            int(f"{x:0{bits}b}"[::-1], 2) for x in u
        ]
        flipped = [~int(x) if int(x) < 0 else int(x) for x in a]
        found = [x.bit_length() - 1 for x in flipped]
        assert run_op(f"bfind.{t} %d, %a;", [a], "i4").tolist() == found
        shifts = [bits - 1 - f if f >= 0 else -1 for f in found]
        assert run_op(f"bfind.shiftamt.{t} %d, %a;", [a], "i4").tolist() == shifts


@pytest.mark.parametrize("t", ["u32", "s32", "u64", "s64"])
def test_bit_field_extract(t: str) -> None:
    bits = int(t[1:])
    (values,) = int_cases(t, 1)
    rows = list(
        itertools.product(values.tolist(), [0, 1, 8, 31, 32, 63, 64, 255, 256 + 3], [0, 1, 7, 31, 32, 64, 255, 256])
    )
    a = np.array([r[0] for r in rows], values.dtype)
    pos, length = np.array([r[1] for r in rows], np.uint32), np.array([r[2] for r in rows], np.uint32)

    def extract(v: int, p: int, n: int) -> int:
        if bits == 32:  # PTX allows 0..255; of more, an H200 takes 8 bits here, but all for 64
            p, n = p & 255, n & 255
        u = v % (1 << bits)
        sign = 0
        if t[0] == "s" and n:
            sign = u >> min(p + n - 1, bits - 1) & 1
        out = 0
        for i in range(bits):
            out |= (u >> (p + i) & 1 if i < n and p + i < bits else sign) << i
        return out

    got = run_op(f"bfe.{t} %d, %a, %b, %c;", [a, pos, length], a.dtype)
    assert np.array_equal(got, wrapped([extract(*r) for r in rows], a.dtype))


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_field_insert(bits: int) -> None:
    (values,) = int_cases(f"u{bits}", 1)
    rows = list(
        itertools.product(
            values.tolist()[::3], values.tolist()[::3], [0, 1, 30, 31, 32, 63, 64], [0, 1, 5, 32, 64, 255]
        )
    )
    columns = [np.array([r[i] for r in rows], f"u{bits // 8}" if i < 2 else "u4") for i in range(4)]

    def insert(a: int, b: int, p: int, n: int) -> int:
        for i in range(min(n, bits)):
            if p + i < bits:
                b = b & ~(1 << (p + i)) | (a >> i & 1) << (p + i)
        return b

    got = run_op(f"bfi.b{bits} %d, %a, %b, %c, %e;", columns, f"u{bits // 8}")
    assert got.tolist() == [insert(*r) for r in rows]


@pytest.mark.parametrize("lut", [0, 0x80, 0x96, 0xE8, 0xCA, 0x1B, 0xFF, 0x2D])
def test_lop3(lut: int) -> None:
    a, b, c = int_cases("u32", 3)
    want = np.zeros_like(a)
    for i in range(32):
        index = (a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)
        want |= (np.uint32(lut) >> index & 1) << np.uint32(i)
    assert np.array_equal(run_op(f"lop3.b32 %d, %a, %b, %c, {lut};", [a, b, c], "u4"), want)
    body = f"setp.ne.u32 %p2, %a, 1; lop3.or.b32 %t1|%p1, %a, %b, %c, {lut}, %p2; selp.u32 %d, 1, 0, %p1;"
    assert np.array_equal(run_op(body, [a, b, c], "u4"), ((want != 0) | (a != 1)).astype(np.uint32))


def test_prmt() -> None:
    a, b, c = int_cases("u32", 3)
    modes = {"": None, ".f4e": [0, 1, 2, 3], ".b4e": [0, -1, -2, -3], ".rc8": 1, ".ecl": 1, ".ecr": 1, ".rc16": 1}
    for mode in modes:
        got = run_op(f"prmt.b32{mode} %d, %a, %b, %c;", [a, b, c], "u4")
        for x, y, s, g in zip(a, b, c, got, strict=False):
            data = [(int(x) | int(y) << 32) >> (8 * i) & 255 for i in range(8)]
            k = int(s) & 3
            picks = {
                ".f4e": [k, k + 1, k + 2, k + 3],
                ".b4e": [k, (k - 1) % 8, (k - 2) % 8, (k - 3) % 8],
                ".rc8": [k] * 4,
                ".ecl": [max(i, k) for i in range(4)],
                ".ecr": [min(i, k) for i in range(4)],
                ".rc16": [0, 1, 0, 1] if k % 2 == 0 else [2, 3, 2, 3],
            }.get(mode)
            if picks is None:
                nibbles = [int(s) >> (4 * i) & 15 for i in range(4)]
                out = [(255 if data[n & 7] & 128 else 0) if n & 8 else data[n & 7] for n in nibbles]
            else:
                out = [data[i] for i in picks]
            assert int(g) == sum(v << (8 * i) for i, v in enumerate(out)), mode


def test_dot_products() -> None:
    a, b, c = int_cases("u32", 3)

    def parts(v: int, bits: int, t: str, count: int) -> list[int]:
        raw = [v >> (bits * i) & ((1 << bits) - 1) for i in range(count)]
        return [signed(x, bits) for x in raw] if t == "s32" else raw

    for ta, tb in itertools.product(["u32", "s32"], repeat=2):
        got = run_op(f"dp4a.{ta}.{tb} %d, %a, %b, %c;", [a, b, c], "u4")
        want = [
            (sum(p * q for p, q in zip(parts(int(x), 8, ta, 4), parts(int(y), 8, tb, 4), strict=False)) + int(z))
            % 2**32
            for x, y, z in zip(a, b, c, strict=False)
        ]
        assert got.tolist() == want
        got = run_op(f"dp2a.hi.{ta}.{tb} %d, %a, %b, %c;", [a, b, c], "u4")
        want = [
            (sum(p * q for p, q in zip(parts(int(x), 16, ta, 2), parts(int(y) >> 16, 8, tb, 2), strict=False)) + int(z))
            % 2**32
            for x, y, z in zip(a, b, c, strict=False)
        ]
        assert got.tolist() == want


@pytest.mark.parametrize("t", ALL)
def test_int_compare(t: str) -> None:
    a, b = int_cases(t, 2)
    names = {
        "eq": np.equal,
        "ne": np.not_equal,
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
    }
    if t[0] == "u":
        names |= {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}
    for name, f in names.items():
        got = run_op(
            f"setp.{name}.{t} %p1|%p2, %a, %b; selp.u32 %d, 1, 0, %p1; selp.u32 %q, 1, 0, %p2;", [a, b], "u4", 2
        )
        want = f(a, b)
        assert np.array_equal(got[:, 0], want) and np.array_equal(got[:, 1], ~want), name
        got = run_op(
            f"setp.eq.{t} %p3, %a, %a; setp.{name}.and.{t} %p1, %a, %b, !%p3; selp.u32 %d, 1, 0, %p1;", [a, b], "u4"
        )
        assert not got.any()
        assert np.array_equal(run_op(f"set.{name}.u32.{t} %d, %a, %b;", [a, b], "u4"), want * np.uint32(0xFFFFFFFF))


F32 = [
    0.0,
    1.0,
    1.5,
    2.0,
    3.0,
    1e-3,
    1e10,
    3.4e38,
    1.17549435e-38,
    1e-40,
    1.4e-45,
    0.1,
    7.0,
    math.inf,
    16777217.0,
    1e20,
]
F64 = [*F32, 1e300, 5e-324, 2.2250738585072014e-308, 1e-310, 0.3, 4503599627370497.5]


def float_cases(dtype: Any, count: int, limit: int = 3000) -> list[np.ndarray]:
    base = F32 if dtype == np.float32 else F64
    with np.errstate(over="ignore"):
        edges = np.array([s * v for v in base for s in (1, -1)] + [math.nan], dtype)
    extra = rng.standard_normal(8).astype(dtype)
    rows = list(itertools.product(np.concatenate([edges, extra]), repeat=count))
    if len(rows) > limit:
        rows = [rows[i] for i in rng.permutation(len(rows))[:limit]]
    return [np.array(column, dtype) for column in zip(*rows, strict=False)]


def same(got: np.ndarray, want: np.ndarray) -> bool:
    nan = np.isnan(want)
    bits = f"u{want.dtype.itemsize}"
    return np.array_equal(np.isnan(got), nan) and np.array_equal(got.view(bits)[~nan], want.view(bits)[~nan])


def flushed(v: np.ndarray) -> np.ndarray:
    return np.where(np.abs(v) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), v), v).astype(np.float32)


FLOAT_OPS = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


@pytest.mark.parametrize("op", FLOAT_OPS)
@pytest.mark.parametrize("t", [np.float32, np.float64])
@np.errstate(all="ignore")
def test_float_binary(op: str, t: Any) -> None:
    a, b = float_cases(t, 2)
    name = f"f{8 * a.dtype.itemsize}"
    assert same(run_op(f"{op}.rn.{name} %d, %a, %b;", [a, b], t), FLOAT_OPS[op](a, b))
    if t == np.float32:
        want = flushed(FLOAT_OPS[op](flushed(a), flushed(b)))
        assert same(run_op(f"{op}.rn.ftz.f32 %d, %a, %b;", [a, b], t), want)
        if op != "div":
            want = FLOAT_OPS[op](a, b)
            want = np.where(np.isnan(want), np.float32(0), np.clip(want, np.float32(0), np.float32(1)) + np.float32(0))
            assert same(run_op(f"{op}.sat.f32 %d, %a, %b;", [a, b], t), want.astype(t))


@np.errstate(all="ignore")
def directed(exact: Fraction, t: Any, mode: str, zero: float) -> float:
    """`exact` rounded to the format in a direction."""
    if exact == 0:
        return zero
    largest = float(np.finfo(t).max)
    if abs(exact) >= Fraction(largest):
        near = t(largest if exact > 0 else -largest)
    else:
        near = t(float(exact))
    low = near
    while Fraction(float(low)) > exact:
        low = np.nextafter(low, t(-math.inf))
        if np.isinf(low):
            break
    while not np.isinf(low):
        up = np.nextafter(low, t(math.inf))
        if np.isinf(up) or Fraction(float(up)) > exact:
            break
        low = up
    high = low if not np.isinf(low) and Fraction(float(low)) == exact else np.nextafter(low, t(math.inf))
    if mode == "rm" or (mode == "rz" and exact > 0):
        out = low
    else:
        out = high
    if out == 0:
        out = t(0.0) if exact > 0 else t(-0.0)
    return float(out)


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
@pytest.mark.parametrize("t", [np.float32, np.float64])
def test_directed_rounding(mode: str, t: Any) -> None:
    a, b, c = float_cases(t, 3, 700)
    name = f"f{8 * a.dtype.itemsize}"
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c) & (b != 0)
    a, b, c = a[finite], b[finite], c[finite]
    f: dict[str, Callable[..., Fraction]] = {
        "add": lambda x, y, z: x + y,
        "mul": lambda x, y, z: x * y,
        "div": lambda x, y, z: x / y,
        "fma": lambda x, y, z: x * y + z,
    }
    for op, reference in f.items():
        operands = "%a, %b, %c" if op == "fma" else "%a, %b"
        got = run_op(f"{op}.{mode}.{name} %d, {operands};", [a, b, c], t)
        for x, y, z, g in zip(a, b, c, got, strict=False):
            exact = reference(*[Fraction(float(v)) for v in (x, y, z)])
            if exact == 0:
                assert g == 0
            else:
                want = directed(exact, t, mode, 0.0)
                assert float(g) == want and math.copysign(1, g) == math.copysign(1, want), (op, x, y, z)


@np.errstate(all="ignore")
def test_fma_rounds_once() -> None:
    a, b, c = float_cases(np.float32, 3)
    got = run_op("fma.rn.f32 %d, %a, %b, %c;", [a, b, c], np.float32)
    for x, y, z, g in zip(a, b, c, got, strict=False):
        if not (math.isfinite(x) and math.isfinite(y) and math.isfinite(z)):
            assert math.isnan(g) == bool(np.isnan(np.float64(x) * np.float64(y) + np.float64(z)))
            continue
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        below, above = directed(exact, np.float32, "rm", 0.0), directed(exact, np.float32, "rp", 0.0)
        assert float(g) in (below, above) or math.isinf(g)
        if below != above and math.isfinite(g) and math.isfinite(below) and math.isfinite(above):
            other = above if float(g) == below else below
            assert abs(Fraction(float(g)) - exact) <= abs(Fraction(other) - exact)


@np.errstate(all="ignore")
def test_float_min_max() -> None:
    for t in (np.float32, np.float64):
        a, b = float_cases(t, 2)
        name = f"f{8 * a.dtype.itemsize}"
        for op, pick in (
            ("min", lambda x, y: x < y or (x == y and np.signbit(x))),
            ("max", lambda x, y: x > y or (x == y and not np.signbit(x))),
        ):
            want = np.array(
                [y if np.isnan(x) else x if np.isnan(y) or pick(x, y) else y for x, y in zip(a, b, strict=False)], t
            )
            assert same(run_op(f"{op}.{name} %d, %a, %b;", [a, b], t), want)
            if t == np.float32:
                nan = np.where(np.isnan(a) | np.isnan(b), np.float32("nan"), want)
                got = run_op(f"{op}.NaN.f32 %d, %a, %b;", [a, b], t)
                assert same(got, nan)
                assert (got.view("u4")[np.isnan(nan)] == 0x7FFFFFFF).all()


@np.errstate(all="ignore")
def test_float_unary() -> None:
    for t in (np.float32, np.float64):
        (a,) = float_cases(t, 1)
        name = f"f{8 * a.dtype.itemsize}"
        assert same(run_op(f"sqrt.rn.{name} %d, %a;", [a], t), np.sqrt(a))
        assert same(run_op(f"rcp.rn.{name} %d, %a;", [a], t), t(1) / a)
        assert same(run_op(f"abs.{name} %d, %a;", [a], t), np.abs(a))
        assert same(run_op(f"neg.{name} %d, %a;", [a], t), -a)
    a = np.concatenate([np.linspace(-6, 6, 300), [0.0, -0.0, math.inf]]).astype(np.float32)
    for op, f in (("ex2", np.exp2), ("sin", np.sin), ("cos", np.cos), ("tanh", np.tanh)):
        got = run_op(f"{op}.approx.f32 %d, %a;", [a], np.float32)
        np.testing.assert_allclose(got, f(a.astype(np.float64)).astype(np.float32), rtol=1e-6, atol=1e-6)
    a = np.abs(a)
    for op, f in (("lg2", np.log2), ("rsqrt", lambda v: 1 / np.sqrt(v)), ("sqrt", np.sqrt), ("rcp", lambda v: 1 / v)):
        got = run_op(f"{op}.approx.f32 %d, %a;", [a], np.float32)
        np.testing.assert_allclose(got, f(a.astype(np.float64)).astype(np.float32), rtol=1e-6, atol=1e-6)


@np.errstate(all="ignore")
def test_float_compare() -> None:
    a, b = float_cases(np.float32, 2)
    unordered = np.isnan(a) | np.isnan(b)
    table = {"eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
    wanted = {name: f(a, b) & ~unordered for name, f in table.items()}
    wanted["ne"] = (a != b) & ~unordered
    for name in list(wanted):
        wanted[name + "u"] = wanted[name] | unordered
    wanted["num"], wanted["nan"] = ~unordered, unordered
    for name, want in wanted.items():
        got = run_op(f"setp.{name}.f32 %p1, %a, %b; selp.u32 %d, 1, 0, %p1;", [a, b], "u4")
        assert np.array_equal(got, want), name
    for test, f in {
        "finite": np.isfinite(a),
        "infinite": np.isinf(a),
        "number": ~np.isnan(a),
        "notanumber": np.isnan(a),
        "subnormal": (a != 0) & (np.abs(a) < np.finfo(np.float32).tiny),
    }.items():
        assert np.array_equal(run_op(f"testp.{test}.f32 %p1, %a; selp.u32 %d, 1, 0, %p1;", [a], "u4"), f), test
