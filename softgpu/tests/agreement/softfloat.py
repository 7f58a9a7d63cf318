"""Floating point formats as exact fractions: what IEEE operations must give, bit for bit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Format:
    """A binary format. NaN is all ones but the sign, as NVIDIA's GPUs make it."""

    exponent_bits: int
    mantissa_bits: int

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def infinity(self) -> int:
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits

    @property
    def nan(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def sign(self) -> int:
        return 1 << (self.bits - 1)


F16, BF16, F32, F64 = Format(5, 10), Format(8, 7), Format(8, 23), Format(11, 52)
TF32 = Format(8, 10)
FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}


@dataclass(frozen=True)
class Real:
    """kind: "nan", "inf" or "num"; a zero has a sign too."""

    kind: str
    negative: bool
    value: Fraction = Fraction(0)


NAN = Real("nan", False)


def decode(bits: int, f: Format) -> Real:
    negative = bool(bits & f.sign)
    magnitude = bits & (f.sign - 1)
    if magnitude > f.infinity:
        return NAN
    if magnitude == f.infinity:
        return Real("inf", negative)
    exponent, fraction = magnitude >> f.mantissa_bits, magnitude & ((1 << f.mantissa_bits) - 1)
    if exponent:
        fraction |= 1 << f.mantissa_bits
    scale = max(exponent, 1) - f.bias - f.mantissa_bits
    value = Fraction(fraction << scale) if scale >= 0 else Fraction(fraction, 1 << -scale)
    return Real("num", negative, -value if negative else value)


def flush(bits: int, f: Format) -> int:
    """Subnormal -> zero of its sign."""
    return bits & f.sign if bits & f.infinity == 0 else bits


def is_tiny(x: Real, f: Format, mode: str) -> bool:
    """Whether x, rounded as if exponents had no bound, is below the smallest normal number: what a GPU flushes."""
    unbounded = Format(f.exponent_bits + 4, f.mantissa_bits)
    return x.kind == "num" and abs(decode(encode(x, unbounded, mode), unbounded).value) < Fraction(2) ** (1 - f.bias)


def round_integer(value: Fraction, mode: str) -> int:
    """value rounded to an integer: rn to even, rna ties away from zero, rz, rm, rp."""
    low = value.numerator // value.denominator
    rest = value - low
    if rest == 0:
        return low
    if mode == "rz":
        return low if value > 0 else low + 1
    if mode == "rm":
        return low
    if mode == "rp":
        return low + 1
    if rest != Fraction(1, 2):
        return low + 1 if rest > Fraction(1, 2) else low
    if mode == "rna":
        return low + 1 if value > 0 else low
    return low + (low & 1)


def log2_floor(value: Fraction) -> int:
    """The e with 2**e <= value < 2**(e + 1), for value > 0."""
    e = value.numerator.bit_length() - value.denominator.bit_length()
    power = Fraction(1 << e) if e >= 0 else Fraction(1, 1 << -e)
    return e if value >= power else e - 1


def encode(x: Real, f: Format, mode: str = "rn") -> int:
    if x.kind == "nan":
        return f.nan
    sign = f.sign if x.negative else 0
    if x.kind == "inf":
        return sign | f.infinity
    if x.value == 0:
        return sign
    magnitude = abs(x.value)
    exponent = max(log2_floor(magnitude), 1 - f.bias)
    scale = exponent - f.mantissa_bits
    units = x.value / (Fraction(1 << scale) if scale >= 0 else Fraction(1, 1 << -scale))
    mantissa = abs(round_integer(units, mode))
    if mantissa == 0:
        return sign
    result = ((exponent + f.bias - 1) << f.mantissa_bits) + mantissa
    if result >= f.infinity:
        to_largest = mode == "rz" or (mode == "rm" and not x.negative) or (mode == "rp" and x.negative)
        result = f.infinity - 1 if to_largest else f.infinity
    return sign | result


def number(value: Fraction, negative_zero: bool = False) -> Real:
    return Real("num", value < 0 or (value == 0 and negative_zero), value)


def add(a: Real, b: Real, mode: str = "rn") -> Real:
    if "nan" in (a.kind, b.kind) or (a.kind == b.kind == "inf" and a.negative != b.negative):
        return NAN
    if a.kind == "inf" or b.kind == "inf":
        return a if a.kind == "inf" else b
    value = a.value + b.value
    if value == 0:
        return Real("num", a.negative if a.negative == b.negative else mode == "rm")
    return number(value)


def negate(a: Real) -> Real:
    return a if a.kind == "nan" else Real(a.kind, not a.negative, -a.value)


def multiply(a: Real, b: Real) -> Real:
    negative = a.negative != b.negative
    if "nan" in (a.kind, b.kind):
        return NAN
    if "inf" in (a.kind, b.kind):
        other = b if a.kind == "inf" else a
        return NAN if other.kind == "num" and other.value == 0 else Real("inf", negative)
    return Real("num", negative, a.value * b.value)


def divide(a: Real, b: Real) -> Real:
    negative = a.negative != b.negative
    if "nan" in (a.kind, b.kind) or (a.kind == b.kind == "inf"):
        return NAN
    if a.kind == "inf":
        return Real("inf", negative)
    if b.kind == "inf":
        return Real("num", negative)
    if b.value == 0:
        return NAN if a.value == 0 else Real("inf", negative)
    return Real("num", negative, a.value / b.value)


def square_root(a: Real, f: Format) -> Real:
    """Exact where it matters: to far more bits than any rounding to `f` looks at, the last one sticky."""
    if a.kind == "nan" or (a.negative and not (a.kind == "num" and a.value == 0)):
        return NAN
    if a.kind == "inf" or a.value == 0:
        return a
    shift = 2 * (f.mantissa_bits + 40) + 2 * max(0, -log2_floor(a.value))
    scaled = a.value * (1 << shift)
    root = math.isqrt(scaled.numerator // scaled.denominator)
    exact = Fraction(root * root) == scaled
    value = Fraction(root, 1 << (shift // 2)) if exact else Fraction(2 * root + 1, 1 << (shift // 2 + 1))
    return number(value)


def order(bits: int, f: Format) -> int:
    """Monotonic integer of a number's bits, -0 below +0."""
    return -1 - (bits & (f.sign - 1)) if bits & f.sign else bits


def is_nan(bits: int, f: Format) -> bool:
    return bits & (f.sign - 1) > f.infinity
