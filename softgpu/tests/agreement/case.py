"""A case: one tiny kernel for one (opcode, modifiers, types), its inputs and what it must give."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from softgpu.tests.agreement import softfloat

THREADS = 128
PACKED = {"f16x2": "f16", "bf16x2": "bf16", "u16x2": "u16", "s16x2": "s16", "f32x2": "f32"}
REGISTER_BYTES = {"b128": 16, "f32x2": 8, "pred": 4}


def register_bytes(kind: str) -> int:
    """Bytes of the register that holds a value of `kind`; types below 16 bits live in 32-bit registers."""
    if kind in REGISTER_BYTES:
        return REGISTER_BYTES[kind]
    if kind in PACKED:
        return 4
    if kind in ("f16", "bf16"):
        return 2
    digits = "".join(c for c in kind.split("_")[-1] if c.isdigit())
    bits = int(digits) if digits else 32
    return 4 if bits < 16 else bits // 8


def digest(*parts: object) -> bytes:
    return hashlib.shake_256(repr(parts).encode()).digest(24)


def edges(kind: str) -> list[int]:
    """Bit patterns worth trying: bounds, shifts beyond the width, and for reals zeros, subnormals, infinity, NaN."""
    if kind in softfloat.FORMATS:
        f = softfloat.FORMATS[kind]
        one = f.bias << f.mantissa_bits
        values = [0, 1, 2, (1 << f.mantissa_bits) - 1, 1 << f.mantissa_bits, one, one + 1, one - 1]
        values += [one | 1 << (f.mantissa_bits - 1), one + (1 << f.mantissa_bits), f.infinity - 1, f.infinity, f.nan]
        values += [f.infinity | 1, one + (f.mantissa_bits << f.mantissa_bits), (3 << f.mantissa_bits) // 2]
        values += [((f.bias + 31) << f.mantissa_bits) % f.infinity, ((f.bias + 14) << f.mantissa_bits) | 1]
        return values + [v | f.sign for v in values]
    bits = 8 * register_bytes(kind)
    values = [0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 33, 63, 64, 127, 128, 255, 256]
    values += [(1 << bits) - 1, (1 << bits) - 2, 1 << (bits - 1), (1 << (bits - 1)) - 1, 0x5A5A5A5A5A5A5A5A]
    return [v % (1 << bits) for v in values]


def generate(kind: str, name: str, operand: int) -> list[int]:
    """THREADS values, always the same for a case. `kind` may be prefix_type:
    shift_b32: mostly 0..70; small_b32: 0..31; nonzero_T; normal_T: reals of magnitude 2**-20 .. 2**20;
    unit_T: reals in -8 .. 8.
    """
    prefix, _, base = kind.rpartition("_")
    out = []
    if base in PACKED and base != "f32x2" and not prefix:
        low, high = generate(PACKED[base], name, operand), generate(PACKED[base], name + "/high", operand)
        return [a | b << 16 for a, b in zip(low, high, strict=True)]
    if base == "f32x2":
        low, high = generate("f32", name, operand), generate("f32", name + "/high", operand)
        return [a | b << 32 for a, b in zip(low, high, strict=True)]
    known = edges(base)
    bits = 8 * register_bytes(base)
    blob = hashlib.shake_256(repr((name, operand)).encode()).digest(24 * THREADS)
    for i in range(THREADS):
        d = blob[24 * i : 24 * i + 24]
        value, pick = int.from_bytes(d[:16], "little") % (1 << bits), d[20]
        if prefix == "shift":
            value = d[0] % 70 if pick < 200 else value
        elif prefix == "small":
            value = d[0] % 32
        elif prefix in ("normal", "unit"):
            f = softfloat.FORMATS[base]
            exponent = f.bias + (d[21] % 41 - 20 if prefix == "normal" else d[21] % 14 - 11)
            value = value & f.sign | exponent << f.mantissa_bits | value & ((1 << f.mantissa_bits) - 1)
        elif pick < 110:
            value = known[d[22] % len(known)]
        elif base in softfloat.FORMATS and pick < 190:
            f = softfloat.FORMATS[base]
            exponent = f.bias + d[21] % (16 if base == "f16" else 34) - 8
            value = value & f.sign | min(exponent, 2 * f.bias) << f.mantissa_bits | value & ((1 << f.mantissa_bits) - 1)
        if prefix == "nonzero" and value == 0:
            value = 3
        out.append(value)
    return out


Reference = Callable[..., Sequence[int]]
INPUTS = ["a", "b", "c", "e", *[f"m{i}" for i in range(4, 20)]]
OUTPUTS = ["d", "q", "r", "s", *[f"o{i}" for i in range(4, 20)]]


@dataclass
class Case:
    """`body` reads %a %b %c %e (the inputs) and writes %d %q %r %s (the outputs); see `text`.

    Class "bits": outputs equal bit for bit (a NaN equals any NaN). Class "ulp": within `ulp` units in the last place
    of the reference or within `absolute` of it. Class "invariant": only the reference's own checks hold.
    `refused`: the PTX ISA does not have this combination; loading it must fail.
    """

    name: str
    body: str
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    reference: Reference | None = None
    kind: str = "bits"
    ulp: int = 0
    absolute: float = 0.0
    refused: bool = False
    sm: int = 80
    head: str = ""
    data: list[list[int]] | None = None  # instead of generated inputs
    check: Callable[[list[list[int]]], bool] | None = None  # what an "invariant" case keeps
    whole: Callable[[list[list[int]]], list[Sequence[int]]] | None = None  # reference over all threads

    def values(self) -> list[list[int]]:
        if self.data is not None:
            return self.data
        return [generate(k, self.name, i) for i, k in enumerate(self.inputs)]

    def input_bytes(self) -> bytes:
        parts = []
        for kind, column in zip(self.inputs, self.values(), strict=True):
            size = register_bytes(kind)
            parts.append(b"".join((v % (1 << (8 * size))).to_bytes(size, "little") for v in column))
        return b"".join(parts)

    def output_size(self) -> int:
        return THREADS * sum(register_bytes(k) for k in self.outputs)

    def kernel(self, entry: str) -> str:
        lines = [self.head.replace("ENTRY", entry)]
        lines.append(f".visible .entry {entry}(.param .u64 in, .param .u64 out) {{")
        lines.append(".reg .b64 %x<6>; .reg .b64 %w<9>; .reg .b32 %t<9>; .reg .b32 %i<4>; .reg .b16 %h<9>;")
        lines.append(".reg .pred %p<9>;" + (" .reg .b128 %v<9>;" if self.sm >= 90 and "%v" in self.body else ""))
        for register, kind in [*zip(INPUTS, self.inputs, strict=False), *zip(OUTPUTS, self.outputs, strict=False)]:
            lines.append(f".reg .b{8 * register_bytes(kind)} %{register};")
        lines.append("mov.u32 %i0, %tid.x; ld.param.u64 %x0, [in]; ld.param.u64 %x1, [out];")
        lines.append("cvta.to.global.u64 %x0, %x0; cvta.to.global.u64 %x1, %x1;")
        offset = 0
        for register, kind in zip(INPUTS, self.inputs, strict=False):
            size = register_bytes(kind)
            lines.append(f"mad.wide.u32 %x2, %i0, {size}, %x0; ld.global.b{8 * size} %{register}, [%x2+{offset}];")
            offset += size * THREADS
        lines.append(self.body.replace("ENTRY", entry))
        offset = 0
        for register, kind in zip(OUTPUTS, self.outputs, strict=False):
            size = register_bytes(kind)
            lines.append(f"mad.wide.u32 %x2, %i0, {size}, %x1; st.global.b{8 * size} [%x2+{offset}], %{register};")
            offset += size * THREADS
        return "\n".join([*lines, "ret;", "}", ""])

    def sha(self) -> str:
        """Of the kernel's text and its inputs: what an output in a golden file belongs to."""
        return hashlib.sha256(self.kernel("k").encode() + b"\0" + self.input_bytes()).hexdigest()[:20]

    def expected(self, step: int = 1) -> list[list[int]] | None:
        """Columns of output values, or None if nothing but a golden file tells. With a step, a reference that looks at
        one thread at a time looks at every step-th only; the rest of the columns means nothing.
        """
        values = self.values()
        if self.whole:
            rows = self.whole(values)
        elif self.reference:
            decoded = [[decoded_value(k, v) for v in col] for k, col in zip(self.inputs, values, strict=True)]
            nothing = [0] * len(self.outputs)
            rows = [
                self.reference(*row) if i % step == 0 else nothing for i, row in enumerate(zip(*decoded, strict=True))
            ]
        else:
            return None
        return [[r[i] % (1 << 8 * register_bytes(k)) for r in rows] for i, k in enumerate(self.outputs)]

    def columns(self, raw: bytes) -> list[list[int]]:
        out, at = [], 0
        for kind in self.outputs:
            size = register_bytes(kind)
            out.append([int.from_bytes(raw[at + i * size : at + (i + 1) * size], "little") for i in range(THREADS)])
            at += size * THREADS
        return out

    def differences(self, got: list[list[int]], want: list[list[int]], twice: bool = False, step: int = 1) -> list[str]:
        """What differs, in every step-th thread; `twice`: both sides are machines, each with its own error."""
        found = []
        for k, g, w in zip(self.outputs, got, want, strict=True):
            for i in range(0, THREADS, step):
                for part, x, y in elements(k, g[i], w[i]):
                    if not self.agrees(part, x, y, 2 if twice else 1):
                        found.append(f"thread {i}: {x:#x}, expected {y:#x} ({k})")
        return found

    def agrees(self, kind: str, x: int, y: int, factor: int) -> bool:
        f = softfloat.FORMATS.get(kind)
        if x == y or f is None:
            return x == y
        if softfloat.is_nan(x, f) or softfloat.is_nan(y, f):
            return softfloat.is_nan(x, f) and softfloat.is_nan(y, f)
        if self.kind != "ulp":
            return False
        if abs(softfloat.order(x, f) - softfloat.order(y, f)) <= factor * self.ulp:
            return True
        a, b = softfloat.decode(x, f), softfloat.decode(y, f)
        return a.kind == b.kind == "num" and abs(a.value - b.value) <= factor * self.absolute


def elements(kind: str, x: int, y: int) -> list[tuple[str, int, int]]:
    if kind in PACKED:
        width = 32 if kind == "f32x2" else 16
        mask = (1 << width) - 1
        return [(PACKED[kind], x >> s & mask, y >> s & mask) for s in (0, width)]
    return [(kind, x, y)]


def signed(v: int, bits: int) -> int:
    v %= 1 << bits
    return v - (1 << bits) if v >> (bits - 1) else v


def decoded_value(kind: str, v: int) -> int:
    """Signed types as negative numbers; everything else as it is."""
    base = kind.rpartition("_")[2]
    if base[0] == "s" and base[1:].isdigit():
        return signed(v, int(base[1:]))
    if base[0] == "u" and base[1:].isdigit():
        return v % (1 << int(base[1:]))
    return v


def packed(width: int, count: int, f: Callable[..., int]) -> Callable[..., int]:
    """`f` on each of `count` parts of `width` bits."""

    def run(*args: int) -> int:
        mask = (1 << width) - 1
        return sum((f(*[a >> (width * i) & mask for a in args]) & mask) << (width * i) for i in range(count))

    return run
