"""orion-run: runs an unmodified CUDA program on a vGPU."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from typing import Annotated, NoReturn

import typer

from orion_client import __version__, libraries, settings
from orion_client.control_client import port_answers
from orion_client.private_server import PrivateServer, PrivateServerFailed

# As env(1) and timeout(1): our own failure, a program that cannot be run, one that is not there.
EXIT_OURS, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 125, 126, 127
_PROBE_TIMEOUT_S = 0.3
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_SI_KERNEL = 0x80

_HELP = """Runs PROGRAM on a GPU of an orion-server, as if the GPU were in this machine.

The program needs no change and this machine no GPU and no driver. The server is the one in --server, else in
ORION_SERVER (environment, ~/.orion/client.conf or /etc/orion/client.conf), else what a controller gives (--controller,
ORION_CONTROLLER, or controller_addr in those files), else one at 127.0.0.1:9960, else a private one that is started for
this program and stopped with it. Where no nvidia-smi is in PATH, Orion's is put there.

\b
  orion-run -- python train.py --epochs 3
  orion-run --server 127.0.0.1:9960 --transport tcp -- ./vectorAdd
  orion-run --controller pool:9123 --vgpu 4 -- python train.py
  orion-run --gmem 8192 --ratio 50 -- python train.py    a vGPU of 8 GiB and half of the GPU's time
  orion-run --sync -- ./program      every CUDA call waits: shows which one fails

The exit code is the program's. 125: orion-run itself failed; 126: PROGRAM cannot be executed; 127: no such PROGRAM.
"""

app = typer.Typer(add_completion=True, rich_markup_mode=None)


@app.command(
    help=_HELP, context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]}
)  # fmt: skip
def run(
    program: Annotated[list[str] | None, typer.Argument(metavar="PROGRAM [ARGS]...")] = None,
    server: Annotated[str | None, typer.Option(help="HOST:PORT, or several with commas: their GPUs add up.")] = None,
    controller: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="vGPUs of a pool.")] = None,
    transport: Annotated[str | None, typer.Option(help="auto, shm (same host), ucx (RDMA) or tcp.")] = None,
    vgpu: Annotated[int | None, typer.Option(min=1, max=64, help="How many vGPUs (default: all there).")] = None,
    gmem: Annotated[int | None, typer.Option(min=1, help="Memory of each vGPU in MiB (default: the server's).")] = None,
    ratio: Annotated[int | None, typer.Option(min=1, max=100, help="Share of the GPU's time in percent (default: the "
                                              "server's).")] = None,
    device: Annotated[str, typer.Option(help="Device of a private server: auto, nvidia or softgpu.")] = "auto",
    sync: Annotated[bool, typer.Option("--sync", help="Wait after every CUDA call (ORION_SYNC=1).")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="The library tells what it does.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:  # fmt: skip
    """Sets the environment, finds or starts a server, runs the program."""
    if version:
        print(f"orion-run {__version__}")
        return
    if not program:
        _fail("no PROGRAM given; for example: orion-run -- python my_cuda_program.py")
    if transport not in (None, "auto", "shm", "ucx", "tcp"):
        _fail(f"--transport {transport}: it is auto, shm, ucx or tcp")
    if server and controller:
        _fail("--server and --controller: name one of them")
    chosen: dict[str, str | None] = {
        "ORION_TRANSPORT": transport,
        "ORION_VGPU": str(vgpu) if vgpu else None,
        "ORION_GMEM": str(gmem) if gmem else None,
        "ORION_RATIO": str(ratio) if ratio else None,
        "ORION_SYNC": "1" if sync else None,
        "ORION_LOG": "info" if verbose else None,
    }
    environment = dict(os.environ)
    private: PrivateServer | None = None
    try:
        environment |= libraries.tools_environment(environment)
        executable = _find(program[0], environment.get("PATH"))
        pool = _controllers(controller) if not server else ""
        addresses = ",".join(settings.parse_server(s) for s in server.split(",")) if server else ""
        if not addresses and not pool:
            addresses = _configured()
        if not addresses and not pool:
            _say(f"no server configured and none at {settings.DEFAULT_SERVER}: starting a private one ...")
            private = PrivateServer(device)
            addresses = private.address
            environment["ORION_SERVER_KEY"] = settings.NO_KEYS
            _say(f"private orion-server on {addresses}, stopped when the program ends")
        environment.update(libraries.environment())
        if pool:
            environment["ORION_CONTROLLER"] = pool
            environment.pop("ORION_SERVER", None)
        else:
            environment["ORION_SERVER"] = addresses
        environment.update({key: value for key, value in chosen.items() if value is not None})
    except (settings.SettingError, PrivateServerFailed, libraries.LibrariesMissing) as error:
        if private is not None:
            private.stop()
        _fail(str(error))
    if private is None:
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            os.execve(executable, program, environment)
        except OSError as error:
            _fail(f"{program[0]}: {error.strerror}", EXIT_NOT_EXECUTABLE)
    try:
        status = _run_beside(executable, program, environment)
    finally:
        private.stop()
    _exit_like(status)


def _controllers(named: str | None) -> str:
    """The replicas of the controller that was named or configured; empty when there is none."""
    if named:
        return ",".join(settings.parse_server(item, settings.DEFAULT_CONTROLLER_PORT) for item in named.split(","))
    return ",".join(settings.controllers())


def _configured() -> str:
    """Servers that somebody configured, or the default one when it is there."""
    configured = settings.servers()
    if configured:
        return ",".join(configured)
    return "" if port_answers(settings.DEFAULT_SERVER, _PROBE_TIMEOUT_S) else settings.DEFAULT_SERVER


def _find(name: str, search: str | None) -> str:
    path = shutil.which(name, path=search)
    if path is None:
        exists = os.sep in name and os.path.exists(name)
        _fail(f"{name}: {'not executable' if exists else 'no such program'}",
              EXIT_NOT_EXECUTABLE if exists else EXIT_NOT_FOUND)  # fmt: skip
    return path


def _run_beside(executable: str, program: list[str], environment: dict[str, str]) -> int:
    """Runs the program as a child, passing signals on; returns its wait status."""
    watched = {*_FORWARDED, signal.SIGCHLD}
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        try:
            os.execve(executable, program, environment)
        except OSError as error:
            os.write(2, f"orion-run: {program[0]}: {error.strerror}\n".encode())
        os._exit(EXIT_NOT_EXECUTABLE)
    while True:
        information = signal.sigwaitinfo(watched)
        if information.si_signo != signal.SIGCHLD:
            # A signal from the terminal has reached the program's process group, and so the program, already.
            if information.si_code != _SI_KERNEL:
                os.kill(pid, information.si_signo)
            continue
        done, status = os.waitpid(pid, os.WNOHANG)
        if done == pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
            return status


def _exit_like(status: int) -> None:
    """Ends as the program did: the same code, or the same signal so that shells see it."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        sys.stdout.flush()
        sys.stderr.flush()
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    raise typer.Exit(os.waitstatus_to_exitcode(status))


def _say(text: str) -> None:
    print(f"orion-run: {text}", file=sys.stderr, flush=True)


def _fail(text: str, code: int = EXIT_OURS) -> NoReturn:
    _say(text)
    raise typer.Exit(code)


def main() -> None:
    """Entry of the installed command."""
    app(prog_name="orion-run")


if __name__ == "__main__":
    main()
