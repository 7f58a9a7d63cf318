"""Cases of loads, stores, atomics and of what lanes exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from softgpu.tests.agreement import softfloat as sf
from softgpu.tests.agreement.case import OUTPUTS, PACKED, THREADS, Case, packed, register_bytes, signed
from softgpu.tests.agreement.scalar import Words, extremum, full

REGISTERS = "dqrs"


def words_of(v: int, count: int, bits: int) -> list[int]:
    return [v >> (bits * i) & ((1 << bits) - 1) for i in range(count)]


def type_bits(t: str) -> int:
    return int("".join(c for c in t if c.isdigit()))


def where(space: str) -> tuple[str, str]:
    """(declaration in the kernel or in front of it, code that puts into %x3 the address of the thread's 32 bytes)"""
    if space in ("global", ""):
        return "", "mad.wide.u32 %x3, %i0, 32, %x1; add.u64 %x3, %x3, SCRATCH;" + (
            " cvta.global.u64 %x3, %x3;" if not space else ""
        )
    if space == "local":
        return ".local .align 32 .b8 memory[32]; ", "mov.u64 %x3, memory;"
    declare = f".shared .align 32 .b8 memory[{32 * THREADS}]; "
    return declare, "mov.u64 %x3, memory; mad.wide.u32 %x3, %i0, 32, %x3;"


def load_store(opcode: str, words: Words) -> Case | str:
    """Two 128-bit values through 32 bytes of memory: stored as a vector of b64 and loaded as what the case says, or
    the other way round."""
    t = words[-1]
    vector = next((w for w in words if w in ("v2", "v4", "v8")), "v1")
    count, bits = int(vector[1]), type_bits(t)
    spaces = ("global", "local", "shared", "shared::cta", "const", "param", "param::func")
    space = next((w for w in words if w in spaces), "")
    if "param::entry" in words:
        return "a kernel's own parameters, which every kernel here reads"
    name = full(opcode, words)
    refused = count * bits > (256 if space == "global" and opcode != "ldu" else 128) or (count > 1 and bits == 128)
    if ("nc" in words or opcode == "ldu") and not refused:
        return read_only(name, t, count, bits)
    if not refused and (space == "param::func" or (space == "param" and (opcode == "st" or count > 1))):
        return through_call(opcode, name, vector, t, count, bits)
    if count * bits > 128 and not refused:
        # 256-bit accesses: global memory of sm_100 only.
        sm = 100
    else:
        sm = 90 if bits == 128 else 80
    shown = min(count, 4)
    reg = {8: "h", 16: "h", 32: "t", 64: "w", 128: "v"}[bits]
    names = [f"%{reg}{i + 1}" for i in range(count)]
    group = names[0] if count == 1 else "{" + ", ".join(names) + "}"
    if space in ("const", "param") and not refused:
        return constant_or_parameter(name, space, t, count, bits)
    declare, address = where(space)
    plain = space if space != "" else ""
    dot = f".{plain}" if plain else ""
    outs = ["b64", "b64", "b64", "b64"] if opcode == "st" or bits >= 64 else [f"b{max(bits, 16)}"] * shown
    if bits == 128 and opcode == "ld":
        outs = ["b64", "b64"]
    body = declare + address.replace("SCRATCH", str(4096))
    fill = f" st{dot}.v2.b64 [%x3], {{%a, %b}}; st{dot}.v2.b64 [%x3+16], {{%b, %a}};"
    body += fill
    if opcode == "ld":
        body += f" {name} {group}, [%x3];"
        if bits == 128:
            body += " mov.b128 {%d, %q}, %v1;"
        else:
            for i in range(len(outs)):
                register = names[i] if i < count else names[0]
                body += f" mov.b{max(bits, 16)} %{REGISTERS[i]}, {register};"
    else:
        source = {
            8: "mov.b64 {%h1, %h2, %h3, %h4}, %a; mov.b64 {%h5, %h6, %h7, %h8}, %b;",
            16: "mov.b64 {%h1, %h2, %h3, %h4}, %a; mov.b64 {%h5, %h6, %h7, %h8}, %b;",
            32: "mov.b64 {%t1, %t2}, %a; mov.b64 {%t3, %t4}, %b; mov.b64 {%t5, %t6}, %a; mov.b64 {%t7, %t8}, %b;",
            64: "mov.b64 %w1, %b; mov.b64 %w2, %a; mov.b64 %w3, %a; mov.b64 %w4, %b;",
            128: "mov.b128 %v1, {%b, %a};",
        }[bits]
        body += f" {source} {name} [%x3], {group};"
        body += f" ld{dot}.v2.b64 {{%d, %q}}, [%x3]; ld{dot}.v2.b64 {{%r, %s}}, [%x3+16];"

    def reference(a: int, b: int) -> Sequence[int]:
        memory = a | b << 64 | b << 128 | a << 192
        if opcode == "ld":
            if bits == 128:
                return words_of(memory, 2, 64)
            values = words_of(memory, max(count, 1), bits)
            if t[0] == "s":
                values = [signed(v, bits) for v in values]
            return [values[i] if i < count else values[0] for i in range(len(outs))]
        if bits == 128:
            stored = b | a << 64
        elif bits == 64:
            stored = b | a << 64 | a << 128 | b << 192
        elif bits == 32:
            stored = a | b << 64 | a << 128 | b << 192
        else:
            halves = words_of(a | b << 64, 8, 16)
            stored = sum((h & ((1 << bits) - 1)) << (bits * i) for i, h in enumerate(halves[:count]))
        keep = (1 << (bits * count)) - 1
        return words_of(memory & ~keep | stored & keep, 4, 64)

    case = Case(name, body, ["b64", "b64"], outs, reference, refused=refused, sm=sm)
    if refused:
        case.body = f"{declare} {name} {group.replace('%v', '%w')}, [%x3];"
    return case


def read_only(name: str, t: str, count: int, bits: int) -> Case:
    """ld.global.nc, ldu: of what nobody writes while the kernel runs, so of the input: columns of %a and of %b."""
    bytes_each = 32 if count * bits > 128 else 16
    reg = {8: "h", 16: "h", 32: "t", 64: "w", 128: "v"}[bits]
    names = [f"%{reg}{i + 1}" for i in range(count)]
    outs = ["b64"] * 2 if bits == 128 else [f"b{max(bits, 16)}"] * min(count, 4)
    body = f"and.b32 %i1, %i0, {16 * THREADS // bytes_each - 1}; mad.wide.u32 %x3, %i1, {bytes_each}, %x0; "
    body += f"{name} {names[0] if count == 1 else '{' + ', '.join(names) + '}'}, [%x3];"
    if bits == 128:
        body += " mov.b128 {%d, %q}, %v1;"
    else:
        for i in range(len(outs)):
            body += f" mov.b{max(bits, 16)} %{REGISTERS[i]}, {names[i]};"

    def whole(columns: list[list[int]]) -> list[Sequence[int]]:
        memory = sum(v << 64 * i for i, v in enumerate(columns[0] + columns[1]))
        rows: list[Sequence[int]] = []
        for i in range(THREADS):
            part = memory >> (8 * bytes_each * (i % (16 * THREADS // bytes_each)))
            values = words_of(part, len(outs), 64 if bits == 128 else bits)
            rows.append([signed(v, bits) for v in values] if t[0] == "s" else values)
        return rows

    sm = 100 if bytes_each == 32 else 90 if bits == 128 else 80
    return Case(name, body, ["b64", "b64"], outs, whole=whole, sm=sm)


def async_copy(words: Words) -> Case:
    """cp.async into 32 bytes of shared memory: of all or the first some of 16 bytes of the input, and of 16 bytes or,
    under a predicate, none; .ca in parts of 16, 8 and 4 bytes."""
    name = full("cp", words)
    declare, address = where("shared")
    body = f"{declare}{address} st.shared.v2.b64 [%x3], {{%a, %a}}; st.shared.v2.b64 [%x3+16], {{%a, %a}}; "
    body += "rem.u32 %t1, %i0, 17; setp.gt.s64 %p1, %a, 0; mad.wide.u32 %x4, %i0, 16, %x0; "
    body += f"{name} [%x3], [%x4], 16, %t1; "
    if "ca" in words:
        body += "@%p1 mov.u32 %t2, 0; @!%p1 mov.u32 %t2, 8; "
        body += f"{name} [%x3+16], [%x4], 8, %t2; {name} [%x3+24], [%x4+8], 4; {name} [%x3+28], [%x4+12], 4, 3; "
    else:
        body += f"{name} [%x3+16], [%x4], 16, %p1; "
    body += "cp.async.commit_group; cp.async.wait_group 0; "
    body += "ld.shared.v2.b64 {%d, %q}, [%x3]; ld.shared.v2.b64 {%r, %s}, [%x3+16];"

    def whole(columns: list[list[int]]) -> list[Sequence[int]]:
        memory = b"".join(v.to_bytes(8, "little") for v in columns[0] + columns[1])
        rows: list[Sequence[int]] = []
        for i in range(THREADS):
            part = memory[16 * i : 16 * i + 16]
            ignored = 0 < columns[0][i] < 1 << 63
            if "ca" in words:
                second = bytes(8) + part[8:15] + bytes(1) if ignored else part[:15] + bytes(1)
            else:
                second = bytes(16) if ignored else part
            both = part[: i % 17] + bytes(16 - i % 17) + second
            rows.append(words_of(int.from_bytes(both, "little"), 4, 64))
        return rows

    return Case(name, body, ["b64", "b64"], ["b64"] * 4, whole=whole)


def is_space(words: Words) -> Case:
    """isspacep of the last byte of a variable in shared and in local memory, of the output, of a parameter, and of a
    constant, of which the ISA leaves open whether its window is a part of the global one."""
    name = full("isspacep", words)
    space = words[0].removesuffix("::cta")
    places = [("shared", 15), ("local", 15), ("global", 16383), ("param", 7), ("const", 15)][: 4 + (space != "global")]
    body = ".shared .align 16 .b8 memory[16]; .local .align 16 .b8 own[16]; mov.u64 %w1, memory; mov.u64 %w2, own; "
    body += "mov.u64 %w3, %x1; mov.u64 %w4, out; mov.u64 %w5, ENTRY_c; "
    for i, (of, last) in enumerate(places):
        body += f"cvta.{of}.u64 %w{i + 1}, %w{i + 1}; add.u64 %w6, %w{i + 1}, {last}; {name} %p{i + 1}, %w6; "
        body += f"selp.u32 %{OUTPUTS[i]}, 1, 0, %p{i + 1}; "
    body += "st.u8 [%w1], 1; st.u8 [%w2], 1;"
    inside = [of == space or (space, of) == ("global", "param") for of, _ in places]
    head = ".const .align 16 .b8 ENTRY_c[16] = {1};"
    return Case(name, body, [], ["u32"] * len(places), whole=lambda _: [[int(v) for v in inside]] * THREADS, head=head)


VALUES = (0x8182838485868788, 0xF1F2F3F4F5F6F7F8)


def through_call(opcode: str, name: str, vector: str, t: str, count: int, bits: int) -> Case:
    """A parameter and a result of a function that gives back what it gets, all loads and stores of one shape."""
    shape = f"{'' if vector == 'v1' else vector + '.'}{t}"
    load = name if opcode == "ld" else f"ld.param.{shape}"
    store = name if opcode == "st" else f"st.param.{shape}"
    kind, first, source = {
        8: ("h", 5, "mov.b64 {%h1, %h2, %h3, %h4}, %a;"),
        16: ("h", 5, "mov.b64 {%h1, %h2, %h3, %h4}, %a;"),
        32: ("t", 5, "mov.b64 {%t1, %t2}, %a; mov.b64 {%t3, %t4}, %b;"),
        64: ("w", 5, "mov.b64 %w1, %a; mov.b64 %w2, %b;"),
        128: ("v", 2, "mov.b128 %v1, {%a, %b};"),
    }[bits]

    def group(register: str, start: int) -> str:
        names = [f"%{register}{start + i}" for i in range(count)]
        return names[0] if count == 1 else "{" + ", ".join(names) + "}"

    inside = group("y", 1)
    head = (
        f".func (.param .align 16 .b8 o[16]) ENTRY_f(.param .align 16 .b8 i[16]) {{ .reg .b{max(bits, 16)} %y<9>; "
        f"ld.param.{shape} {inside}, [i]; st.param.{shape} [o], {inside}; ret; }}"
    )
    body = (
        f"{source} {{ .param .align 16 .b8 i[16]; .param .align 16 .b8 o[16]; {store} [i], {group(kind, 1)}; "
        f"call (o), ENTRY_f, (i); {load} {group(kind, first)}, [o]; }}"
    )
    if bits == 128:
        body += " mov.b128 {%d, %q}, %v2;"
        return Case(name, body, ["b64"] * 2, ["b64"] * 2, lambda a, b: (a, b), head=head, sm=90)
    body += "".join(f" mov.b{max(bits, 16)} %{REGISTERS[i]}, %{kind}{first + i};" for i in range(count))

    def reference(a: int, b: int) -> Sequence[int]:
        values = [v & (1 << bits) - 1 for v in words_of(a | b << 64, count, max(bits, 16))]
        return [signed(v, bits) for v in values] if t[0] == "s" else values

    return Case(name, body, ["b64"] * 2, [f"b{max(bits, 16)}"] * count, reference, head=head)


def constant_or_parameter(name: str, space: str, t: str, count: int, bits: int) -> Case:
    """The same values for every thread."""
    memory = VALUES[0] | VALUES[1] << 64
    if space == "const":
        data = ", ".join(str(b) for b in memory.to_bytes(16, "little"))
        head = f".const .align 16 .b8 ENTRY_c[16] = {{{data}}};"
        if bits == 128:
            body = f"{name} %v1, [ENTRY_c]; mov.b128 {{%d, %q}}, %v1;"
            return Case(name, body, ["b32"], ["b64", "b64"], lambda _: VALUES, head=head, sm=90)
        registers = ", ".join(f"%{r}" for r in REGISTERS[:count])
        body = f"{name} {registers if count == 1 else '{' + registers + '}'}, [ENTRY_c];"
    else:
        # The kernel's own parameters are addresses: pass a value through a call.
        head = (
            ".func (.param .align 16 .b8 o[16]) ENTRY_f(.param .align 16 .b8 i[16]) { .reg .b64 %y<3>; "
            "ld.param.b64 %y1, [i]; ld.param.b64 %y2, [i+8]; st.param.b64 [o], %y1; st.param.b64 [o+8], %y2; ret; }"
        )
        body = (
            f"mov.u64 %w1, {VALUES[0]}; mov.u64 %w2, {VALUES[1]}; {{ .param .align 16 .b8 i[16]; "
            f".param .align 16 .b8 o[16]; st.param.b64 [i], %w1; st.param.b64 [i+8], %w2; "
            f"call (o), ENTRY_f, (i); {name} "
        )
        if bits == 128:
            return Case(
                name,
                body + "%v1, [o]; } mov.b128 {%d, %q}, %v1;",
                ["b32"],
                ["b64", "b64"],
                lambda _: VALUES,
                head=head,
                sm=90,
            )
        body += "%d, [o]; }"
    values = words_of(memory, count, bits)
    out = [signed(v, bits) for v in values] if t[0] == "s" else values
    return Case(name, body, ["b32"], [f"b{max(bits, 16)}"] * count, lambda _: out, head=head)


def half_add(f: sf.Format) -> Callable[[int, int], int]:
    return lambda a, b: sf.encode(sf.add(sf.decode(a, f), sf.decode(b, f)), f)


def operation(op: str, t: str, shared: bool) -> Callable[..., int]:
    if t in PACKED:
        return packed(16, 2, operation(op, PACKED[t], shared))
    if t in sf.FORMATS:
        f = sf.FORMATS[t]
        if op == "add":
            if t == "f32" and not shared:
                return lambda a, b: sf.flush(half_add(f)(sf.flush(a, f), sf.flush(b, f)), f)
            return half_add(f)
        if op in ("min", "max"):
            return extremum(op, (), f)
        return lambda a, b: b
    n = type_bits(t)

    def value(v: int) -> int:
        return signed(v, n) if t[0] == "s" else v % (1 << n)

    table: dict[str, Callable[..., int]] = {
        "add": lambda a, b: a + b,
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
        "xor": lambda a, b: a ^ b,
        "exch": lambda a, b: b,
        "min": lambda a, b: min(value(a), value(b)),
        "max": lambda a, b: max(value(a), value(b)),
        "inc": lambda a, b: 0 if a >= b else a + 1,
        "dec": lambda a, b: b if a == 0 or a > b else a - 1,
    }
    return table[op]


def atomic(opcode: str, words: Words) -> Case | str:
    """Every thread has a cell of its own: the old value and the new one."""
    space = next((w for w in words if w in ("global", "shared", "shared::cta")), "")
    op = next(w for w in words if w in "add and or xor exch cas min max inc dec".split())
    t = words[-1]
    vector = next((w for w in words if w in ("v2", "v4", "v8")), "")
    name = full(opcode, words)
    declare, address = where(space)
    dot = f".{space}" if space else ""
    size = register_bytes(t)
    old = opcode == "atom"
    body = declare + address.replace("SCRATCH", str(4096))
    if t == "b128":
        third = ", %v3" if op == "cas" else ""
        body += (
            f" st{dot}.v2.b64 [%x3], {{%a, %b}}; mov.b128 %v2, {{%a, %c}}; mov.b128 %v3, {{%c, %e}}; "
            f"{name} %v1, [%x3], %v2{third}; mov.b128 {{%d, %q}}, %v1; ld{dot}.v2.b64 {{%r, %s}}, [%x3];"
        )

        def wide(a: int, b: int, c: int, e: int) -> Sequence[int]:
            if op == "exch":
                return a, b, a, c
            return (a, b, c, e) if b == c else (a, b, a, b)

        case = Case(name, body, ["b64"] * 4, ["b64"] * 4, wide, sm=90)
        values = case.values()
        case.data = [
            values[0],
            values[1],
            [b if i % 2 else c for i, (b, c) in enumerate(zip(*values[1:3], strict=True))],
            values[3],
        ]
        return case
    if vector:
        return atomic_vector(opcode, words, name, op, t, int(vector[1]), body, dot)
    sm = 90 if t == "bf16" or t == "bf16x2" or (op == "exch" and t == "b16") else 80
    body += f" st{dot}.b{8 * size} [%x3], %a; "
    if op == "cas":
        body += f"{name} %d, [%x3], %b, %c;"
    elif old:
        body += f"{name} %d, [%x3], %b;"
    else:
        body += f"{name} [%x3], %b; mov.b{8 * size} %d, %a;"
    body += f" ld{dot}.b{8 * size} %q, [%x3];"
    kind = t
    if op == "cas":
        case = Case(name, body, [kind] * 3, [t, t], lambda a, b, c: (a, c if a == b else a), sm=sm)
        values = case.values()
        case.data = [
            values[0],
            [a if i % 2 else b for i, (a, b) in enumerate(zip(*values[:2], strict=True))],
            values[2],
        ]
        return case
    f = operation(op, t, space.startswith("shared"))
    return Case(name, body, [kind, kind], [t, t], lambda a, b: (a, f(a, b)), sm=sm)


def atomic_vector(opcode: str, words: Words, name: str, op: str, t: str, count: int, body: str, dot: str) -> Case:
    bits = 8 * register_bytes(t)
    refused = bits * count > 128
    element = "h" if bits == 16 else "t"
    total = bits * count // 64
    mov = {1: "mov.b64 {A}, %b;", 2: "mov.b64 {A}, %b; mov.b64 {B}, %e;"}
    registers = [f"%{element}{i + 1}" for i in range(count)]
    group = "{" + ", ".join(registers) + "}"
    half = count // total if total else count
    if refused:
        return Case(
            name, f"{name} {group + ', ' if opcode == 'atom' else ''}[%x0], {group};", [], [], refused=True, sm=90
        )
    if total == 0:  # v2 of 16 bits
        body += f" cvt.u32.u64 %t8, %a; st{dot}.b32 [%x3], %t8; cvt.u32.u64 %t7, %b; mov.b32 {group}, %t7;"
    else:
        body += f" st{dot}.b64 [%x3], %a; st{dot}.b64 [%x3+8], %c; "
        body += (
            mov[total]
            .replace("{A}", "{" + ", ".join(registers[:half]) + "}")
            .replace("{B}", "{" + ", ".join(registers[half:]) + "}")
        )
    body += f" {name} {group + ', ' if opcode == 'atom' else ''}[%x3], {group}; "
    if total == 0:
        body += f"mov.b32 %t7, {group}; cvt.u64.u32 %d, %t7; ld{dot}.u32 %r, [%x3]; mov.u64 %q, 0; mov.u64 %s, 0;"
        body = body.replace(f"ld{dot}.u32 %r, [%x3]", f"ld{dot}.u32 %t6, [%x3]; cvt.u64.u32 %r, %t6")
    else:
        body += "mov.b64 %d, {" + ", ".join(registers[:half]) + "}; "
        body += "mov.b64 %q, {" + ", ".join(registers[half:]) + "}; " if total == 2 else "mov.u64 %q, 0; "
        body += f"ld{dot}.b64 %r, [%x3]; ld{dot}.b64 %s, [%x3+8];"
    one = operation(op, t, False)

    def reference(a: int, b: int, c: int, e: int) -> Sequence[int]:
        memory, operand = a | c << 64, b | e << 64
        keep = (1 << (bits * count)) - 1
        f = packed(bits, count, one)
        new = memory & ~keep | f(memory & keep, operand & keep)
        seen = (memory if opcode == "atom" else operand) & keep
        if total == 0:
            return seen & 0xFFFFFFFF, 0, new & 0xFFFFFFFF, 0
        return seen & (2**64 - 1), seen >> 64, new & (2**64 - 1), new >> 64

    # Elements are compared bit for bit: keep NaNs out, whose bits are not promised.
    case = Case(name, body, ["b64"] * 4, ["b64"] * 4, reference, sm=90)
    f = sf.FORMATS[PACKED.get(t, t)]
    columns = []
    for column in case.values():
        parts = [words_of(v, 64 // f.bits, f.bits) for v in column]
        columns.append(
            [sum((p & ~(f.infinity & -f.infinity)) << (f.bits * i) for i, p in enumerate(row)) for row in parts]
        )
    case.data = columns
    return case


def lanes(opcode: str, words: Words) -> Case | str:
    """Section warp. Threads of a warp are THREADS values apart by 32."""
    name = full(opcode, words)
    if opcode in ("shfl", "vote") and "sync" not in words:
        return "the forms without .sync are not for sm_70 and later; softgpu/tests/test_vm_control.py"
    if opcode == "shfl":
        mode = words[1]
        body = f"{name} %d|%p1, %a, %b, %c, 0xffffffff; selp.u32 %q, 1, 0, %p1;"

        def shuffle(columns: list[list[int]]) -> list[Sequence[int]]:
            a, b, c = columns
            out: list[Sequence[int]] = []
            for i in range(THREADS):
                lane, base = i % 32, i - i % 32
                delta, limit, segment = b[i] & 31, c[i] & 31, c[i] >> 8 & 31
                high = lane & segment | limit & ~segment & 31
                j = {"up": lane - delta, "down": lane + delta, "bfly": lane ^ delta}.get(
                    mode, lane & segment | delta & ~segment & 31
                )
                ok = j >= high if mode == "up" else j <= high
                out.append((a[base + j] if ok else a[i], int(ok)))
            return out

        case = Case(name, body, ["b32", "small_b32", "b32"], ["b32", "u32"], whole=shuffle)
        clamps = [31, 0x1C1F, 0x101F, 7] if mode != "up" else [0, 0x1C00, 0x1000, 0]
        values = case.values()
        case.data = [values[0], values[1], [clamps[i // 32] for i in range(THREADS)]]
        return case

    def warps(f: Callable[[list[int]], Sequence[Sequence[int]]]) -> Callable[[list[list[int]]], list[Sequence[int]]]:
        return lambda columns: [row for w in range(0, THREADS, 32) for row in f(columns[0][w : w + 32])]

    if opcode == "vote":
        what = words[1]
        if what == "ballot":
            body = f"setp.gt.s32 %p1, %a, 0; {name} %d, %p1, 0xffffffff;"
        else:
            body = f"setp.gt.s32 %p1, %a, 0; {name} %p2, %p1, 0xffffffff; selp.u32 %d, 1, 0, %p2;"

        def vote(a: list[int]) -> Sequence[Sequence[int]]:
            p = [signed(v, 32) > 0 for v in a]
            value = {
                "all": int(all(p)),
                "any": int(any(p)),
                "uni": int(all(p) or not any(p)),
                "ballot": sum(int(v) << i for i, v in enumerate(p)),
            }[what]
            return [(value,)] * 32

        case = Case(name, body, ["b32"], ["u32"], whole=warps(vote))
        case.data = [[5 if i < 32 else 0 if i < 64 else v for i, v in enumerate(case.values()[0])]]
        return case
    if opcode == "match":
        t = words[-1]
        body = f"{name} %d{'|%p1' if words[0] == 'all' else ''}, %a, 0xffffffff;"
        body += " selp.u32 %q, 1, 0, %p1;" if words[0] == "all" else " mov.u32 %q, 0;"

        def match(a: list[int]) -> Sequence[Sequence[int]]:
            if words[0] == "any":
                return [(sum(int(v == x) << i for i, v in enumerate(a)), 0) for x in a]
            same = len(set(a)) == 1
            return [(0xFFFFFFFF if same else 0, int(same))] * 32

        case = Case(name, body, [t], ["b32", "u32"], whole=warps(match))
        case.data = [[77 if i < 32 else v % 5 for i, v in enumerate(case.values()[0])]]
        return case
    if opcode == "redux":
        t = words[-1]
        body = f"{name} %d, %a, 0xffffffff;"
        if t == "f32":

            def fold(a: list[int]) -> Sequence[Sequence[int]]:
                f = extremum(words[1], tuple(w for w in words if w in ("NaN", "abs")), sf.F32)
                value = a[0]
                for v in a:
                    value = f(value, v)
                return [(value,)] * 32

            case = Case(name, body, ["f32"], ["f32"], whole=warps(fold), sm=100)
            # Of zeros of both signs the sign tells; of nothing but NaN there is no number.
            zeros, nans = [(i % 2) << 31 for i in range(32)], [0x7FC00000 | i for i in range(32)]
            case.data = [zeros + nans + case.values()[0][64:]]
            return case

        def redux(a: list[int]) -> Sequence[Sequence[int]]:
            values = [signed(v, 32) if t == "s32" else v for v in a]
            op = words[1]
            value = values[0] if op != "add" else sum(values)
            for v in values:
                value = {
                    "add": value,
                    "min": min(value, v),
                    "max": max(value, v),
                    "and": value & v,
                    "or": value | v,
                }.get(op, value)
            if op == "xor":
                value = 0
                for v in values:
                    value ^= v
            return [(value,)] * 32

        return Case(name, body, [t], [t], whole=warps(redux))
    if opcode == "activemask":
        body = "and.b32 %t1, %a, 0; setp.eq.u32 %p1, %t1, 0; activemask.b32 %d;"
        return Case(name, body, ["b32"], ["b32"], lambda _: (0xFFFFFFFF,))
    if opcode == "elect":
        body = f"{name} %d|%p1, 0xffffffff; selp.u32 %q, 1, 0, %p1;"
        # Which lane is elected is not promised: exactly one of a warp, and %d names it.

        def one_leader(columns: list[list[int]]) -> bool:
            leaders, chosen = columns
            warps_ok = []
            for w in range(0, THREADS, 32):
                lanes_chosen = [i for i in range(32) if chosen[w + i]]
                warps_ok.append(len(lanes_chosen) == 1 and set(leaders[w : w + 32]) == set(lanes_chosen))
            return all(warps_ok)

        return Case(name, body, ["b32"], ["b32", "u32"], kind="invariant", check=one_leader, sm=90)
    return f"no recipe for {name}"
