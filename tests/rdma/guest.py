"""Runs inside the machine of tests/rdma/image.py, as root: a server with soft-RoCE, clients that reach it over verbs,
and what happens when that cannot be. Prints a line `CHECK name ok` or `CHECK name FAIL what` for each thing that is to
hold, `ROW {...}` for each measurement, and DONE at the end.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import re
import resource
import secrets
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.rdma.end_of_client import is_end_of_client

ADDRESS = "10.0.2.15"
OURS = Path("/py/orion")
LOG = Path("/tmp/server.log")
KEY = Path("/tmp/client-key")
CONFIG = Path("/tmp/server.conf")
SCRIPTED = OURS / "tests" / "programs" / "scripted.py"
CARRIERS = "rc_verbs,self"
# Where the kernel says that network devices can register a GPU's memory. softgpu's is the host's, so soft-RoCE's can.
PEER_MEMORY = Path("/sys/kernel/mm")
WANTED = set(os.environ.get("checks", "").split(",")) - {""}  # from the kernel's command line; empty: all
CHECK_LIMIT_S = 240  # of one check: the slowest takes about a minute
# Each goes there and back. One is of the whole 256 MiB, as in the table of native digests.
COPY_ROWS = ("copy_d2h_pageable",)
SMALL_BYTES = 8 << 20
SMALL_COPY_ROWS = (f"copy_d2h_pinned@{SMALL_BYTES}", f"copy_h2d_pageable@{SMALL_BYTES}")


def check(name: str, what: Callable[[], None]) -> None:
    if WANTED and name not in WANTED:
        return
    started_s = time.monotonic()
    signal.alarm(CHECK_LIMIT_S)
    try:
        what()
    except Exception as error:
        print(f"CHECK {name} FAIL {type(error).__name__}: {str(error)[:3000]!r}", flush=True)
        traceback.print_exc(file=sys.stdout)
        print_threads()
    else:
        print(f"CHECK {name} ok", flush=True)
    finally:
        signal.alarm(0)
    print(f"TOOK {name} {time.monotonic() - started_s:.0f} s", flush=True)


def too_long(*_: object) -> None:
    raise TimeoutError(f"no end in {CHECK_LIMIT_S} s")


def print_threads() -> None:
    """What every thread of every process here is at."""
    for task in sorted(Path("/proc").glob("[0-9]*/task/[0-9]*")):
        try:
            words = (task / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:80]
            if words:
                print(f"--- {task.parent.parent.name}/{task.name} {(task / 'comm').read_text().strip()} ({words})")
                print((task / "syscall").read_text() + (task / "stack").read_text())
        except OSError:
            continue


def await_line(text: str, timeout_s: float = 240.0) -> str:
    deadline_s = time.monotonic() + timeout_s
    while True:
        for line in LOG.read_text(errors="replace").splitlines():
            if text in line:
                return line
        assert time.monotonic() < deadline_s, f"{text!r} is not in the server's log: {LOG.read_text()[-2000:]}"
        time.sleep(0.1)


@dataclass(frozen=True)
class Ucx:
    """One for server and clients, which must be of one release, and what each is told."""

    folder: str = ""  # empty: the system's
    server: Mapping[str, str] = field(default_factory=dict)
    client: Mapping[str, str] = field(default_factory=dict)
    device: str = "rxe0"  # the server's ibverbs_device
    lanes: str = "rc_verbs/rxe0:1"


OF_THE_SYSTEM = Ucx()
# It has no rdmacm, and its tcp connects only where a device of its own is allowed too; RDMA is preferred for all lanes.
_OF_BOTH = {"UCX_SOCKADDR_TLS_PRIORITY": "tcp", "UCX_TLS": f"{CARRIERS},tcp", "UCX_NET_DEVICES": "rxe0:1,eth0"}
WITH_CUDA = Ucx(
    "/ucx-cuda/lib",
    {**_OF_BOTH, "UCX_TLS": f"{CARRIERS},tcp,cuda_copy", "LD_LIBRARY_PATH": "/ucx-cuda/lib"},
    {**_OF_BOTH, "UCX_MODULES": "^cuda"},  # a client's libcuda is Orion's
    device="",
    lanes="rc_verbs/rxe0:1 tcp/eth0",
)


class Machine:
    """A server on all of it, and what its clients are told."""

    def __init__(self, ucx: Ucx = OF_THE_SYSTEM, **more: str) -> None:
        self.ucx = ucx
        KEY.write_text(secrets.token_hex(16))
        KEY.chmod(0o644)
        CONFIG.write_text(
            f"[server]\nenable_shm = false\nenable_rdma = true\nibverbs_device = {ucx.device}\nvgpu_count = 0\n"
            "connect_timeout = 60\nworker_start_timeout = 300\n"
        )
        server = [sys.executable, "-P", "-m", "orion_server", "--config", str(CONFIG)]
        self.key = subprocess.run([*server[:4], "key"], check=True, capture_output=True, text=True).stdout.strip()
        options = ["--listen", f"{ADDRESS}:9960", "--client-key-file", str(KEY), "--device", "softgpu"]
        environment = {**os.environ, "UCX_TLS": CARRIERS, **ucx.server, **more}
        with LOG.open("w") as log:
            self.process = subprocess.Popen([*server, *options], stdout=log, stderr=log, env=environment)

    def end(self) -> None:
        """No session is left of all the clients that there were."""
        for session in re.findall(r"session (\w+): attached pid", LOG.read_text()):
            await_line(f"session {session}: ended", 30)
        self.process.terminate()
        self.process.wait(60)

    def environment(self, transport: str = "auto", **more: str) -> dict[str, str]:
        libraries = ":".join(filter(None, [str(OURS / "build" / "shim"), self.ucx.folder]))
        return {
            **os.environ, "ORION_SERVER": f"{ADDRESS}:9960", "ORION_SERVER_KEY": self.key,
            "ORION_CLIENT_KEY": KEY.read_text(), "ORION_TRANSPORT": transport, "ORION_LOG": "info",
            "ORION_ATTACH_TIMEOUT_MS": "30000", "LD_LIBRARY_PATH": libraries, "UCX_TLS": CARRIERS,
            **self.ucx.client, **more,
        }  # fmt: skip

    def run(
        self, *program: str, transport: str = "auto", locked_bytes: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        def become_user() -> None:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (locked_bytes or 0, locked_bytes or 0))
            os.setgid(1000)
            os.setuid(1000)

        return subprocess.run(
            [sys.executable, *program],
            env=self.environment(transport),
            capture_output=True,
            text=True,
            timeout=400,
            cwd="/tmp",
            preexec_fn=become_user if locked_bytes is not None else None,
        )


def soft_roce() -> None:
    for _ in range(50):
        told = subprocess.run(["rdma", "link"], capture_output=True, text=True, check=True).stdout
        if "state ACTIVE" in told:
            print(told.strip())
            return
        time.sleep(0.1)
    raise AssertionError(f"rxe0 is not active: {told}")


def rows(machine: Machine, *names: str, timed: bool = False) -> None:
    done = machine.run("-m", "tests.rdma.few_rows", *(["--timed"] if timed else []), *names)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert f"over ucx ({machine.ucx.lanes}), not encrypted" in done.stderr, done.stderr
    from benchmarks.rows import NATIVE_DIGESTS, crc, fill_pattern

    pattern = ctypes.create_string_buffer(SMALL_BYTES)
    fill_pattern(ctypes.addressof(pattern), SMALL_BYTES)
    digests = {**NATIVE_DIGESTS, **dict.fromkeys(SMALL_COPY_ROWS, crc(ctypes.addressof(pattern), SMALL_BYTES))}
    found = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    for row in found.values():
        print("ROW " + json.dumps({k: row[k] for k in ("name", "value", "unit", "digest")}), flush=True)
    for name in names:
        assert found[name]["digest"] == digests[name], name
        assert found[name]["clean"], name


def falls_back(machine: Machine) -> None:
    """Where nothing may be locked, the device cannot register memory: tcp by itself, encrypted as between all hosts."""
    done = machine.run("-m", "benchmarks.rows", "reply", locked_bytes=0)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("orion: warning")]
    assert len(lines) == 1 and lines[0].endswith("; using tcp"), done.stderr
    assert "over tcp (plain sockets), encrypted" in done.stderr, done.stderr
    print(lines[0])
    print(await_line("although it asked for RDMA"))


def insists(machine: Machine) -> None:
    done = machine.run("-m", "benchmarks.rows", "reply", transport="ucx", locked_bytes=0)
    assert done.returncode != 0
    assert "the ucx connection to the worker" in done.stderr, done.stderr


def step(process: subprocess.Popen[str], *names: str) -> list[int]:
    assert process.stdin is not None and process.stdout is not None
    results = []
    for name in names:
        process.stdin.write(name + "\n")
        process.stdin.flush()
        results.append(int(process.stdout.readline()))
    return results


def scripted(machine: Machine) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, str(SCRIPTED)], env=machine.environment(), text=True, **pipes)


def in_mid_copy(machine: Machine) -> subprocess.Popen[str]:
    client = scripted(machine)
    assert step(client, "attach", "allocate", "fill", "read") == [0, 0, 0, 0]
    assert client.stdin is not None
    client.stdin.write("copies\n")
    client.stdin.flush()
    time.sleep(3)  # in the first of many copies of 32 MiB
    assert client.poll() is None
    return client


def last_session() -> tuple[str, int]:
    """The session that attached last, and the process of its worker."""
    line = [text for text in LOG.read_text().splitlines() if ": attached pid" in text][-1]
    found = re.search(r"session (\w+): .* worker (\d+)", line)
    assert found, line
    return found[1], int(found[2])


def worker_vanishes(machine: Machine) -> None:
    client = in_mid_copy(machine)
    os.kill(last_session()[1], signal.SIGKILL)
    assert client.stdout is not None
    assert int(client.stdout.readline()) == 46
    client.kill()
    client.wait()


def client_vanishes(machine: Machine) -> None:
    client = in_mid_copy(machine)
    session, _ = last_session()
    client.kill()
    client.wait()
    line = await_line(f"session {session}: ended: ")
    assert is_end_of_client(line, LOG.read_text(errors="replace")), line
    print(line)


def direct(machine: Machine) -> None:
    """The device of the network itself writes and reads device memory: softgpu's, which the worker registers."""
    rows(machine, *SMALL_COPY_ROWS)
    done = machine.run(str(SCRIPTED.with_name("direct.py")), "order", "two_streams", "freed_and_made_again")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert json.loads(done.stdout) == {"order": "", "two_streams": "", "freed_and_made_again": ""}
    print(await_line("copies go straight to and from device memory"))
    print(await_line("bytes that went straight: "))
    said = re.findall(r"went straight: (\d+) to device memory, (\d+) from it", LOG.read_text())
    assert sum(int(to) for to, _ in said) > 0 and sum(int(back) for _, back in said) > 0, said


def cuda_cannot_be_registered(machine: Machine) -> None:
    """UCX sees softgpu as a GPU, and that no network device can register its memory."""
    rows(machine, *SMALL_COPY_ROWS)
    print(await_line("UCX cannot use device memory, whose copies go through pinned host memory: the RDMA device "))
    print(await_line("bytes that went straight: 0 to device memory, 0 from it"))


def cuda_direct(machine: Machine) -> None:
    """As where the vendor's driver has made a GPU's memory known to network devices: by itself, without being told."""
    told = PEER_MEMORY / "memory_peers" / "nv_mem" / "version"
    subprocess.run(["mount", "-t", "tmpfs", "tmp", str(PEER_MEMORY)], check=True)
    told.parent.mkdir(parents=True)
    told.write_text("1\n")
    direct(machine)


def registration_refused(machine: Machine) -> None:
    """The worker may lock no more than it has, so device memory cannot be registered: it goes through host memory."""
    with scripted(machine) as client:
        assert step(client, "attach") == [0]
        session, worker = last_session()
        told = re.search(r"VmPin:\s*(\d+) kB", Path(f"/proc/{worker}/status").read_text())
        assert told, worker
        locked = (int(told[1]) << 10) + (16 << 20)  # of the 32 MiB that it allocates
        resource.prlimit(worker, resource.RLIMIT_MEMLOCK, (locked, locked))
        assert step(client, "allocate", "fill", "round_trip", "round_trip") == [0, 0, 0, 0]
        assert client.stdin is not None
        client.stdin.close()
        assert client.wait(60) == 0
    await_line(f"session {session}: ended: the client detached", 60)
    print(await_line("UCX cannot use device memory, whose copies go through pinned host memory: "))
    said = [line for line in LOG.read_text().splitlines() if "bytes that went straight: " in line]
    assert said[-1].endswith("bytes that went straight: 0 to device memory, 0 from it"), said


def perftest(test: str, *options: str) -> None:
    """UCX's own measurement over the same device and protocol, between two processes, both of which poll."""
    line = ["ucx_perftest", "-t", test, "-d", "rxe0:1", "-x", "rc_verbs", "-p", "13339", *options]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as listener:
        time.sleep(2)
        done = subprocess.run([line[0], ADDRESS, *line[1:]], capture_output=True, text=True, timeout=60)
        listener.wait(10)
    assert done.returncode == 0, done.stdout + done.stderr
    final = next(text for text in done.stdout.splitlines() if "Final:" in text)
    numbers = [float(word) for word in final.split()[1:]]
    # iterations, latency percentile, average and overall (us); bandwidth average and overall (MB/s).
    print("ROW " + json.dumps({"name": f"perftest_{test}", "options": options, "half_round_trip_us": numbers[1],
                               "bandwidth_mbytes_s": numbers[5]}), flush=True)  # fmt: skip


def main() -> None:
    signal.signal(signal.SIGALRM, too_long)
    check("soft_roce", soft_roce)
    check("perftest_am_lat", lambda: perftest("am_lat", "-s", "64", "-n", "2000"))
    check("perftest_am_bw", lambda: perftest("am_bw", "-s", "8192", "-n", "2000", "-D", "zcopy"))
    machine = Machine()
    check("server", lambda: print(await_line("orion-server 0")))
    check("says_its_device", lambda: print(await_line("RDMA is enabled on rxe0:1; what travels over it is not")))
    check("rows", lambda: rows(machine, "reply", "launch_and_sync", "launch_pipelined", "copy_d2h_4b",
                               "copy_bounce_pinned", "event_query", "stream_query", timed=True))  # fmt: skip
    check("server_says_it", lambda: print(await_line("lanes over UCX")))
    check("small_copies", lambda: rows(machine, *SMALL_COPY_ROWS, timed=True))
    check("falls_back_to_tcp", lambda: falls_back(machine))
    check("insists_on_ucx", lambda: insists(machine))
    check("worker_vanishes_in_mid_copy", lambda: worker_vanishes(machine))
    check("client_vanishes_in_mid_copy", lambda: client_vanishes(machine))
    check("copies", lambda: rows(machine, *COPY_ROWS))
    check("server_ends", machine.end)
    machine.end()  # where `server_ends` was not wanted
    for ucx, more, checks in (
        (OF_THE_SYSTEM, {"ORION_UCX_DIRECT": "on"}, (direct, registration_refused)),
        (WITH_CUDA, {}, (cuda_cannot_be_registered, cuda_direct)),
    ):
        if not WANTED or {what.__name__ for what in checks} & WANTED:
            print("--- server's log\n" + LOG.read_text(errors="replace")[-4000:])
            another = Machine(ucx, **more)
            await_line("orion-server 0")
            for what in checks:
                check(what.__name__, functools.partial(what, another))
            another.end()
    print("--- server's log\n" + LOG.read_text(errors="replace")[-8000:])
    print("DONE", flush=True)


if __name__ == "__main__":
    main()
