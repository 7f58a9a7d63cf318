"""`orionctl get`, `describe` and `events`: what there is in the pool."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from orion_client.ctl import kinds, names
from orion_client.ctl.context import fail, pool_of, refusals, say, sentence
from orion_client.ctl.kinds import Kind, Row
from orion_client.ctl.show import NoHeaders, Output, OutputOption, section, show, table, write_data
from orion_client.ctl.show import describe as show_fields
from orion_client.pool_client import (
    EXIT_NOT_ALLOWED,
    EXIT_REFUSED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    MAX_ITEMS,
    PoolClient,
    PoolError,
)
from orion_client.text import wants_colour

GET_HELP = """Shows what there is in the pool: nodes, gpus, vgpus, groups, sessions, queue, limits, events or audit.

\b
  orionctl get nodes
  orionctl get groups --state active --sort -used_mib
  orionctl get gpu gpu1/0 -o json
  orionctl get sessions --node gpu1 --no-headers -o name

NAME is what the first column shows, or a group's name (ORION_GROUP_ID). Exit code 1 when nothing is called so.
"""
_FOLLOW_S = 1.0
_RELATED = 1000


def get(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="KIND", autocompletion=names.complete_kind)],
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", autocompletion=names.complete_name)] = None,
    output: OutputOption = Output.table,
    no_headers: NoHeaders = False,
    node: Annotated[str, typer.Option(help="Only on this node.", autocompletion=names.complete_node)] = "",
    group: Annotated[str, typer.Option(help="Only of this group.", autocompletion=names.complete_group)] = "",
    state: Annotated[str, typer.Option(help="Only in this state.")] = "",
    search: Annotated[str, typer.Option("--search", "-q", metavar="TEXT", help="Only with this text in it.")] = "",
    sort: Annotated[str, typer.Option(metavar="FIELD", help="By a field of the JSON; -FIELD: the largest first.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=MAX_ITEMS, help="At most so many.")] = MAX_ITEMS,
) -> None:
    wanted = kinds.find(kind)
    if wanted is None:
        fail(f"{kind!r} is none of {', '.join(k.plural for k in kinds.ALL)}", EXIT_USAGE)
    pool = pool_of(context)
    query: dict[str, Any] = {"node": node, "group": group, "state": state, "sort": sort}
    with refusals():
        if name is not None:
            rows = names.matching(pool, wanted, name, **query)
        elif wanted in (kinds.EVENTS, kinds.AUDIT) and not sort:
            # The newest ones, in the order in which one reads a log.
            rows = pool.items(wanted.plural, most=limit, q=search, **query | {"sort": "-id"})[::-1]
        else:
            rows = pool.items(wanted.plural, most=limit, q=search, **query)
    show(wanted, rows, output, no_headers, single=name is not None)


def describe(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="KIND", autocompletion=names.complete_described)],
    name: Annotated[str, typer.Argument(metavar="NAME", autocompletion=names.complete_name)],
    output: OutputOption = Output.table,
) -> None:
    """Shows all that is known of a node, a group, a gpu or a session, and what belongs to it."""
    wanted = kinds.find(kind)
    if wanted not in (kinds.NODES, kinds.GROUPS, kinds.GPUS, kinds.SESSIONS):
        fail(f"{kind!r} cannot be described: node, group, gpu or session can", EXIT_USAGE)
    pool = pool_of(context)
    with refusals():
        row = names.one(pool, wanted, name)
        related = _related(pool, wanted, row)
    if output in (Output.json, Output.yaml):
        write_data({wanted.singular: row} | {k.plural: rows for k, rows in related}, output)
        return
    show_fields(f"{wanted.singular} {wanted.name(row)}", row)
    for other, rows in related:
        section(other.plural, other, rows)


def _related(pool: PoolClient, kind: Kind, row: Row) -> list[tuple[Kind, list[Row]]]:
    """What belongs to a thing, and what has happened to it lately."""

    def of(other: Kind, **query: Any) -> tuple[Kind, list[Row]]:
        return other, pool.items(other.plural, most=_RELATED, **query)

    if kind is kinds.NODES:
        found = [of(k, node=row["name"]) for k in (kinds.GPUS, kinds.VGPUS, kinds.SESSIONS)]
    elif kind is kinds.GPUS:
        vgpus = of(kinds.VGPUS, node=row["node"])[1]
        found = [(kinds.VGPUS, [v for v in vgpus if v.get("ordinal") == row["ordinal"]])]
    elif kind is kinds.GROUPS:
        found = [of(k, group=row["id"]) for k in (kinds.VGPUS, kinds.SESSIONS)]
    else:
        found = [(kinds.GROUPS, [g for g in of(kinds.GROUPS, q=row["group"])[1] if g.get("id") == row["group"]])]
    if kind in (kinds.NODES, kinds.GROUPS):
        recent = pool.get("events", limit=200, q=kind.name(row)).get("items", [])
        found.append((kinds.EVENTS, [e for e in recent if e.get("subject") == kind.name(row)][-10:]))
    return found


def events(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they happen, until Ctrl-C.")] = False,
    audit: Annotated[bool, typer.Option(help="Only what somebody did.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many of the newest first.")] = 50,
    output: OutputOption = Output.table,
    no_headers: NoHeaders = False,
) -> None:
    """Shows what has happened, the newest last. With --follow and -o json: one JSON object a line."""
    pool = pool_of(context)
    kind = kinds.AUDIT if audit else kinds.EVENTS
    with refusals():
        rows = _events(pool, kind, 0, limit)
    if not follow:
        show(kind, rows, output, no_headers)
        return
    last, unreachable = 0, False
    try:
        while True:
            last = max([last, *(int(row.get("id") or 0) for row in rows)])
            _print_events(kind, rows, output, not no_headers)
            no_headers = no_headers or bool(rows)
            time.sleep(_FOLLOW_S)
            try:
                rows, unreachable = _events(pool, kind, last, 1000), False
            except PoolError as error:
                if error.exit_code == EXIT_NOT_ALLOWED:
                    fail(sentence(error), error.exit_code)
                if not unreachable:
                    say(f"orionctl: {sentence(error)}; trying again")
                rows, unreachable = [], True
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_UNREACHABLE if unreachable else 0) from None


def _events(pool: PoolClient, kind: Kind, after: int, limit: int) -> list[Row]:
    answer = pool.get(kind.plural, after=after or None, limit=limit)
    rows = answer.get("items") if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise PoolError("the controller's answer is no list of events", exit_code=EXIT_REFUSED)
    return rows


def _print_events(kind: Kind, rows: list[Row], output: Output, headers: bool) -> None:
    if not rows:
        return
    if output is Output.json:
        for row in rows:
            print(json.dumps(row), flush=True)
    elif output in (Output.yaml, Output.name):
        show(kind, rows, output)
    else:
        print("\n".join(table(kind, rows, output is Output.wide, headers, wants_colour())), flush=True)
