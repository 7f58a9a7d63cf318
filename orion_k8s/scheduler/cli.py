"""The command line of orion-scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orion_controller import __version__
from orion_controller import log as logs
from orion_controller.config import ConfigError
from orion_k8s.asks import RESOURCE
from orion_k8s.scheduler import config
from orion_k8s.scheduler.controller_client import Credentials
from orion_k8s.scheduler.extender import Options as ExtenderOptions
from orion_k8s.webhook.admission import AUDIENCE, SCHEDULER
from orion_k8s.webhook.admission import Options as WebhookOptions

_HELP = """Runs beside kube-scheduler: the extender that reserves pods' vGPUs in the controller, the admission webhook,
and what keeps reservations and pods the same.

\b
  orion-scheduler --controller http://orion-controller:15500 --controller-token-file FILE
  orion-scheduler ... --webhook-listen 0.0.0.0:8443 --tls-cert C --tls-key K
  orion-scheduler config              the KubeSchedulerConfiguration with which kube-scheduler runs with it

The API server is that of the pod's service account, of --kubeconfig or of KUBECONFIG. The token is an operator's:
orion-controller token create scheduler --role operator.

Exit codes: 0 done; 1 it has failed; 2 wrong usage or configuration.
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None, help=_HELP,
                  context_settings={"help_option_names": ["-h", "--help"]})  # fmt: skip
Resource = Annotated[str, typer.Option(envvar="ORION_RES_NAME", metavar="NAME", help="The extended resource.")]
Name = Annotated[str, typer.Option(metavar="NAME", help="schedulerName of pods that ask for vGPUs.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"orion-scheduler {__version__}")
        raise typer.Exit


def _address(text: str, what: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise typer.BadParameter(f"{what} is HOST:PORT, not {text!r}")
    return host.strip("[]"), int(port)


@app.callback(invoke_without_command=True)
def main_options(
    context: typer.Context,
    controller: Annotated[
        str, typer.Option(envvar="ORION_CONTROLLER_URL", metavar="URL[,URL]", help="The controller's API.")
    ] = "http://127.0.0.1:15502",
    controller_token_file: Annotated[
        Path | None, typer.Option(envvar="ORION_CONTROLLER_TOKEN_FILE", metavar="FILE", help="A token of an operator.")
    ] = None,
    controller_user: Annotated[
        str, typer.Option(envvar="ORION_CONTROLLER_USER", metavar="NAME", help="Logs in, where there is no token.")
    ] = "admin",
    controller_password_file: Annotated[
        Path | None, typer.Option(envvar="ORION_CONTROLLER_PASSWORD_FILE", metavar="FILE", help="That user's password.")
    ] = None,
    controller_ca: Annotated[
        Path | None, typer.Option(envvar="ORION_CONTROLLER_CA", metavar="FILE", help="Who vouches for its TLS, PEM.")
    ] = None,
    kubeconfig: Annotated[str, typer.Option(metavar="FILE", help="Instead of the pod's service account.")] = "",
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="The extender; loopback.")] = "127.0.0.1:8888",
    webhook_listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="The webhook; empty: none.")] = "",
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="The webhook's certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key, PEM.")] = None,
    resource: Resource = RESOURCE,
    scheduler_name: Name = SCHEDULER,
    token_audience: Annotated[
        str, typer.Option(metavar="NAME", help="Of the token that the webhook adds to pods; empty: it adds none.")
    ] = AUDIENCE,
    cluster_id: Annotated[
        str,
        typer.Option(
            envvar="ORION_CLUSTER_ID",
            metavar="NAME",
            help="Tells this cluster from the controller's others; empty: the uid of its namespace kube-system.",
        ),
    ] = "",
    reserve_s: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, max=3600, help="vGPUs wait so long for their pod to be bound.")
    ] = 60.0,
    reconcile_s: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, max=3600, help="How often pods and reservations are compared.")
    ] = 30.0,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    json_log: Annotated[bool, typer.Option(help="Log one JSON object a line.")] = False,
    ready_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Written when ready: the extender's URL, then the webhook's.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    from orion_k8s.scheduler import daemon  # late: `config` needs none of it

    host, port = _address(listen, "--listen")
    webhook_host, webhook_port = _address(webhook_listen, "--webhook-listen") if webhook_listen else ("", None)
    settings = daemon.Settings(
        controllers=tuple(filter(None, (url.strip() for url in controller.split(",")))),
        credentials=Credentials(controller_token_file, controller_user, controller_password_file),
        controller_ca=controller_ca, kubeconfig=kubeconfig, host=host, port=port, webhook_host=webhook_host,
        webhook_port=webhook_port, tls_cert=tls_cert, tls_key=tls_key,
        extender=ExtenderOptions(resource=resource, reserve_s=reserve_s, cluster=cluster_id),
        webhook=WebhookOptions(resource=resource, scheduler=scheduler_name, audience=token_audience),
        reconcile_s=reconcile_s, ready_file=ready_file,
    )  # fmt: skip
    try:
        settings.check()
        logs.configure(log_level, json_log, None)
    except (daemon.SettingsError, ConfigError, ValueError) as error:
        typer.echo(f"orion-scheduler: {error}", err=True)
        raise typer.Exit(daemon.EXIT_SETUP) from None
    raise typer.Exit(daemon.run(settings))


@app.command("config", help="Prints a KubeSchedulerConfiguration with the extender.")
def print_config(
    kubernetes: Annotated[str, typer.Option(metavar="VERSION", help="Of the cluster: 1.20, 1.37.")] = "1.37",
    scheduler_name: Name = SCHEDULER,
    resource: Resource = RESOURCE,
    extender: Annotated[str, typer.Option(metavar="URL", help="Where orion-scheduler listens.")] = (
        "http://127.0.0.1:8888"
    ),
    kubeconfig: Annotated[str, typer.Option(metavar="FILE", help="For a kube-scheduler outside a pod.")] = "",
    namespace: Annotated[str, typer.Option(metavar="NAME", help="Of the lease with which replicas elect.")] = (
        "kube-system"
    ),
    leader_elect: Annotated[bool, typer.Option(help="Several replicas elect one.")] = True,
) -> None:
    try:
        version = config.api_version(kubernetes)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    typer.echo(config.text(
        api_version=version, scheduler=scheduler_name, resource=resource, extender=extender, kubeconfig=kubeconfig,
        namespace=namespace, leader_elect=leader_elect,
    ), nl=False)  # fmt: skip


def main() -> None:
    app()
