"""Writes src/models.ts, the shapes of the API as TypeScript, from orion_controller.api.models.

`python -m orion_controller.portal.gen_types`; with --check it only says whether the file is up to date.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from orion_controller.api import models

TARGET = Path(__file__).parent / "src" / "models.ts"
_PLAIN = {str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def _type(hint: Any) -> str:
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " | ".join(f'"{value}"' for value in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(_type(part) for part in arguments)
    if origin is list:
        inner = _type(arguments[0])
        return f"({inner})[]" if "|" in inner else f"{inner}[]"
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint.__name__
    raise TypeError(f"no TypeScript for {hint!r}: teach gen_types.py")


def generate() -> str:
    lines = ["// Generated from orion_controller/api/models.py by gen_types.py; do not edit."]
    for name, struct in vars(models).items():
        if not (
            isinstance(struct, type) and issubclass(struct, msgspec.Struct) and struct.__module__ == models.__name__
        ):
            continue
        hints = get_type_hints(struct, include_extras=True)
        # In what is sent, a field with a default may be left out; what is received is complete.
        optional = struct.__struct_config__.forbid_unknown_fields
        lines += ["", f"export interface {name} {{"]
        for field in msgspec.structs.fields(struct):
            mark = "?" if optional and not field.required else ""
            lines.append(f"  {field.encode_name}{mark}: {_type(hints[field.name])};")
        lines.append("}")
    return "\n".join(lines) + "\n"


def main() -> int:
    if "--check" in sys.argv[1:]:
        stale = not TARGET.exists() or TARGET.read_text() != generate()
        if stale:
            print("src/models.ts is stale: run python -m orion_controller.portal.gen_types", file=sys.stderr)
        return int(stale)
    TARGET.write_text(generate())
    return 0


if __name__ == "__main__":
    sys.exit(main())
