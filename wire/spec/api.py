"""The CUDA driver API as data: parser and model of `wire/spec/functions/*.txt`.

One entry for each base name (the key of cuGetProcAddress):

    cuMemAlloc reply express op=MEM_MAP charges=bytesize
      2000 cuMemAlloc(CUdeviceptr_v1 *dptr, unsigned int bytesize)
        ! why this ABI is deliberately not implemented
      3020 cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytesize)
      ...
      dptr: minted
      reason: why the whole function is deliberately not implemented

First line: base name, class, flags, `op=` the operations that carry it, resource effects. A line that starts with a
number is an ABI: the CUDA version at which cuGetProcAddress hands it out, its exported symbol, its prototype; a symbol
that ends in `_ptsz` or `_ptds` has no prototype: it is the per-thread default-stream variant of the ABI above it.

Parameters: a pointer to const is `in`, any other pointer is `out`, the rest are values. Lines `name: words` say what C
does not: `minted` (the client makes the handle), `local` (answered from client state), `in`, `inout`, `late` (data that
arrive before a later completion, never before the return), `bytes=EXPRESSION` or `count=EXPRESSION` (length).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from wire.spec.ops import OPS, Op

FOLDER = Path(__file__).resolve().parent / "functions"

CLASSES = {
    "local": "answered from client state",
    "one-way": "sent, not waited for",
    "reply": "needs the server's answer or waits for completion",
    "unsupported": "deliberately refused",
}
FUNCTION_FLAGS = {
    "express": "travels in the express ring",
    "drains": "would block inside the driver while kernels run: the engine parks it",
    "unsafe_in_capture": "ends or is refused by a capture in GLOBAL mode",
    "work": "admits GPU work",
    "waits": "may wait for work of the program to complete: a completion word, not a reply",
    "uninitialised": "may be called before cuInit",
}
DIRECTIONS = {"in", "out", "inout", "minted", "local", "late"}
HANDLES = {
    "CUcontext": "context", "CUstream": "stream", "CUevent": "event", "CUmodule": "module", "CUfunction": "function",
    "CUlibrary": "library", "CUkernel": "kernel", "CUdevice": "device", "CUdeviceptr": "device address",
    "CUarray": "array", "CUmipmappedArray": "array", "CUtexref": "texture", "CUsurfref": "surface",
    "CUlinkState": "linker",
    "CUmemoryPool": "pool", "CUgraph": "graph", "CUgraphNode": "graph node", "CUgraphExec": "graph exec",
    "CUmemGenericAllocationHandle": "memory handle", "CUtexObject": "texture", "CUsurfObject": "surface",
    "CUexternalMemory": "external memory", "CUexternalSemaphore": "external semaphore", "CUgreenCtx": "green context",
    "CUuserObject": "user object", "CUgraphicsResource": "graphics resource",
}  # fmt: skip
LEGACY_ADDRESS = "32-bit device addresses of CUDA before 3.2 cannot name memory of a 64-bit device"


class SpecError(ValueError):
    """The specification contradicts itself."""


@dataclass
class Parameter:
    c_type: str
    name: str
    direction: str
    handle: str = ""  # kind of handle, "" if none
    length: str = ""  # "bytes=..." or "count=..."


@dataclass
class Abi:
    version: int
    symbol: str
    prototype: str  # the parameters as C text
    per_thread: bool = False  # a _ptsz or _ptds variant
    base: str = ""  # of a per-thread variant: the symbol it stands for
    reason: str = ""
    parameters: list[Parameter] = field(default_factory=list)


@dataclass
class Function:
    name: str
    klass: str
    flags: frozenset[str]
    ops: tuple[str, ...]
    effects: dict[str, str]  # charges, frees
    area: str
    abis: list[Abi] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)  # parameter -> words
    reason: str = ""
    where: str = ""

    @property
    def newest(self) -> Abi:
        return [abi for abi in self.abis if not abi.per_thread][-1]

    def late_error(self) -> bool:
        """True where CUDA would report at once what Orion reports at a later call."""
        return self.klass == "one-way"


PARAMETER = re.compile(r"^(?P<type>.*?[\s*])(?P<name>[A-Za-z_]\w*)(?P<array>\[\w*\])?$")


def parse_parameters(text: str, notes: dict[str, str], where: str) -> list[Parameter]:
    if text.strip() == "void":
        return []
    parameters = []
    for item in text.split(","):
        match = PARAMETER.match(item.strip())
        if not match:
            raise SpecError(f"{where}: cannot read parameter '{item.strip()}'")
        c_type = re.sub(r"\s*\*", "*", match["type"].strip()) + ("*" if match["array"] else "")
        name = match["name"]
        words = notes.get(name, "").split()
        stated = [word for word in words if word in DIRECTIONS]
        lengths = [word for word in words if word.startswith(("bytes=", "count="))]
        unknown = [word for word in words if word not in stated and word not in lengths]
        if unknown or len(stated) > 1 or len(lengths) > 1:
            raise SpecError(f"{where}: parameter {name}: cannot read '{notes[name]}'")
        if stated:
            direction = stated[0]
        elif "*" not in c_type:
            direction = "in"
        else:
            direction = "in" if c_type.startswith("const ") and c_type.count("*") == 1 else "out"
        kind = re.sub(r"const |\*", "", c_type).strip()
        parameters.append(Parameter(c_type, name, direction, HANDLES.get(kind, ""), "".join(lengths)))
    return parameters


def _first_line(line: str, area: str, where: str) -> Function:
    name, klass, *words = line.split()
    if klass not in CLASSES:
        raise SpecError(f"{where}: {name}: unknown class {klass}")
    flags, ops, effects = set(), [], {}
    for word in words:
        key, _, value = word.partition("=")
        if word in FUNCTION_FLAGS:
            flags.add(word)
        elif key == "op" and value:
            ops = value.split(",")
        elif key in ("charges", "frees") and value:
            effects[key] = value
        else:
            raise SpecError(f"{where}: {name}: unknown word {word}")
    return Function(name, klass, frozenset(flags), tuple(ops), effects, area, where=where)


def parse(text: str, area: str) -> list[Function]:
    functions: list[Function] = []
    for number, raw in enumerate(text.splitlines(), 1):
        where = f"{area}:{number}"
        line = raw.split("#", 1)[0].rstrip()
        if not line:
            continue
        if not line.startswith(" "):
            functions.append(_first_line(line, area, where))
            continue
        if not functions:
            raise SpecError(f"{where}: no function above")
        function = functions[-1]
        line = line.strip()
        if match := re.match(r"^(\d+) (cu\w+)\s*(?:\((.*)\))?$", line):
            version, symbol, prototype = int(match[1]), match[2], match[3]
            per_thread = symbol.endswith(("_ptsz", "_ptds"))
            if per_thread != (prototype is None):
                raise SpecError(f"{where}: a prototype belongs to every ABI but per-thread variants")
            if per_thread:
                base = symbol[:-5]
                above = next((abi for abi in function.abis if abi.symbol == base), None)
                if above is None:
                    raise SpecError(f"{where}: {symbol} has no {base} above it")
                prototype = above.prototype
                function.abis.append(Abi(version, symbol, prototype, True, base))
            else:
                function.abis.append(Abi(version, symbol, re.sub(r"\s+", " ", prototype.strip())))
        elif line.startswith("! "):
            function.abis[-1].reason = line[2:]
        elif line.startswith("reason: "):
            function.reason = line[8:]
        elif match := re.match(r"^(\w+): (.+)$", line):
            function.notes[match[1]] = match[2]
        else:
            raise SpecError(f"{where}: cannot read '{line}'")
    for function in functions:
        for abi in function.abis:
            abi.parameters = parse_parameters(abi.prototype, function.notes, f"{function.where}: {abi.symbol}")
            if "CUdeviceptr_v1" in abi.prototype and not abi.reason:
                abi.reason = LEGACY_ADDRESS
    return functions


def check(functions: list[Function]) -> None:
    """Contradictions in the spec are generator errors, never runtime surprises."""
    ops = {op.name: op for op in OPS}
    seen: dict[str, str] = {}
    names: set[str] = set()
    for function in functions:
        where = f"{function.where}: {function.name}"
        if function.name in names:
            raise SpecError(f"{where}: described twice")
        names.add(function.name)
        if not any(not abi.per_thread for abi in function.abis):
            raise SpecError(f"{where}: no ABI")
        known = {parameter.name for abi in function.abis for parameter in abi.parameters}
        if stray := set(function.notes) - known:
            raise SpecError(f"{where}: notes on unknown parameters {sorted(stray)}")
        versions = [abi.version for abi in function.abis if not abi.per_thread]
        if versions != sorted(set(versions)):
            raise SpecError(f"{where}: ABI versions must grow")
        for abi in function.abis:
            if abi.symbol in seen:
                raise SpecError(f"{where}: symbol {abi.symbol} also belongs to {seen[abi.symbol]}")
            seen[abi.symbol] = function.name
        if function.klass == "unsupported" and not function.reason:
            raise SpecError(f"{where}: unsupported without a reason")
        if function.klass in ("local", "unsupported") and (function.ops or function.effects):
            raise SpecError(f"{where}: class {function.klass} neither travels nor has effects")
        if unknown := set(function.ops) - ops.keys():
            raise SpecError(f"{where}: unknown operations {sorted(unknown)}")
        _check_travelling(function, where, [ops[name] for name in function.ops])


def _check_travelling(function: Function, where: str, ops: list[Op]) -> None:
    flags = {flag for op in ops for flag in op.flags}
    if function.klass == "one-way":
        outputs = [p for p in function.newest.parameters if p.direction in ("out", "inout")]
        if outputs:
            raise SpecError(f"{where}: asynchronous, but its outputs {[p.name for p in outputs]} are not client-minted")
        if ops and all("reply" in op.flags for op in ops):
            raise SpecError(f"{where}: one-way, but every operation that carries it waits for a reply")
    if function.klass == "reply" and ops and "reply" not in flags and "waits" not in function.flags:
        raise SpecError(f"{where}: reply, but no operation that carries it has one")
    for flag in ("drains", "work"):
        if ops and (flag in flags) != (flag in function.flags):
            raise SpecError(f"{where}: flag {flag} disagrees with its operations {list(function.ops)}")
    if function.ops:
        for parameter in function.newest.parameters:
            if parameter.c_type in ("void*", "const void*") and parameter.direction != "local" and not parameter.length:
                raise SpecError(f"{where}: {parameter.name} travels and has no length")


@cache
def load() -> tuple[Function, ...]:
    functions: list[Function] = []
    for path in sorted(FOLDER.glob("*.txt")):
        functions += parse(path.read_text(), path.stem)
    check(functions)
    return tuple(functions)
