"""The top of orionctl's command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orion_client import __version__
from orion_client.ctl import account, change, direct, look, top
from orion_client.ctl.context import Chosen, fail
from orion_client.pool_client import EXIT_USAGE

NAMES = {"help_option_names": ["-h", "--help"]}
_HELP = """Looks at the vGPUs of a pool, or of one orion-server, and changes them while their programs run.

With a controller (--controller URL, ORION_CONTROLLER_URL, or `controller = URL` in ~/.orion/ctl.conf):

\b
  orionctl login                                 once; the token is kept in ~/.orion/token for you alone
  orionctl get nodes                             also gpus, vgpus, groups, sessions, queue, limits, events, audit
  orionctl get gpus --node gpu1 -o json          the REST API's fields, for programs
  orionctl describe group team-a                 all that is known of one thing
  orionctl set team-a --gmem 8192 --ratio 50     of every vGPU of a group; nothing restarts
  orionctl drain gpu1 --wait                     no new programs there; returns when the last has ended
  orionctl end team-a                            ends a group's programs and gives its vGPUs back
  orionctl limits set team-a --vgpus 8           what a group may have together
  orionctl reserve team-a --vgpus 2 --ttl 600    vGPUs for a program that will come
  orionctl top                                   who uses what, live
  orionctl events --follow                       what happens

With one server (--server HOST:PORT, else where no controller is named: the first of ORION_SERVER in the environment or
client.conf, else 127.0.0.1:9960):

\b
  orionctl list                                  vGPUs: what they may use and what they use
  orionctl set GROUP --gmem 8192 --ratio 50      of every program of a group; nothing restarts
  orionctl set 4711 --ratio 80 --policy elastic  of the program with that process id
  orionctl set vgpu-3 --gmem 2048 --shrink block one vGPU; new allocations fail until it uses less
  orionctl configure --vgpu-count 2              later vGPUs are halves by default
  orionctl drain                                 no new programs; returns when the last has ended

Changes need a token. A controller's: ORION_TOKEN, --token-file, or what `orionctl login` has kept. A server's:
ORION_ADMIN_TOKEN, --token-file, or the file admin-token that the server keeps in its private folder, which is found
where orionctl runs on the server's machine as the server's user.

Exit codes: 0 done; 1 refused, or not found; 2 wrong usage; 3 no controller or server answers; 4 not allowed (no
token, or one without the right).
"""

app = typer.Typer(add_completion=True, rich_markup_mode=None, no_args_is_help=True, help=_HELP, context_settings=NAMES)


@app.callback()
def main_options(
    context: typer.Context,
    controller: Annotated[str | None, typer.Option(metavar="URL", help="The controller's HTTP address.")] = None,
    server: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="One server, without a controller.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with the token.")] = None,
    ca_file: Annotated[str | None, typer.Option(metavar="FILE", help="Certificates to trust for https.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 5.0,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=lambda v: _show_version(v), help="Show the version.")
    ] = False,
) -> None:
    if controller and server:
        fail("--controller and --server: name one of them", EXIT_USAGE)
    context.obj = Chosen(server, controller, token_file, ca_file, timeout)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"orionctl {__version__}")
        raise typer.Exit


app.command("get", help=look.GET_HELP, context_settings=NAMES)(look.get)
app.command("describe", context_settings=NAMES)(look.describe)
app.command("events", context_settings=NAMES)(look.events)
app.command("top", help=top.HELP, context_settings=NAMES)(top.top)
app.command("set", help=change.SET_HELP, context_settings=NAMES)(change.set_limits)
app.command("drain", help=change.DRAIN_HELP, context_settings=NAMES)(change.drain)
app.command("undrain", context_settings=NAMES)(change.undrain)
app.command("forget", context_settings=NAMES)(change.forget)
app.command("end", help=change.END_HELP, context_settings=NAMES)(change.end)
app.command("reserve", help=change.RESERVE_HELP, context_settings=NAMES)(change.reserve)
app.add_typer(change.limits_app, name="limits")
app.command("login", help=account.LOGIN_HELP, context_settings=NAMES)(account.login)
app.command("logout", context_settings=NAMES)(account.logout)
app.command("whoami", context_settings=NAMES)(account.whoami)
app.command("list", context_settings=NAMES)(direct.list_vgpus)
app.command("configure", help=direct.CONFIGURE_HELP, context_settings=NAMES)(direct.configure)
