"""Every combination of the table of instructions: against the references, and against what a GPU answered.

The quick test looks at an eighth of the threads of each case, the slow one at all. Golden files come from
`python3 -m softgpu.tests.agreement.run` on a GPU and lie in agreement/golden; without one only the references count.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from softgpu.tests import vm
from softgpu.tests.agreement import cases, run, table
from softgpu.tests.agreement.case import THREADS, Case, generate

BUILT, REASONS = cases.everything()
GROUPS = {
    "integers and bits": "add addc sub subc mul mul24 mad mad24 madc sad div rem abs neg min max popc clz bfind fns "
    "brev bfe bfi szext bmsk dp4a dp2a and or xor not cnot shl shr shf lop3 prmt selp slct mov",
    "comparisons": "setp set testp",
    "reals": "fma rcp sqrt rsqrt sin cos lg2 ex2 tanh copysign",
    "conversions": "cvt",
    "memory": "ld ldu st atom red alloca stacksave stackrestore mbarrier cp isspacep",
    "lanes": "shfl vote match redux activemask elect mma wmma ldmatrix stmatrix movmatrix",
}


def opcode(case: Case) -> str:
    return case.name.split(".")[0]


def of_group(group: str) -> list[Case]:
    return [c for c in BUILT.values() if opcode(c) in GROUPS[group].split()]


def answers(selected: list[Case]) -> Iterator[tuple[Case, bytes]]:
    """Runs the cases, many to a module."""
    for batch, version in run.batches([c for c in selected if not c.refused], 100):
        machine = vm.Machine(version + "".join(c.kernel(f"k{i}") for i, c in enumerate(batch)))
        source = machine.buffer(np.zeros(65536, np.uint8))
        for i, case in enumerate(batch):
            data = case.input_bytes()
            ctypes.memmove(source.address, data, len(data))
            out = machine.buffer(np.zeros(run.OUTPUT_BYTES, np.uint8))
            machine.run(f"k{i}", 1, THREADS, source, out)
            yield case, out.get().tobytes()[: case.output_size()]
            vm.LIB.sgt_free(machine.session, out.address)


def check(selected: list[Case], step: int) -> None:
    wrong = []
    for case, raw in answers(selected):
        wrong += [f"{case.name}: {d}" for d in run.against_references(case, raw, step)[:1]]
        for golden in run.goldens():
            known = golden.output(case)
            if known is None:
                continue
            differs = bool(known != raw and case.differences(case.columns(raw), case.columns(known), twice=True))
            if differs != bool(re.fullmatch(DIFFERENT, case.name)):
                wrong.append(f"{case.name}, {golden.facts['device']}: {'differs' if differs else 'no longer differs'}")
    assert not wrong, f"{len(wrong)} differ: " + "; ".join(wrong[:20])


def test_every_opcode_is_in_a_group() -> None:
    known = {o for names in GROUPS.values() for o in names.split()}
    assert {opcode(c) for c in BUILT.values()} == known


def test_every_combination_has_a_case_or_a_reason() -> None:
    assert not [name for name, reason in REASONS.items() if reason.startswith("no recipe")]
    # What is tested elsewhere stays the small part that it is.
    assert len(BUILT) > 7000 and len(REASONS) < 1000


@pytest.mark.parametrize("group", GROUPS)
def test_agrees(group: str) -> None:
    check(of_group(group), 8)


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_agrees_in_every_thread(group: str) -> None:
    check(of_group(group), 1)


def with_other_inputs(case: Case, seed: int) -> Case:
    return dataclasses.replace(case, data=[generate(k, f"{case.name}#{seed}", i) for i, k in enumerate(case.inputs)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_agrees_with_other_inputs() -> None:
    """With inputs of other seeds, where a case does not choose its own; golden files have nothing to do with these."""
    free = [c for c in BUILT.values() if not c.refused and c.inputs and c.data is None]
    assert len(free) > 5000
    for seed in range(int(os.environ.get("AGREEMENT_ROUNDS", "1"))):
        wrong = []
        for case, raw in answers([with_other_inputs(c, seed) for c in free]):
            wrong += [f"{case.name}: {d}" for d in run.against_references(case, raw)[:1]]
        assert not wrong, f"seed {seed}: {len(wrong)} differ: " + "; ".join(wrong[:20])


def test_what_the_isa_does_not_have_is_refused() -> None:
    """Loaded one by one: each must fail on its own."""
    refused = [c for c in BUILT.values() if c.refused]
    assert len(refused) > 1000
    for case in refused:
        with pytest.raises(vm.PtxError) as e:
            vm.Machine(run.header(case.sm) + case.kernel("k")).kernel("k")
        assert e.value.code == 218 and opcode(case) in e.value.text, case.name


def operands(row: table.Row) -> str:
    """Enough operands that the modifiers are what a refusal is about."""
    return "%t1, %t2, %t3, %t4"


def refusal_of(name: str) -> str:
    body = f".visible .entry k() {{ .reg .b32 %t<9>; {name} {operands(ROWS[0])}; ret; }}"
    with pytest.raises(vm.PtxError) as e:
        vm.Machine(run.header(100) + body).kernel("k")
    return e.value.text


ROWS = table.read()


@pytest.mark.parametrize("section", sorted({r.section for r in ROWS}))
def test_unknown_modifiers_and_types_are_refused_by_name(section: str) -> None:
    """For every row: a made-up modifier at each place, and a type that no instruction has."""
    for row in (r for r in ROWS if r.section == section):
        words = row.combinations()[0]
        for at in range(len(words) + 1):
            name = ".".join([row.opcode, *words[:at], "bogus", *words[at:]])
            text = refusal_of(name)
            assert ".bogus" in text and name in text, (name, text)
        if words:
            name = ".".join([row.opcode, *words[:-1], "u7"])
            text = refusal_of(name)
            assert ".u7" in text and row.opcode in text, (name, text)


def test_modifiers_of_other_instructions_are_refused() -> None:
    """A real modifier where it does not belong is not ignored either."""
    for name in ("add.rn.s32", "and.sat.b32", "mul.lo.ftz.u32", "ld.global.rn.f32", "sqrt.rn.relu.f32", "shl.cc.b32"):
        assert name in refusal_of(name)
    for name in ("fma.rn.sat.f64", "min.sat.f32", "mma.sync.aligned.m16n8k16.row.row.f32.f16.f16.f32"):
        assert name in refusal_of(name)


def test_the_runner_writes_a_file_that_it_can_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner through the driver API, on softgpu's own library. A process of its own: it forks its workers, and
    where another test has started the driver in this one, they could not."""
    library = vm.ROOT / "build" / "softgpu" / "libcuda.so.1"
    if not library.exists():
        pytest.fail(f"{library} is not built: cmake -S softgpu -B build/softgpu && cmake --build build/softgpu")
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--libcuda", str(library), "--only", "shf.", "--budget-s", "300", "--out", folder]
        command = [sys.executable, "-m", "softgpu.tests.agreement.run", *arguments]
        result = subprocess.run(command, cwd=vm.ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "softgpu" in result.stdout
        report = json.loads((Path(folder) / "report.json").read_text())
        assert report["counts"]["ran"] == 4 and not any(report["lists"].values())
        golden = run.Golden(Path(folder) / "softgpu_cpu.npz")
        case = BUILT["shf.l.clamp.b32"]
        answer = golden.answer(case)
        assert answer is not None and answer[0] == run.RAN and not run.against_references(case, answer[1])
        # A changed bit is found, and so is a changed case.
        broken = bytes([answer[1][0] ^ 1]) + answer[1][1:]
        assert case.differences(case.columns(broken), case.columns(answer[1]))
        monkeypatch.setattr(case, "body", case.body + " ")
        assert golden.answer(case) is None


def test_golden_files_have_no_surprise() -> None:
    """A real GPU's driver refuses what the references say it must, and takes what it must."""
    assert run.goldens()
    for golden in run.goldens():
        odd = []
        for case in BUILT.values():
            answer = golden.answer(case)
            if answer is None or answer[0] in (run.NEWER, run.NOT_RUN) or case.sm >= 100 > golden.facts["sm"]:
                continue
            if (answer[0] == run.REFUSED) != case.refused:
                odd.append(f"{case.name} {answer[0]}")
        assert not odd, golden.facts


# Where the H200 answers something else than softgpu and the references; tests fail when a case is here for nothing.
DIFFERENT = "|".join([
    # A load of 128 bits from what a function returned: its driver (580) gives the lower half, and 0 for the upper one,
    # whether the function stored both as two of 64 bits or as one of 128. Loaded as a vector of two, both are there: so
    # the driver loses them, against the ISA, and softgpu does not. The cases of st.param are here for their loads.
    r"(ld|st)\.param(::func)?\.b128|ld\.param\.b128 of a whole",
])  # fmt: skip
