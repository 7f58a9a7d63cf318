"""`orionctl set`, `drain`, `undrain`, `end`, `limits`, `reserve`: what changes the pool."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from orion_client.ctl import direct, kinds, names
from orion_client.ctl.context import chosen, fail, pool_of, refusals, say
from orion_client.ctl.direct import Json, RatioPolicy
from orion_client.ctl.kinds import Row
from orion_client.ctl.show import Output, OutputOption, show
from orion_client.pool_client import EXIT_REFUSED, EXIT_USAGE, PoolClient, PoolError, part
from orion_client.text import printable

SET_HELP = """Changes running vGPUs. It is in force when the command returns, and nothing restarts.

With a controller TARGET is a group (ORION_GROUP_ID) or its id, as `orionctl get groups` shows it. With one server it is
a group, a session, the process id of a client, or a vGPU's name as `orionctl list` shows it; a program has a vGPU on
each GPU that it uses: all are changed, or with --gpu only one.

\b
  orionctl set team-a --gmem 8192 --ratio 50
  orionctl --server gpu1 set team-a --gpu 1 --ratio 100
  orionctl --server gpu1 set vgpu-3 --gmem 2048 --shrink block

A quota below what is used is refused; with --shrink block it is set, and new allocations fail until enough is freed.
"""
DRAIN_HELP = """Lets no new program in; those that run may finish.

With a controller: a NODE of the pool; --wait returns when its last session has ended. With one server, without NODE:
returns when the last program has ended, and the server goes on refusing until it is stopped.

\b
  orionctl drain gpu1 --wait && ssh gpu1 systemctl restart orion-server && orionctl undrain gpu1
"""
END_HELP = """Ends the programs of a group, or one session, and gives the vGPUs back.

The programs get errors from every later call. On a terminal it asks first; elsewhere --yes is needed.

\b
  orionctl end team-a
  orionctl end --session s-12 --yes
"""
RESERVE_HELP = """Sets vGPUs aside for a group that will come; they are given back when nobody has come in time.

\b
  orionctl reserve team-a --vgpus 2 --gmem 8192 --ttl 600
"""
_WAIT_POLL_S = 0.5
_NAMES = {"help_option_names": ["-h", "--help"]}
limits_app = typer.Typer(
    help="What groups may have together. The group * is for all that have no limits of their own.",
    no_args_is_help=True, rich_markup_mode=None, context_settings=_NAMES,
)  # fmt: skip
All = Annotated[bool, typer.Option("--all", help="All allocations of that name, where there are several.")]


def set_limits(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Group, or with one server also a session, a process "
                                          "id or a vGPU.", autocompletion=names.complete_group)],
    gmem: Annotated[int | None, typer.Option(min=1, max=1 << 30, metavar="MIB", help="Memory quota in MiB.")] = None,
    ratio: Annotated[
        int | None, typer.Option(min=1, max=100, metavar="PERCENT", help="Share of the GPU's time, 1 to 100.")
    ] = None,
    policy: Annotated[RatioPolicy | None, typer.Option(help="Never above the ratio, or idle GPU time too.")] = None,
    shrink: Annotated[Literal["refuse", "block"], typer.Option(help="A quota below what is used.")] = "refuse",
    gpu: Annotated[int | None, typer.Option(min=0, max=63, help="One server: only the vGPU on this GPU.")] = None,
    every: All = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    if gmem is None and ratio is None and policy is None:
        fail("nothing to change: name --gmem, --ratio or --policy", EXIT_USAGE)
    options = chosen(context)
    pool = options.pool()
    if pool is None:
        direct.set_limits(options, target, gpu, gmem, ratio, policy, shrink, as_json)
        return
    if gpu is not None:
        fail("--gpu is for one server (--server HOST:PORT): a controller changes a group as a whole", EXIT_USAGE)
    body = {"gmem_mib": gmem, "ratio_percent": ratio, "policy": policy, "shrink": shrink}
    done: list[Row] = []
    with refusals():
        for group in _groups(pool, target, every):
            try:
                done.append(pool.send("PATCH", f"groups/{part(group['id'])}", body))
            except PoolError as error:
                if done:
                    before = ", ".join(row["id"] for row in done)
                    raise PoolError(f"{group['id']}: {error} (changed already: {before})", error.hint,
                                    error.exit_code) from None  # fmt: skip
                raise
    show(kinds.GROUPS, done, Output.json if as_json else Output.table)


def drain(
    context: typer.Context,
    node: Annotated[str | None, typer.Argument(metavar="[NODE]", autocompletion=names.complete_node)] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the last session has ended.")] = False,
    wait_timeout: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Exit code 1 when it takes longer; 0: "
                                                "no limit.")] = 0.0,
    as_json: Json = False,
) -> None:  # fmt: skip
    options = chosen(context)
    pool = options.pool()
    if pool is None:
        if node is not None:
            fail(
                f"{node!r} is a node of a pool, and no controller is named; one server: --server {node} drain",
                EXIT_USAGE,
            )
        direct.drain(options, as_json)
        return
    if node is None:
        fail("name the NODE, as `orionctl get nodes` shows it; one server: --server HOST:PORT", EXIT_USAGE)
    began_s = time.monotonic()
    with refusals():
        row = names.one(pool, kinds.NODES, node)
        row = pool.send("PATCH", f"nodes/{part(row['name'])}", {"draining": True})
        if wait:
            row = _wait_empty(pool, row, wait_timeout)
    left = row.get("sessions") or 0
    if as_json:
        print(json.dumps({"node": row, "drained": not left, "seconds": round(time.monotonic() - began_s, 3)}))
    else:
        print(
            printable(f"{row.get('name')}: draining, {left} session(s) left" if left else f"{row.get('name')}: drained")
        )


def undrain(
    context: typer.Context,
    node: Annotated[str, typer.Argument(metavar="NODE", autocompletion=names.complete_node)],
    as_json: Json = False,
) -> None:
    """Lets new programs in again."""
    pool = pool_of(context)
    with refusals():
        row = names.one(pool, kinds.NODES, node)
        row = pool.send("PATCH", f"nodes/{part(row['name'])}", {"draining": False})
    print(json.dumps({"node": row}) if as_json else printable(f"{row.get('name')}: {row.get('state')}"))


def forget(
    context: typer.Context,
    node: Annotated[str, typer.Argument(metavar="NODE", autocompletion=names.complete_node)],
) -> None:
    """Takes a server off the list that is lost and will not come back."""
    pool = pool_of(context)
    with refusals():
        row = names.one(pool, kinds.NODES, node)
        pool.send("DELETE", f"nodes/{part(row['name'])}")
    print(printable(f"{row.get('name')}: forgotten"))


def _wait_empty(pool: PoolClient, row: Row, timeout_s: float) -> Row:
    """The node as it is when its last session has ended. PoolError when that takes too long, or it has gone."""
    name, most = row["name"], max(1, row.get("sessions") or 0)
    deadline_s = time.monotonic() + timeout_s if timeout_s else None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("sessions ended"),
               TimeElapsedColumn())  # fmt: skip
    shows_bar = sys.stderr.isatty()
    with Progress(*columns, transient=True, disable=not shows_bar, console=_stderr_console()) as progress:
        task = progress.add_task(printable(f"draining {name}"), total=most)
        told = -1
        while True:
            left = int(row.get("sessions") or 0)
            most = max(most, left)
            progress.update(task, total=most, completed=most - left)
            if not left:
                return row
            if not shows_bar and left != told:
                say(printable(f"{name}: {left} session(s) left"))
            told = left
            if deadline_s is not None and time.monotonic() >= deadline_s:
                raise PoolError(f"{name} still has {left} session(s) after {timeout_s:g} s",
                                f"it goes on draining; `orionctl get sessions --node {name}` shows them")  # fmt: skip
            time.sleep(_WAIT_POLL_S)
            row = names.one(pool, kinds.NODES, name)


def _stderr_console() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def end(
    context: typer.Context,
    group: Annotated[str | None, typer.Argument(metavar="[GROUP]", autocompletion=names.complete_group)] = None,
    session: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this one.", autocompletion=names.complete_session)
    ] = None,
    every: All = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    if (group is None) == (session is None):
        fail("name a GROUP, or --session ID", EXIT_USAGE)
    pool = pool_of(context)
    with refusals():
        if session is not None:
            row = names.one(pool, kinds.SESSIONS, session)
            what = f"session {row['id']} ({row.get('program') or 'unknown'}, pid {row.get('pid')} on {row.get('node')})"
            paths = {f"sessions/{part(row['id'])}": what}
        else:
            paths = {
                f"groups/{part(row['id'])}": f"group {row['id']} ({row.get('group') or 'no name'}: {row.get('vgpus')} "
                f"vGPU(s), {row.get('sessions')} session(s))"
                for row in _groups(pool, group or "", every)
            }
    _confirm([f"end {what}" for what in paths.values()], yes)
    with refusals():
        for path, what in paths.items():
            pool.send("DELETE", path)
            print(printable(f"ended: {what}"))


def _confirm(lines: list[str], yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        fail("nobody is there to be asked: --yes does it without a question", EXIT_USAGE)
    for line in lines:
        say(printable(line))
    try:
        answer = input("Really? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        fail("nothing was done", EXIT_REFUSED)


def _groups(pool: PoolClient, target: str, every: bool) -> list[Row]:
    """The allocation of that id, or those of that name. PoolError for several, unless all are wanted."""
    if every:
        return names.matching(pool, kinds.GROUPS, target)
    try:
        return [names.one(pool, kinds.GROUPS, target)]
    except PoolError as error:
        if error.hint.startswith("name one"):
            raise PoolError(str(error), f"{error.hint}; or --all", error.exit_code, error.code) from None
        raise


def reserve(
    context: typer.Context,
    group: Annotated[str, typer.Argument(metavar="GROUP", help="ORION_GROUP_ID of who will come.")],
    vgpus: Annotated[int, typer.Option(min=1, max=64)] = 1,
    gmem: Annotated[int, typer.Option(min=0, max=1 << 30, metavar="MIB", help="Of each (0: the default).")] = 0,
    ratio: Annotated[int, typer.Option(min=0, max=100, metavar="PERCENT", help="Of each (0: the default).")] = 0,
    node: Annotated[str, typer.Option(help="Near this machine.", autocompletion=names.complete_node)] = "",
    cross_node: Annotated[bool, typer.Option(help="They may lie on several servers.")] = True,
    rule: Annotated[
        Literal["", "local-first", "binpack", "spread"], typer.Option(help="Where (empty: the pool's default).")
    ] = "",
    ttl: Annotated[float, typer.Option(min=1, max=86400, metavar="SECONDS", help="How long to wait.")] = 300.0,
    output: OutputOption = Output.table,
) -> None:
    pool = pool_of(context)
    body = {"group": group, "vgpus": vgpus, "gmem_mib": gmem, "ratio_percent": ratio, "node": node,
            "cross_node": cross_node, "rule": rule, "ttl_s": ttl}  # fmt: skip
    with refusals():
        row = pool.send("POST", "reservations", body)
    show(kinds.GROUPS, [row], output, single=True)


@limits_app.command("set", context_settings=_NAMES)
def limits_set(
    context: typer.Context,
    group: Annotated[str, typer.Argument(metavar="GROUP", autocompletion=names.complete_limits)],
    vgpus: Annotated[str | None, typer.Option(metavar="N|none", help="How many vGPUs together.")] = None,
    gmem: Annotated[str | None, typer.Option(metavar="MIB|none", help="How much memory together.")] = None,
    ratio: Annotated[str | None, typer.Option(metavar="PERCENT|none", help="How much of GPUs' time together.")] = None,
    output: OutputOption = Output.table,
) -> None:
    """Sets limits of a group; those that are not named stay. `none` takes one away."""
    if vgpus is None and gmem is None and ratio is None:
        fail("nothing to change: name --vgpus, --gmem or --ratio", EXIT_USAGE)
    named = {"vgpus": vgpus, "gmem_mib": gmem, "ratio_percent": ratio}
    wanted = {key: _limit(key, text) for key, text in named.items() if text is not None}
    pool = pool_of(context)
    with refusals():
        now = next((row for row in pool.items("limits") if row.get("group") == group), {})
        row = pool.send("PUT", f"limits/{part(group)}", {key: now.get(key) for key in named} | wanted)
    show(kinds.LIMITS, [row], output, single=True)


@limits_app.command("delete", context_settings=_NAMES)
def limits_delete(
    context: typer.Context,
    group: Annotated[str, typer.Argument(metavar="GROUP", autocompletion=names.complete_limits)],
) -> None:
    """Takes a group's limits away; those of * count then."""
    pool = pool_of(context)
    with refusals():
        pool.send("DELETE", f"limits/{part(group)}")
    print(printable(f"{group}: no limits of its own"))


def _limit(key: str, text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal() or len(text) > 15:
        option = key.partition("_")[0]
        fail(f"--{option} {text}: it is a number, or none", EXIT_USAGE)
    return int(text)
