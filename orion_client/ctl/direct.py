"""What is asked of one server, over its control port, without a controller."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import typer
from rich.console import Console

from orion_client.control_client import ask, next_id, stats
from orion_client.ctl.context import Chosen, chosen, fail, refusals
from orion_client.pool_client import EXIT_USAGE
from orion_client.smi.tables import PIPE_COLUMNS, vgpu_report, vgpu_table
from wire import control

CONFIGURE_HELP = """Changes what programs of one server get that ask for nothing. vGPUs that are there keep what they
have.

\b
  orionctl configure --vgpu-count 2       a default vGPU is half of a GPU
  orionctl configure --vgpu-count 0       no limits for who asks for none
  orionctl configure --ratio-policy elastic
"""
Expected = TypeVar("Expected")
Json = Annotated[bool, typer.Option("--json", help="Machine-readable.")]
RatioPolicy = Literal["hard", "elastic"]


def list_vgpus(context: typer.Context, as_json: Json = False) -> None:
    """Shows the vGPUs of one server, and what of each GPU is left. With a controller: `orionctl get vgpus`."""
    options = _one_server(context, "get vgpus")
    server = options.server_address()
    with refusals():
        answer = stats(server, options.timeout_s)
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
        console.print(vgpu_table([(server, v) for v in vgpus]))
    else:
        console.print("no vGPUs: no program is attached")
    for g in answer.gpus:
        left = max(0, g.capacity_bytes - g.given_bytes) >> 20
        console.print(f"GPU {g.ordinal}: {left:,} MiB and {max(0, 100 - g.given_percent)} % left", highlight=False)


def set_limits(
    options: Chosen,
    target: str,
    gpu: int | None,
    gmem_mib: int | None,
    ratio: int | None,
    policy: RatioPolicy | None,
    shrink: Literal["refuse", "block"],
    as_json: bool,
) -> None:
    """`orionctl set` without a controller."""
    request = control.Resize(
        id=next_id(), token=options.admin_token(), target=target, gpu=gpu, gmem_mib=gmem_mib, ratio=ratio,
        policy=policy, shrink=shrink,
    )  # fmt: skip
    answer = _ask(options, request, control.Resized)
    vgpus = [vgpu_report(v) for v in answer.vgpus]
    if as_json:
        print(json.dumps({"vgpus": vgpus}))
    else:
        _console().print(vgpu_table([(options.server_address(), v) for v in vgpus]))


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
        fail("nothing to change: name --vgpu-count, --ratio-policy or --overcommit-ratio", EXIT_USAGE)
    options = _one_server(context, "")
    request = control.Configure(
        id=next_id(), token=options.admin_token(), vgpu_count=vgpu_count, policy=ratio_policy,
        overcommit_ratio=overcommit_ratio,
    )  # fmt: skip
    defaults = _ask(options, request, control.Configured).defaults
    if as_json:
        print(json.dumps({"defaults": _plain(defaults)}))
        return
    count = defaults.vgpu_count
    each = f"1 of {count} parts of a GPU, {defaults.policy}" if count else "no limits"
    over = "; ratios may sum above 100 %" if defaults.overcommit_ratio else ""
    print(f"default vGPU from now on: {each}{over}")


def drain(options: Chosen, as_json: bool) -> None:
    """`orionctl drain` without a controller: returns when the last program has ended, however long that takes."""
    began_s = time.monotonic()
    _ask(options, control.Drain(id=next_id(), token=options.admin_token()), control.Drained, waits=True)
    seconds = time.monotonic() - began_s
    if as_json:
        print(json.dumps({"drained": True, "seconds": round(seconds, 3)}))
    else:
        print(f"drained: {options.server_address()} has no program left")


def _one_server(context: typer.Context, instead: str) -> Chosen:
    options = chosen(context)
    if options.controller:
        advice = f"with a controller it is `orionctl {instead}`" if instead else "name --server HOST:PORT"
        fail(f"`{context.info_name}` asks one server: {advice}", EXIT_USAGE)
    return options


def _ask(options: Chosen, request: control.Request, expected: type[Expected], waits: bool = False) -> Expected:
    with refusals():
        return ask(options.server_address(), request, expected, None if waits else options.timeout_s)


def _console() -> Console:
    # Into a pipe or a file: wide enough that nothing is folded.
    return Console() if sys.stdout.isatty() else Console(width=PIPE_COLUMNS)


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)
