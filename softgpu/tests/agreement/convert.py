"""Cases of cvt. What the PTX ISA does not have is a case too: it must be refused."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from softgpu.tests.agreement import softfloat as sf
from softgpu.tests.agreement.case import Case, signed
from softgpu.tests.agreement.scalar import Words, clamp, full, limited, width

INTEGER_ROUNDING = {"rni": "rn", "rzi": "rz", "rmi": "rm", "rpi": "rp"}
E4M3_LARGEST, E5M2_LARGEST = 0x7E, 0x7B


def bounds(t: str) -> tuple[int, int]:
    n = width(t)
    return (-(1 << (n - 1)), (1 << (n - 1)) - 1) if t[0] == "s" else (0, (1 << n) - 1)


def is_integer(t: str) -> bool:
    return t not in sf.FORMATS


def valid(words: Words) -> bool:
    """Whether the PTX ISA has this conversion between scalar types."""
    to, source = words[-2:]
    rounding = next((w for w in words if w in ("rn", "rz", "rm", "rp")), "")
    whole = next((w for w in words if w in INTEGER_ROUNDING), "")
    if "ftz" in words and "f32" not in (to, source):
        return False
    if is_integer(to) and is_integer(source):
        (a, b), (c, d) = bounds(to), bounds(source)
        return not ("sat" in words and a <= c and d <= b)
    if is_integer(to) or is_integer(source):
        return not ("bf16" in (to, source) and "sat" in words)
    if "bf16" in (to, source) and "sat" in words:
        return False
    narrowing = width(to) < width(source) or (to != source and width(to) == 16)
    if whole:
        return to == source
    # What compilers emit, and drivers take, beside what the ISA says: of bf16 no rounding from and to f16, which is to
    # the nearest, and one where nothing is lost.
    lenient = (source == "bf16" and width(to) > 16) or {to, source} == {"f16", "bf16"}
    if narrowing != bool(rounding) and not lenient:
        return False
    if "relu" in words or "satfinite" in words:
        return source == "f32" and width(to) == 16 and rounding in ("rn", "rz") and "ftz" not in words
    return True


def to_integer(x: sf.Real, to: str, source: str, mode: str) -> int:
    low, high = bounds(to)
    if x.kind == "nan":
        return 0 if source != "f64" and width(to) < 64 else low if low else 1 << (width(to) - 1)
    if x.kind == "inf":
        return low if x.negative else high
    return clamp(sf.round_integer(x.value, mode), low, high)


def finite(bits: int, f: sf.Format, words: Words) -> int:
    if "satfinite" in words and bits & ~f.sign == f.infinity:
        return bits - 1
    return bits


def scalar(words: Words) -> Case:
    to, source = words[-2:]
    name = full("cvt", words)
    mode = next((w for w in words if w in ("rn", "rz", "rm", "rp")), "rn")
    whole = next((INTEGER_ROUNDING[w] for w in words if w in INTEGER_ROUNDING), "")
    f, g = sf.FORMATS.get(source), sf.FORMATS.get(to)

    def convert(bits: int) -> tuple[int]:
        if f is None:
            value = signed(bits, width(source)) if source[0] == "s" else bits % (1 << width(source))
            x = sf.number(Fraction(value))
            if g is None:
                low, high = bounds(to)
                value = clamp(value, low, high) if "sat" in words else value
                n = width(to)
                return (signed(value, n) if to[0] == "s" else value % (1 << n),)
        else:
            # On the way to f16 a GPU rounds subnormals like any number.
            x = sf.decode(sf.flush(bits, f) if "ftz" in words and source == "f32" and to != "f16" else bits, f)
        if g is None:
            return (to_integer(x, to, source, whole),)
        if whole and x.kind == "num":
            integer = sf.round_integer(x.value, whole)
            x = sf.Real("num", x.negative, Fraction(integer))
        out = finite(sf.encode(limited(x, words), g, "rn" if whole else mode), g, words)
        return (sf.flush(out, g) if "ftz" in words and to == "f32" else out,)

    def container(t: str) -> str:
        return f"{t[0]}32" if t in ("u8", "s8") else t

    bf = "bf16" in (to, source)
    case = Case(name, f"{name} %d, %a;", [container(source)], [container(to)], convert, sm=90 if bf else 80)
    case.refused = not valid(words)
    return case


def encode8(x: sf.Real, exponent_bits: int, mantissa_bits: int, largest: int) -> int:
    if x.kind == "nan":
        return 0x7F
    sign = 0x80 if x.negative else 0
    # A format with one more exponent bit has no infinity in the way.
    wide = sf.Format(exponent_bits, mantissa_bits)
    if x.kind == "inf":
        return sign | largest
    top = (1 << exponent_bits) - 1
    scale = top + 1 - wide.bias
    if abs(x.value) >= Fraction(2) ** scale:
        return sign | largest
    exponent = max(sf.log2_floor(abs(x.value)) if x.value else -99, 1 - wide.bias)
    units = abs(sf.round_integer(x.value / Fraction(2) ** (exponent - mantissa_bits), "rn"))
    bits = ((exponent + wide.bias - 1) << mantissa_bits) + units
    return sign | min(bits, largest)


def decode8(v: int, t: str) -> sf.Real:
    if t == "e5m2":
        return sf.decode(v << 8, sf.F16)
    if v & 0x7F == 0x7F:
        return sf.NAN
    exponent, fraction = v >> 3 & 15, v & 7
    value = Fraction(fraction | (8 if exponent else 0)) * Fraction(2) ** (max(exponent, 1) - 10)
    return sf.Real("num", bool(v & 0x80), -value if v & 0x80 else value)


def encode_scale(x: sf.Real, mode: str) -> int:
    """ue8m0: a power of two of the magnitude."""
    if x.kind == "nan":
        return 0xFF
    if x.kind == "inf":
        return 0xFE
    if x.value == 0 or abs(x.value) < Fraction(1, 1 << 127):
        return 0
    e = sf.log2_floor(abs(x.value))
    up = mode == "rp" and abs(x.value) > Fraction(2) ** e
    return min(e + 127 + int(up), 0xFE)


def encode_element(to: str, x: sf.Real, words: Words) -> int:
    mode = words[0]
    x = limited(x, tuple(w for w in words if w == "relu"))
    if to in ("f16", "bf16"):
        return finite(sf.encode(x, sf.FORMATS[to], mode), sf.FORMATS[to], words)
    if to == "ue8m0":
        return encode_scale(x, mode)
    return encode8(x, 4, 3, E4M3_LARGEST) if to == "e4m3" else encode8(x, 5, 2, E5M2_LARGEST)


def decode_element(source: str, v: int) -> sf.Real:
    if source in sf.FORMATS:
        return sf.decode(v, sf.FORMATS[source])
    if source == "ue8m0":
        return sf.NAN if v == 0xFF else sf.number(Fraction(2) ** (v - 127))
    return decode8(v, source)


def pair(words: Words) -> Case:
    to, source = words[-2].removesuffix("x2"), words[-1].removesuffix("x2")
    name = full("cvt", words)
    to_bits = 16 if to in ("f16", "bf16") else 8
    out = words[-2] if to_bits == 16 else "b16"
    # ue8m0 and the conversions of halves came with later machines.
    sm = 100 if "ue8m0" in (to, source) else 89 if to_bits == 8 or source in ("e4m3", "e5m2") else 80
    if source == "f32":
        return Case(
            name,
            f"{name} %d, %a, %b;",
            ["f32", "f32"],
            [out],
            lambda a, b: (
                encode_element(to, sf.decode(a, sf.F32), words) << to_bits
                | encode_element(to, sf.decode(b, sf.F32), words),
            ),
            sm=sm,
        )
    from_bits = 16 if source in ("f16", "bf16") else 8
    mask = (1 << from_bits) - 1
    return Case(
        name,
        f"{name} %d, %a;",
        [words[-1] if from_bits == 16 else "b16"],
        [out],
        lambda a: (
            encode_element(to, decode_element(source, a >> from_bits & mask), words) << to_bits
            | encode_element(to, decode_element(source, a & mask), words),
        ),
        sm=sm,
    )


def tf32(words: Words) -> Case:
    mode = "rna" if words[0] == "rna" else words[0]

    def run(a: int) -> tuple[int]:
        x = limited(sf.decode(a, sf.F32), tuple(w for w in words if w == "relu"))
        # A GPU cuts a NaN off where it rounds ties away from 0, even if that leaves an infinity.
        out = a >> 13 if x.kind == "nan" and mode == "rna" else sf.encode(x, sf.TF32, mode)
        return (finite(out, sf.TF32, words) << 13,)

    name = full("cvt", words)
    sm = 80 if words == ("rna", "tf32", "f32") else 100 if mode != "rna" and "satfinite" in words else 90
    return Case(name, f"{name} %d, %a;", ["f32"], ["f32"], run, sm=sm)


def cvt(words: Words, builder: str) -> Case:
    builders: dict[str, Callable[[Words], Case]] = {"cvt": scalar, "cvt_pair": pair, "cvt_tf32": tf32}
    return builders[builder](words)
