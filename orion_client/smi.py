"""orion-smi: servers, GPUs, vGPUs, memory and clients."""

from __future__ import annotations

import json
import sys
import time
import uuid
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orion_client import __version__, settings
from orion_client.control_client import ServerUnreachable, stats
from wire import control

_HELP = """Shows servers, their GPUs and who uses them.

The servers are those of --server, else of ORION_SERVER (environment or client.conf), else 127.0.0.1:9960.

\b
  orion-smi                 one look
  orion-smi --watch 2       every 2 seconds
  orion-smi --json          for programs

Exit code 1 when a server did not answer.
"""

PIPE_COLUMNS = 160

app = typer.Typer(add_completion=True, rich_markup_mode=None)


@app.command(help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
def smi(
    server: Annotated[str | None, typer.Option(help="HOST:PORT, or several with commas.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    watch: Annotated[float | None, typer.Option(min=0.1, metavar="SECONDS", help="Repeat until Ctrl-C.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for a server.")] = 3.0,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Asks each server and shows the answers."""
    if version:
        print(f"orion-smi {__version__}")
        return
    # Into a pipe or a file: wide enough that nothing is folded.
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_COLUMNS)
    try:
        named = server.split(",") if server else []
        servers = [settings.parse_server(s) for s in named] or settings.servers() or [settings.DEFAULT_SERVER]
    except settings.SettingError as error:
        Console(stderr=True).print(f"orion-smi: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    reports = [report(s, timeout) for s in servers]
    if as_json:
        while True:
            print(json.dumps(reports if watch is None else {"time": time.time(), "servers": reports}), flush=True)
            if watch is None:
                break
            time.sleep(watch)
            reports = [report(s, timeout) for s in servers]
    elif watch is None:
        console.print(render(reports, time.time()))
    else:
        try:
            with Live(render(reports, time.time()), console=console, auto_refresh=False) as live:
                while True:
                    time.sleep(watch)
                    reports = [report(s, timeout) for s in servers]
                    live.update(render(reports, time.time()), refresh=True)
        except KeyboardInterrupt:
            pass
    if any("error" in r for r in reports):
        raise typer.Exit(1)


def report(server: str, timeout_s: float) -> dict[str, Any]:
    """What one server says, as plain data."""
    try:
        answer = stats(server, timeout_s)
    except ServerUnreachable as error:
        return {"address": server, "error": str(error), "hint": error.hint}
    return {
        "address": server,
        "name": answer.name,
        "version": answer.server,
        "gpus": [
            {
                "ordinal": gpu.ordinal,
                "name": gpu.name,
                "uuid": f"GPU-{uuid.UUID(bytes=gpu.uuid)}",
                "total_bytes": gpu.total_bytes,
                "used_bytes": gpu.used_bytes,
                "vgpus": sum(gpu.ordinal == vgpu.gpu for vgpu in answer.vgpus),
                "capacity_bytes": gpu.capacity_bytes,
                "given_bytes": gpu.given_bytes,
                "given_percent": gpu.given_percent,
            }
            for gpu in answer.gpus
        ],
        "vgpus": [vgpu_report(vgpu) for vgpu in answer.vgpus],
        "sessions": [
            {
                "session": session.session,
                "pid": session.pid,
                "program": session.program,
                "transport": session.transport,
                "devices": list(session.devices),
                "used_bytes": session.used_bytes,
                "since": session.since,
            }
            for session in answer.sessions
        ],
    }


def vgpu_report(vgpu: control.VgpuStats) -> dict[str, Any]:
    """One vGPU as plain data."""
    return dict(msgspec.to_builtins(vgpu))


def vgpu_table(rows: list[tuple[str, dict[str, Any]]]) -> Table:
    """vGPUs for people: (server, report) each. `achieved` is over the last 10 seconds."""
    table = Table(title="vGPUs", title_justify="left")
    several = len({server for server, _ in rows}) > 1
    for column in (*(["server"] if several else []), "vGPU", "group", "GPU"):
        table.add_column(column, overflow="fold")
    for column in ("MiB used / quota", "ratio", "achieved", "throttled"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("policy", no_wrap=True)
    for server, v in rows:
        quota = f"{v['quota_bytes'] >> 20:,}" if v["quota_bytes"] else "no quota"
        cells = [
            *([server] if several else []),
            v["vgpu"],
            printable(v["group"]) or f"pid {', '.join(map(str, v['pids'][:3]))}",
            v["gpu"],
            f"{v['used_bytes'] >> 20:,} / {quota}",
            f"{v['ratio']} %" if v["ratio"] else "none",
            f"{v['achieved_10s'] * 100:.1f} %",
            f"{v['throttled_ns'] / 1e9:,.1f} s",
            v["policy"] if v["ratio"] else "",
        ]
        table.add_row(*(Text(str(cell)) for cell in cells))
    return table


def render(reports: list[dict[str, Any]], now_s: float) -> Group:
    """Tables for people."""
    gpus = Table(title="GPUs", title_justify="left")
    for column in ("server", "GPU", "name", "UUID"):
        gpus.add_column(column, no_wrap=column != "UUID")
    gpus.add_column("memory used / total", justify="right")
    gpus.add_column("vGPUs", justify="right")
    clients = Table(title="Clients", title_justify="left")
    for column in ("server", "session", "pid", "program", "transport", "GPUs"):
        clients.add_column(column, overflow="fold")
    clients.add_column("memory", justify="right")
    clients.add_column("for", justify="right")
    errors: list[Text] = []
    vgpus: list[tuple[str, dict[str, Any]]] = []
    count = 0
    for r in reports:
        if "error" in r:
            errors.append(Text(f"{r['error']}; {r['hint']}", style="red"))
            continue
        for gpu in r["gpus"]:
            memory = f"{mib(gpu['used_bytes'])} / {mib(gpu['total_bytes'])}"
            row = (r["address"], gpu["ordinal"], printable(gpu["name"]), gpu["uuid"], memory, gpu["vgpus"])
            gpus.add_row(*(Text(str(cell)) for cell in row))
        vgpus += [(r["address"], v) for v in r["vgpus"]]
        for s in r["sessions"]:
            count += 1
            used_by = ",".join(map(str, s["devices"]))
            age = f"{max(0.0, now_s - s['since']):.0f} s"
            program = printable(s["program"].rpartition("/")[2])
            row = (r["address"], s["session"], s["pid"], program, s["transport"] or "binding", used_by)
            clients.add_row(*(Text(str(cell)) for cell in row), Text(mib(s["used_bytes"])), Text(age))
    parts: list[Any] = [*errors]
    if len(errors) < len(reports):
        parts += [gpus, *([vgpu_table(vgpus)] if vgpus else []), clients if count else Text("no clients")]
    return Group(*parts)


def mib(count_bytes: int) -> str:
    """Bytes for people, in MiB as GPU tools show memory."""
    return f"{count_bytes / (1 << 20):,.0f} MiB"


def printable(text: str) -> str:
    """A name that a client chose, without what would steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def main() -> None:
    """Entry of the installed command."""
    app(prog_name="orion-smi")


if __name__ == "__main__":
    main()
