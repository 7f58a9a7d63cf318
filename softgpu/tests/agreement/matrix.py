"""Cases of matrix instructions, mbarrier and alloca. Matrices hold small integers, so that every order of summation
gives the same bits."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from fractions import Fraction

from softgpu.tests.agreement import softfloat as sf
from softgpu.tests.agreement.case import INPUTS, OUTPUTS, THREADS, Case, digest, signed
from softgpu.tests.agreement.convert import encode8
from softgpu.tests.agreement.scalar import Words, clamp, full

ELEMENT_BITS = {"b1": 1, "u4": 4, "s4": 4, "u8": 8, "s8": 8, "e4m3": 8, "e5m2": 8, "f16": 16, "bf16": 16}
ELEMENT_BITS |= {"tf32": 32, "f32": 32, "s32": 32, "f64": 64}


NEAR = " near the limits"


@functools.cache
def encode(t: str, v: int) -> int:
    if t in ("b1", "u4", "s4", "u8", "s8", "s32"):
        return v % (1 << ELEMENT_BITS[t])
    x = sf.number(Fraction(v))
    if t == "e4m3":
        return encode8(x, 4, 3, 0x7E)
    if t == "e5m2":
        return encode8(x, 5, 2, 0x7B)
    return sf.encode(x, sf.F32 if t == "tf32" else sf.FORMATS[t])


@functools.cache
def element(t: str, *where: object) -> int:
    """A value that the type holds exactly: all integers of the integer types, -4 .. 4 of the others."""
    d = digest(t, *where)
    if t == "s32":
        return signed(int.from_bytes(d[:4], "little"), 32) if d[5] < 60 else d[4] - 128
    if t in ("b1", "u4", "u8"):
        return d[0] % (1 << ELEMENT_BITS[t])
    if t in ("s4", "s8"):
        return signed(d[0], ELEMENT_BITS[t])
    return d[0] % 9 - 4


@functools.cache
def matrix_of(t: str, rows: int, columns: int, *where: object) -> list[list[int]]:
    return [[element(t, *where, i, j) for j in range(columns)] for i in range(rows)]


def near_limits(c: list[list[int]]) -> list[list[int]]:
    """Accumulators that a product may carry beyond what 32 bits hold, up and down."""
    return [
        [(1 << 31) - 1 - v % 50 if (i + j) % 2 else v % 50 - (1 << 31) for j, v in enumerate(row)]
        for i, row in enumerate(c)
    ]


def product(
    a: list[list[int]], b: list[list[int]], c: list[list[int]], to: str, saturate: bool, bit: str
) -> list[list[int]]:
    rows, columns, depth = len(a), len(b[0]), len(b)
    out = []
    for i in range(rows):
        line = []
        for j in range(columns):
            total = c[i][j]
            for k in range(depth):
                x, y = a[i][k], b[k][j]
                total += (x & y if bit == "and" else x ^ y) if bit else x * y
            if saturate:
                total = clamp(total, -(1 << 31), (1 << 31) - 1)
            line.append(encode(to, total))
        out.append(line)
    return out


def shape(words: Words) -> tuple[int, int, int]:
    m = next(re.fullmatch(r"m(\d+)n(\d+)k(\d+)", w) for w in words if re.fullmatch(r"m\d+n\d+k\d+", w))
    assert m
    return int(m[1]), int(m[2]), int(m[3])


def place_a(rows: int, per: int, lane: int, register: int, e: int) -> tuple[int, int]:
    group, thread = divmod(lane, 4)
    halves = rows // 8
    return group + 8 * (register % halves), thread * per + e + 4 * per * (register // halves)


def mma(words: Words, limits: bool = False) -> Case:
    m, n, k = shape(words)
    types = [w for w in words if w in ELEMENT_BITS]
    to, ta, tb, tc = types
    bit = next((w for w in words if w in ("and", "xor")), "")
    bits = ELEMENT_BITS[ta]
    per = max(1, 32 // bits)
    count_a, count_b = m * k // 32 // per, k * n // 32 // per
    accumulators = m * n // 32
    per_c, per_d = (2 if t == "f16" else 1 for t in (tc, to))
    name = full("mma", words)

    def kind(t: str) -> str:
        return "b64" if t == "f64" else "b32"

    inputs = [kind(ta)] * count_a + [kind(tb)] * count_b + [kind(tc)] * (accumulators // per_c)
    outputs = [("f64" if to == "f64" else "f32" if to == "f32" else "b32")] * (accumulators // per_d)
    warps = THREADS // 32
    matrices = []
    for w in range(warps):
        a, b, c = matrix_of(ta, m, k, w, "a"), matrix_of(tb, k, n, w, "b"), matrix_of(tc, m, n, w, "c")
        if bit:
            c = [[v % 1000 for v in row] for row in c]
        matrices.append((a, b, near_limits(c) if limits else c))

    def pack(values: list[int], t: str) -> int:
        return sum(encode(t, v) << (ELEMENT_BITS[t] * i) for i, v in enumerate(values))

    data: list[list[int]] = [[] for _ in inputs]
    for thread in range(THREADS):
        lane = thread % 32
        a, b, c = matrices[thread // 32]
        for r in range(count_a):
            places = [place_a(m, per, lane, r, e) for e in range(per)]
            data[r].append(pack([a[i][j] for i, j in places], ta))
        for r in range(count_b):
            rows = [lane % 4 * per + e + 4 * per * r for e in range(per)]
            data[count_a + r].append(pack([b[i][lane // 4] for i in rows], tb))
        cells = [c[lane // 4 + 8 * (i // 2)][lane % 4 * 2 + i % 2] for i in range(accumulators)]
        for r in range(accumulators // per_c):
            data[count_a + count_b + r].append(pack(cells[r * per_c : (r + 1) * per_c], tc))

    def whole(_: list[list[int]]) -> list[Sequence[int]]:
        out: list[Sequence[int]] = []
        results = [product(a, b, c, to, "satfinite" in words, bit) for a, b, c in matrices]
        for thread in range(THREADS):
            lane = thread % 32
            d = results[thread // 32]
            cells = [d[lane // 4 + 8 * (i // 2)][lane % 4 * 2 + i % 2] for i in range(accumulators)]
            width = ELEMENT_BITS[to]
            out.append(
                [
                    sum(v << (width * i) for i, v in enumerate(cells[r * per_d : (r + 1) * per_d]))
                    for r in range(accumulators // per_d)
                ]
            )
        return out

    def group(names: list[str]) -> str:
        return "{" + ", ".join(f"%{r}" for r in names) + "}"

    at = [0, count_a, count_a + count_b, len(inputs)]
    operands = [group(INPUTS[at[i] : at[i + 1]]) for i in range(3)]
    body = f"{name} {group(OUTPUTS[: len(outputs)])}, {', '.join(operands)};"
    # Types of one letter in the ISA's text: what came with which machine.
    sm = 90 if to == "f64" and m == 16 else 89 if ta in ("e4m3", "e5m2") else 80
    return Case(name + NEAR * limits, body, inputs, outputs, data=data, whole=whole, sm=sm)


def wmma(words: Words, limits: bool = False) -> Case | str:
    if words[0] != "mma":
        return wmma_transfer(words)
    m, n, k = shape(words)
    types = [w for w in words if w in ELEMENT_BITS]
    to, tc = types[0], types[-1]
    ta, tb = ("f16", "f16") if len(types) == 2 else (types[1], types[2])
    layout_a, layout_b = [w for w in words if w in ("row", "col")]
    return wmma_case(
        full("wmma", words),
        (m, n, k),
        (to, ta, tb, tc),
        layout_a,
        layout_b,
        "row",
        "row",
        "global",
        words,
        limits=limits,
    )


def wmma_transfer(words: Words) -> Case:
    """A load or a store stands in a whole product."""
    m, n, k = shape(words)
    t = words[-1]
    part = words[1]
    layout = next(w for w in words if w in ("row", "col"))
    space = next((w for w in words if w in ("global", "shared", "shared::cta")), "")
    if part in "ab":
        ta = t
        accumulator = {"f16": "f32", "bf16": "f32", "tf32": "f32", "f64": "f64"}.get(t, "s32")
    else:
        accumulator = t
        ta = {"f16": "f16", "f64": "f64"}.get(t) or (
            ("tf32" if k == 8 else "f16") if t == "f32" else {32: "s4", 128: "b1"}.get(k, "s8")
        )
    fixed = ta in ("u4", "s4", "b1")
    layouts = {"a": "row", "b": "col" if fixed else "row", "c": "row", "d": "row"}
    name = full("wmma", words)
    refused = fixed and part in "ab" and layouts[part] != layout
    layouts[part] = layout
    row_b = "col" if fixed else layouts["b"]
    multiply_words: Words = ("mma", "xor", "popc") if ta == "b1" else ("mma",)
    case = wmma_case(
        name, (m, n, k), (accumulator, ta, ta, accumulator), layouts["a"], row_b, layouts["c"], layouts["d"], space,
        multiply_words, part,
    )  # fmt: skip
    if refused:
        case.refused = True
        case.body = f"{name} {{%t1}}, [%x0], 32;"
    return case


def fragment_registers(t: str, rows: int, columns: int, operand: bool) -> int:
    if operand and t == "f16":
        return 8
    bits = ELEMENT_BITS[t]
    return max(1, rows * columns * bits // (32 * (64 if bits == 64 else 32)))


def wmma_case(
    name: str,
    size: tuple[int, int, int],
    types: tuple[str, str, str, str],
    layout_a: str,
    layout_b: str,
    layout_c: str,
    layout_d: str,
    space: str,
    words: Words,
    part: str = "",
    limits: bool = False,
) -> Case:
    m, n, k = size
    to, ta, tb, tc = types
    bit = next((w for w in words if w in ("and", "xor")), "")
    a, b, c = matrix_of(ta, m, k, 9, "a"), matrix_of(tb, k, n, 9, "b"), matrix_of(tc, m, n, 9, "c")
    if bit:
        c = [[v % 1000 for v in row] for row in c]
    if limits:
        c = near_limits(c)

    def raw(matrix: list[list[int]], t: str, layout: str) -> bytes:
        lines = matrix if layout == "row" else [list(line) for line in zip(*matrix, strict=True)]
        bits = ELEMENT_BITS[t]
        total = sum(encode(t, v) << (bits * i) for i, v in enumerate(v for line in lines for v in line))
        return total.to_bytes(1024, "little")

    memory = raw(a, ta, layout_a) + raw(b, tb, layout_b) + raw(c, tc, layout_c)
    numbers = [int.from_bytes(memory[i : i + 4], "little") for i in range(0, len(memory), 4)]
    data = [numbers[i * THREADS : (i + 1) * THREADS] for i in range(6)]
    counts = [
        fragment_registers(ta, m, k, True),
        fragment_registers(tb, k, n, True),
        fragment_registers(tc, m, n, False),
        fragment_registers(to, m, n, False),
    ]
    text = [".reg .b32 %ra<9>, %rb<9>, %rc<9>, %rd<9>; .reg .f32 %fc<9>, %fd<9>;"]
    text.append(".reg .f64 %da<9>, %db<9>, %dc<9>, %dd<9>;")

    def group(p: str, t: str, count: int) -> str:
        kind = "d" if t == "f64" else "f" if t == "f32" else "r"
        return "{" + ", ".join(f"%{kind}{p}{i}" for i in range(count)) + "}"

    def stride(layout: str, rows: int, columns: int) -> int:
        return columns if layout == "row" else rows

    shape_word = f"m{m}n{n}k{k}"
    shared = space.startswith("shared")
    if shared:
        text.append(".shared .align 128 .b8 memory[4096]; mov.u64 %x4, memory; mad.wide.u32 %x3, %i0, 4, %x4;")
        for i, register in enumerate(INPUTS[:6]):
            text.append(f"st.shared.b32 [%x3+{512 * i}], %{register};")
        text.append("bar.sync 0;")
    for p, t, layout, rows, columns in (
        ("a", ta, layout_a, m, k),
        ("b", tb, layout_b, k, n),
        ("c", tc, layout_c, m, n),
    ):
        mine = part == p
        dot, base = ".global", "%x0"
        if mine:
            dot = f".{space}" if space else ""
            base = "%x4" if shared else "%x0"
        offset = {"a": 0, "b": 1024, "c": 2048}[p]
        text.append(f"add.u64 %x3, {base}, {offset};")
        if mine and not space:
            text.append("cvta.global.u64 %x3, %x3;")
        count = counts["abc".index(p)]
        instruction = name if mine else f"wmma.load.{p}.sync.aligned.{layout}.{shape_word}{dot}.{t}"
        text.append(f"{instruction} {group(p, t, count)}, [%x3], {stride(layout, rows, columns)};")
    if words[0] == "mma" and len(words) > 3:
        instruction = name
    elif bit:
        instruction = f"wmma.mma.xor.popc.sync.aligned.row.col.{shape_word}.s32.b1.b1.s32"
    elif ta == "f16":
        instruction = f"wmma.mma.sync.aligned.{layout_a}.{layout_b}.{shape_word}.{to}.{tc}"
    else:
        instruction = f"wmma.mma.sync.aligned.{layout_a}.{layout_b}.{shape_word}.{to}.{ta}.{tb}.{tc}"
    text.append(
        f"{instruction} {group('d', to, counts[3])}, {group('a', ta, counts[0])}, {group('b', tb, counts[1])}, "
        f"{group('c', tc, counts[2])};"
    )
    mine = part == "d"
    dot = (f".{space}" if space else "") if mine else ".global"
    text.append("add.u64 %x3, %x1, 4096; mov.u64 %x5, %x3;")
    if mine and shared:
        text.append("add.u64 %x3, %x4, 3072; mov.u64 %x5, %x3;")
    elif mine and not space:
        text.append("cvta.global.u64 %x3, %x3;")
    instruction = name if mine else f"wmma.store.d.sync.aligned.{layout_d}.{shape_word}{dot}.{to}"
    text.append(f"{instruction} [%x3], {group('d', to, counts[3])}, {stride(layout_d, m, n)};")
    # 512 or 1024 bytes: read back two words of every thread, as far as there are that many.
    total = m * n * ELEMENT_BITS[to] // 8
    load = "ld.shared" if mine and shared else "ld.global"
    text.append("bar.sync 0; mad.wide.u32 %x3, %i0, 4, %x5; mov.u32 %d, 0; mov.u32 %q, 0;")
    text.append(f"setp.lt.u32 %p1, %i0, {total // 4}; @%p1 {load}.b32 %d, [%x3];")
    if total > 512:
        text.append(f"{load}.b32 %q, [%x3+512];")

    def whole(_: list[list[int]]) -> list[Sequence[int]]:
        d = product(a, b, c, to, "satfinite" in words, bit)
        lines = d if layout_d == "row" else [list(line) for line in zip(*d, strict=True)]
        bits = ELEMENT_BITS[to]
        packed = sum(v << (bits * i) for i, v in enumerate(v for line in lines for v in line)).to_bytes(1024, "little")
        w = [int.from_bytes(packed[i : i + 4], "little") for i in range(0, 1024, 4)]
        return [(w[i], w[i + THREADS]) for i in range(THREADS)]

    return Case(name + NEAR * limits, " ".join(text), ["b32"] * 6, ["b32", "b32"], data=data, whole=whole)


def matrix_memory(opcode: str, words: Words) -> Case:
    name = full(opcode, words)
    if opcode == "movmatrix":

        def moved(columns: list[list[int]]) -> list[Sequence[int]]:
            out: list[Sequence[int]] = []
            for i in range(THREADS):
                base, lane = i - i % 32, i % 32
                v = 0
                for e in range(2):
                    r, col = lane % 4 * 2 + e, lane // 4
                    v |= (columns[0][base + r * 4 + col // 2] >> (16 * (col % 2)) & 0xFFFF) << (16 * e)
                out.append((v,))
            return out

        return Case(name, f"{name} %d, %a;", ["b32"], ["b32"], whole=moved)
    count = int(next(w for w in words if w in ("x1", "x2", "x4"))[1])
    transposed = "trans" in words
    space = next((w for w in words if w.startswith("shared")), "")
    registers = {"ldmatrix": OUTPUTS, "stmatrix": INPUTS}[opcode][:count]
    group = "{" + ", ".join(f"%{r}" for r in registers) + "}"
    # Rows of 16 bytes, those of a warp in the order 5 * lane % 32.
    body = f".shared .align 128 .b8 memory[{16 * THREADS}]; mov.u64 %x4, memory; mad.wide.u32 %x3, %i0, 16, %x4; "
    body += "and.b32 %t5, %i0, 31; mul.lo.u32 %t6, %t5, 5; and.b32 %t6, %t6, 31; sub.u32 %t5, %i0, %t5; "
    body += "add.u32 %t6, %t6, %t5; mad.wide.u32 %x5, %t6, 16, %x4; "
    if not space:
        body += "cvta.shared.u64 %x5, %x5; "

    def row_of(warp: int, j: int) -> int:
        return 32 * warp + 5 * j % 32

    if opcode == "ldmatrix":
        body += "mov.b32 %d, 0; mov.b32 %q, 0; mov.b32 %r, 0; mov.b32 %s, 0; "
        body += f"st.shared.v2.b64 [%x3], {{%a, %b}}; bar.sync 0; {name} {group}, [%x5];"

        def loaded(columns: list[list[int]]) -> list[Sequence[int]]:
            rows = [a | b << 64 for a, b in zip(*columns, strict=True)]

            def cell(warp: int, matrix: int, r: int, col: int) -> int:
                row: int = rows[row_of(warp, 8 * matrix + r)]
                return row >> (16 * col) & 0xFFFF

            out: list[Sequence[int]] = []
            for i in range(THREADS):
                warp, lane = divmod(i, 32)
                values = [0, 0, 0, 0]
                for matrix in range(count):
                    for e in range(2):
                        r, col = lane // 4, lane % 4 * 2 + e
                        values[matrix] |= cell(warp, matrix, *((col, r) if transposed else (r, col))) << (16 * e)
                out.append(values)
            return out

        return Case(name, body, ["b64", "b64"], ["b32"] * 4, whole=loaded)
    body += f"mov.u64 %w1, 0; st.shared.v2.b64 [%x3], {{%w1, %w1}}; bar.sync 0; {name} [%x5], {group}; bar.sync 0; "
    body += "ld.shared.v2.b64 {%d, %q}, [%x3];"

    def stored(columns: list[list[int]]) -> list[Sequence[int]]:
        rows = [0] * THREADS
        for i in range(THREADS):
            warp, lane = divmod(i, 32)
            for matrix in range(count):
                for e in range(2):
                    r, col = lane // 4, lane % 4 * 2 + e
                    if transposed:
                        r, col = col, r
                    rows[row_of(warp, 8 * matrix + r)] |= (columns[matrix][i] >> (16 * e) & 0xFFFF) << (16 * col)
        return [(v & (2**64 - 1), v >> 64) for v in rows]

    return Case(name, body, ["b32"] * 4, ["b64", "b64"], whole=stored, sm=90)


def mbarrier(opcode: str, words: Words) -> Case | str:
    """Each thread has a barrier of its own that expects two arrivals: %d and %q are a count or whether a phase was
    over before and after the last of them."""
    name = full(opcode, words)
    space = next((w for w in words if w.startswith("shared")), "")
    at = "[%x4]" if not space else "[%x3]"
    body = f".shared .align 8 .b8 memory[{8 * THREADS}]; mov.u64 %x3, memory; mad.wide.u32 %x3, %i0, 8, %x3; "
    body += "cvta.shared.u64 %x4, %x3; "
    init = "mbarrier.init.shared.b64 [%x3], 2;"
    arrive = "mbarrier.arrive.shared.b64 %w1, [%x3];"

    def over(to: str, parity: int = 0) -> str:
        return f"mov.u32 %t1, {parity}; mbarrier.test_wait.parity.shared.b64 %p1, [%x3], %t1; selp.u32 {to}, 1, 0, %p1;"

    sm = 80
    what = words[0] if opcode == "mbarrier" else "copies"
    want = (0, 1)
    if what == "init":
        body += f"{name} {at}, 2; {arrive} {over('%d')} {arrive} {over('%q')}"
    elif what == "inval":
        body += f"{init} {arrive} {over('%d')} {arrive} {over('%q')} {name} {at};"
    elif what in ("arrive", "arrive_drop"):
        if "expect_tx" in words:
            sm = 90
            body += f"{init} {name} %w2, {at}, 16; {arrive} {over('%d')} "
            body += f"mbarrier.complete_tx.relaxed.cta.shared.b64 [%x3], 16; {over('%q')}"
        elif what == "arrive_drop":
            third = ", 1" if "noComplete" in words else ""
            # One arrival fewer is expected from the next phase on.
            body += f"{init} {name} %w2, {at}{third}; {arrive} {over('%d')} {arrive} {over('%q', 1)}"
            want = (1, 1)
        else:
            third = ", 1" if "noComplete" in words else ""
            body += f"{init} {name} %w2, {at}{third}; {over('%d')} {arrive} {over('%q')}"
    elif what in ("test_wait", "try_wait"):
        sm = 90 if what == "try_wait" else 80
        third = "%t2" if "parity" in words else "%w2"
        body += f"{init} mov.u32 %t2, 0; mbarrier.arrive.shared.b64 %w2, [%x3]; {name} %p2, {at}, {third}; "
        body += f"selp.u32 %d, 1, 0, %p2; {arrive} "
        # try_wait may give up early: ask until it does not.
        body += f"AGAIN: {name} %p2, {at}, {third}; @!%p2 bra AGAIN; selp.u32 %q, 1, 0, %p2;"
    elif what in ("expect_tx", "complete_tx"):
        sm = 90
        expect = name if what == "expect_tx" else "mbarrier.expect_tx.relaxed.cta.shared.b64"
        complete = name if what == "complete_tx" else "mbarrier.complete_tx.relaxed.cta.shared.b64"
        first = at if what == "expect_tx" else "[%x3]"
        second = at if what == "complete_tx" else "[%x3]"
        body += f"{init} {expect} {first}, 8; {arrive} {arrive} {over('%d')} {complete} {second}, 8; {over('%q')}"
    elif what == "pending_count":
        body += f"{init} mbarrier.arrive.shared.b64 %w1, [%x3]; mbarrier.arrive.shared.b64 %w2, [%x3]; "
        body += f"{name} %d, %w1; {name} %q, %w2;"
        want = (2, 1)
    elif what == "copies":
        body += (
            f"{init} {name} {at}; cp.async.wait_all; {arrive} {over('%d')} {arrive if 'noinc' not in words else ''} "
        )
        # The arrival of the copies comes some time after them.
        body += "AGAIN: mov.u32 %t1, 0; mbarrier.test_wait.parity.shared.b64 %p1, [%x3], %t1; @!%p1 bra AGAIN; "
        body += "mov.u32 %q, 1;"
        if "noinc" in words:
            body += " mov.u32 %d, 0;"
    else:
        return f"no recipe for {name}"
    return Case(name, body, ["b32"], ["u32", "u32"], lambda _: want, sm=sm)


def stack(opcode: str, words: Words) -> Case | str:
    name = full(opcode, words)
    if words == ("u32",):
        return "local addresses have 64 bits here; softgpu/tests/test_vm_features.py"
    body = "stacksave.u64 %w1; and.b64 %w2, %a, 15; add.u64 %w2, %w2, 16; alloca.u64 %w3, %w2; "
    body += "st.local.b64 [%w3+8], %a; ld.local.b64 %d, [%w3+8]; stackrestore.u64 %w1;"
    return Case(name, body, ["b64"], ["b64"], lambda a: (a,))
