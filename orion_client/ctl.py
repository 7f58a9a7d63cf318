"""orionctl: looks at a server's vGPUs and changes them while programs run."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, cast

import msgspec
import typer
from rich.console import Console

from orion_client import __version__, settings
from orion_client.control_client import ServerUnreachable, ask, next_id, stats
from orion_client.smi import PIPE_COLUMNS, vgpu_report, vgpu_table
from wire import control

_HELP = """Looks at the vGPUs of an orion-server and changes them while their programs run.

\b
  orionctl list                                  vGPUs: what they may use and what they use
  orionctl set GROUP --gmem 8192 --ratio 50      of every program of a group; nothing restarts
  orionctl set 4711 --ratio 80 --policy elastic  of the program with that process id
  orionctl set vgpu-3 --gmem 2048 --shrink block one vGPU; new allocations fail until it uses less
  orionctl configure --vgpu-count 2              later vGPUs are halves by default
  orionctl drain                                 no new programs; returns when the last has ended

The server is --server, else the first of ORION_SERVER (environment or client.conf), else 127.0.0.1:9960. Changes need
the server's admin token: ORION_ADMIN_TOKEN, --token-file, or the file admin-token that the server keeps in its private
folder, which is found where orionctl runs on the server's machine as the server's user.

Exit codes: 0 done; 1 refused, or no server; 2 wrong usage.
"""
_SET_HELP = """Changes running vGPUs. It is in force when the command returns, and nothing restarts.

TARGET is a group (ORION_GROUP_ID), a session, the process id of a client, or a vGPU's name as `orionctl list` shows it.
A program has a vGPU on each GPU that it uses: all are changed, or with --gpu only one.

\b
  orionctl set team-a --gmem 8192 --ratio 50
  orionctl set team-a --gpu 1 --ratio 100
  orionctl set vgpu-3 --gmem 2048 --shrink block

A quota below what is used is refused; with --shrink block it is set, and new allocations fail until enough is freed.
"""
_CONFIGURE_HELP = """Changes what programs get that ask for nothing. vGPUs that are there keep what they have.

\b
  orionctl configure --vgpu-count 2       a default vGPU is half of a GPU
  orionctl configure --vgpu-count 0       no limits for who asks for none
  orionctl configure --ratio-policy elastic
"""
_NAMES = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(add_completion=True, rich_markup_mode=None, no_args_is_help=True, help=_HELP,
                  context_settings=_NAMES)  # fmt: skip
Expected = TypeVar("Expected")
Json = Annotated[bool, typer.Option("--json", help="Machine-readable.")]
RatioPolicy = Literal["hard", "elastic"]


@dataclass
class Chosen:
    """What stands before the command's name."""

    server: str
    token_file: Path | None
    timeout_s: float


@app.callback()
def main_options(
    context: typer.Context,
    server: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The server to talk to.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with the admin token.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the server.")] = 5.0,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=lambda v: _show_version(v), help="Show the version.")
    ] = False,
) -> None:
    try:
        address = settings.parse_server(server) if server else (settings.servers() or [settings.DEFAULT_SERVER])[0]
    except settings.SettingError as error:
        _fail(str(error), code=2)
    context.obj = Chosen(address, token_file, timeout)


@app.command("list")
def list_vgpus(context: typer.Context, as_json: Json = False) -> None:
    """Shows the vGPUs, and what of each GPU is left."""
    chosen = _chosen(context)
    try:
        answer = stats(chosen.server, chosen.timeout_s)
    except ServerUnreachable as error:
        _refused(error)
    vgpus = [vgpu_report(v) for v in answer.vgpus]
    if as_json:
        gpus = [
            {"ordinal": g.ordinal, "total_bytes": g.total_bytes, "capacity_bytes": g.capacity_bytes,
             "given_bytes": g.given_bytes, "given_percent": g.given_percent}
            for g in answer.gpus
        ]  # fmt: skip
        print(json.dumps({"defaults": _plain(answer.defaults), "gpus": gpus, "vgpus": vgpus}))
        return
    console = _console()
    if vgpus:
        console.print(vgpu_table([(chosen.server, v) for v in vgpus]))
    else:
        console.print("no vGPUs: no program is attached")
    for g in answer.gpus:
        left = max(0, g.capacity_bytes - g.given_bytes) >> 20
        console.print(f"GPU {g.ordinal}: {left:,} MiB and {max(0, 100 - g.given_percent)} % left", highlight=False)


@app.command("set", help=_SET_HELP, context_settings=_NAMES)
def set_limits(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Group, session, process id or vGPU.")],
    gmem: Annotated[int | None, typer.Option(min=1, max=1 << 30, metavar="MIB", help="Memory quota in MiB.")] = None,
    ratio: Annotated[
        int | None, typer.Option(min=1, max=100, metavar="PERCENT", help="Share of the GPU's time, 1 to 100.")
    ] = None,
    policy: Annotated[RatioPolicy | None, typer.Option(help="Never above the ratio, or idle GPU time too.")] = None,
    shrink: Annotated[Literal["refuse", "block"], typer.Option(help="A quota below what is used.")] = "refuse",
    gpu: Annotated[int | None, typer.Option(min=0, max=63, help="Only the vGPU on this GPU.")] = None,
    as_json: Json = False,
) -> None:
    if gmem is None and ratio is None and policy is None:
        _fail("nothing to change: name --gmem, --ratio or --policy", code=2)
    chosen = _chosen(context)
    request = control.Resize(
        id=next_id(), token=_token(chosen), target=target, gpu=gpu, gmem_mib=gmem, ratio=ratio, policy=policy,
        shrink=shrink,
    )  # fmt: skip
    answer = _ask(chosen, request, control.Resized)
    vgpus = [vgpu_report(v) for v in answer.vgpus]
    if as_json:
        print(json.dumps({"vgpus": vgpus}))
    else:
        _console().print(vgpu_table([(chosen.server, v) for v in vgpus]))


@app.command("configure", help=_CONFIGURE_HELP, context_settings=_NAMES)
def configure(
    context: typer.Context,
    vgpu_count: Annotated[
        int | None, typer.Option(min=0, max=100, metavar="N", help="Default vGPU: 1 of N parts; 0: no limits.")
    ] = None,
    ratio_policy: Annotated[RatioPolicy | None, typer.Option(help="Of who does not ask for one.")] = None,
    overcommit_ratio: Annotated[
        bool | None, typer.Option("--overcommit-ratio/--no-overcommit-ratio", help="Ratios may sum above 100 %.")
    ] = None,
    as_json: Json = False,
) -> None:
    if vgpu_count is None and ratio_policy is None and overcommit_ratio is None:
        _fail("nothing to change: name --vgpu-count, --ratio-policy or --overcommit-ratio", code=2)
    chosen = _chosen(context)
    request = control.Configure(
        id=next_id(), token=_token(chosen), vgpu_count=vgpu_count, policy=ratio_policy,
        overcommit_ratio=overcommit_ratio,
    )  # fmt: skip
    defaults = _ask(chosen, request, control.Configured).defaults
    if as_json:
        print(json.dumps({"defaults": _plain(defaults)}))
        return
    count = defaults.vgpu_count
    each = f"1 of {count} parts of a GPU, {defaults.policy}" if count else "no limits"
    over = "; ratios may sum above 100 %" if defaults.overcommit_ratio else ""
    print(f"default vGPU from now on: {each}{over}")


@app.command("drain")
def drain(context: typer.Context, as_json: Json = False) -> None:
    """Lets no new program in; returns when the last one has ended. The server goes on refusing until it is stopped."""
    chosen = _chosen(context)
    began_s = time.monotonic()
    _ask(chosen, control.Drain(id=next_id(), token=_token(chosen)), control.Drained, waits=True)
    seconds = time.monotonic() - began_s
    if as_json:
        print(json.dumps({"drained": True, "seconds": round(seconds, 3)}))
    else:
        print(f"drained: {chosen.server} has no program left")


def _chosen(context: typer.Context) -> Chosen:
    return cast(Chosen, context.obj)


def _token(chosen: Chosen) -> str:
    try:
        return settings.admin_token(chosen.token_file)
    except settings.SettingError as error:
        _fail(str(error), code=2)


def _ask(chosen: Chosen, request: control.Request, expected: type[Expected], waits: bool = False) -> Expected:
    try:
        return ask(chosen.server, request, expected, None if waits else chosen.timeout_s)
    except ServerUnreachable as error:
        _refused(error)


def _console() -> Console:
    # Into a pipe or a file: wide enough that nothing is folded.
    return Console() if sys.stdout.isatty() else Console(width=PIPE_COLUMNS)


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"orionctl {__version__}")
        raise typer.Exit


def _refused(error: ServerUnreachable) -> NoReturn:
    _fail(f"{error}; {error.hint}" if error.hint else str(error), code=1)


def _fail(text: str, code: int) -> NoReturn:
    print(f"orionctl: {text}", file=sys.stderr)
    raise typer.Exit(code)


def main() -> None:
    """Entry of the installed command."""
    app(prog_name="orionctl")


if __name__ == "__main__":
    main()
