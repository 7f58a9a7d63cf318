"""Conversions and half precision against numpy and exact fractions."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from softgpu.tests import vm
from softgpu.tests.test_vm_ops import clamp, float_cases, int_cases, run_op, same, wrapped

INTS = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"]


def limits(t: str) -> tuple[int, int]:
    bits = int(t[1:])
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if t[0] == "s" else (0, (1 << bits) - 1)


def container(t: str) -> str:
    """The numpy type of the narrowest register that can hold the PTX type."""
    return f"{'i' if t[0] == 's' else 'u'}{max(int(t[1:]) // 8, 2)}"


@pytest.mark.parametrize("to,source", list(itertools.product(INTS, INTS)))
def test_int_to_int(to: str, source: str) -> None:
    (values,) = int_cases(source, 1)
    a = values.astype(container(source))
    low, high = limits(to)
    bits = int(to[1:])
    narrow = [int(v) % (1 << bits) - ((1 << bits) if to[0] == "s" and int(v) >> (bits - 1) & 1 else 0) for v in values]
    want = wrapped(narrow, np.dtype(container(to)))
    got = run_op(f"cvt.{to}.{source} %d, %a;", [a], container(to))
    if to not in ("s8", "u8"):
        assert np.array_equal(got, want)
    else:
        assert np.array_equal(got.astype("u1"), want.astype("u1"))
    if limits(source)[0] >= low and limits(source)[1] <= high:  # the PTX ISA has no .sat where every value fits
        with pytest.raises(vm.PtxError):
            run_op(f"cvt.sat.{to}.{source} %d, %a;", [a], container(to))
        return
    saturated = np.array([clamp(int(v), low, high) for v in values], container(to))
    got = run_op(f"cvt.sat.{to}.{source} %d, %a;", [a], container(to))
    assert np.array_equal(got.astype(f"{to[0].replace('s', 'i')}{bits // 8}"), saturated)


def test_narrow_loads_extend() -> None:
    a = np.array([0, 1, 127, 128, 255, 0x8000, 0xFFFF, 0x7FFF], np.uint16)
    body = "{ .reg .b64 %m; ld.param.u64 %m, [pa]; mad.wide.u32 %m, %i1, 2, %m; ld.global.TYPE %d, [%m]; }"
    assert np.array_equal(run_op(body.replace("TYPE", "s16"), [a], "i8"), a.view("i2").astype("i8"))
    assert np.array_equal(run_op(body.replace("TYPE", "u16"), [a], "u8"), a.astype("u8"))
    assert np.array_equal(run_op(body.replace("TYPE", "s8"), [a], "i4"), a.astype("u1").view("i1").astype("i4"))
    assert np.array_equal(run_op(body.replace("TYPE", "u8"), [a], "u4"), a.astype("u1").astype("u4"))


ROUND = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


@pytest.mark.parametrize("to", INTS)
@pytest.mark.parametrize("source", [np.float16, np.float32, np.float64])
def test_float_to_int(to: str, source: Any) -> None:
    base = [0.0, 0.4, 0.5, 0.6, 1.0, 1.5, 2.5, 3.5, 127.5, 128.0, 255.5, 32767.5, 65504.0, math.inf, math.nan]
    if source != np.float16:
        base += [2147483647.5, 2147483648.0, 4294967295.5, 4294967296.0, 9.3e18, 1.9e19, 1e30, 4503599627370497.5]
    a = np.array([s * v for v in base for s in (1, -1)], source)
    low, high = limits(to)
    for mode, f in ROUND.items():
        got = run_op(f"cvt.{mode}.{to}.f{8 * a.dtype.itemsize} %d, %a;", [a], container(to))
        for x, g in zip(a, got, strict=False):
            if math.isnan(x):
                zero = source != np.float64 and to not in ("u64", "s64")
                want = 0 if zero else (1 << (int(to[1:]) - 1))
            elif math.isinf(x):
                want = high if x > 0 else low
            else:
                want = clamp(f(float(x)), low, high)
            assert (int(g) - want) % (1 << int(to[1:])) == 0, (mode, x)


def fraction_to(exact: Fraction, bits: int, low_exponent: int, mode: str) -> Fraction:
    """`exact` rounded to a binary format with that many significant bits and that exponent of its subnormals."""
    if exact == 0:
        return exact
    magnitude = abs(exact)
    e = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** e > magnitude:
        e -= 1
    unit = Fraction(2) ** max(e - bits + 1, low_exponent)
    n = exact / unit
    k = {"rn": round, "rz": math.trunc, "rm": math.floor, "rp": math.ceil}[mode](n)
    return k * unit


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("source", ["u32", "s32", "u64", "s64"])
def test_int_to_float(source: str, mode: str) -> None:
    (a,) = int_cases(source, 1)
    extra = [(1 << k) + d for k in range(24, 31) for d in (-1, 0, 1)]
    if source.endswith("64"):
        extra += [(1 << k) + (1 << j) + d for k in (53, 60, 62) for j in (k - 24, k - 25, k - 53) for d in (-1, 0, 1)]
    a = np.concatenate([a, np.array(extra, a.dtype)])
    for to, bits in (("f32", 24), ("f64", 53)):
        got = run_op(f"cvt.{mode}.{to}.{source} %d, %a;", [a], f"f{int(to[1:]) // 8}")
        for x, g in zip(a, got, strict=False):
            assert Fraction(float(g)) == fraction_to(Fraction(int(x)), bits, -2000, mode), (x, to)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@np.errstate(all="ignore")
def test_f64_to_f32(mode: str) -> None:
    (a,) = float_cases(np.float64, 1)
    a = np.concatenate([a, rng_values()])
    got = run_op(f"cvt.{mode}.f32.f64 %d, %a;", [a], np.float32)
    for x, g in zip(a, got, strict=False):
        if not math.isfinite(x):
            assert math.isnan(x) == math.isnan(g) and (math.isnan(x) or x == g)
        elif abs(x) < 3.4028234e38:
            assert Fraction(float(g)) == fraction_to(Fraction(float(x)), 24, -149, mode)
            assert math.copysign(1, g) == math.copysign(1, x)
        else:
            away = mode == "rn" or (mode == "rp" and x > 0) or (mode == "rm" and x < 0)
            assert math.isinf(g) == away


def rng_values() -> np.ndarray:
    r = np.random.default_rng(3)
    return r.standard_normal(300) * 10.0 ** r.integers(-46, 38, 300)


HALVES = {"f16": (11, -24, 65504.0), "bf16": (8, -133, 3.3895313892515355e38)}


def half_value(bits: int, t: str) -> float:
    if t == "bf16":
        return float(np.array([bits << 16], "u4").view("f4")[0])
    return float(np.array([bits], "u2").view("f2")[0])


@pytest.mark.parametrize("t", HALVES)
@pytest.mark.parametrize("mode", ["rn", "rz"])
@np.errstate(all="ignore")
def test_f32_to_half(t: str, mode: str) -> None:
    significant, low, largest = HALVES[t]
    scale = [1e-9, 1e-7, 1e-5, 1e-3, 1, 100, 1e4]
    a = np.concatenate([np.random.default_rng(5).standard_normal(60) * s for s in scale]).astype(np.float32)
    ties = np.array([1 + 2.0**-significant, 1 + 3 * 2.0**-significant, 2.0**low / 2, 2.0**low * 1.5], np.float32)
    a = np.concatenate([a, ties, -ties, np.array([0.0, -0.0, math.inf, math.nan, largest, 3.4e38], np.float32)])
    got = run_op(f"cvt.{mode}.{t}.f32 %d, %a;", [a], np.uint16)
    for x, g in zip(a, got, strict=False):
        value = half_value(int(g), t)
        if math.isnan(x):
            assert g == 0x7FFF
        elif abs(x) > largest:
            assert math.isinf(value) if mode == "rn" or math.isinf(x) else value == math.copysign(largest, x)
        else:
            assert Fraction(value) == fraction_to(Fraction(float(x)), significant, low, mode)
            assert math.copysign(1, value) == math.copysign(1, x)
    back = run_op(f"cvt.f32.{t} %d, %a;", [got], np.float32)
    assert same(back, np.array([half_value(int(g), t) for g in got], np.float32))


@pytest.mark.parametrize("t", HALVES)
def test_half_arithmetic_rounds_once(t: str) -> None:
    significant, low, largest = HALVES[t]
    r = np.random.default_rng(9)
    if t == "f16":
        edges = np.array([0, 1, 0x3FF, 0x400, 0x3C00, 0x3C01, 0x7BFF, 0x0002, 0x8001, 0xBC00, 0xFBFF], np.uint16)
    else:
        edges = np.array([0, 1, 0x7F, 0x80, 0x3F80, 0x3F81, 0x7E00, 0x0002, 0x8001, 0xBF80, 0xFE00], np.uint16)
    rows = list(itertools.product(edges, repeat=3))
    random = r.integers(0, 0x7000, (2000, 3)).astype(np.uint16) | (r.integers(0, 2, (2000, 3)) << 15).astype(np.uint16)
    a, b, c = np.concatenate([np.array(rows, np.uint16), random]).T.copy()
    for op, f in {
        "add": lambda x, y, z: x + y,
        "sub": lambda x, y, z: x - y,
        "mul": lambda x, y, z: x * y,
        "fma.rn": lambda x, y, z: x * y + z,
    }.items():
        operands = "%a, %b, %c" if op == "fma.rn" else "%a, %b"
        got = run_op(f"{op}.{t} %d, {operands};", [np.ascontiguousarray(v) for v in (a, b, c)], np.uint16)
        for x, y, z, g in zip(a, b, c, got, strict=False):
            exact = f(*[Fraction(half_value(int(v), t)) for v in (x, y, z)])
            want = fraction_to(exact, significant, low, "rn")
            value = half_value(int(g), t)
            if abs(want) > Fraction(largest):
                assert math.isinf(value)
            else:
                assert Fraction(value) == want, (op, hex(x), hex(y), hex(z))


def test_packed_halves() -> None:
    r = np.random.default_rng(11)
    a, b = (r.standard_normal((2, 1000)) * 10).astype(np.float16)
    pa, pb = a.view(np.uint32), b.view(np.uint32)
    assert np.array_equal(run_op("add.f16x2 %d, %a, %b;", [pa, pb], "u4").view("f2"), a + b)
    assert np.array_equal(run_op("min.f16x2 %d, %a, %b;", [pa, pb], "u4").view("f2"), np.minimum(a, b))
    assert np.array_equal(run_op("neg.f16x2 %d, %a;", [pa], "u4").view("f2"), -a)
    relu = run_op("fma.rn.relu.f16x2 %d, %a, %b, %a;", [pa, pb], "u4").view("f2")
    exact = a.astype("f8") * b.astype("f8") + a.astype("f8")
    assert np.array_equal(relu, np.maximum(exact, 0).astype("f2"))
    low, high = r.standard_normal(500).astype("f4"), r.standard_normal(500).astype("f4")
    packed = run_op("cvt.rn.f16x2.f32 %d, %a, %b;", [high, low], "u4").view("f2").reshape(-1, 2)
    assert np.array_equal(packed[:, 0], low.astype("f2")) and np.array_equal(packed[:, 1], high.astype("f2"))
    compare = run_op(
        "setp.lt.f16x2 %p1|%p2, %a, %b; selp.u32 %d, 1, 0, %p1; selp.u32 %q, 1, 0, %p2;", [pa, pb], "u4", 2
    )
    assert np.array_equal(compare.reshape(-1), a < b)


def test_eight_bit_formats() -> None:
    codes = np.arange(256, dtype=np.uint16)
    for t, bits, bias, top in (("e4m3x2", 3, 7, 0x7E), ("e5m2x2", 2, 15, 0x7B)):
        values = []
        for c in range(top + 1):
            e, f = c >> bits, c & ((1 << bits) - 1)
            values.append(math.ldexp(f, 1 - bias - bits) if e == 0 else math.ldexp((1 << bits) + f, e - bias - bits))
        got = run_op(f"cvt.rn.f16x2.{t} %d, %a;", [codes], "u4").view("f2")[::2]
        assert got[: top + 1].tolist() == values
        assert got[128 : 129 + top].tolist() == [-v for v in values]
        x = np.concatenate([np.random.default_rng(2).standard_normal(400) * s for s in (0.001, 0.1, 10, 1000, 1e5)])
        x = x.astype(np.float32)
        got8 = run_op(f"cvt.rn.satfinite.{t}.f32 %d, %a, %a;", [x], np.uint16)
        for v, g in zip(x, got8, strict=False):
            assert int(g) >> 8 == int(g) & 255
            code = int(g) & 127
            error = abs(abs(float(v)) - values[code])
            nearest = min(range(top + 1), key=lambda c: (abs(values[c] - abs(float(v))), c & 1))
            assert code == nearest, (v, error)
            assert (int(g) & 128 != 0) == (v < 0)


def test_tf32() -> None:
    a = np.random.default_rng(4).standard_normal(500).astype(np.float32)
    got = run_op("cvt.rna.tf32.f32 %d, %a;", [a], np.uint32)
    assert np.array_equal(got, (a.view("u4") + 0x1000) & 0xFFFFE000)


def test_what_is_not_a_conversion() -> None:
    for text in ("cvt.f32.f64 %d, %a;", "cvt.rn.f64.f32 %d, %a;", "cvt.rn.f32.f32 %d, %d;", "cvt.rx.f32.f64 %d, %a;"):
        with pytest.raises(vm.PtxError) as e:
            run_op(text, [np.zeros(1)], np.float32)
        assert e.value.code == 218 and text.split()[0] in e.value.text
