"""Workers are apart from each other and from the server: what confinement forbids, tried in processes that confine
themselves as workers do, and what real workers have and can do."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orion_client.private_server import PrivateServer
from orion_server import isolation
from orion_server.config import ConfigError, Settings
from orion_server.isolation import Confinement, IsolationError, WorkerUids, parse_uids, plan
from tests.server.conftest import RawClient
from tests.server.seat_view import worker_pids

ROOT = Path(__file__).resolve().parent.parent.parent
EPERM, EACCES = errno.EPERM, errno.EACCES
# For processes of tests, outside the range that servers use.
FIRST_UID, SECOND_UID = 60530, 60531
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give processes other uids")
LIMIT_S = 60.0


def confined(*attempts: str, **told: Any) -> dict[str, int]:
    """What came of each attempt: 0 or an errno."""
    done = start(attempts=attempts, **told)
    out, error = done.communicate(timeout=LIMIT_S)
    assert done.returncode == 0, error
    answer: dict[str, int] = json.loads(out)
    return answer


def start(**told: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.server.confined", json.dumps({"seccomp": "on", **told})]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload, no-any-return]


@contextmanager
def waiting(**told: Any) -> Iterator[int]:
    """The id of a confined process that does nothing."""
    with start(wait=True, **told) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            process.kill()


# ------------------------------------------------------------------------------------------ system calls
REFUSED = (
    "execve fork vfork_number clone clone_namespace ptrace process_vm_readv kcmp tkill pidfd_getfd pidfd_send_signal "
    "unshare setns mount umount2 pivot_root chroot fsopen open_tree keyctl add_key request_key bpf perf_event_open "
    "userfaultfd io_uring_setup init_module finit_module kexec_load reboot swapon personality setuid setresuid "
    "setgroups open_by_handle_at mq_open msgget semget syslog iopl signal signal_parent signal_all limits own_group "
    "type_into_terminal packet_socket vsock"
).split()
NEEDED = ("signal_self thread memory executable_memory pair own_limits own_maps own_descriptors inet_socket").split()


def test_the_filter_refuses_what_no_worker_needs() -> None:
    """As the server's own user: nothing else would refuse most of these to root."""
    with waiting(seccomp="off") as victim:
        codes = confined(*REFUSED, victim=victim)
    assert codes == dict.fromkeys(REFUSED, EPERM)


def test_the_filter_leaves_what_a_worker_needs() -> None:
    codes = confined(*NEEDED, "clone3")
    assert codes == {**dict.fromkeys(NEEDED, 0), "clone3": errno.ENOSYS}


def test_after_the_lanes_listen_nothing_is_connected() -> None:
    reaching = ("inet_socket", "connect", "fast_open")
    assert confined(*reaching, lanes=True) == dict.fromkeys(reaching, EPERM)
    kept = tuple(name for name in NEEDED if name not in reaching)
    assert confined(*kept, lanes=True) == dict.fromkeys(kept, 0)
    assert confined("fast_open")["fast_open"] != EPERM  # it is the second filter that refuses it


@pytest.mark.parametrize("attempt", ["foreign_call", "x32_call"])
def test_a_call_of_another_architecture_ends_the_process(attempt: str) -> None:
    with start(attempts=[attempt]) as process:
        assert process.wait(LIMIT_S) == -signal.SIGSYS


def test_without_confinement_the_same_attempts_succeed(tmp_path: Path) -> None:
    """Otherwise they would prove nothing."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    names = ("fork", "clone", "signal", "signal_parent", "limits", "own_group", "maps", "environ", "descriptors",
             "secret", "personality")  # fmt: skip
    with waiting(seccomp="none") as victim:
        assert confined(*names, seccomp="none", victim=victim, secret=str(secret)) == dict.fromkeys(names, 0)


# ------------------------------------------------------------------------------------------ uids
LOOKS = ("maps", "mem", "environ", "descriptors", "attach")


@needs_root
def test_a_worker_cannot_reach_another_nor_the_server_by_its_uid(tmp_path: Path) -> None:
    """Without the filter, which would refuse the signals first."""
    secret = tmp_path / "admin-token"
    secret.write_text("x")
    secret.chmod(0o600)
    with waiting(uid=SECOND_UID, seccomp="off") as victim:
        codes = confined(*LOOKS, "signal", "signal_parent", "secret", "setresuid", uid=FIRST_UID, seccomp="off",
                         victim=victim, secret=str(secret))  # fmt: skip
    assert set(codes.values()) <= {EPERM, EACCES}
    server = confined(*LOOKS, "signal", uid=FIRST_UID, seccomp="off", victim=os.getpid())
    assert set(server.values()) <= {EPERM, EACCES}


@needs_root
def test_a_worker_of_the_same_uid_cannot_look_into_another() -> None:
    """Where the server is not root all have one uid; PR_SET_DUMPABLE keeps them apart."""
    with waiting(uid=FIRST_UID, seccomp="off") as victim:
        codes = confined(*LOOKS, "signal", uid=FIRST_UID, seccomp="off", victim=victim)
        assert codes.pop("signal") == 0
        assert set(codes.values()) <= {EPERM, EACCES}
        assert confined("signal", uid=FIRST_UID, victim=victim) == {"signal": EPERM}


@needs_root
def test_a_confined_process_keeps_only_the_groups_it_was_given() -> None:
    with waiting(uid=FIRST_UID, groups=[44]) as pid:
        status = fields(pid)
        limits = Path(f"/proc/{pid}/limits").read_text()
    assert status["Uid"] == status["Gid"] == [str(FIRST_UID)] * 4
    assert status["Groups"] == ["44"]
    assert int(status["CapEff"][0], 16) == int(status["CapPrm"][0], 16) == 0
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert re.search(r"Max open files +(\d+) +\1 ", limits)


def test_uids_are_of_one_tenants_live_workers(tmp_path: Path) -> None:
    uids = WorkerUids(70000, 70002, tmp_path / "lock", frozenset({70001}))
    first, second = uids.take(), uids.take()
    assert {first, second} == {70000, 70002}
    with pytest.raises(IsolationError, match="--worker-uids"):
        uids.take()
    # Another server of the host.
    other = (
        "from pathlib import Path; import sys; from orion_server.isolation import *\n"
        "uids = WorkerUids(70000, 70002, Path(sys.argv[1]))\nprint(uids.take(), flush=True)\n"
        "try: uids.take()\nexcept IsolationError: print('none', flush=True)\n"
    )
    command = [sys.executable, "-c", other, str(tmp_path / "lock")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert done.stdout.split() == ["70001", "none"]
    uids.share(second)
    uids.release(second)
    with pytest.raises(IsolationError):  # one of its two workers lives
        uids.take()
    uids.release(second)
    with pytest.raises(IsolationError):
        uids.share(second)
    uids.release(first)
    assert uids.take() == second  # the one that was free for longer
    uids.close()


def test_uids_in_use_are_left_out() -> None:
    assert {0, os.geteuid()} <= isolation._taken_uids()
    assert not isolation._is_mapped("0 0 65536\n", 65000, 70000)
    assert isolation._is_mapped("0 0 1000\n1000 5000 90000\n", 65000, 70000)


# ------------------------------------------------------------------------------------------ settings
@pytest.mark.parametrize("text", ["", "7", "9-8", "0-5", "1-x", "65000-66000", "1-4294967295", "1-9999999"])
def test_a_range_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--worker-uids"):
        parse_uids(text)


def test_isolation_that_is_required_is_had_or_the_server_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--worker-uids off"):
        plan(Settings(worker_uids="off", require_isolation=True))
    with pytest.raises(ConfigError, match="--no-seccomp"):
        plan(Settings(seccomp=False, require_isolation=True))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="only root"):
        plan(Settings(require_isolation=True))
    with pytest.raises(ConfigError, match="only root"):
        plan(Settings(worker_uids="61000-61010"))
    assert plan(Settings()).uids is None
    monkeypatch.setattr(isolation, "_SECCOMP_ACTIONS", "/nonexistent")
    with pytest.raises(ConfigError, match="seccomp"):
        plan(Settings(require_isolation=True))


def test_the_environment_of_a_worker_is_a_list_of_what_it_needs() -> None:
    whole = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0", "ORION_ADMIN_TOKEN": "x", "AWS_SECRET_ACCESS_KEY": "x",
             "SSH_AUTH_SOCK": "/s", "NVIDIA_API_KEY": "x"}  # fmt: skip
    assert Confinement().environment(whole).keys() == {"PATH", "CUDA_VISIBLE_DEVICES"}
    assert Confinement(uid=7).environment(whole)["CUDA_CACHE_DISABLE"] == "1"
    assert "CUDA_CACHE_DISABLE" not in Confinement(uid=7).environment({"CUDA_CACHE_PATH": "/var/cache/x"})


# ------------------------------------------------------------------------------------------ real workers
def fields(pid: int) -> dict[str, list[str]]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, value in (line.split(":", 1) for line in lines)}


def wait_ready(server: PrivateServer, count: int, eventually: Callable[..., None]) -> list[int]:
    """Workers that have become what they stay."""

    def ready() -> bool:
        pids = worker_pids(server.process.pid)
        return len(pids) >= count and all(fields(pid)["Seccomp"] == ["2"] for pid in pids)

    eventually(ready, 30.0)
    return worker_pids(server.process.pid)


@needs_root
def test_real_workers_have_uids_of_their_own(
    monkeypatch: pytest.MonkeyPatch, connect: Callable[[str], RawClient], attach: Any, eventually: Callable[..., None]
) -> None:
    monkeypatch.setenv("ORION_ADMIN_TOKEN", "a" * 64)
    monkeypatch.setenv("SECRET_OF_THE_OPERATOR", "x")
    with PrivateServer("softgpu", extra=("--warm", "2", "--require-isolation")) as server:
        wait_ready(server, 2, eventually)
        assert connect(server.address).ask(attach()).shm_socket
        pids = wait_ready(server, 3, eventually)
        status = {pid: fields(pid) for pid in pids}
        uids = [told["Uid"][0] for told in status.values()]
        # Of the two that wait, one is for the next program of the same tenant.
        assert len(set(uids)) == 2 and "0" not in uids
        filters = {told["Uid"][0]: [] for told in status.values()}
        for told in status.values():
            filters[told["Uid"][0]] += told["Seccomp_filters"]
        assert sorted(map(sorted, filters.values())) == [["1"], ["1", "2"]]  # the session's has the second one
        for pid, told in status.items():
            assert told["Uid"] == told["Gid"] == [told["Uid"][0]] * 4
            assert told["NoNewPrivs"] == ["1"] and int(told["CapEff"][0], 16) == 0 and told["Groups"] == []
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"ORION_ADMIN_TOKEN" not in environment and b"SECRET_OF_THE_OPERATOR" not in environment
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            kinds = ("/memfd:orion-", "anon_inode:", "socket:", "/dev/null", "pipe:")
            assert [link for link in links if not link.startswith(kinds)] == []
            assert sum(link.startswith("pipe:") for link in links) == 1  # its log; no file and no terminal


@needs_root
def test_tenants_have_different_uids_and_a_tenants_programs_the_same(
    connect: Callable[[str], RawClient], attach: Any, eventually: Callable[..., None]
) -> None:
    """The driver opens an event of another process only under the exporter's uid."""
    with PrivateServer("softgpu", extra=("--warm", "2", "--require-isolation")) as server:
        wait_ready(server, 2, eventually)
        uids: dict[str, set[str]] = {"a": set(), "b": set()}
        known: set[int] = set()
        for group in ("a", "b", "a", "a", "b"):
            assert connect(server.address).ask(attach(group=group)).session
            serving = {pid for pid in worker_pids(server.process.pid) if fields(pid)["Seccomp_filters"] == ["2"]}
            (mine,) = serving - known
            known.add(mine)
            uids[group] |= set(fields(mine)["Uid"])
        assert len(uids["a"]) == len(uids["b"]) == 1 and uids["a"] != uids["b"]


@needs_root
def test_a_session_over_shm_is_reached_through_the_servers_own_socket(
    connect: Callable[[str], RawClient], attach: Any, server: PrivateServer, eventually: Callable[..., None]
) -> None:
    attached = connect(server.address).ask(attach())
    status = os.stat(attached.shm_socket)
    assert status.st_uid == os.geteuid() and status.st_mode & 0o777 == 0o600
    for pid in worker_pids(server.process.pid):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not os.path.exists(attached.shm_socket))


@needs_root
def test_a_real_worker_cannot_do_what_no_worker_may(tmp_path: Path, eventually: Callable[..., None]) -> None:
    library = tmp_path / "probe.so"
    source = ROOT / "tests" / "server" / "worker_probe.c"
    options = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread"]
    subprocess.run(["gcc", *options, "-o", str(library), str(source)], check=True)
    folder = tmp_path / "private"
    log, ready = tmp_path / "log", tmp_path / "ready"
    command = [sys.executable, "-P", "-m", "orion_server", "--listen", "127.0.0.1:0", "--device", "softgpu", "--warm",
               "1", "--socket-dir", str(folder), "--ready-file", str(ready), "--exit-with-parent"]  # fmt: skip
    with waiting(uid=FIRST_UID) as other, log.open("w") as file:
        # Names of a family that workers are given.
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(library),
                       "SOFTGPU_TEST_SECRET": str(folder / "admin-token"),
                       "SOFTGPU_TEST_OTHER": str(other)}  # fmt: skip
        server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=file)
        try:
            eventually(lambda: "probe " in log.read_text(), 60.0)
            assert (folder / "admin-token").stat().st_size > 64
        finally:
            server.terminate()
            server.wait(LIMIT_S)
    line = re.search(r"^probe (\d+) (.*)$", log.read_text(), re.MULTILINE)
    assert line is not None
    codes = {name: int(code) for name, code in (word.split("=") for word in line[2].split())}
    closed = dict.fromkeys(("maps", "mem", "environ", "secret", "other"), EACCES)
    assert codes == {**dict.fromkeys(("exec", "fork", "kill", "vm", "root"), EPERM), **closed}


def test_isolation_can_be_switched_off_to_debug(eventually: Callable[..., None]) -> None:
    with PrivateServer("softgpu", log_level="error", extra=("--no-seccomp", "--worker-uids", "off")) as server:
        eventually(lambda: worker_pids(server.process.pid))
        status = fields(worker_pids(server.process.pid)[0])
        assert status["Seccomp"] == ["0"] and status["Uid"][0] == str(os.geteuid())
