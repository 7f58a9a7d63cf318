"""`orionctl top`: who uses what, live."""

from __future__ import annotations

import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from orion_client.ctl import kinds
from orion_client.ctl.context import pool_of, refusals, sentence
from orion_client.ctl.kinds import Row
from orion_client.ctl.show import table
from orion_client.pool_client import PoolClient, PoolError
from orion_client.text import age, wants_colour

HELP = """Shows the pool's use, its busiest groups and its GPUs, and goes on until q or Ctrl-C.

Into a pipe or a file, and with --once: one look.
"""
_GROUPS, _GPUS = 200, 200


def top(
    context: typer.Context,
    interval: Annotated[float, typer.Option("--interval", "-n", min=0.2, metavar="SECONDS")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="One look, also on a terminal.")] = False,
) -> None:
    pool = pool_of(context)
    with refusals():
        seen = _look(pool)
    if once or not sys.stdout.isatty() or not sys.stdin.isatty():
        print("\n".join(_lines(*seen, wants_colour())))
        return
    console = Console()
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        note = ""
        while True:
            lines = _lines(*seen, wants_colour())[: max(1, console.height - 2)]
            text = Text.from_ansi("\n".join([*lines, "", note or "q quits"]), no_wrap=True, overflow="ellipsis")
            live.update(text, refresh=True)
            if _quits_within(interval):
                return
            try:
                seen, note = _look(pool), ""
            except PoolError as error:
                note = sentence(error)


def _look(pool: PoolClient) -> tuple[Row, list[Row], list[Row]]:
    summary: Any = pool.get("summary")
    if not isinstance(summary, dict):
        raise PoolError("the controller's summary is none")
    groups = pool.items("groups", most=_GROUPS, sort="-achieved_percent")
    gpus = pool.items("gpus", most=_GPUS, sort="-utilization_percent")
    return summary, groups, gpus


def _lines(summary: Row, groups: list[Row], gpus: list[Row], colour: bool) -> list[str]:
    """The groups that do most, then the GPUs that do most."""
    s = summary
    utilization = s.get("utilization_percent")
    shown = "not known" if utilization is None else f"{utilization:.0f} %"
    lines = [
        f"{s.get('nodes_ready', 0)} of {s.get('nodes', 0)} nodes ready, {s.get('nodes_draining', 0)} draining, "
        f"{s.get('nodes_lost', 0)} lost; {s.get('gpus', 0)} GPUs, {s.get('vgpus', 0)} vGPUs given, "
        f"{s.get('vgpus_free', 0)} free; up {age(time.time() - (s.get('since_s') or 0))}",
        f"memory {s.get('memory_used_mib', 0):,} used, {s.get('memory_given_mib', 0):,} given of "
        f"{s.get('memory_mib', 0):,} MiB; ratio {s.get('ratio_given_percent', 0):,} of {s.get('ratio_percent', 0):,} % "
        f"given; utilisation {shown}; {s.get('sessions', 0)} sessions, {s.get('queue', 0)} wait",
        "",
    ]
    busiest = sorted(groups, key=lambda g: -(g.get("achieved_percent") or 0))
    lines += table(kinds.GROUPS, busiest, wide=False, headers=True, colour=colour) if groups else ["no groups"]
    hottest = sorted(gpus, key=lambda g: -(g.get("utilization_percent") or 0))
    return lines + ["", *(table(kinds.GPUS, hottest, wide=False, headers=True, colour=colour) if gpus else ["no GPUs"])]


@contextmanager
def _keys() -> Iterator[None]:
    """The terminal gives keys at once; as it was afterwards, whatever happens."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _quits_within(seconds: float) -> bool:
    """Waits so long, or until q."""
    deadline_s = time.monotonic() + seconds
    while (left_s := deadline_s - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left_s)[0] and sys.stdin.read(1) in ("q", "Q", ""):
            return True
    return False
