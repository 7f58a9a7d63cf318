"""The wire as data, and when two of them fit: `python -m wire.freeze` writes `wire/frozen/MAJOR.MINOR/`.

A release's copy is written once and never changed. Inside a major version operations keep their numbers and fields (the
engine refuses one of another size), replies are only appended to, constants of the shared layout stay, control messages
gain only fields with defaults. A minor adds operations, which an end sends only to a peer whose minor has them.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

from wire.gen_version import version
from wire.spec.ops import OPS, SIZES

FOLDER = Path(__file__).resolve().parent / "frozen"
HEADER = Path(__file__).resolve().parent / "include" / "orion_wire.h"
OP_HEADER_BYTES = 32

Wire = dict[str, Any]


def _layout(fields: list[tuple[str, str]], start: int) -> list[dict[str, Any]]:
    rows, offset = [], start
    for name, kind in fields:
        rows.append({"name": name, "type": kind, "offset": offset, "bytes": SIZES[kind]})
        offset += SIZES[kind]
    return rows


def operations() -> Wire:
    out: Wire = {}
    for op in OPS:
        reply = [(name, kind) for name, _, kind in (item.partition(":") for item in op.reply.split())]
        out[str(op.code)] = {
            "name": op.name,
            "flags": sorted(op.flags),
            "fields": _layout(list(op.fields), OP_HEADER_BYTES),
            "reply": _layout(reply, 0),
            "tail": bool(op.tail),
        }
    return out


def constants() -> Wire:
    """Macros and frame types of orion_wire.h: text, as written there."""
    text = re.sub(r"\s*//.*", "", HEADER.read_text())
    text = re.sub(r"\\\n\s*", "", text)
    macros = dict(re.findall(r"^#define (ORION_\w+(?:\([^)]*\))?) (.+?)$", text, re.MULTILINE))
    frames = dict(re.findall(r"^\s+(ORION_FRAME_\w+) = (\d+),", text, re.MULTILINE))
    skipped = {"ORION_WIRE_H", "ORION_WIRE_MAJOR", "ORION_WIRE_MINOR"}
    return {name: value.strip() for name, value in {**macros, **frames}.items() if name not in skipped}


def control_messages() -> Wire:
    """Message -> field -> [type, required], nested structures included."""
    import msgspec

    from wire import control

    out: Wire = {}

    def visit(struct: Any) -> None:
        if struct.__name__ in out:
            return
        hints = get_type_hints(struct)
        out[struct.__name__] = {
            field.encode_name: [_plain(hints[field.name]), field.required] for field in msgspec.structs.fields(struct)
        }
        for hint in hints.values():
            for inner in [hint, *get_args(hint)]:
                if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
                    visit(inner)

    for union in (control.Request, control.Answer):
        for struct in get_args(union):
            visit(struct)
            out[struct.__name__]["type"] = [struct.__struct_config__.tag, True]
    return out


def _plain(hint: Any) -> str:
    return getattr(hint, "__name__", None) if not get_args(hint) else str(hint).replace("typing.", "")  # type: ignore[return-value]


def current() -> Wire:
    return {"operations": operations(), "constants": constants(), "control": control_messages()}


def incompatibilities(old: Wire, new: Wire) -> list[str]:
    """Why an end that speaks `old` and one that speaks `new`, a later minor of the same major, would not agree."""
    found = []
    for code, before in old["operations"].items():
        after = new["operations"].get(code)
        if after is None:
            found.append(f"operation {code} ({before['name']}) is gone")
            continue
        if after["name"] != before["name"]:
            found.append(f"operation {code} was {before['name']} and is {after['name']}")
        if after["tail"] != before["tail"]:
            found.append(f"operation {before['name']}: its tail came or went")
        if ("reply" in after["flags"]) != ("reply" in before["flags"]):
            found.append(f"operation {before['name']}: whether it answers changed")
        if after["fields"] != before["fields"]:
            found.append(f"operation {before['name']}: its fields changed; add an operation instead")
        if after["reply"][: len(before["reply"])] != before["reply"]:
            found.append(f"operation {before['name']}: its reply changed; it may only be appended to")
    for name, value in old["constants"].items():
        if new["constants"].get(name) != value:
            found.append(f"{name} was {value} and is {new['constants'].get(name)}")
    for message, before in old["control"].items():
        after = new["control"].get(message)
        if after is None:
            found.append(f"control message {message} is gone")
            continue
        for field, (kind, _) in before.items():
            if after.get(field, [None])[0] != kind:
                found.append(f"control message {message}: field {field} changed or is gone")
        for field, (_, required) in after.items():
            if required and field not in before:
                found.append(f"control message {message}: new field {field} must have a default")
    return found


def frozen() -> dict[tuple[int, int], Wire]:
    out = {}
    for path in sorted(FOLDER.glob("*/wire.json")):
        major, minor = path.parent.name.split(".")
        out[int(major), int(minor)] = json.loads(path.read_text())
    return out


def main() -> int:
    major, minor = version()
    path = FOLDER / f"{major}.{minor}" / "wire.json"
    if path.exists():
        print(f"{path} exists: raise ORION_WIRE_MINOR for the next release")
        return 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(current(), indent=1, sort_keys=True) + "\n")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
