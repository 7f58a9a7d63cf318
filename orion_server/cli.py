"""The command line of orion-server."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from orion_server import __version__
from orion_server import log as log_setup
from orion_server.config import (
    DEFAULT_CONFIG_FILE,
    DEFAULT_METRICS_PORT,
    LOG_LEVELS,
    ConfigError,
    Settings,
    check_choices,
    check_loopback,
    check_pool,
    check_slices,
    load_file,
    parse_listen,
    private_directory,
    read_key,
    shm_directory,
)
from orion_server.isolation import DEFAULT_WORKER_UIDS, parse_uids
from orion_server.libcuda import Libcuda, LibcudaError, choose
from orion_server.metrics import MetricsPort
from orion_server.network import cautions, check_exposed, key_pair
from orion_server.rdma import bind_to_net
from orion_server.rdma import check as check_rdma
from orion_server.server import Server
from orion_server.shares import raise_descriptor_limit
from orion_server.worker_process import WorkerError

log = logging.getLogger("orion.server")
_PR_SET_PDEATHSIG = 1
_EXIT_SETUP = 2

_HELP = """Serves this machine's GPUs to CUDA programs that run elsewhere.

Each client process gets a worker process of its own, with CUDA contexts that were made beforehand. Without a GPU the
workers use softgpu, a software GPU, so that everything can be tried anywhere.

\b
  orion-server                                the best device here, on 127.0.0.1:9960
  orion-server --listen 127.0.0.1:0           on any free port, which is printed
  orion-server --device softgpu --warm 2      no GPU needed, two workers kept ready
  orion-run -- python my_cuda_program.py      on the client: run a program on it
  orion-smi                                   who uses what
  orionctl set GROUP --ratio 50               change a vGPU while its programs run

Each program gets a vGPU on each GPU that it uses: a memory quota and a compute ratio that hold. Who asks for nothing
(ORION_GMEM, ORION_RATIO) gets 1 of --vgpu-count parts of the GPU, by default a quarter. To give whole GPUs:
--vgpu-count 1 (one program on each GPU at a time) or --vgpu-count 0 (no limits for who asks for none).

Other machines reach it only with an encrypted control port and clients that prove who they are:

\b
  openssl rand -hex 32 > client-key                                     for the clients: ORION_CLIENT_KEY
  orion-server --listen 0.0.0.0:9960 --client-key-file client-key
  orion-server key                                                      for the clients: ORION_SERVER_KEY
  orion-server --listen 0.0.0.0:9960 --controller pool:9123 --controller-key KEY --pool-key-file FILE      in a pool

SIGTERM or Ctrl-C drains: no new clients, exit when the last one has left or after --drain-timeout. A second one stops
at once. Settings are read from /etc/orion/server.conf first ([server] listen_port, bind_addr, enable_shm, device,
libcuda, devices, nvml, enable_rdma, ibverbs_device, bind_net, warm_workers, max_sessions, image_cache_mib,
vgpu_count, ratio_policy, overcommit_ratio, pinned_mib, reserve_mib, swap_mib, metrics_listen, curve, encrypt,
client_key_file, drain_timeout, comm_path, shm_dir, worker_uids, require_isolation; [log] log_level, json);
options win.
"""

app = typer.Typer(add_completion=True, rich_markup_mode=None)


@app.command(help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
def serve(
    listen: Annotated[
        str | None, typer.Option(help="ADDRESS:PORT (127.0.0.1:9960); port 0 takes any free one.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto (a GPU, else softgpu), nvidia or softgpu.")] = None,
    libcuda: Annotated[
        str | None, typer.Option(metavar="PATH", help="The driver's libcuda.so.1, if not found.")
    ] = None,
    devices: Annotated[
        str | None, typer.Option(help="GPUs to serve, as in CUDA_VISIBLE_DEVICES: 0,2 or UUIDs.")
    ] = None,
    nvml: Annotated[
        str | None, typer.Option(metavar="PATH", help="libnvidia-ml.so.1: auto (beside libcuda), off, or a path.")
    ] = None,
    warm: Annotated[int | None, typer.Option(min=0, max=64, help="Workers kept ready (2 on a GPU, else 1).")] = None,
    max_sessions: Annotated[int | None, typer.Option(min=1, max=4096, help="Clients at once (default 64).")] = None,
    image_cache_mib: Annotated[
        int | None, typer.Option(min=0, max=1 << 20, help="Memory for images of earlier clients (2048; 0: none).")
    ] = None,
    vgpu_count: Annotated[
        int | None, typer.Option(min=0, max=100, help="Default vGPU: 1 of N parts of a GPU (4); 0: no limits.")
    ] = None,
    ratio_policy: Annotated[
        str | None, typer.Option(help="hard (default): never above the ratio; elastic: idle GPU time too.")
    ] = None,
    overcommit_ratio: Annotated[
        bool, typer.Option(help="Ratios of a GPU may sum to more than 100 %: they share in proportion.")
    ] = False,
    pinned_mib: Annotated[
        int | None, typer.Option(min=0, help="Pinned host memory of each client in MiB (0: no limit).")
    ] = None,
    reserve_mib: Annotated[
        int | None, typer.Option(min=0, help="MiB of each GPU's memory that no vGPU gets, for other programs (0).")
    ] = None,
    swap_mib: Annotated[
        int | None,
        typer.Option(min=0, help="Quotas of a GPU may exceed its memory by this: what is idle goes to host memory."),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Prometheus metrics and /healthz there; loopback only.")
    ] = None,
    controller: Annotated[
        str | None, typer.Option(metavar="HOST:PORT,...", help="Join the pool of this orion-controller (port 9123).")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the pool (the machine's name).")] = None,
    advertise: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where clients of the pool reach this server, if elsewhere.")
    ] = None,
    controller_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Its public key: what `orion-controller key` prints there.")
    ] = None,
    pool_key_file: Annotated[Path | None, typer.Option(metavar="PATH", help="File with the pool's server key.")] = None,
    curve: Annotated[str | None, typer.Option(help="Encrypt the control port: auto (off loopback), on or off.")] = None,
    encrypt: Annotated[
        str | None, typer.Option(help="Encrypt TCP lanes: auto (off loopback), required or off.")
    ] = None,
    enable_rdma: Annotated[
        bool, typer.Option(help="Offer RDMA through UCX, which is not encrypted (docs/rdma.md).")
    ] = False,
    ibverbs_device: Annotated[
        str | None, typer.Option(metavar="NAME", help="The RDMA device to use, such as mlx5_0 (any).")
    ] = None,
    bind_net: Annotated[
        str | None, typer.Option(metavar="NAME", help="Listen on the address of this network interface.")
    ] = None,
    client_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Clients must show the key in FILE (ORION_CLIENT_KEY there).")
    ] = None,
    null_engine: Annotated[bool, typer.Option(help="Accept and drop all work: measures the path, not a GPU.")] = False,
    drain_timeout: Annotated[float | None, typer.Option(min=0, help="Seconds to wait when draining (30).")] = None,
    bind_timeout: Annotated[float | None, typer.Option(min=0.1, help="Seconds a client has to bind (10).")] = None,
    worker_uids: Annotated[
        str | None,
        typer.Option(metavar="FIRST-LAST", help="A uid for each worker, of these (root: 60578-61183), or off."),
    ] = None,
    require_isolation: Annotated[
        bool, typer.Option(help="Do not start where workers cannot have uids of their own and seccomp.")
    ] = False,
    no_seccomp: Annotated[
        bool, typer.Option("--no-seccomp", help="To debug: workers may make every system call.")
    ] = False,
    socket_dir: Annotated[
        Path | None, typer.Option("--socket-dir", "--state-dir", help="Folder of unix sockets, mode 0700, per user.")
    ] = None,
    shm_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Sessions' sockets there, for clients in containers (root: of any user)."),
    ] = None,
    ready_file: Annotated[Path | None, typer.Option(help="Written when ready, one line: the address.")] = None,
    ready_fd: Annotated[int | None, typer.Option(min=0, help="The same line on this descriptor, then closed.")] = None,
    exit_with_parent: Annotated[bool, typer.Option(help="Stop when the starting process ends.")] = False,
    config: Annotated[Path | None, typer.Option(help="Configuration file (/etc/orion/server.conf).")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    json_log: Annotated[bool, typer.Option(help="Log one JSON object a line.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Reads the settings and serves until told to stop."""
    if version:
        print(f"orion-server {__version__}")
        return
    if exit_with_parent:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    try:
        settings = _settings(config)
        if listen is not None:
            host, port = parse_listen(listen)
            settings = replace(settings, host=host, port=port)
        given: dict[str, Any] = {
            "device": device,
            "libcuda": libcuda,
            "devices": devices,
            "nvml": nvml,
            "warm": warm,
            "max_sessions": max_sessions,
            "image_cache_mib": image_cache_mib,
            "vgpu_count": vgpu_count,
            "ratio_policy": ratio_policy,
            "overcommit_ratio": overcommit_ratio or None,
            "pinned_mib": pinned_mib,
            "reserve_mib": reserve_mib,
            "swap_mib": swap_mib,
            "metrics_listen": metrics,
            "controller": controller,
            "controller_key": controller_key,
            "name": name,
            "advertise": advertise,
            "pool_key": read_key(pool_key_file) if pool_key_file is not None else None,
            "curve": curve,
            "encrypt": encrypt,
            "enable_rdma": enable_rdma or None,
            "ibverbs_device": ibverbs_device,
            "bind_net": bind_net,
            "client_key_file": client_key_file,
            "drain_timeout_s": drain_timeout,
            "bind_timeout_s": bind_timeout,
            "worker_uids": worker_uids,
            "require_isolation": require_isolation or None,
            "seccomp": False if no_seccomp else None,
            "socket_dir": socket_dir,
            "shm_dir": shm_dir,
            "ready_file": ready_file,
            "ready_fd": ready_fd,
            "log_level": log_level,
            "json_log": json_log or None,
        }
        settings = replace(settings, **{key: value for key, value in given.items() if value is not None})
        if settings.log_level not in LOG_LEVELS:
            raise ConfigError(f"--log-level is one of {', '.join(LOG_LEVELS)}")
        check_slices(settings)
        parse_uids(settings.worker_uids or DEFAULT_WORKER_UIDS)
        settings = check_pool(settings)
        if settings.metrics_listen is not None:
            metrics_host, _ = parse_listen(settings.metrics_listen, "--metrics", DEFAULT_METRICS_PORT)
            check_loopback(metrics_host, "--metrics")
        settings = bind_to_net(settings)
        check_choices(settings)
        check_rdma(settings)
        check_exposed(settings)
        if settings.device not in ("auto", "nvidia", "softgpu"):
            raise ConfigError("--device is one of auto, nvidia, softgpu")
        folder = private_directory(settings.socket_dir)
        if settings.shm_dir is not None:
            shm_directory(settings.shm_dir)
        chosen = choose("null" if null_engine else settings.device, settings.libcuda)
    except (ConfigError, LibcudaError) as error:
        print(f"orion-server: {error}", file=sys.stderr)
        raise typer.Exit(_EXIT_SETUP) from None
    log_setup.configure(settings.log_level, settings.json_log)
    raise_descriptor_limit()
    for key in settings.ignored:
        log.warning("configuration: %s is not known to this version and was ignored", key)
    for line in cautions(settings):
        log.warning("%s", line)
    raise typer.Exit(uvloop.run(_serve(settings, chosen, folder)))


def _settings(path: Path | None) -> Settings:
    if path is not None:
        return load_file(path, Settings())
    return load_file(DEFAULT_CONFIG_FILE, Settings()) if DEFAULT_CONFIG_FILE.is_file() else Settings()


async def _serve(settings: Settings, libcuda: Libcuda, folder: Path) -> int:
    loop = asyncio.get_running_loop()
    stop_now = asyncio.Event()
    drain_task: asyncio.Task[None] | None = None
    try:
        server = Server(settings, libcuda, folder)
    except ConfigError as error:
        print(f"orion-server: {error}", file=sys.stderr)
        return _EXIT_SETUP
    metrics: MetricsPort | None = None

    async def drain_then_stop() -> None:
        try:
            await asyncio.wait_for(server.drain(), settings.drain_timeout_s)
        except TimeoutError:
            log.warning("drain timed out after %g s: stopping with clients attached", settings.drain_timeout_s)
        stop_now.set()

    def on_signal() -> None:
        nonlocal drain_task
        if drain_task is None:
            drain_task = asyncio.create_task(drain_then_stop())
        else:
            stop_now.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        starting = asyncio.ensure_future(server.start())
        stopping = asyncio.ensure_future(stop_now.wait())
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await server.close()
            return 0
        starting.result()
        if settings.metrics_listen is not None:
            host, port = parse_listen(settings.metrics_listen, "--metrics", DEFAULT_METRICS_PORT)
            metrics = MetricsPort(host, port, server.report, loop)
            log.info("metrics on http://%s/metrics", metrics.address)
    except (OSError, WorkerError) as error:
        print(f"orion-server: {getattr(error, 'strerror', None) or f'cannot serve: {error}'}", file=sys.stderr)
        await server.close()
        return 1
    if server.public_key:
        log.info("the control port is encrypted; clients need ORION_SERVER_KEY=%s", server.public_key)
    _announce(settings, libcuda, server)
    await stopping
    if metrics is not None:
        metrics.close()
    await server.close()
    log.info("stopped")
    return 0


def _announce(settings: Settings, libcuda: Libcuda, server: Server) -> None:
    names = ", ".join(gpu.name for gpu in server.gpus)
    print(f"orion-server {__version__} on {server.address} ({libcuda.kind}: {names})", flush=True)
    line = f"{server.address}\n"
    if settings.ready_file is not None:
        # Renamed into place: who waits for the file never reads half of it.
        partial = settings.ready_file.with_name(settings.ready_file.name + ".part")
        partial.write_text(line)
        partial.replace(settings.ready_file)
    if settings.ready_fd is not None:
        os.write(settings.ready_fd, line.encode())
        os.close(settings.ready_fd)


key_app = typer.Typer(add_completion=False, rich_markup_mode=None)


@key_app.command(context_settings={"help_option_names": ["-h", "--help"]})
def key(
    socket_dir: Annotated[
        Path | None, typer.Option("--socket-dir", "--state-dir", help="The server's folder, as it is started with.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration file (/etc/orion/server.conf).")] = None,
) -> None:
    """Prints the public key of this user's servers: what clients name in ORION_SERVER_KEY. Made if there is none."""
    try:
        print(key_pair(private_directory(socket_dir or _settings(config).socket_dir)).public)
    except ConfigError as error:
        print(f"orion-server key: {error}", file=sys.stderr)
        raise typer.Exit(_EXIT_SETUP) from None


def main() -> None:
    """Entry of the installed command."""
    if sys.argv[1:2] == ["key"]:
        key_app(args=sys.argv[2:], prog_name="orion-server key")
    app(prog_name="orion-server")
