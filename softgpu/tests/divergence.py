"""Random kernels whose lanes part and meet, run twice: as the machine runs warps, and with each lane by itself between
the instructions where lanes exchange values (SOFTGPU_ONE_LANE=1). Both must leave the same bytes.

    python -m softgpu.tests.divergence --seconds 60 --seed 1

A kernel that differs is shrunk and printed. Kernels hold integers only and have no races: what a thread reads of
another, it reads behind a barrier, and an exchange names exactly the lanes that get there.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from softgpu.tests import vm

REGISTERS = 6  # %r0.. of a thread
LOCAL_WORDS = 8
COUNTERS = 4  # in shared memory, added to by all threads
HEADER = ".version 8.6\n.target sm_90\n.address_size 64\n"
TWO = "add.u32 sub.u32 mul.lo.u32 and.b32 or.b32 xor.b32 min.u32 max.s32 shl.b32 shr.u32 shr.s32 mul.hi.s32".split()
COMPARE = "eq ne lt le gt ge".split()


@dataclass
class Op:
    """Instructions without control flow."""

    lines: list[str]


@dataclass
class If:
    test: list[str]  # sets %q
    then: list[Node]
    other: list[Node]
    masks: tuple[str, str] | None = None  # of the lanes of both sides, taken out of `outer`
    outer: str = ""


@dataclass
class Loop:
    """`count` + 1 rounds at most; count: %c of the loop's depth, set by `setup`."""

    setup: list[str]
    body: list[Node]
    depth: int
    tested_first: bool
    mask: str = ""  # of the lanes that are in it, in rounds that exchange values
    outer: str = ""


@dataclass
class Leave:
    """Out of the loop at `depth`, or on to its next round; out of the function or kernel if depth is -1."""

    test: list[str]
    depth: int
    again: bool = False
    word: str = "ret"
    mask: str = ""  # of those that stay, if the others may still exchange values


@dataclass
class Switch:
    index: str
    cases: list[list[Node]]
    falls: list[bool]  # into the next case


@dataclass
class Tangle:
    """Basic blocks that jump to one another as they like, for `fuel` blocks."""

    blocks: list[list[Node]]
    ends: list[tuple[str, list[str], list[int]]]  # (bra, brx or next; test or index; targets)
    fuel: int


@dataclass
class Call:
    function: int
    result: int
    arguments: tuple[int, int]
    indirect: bool
    depth: str  # of calls that may follow


Node = Op | If | Loop | Leave | Switch | Tangle | Call


@dataclass
class Kernel:
    body: list[Node]
    functions: list[list[Node]]
    threads: int
    blocks: int
    seed: int

    def text(self) -> str:
        return Writer(self).text()


class Writer:
    """Kernel -> PTX."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.lines: list[str] = []
        self.labels = 0
        self.loops: dict[int, tuple[str, str]] = {}  # depth -> labels of the next round and of the end
        self.end = ""

    def label(self) -> str:
        self.labels += 1
        return f"L{self.labels}"

    def text(self) -> str:
        heads = [
            f".func (.reg .b32 out) f{i} (.reg .b32 a, .reg .b32 b, .reg .b32 deep)"
            for i in range(len(self.kernel.functions))
        ]
        self.lines = [HEADER, *[h + ";" for h in heads]]
        declared = f"""  .reg .b32 %r<{REGISTERS}>; .reg .b32 %t<9>; .reg .b32 %c<9>; .reg .b32 %m<99>; .reg .b32 %fuel;
  .reg .pred %q; .reg .pred %p<9>; .reg .b64 %x<5>; .reg .b64 %w<3>; .reg .b32 %deep; .reg .b32 %lane;
  .local .align 4 .b8 own[{4 * LOCAL_WORDS}];"""
        clear = [f"  mov.u64 %x1, own; mov.u32 %t1, 0; {self.words('st.local.u32 [%x1+{}], %t1;', LOCAL_WORDS)}"]
        for head, body in zip(heads, self.kernel.functions, strict=True):
            self.lines += [head + " {", declared, *clear, "  mov.b32 %deep, deep; mov.u32 %lane, %laneid;"]
            self.lines += [f"  {'add.u32' if i % 2 else 'xor.b32'} %r{i}, a, {i * 77};" for i in range(REGISTERS // 2)]
            self.lines += [f"  xor.b32 %r{i}, b, {i * 1001};" for i in range(REGISTERS // 2, REGISTERS)]
            self.lines.append("  mov.b32 out, %r1;")
            self.write(body)
            self.lines += ["  mov.b32 out, %r0;", "  ret;", "}"]
        threads = self.kernel.threads
        self.lines += [
            ".visible .entry k(.param .u64 in, .param .u64 out) {",
            declared,
            *clear,
            f"  .shared .align 4 .b32 sums[{COUNTERS}]; .shared .align 4 .b32 cells[{threads}];",
            "  .reg .b32 %tid; .reg .b32 %id; .reg .b32 %cell; .reg .b64 %out;",
            "  mov.u32 %tid, %tid.x; mov.u32 %lane, %laneid; mov.u32 %id, %ctaid.x;",
            f"  mad.lo.u32 %id, %id, {threads}, %tid; shl.b32 %cell, %tid, 2; mov.u32 %t0, cells;",
            "  add.u32 %cell, %cell, %t0; mov.u32 %deep, 2;",
            f"  ld.param.u64 %x0, [in]; mad.wide.u32 %x0, %id, {4 * REGISTERS}, %x0;",
            f"  ld.param.u64 %out, [out]; mad.wide.u32 %out, %id, {4 * (REGISTERS + COUNTERS)}, %out;",
            "  setp.eq.u32 %p0, %tid, 0;",
            *[f"  @%p0 st.shared.u32 [sums+{4 * i}], {i};" for i in range(COUNTERS)],
            *[f"  ld.global.u32 %r{i}, [%x0+{4 * i}];" for i in range(REGISTERS)],
            "  bar.sync 0;",
            # All lanes that are there.
            "  setp.eq.u32 %q, 0, 0;",
            f"  mov.u32 %t0, {threads}; sub.u32 %t0, %t0, %tid; add.u32 %t0, %t0, %lane;",
            "  min.u32 %t0, %t0, 32; mov.u32 %t1, 1; shl.b32 %t1, %t1, %t0; sub.u32 %m0, %t1, 1;",
        ]
        self.write(self.kernel.body)
        self.lines += [f"  st.global.u32 [%out+{4 * i}], %r{i};" for i in range(REGISTERS)]
        self.lines.append("  bar.sync 0;")
        for i in range(COUNTERS):
            self.lines.append(f"  ld.shared.u32 %t0, [sums+{4 * i}];")
            self.lines.append(f"  st.global.u32 [%out+{4 * (REGISTERS + i)}], %t0;")
        return "\n".join([*self.lines, "  ret;", "}", ""])

    @staticmethod
    def words(line: str, count: int) -> str:
        return " ".join(line.format(4 * i) for i in range(count))

    def emit(self, *lines: str) -> None:
        self.lines += ["  " + line for line in lines]

    def write(self, nodes: list[Node]) -> None:
        for node in nodes:
            match node:
                case Op():
                    self.emit(*node.lines)
                case If():
                    self.write_if(node)
                case Loop():
                    self.write_loop(node)
                case Leave():
                    self.write_leave(node)
                case Switch():
                    self.write_switch(node)
                case Tangle():
                    self.write_tangle(node)
                case Call():
                    self.write_call(node)

    def write_if(self, node: If) -> None:
        other, end = self.label(), self.label()
        self.emit(*node.test)
        if node.masks:
            self.emit(f"vote.sync.ballot.b32 {node.masks[0]}, %q, {node.outer};")
            self.emit(f"xor.b32 {node.masks[1]}, {node.masks[0]}, {node.outer};")
        self.emit(f"@!%q bra {other};")
        self.write(node.then)
        if node.other:
            self.emit(f"bra {end};")
        self.lines.append(f"{other}:")
        self.write(node.other)
        self.lines.append(f"{end}:")

    def write_loop(self, node: Loop) -> None:
        head, again, end = self.label(), self.label(), self.label()
        count = f"%c{node.depth}"
        self.emit(*node.setup)
        if node.mask:
            self.emit(f"mov.b32 {node.mask}, {node.outer};")
        self.lines.append(f"{head}:")
        if node.tested_first:
            self.emit(f"setp.ne.u32 %q, {count}, 0;")
            if node.mask:
                self.emit(f"vote.sync.ballot.b32 {node.mask}, %q, {node.mask};")
            self.emit(f"@!%q bra {end};", f"sub.u32 {count}, {count}, 1;")
        self.loops[node.depth] = again, end
        self.write(node.body)
        self.lines.append(f"{again}:")
        if node.tested_first:
            self.emit(f"bra {head};")
        else:
            self.emit(f"setp.ne.u32 %q, {count}, 0;", f"sub.u32 {count}, {count}, 1;")
            if node.mask:
                self.emit(f"vote.sync.ballot.b32 {node.mask}, %q, {node.mask};")
            self.emit(f"@%q bra {head};")
        self.lines.append(f"{end}:")

    def write_leave(self, node: Leave) -> None:
        self.emit(*node.test)
        if node.mask:
            self.emit("not.pred %q, %q;", f"vote.sync.ballot.b32 {node.mask}, %q, {node.mask};", "not.pred %q, %q;")
        if node.depth < 0:
            self.emit(f"@%q {node.word};")
        elif node.depth in self.loops:
            self.emit(f"@%q bra {self.loops[node.depth][0 if node.again else 1]};")

    def write_switch(self, node: Switch) -> None:
        labels = [self.label() for _ in node.cases]
        table, end = self.label(), self.label()
        self.emit(f"{table}: .branchtargets {', '.join([*labels, end])};")
        self.emit(f"rem.u32 %t0, {node.index}, {len(labels) + 1};", f"brx.idx %t0, {table};")
        for label, case, falls in zip(labels, node.cases, node.falls, strict=True):
            self.lines.append(f"{label}:")
            self.write(case)
            if not falls:
                self.emit(f"bra {end};")
        self.lines.append(f"{end}:")

    def write_tangle(self, node: Tangle) -> None:
        labels = [self.label() for _ in node.blocks]
        end = self.label()
        self.emit(f"mov.u32 %fuel, {node.fuel};")
        for i, (label, block) in enumerate(zip(labels, node.blocks, strict=True)):
            self.lines.append(f"{label}:")
            self.emit("setp.eq.u32 %q, %fuel, 0;", f"@%q bra {end};", "sub.u32 %fuel, %fuel, 1;")
            self.write(block)
            kind, test, targets = node.ends[i]
            names = [labels[t] if t < len(labels) else end for t in targets]
            if kind == "brx":
                table = self.label()
                self.emit(f"{table}: .branchtargets {', '.join(names)};")
                self.emit(*test, f"rem.u32 %t0, %t0, {len(names)};", f"brx.idx %t0, {table};")
            elif kind == "bra":
                self.emit(*test, f"@%q bra {names[0]};")
        self.lines.append(f"{end}:")

    def write_call(self, node: Call) -> None:
        end = self.label()
        a, b = node.arguments
        self.emit("setp.eq.u32 %q, %deep, 0;", f"@%q bra {end};", f"sub.u32 %t1, %deep, {node.depth};")
        if node.indirect:
            kind = self.label()
            self.emit(f"{kind}: .callprototype (.reg .b32 _) _ (.reg .b32 _, .reg .b32 _, .reg .b32 _);")
            # Lanes call different functions.
            many = len(self.kernel.functions)
            self.emit(f"mov.u64 %x1, f{node.function};", f"mov.u64 %x2, f{(node.function + 1) % many};")
            self.emit(f"and.b32 %t0, %r{a}, 4;", "setp.eq.u32 %q, %t0, 0;", "selp.b64 %x1, %x1, %x2, %q;")
            self.emit(f"call (%r{node.result}), %x1, (%r{a}, %r{b}, %t1), {kind};")
        else:
            self.emit(f"call (%r{node.result}), f{node.function}, (%r{a}, %r{b}, %t1);")
        self.lines.append(f"{end}:")


@dataclass
class Place:
    """What may stand at a place of the program."""

    mask: str = ""  # register with the lanes that get here; empty: no exchange between lanes
    block: bool = False  # all living threads of the block get here
    whole: bool = False  # and all of them live: a barrier that counts threads waits for a warp that has ended for ever
    function: int = -1  # inside of which function
    loops: list[int] = field(default_factory=list)  # depths of loops that may be left from here
    depth: int = 0
    room: int = 3  # further nesting
    exits: bool = False
    calls: bool = True  # few enough, all in all, that a kernel ends soon


class Maker:
    """Random kernels, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.masks = 0
        self.functions = 0
        self.threads = 1

    def kernel(self) -> Kernel:
        r = self.random
        threads = self.threads = r.choice([1, 7, 31, 32, 32, 32, 33, 64, 96, 100])
        self.functions = r.choice([0, 0, 1, 2, 3])
        functions = [self.nodes(Place(function=i, room=2, exits=True), r.randint(2, 5)) for i in range(self.functions)]
        body = self.nodes(Place(mask="%m0", block=True, whole=True), r.randint(2, 6))
        if r.random() < 0.4:
            body.append(Leave(self.test(), -1, word=r.choice(["ret", "exit"]), mask="%m0"))
            body += self.nodes(Place(mask="%m0", block=True), r.randint(1, 4))
        if r.random() < 0.5:
            body += self.nodes(Place(block=True, exits=True), r.randint(1, 5))
        return Kernel(body, functions, threads, r.choice([1, 1, 2, 3]), self.seed)

    def register(self) -> str:
        return f"%r{self.random.randrange(REGISTERS)}"

    def value(self) -> str:
        return self.register() if self.random.random() < 0.7 else str(self.random.choice([0, 1, 2, 5, 31, 255, 65537]))

    def mask(self) -> str:
        self.masks += 1
        return f"%m{self.masks}"

    def test(self) -> list[str]:
        """Sets %q: to something that few or many lanes have."""
        r = self.random
        if r.random() < 0.3:
            return [f"setp.{r.choice(COMPARE)}.{r.choice(['u32', 's32'])} %q, {self.register()}, {self.value()};"]
        if r.random() < 0.3:
            return [f"setp.{r.choice(COMPARE)}.u32 %q, %lane, {r.randrange(33)};"]
        mask = r.choice([1, 2, 3, 4, 6, 8, 16, 7])
        source = r.choice([self.register(), self.register(), "%lane"])
        return [f"and.b32 %t0, {source}, {mask};", f"setp.{r.choice(['eq', 'ne'])}.u32 %q, %t0, 0;"]

    def nodes(self, place: Place, count: int) -> list[Node]:
        return [self.node(place) for _ in range(count)]

    def node(self, place: Place) -> Node:
        r = self.random
        kinds: list[tuple[int, Callable[[Place], Node]]] = [(8, self.op)]
        if place.room > 0:
            kinds += [(5, self.branch), (3, self.loop), (2, self.switch), (2, self.tangle)]
        if place.mask:
            kinds += [(6, self.exchange)]
        if place.block:
            kinds += [(2, self.barrier)]
        if place.loops and not place.mask:
            kinds += [(3, self.leave)]
        if place.exits and r.random() < 0.5:
            kinds += [(2, self.leave_all)]
        if self.functions and place.calls:
            kinds += [(2, self.call)]
        make = r.choices([k for _, k in kinds], [w for w, _ in kinds])[0]
        return make(place)

    def deeper(self, place: Place, **other: object) -> Place:
        p = copy.copy(place)
        p.loops = list(place.loops)
        p.room -= 1
        p.block = False
        if "loops" in other:
            p.calls = place.calls and place.function < 0 and place.depth == 0
        for name, value in other.items():
            setattr(p, name, value)
        return p

    def op(self, place: Place) -> Node:
        r = self.random
        d, a, b, c = self.register(), self.register(), self.value(), self.value()
        guard = r.choice(["", "", "@%q ", "@!%q "])
        test = self.test() if guard else []
        words = 4 * LOCAL_WORDS - 4
        choice = r.randrange(12)
        if choice < 6:
            lines = [f"{guard}{r.choice(TWO)} {d}, {a}, {b};"]
        elif choice == 6:
            lines = [f"{guard}mad.lo.u32 {d}, {a}, {b}, {c};"]
        elif choice == 7:
            lines = [f"mul.wide.u32 %w0, {a}, {b};", f"shr.u64 %w1, %w0, {r.randrange(40)};"]
            lines += [f"{guard}cvt.u32.u64 {d}, %w1;"]
        elif choice == 8:
            lines = [f"{guard}selp.b32 {d}, {a}, {b}, %q;"]
            test = self.test()
        elif choice == 9:
            lines = [f"and.b32 %t1, {a}, {words};", "cvt.u64.u32 %x1, %t1;", "mov.u64 %x2, own;"]
            lines += ["add.u64 %x1, %x1, %x2;", f"{guard}st.local.u32 [%x1], {d};"]
        elif choice == 10:
            lines = [f"and.b32 %t1, {a}, {words};", "cvt.u64.u32 %x1, %t1;", "mov.u64 %x2, own;"]
            lines += ["add.u64 %x1, %x1, %x2;", f"{guard}ld.local.u32 {d}, [%x1];"]
        elif place.function < 0:
            lines = [f"{guard}red.shared.add.u32 [sums+{4 * r.randrange(COUNTERS)}], {a};"]
        else:
            lines = [f"{guard}prmt.b32 {d}, {a}, {b}, {r.randrange(1 << 16)};"]
        return Op([*test, *lines])

    def branch(self, place: Place) -> Node:
        r = self.random
        if place.mask and self.masks < 90 and r.random() < 0.6:
            masks = self.mask(), self.mask()
            then = self.nodes(self.deeper(place, mask=masks[0]), r.randint(1, 3))
            other = self.nodes(self.deeper(place, mask=masks[1]), r.randint(0, 3))
            return If(self.test(), then, other, masks, place.mask)
        inner = self.deeper(place, mask="")
        return If(self.test(), self.nodes(inner, r.randint(1, 3)), self.nodes(inner, r.choice([0, 0, 1, 2])))

    def loop(self, place: Place) -> Node:
        r = self.random
        depth = place.depth
        rounds = [f"mov.u32 %c{depth}, {r.randint(1, 3)};"]
        if r.random() < 0.7:
            rounds = [f"and.b32 %c{depth}, {r.choice([self.register(), '%lane'])}, {r.choice([1, 3, 5, 7])};"]
        first = r.random() < 0.5
        if place.mask and self.masks < 90 and r.random() < 0.6:
            mask = self.mask()
            inner = self.deeper(place, mask=mask, depth=depth + 1, loops=[])
            return Loop(rounds, self.nodes(inner, r.randint(1, 4)), depth, first, mask, place.mask)
        inner = self.deeper(place, mask="", depth=depth + 1, loops=[*place.loops, depth] if not place.mask else [depth])
        return Loop(rounds, self.nodes(inner, r.randint(1, 4)), depth, first)

    def switch(self, place: Place) -> Node:
        r = self.random
        inner = self.deeper(place, mask="")
        cases = [self.nodes(inner, r.randint(1, 2)) for _ in range(r.randint(1, 5))]
        return Switch(r.choice([self.register(), "%lane"]), cases, [r.random() < 0.3 for _ in cases])

    def tangle(self, place: Place) -> Node:
        r = self.random
        inner = self.deeper(place, mask="", room=0, loops=[])
        many = r.randint(2, 6)
        ends: list[tuple[str, list[str], list[int]]] = []
        for _ in range(many):
            kind = r.choice(["bra", "bra", "brx", "next"])
            targets = [r.randrange(many + 1) for _ in range(1 if kind != "brx" else r.randint(1, 4))]
            test = [f"mov.u32 %t0, {self.register()};"] if kind == "brx" else self.test()
            ends.append((kind, test, targets))
        return Tangle([self.nodes(inner, r.randint(1, 2)) for _ in range(many)], ends, r.randint(3, 40))

    def leave(self, place: Place) -> Node:
        return Leave(self.test(), self.random.choice(place.loops), self.random.random() < 0.4)

    def leave_all(self, place: Place) -> Node:
        word = self.random.choice(["ret", "exit"]) if place.function < 0 else "ret"
        return Leave(self.test(), -1, word=word)

    def call(self, place: Place) -> Node:
        r = self.random
        # The depth of calls bounds recursion; functions call in loops, so it goes down fast.
        target = r.randrange(self.functions)
        arguments = r.randrange(REGISTERS), r.randrange(REGISTERS)
        return Call(target, r.randrange(REGISTERS), arguments, r.random() < 0.4, "1")

    def exchange(self, place: Place) -> Node:
        """Between the lanes of the place's mask."""
        r = self.random
        m, d, a = place.mask, self.register(), self.register()
        choice = r.randrange(9)
        if choice == 0:
            # From a lane that takes part, else from itself.
            move = r.choice(["xor.b32 %t1, %lane, {};", "add.u32 %t1, %lane, {};"]).format(r.randrange(32))
            lines = [move, "and.b32 %t1, %t1, 31;", f"shr.u32 %t2, {m}, %t1;", "and.b32 %t2, %t2, 1;"]
            lines += ["setp.ne.u32 %q, %t2, 0;", "selp.b32 %t1, %t1, %lane, %q;"]
            lines += [f"shfl.sync.idx.b32 {d}|%p1, {a}, %t1, 31, {m};", f"@%p1 add.u32 {d}, {d}, 1;"]
        elif choice == 1:
            lines = [f"bfind.u32 %t1, {m};", f"shfl.sync.idx.b32 {d}, {a}, %t1, 31, {m};"]
        elif choice == 2:
            lines = [*self.test(), f"vote.sync.{r.choice(['all', 'any', 'uni'])}.pred %p1, %q, {m};"]
            lines += [f"@%p1 add.u32 {d}, {d}, 3;"]
        elif choice == 3:
            lines = [*self.test(), f"vote.sync.ballot.b32 {d}, %q, {m};"]
        elif choice == 4:
            lines = [f"and.b32 %t1, {a}, {r.choice([1, 3, 7])};", f"match.any.sync.b32 {d}, %t1, {m};"]
        elif choice == 5:
            lines = [f"match.all.sync.b32 {d}|%p1, {a}, {m};", f"@%p1 xor.b32 {d}, {d}, 5;"]
        elif choice == 6:
            op = r.choice(["add.u32", "min.s32", "max.u32", "and.b32", "or.b32", "xor.b32"])
            lines = [f"redux.sync.{op} {d}, {a}, {m};"]
        elif choice == 7:
            # Under a guard, among those that pass it.
            lines = [*self.test(), f"vote.sync.ballot.b32 %t1, %q, {m};"]
            lines += [f"@%q redux.sync.{r.choice(['add.u32', 'xor.b32'])} {d}, {a}, %t1;"]
        else:
            lines = [f"bar.warp.sync {m};"]
        return Op(lines)

    def barrier(self, place: Place) -> Node:
        r = self.random
        d, a = self.register(), self.register()
        choice = r.randrange(5 if place.whole and self.threads >= 64 else 4)
        if choice == 4:  # of the first two warps alone
            second = r.choice(["sync", "arrive"])
            lines = ["setp.lt.u32 %q, %tid, 32;", f"@%q bar.{r.choice(['sync', 'arrive'])} 4, 64;"]
            lines += ["setp.ge.u32 %p1, %tid, 32;", "setp.lt.and.u32 %p1, %tid, 64, %p1;", f"@%p1 bar.{second} 4, 64;"]
            lines.append("bar.sync 0;")  # who only arrived must not come to the barrier again too early
        elif choice == 0:
            lines = ["bar.sync 0;", f"ld.shared.u32 {d}, [sums+{4 * r.randrange(COUNTERS)}];", "bar.sync 0;"]
        elif choice == 1:
            lines = [f"st.shared.u32 [%cell], {a};", "bar.sync 0;", f"add.u32 %t1, %tid, {r.randrange(1, 64)};"]
            lines += ["mov.u32 %t2, %ntid.x;", "rem.u32 %t1, %t1, %t2;"]
            lines += ["shl.b32 %t1, %t1, 2;", "mov.u32 %t2, cells;", "add.u32 %t1, %t1, %t2;"]
            lines += [f"ld.shared.u32 {d}, [%t1];", "bar.sync 0;"]
        elif choice == 2:
            lines = [*self.test(), f"bar.red.popc.u32 {d}, {r.randrange(1, 4)}, %q;"]
        else:
            lines = [*self.test(), f"bar.red.{r.choice(['and', 'or'])}.pred %p1, {r.randrange(4)}, %q;"]
            lines += [f"@%p1 add.u32 {d}, {d}, 7;"]
        return Op(lines)


def run(kernel: Kernel, one_lane: bool) -> bytes | str:
    """What the kernel leaves in memory, or the fault that ended it."""
    before = {name: os.environ.pop(name, None) for name in ("SOFTGPU_ONE_LANE", "SOFTGPU_STEP_LIMIT")}
    os.environ["SOFTGPU_ONE_LANE"] = "1" if one_lane else "0"
    os.environ["SOFTGPU_STEP_LIMIT"] = str(200_000_000)
    try:
        machine = vm.Machine(kernel.text())
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
    threads = kernel.threads * kernel.blocks
    rng = np.random.default_rng(kernel.seed)
    data = rng.integers(0, 1 << 32, (threads, REGISTERS), np.uint32)
    data[:, ::2] &= 15  # small ones, as counts and lengths are
    source = machine.buffer(data)
    out = machine.buffer(np.zeros((threads, REGISTERS + COUNTERS), np.uint32))
    try:
        machine.run("k", kernel.blocks, kernel.threads, source, out)
        return out.get().tobytes()
    except vm.PtxError as e:
        raise AssertionError(f"{e.text} in\n{kernel.text()}") from e
    except vm.Fault as e:
        return f"error {e.code}"
    finally:
        machine.close()


def differs(kernel: Kernel) -> bool:
    """A fault is a difference too: no kernel here has a reason for one."""
    together = run(kernel, False)
    return isinstance(together, str) or together != run(kernel, True)


def lists(nodes: list[Node]) -> Iterator[list[Node]]:
    """`nodes` and every list of nodes inside, the outermost first."""
    yield nodes
    for node in nodes:
        inside: list[list[Node]] = []
        match node:
            case If():
                inside = [node.then, node.other]
            case Loop():
                inside = [node.body]
            case Switch():
                inside = node.cases
            case Tangle():
                inside = node.blocks
        for inner in inside:
            yield from lists(inner)


def smaller(kernel: Kernel) -> Iterator[Kernel]:
    """Kernels that lack something, the boldest cuts first."""
    least = 64 if " 4, 64;" in kernel.text() else 1
    for threads, blocks in ((1, 1), (2, 1), (32, 1), (64, 1), (kernel.threads, 1)):
        if least <= threads and (threads, blocks) < (kernel.threads, kernel.blocks):
            other = copy.deepcopy(kernel)
            other.threads, other.blocks = threads, blocks
            yield other
    count = sum(1 for body in [kernel.body, *kernel.functions] for _ in lists(body))
    for which in range(count):
        for size in (99, 4, 2, 1):
            at = 0
            while True:
                other = copy.deepcopy(kernel)
                target = [part for body in [other.body, *other.functions] for part in lists(body)][which]
                if at >= len(target) or (size > 1 and len(target) < size and size != 99):
                    break
                if size == 99 and len(target) < 2:
                    break
                del target[at : at + size]
                at += size
                yield other
    for which in range(count):
        probe = [part for body in [kernel.body, *kernel.functions] for part in lists(body)][which]
        for at, node in enumerate(probe):
            if not isinstance(node, If | Loop) or getattr(node, "masks", None) or getattr(node, "mask", ""):
                continue
            other = copy.deepcopy(kernel)
            target = [part for body in [other.body, *other.functions] for part in lists(body)][which]
            found = target[at]
            assert isinstance(found, If | Loop)
            target[at : at + 1] = found.then + found.other if isinstance(found, If) else found.body
            yield other


def shrink(kernel: Kernel, fails: Callable[[Kernel], bool], seconds: float) -> Kernel:
    """The smallest kernel found that still fails."""
    end_s = time.monotonic() + seconds
    progress = True
    while progress and time.monotonic() < end_s:
        progress = False
        for other in smaller(kernel):
            if time.monotonic() > end_s:
                break
            if fails(other):
                kernel, progress = other, True
                break
    return kernel


def search(seed: int, seconds: float, most: int = 1 << 62) -> tuple[int, Kernel | None]:
    """How many kernels were tried, and the first that fails, shrunk."""
    end_s = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end_s and tried < most:
        kernel = Maker(seed + tried).kernel()
        tried += 1
        if differs(kernel):
            return tried, shrink(kernel, differs, 60.0)
    return tried, None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1, help="of the first kernel; the next has the next seed")
    parser.add_argument("--show", action="store_true", help="print the kernel of the seed and end")
    options = parser.parse_args()
    if options.show:
        print(Maker(options.seed).kernel().text())
        return 0
    tried, found = search(options.seed, options.seconds)
    if not found:
        print(f"{tried} kernels from seed {options.seed}: lanes together and lanes alone agree")
        return 0
    print(f"seed {found.seed}: {found.blocks} blocks of {found.threads} threads differ, shrunk to\n{found.text()}")
    for name, alone in (("together", False), ("alone", True)):
        result = run(found, alone)
        print(f"lanes {name}:", result if isinstance(result, str) else np.frombuffer(result, np.uint32))
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
