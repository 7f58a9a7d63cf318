"""The command line of orion-check."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from orion_client import __version__
from orion_client.check import client, controller, host, server
from orion_client.check.finding import Finding
from orion_client.text import coloured, wants_colour

_HELP = """Says what is wrong with this machine's Orion set-up and how to mend it.

\b
  orion-check                       what programs here would meet: libraries, settings, servers, controller
  orion-check install server        whether what a server needs is installed; also client, controller, all
  orion-check runtime server        and whether it can run: driver, ports, folders, limits
  orion-check runtime controller    the controller that is configured, and its pool

Each finding of docs/troubleshooting.md has an id, a sentence and a remedy. Exit code 0 when nothing failed (warnings
are allowed), 1 when something failed, 2 for wrong usage.
"""
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}

app = typer.Typer(add_completion=True, rich_markup_mode=None)


class Stage(StrEnum):
    """What is looked at: what is installed, or that and whether it works."""

    install = "install"
    runtime = "runtime"


class Part(StrEnum):
    """What this machine is."""

    server = "server"
    client = "client"
    controller = "controller"
    all = "all"


@app.command(help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
def check(
    stage: Annotated[Stage, typer.Argument(help="What is installed, or also whether it works.")] = Stage.runtime,
    part: Annotated[Part, typer.Argument(help="What this machine is.")] = Part.client,
    server_address: Annotated[
        str | None, typer.Option("--server", metavar="HOST:PORT", help="To look at instead of the configured one.")
    ] = None,
    controller_url: Annotated[
        str | None, typer.Option("--controller", metavar="URL", help="To look at instead of the configured one.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="server.conf or controller.yaml, instead of the one in /etc/orion.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 3.0,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Runs the checks and shows the findings."""
    if version:
        print(f"orion-check {__version__}")
        return
    parts: set[Part] = {Part.client, Part.server, Part.controller} if part is Part.all else {part}
    findings = list(examine(stage, parts, server_address, controller_url, config, timeout))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            show(finding)
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


def examine(
    stage: Stage,
    parts: set[Part],
    server_address: str | None = None,
    controller_url: str | None = None,
    config: Path | None = None,
    timeout_s: float = 3.0,
) -> Iterator[Finding]:
    """All findings, in the order in which the troubles would be met. `config`: of the only part that has one."""
    works = stage is Stage.runtime
    yield from host.install()
    if Part.client in parts:
        yield from client.install()
    if Part.server in parts:
        yield from server.install()
    if Part.controller in parts:
        yield from controller.install()
    if not works:
        return
    yield from host.runtime(is_server=Part.server in parts)
    if Part.server in parts:
        yield from server.runtime(timeout_s, config if Part.controller not in parts else None)
    if Part.controller in parts:
        yield from controller.files(config if Part.server not in parts else None)
    if Part.client in parts:
        yield from client.runtime(server_address, timeout_s)
    if Part.controller in parts or (Part.client in parts and not server_address):
        yield from controller.runtime(controller_url, timeout_s, is_wanted=Part.controller in parts)


def show(finding: Finding) -> None:
    """For people."""
    status = coloured(f"{finding.status:<5}", _COLOURS[finding.status], wants_colour())
    name = f"  [{finding.id}]" if finding.id else ""
    print(f"{status}{finding.check}: {finding.message}{name}")
    if finding.remedy:
        print(f"      -> {finding.remedy}")
