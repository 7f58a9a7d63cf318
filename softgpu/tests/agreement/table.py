"""The table of instructions, softgpu/src/ptx/ops.def, read into (opcode, words) combinations."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

OPS = Path(__file__).resolve().parents[2] / "src" / "ptx" / "ops.def"
STRING = re.compile(r'"([^"]*)"|([A-Z][A-Z0-9_]*)')


@dataclass(frozen=True)
class Row:
    section: str
    opcode: str
    pattern: str
    builder: str

    def groups(self) -> list[tuple[list[str], bool, bool]]:
        """(words, optional, without effect) of each group, in the order in which they stand."""
        out = []
        for text in self.pattern.split():
            without_effect, text = text.startswith("~"), text.removeprefix("~")
            optional, text = text.endswith("?"), text.removesuffix("?")
            out.append((text.split("|"), optional, without_effect))
        return out

    def combinations(self) -> list[tuple[str, ...]]:
        """All sequences of words that have an effect; words without one stand only where one is needed."""
        choices: list[list[tuple[str, ...]]] = []
        for words, optional, without_effect in self.groups():
            if without_effect:
                choices.append([()] if optional else [(words[0],)])
            else:
                choices.append(([()] if optional else []) + [(w,) for w in words])
        return list(dict.fromkeys(tuple(itertools.chain(*c)) for c in itertools.product(*choices)))


def strings(text: str, defines: dict[str, str]) -> str:
    return "".join(defines[m.group(2)] if m.group(2) else m.group(1) for m in STRING.finditer(text))


def arguments(text: str) -> list[str]:
    """Splits at commas outside of strings and angle brackets."""
    out, depth, quoted, start = [], 0, False, 0
    for i, c in enumerate(text):
        if c == '"':
            quoted = not quoted
        elif not quoted and c in "<(":
            depth += 1
        elif not quoted and c in ">)":
            depth -= 1
        elif c == "," and not quoted and depth == 0:
            out.append(text[start:i])
            start = i + 1
    return [*out, text[start:]]


def read(path: Path = OPS) -> list[Row]:
    text = re.sub(r"//[^\n]*", "", path.read_text()).replace("\\\n", " ")
    defines: dict[str, str] = {}
    rows: list[Row] = []
    section = ""
    late = ""
    for statement in re.findall(r"#[^\n]*|SG_\w+\((?:[^()\"]|\"[^\"]*\")*\)", text):
        if statement.startswith("#ifdef SG_OPS_"):
            section = statement.split("SG_OPS_")[1].strip().lower()
        elif m := re.match(r"#define (SG_\w+)(\(?)(.*)", statement):
            if m.group(2) != "(":
                defines[m.group(1)] = strings(m.group(3), defines)
            late = m.group(1)
        elif statement.startswith("SG_OP("):
            a = arguments(statement[6:-1])
            rows.append(Row(section, strings(a[0], defines), strings(a[1], defines), a[2].strip()))
        elif statement.startswith("SG_ATOMIC("):
            # The second form of the macro has order and scope, which have no effect, behind the operation.
            a = arguments(statement[10:-1])
            pattern = f"{defines['SG_ATOM_ORDER']}{strings(a[1], defines)} ~L2::cache_hint? {strings(a[2], defines)}"
            rows.append(Row(section, strings(a[0], defines), pattern, a[3].strip()))
    assert late and len(rows) > 150, "ops.def is not as expected"
    return rows
