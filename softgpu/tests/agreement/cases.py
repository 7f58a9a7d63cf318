"""All cases, one for each combination in the table of instructions, or the reason why one has none."""

from __future__ import annotations

import dataclasses
import functools

from softgpu.tests.agreement import convert, matrix, memory, scalar, table
from softgpu.tests.agreement.case import THREADS, Case

# Rows that are no function of their operands: where they are tested instead.
ELSEWHERE = {
    "control": "softgpu/tests/test_vm_control.py",
    "tex": "tests/programs (textures and surfaces need the driver's objects)",
}
NO_VALUE = {"nothing", "policy", "fence", "cvta"}


def build(row: table.Row, words: tuple[str, ...]) -> Case | str:
    if row.section in ELSEWHERE:
        return ELSEWHERE[row.section]
    if row.builder in NO_VALUE:
        return "softgpu/tests/test_vm_control.py and the kernels of compilers"
    if row.section == "int":
        return scalar.integer(row.opcode, words)
    if row.section == "logic":
        return scalar.logic(row.opcode, words)
    if row.section in ("float", "half"):
        return scalar.real(row.opcode, words)
    if row.section == "cvt":
        return convert.cvt(words, row.builder)
    if row.opcode == "isspacep":
        return memory.is_space(words)
    if row.builder == "cp_async":
        return memory.async_copy(words)
    if row.section == "mem":
        return memory.load_store(row.opcode, words)
    if row.section == "atom":
        return memory.atomic(row.opcode, words)
    if row.section == "warp":
        return memory.lanes(row.opcode, words)
    if row.section == "mma":
        return matrix.mma(words) if row.opcode == "mma" else matrix.matrix_memory(row.opcode, words)
    if row.section == "wmma":
        return matrix.wmma(words)
    if row.section == "mbarrier":
        return matrix.mbarrier(row.opcode, words)
    if row.section == "stack":
        return matrix.stack(row.opcode, words)
    return f"no recipe for section {row.section}"


def beside_the_table() -> list[Case]:
    """More inputs for some combinations: what the mutation check found that the first ones do not show."""
    out = []
    for row in table.read():
        for words in row.combinations():
            if row.builder == "mma" and "satfinite" in words:
                out.append(matrix.mma(words, limits=True))
            if row.builder == "wmma_mma" and "satfinite" in words:
                near = matrix.wmma(words, limits=True)
                assert isinstance(near, Case)
                out.append(near)

    def nth_is_zero(a: int, base: int) -> tuple[int]:
        return (base if a >> base & 1 else 0xFFFFFFFF,)

    out.append(Case("fns.b32 of nothing", "fns.b32 %d, %a, %b, 0;", ["b32", "small_b32"], ["b32"], nth_is_zero))

    # PTX leaves this open; a GPU's code gives all ones, for a remainder too.
    for t in ("u16", "u32", "u64", "s16", "s32", "s64"):
        for opcode in ("div", "rem"):
            divided = scalar.integer(opcode, (t,))
            assert isinstance(divided, Case)
            name, data = f"{divided.name} by zero", [divided.values()[0], [0] * THREADS]
            out.append(dataclasses.replace(divided, name=name, data=data, reference=lambda a, b: (-1,)))

    def no_bits(a: int, b: int) -> tuple[int, int]:
        return a & b, int(a & b != 0)

    body = "setp.ne.u32 %p2, %a, %a; lop3.or.b32 %d|%p1, %a, %b, 0, 192, %p2; selp.u32 %q, 1, 0, %p1;"
    even = [[0xFF if i % 2 else 0 for i in range(THREADS)], [0x0F] * THREADS]
    out.append(Case("lop3.or.b32 of nothing", body, ["b32", "b32"], ["b32", "u32"], no_bits, data=even))

    def carried_twice(a: int, b: int) -> tuple[int]:
        return (a + b >> 32,)

    # Neither addc nor subc without .cc touches the carry that is there.
    for name in ("addc", "subc"):
        body = f"add.cc.u32 %t1, %a, %b; {name}.u32 %t2, %a, %a; {name}.u32 %t2, %b, 5; addc.u32 %d, 0, 0;"
        out.append(Case(f"{name}.u32 keeps the carry", body, ["b32", "b32"], ["b32"], carried_twice))

    # A result of 128 bits that the function has stored as a whole.
    wide = memory.constant_or_parameter("ld.param.b128", "param", "b128", 1, 128)
    store = "mov.b128 %z, {%y1, %y2}; st.param.b128 [o], %z; ret;"
    head = wide.head.replace(".reg .b64 %y<3>;", ".reg .b64 %y<3>; .reg .b128 %z;")
    head = head.replace("st.param.b64 [o], %y1; st.param.b64 [o+8], %y2; ret;", store)
    out.append(dataclasses.replace(wide, name="ld.param.b128 of a whole", head=head))

    # Halves of a register are put into it one by one: what was there before must not stay.
    for t in ("f16", "f32"):
        used = matrix.mma(("sync", "aligned", "m16n8k8", "row", "col", t, "f16", "f16", t))
        body = "".join(f"mov.b32 %{r}, 0xa5ffffff; " for r in "dqrs"[: len(used.outputs)]) + used.body
        out.append(dataclasses.replace(used, name=f"{used.name} into used registers", body=body))

    # 9 x 29 lies in the middle between two numbers of bf16; what is added, far below, decides.
    signs = [[(i >> k & 1) << 15 for i in range(THREADS)] for k in range(2)]
    data = [[0x4110 | s for s in signs[0]], [0x41E8] * THREADS, [0x2180 | s for s in signs[1]]]
    near = scalar.real("fma", ("rn", "bf16"))
    assert isinstance(near, Case)
    out.append(dataclasses.replace(near, name="fma.rn.bf16 near the middle", data=data))
    # Products on both sides of the smallest normal number, less than the last place of a subnormal from it: whether a
    # result is flushed before such a place is rounded off it or after.
    close = [
        [0x20000000 + i % 8 | (i % 2) << 31 for i in range(THREADS)],
        [0x20000000 - i // 8 for i in range(THREADS)],
    ]
    for opcode, more in (("mul", []), ("fma", [[0] * THREADS])):
        for mode in ("rn", "rz", "rm", "rp"):
            small = scalar.real(opcode, (mode, "ftz", "f32"))
            assert isinstance(small, Case)
            name = f"{small.name} near the smallest normal"
            out.append(dataclasses.replace(small, name=name, data=close + more))
    ties = [0x3F800000 | i << 12 | (i % 3 == 0) | i << 31 & 1 << 31 for i in range(THREADS)]
    tie = convert.cvt(("rna", "tf32", "f32"), "cvt_tf32")
    out.append(dataclasses.replace(tie, name="cvt.rna.tf32.f32 of ties", data=[ties]))
    return out


@functools.cache
def everything() -> tuple[dict[str, Case], dict[str, str]]:
    """Cases by name, and reasons by name for combinations without one."""
    cases: dict[str, Case] = {}
    reasons: dict[str, str] = {}
    for row in table.read():
        for words in row.combinations():
            made = build(row, words)
            if isinstance(made, str):
                reasons[scalar.full(row.opcode, words)] = made
            else:
                cases.setdefault(made.name, made)
    for case in beside_the_table():
        assert case.name not in cases
        cases[case.name] = case
    return cases, reasons
