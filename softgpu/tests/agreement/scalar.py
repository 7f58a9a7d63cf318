"""Cases of the arithmetic sections of the table: integers, bits, comparisons, reals, halves. References are written
from the PTX ISA, on Python integers and exact fractions."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from softgpu.tests.agreement import softfloat as sf
from softgpu.tests.agreement.case import PACKED, Case, packed, signed

Words = tuple[str, ...]


def full(opcode: str, words: Words) -> str:
    return ".".join((opcode, *words))


def width(t: str) -> int:
    return int("".join(c for c in t if c.isdigit()))


def simple(opcode: str, words: Words, ins: list[str], out: str, f: Callable[..., int], **more: object) -> Case:
    """opcode.words %d, %a, ...;"""
    registers = ", ".join(["%d", *[f"%{r}" for r in "abce"[: len(ins)]]])
    name = full(opcode, words)
    return Case(name, f"{name} {registers};", ins, [out], lambda *v: (f(*v),), **more)  # type: ignore[arg-type]


def clamp(v: int, low: int, high: int) -> int:
    return max(low, min(high, v))


def truncated(a: int, b: int) -> int:
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


def low24(v: int, t: str) -> int:
    return signed(v, 24) if t[0] == "s" else v % (1 << 24)


def parts(v: int, bits: int, is_signed: bool, count: int) -> list[int]:
    raw = [v >> (bits * i) & ((1 << bits) - 1) for i in range(count)]
    return [signed(x, bits) for x in raw] if is_signed else raw


def integer(opcode: str, words: Words) -> Case | str:
    t = words[-1]
    has = words[:-1]
    if t in ("u16x2", "s16x2"):
        table: dict[str, Callable[[int, int], int]] = {"add": lambda a, b: a + b, "min": min, "max": max}
        one = table[opcode]

        def half(a: int, b: int) -> int:
            if t[0] == "s":
                a, b = signed(a, 16), signed(b, 16)
            v = one(a, b)
            return max(v, 0) if "relu" in has else v

        return simple(opcode, words, [t, t], t, packed(16, 2, half), sm=90)
    n = width(t)
    low, high = (-(1 << (n - 1)), (1 << (n - 1)) - 1) if t[0] == "s" else (0, (1 << n) - 1)
    if "cc" in has or opcode in ("addc", "subc", "madc"):
        return carry(opcode, words)
    if opcode in ("add", "sub", "min", "max", "div", "rem"):
        functions: dict[str, Callable[[int, int], int]] = {
            "add": lambda a, b: a + b,
            "sub": lambda a, b: a - b,
            "min": min,
            "max": max,
            "div": truncated,
            "rem": lambda a, b: a - b * truncated(a, b),
        }
        f = functions[opcode]
        g = (lambda a, b: clamp(f(a, b), low, high)) if "sat" in has else f
        h = (lambda a, b: max(g(a, b), 0)) if "relu" in has else g
        second = f"nonzero_{t}" if opcode in ("div", "rem") else t
        return simple(opcode, words, [t, second], t, h, sm=90 if "relu" in has else 80)
    if opcode == "mul" and has[0] == "wide":
        return simple(opcode, words, [t, t], f"{t[0]}{2 * n}", lambda a, b: a * b)
    if opcode == "mul":
        return simple(opcode, words, [t, t], t, lambda a, b: a * b if has[0] == "lo" else a * b >> n)
    if opcode == "mad" and has[0] == "wide":
        return simple(opcode, words, [t, t, f"{t[0]}{2 * n}"], f"{t[0]}{2 * n}", lambda a, b, c: a * b + c)
    if opcode == "mad":

        def mad(a: int, b: int, c: int) -> int:
            v = (a * b if has[0] == "lo" else a * b >> n) + c
            return clamp(v, low, high) if "sat" in has else v

        return simple(opcode, words, [t, t, t], t, mad)
    if opcode in ("mul24", "mad24"):

        def mul24(a: int, b: int, c: int = 0) -> int:
            v = (low24(a, t) * low24(b, t) >> (16 if has[0] == "hi" else 0)) % (1 << 32)
            v = (signed(v, 32) if t[0] == "s" else v) + c
            return clamp(v, low, high) if "sat" in has else v

        return simple(opcode, words, [t] * (2 if opcode == "mul24" else 3), t, mul24)
    if opcode == "sad":
        return simple(opcode, words, [t, t, t], t, lambda a, b, c: c + abs(a - b))
    if opcode == "abs":
        return simple(opcode, words, [t], t, abs)
    if opcode == "neg":
        return simple(opcode, words, [t], t, lambda a: -a)
    if opcode == "popc":
        return simple(opcode, words, [t], "u32", lambda a: bin(a).count("1"))
    if opcode == "clz":
        return simple(opcode, words, [t], "u32", lambda a: n - a.bit_length())
    if opcode == "brev":
        return simple(opcode, words, [t], t, lambda a: int(f"{a:0{n}b}"[::-1], 2))
    if opcode == "bfind":

        def bfind(a: int) -> int:
            at = (~a if a < 0 else a).bit_length() - 1
            return n - 1 - at if "shiftamt" in has and at >= 0 else at

        return simple(opcode, words, [t], "u32", bfind)
    if opcode == "fns":

        def fns(mask: int, base: int, offset: int) -> int:
            if offset == 0:
                return base if mask >> base & 1 else -1
            step, count = (1, offset) if offset > 0 else (-1, -offset)
            while 0 <= base < 32:
                count -= mask >> base & 1
                if count == 0:
                    return base
                base += step
            return -1

        case = simple(opcode, words, ["b32", "small_b32", "s32"], "b32", fns)
        case.data = [*case.values()[:2], [(v % 41) - 20 for v in case.values()[2]]]
        return case
    if opcode == "bfe":

        def bfe(a: int, p: int, length: int) -> int:
            p, length, u = bit_count(p, n), bit_count(length, n), a % (1 << n)
            sign = u >> min(p + length - 1, n - 1) & 1 if t[0] == "s" and length else 0
            return sum((u >> (p + i) & 1 if i < length and p + i < n else sign) << i for i in range(n))

        return simple(opcode, words, [t, "shift_b32", "shift_b32"], t, bfe)
    if opcode == "bfi":

        def bfi(a: int, b: int, p: int, length: int) -> int:
            p, length = bit_count(p, n), bit_count(length, n)
            for i in range(min(length, n)):
                if p + i < n:
                    b = b & ~(1 << (p + i)) | (a >> i & 1) << (p + i)
            return b

        return simple(opcode, words, [t, t, "shift_b32", "shift_b32"], t, bfi)
    if opcode == "szext":

        def szext(a: int, b: int) -> int:
            b1 = b & 31
            too_large = b >= 32 and has[0] == "clamp"
            mask = 0 if too_large else 0xFFFFFFFF << b1 & 0xFFFFFFFF
            sign = 0 if b1 == 0 or too_large or t == "u32" else a >> (b1 - 1) & 1
            return a & ~mask | (mask if sign else 0)

        return simple(opcode, words, [t, "shift_b32"], t, szext)
    if opcode == "bmsk":

        def bmsk(a: int, b: int) -> int:
            a1, b1 = a & 31, b & 31
            if has[0] == "clamp" and a >= 32:
                return 0
            everything = 0xFFFFFFFF << a1
            if b1 + a1 >= 32 or (has[0] == "clamp" and b >= 32):
                return everything
            return everything & ((1 << (a1 + b1)) - 1)

        return simple(opcode, words, ["shift_b32", "shift_b32"], "b32", bmsk)
    if opcode == "dp4a":
        a_signed, b_signed = words[0] == "s32", words[1] == "s32"

        def dp4a(a: int, b: int, c: int) -> int:
            return c + sum(p * q for p, q in zip(parts(a, 8, a_signed, 4), parts(b, 8, b_signed, 4), strict=True))

        return simple(opcode, words, [words[0], words[1], "s32"], "b32", dp4a)
    if opcode == "dp2a":
        shift = 16 if words[0] == "hi" else 0

        def dp2a(a: int, b: int, c: int) -> int:
            x, y = parts(a, 16, words[1] == "s32", 2), parts(b >> shift, 8, words[2] == "s32", 2)
            return c + sum(p * q for p, q in zip(x, y, strict=True))

        return simple(opcode, words, [words[1], words[2], "s32"], "b32", dp2a)
    return f"no recipe for {full(opcode, words)}"


def carry(opcode: str, words: Words) -> Case:
    """The carry in comes from an addition (or subtraction) of %c and %e, the one out goes to %q."""
    t = words[-1]
    n = width(t)
    top = 1 << n
    base = opcode.removesuffix("c") if opcode != "add" else opcode
    takes, gives = opcode in ("addc", "subc", "madc"), "cc" in words
    subtracts = base == "sub"
    name = full(opcode, words)
    body = ""
    if takes:
        body += f"{'sub' if subtracts else 'add'}.cc.{t} %w0, %c, %e; ".replace("%w0", "%w0" if n == 64 else "%t0")
    body += f"{name} %d, %a, %b{', %c' if base == 'mad' else ''}; "
    body += f"{'subc' if subtracts else 'addc'}.{t} %q, 0, 0;" if gives else "mov.b32 %q, 0;".replace("b32", f"b{n}")

    def reference(a: int, b: int, c: int, e: int) -> tuple[int, int]:
        ua, ub, uc, ue = (v % top for v in (a, b, c, e))
        entering = 0
        if takes:
            entering = int(uc < ue) if subtracts else (uc + ue) >> n
        if base == "mad":
            product = a * b if "lo" in words else a * b >> n
            total = product % top + uc + entering
        elif subtracts:
            total = ua - ub - entering
        else:
            total = ua + ub + entering
        out = (total >> n) & 1 if gives else 0
        return total, -out if subtracts else out

    return Case(name, body, [t, t, t, t], [t, t], reference)


LUTS = [0x80, 0x96, 0xE8, 0xCA, 0x1B]


def lut3(lut: int, a: int, b: int, c: int) -> int:
    return sum((lut >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i for i in range(32))


def prmt(mode: str, a: int, b: int, c: int) -> int:
    data = [(a | b << 32) >> (8 * i) & 255 for i in range(8)]
    k = c & 3
    picks = {
        "f4e": [k, k + 1, k + 2, k + 3],
        "b4e": [k, (k - 1) % 8, (k - 2) % 8, (k - 3) % 8],
        "rc8": [k] * 4,
        "ecl": [max(i, k) for i in range(4)],
        "ecr": [min(i, k) for i in range(4)],
        "rc16": [0, 1, 0, 1] if k % 2 == 0 else [2, 3, 2, 3],
    }.get(mode)
    if picks is not None:
        out = [data[i] for i in picks]
    else:
        nibbles = [c >> (4 * i) & 15 for i in range(4)]
        out = [(255 if data[i & 7] & 128 else 0) if i & 8 else data[i & 7] for i in nibbles]
    return sum(v << (8 * i) for i, v in enumerate(out))


COMPARE: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lo": lambda a, b: a < b,
    "ls": lambda a, b: a <= b,
    "hi": lambda a, b: a > b,
    "hs": lambda a, b: a >= b,
}


def compare(op: str, t: str, ftz: bool, a: int, b: int) -> bool:
    f = sf.FORMATS.get(t)
    if f is None:
        return COMPARE[op](a, b)
    if ftz:
        a, b = sf.flush(a, f), sf.flush(b, f)
    unordered = sf.is_nan(a, f) or sf.is_nan(b, f)
    if op == "num":
        return not unordered
    if op == "nan":
        return unordered
    if unordered:
        return op in ("equ", "neu", "ltu", "leu", "gtu", "geu")
    x, y = (-1 if v == f.sign else sf.order(v, f) for v in (a, b))
    x, y = (0 if v == -1 and bits == f.sign else v for v, bits in ((x, a), (y, b)))
    return COMPARE[op.removesuffix("u") if op not in ("equ", "neu", "ltu", "leu", "gtu", "geu") else op[:2]](x, y)


BOOLEAN: dict[str, Callable[[bool, bool], bool]] = {
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "xor": lambda a, b: a != b,
}


def split_compare(words: Words) -> tuple[str, str, bool, Words]:
    """(comparison, boolean operation or "", ftz, types)"""
    rest = list(words[1:])
    combine = rest.pop(0) if rest[0] in BOOLEAN else ""
    ftz = rest[0] == "ftz"
    return words[0], combine, ftz, tuple(rest[1:] if ftz else rest)


def bit_count(v: int, bits: int) -> int:
    """A position or length of a bit field. PTX allows 0..255; of more, a GPU takes 8 bits, but all for 64."""
    return v & 255 if bits == 32 else v


def setp(words: Words) -> Case:
    op, combine, ftz, (t,) = split_compare(words)
    name = full("setp", words)
    body = "setp.ne.u32 %p3, %c, 0; " if combine else ""
    # One comparison of halves gives one predicate.
    second = t not in ("f16", "bf16")
    body += (
        f"{name} %p1{'|%p2' if second else ''}, %a, %b{', !%p3' if combine == 'or' else ', %p3' if combine else ''}; "
    )
    body += "selp.u32 %d, 1, 0, %p1; " + ("selp.u32 %q, 1, 0, %p2;" if second else "mov.u32 %q, 0;")

    def reference(a: int, b: int, c: int = 0) -> tuple[int, int]:
        element = PACKED.get(t, t)
        if t in PACKED:
            both = [compare(op, element, ftz, a >> s & 0xFFFF, b >> s & 0xFFFF) for s in (0, 16)]
        else:
            yes = compare(op, element, ftz, a, b)
            both = [yes, not yes]
        third = (c == 0) if combine == "or" else c != 0
        low, high = [BOOLEAN[combine](v, third) if combine else v for v in both]
        return int(low), int(high and second)

    return Case(
        name, body, [t, t, "b32"] if combine else [t, t], ["u32", "u32"], reference, sm=90 if "bf16" in t else 80
    )


def set_(words: Words) -> Case:
    op, combine, ftz, types = split_compare(words)
    to, t = types[0], types[-1]
    name = full("set", words)
    body = "setp.ne.u32 %p3, %c, 0; " if combine else ""
    body += f"{name} %d, %a, %b{', %p3' if combine else ''};"
    truth = {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80}

    def reference(a: int, b: int, c: int = 0) -> tuple[int]:
        def one(x: int, y: int, element: str, result: str) -> int:
            yes = compare(op, element, ftz, x, y)
            yes = BOOLEAN[combine](yes, c != 0) if combine else yes
            return truth.get(result, -1) if yes else 0

        if t in PACKED:
            return (packed(16, 2, lambda x, y: one(x, y, PACKED[t], PACKED[to]))(a, b),)
        return (one(a, b, t, to),)

    return Case(name, body, [t, t, "b32"] if combine else [t, t], [to], reference, sm=90 if "bf16" in t else 80)


def logic(opcode: str, words: Words) -> Case | str:
    t = words[-1]
    if opcode in ("and", "or", "xor", "not", "cnot") and t != "pred":
        n = width(t)
        functions: dict[str, Callable[..., int]] = {
            "and": lambda a, b: a & b,
            "or": lambda a, b: a | b,
            "xor": lambda a, b: a ^ b,
            "not": lambda a: ~a % (1 << n),
            "cnot": lambda a: int(a == 0),
        }
        return simple(opcode, words, [t] * (1 if "not" in opcode else 2), t, functions[opcode])
    if t == "pred":
        name = full(opcode, words)
        two = opcode in ("and", "or", "xor")
        body = "and.b32 %t1, %a, 1; setp.ne.u32 %p1, %t1, 0; and.b32 %t2, %b, 2; setp.ne.u32 %p2, %t2, 0; "
        body += f"{name} %p3, %p1{', %p2' if two else ''}; selp.u32 %d, 1, 0, %p3;"

        def pred(a: int, b: int) -> tuple[int]:
            x, y = bool(a & 1), bool(b & 2)
            return (int(BOOLEAN[opcode](x, y) if two else not x if opcode == "not" else x),)

        return Case(name, body, ["b32", "b32"], ["u32"], pred)
    if opcode == "shl":
        return simple(opcode, words, [t, "shift_b32"], t, lambda a, s: a << min(s, 64))
    if opcode == "shr":
        return simple(opcode, words, [t, "shift_b32"], t, lambda a, s: a >> s)
    if opcode == "shf":

        def shf(a: int, b: int, c: int) -> int:
            s = min(c, 32) if words[1] == "clamp" else c & 31
            v = a | b << 32
            return v << s >> 32 if words[0] == "l" else v >> s

        return simple(opcode, words, ["b32", "b32", "shift_b32"], "b32", shf)
    if opcode == "lop3":
        name = full(opcode, words)
        if len(words) == 1:
            body = " ".join(f"lop3.b32 %{r}, %a, %b, %c, {x};" for r, x in zip("dqrs", LUTS, strict=False))
            return Case(name, body, ["b32"] * 3, ["b32"] * 4, lambda a, b, c: [lut3(x, a, b, c) for x in LUTS[:4]])
        body = f"setp.ne.u32 %p2, %e, 0; {name} %d|%p1, %a, %b, %c, 150, %p2; selp.u32 %q, 1, 0, %p1;"

        def lop(a: int, b: int, c: int, e: int) -> tuple[int, int]:
            v = lut3(150, a, b, c)
            return v, int(BOOLEAN[words[0]](v != 0, e != 0))

        return Case(name, body, ["b32"] * 4, ["b32", "u32"], lop)
    if opcode == "prmt":
        mode = words[1] if len(words) > 1 else ""
        return simple(opcode, words, ["b32"] * 3, "b32", lambda a, b, c: prmt(mode, a, b, c))
    if opcode == "selp":
        name = full(opcode, words)
        return Case(
            name,
            f"setp.gt.s32 %p1, %c, 0; {name} %d, %a, %b, %p1;",
            [t, t, "s32"],
            [t],
            lambda a, b, c: (a if c > 0 else b,),
        )
    if opcode == "slct":
        kind = words[-2]
        f32 = sf.F32

        def slct(a: int, b: int, c: int) -> int:
            if t == "s32":
                return a if c >= 0 else b
            c = sf.flush(c, f32) if "ftz" in words else c
            return a if not sf.is_nan(c, f32) and (not c & f32.sign or c == f32.sign) else b

        return simple(opcode, words, [kind, kind, t], kind, slct)
    if opcode == "setp":
        return setp(words)
    if opcode == "set":
        return set_(words)
    if opcode == "mov":
        if t == "b128":
            body = "mov.b128 %v1, {%a, %b}; mov.b128 %v2, %v1; mov.b128 {%d, %q}, %v2;"
            return Case("mov.b128", body, ["b64", "b64"], ["b64", "b64"], lambda a, b: (a, b), sm=90)
        return simple(opcode, words, [t], t, lambda a: a)
    return f"no recipe for {full(opcode, words)}"


def rounding(words: Words) -> str:
    return next((w for w in words if w in ("rn", "rz", "rm", "rp")), "rn")


def limited(x: sf.Real, words: Words) -> sf.Real:
    """.sat and .relu, before rounding."""
    if "sat" in words:
        if x.kind == "nan" or x.negative:
            return sf.number(Fraction(0))
        return sf.number(Fraction(1)) if x.kind == "inf" or x.value > 1 else x
    if (
        "relu" in words
        and x.kind != "nan"
        and (x.negative or x.value == 0)
        and not (x.kind == "inf" and not x.negative)
    ):
        return sf.number(Fraction(0))
    return x


def exact(opcode: str, words: Words, f: sf.Format) -> Callable[..., int]:
    """The IEEE operation on bits, with the modifiers."""
    mode, ftz = rounding(words), "ftz" in words

    def run(*bits: int) -> int:
        x = [sf.decode(sf.flush(b, f) if ftz else b, f) for b in bits]
        if opcode == "add":
            r = sf.add(x[0], x[1], mode)
        elif opcode == "sub":
            r = sf.add(x[0], sf.negate(x[1]), mode)
        elif opcode == "mul":
            r = sf.multiply(x[0], x[1])
        elif opcode == "div":
            r = sf.divide(x[0], x[1])
        elif opcode == "rcp":
            r = sf.divide(sf.number(Fraction(1)), x[0])
        elif opcode == "sqrt":
            r = sf.square_root(x[0], f)
        else:
            r = sf.add(sf.multiply(x[0], x[1]), x[2], mode)
        r = limited(r, words)
        out = sf.encode(r, f, mode)
        if ftz and f is sf.F32 and sf.is_tiny(r, f, mode):
            return out & f.sign
        return sf.flush(out, f) if ftz else out

    return run


def extremum(opcode: str, words: Words, f: sf.Format) -> Callable[..., int]:
    def two(a: int, b: int) -> int:
        if "ftz" in words:
            a, b = sf.flush(a, f), sf.flush(b, f)
        sign = (a ^ b) & f.sign if "xorsign" in words else 0
        nan = [sf.is_nan(v, f) for v in (a, b)]
        if all(nan) or ("NaN" in words and any(nan)):
            return f.nan
        if "abs" in words:
            a, b = a & ~f.sign, b & ~f.sign
        if nan[0]:
            return b | sign
        if nan[1]:
            return a | sign
        return (min if opcode == "min" else max)((a, b), key=lambda v: sf.order(v, f)) | sign

    def run(*v: int) -> int:
        out = two(v[0], v[1])
        for more in v[2:]:
            out = two(out, more)
        return out

    return run


APPROXIMATE: dict[str, Callable[[float], float]] = {
    "sin": math.sin,
    "cos": math.cos,
    "lg2": lambda a: math.log2(a) if a > 0 else -math.inf if a == 0 else math.nan,
    "ex2": lambda a: 2.0**a if a < 1100 else math.inf,
    "tanh": math.tanh,
    "rcp": lambda a: 1 / a if a else math.copysign(math.inf, a),
    "sqrt": lambda a: math.sqrt(a) if a >= 0 else math.nan,
    "rsqrt": lambda a: 1 / math.sqrt(a) if a > 0 else math.copysign(math.inf, a) if a == 0 else math.nan,
}
# (ulp, absolute error) that the PTX ISA promises or a little more: 2**-22.x relative is 2 ulp of f32.
TOLERANCE: dict[tuple[str, str], tuple[int, float]] = {
    ("sin", "f32"): (2, 2.0**-20),
    ("cos", "f32"): (2, 2.0**-20),
    ("lg2", "f32"): (4, 2.0**-21.5),
    ("ex2", "f32"): (3, 0.0),
    ("tanh", "f32"): (1 << 14, 2.0**-11),
    ("rcp", "f32"): (1, 0.0),
    ("sqrt", "f32"): (2, 0.0),
    ("rsqrt", "f32"): (2, 0.0),
    ("div", "f32"): (2, 0.0),
    ("rsqrt", "f64"): (1 << 32, 0.0),
    ("rcp", "f64"): (1 << 33, 0.0),
    ("ex2", "f16"): (2, 0.0),
    ("tanh", "f16"): (2, 2.0**-10.5),
    ("ex2", "bf16"): (2, 0.0),
    ("tanh", "bf16"): (2, 2.0**-8),
}


def approximation(opcode: str, words: Words, t: str) -> Case:
    element = PACKED.get(t, t)
    f = sf.FORMATS[element]

    def one(*bits: int) -> int:
        x = [sf.decode(b, f) for b in bits]
        if opcode == "div":
            return sf.encode(sf.divide(x[0], x[1]), f)
        return sf.encode(sf.number(Fraction(APPROXIMATE[opcode](float(x[0].value)))), f)

    ins = "normal" if opcode in ("rcp", "div", "sqrt", "rsqrt", "lg2") else "unit"
    count = 2 if opcode == "div" else 1
    ulp, absolute = TOLERANCE[opcode, element]
    case = simple(opcode, words, [f"{ins}_{element}"] * count, t, one, kind="ulp", ulp=ulp, absolute=absolute)
    if t in PACKED:
        case.inputs = [t] * count
        data = generate_pairs(case, element)
        case.data = data
        case.reference = lambda *v: (packed(16, 2, one)(*v),)
    if opcode in ("sqrt", "rsqrt", "lg2"):
        case.data = [[v & ~f.sign for v in column] for column in case.values()]
    case.sm = 90 if element == "bf16" else 80
    return case


def generate_pairs(case: Case, element: str) -> list[list[int]]:
    from softgpu.tests.agreement.case import generate

    low, high = (generate(f"unit_{element}", case.name + part, 0) for part in ("", "/high"))
    return [[a | b << 16 for a, b in zip(low, high, strict=True)]]


def real(opcode: str, words: Words) -> Case | str:
    """Sections float and half."""
    t = words[-1]
    element = PACKED.get(t, t)
    f = sf.FORMATS[element]
    count = 2 if t in PACKED else 1
    # What is newer than the machine that golden files come from.
    sm = 100 if t == "f32x2" or (element == "f32" and "abs" in words and "xorsign" not in words) else 80
    if element == "bf16" and (opcode in ("add", "sub", "mul")):
        sm = 90
    if opcode in ("abs", "neg"):
        if words == ("f32",) or opcode:
            return sign_case(opcode, words, t, f, count)
    if "approx" in words or "full" in words:
        return approximation(opcode, words, t)
    if opcode in ("add", "sub", "mul", "div", "rcp", "sqrt", "fma", "mad"):
        n = {"fma": 3, "mad": 3, "rcp": 1, "sqrt": 1}.get(opcode, 2)
        run = exact(opcode, words, f)
        case = simple(opcode, words, [t] * n, t, packed(f.bits, count, run) if count > 1 else run, sm=sm)
        case.refused = opcode == "mad" and words[0] not in ("rn", "rz", "rm", "rp")  # of before PTX 2.0
        return case
    if opcode in ("min", "max"):
        run = extremum(opcode, words, f)
        n = 3 if sm == 100 else 2
        return simple(opcode, words, [t] * n, t, packed(16, count, run) if count > 1 else run, sm=sm)
    if opcode == "copysign":
        return simple(opcode, words, [t, t], t, lambda a, b: b & ~f.sign | a & f.sign)
    if opcode == "testp":
        name = full(opcode, words)

        def testp(a: int) -> tuple[int]:
            m = a & ~f.sign
            return (
                int(
                    {
                        "finite": m < f.infinity,
                        "infinite": m == f.infinity,
                        "number": m <= f.infinity,
                        "notanumber": m > f.infinity,
                        "normal": m == 0 or 0 < m & f.infinity < f.infinity,
                        "subnormal": m != 0 and m & f.infinity == 0,
                    }[words[0]]
                ),
            )

        return Case(name, f"{name} %p1, %a; selp.u32 %d, 1, 0, %p1;", [t], ["u32"], testp)
    return f"no recipe for {full(opcode, words)}"


def sign_case(opcode: str, words: Words, t: str, f: sf.Format, count: int) -> Case:
    def run(a: int) -> int:
        a = sf.flush(a, f) if "ftz" in words else a
        return a & ~f.sign if opcode == "abs" else a ^ f.sign

    return simple(opcode, words, [t], t, packed(16, count, run) if count > 1 else run)
