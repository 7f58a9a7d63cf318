"""orion-dra-driver: vGPUs for ResourceClaims."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from orion_controller.kube_api import Access, KubeApi, KubeConfigError, find_access
from orion_k8s.dra import DRIVER, cdi
from orion_k8s.dra.node import Claims
from orion_k8s.dra.plugin import PLUGINS, REGISTRY, Plugin
from orion_k8s.dra.pool_api import PoolApi
from orion_k8s.dra.publish import Publisher

log = logging.getLogger("orion.dra")

CDI = Path("/var/run/cdi")

EXIT_SETUP = 2
_DNS = re.compile(r"(?=.{1,63}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_HELP = """Orion's driver for Dynamic Resource Allocation (Kubernetes 1.34 and later).

`publish` runs once in a cluster and keeps its ResourceSlices as the pool is; `node` runs on every node and prepares
ResourceClaims for the kubelet.

\b
  orion-dra-driver publish --controller-url http://orion-controller:15500 --controller-token-file /etc/orion/token
  orion-dra-driver node --controller-url http://orion-controller:15500 --controller-token-file /etc/orion/token
                        --controller orion-controller:9123 --client-folder /var/lib/orion/client
"""
app = typer.Typer(add_completion=False, rich_markup_mode=None, help=_HELP, no_args_is_help=True)

Url = Annotated[list[str], typer.Option("--controller-url", metavar="URL", help="The controller's API; once for each "
                                        "replica.")]  # fmt: skip
Token = Annotated[Path | None, typer.Option("--controller-token-file", help="A token of the role operator "
                                            "(orion-controller token create dra --role operator).")]  # fmt: skip
Ca = Annotated[Path | None, typer.Option("--controller-ca-file", help="Whose certificate the API has.")]
Driver = Annotated[str, typer.Option(help="The driver's name, as DeviceClasses select it.")]
Prefix = Annotated[str, typer.Option("--pool", help="Of the names of the DRA pools: NAME/SERVER.")]
Kubeconfig = Annotated[str, typer.Option(help="How the API server is reached from outside of a pod.")]


@app.command(help="Publishes the pool as ResourceSlices.")
def publish(
    controller_url: Url, controller_token_file: Token = None, controller_ca_file: Ca = None, driver: Driver = DRIVER,
    pool: Prefix = "orion", kubeconfig: Kubeconfig = "",
    devices: Annotated[Literal["consumable", "slots"], typer.Option(
        help="consumable: each GPU is a device of which claims take gmem and ratio (Kubernetes 1.36, or the feature "
        "gate DRAConsumableCapacity). slots: each of its equal parts is a device.")] = "consumable",
    node_label: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Only pods on nodes with this "
                                                         "label reach the pool; default: all nodes.")] = None,
    interval_s: Annotated[float, typer.Option(min=0.05, max=3600, help="Between looks at the pool.")] = 5.0,
) -> None:  # fmt: skip
    labels = _pairs(node_label or [], "--node-label")
    _check_names(driver, pool)
    access = _access(kubeconfig)

    async def body() -> None:
        async with (
            KubeApi(access, user_agent="orion-dra-driver") as kube,
            PoolApi(controller_url, controller_token_file, controller_ca_file) as api,
        ):
            publisher = Publisher(kube, api, driver=driver, prefix=pool, mode=devices, nodes=labels,
                                  interval_s=interval_s)  # fmt: skip
            await publisher.run()

    _run(body())


@app.command(help="Prepares ResourceClaims for this node's kubelet.")
def node(
    controller_url: Url,
    controller: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where programs find the controller "
                                            "(ORION_CONTROLLER); with commas for several replicas.")],
    controller_token_file: Token = None, controller_ca_file: Ca = None, driver: Driver = DRIVER,
    pool: Prefix = "orion", kubeconfig: Kubeconfig = "",
    client_folder: Annotated[Path, typer.Option(help="Of the node, with libcuda.so.1; containers see it as "
                                                f"{cdi.LIBRARIES}.")] = Path(cdi.CLIENT_FOLDER),
    socket_folder: Annotated[Path, typer.Option(help="Of the node, with its orion-server's sockets; containers see it "
                                                f"as {cdi.SOCKETS} where it is there.")] = Path(cdi.SOCKETS),
    env: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="For every container, for instance "
                                                  "ORION_CONTROLLER_KEY=...")] = None,
    cluster_id: Annotated[str, typer.Option(envvar="ORION_CLUSTER_ID", metavar="NAME", help="Tells this cluster from "
                                            "the controller's others; empty: the uid of its namespace kube-system.")
                          ] = "",
    cdi_folder: Annotated[Path, typer.Option(help="Where the container runtime reads CDI files.")] = CDI,
    plugins_folder: Annotated[Path, typer.Option(help="The kubelet's.")] = PLUGINS,
    registry_folder: Annotated[Path, typer.Option(help="The kubelet's.")] = REGISTRY,
) -> None:  # fmt: skip
    _check_names(driver, pool)
    contents = cdi.Contents(controller, client_folder, socket_folder, _pairs(env or [], "--env"))
    access = _access(kubeconfig)

    async def body() -> None:
        async with (
            KubeApi(access, user_agent="orion-dra-driver") as kube,
            PoolApi(controller_url, controller_token_file, controller_ca_file) as api,
        ):
            claims = Claims(kube, api, driver=driver, prefix=pool, state=plugins_folder / driver / "claims",
                            cdi_folder=cdi_folder, contents=contents, cluster=cluster_id)  # fmt: skip
            plugin = Plugin(driver, claims, plugins_folder, registry_folder)
            claims.load()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(plugin.run())
                tasks.create_task(claims.keep())

    _run(body())


def _check_names(driver: str, pool: str) -> None:
    if not _DNS.fullmatch(driver) or "." not in driver:
        _fail(f"--driver {driver}: it is a name like {DRIVER}, of 63 characters at most")
    if not _DNS.fullmatch(pool):
        _fail(f"--pool {pool}: it is a name of small letters, digits and dashes")


def _pairs(texts: list[str], option: str) -> dict[str, str]:
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name or "\0" in text:
            _fail(f"{option} {text}: it is NAME=VALUE")
        found[name] = value
    return found


def _access(kubeconfig: str) -> Access:
    try:
        return find_access(kubeconfig)
    except KubeConfigError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"orion-dra-driver: {message}", file=sys.stderr)
    raise typer.Exit(EXIT_SETUP)


def _run(body: Coroutine[Any, Any, None]) -> None:
    """Until SIGTERM or SIGINT."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)

    async def main() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(body)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            log.info("stopped")

    try:
        asyncio.run(main())
    except* (OSError, ValueError) as group:
        for error in group.exceptions:
            print(f"orion-dra-driver: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_SETUP) from None


def main() -> None:
    app()


if __name__ == "__main__":
    main()
