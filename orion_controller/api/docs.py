"""Writes docs/api.md from the OpenAPI document: `python -m orion_controller.api.docs [--check]`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from orion_controller.api import openapi
from orion_controller.api.app import all_routes

PATH = Path(__file__).resolve().parents[2] / "docs" / "api.md"
_HEAD = """# REST API of orion-controller

<!-- Made by `python -m orion_controller.api.docs`: do not edit. -->

{description} The same as JSON: `GET /openapi.json`.

```sh
curl -s -H 'Content-Type: application/json' -d '{{"user":"admin","password":"..."}}' http://HOST:PORT/api/v1/login
curl -s -H "Authorization: Bearer $TOKEN" 'http://HOST:PORT/api/v1/groups?state=active&sort=-used_mib&limit=10'
curl -s -X PATCH -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \\
  -d '{{"ratio_percent":50}}' http://HOST:PORT/api/v1/groups/GROUP_ID
```
"""


def text() -> str:
    """The page."""
    document = openapi.document(all_routes())
    lines = [_HEAD.format(description=document["info"]["description"])]
    for tag in document["tags"]:
        lines += [f"## {tag['name'].capitalize()}\n", f"{tag['description']}\n"]
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if tag["name"] in operation["tags"]:
                    lines += _operation(method.upper(), path, operation)
    lines.append("## Shapes\n")
    lines.append("A field with a default may be left out of a request.\n")
    for name, schema in document["components"]["schemas"].items():
        lines += _shape(name, schema)
    return "\n".join(lines).rstrip() + "\n"


def _operation(method: str, path: str, operation: dict[str, Any]) -> list[str]:
    lines = [f"### {method} {path}\n", f"{operation['summary']}. {operation['description']}\n"]
    parameters = operation.get("parameters", [])
    if parameters:
        lines += ["| parameter | in | type | meaning |", "|---|---|---|---|"]
        for parameter in parameters:
            required = ", required" if parameter["required"] and parameter["in"] == "query" else ""
            kind = _type(parameter["schema"], short=parameter["name"] == "sort")
            meaning = parameter.get("description", "")
            lines.append(f"| `{parameter['name']}` | {parameter['in']}{required} | {kind} | {meaning} |")
        lines.append("")
    if "requestBody" in operation:
        lines.append(f"Body: {_content(operation['requestBody'])}\n")
    answers, refusals = [], []
    for status, response in sorted(operation["responses"].items()):
        if status.startswith("2"):
            answers.append(f"{status} {_content(response)}".strip())
        else:
            refusals.append(status)
    lines.append(f"Answers: {', '.join(answers)}. Refusals: {', '.join(refusals)}.\n")
    return lines


def _content(message: dict[str, Any]) -> str:
    for media, content in message.get("content", {}).items():
        kind = _type(content["schema"])
        return kind if media == "application/json" else f"{media}"
    return "without content"


def _shape(name: str, schema: dict[str, Any]) -> list[str]:
    lines = [f"### {name}\n"]
    if schema.get("description"):
        lines.append(" ".join(schema["description"].split()) + "\n")
    properties = schema.get("properties", {})
    if properties:
        lines += ["| field | type | default |", "|---|---|---|"]
        required = set(schema.get("required", ()))
        for field, kind in properties.items():
            default = "" if field in required or "default" not in kind else f"`{_literal(kind['default'])}`"
            lines.append(f"| `{field}` | {_type(kind)} | {default} |")
        lines.append("")
    return lines


def _literal(value: Any) -> str:
    if value == []:
        return "[]"
    return {None: "null", True: "true", False: "false", "": '""'}.get(value, str(value))


def _type(schema: dict[str, Any], short: bool = False) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        values = [str(value) for value in schema["enum"] if value != ""]
        if short:
            return "a field of what is listed, or -FIELD"
        return ", ".join(f"`{value}`" for value in values)
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    bounds = [
        f"{word} {schema[key]}"
        for key, word in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("minLength", "length ≥"),
                          ("maxLength", "length ≤"))
        if key in schema
    ]  # fmt: skip
    return " ".join([kind, *bounds]) if bounds else str(kind)


def main() -> int:
    """0: done, or (--check) the page is up to date; 1: it is not."""
    if "--check" in sys.argv[1:]:
        if PATH.exists() and PATH.read_text(encoding="utf-8") == text():
            return 0
        print(f"{PATH} is not up to date: run `python -m orion_controller.api.docs`", file=sys.stderr)
        return 1
    PATH.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
