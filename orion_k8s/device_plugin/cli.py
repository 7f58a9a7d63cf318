"""orion-device-plugin: the command."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from orion_client import libraries, pool_client
from orion_client.pool_client import PoolClient, PoolError
from orion_controller import log as log_setup
from orion_k8s.device_plugin.container import SOCKETS, TOKEN_FILE, Gives, install_libraries
from orion_k8s.device_plugin.plugin import Plugin, Table
from orion_k8s.device_plugin.pool_list import PoolList

log = logging.getLogger("orion.plugin")
LOG_LEVELS = ("debug", "info", "warning", "error")
_EXIT_USAGE = 2
_LOOK_S = 1.0
_RESOURCE = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")

_HELP = """Lists the pool's vGPUs at this node's kubelet, and gives containers what their programs need.

On every node, with and without GPUs. The pool comes from the controller's API: ORION_CONTROLLER_URL, ORION_TOKEN (or
--api-token-file), ORION_CA_FILE. Containers are given ORION_CONTROLLER and ORION_CONTROLLER_KEY as they are here.
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None, help=_HELP)


@app.command(help=_HELP)
def start(
    resource: Annotated[str, typer.Option(metavar="NAME", help="The resource's name.")] = "virtaitech.com/gpu",
    node: Annotated[str, typer.Option(metavar="NAME", envvar="NODE_NAME", help="This node's name.")] = "",
    kubelet_dir: Annotated[Path, typer.Option(metavar="DIR", help="The kubelet's folder of sockets.")] = Path(
        "/var/lib/kubelet/device-plugins"
    ),
    controller_url: Annotated[
        str | None, typer.Option(metavar="URL", help="The controller's API, instead of ORION_CONTROLLER_URL.")
    ] = None,
    api_token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A viewer's token for it, instead of ORION_TOKEN.")
    ] = None,
    controller: Annotated[
        str,
        typer.Option(metavar="HOST:PORT,...", envvar="ORION_CONTROLLER", help="What containers ask (port 9123)."),
    ] = "",
    controller_key: Annotated[
        str, typer.Option(metavar="KEY", envvar="ORION_CONTROLLER_KEY", help="Its public key.")
    ] = "",
    client_dir: Annotated[
        str, typer.Option(metavar="DIR", help="On the node: the client libraries, for containers; empty: none.")
    ] = "/var/lib/orion/client",
    install_to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Puts this installation's client libraries there first.")
    ] = None,
    socket_dir: Annotated[
        str, typer.Option(metavar="DIR", help="On the node: --shm-dir of its orion-server; empty: none.")
    ] = SOCKETS,
    pod_token_file: Annotated[
        str, typer.Option(metavar="FILE", help="In containers: the pod's token; empty: none.")
    ] = TOKEN_FILE,
    max_devices: Annotated[int, typer.Option(min=1, max=16384, help="Longer lists are cut.")] = 1024,
    poll: Annotated[float, typer.Option(min=0.1, max=3600, metavar="SECONDS", help="How often the pool is looked at.")]
    = 10.0,
    state_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keeps the list for a start without the controller (KUBELET_DIR/orion/...)."),
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    json_log: Annotated[bool, typer.Option(help="Log one JSON object a line.")] = False,
) -> None:  # fmt: skip
    if log_level not in LOG_LEVELS:
        _fail(f"--log-level is one of {', '.join(LOG_LEVELS)}")
    if not _RESOURCE.fullmatch(resource):
        _fail(f"--resource {resource!r}: it is DOMAIN/NAME, for example virtaitech.com/gpu")
    if not controller:
        _fail("ORION_CONTROLLER (or --controller) names the controller that containers ask, HOST:9123")
    node = node or os.uname().nodename
    log_setup.configure(log_level, json_log, None)

    last: list[tuple[str | None, PoolClient]] = []

    def api() -> PoolClient:
        token = None
        if api_token_file is not None:
            try:
                token = api_token_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise PoolError(f"cannot read {api_token_file}: {error}") from None
        if not last or last[0][0] != token:
            access = pool_client.find(controller_url, token)
            if access is None:
                raise PoolError("no controller is named", "set ORION_CONTROLLER_URL, or --controller-url")
            last[:] = [(token, PoolClient(access))]
        return last[0][1]

    try:
        api()
    except PoolError as error:
        _fail(f"{error}; {error.hint}" if error.hint else str(error))
    try:
        if install_to is not None:
            changed = install_libraries(libraries.client_folder(), install_to)
            log.info("client libraries in %s: %s", install_to, ", ".join(changed) or "as they are here")
    except (OSError, libraries.LibrariesMissing) as error:
        _fail(f"the client libraries cannot be put into {install_to}: {error}")
    # A kubelet that starts removes the files of its folder, and leaves folders in it alone.
    state_file = state_file or kubelet_dir / "orion" / f"{resource.replace('/', '_')}.json"
    gives = Gives(controller, controller_key, client_dir, socket_dir, pod_token_file)
    _run(api, gives, resource, node, kubelet_dir, max_devices, poll, state_file)


def _run(
    api: Callable[[], PoolClient],
    gives: Gives,
    resource: str,
    node: str,
    kubelet_dir: Path,
    max_devices: int,
    poll_s: float,
    state_file: Path,
) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    table = Table()
    pool = PoolList(api, table, node, devices_most=max_devices, state_file=state_file)
    pool.start()
    asking = threading.Thread(target=pool.run, args=(stop, poll_s), name="pool", daemon=True)
    asking.start()
    plugin = Plugin(table, kubelet_dir, resource, node, gives)
    log.info("%s for the kubelet in %s, as node %s", resource, kubelet_dir, node)
    while not stop.is_set():
        plugin.keep()
        stop.wait(_LOOK_S)
    plugin.stop()


def _fail(text: str) -> NoReturn:
    print(f"orion-device-plugin: {text}", file=sys.stderr)
    raise typer.Exit(_EXIT_USAGE)


def main() -> None:
    """Entry of the installed command."""
    app(prog_name="orion-device-plugin")


if __name__ == "__main__":
    main()
