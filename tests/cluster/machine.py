"""A machine made of namespaces: own processes, mounts, network, control groups; nothing of it stays when it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SCRIPT = Path(__file__).with_name("machine.sh")
CGROUPS = Path("/sys/fs/cgroup")
# A process that enters keeps its control group; the kubelet and containerd must not see one outside of the machine's.
INTO_CGROUPS = 'for file in /sys/fs/cgroup/*/cgroup.procs; do echo 0 >"$file"; done; exec "$@"'
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def check_host() -> None:
    """Fails with one sentence for everything that this machine lacks."""
    lacks = []
    if os.geteuid() != 0:
        lacks.append("root (namespaces, mounts and control groups are made)")
    kernel = Path("/proc/filesystems").read_text().split()
    if "overlay" not in kernel:
        lacks.append("overlayfs in the kernel")
    if not (CGROUPS / "memory").is_dir():
        lacks.append("control groups of version 1 at /sys/fs/cgroup (the kubelet here is 1.20)")
    if lacks:
        raise RuntimeError(f"the cluster tests need: {'; '.join(lacks)}")


class Machine:
    """`work` is a folder on a disk, bound at the same path inside; `tools`/usr is laid over /usr inside."""

    def __init__(self, name: str, work: Path, tools: Path) -> None:
        check_host()
        self.name = name
        self.work = work
        self.logs = work / "logs"
        self.logs.mkdir(parents=True)
        self._cgroup = f"orion-test-{os.getpid()}-{name}"
        self._services: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, tuple[Sequence[str | Path], Mapping[str, str] | None]] = {}
        # The whole machine dies with the process that made it, however that ends.
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", str(SCRIPT), name, str(tools), str(work), self._cgroup],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            assert self._holder.stdout is not None and self._holder.stderr is not None
            if self._holder.stdout.readline().strip() != "READY":
                self._holder.kill()
                raise RuntimeError(f"machine {name} did not start: {self._holder.stderr.read()}")
            children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
            (self.pid,) = map(int, children)
        except BaseException:
            self.stop()
            raise

    def _enter(self, command: Sequence[str | Path]) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-m", "-n", "-p", "-i", "-u", "-C", "--", *map(str, command)]

    def _environment(self, extra: Mapping[str, str] | None) -> dict[str, str]:
        return {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", **(extra or {})}

    def run(
        self,
        command: Sequence[str | Path],
        *,
        stdin: str | None = None,
        check: bool = True,
        timeout_s: float = 120,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program inside; its output is in the error when it fails."""
        done = subprocess.run(
            self._enter(command),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=self._environment(env),
            check=False,
        )
        if check and done.returncode != 0:
            text = " ".join(map(str, command))
            raise RuntimeError(f"{self.name}: {text}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def start(self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        """Starts a long-running program inside; it writes to logs/NAME.log."""
        self._commands[name] = (command, env)
        with (self.logs / f"{name}.log").open("ab") as log:
            self._services[name] = subprocess.Popen(
                self._enter(["sh", "-c", INTO_CGROUPS, name, *command]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(env),
            )

    def end(self, name: str, with_signal: signal.Signals = signal.SIGTERM, timeout_s: float = 30) -> None:
        """Ends a program that `start` started: the child of nsenter, which passes no signal on."""
        service = self._services.pop(name)
        for child in Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), with_signal)
        service.wait(timeout_s)

    def start_again(self, name: str) -> None:
        """Starts what `end` has ended, as it was."""
        self.start(name, *self._commands[name])

    def ended(self) -> dict[str, int]:
        """Programs of `start` that have ended by themselves, with their exit status."""
        return {name: code for name, one in self._services.items() if (code := one.poll()) is not None}

    def log(self, name: str, lines: int = 40) -> str:
        path = self.logs / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def stop(self) -> None:
        """Ends everything in the machine at once and removes its control groups."""
        self._holder.kill()
        self._holder.wait()
        for service in self._services.values():
            service.kill()
            service.wait()
        for stream in (self._holder.stdout, self._holder.stderr):
            if stream is not None:
                stream.close()
        deadline = time.monotonic() + 30
        for controller in CGROUPS.iterdir():
            top = controller / self._cgroup
            while top.is_dir():
                try:
                    for folder, _, _ in os.walk(top, topdown=False):
                        os.rmdir(folder)
                except OSError:
                    # Processes that were killed are a moment in their group.
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)


def connect(first: Machine, second: Machine, first_name: str, second_name: str) -> None:
    """A cable between two machines, with the names that its ends have there."""
    command = ["ip", "link", "add", first_name, "netns", str(first.pid), "type", "veth"]
    subprocess.run([*command, "peer", "name", second_name, "netns", str(second.pid)], check=True)
    first.run(["ip", "link", "set", first_name, "up"])
    second.run(["ip", "link", "set", second_name, "up"])
