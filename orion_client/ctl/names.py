"""Finds things of the pool by what people call them, and offers those names to the shell."""

from __future__ import annotations

import difflib
from typing import Any

import typer

from orion_client import pool_client
from orion_client.ctl import kinds
from orion_client.ctl.kinds import Kind, Row
from orion_client.pool_client import PoolClient, PoolError

_COMPLETION_TIMEOUT_S = 0.7
_COMPLETIONS = 200


def matching(pool: PoolClient, kind: Kind, name: str, **query: Any) -> list[Row]:
    """What is called `name`: by its unique name, else all that share another one of its names. PoolError for none."""
    rows = pool.items(kind.plural, q=_search_word(kind, name), **query)
    for read in kind.names:
        found = [row for row in rows if str(read(row)) == name]
        if found:
            return found
    raise PoolError(f"no {kind.singular} is called {name!r}", _suggestion(pool, kind, name), code="not_found")


def one(pool: PoolClient, kind: Kind, name: str) -> Row:
    """The only thing of that name. PoolError where there are several."""
    found = matching(pool, kind, name)
    if len(found) > 1:
        raise PoolError(f"{len(found)} {kind.plural} are called {name!r}", "name one by its id: " + _few(kind, found))
    return found[0]


def _search_word(kind: Kind, name: str) -> str:
    # The API searches in a row's texts; numbers are none, nor is NODE/ORDINAL, but the node is.
    if kind in (kinds.QUEUE, kinds.EVENTS, kinds.AUDIT):
        return ""
    return name.rpartition("/")[0] or name if kind in (kinds.GPUS, kinds.VGPUS) else name


def _few(kind: Kind, rows: list[Row]) -> str:
    shown = ", ".join(kind.name(row) for row in rows[:5])
    return shown + (", ..." if len(rows) > 5 else "")


def _suggestion(pool: PoolClient, kind: Kind, name: str) -> str:
    rows = pool.items(kind.plural, most=2000)
    known = {str(read(row)) for row in rows for read in kind.names}
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {near[0]}?" if near else f"`orionctl get {kind.plural}` lists all"


def complete_kind(incomplete: str) -> list[str]:
    """Words that `get` knows."""
    return [kind.plural for kind in kinds.ALL if kind.plural.startswith(incomplete)]


def complete_described(incomplete: str) -> list[str]:
    """Words that `describe` knows."""
    return [word for word in ("node", "group", "gpu", "session") if word.startswith(incomplete)]


def complete_name(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the kind that was typed before."""
    kind = kinds.find(str(context.params.get("kind") or ""))
    return _names(context, kind, incomplete) if kind else []


def complete_node(context: typer.Context, incomplete: str) -> list[str]:
    return _names(context, kinds.NODES, incomplete)


def complete_group(context: typer.Context, incomplete: str) -> list[str]:
    return _names(context, kinds.GROUPS, incomplete)


def complete_session(context: typer.Context, incomplete: str) -> list[str]:
    return _names(context, kinds.SESSIONS, incomplete)


def complete_limits(context: typer.Context, incomplete: str) -> list[str]:
    return _names(context, kinds.LIMITS, incomplete)


def _names(context: typer.Context, kind: Kind, incomplete: str) -> list[str]:
    """Never longer than a moment, and never an error: somebody has pressed a key."""
    top = context.find_root().params
    try:
        if top.get("server"):
            return []
        access = pool_client.find(top.get("controller"), None, top.get("ca_file"))
        if access is None:
            return []
        rows = PoolClient(access, _COMPLETION_TIMEOUT_S).items(kind.plural, most=_COMPLETIONS, q=incomplete)
    except PoolError:
        return []
    # Groups are called by their name as often as by their id; addresses and UUIDs nobody wants to be offered.
    offered = kind.names if kind is kinds.GROUPS else kind.names[:1]
    words = {str(read(row)) for row in rows for read in offered if read(row)}
    return sorted(word for word in words if word.startswith(incomplete) and word.isprintable())
