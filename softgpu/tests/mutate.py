"""Mutation check: each change to a handler must turn a case of the agreement tests red.

    python -m softgpu.tests.mutate                 all handlers
    python -m softgpu.tests.mutate int.cc --most 200 --seed 3

A copy of the sources gets all mutants at once, each behind a switch, and is built once in a temporary folder: an
operator swapped, a comparison off by one, a constant changed, a condition turned round. The cases run first without a
mutant, which tells who reaches which, running or being decoded; then each mutant runs the cases that reach it, in a
process of its own, until one differs by the rules of the agreement tests. Survivors are printed, and are an error
unless mutants.toml accepts them; so is, unless this is a sample, an entry there that a case kills.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = ROOT / "softgpu" / "src"
FILES = "int.cc logic.cc float.cc float_bits.h half.cc cvt.cc mem.cc atom.cc warp.cc mma.cc wmma.cc matrix.h".split()
ACCEPTED = HERE / "mutants.toml"
FLAGS = "-std=c++17 -fPIC -O0 -fvisibility=hidden -ffp-contract=off -fno-strict-aliasing -w".split()
MUTANT_LIMIT_S = 60
EVERY = 1 << 30
# Which of two equal values is taken does not show.
SAME_EITHER_WAY = re.compile(r"([\w()]+) [<>] ([\w()]+) \? (?:\1 : \2|\2 : \1|\2 : .* : \1)\b")

SWAPS = [
    (r" \+ ", " - "), (r" - ", " + "), (r" \* ", " + "), (r" / ", " * "), (r" & ", " | "), (r" \| ", " & "),
    (r" \^ ", " | "), (r" << ", " >> "), (r" >> ", " << "), (r" < ", " <= "), (r" <= ", " < "), (r" > ", " >= "),
    (r" >= ", " > "), (r" == ", " != "), (r" != ", " == "), (r" && ", " || "), (r" \|\| ", " && "),
    (r"std::min\b", "std::max"), (r"std::max\b", "std::min"), (r"\b31\b", "30"), (r"\b32\b", "31"), (r"\b63\b", "62"),
    (r"\b0xff\b", "0x7f"), (r"\b0xffff\b", "0x7fff"), (r"\b1\b", "2"), (r"\b0\b", "1"), (r"~(?=\w)", ""),
]  # fmt: skip
# Of the shapes that can stand behind a switch: the value of a return, of a variable, of an assignment.
VALUE = re.compile(
    r"(?P<head>\breturn |^\s+(?:const |auto |bool |[\w:<>]+ )?[\w.\[\]]+ [|&^+-]?= )"
    r"(?P<value>[^;{}=]+|[^;{}]+[<>=!]=[^;{}]+);"
)
CONDITION = re.compile(r"(?P<head>^\s*(?:\} else )?if \()(?P<rest>.*)$")
NEVER = re.compile(
    r"constexpr|static_assert|static const|#|//.*SG_|\bfor \(|regs \+|reinterpret_cast|\bcase\b|new |Handler|using "
)


@dataclass
class Mutant:
    file: str
    line: int  # from 0
    original: str
    becomes: str
    number: int = 0
    is_condition: bool = False
    start: int = 0  # of what it replaces in the line
    end: int = 0
    text: str = ""  # in its place


def handler_lines(text: str) -> list[bool]:
    """Whether a line belongs to what runs, rather than to what builds instructions out of PTX."""
    out, inside = [], False
    for line in text.split("\n"):
        if re.match(r"\w.*\b(Decoder|Modifiers|Handler)\b|bool is_\w+\(Type t\)", line) or line.startswith("constexpr"):
            inside = not line.endswith(";") and not line.endswith("}")
            out.append(False)
            continue
        out.append(not inside)
        if line.startswith("}"):
            inside = False
    return out


def closing(text: str) -> int:
    """Where the parenthesis ends that stands open in front of `text`; -1: not in it."""
    depth = 1
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return i
    return -1


def mutants_of(file: str, text: str) -> list[Mutant]:
    found = []
    for at, (line, runs) in enumerate(zip(text.split("\n"), handler_lines(text), strict=True)):
        if not runs or NEVER.search(line) or '"' in line:
            continue
        shapes = [(m.start("value"), m.end("value"), False) for m in VALUE.finditer(line)]
        if c := CONDITION.match(line):
            end = closing(c["rest"])
            if end > 0 and ";" not in c["rest"][:end]:
                shapes.append((c.start("rest"), c.start("rest") + end, True))
        for start, end, is_condition in shapes:
            value = line[start:end]
            if "[" in value and "](" in value:  # a lambda
                continue
            equal = [m.span() for m in SAME_EITHER_WAY.finditer(value)]
            texts = [
                value[: m.start()] + new + value[m.end() :]
                for old, new in SWAPS
                for m in re.finditer(old, value)
                if not ("=" in new and any(a <= m.start() < b for a, b in equal))
            ]
            if is_condition:
                texts.append(f"!({value})")
            for new in texts:
                becomes = (line[:start] + new + line[end:]).strip()
                found.append(Mutant(file, at, line.strip(), becomes, 0, is_condition, start, end, new))
    return found


def instrument(text: str, mutants: list[Mutant]) -> str:
    """All of them, each behind its switch."""
    lines = text.split("\n")
    places: dict[tuple[int, int, int], list[Mutant]] = {}
    for m in mutants:
        places.setdefault((m.line, m.start, m.end), []).append(m)
    for (line, start, end), here in sorted(places.items(), reverse=True):
        value = f"({lines[line][start:end]})"
        for m in here:
            value = f"(SG_MUTANT({m.number}) ? ({m.text}) : {value})"
        lines[line] = lines[line][:start] + value + lines[line][end:]
    return "\n".join(lines)


SWITCH = """#pragma once
extern "C" { extern int sgt_mutant; extern unsigned char sgt_hit[]; }
#define SG_MUTANT(n) (sgt_hit[n] = 1, __builtin_expect(sgt_mutant == (n), 0))
"""


def build(folder: Path, mutants: list[Mutant], library: Path) -> list[Mutant]:
    """Builds the test library with the mutants; those that are no C++ are dropped. Returns the others."""
    files = sorted({m.file for m in mutants})
    shutil.copytree(SOURCES / "vm", folder / "src/vm")
    shutil.copytree(SOURCES / "ptx", folder / "src/ptx")
    shutil.copytree(ROOT / "softgpu/include", folder / "include")
    shutil.copytree(HERE, folder / "tests", ignore=lambda _, names: [n for n in names if not n.endswith(".cc")])
    (folder / "src/vm/switch.h").write_text(SWITCH)
    (folder / "hit.cc").write_text(
        f'extern "C" {{ __attribute__((visibility("default"))) int sgt_mutant = -1;\n'
        f'__attribute__((visibility("default"))) unsigned char sgt_hit[{len(mutants) + 1}]; }}\n'
    )
    # A header's mutants need everyone who includes it; one source is enough to run them.
    users = {"float_bits.h": ["half.cc", "cvt.cc"], "matrix.h": ["mma.cc", "wmma.cc"]}
    compile_these = sorted({s for f in files for s in users.get(f, [f])})

    def compiled(source: str) -> str:
        """What the compiler says."""
        command = ["g++", *FLAGS, "-fmax-errors=200", f"-I{folder}/include", "-c", source]
        command += ["-o", str(folder / f"{source}.o")]
        return subprocess.run(command, cwd=folder / "src/vm", stderr=subprocess.PIPE, text=True).stderr

    for _ in range(8):
        for i, m in enumerate(mutants):
            m.number = i
        for file in files:
            text = (SOURCES / "vm" / file).read_text()
            new = instrument(text, [m for m in mutants if m.file == file])
            first = re.search(r"^#(include|pragma once)", new, re.M)
            assert first
            head, tail = new[: first.start()], new[first.start() :]
            # On the same line, so that line numbers stay.
            if tail.startswith("#pragma once\n"):
                tail = tail.replace("#pragma once\n", "#pragma once\n#line 1\n", 1)
            (folder / "src/vm" / file).write_text(f'#include "switch.h"\n#line 1 "{file}"\n' + head + tail)
        errors: set[tuple[str, int]] = set()
        with ThreadPoolExecutor(2) as pool:
            told = list(pool.map(compiled, compile_these))
        for stderr in told:
            known = {(m.file, m.line + 1) for m in mutants}
            for name, line in re.findall(r"([\w.]+):(\d+):(?:\d+:)? ", stderr):
                if (name, int(line)) in known:
                    errors.add((name, int(line)))
            if "error" in stderr and not errors:
                raise RuntimeError(stderr[:4000])
        if not errors:
            break
        mutants = [m for m in mutants if (m.file, m.line + 1) not in errors]
    sources = [str(HERE / "vm_harness.cc"), "hit.cc", *[f"{s}.o" for s in compile_these]]
    from softgpu.tests import vm  # builds what the mutants are linked with

    objects = [
        *(o for o in (vm.BUILD / "CMakeFiles/softgpu_vm_baseline.dir").rglob("*.o") if o.stem not in compile_these),
        *(vm.BUILD / "CMakeFiles/softgpu_vm_avx2.dir").rglob("*.o"),  # last, as in softgpu's own build
    ]
    subprocess.run(
        ["g++", *FLAGS, "-shared", f"-I{folder}/include", *sources, *map(str, objects), "-lpthread",
         "-o", str(library)],
        cwd=folder, check=True,
    )  # fmt: skip
    return mutants


def run_all(mutants: list[Mutant], seconds: float) -> dict[str, list[int]]:
    """Numbers of mutants by fate. Runs in a process that has loaded the library with the mutants."""
    from softgpu.tests import vm
    from softgpu.tests.agreement import cases, run
    from softgpu.tests.agreement.case import THREADS, Case

    switch = ctypes.c_int.in_dll(vm.LIB, "sgt_mutant")
    hit = (ctypes.c_ubyte * (len(mutants) + 1)).in_dll(vm.LIB, "sgt_hit")
    reached: dict[int, list[int]] = {m.number: [] for m in mutants}
    decoded: dict[int, set[int]] = {m.number: set() for m in mutants}  # those reached when the case is decoded

    class Bench:
        """A program with memory for its cases."""

        def __init__(self, text: str) -> None:
            self.machine = vm.Machine(text)
            self.source = self.machine.buffer(np.zeros(65536, np.uint8))
            self.out = self.machine.buffer(np.zeros(run.OUTPUT_BYTES, np.uint8))

        def answer(self, case: Case, name: str) -> bytes:
            data = case.input_bytes()
            ctypes.memmove(self.source.address, data, len(data))
            ctypes.memset(self.out.address, 0, run.OUTPUT_BYTES)
            self.machine.run(name, 1, THREADS, self.source, self.out)
            return self.out.get().tobytes()[: case.output_size()]

    # Mutants run on a machine of their own: registers keep what a kernel left there when it runs again, so that one
    # that no longer writes its result would find the right one of the run without a mutant.
    ready: list[tuple[Case, Bench, str, str]] = []
    before: list[bytes] = []

    def hits() -> list[int]:
        found = np.flatnonzero(np.frombuffer(bytes(hit), np.uint8)[: len(mutants)])
        ctypes.memset(hit, 0, len(hit))
        return [int(number) for number in found]

    selected = [c for c in cases.everything()[0].values() if not c.refused]
    for batch, version in run.batches(selected, 100):
        text = version + "".join(c.kernel(f"k{i}") for i, c in enumerate(batch))
        bench, unused = Bench(text), Bench(text)
        for i, case in enumerate(batch):
            name = f"k{i}"
            unused.machine.kernel(name)
            hits()
            bench.machine.kernel(name)
            decoding = hits()
            ready.append((case, unused, name, version))
            before.append(bench.answer(case, name))
            running = hits()
            for number in sorted({*decoding, *running}):
                reached[number].append(len(ready) - 1)
            for number in decoding:
                decoded[number].add(len(ready) - 1)

    def is_red(i: int, is_decoded: bool) -> bool:
        case, bench, name, version = ready[i]
        try:
            if is_decoded:
                bench, name = Bench(version + case.kernel("k")), "k"
            raw = bench.answer(case, name)
        except (vm.Fault, vm.PtxError):
            return True
        if raw == before[i]:
            return False
        got = case.columns(raw)
        if case.kind == "invariant":
            return case.check is not None and not case.check(got)
        want = case.expected() or case.columns(before[i])
        if case.differences(got, want):
            return True
        answers = [a for g in run.goldens() if (a := g.output(case)) is not None]
        good = [
            case.columns(raw)
            for raw in answers
            if not case.differences(case.columns(before[i]), case.columns(raw), twice=True)
        ]
        return any(case.differences(got, columns, twice=True) for columns in good)

    fates: dict[str, list[int]] = {"killed": [], "survived": [], "not reached": [], "not run": []}
    end_s = time.monotonic() + seconds
    for m in mutants:
        who = reached[m.number]
        if not who:
            fates["not reached"].append(m.number)
            continue
        if time.monotonic() > end_s:
            fates["not run"].append(m.number)
            continue
        random.Random(m.number).shuffle(who)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(MUTANT_LIMIT_S)
            code = 1
            try:
                switch.value = m.number
                code = 0 if not any(is_red(i, i in decoded[m.number]) for i in who) else 1
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        fates["survived" if status == 0 else "killed"].append(m.number)
    return fates


def accepted() -> dict[tuple[str, str, str], str]:
    entries = tomllib.loads(ACCEPTED.read_text()).get("accepted", []) if ACCEPTED.exists() else []
    return {(e["file"], e["line"], e["becomes"]): e["reason"] for e in entries}


def check(files: list[str], most: int, seed: int, seconds: float) -> tuple[dict[str, list[Mutant]], str]:
    """Mutants by fate, and a sentence."""
    mutants = [m for file in files for m in mutants_of(file, (SOURCES / "vm" / file).read_text())]
    if len(mutants) > most:
        mutants = random.Random(seed).sample(mutants, most)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = folder / "libmutants.so"
        mutants = build(folder, mutants, library)
        (folder / "mutants.json").write_text(json.dumps([asdict(m) for m in mutants]))
        command = [sys.executable, "-m", "softgpu.tests.mutate", "--run", str(folder / "mutants.json")]
        environment = {**os.environ, "SOFTGPU_VM_TEST": str(library), "SOFTGPU_STEP_LIMIT": "1000000",
                       "SOFTGPU_ISA": "baseline"}  # fmt: skip
        result = subprocess.run(
            [*command, "--seconds", str(seconds)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True
        )
        fates = {fate: [mutants[i] for i in numbers] for fate, numbers in json.loads(result.stdout).items()}
    known = accepted()
    fates["accepted"] = [m for m in fates["survived"] if (m.file, m.original, m.becomes) in known]
    fates["survived"] = [m for m in fates["survived"] if m not in fates["accepted"]]
    return fates, f"{len(mutants)} mutants: " + ", ".join(f"{len(v)} {k}" for k, v in fates.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=FILES, help=f"of {' '.join(FILES)} (default: all)")
    parser.add_argument("--most", type=int, default=EVERY, help="a sample of so many mutants")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9, help="after which no more mutants are run")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        mutants = [Mutant(**m) for m in json.loads(options.run.read_text())]
        print(json.dumps(run_all(mutants, options.seconds)))
        return 0
    fates, sentence = check(options.files, options.most, options.seed, options.seconds)
    survived = {(m.file, m.original, m.becomes) for m in fates["accepted"]}
    killed = {(m.file, m.original, m.becomes) for m in fates["killed"]} - survived
    # In a sample, of several mutants of the same words the one that survives may be missing.
    for_nothing = [key for key in accepted() if key in killed] if options.most == EVERY else []
    for key in for_nothing:
        print("mutants.toml accepts what a case kills: " + "\n    ".join(key))
    for fate in ("survived", "not reached"):
        for m in fates[fate]:
            print(f"{m.file}:{m.line + 1}: {fate}\n    {m.original}\n    {m.becomes}")
    print(sentence)
    return 1 if fates["survived"] or for_nothing else 0


if __name__ == "__main__":
    raise SystemExit(main())
