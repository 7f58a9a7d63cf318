"""orion-smi: servers or the pool, GPUs, vGPUs, memory and clients."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.live import Live

from orion_client import __version__, pool_client, pool_port, settings
from orion_client.control_client import ServerUnreachable
from orion_client.pool_client import EXIT_UNREACHABLE, EXIT_USAGE, PoolClient, PoolError
from orion_client.smi.tables import PIPE_COLUMNS, pool_reports, render, report

_HELP = """Shows GPUs, vGPUs and who uses them, with utilisation.

Whose: with --pool the whole pool's, as the controller's REST API tells (--controller URL or ORION_CONTROLLER_URL, and a
token: ORION_TOKEN, --token-file or `orionctl login`). Otherwise those of --server, else of ORION_SERVER (environment or
client.conf), else of the servers on which ORION_CONTROLLER says that this group (ORION_GROUP_ID) has something, else of
127.0.0.1:9960.

\b
  orion-smi                 one look
  orion-smi --watch 2       every 2 seconds
  orion-smi --json          for programs
  orion-smi --pool          every node of the pool

With options of nvidia-smi it answers as that does, of what this container has, in the order in which a program counts:

\b
  orion-smi -L
  orion-smi -q -x
  orion-smi --query-gpu=index,name,memory.used,utilization.gpu --format=csv

orion-run puts such an nvidia-smi into a program's PATH where there is none.

Exit codes: 0; 1 a server did not answer; 2 wrong usage; with --pool 3: no controller answers, 4: not allowed.
"""

app = typer.Typer(add_completion=True, rich_markup_mode=None)
Look = Callable[[], list[dict[str, Any]]]


@app.command(help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
def smi(
    server: Annotated[str | None, typer.Option(help="HOST:PORT, or several with commas.")] = None,
    pool: Annotated[bool, typer.Option("--pool", help="The whole pool.")] = False,
    controller: Annotated[
        str | None, typer.Option(metavar="URL", help="The controller's HTTP address; means --pool.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with the token for the controller.")] = None,
    ca_file: Annotated[str | None, typer.Option(metavar="FILE", help="Certificates to trust for https.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    watch: Annotated[float | None, typer.Option(min=0.1, metavar="SECONDS", help="Repeat until Ctrl-C.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for a server.")] = 3.0,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Asks each server, or the controller, and shows the answers."""
    if version:
        print(f"orion-smi {__version__}")
        return
    if server and (pool or controller):
        _fail("--server shows one server, --pool and --controller the whole pool: name one of them", EXIT_USAGE)
    look = _pool(controller, token_file, ca_file, timeout) if pool or controller else _servers(server, timeout)
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_COLUMNS)
    try:
        reports = look()
        if as_json:
            reports = _write_json(look, reports, watch)
        elif watch is None:
            console.print(render(reports, time.time()))
        else:
            with Live(render(reports, time.time()), console=console, auto_refresh=False) as live:
                while True:
                    time.sleep(watch)
                    reports = look()
                    live.update(render(reports, time.time()), refresh=True)
    except KeyboardInterrupt:
        pass
    except PoolError as error:
        _fail(f"{error}; {error.hint}" if error.hint else str(error), error.exit_code)
    except ServerUnreachable as error:
        _fail(f"{error}; {error.hint}" if error.hint else str(error), EXIT_UNREACHABLE)
    if any("error" in r for r in reports):
        raise typer.Exit(1)


def _write_json(look: Look, reports: list[dict[str, Any]], watch: float | None) -> list[dict[str, Any]]:
    while True:
        print(json.dumps(reports if watch is None else {"time": time.time(), "servers": reports}), flush=True)
        if watch is None:
            return reports
        time.sleep(watch)
        reports = look()


def _servers(server: str | None, timeout_s: float) -> Look:
    try:
        named = [settings.parse_server(s) for s in server.split(",")] if server else []
        controllers = [] if named else settings.controllers()
        servers = named or settings.servers() or [settings.DEFAULT_SERVER]
    except settings.SettingError as error:
        _fail(str(error), EXIT_USAGE)

    def look() -> list[dict[str, Any]]:
        asked = servers
        if controllers:
            group = settings.setting("ORION_GROUP_ID") or ""
            asked = list(pool_port.lookup(controllers, group, os.getpid(), timeout_s).servers)
        return [report(s, timeout_s) for s in asked]

    return look


def _pool(controller: str | None, token_file: Path | None, ca_file: str | None, timeout_s: float) -> Look:
    try:
        token = settings.admin_token(token_file) if token_file else None
        access = pool_client.find(controller, token, ca_file)
    except (settings.SettingError, PoolError) as error:
        _fail(str(error), EXIT_USAGE)
    if access is None:
        _fail("no controller is named: --controller URL or ORION_CONTROLLER_URL", EXIT_USAGE)
    client = PoolClient(access, timeout_s)
    return lambda: pool_reports(client)


def _fail(text: str, code: int) -> NoReturn:
    Console(stderr=True).print(f"orion-smi: {text}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)
