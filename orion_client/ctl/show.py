"""Things of the pool as tables for people, and as JSON, YAML or names for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from orion_client.ctl.context import say
from orion_client.ctl.kinds import Column, Kind, Row
from orion_client.text import aligned, printable, wants_colour

_TIMES = ("since_s", "expires_s", "last_heartbeat_s", "at_s")


class Output(StrEnum):
    """How an answer is written."""

    table = "table"
    wide = "wide"
    json = "json"
    yaml = "yaml"
    name = "name"


OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="json and yaml have the REST API's own fields, which stay as they are.")
]
NoHeaders = Annotated[bool, typer.Option("--no-headers", help="Tables without their first line.")]


def show(kind: Kind, rows: list[Row], output: Output, no_headers: bool = False, single: bool = False) -> None:
    """Writes rows to stdout. `single`: one thing was asked for by name: JSON and YAML are that thing, no list."""
    if output in (Output.json, Output.yaml):
        write_data(rows[0] if single and len(rows) == 1 else {"items": rows, "total": len(rows)}, output)
    elif output is Output.name:
        for row in rows:
            print(printable(f"{kind.singular}/{kind.name(row)}"))
    elif rows:
        for line in table(kind, rows, output is Output.wide, not no_headers, wants_colour()):
            print(line)
    else:
        say(f"no {kind.plural}" if kind.plural != "queue" else "nobody waits")


def table(kind: Kind, rows: list[Row], wide: bool, headers: bool, colour: bool) -> list[str]:
    """Lines for people."""
    columns: Sequence[Column] = [column for column in kind.columns if wide or not column.wide]
    cells = [[column.title for column in columns]] if headers else []
    colours = [["bold" for _ in columns]] if headers else []
    for row in rows:
        cells.append([column.text(row) for column in columns])
        colours.append([column.colour(row) for column in columns])
    return aligned(cells, [column.right for column in columns], colours if colour else None)


def write_data(value: Any, output: Output) -> None:
    """For programs."""
    if output is Output.yaml:
        import yaml

        yaml.safe_dump(value, sys.stdout, sort_keys=False, allow_unicode=True)
    else:
        print(json.dumps(value, indent=2))


def describe(title: str, row: Row, leave_out: Sequence[str] = ()) -> None:
    """Every field of one thing, a line each."""
    print(printable(title))
    names = [name for name in row if name not in leave_out]
    width = max((len(name) for name in names), default=0)
    for name in names:
        value = row[name]
        if isinstance(value, list):
            text = ", ".join(map(str, value))
        elif name in _TIMES and value:
            text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
        else:
            text = "-" if value in (None, "") else str(value)
        print(f"  {name + ':':<{width + 1}}  {printable(text)}")


def section(title: str, kind: Kind, rows: list[Row]) -> None:
    """What belongs to a thing that is described."""
    print(f"{title}:" if rows else f"{title}: none")
    for line in table(kind, rows, wide=False, headers=True, colour=wants_colour()) if rows else []:
        print(f"  {line}")
