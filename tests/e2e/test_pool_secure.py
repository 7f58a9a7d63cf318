"""A pool whose ports are encrypted, over loopback (`--curve on`): the real controller, orion-servers and programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from orion_client.libraries import client_folder
from tests.e2e.pool_controller import PoolController, Reply
from tests.e2e.test_pool import PROGRAM
from tests.security.server import ROOT, TIMEOUT_S, Server, environment
from wire import control, curve, pool

CLIENT_KEY, SERVER_KEY = "c" * 32, "s" * 32
NO_DEVICE, NOT_PERMITTED = 100, 800
OTHER_KEY = curve.pair_of_bytes(bytes(range(32))).public


class Controller:
    """`orion-controller start`, with the keys that an address off loopback would ask for."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        ready = folder / "ready"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "orion_controller.cli", "start", "--data-dir", str(folder / "data"),
                   "--http", "127.0.0.1:0", "--zmq", "127.0.0.1:0", "--ready-file", str(ready), "--exit-with-parent",
                   *options]  # fmt: skip
        keys = {"ORION_CONTROLLER_CLIENT_KEY": CLIENT_KEY, "ORION_CONTROLLER_SERVER_KEY": SERVER_KEY}
        with (folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                command, env=environment(ORION_ADMIN_PASSWORD="correct horse battery", **keys),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        until(lambda: ready.exists() or self.process.poll() is not None)
        assert ready.exists(), self.log
        self.address = ready.read_text().split()[1]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def key(self) -> str:
        """As an operator asks for it."""
        shown = subprocess.run(
            [sys.executable, "-m", "orion_controller.cli", "key", "--data-dir", str(self.folder / "data")],
            env=environment(), capture_output=True, text=True, check=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        return shown.stdout.strip()

    def __enter__(self) -> Controller:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(TIMEOUT_S)


def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    with Controller(tmp_path_factory.mktemp("controller"), "--curve", "on") as running:
        yield running


@pytest.fixture(scope="module")
def key(controller: Controller) -> str:
    return controller.key()


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "server-key"
    path.write_text(SERVER_KEY)
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def servers(
    controller: Controller, key: str, key_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Server]]:
    options = ["--curve", "on", "--controller", controller.address, "--controller-key", key]
    options += ["--pool-key-file", str(key_file)]
    folder = tmp_path_factory.mktemp("servers")
    with (
        Server(folder / "a", "--name", "a", "--encrypt", "required", *options) as a,
        Server(folder / "b", "--name", "b", *options) as b,
    ):
        until(lambda: all(f"at {controller.address} as" in server.log for server in (a, b)))
        yield [a, b]


def run(
    controller: Controller | PoolController, *arguments: str, key: str, **settings: str
) -> tuple[int, list[int], str]:
    """A program's code of cuInit, its devices' MiB, and what the library said."""
    chosen = {"ORION_CONTROLLER": controller.address, "ORION_CONTROLLER_KEY": key, "ORION_CLIENT_KEY": CLIENT_KEY,
              "LD_LIBRARY_PATH": str(client_folder()), "ORION_TRANSPORT": "tcp", "ORION_LOG": "info",
              "ORION_ATTACH_TIMEOUT_MS": "30000", "ORION_WAIT_S": "60"} | settings  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], env=environment(**{k: v for k, v in chosen.items() if v}),
        capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code, mib = json.loads(done.stdout)
    return code, mib, done.stderr


def tool(*command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *command], env=environment(**settings), capture_output=True,
                          text=True, timeout=TIMEOUT_S)  # fmt: skip


def test_the_key_is_shown_and_its_secret_is_not(controller: Controller, key: str, tmp_path: Path) -> None:
    assert key in controller.log and len(key) == 40
    assert controller.key() == key
    before = tool("orion_controller.cli", "key", "--data-dir", str(tmp_path / "new"))
    assert before.returncode == 0, before.stderr
    with Controller(tmp_path / "n", "--data-dir", str(tmp_path / "new"), "--curve", "on") as started:
        assert before.stdout.strip() in started.log  # made before the first start, and shared by all replicas


def test_a_program_on_two_encrypted_servers(controller: Controller, key: str, servers: list[Server]) -> None:
    code, mib, said = run(controller, key=key, ORION_VGPU="2", ORION_GMEM="64", ORION_SCHEDULE_RULE="spread",
                          ORION_RATIO="60", ORION_ENCRYPT="on")  # fmt: skip
    assert (code, mib) == (0, [64, 64]), said
    for server in servers:
        assert any(f"attached to {server.address}" in line and "encrypted (" in line for line in said.splitlines()), (
            said
        )


def test_lanes_are_encrypted_as_the_servers_want(controller: Controller, key: str, servers: list[Server]) -> None:
    code, mib, said = run(controller, key=key, ORION_VGPU="2", ORION_GMEM="64", ORION_SCHEDULE_RULE="spread",
                          ORION_RATIO="60")  # fmt: skip
    assert (code, mib) == (0, [64, 64]), said
    by_server = {s.address: [line for line in said.splitlines() if f"attached to {s.address}" in line] for s in servers}
    assert ["encrypted (" in by_server[s.address][0] for s in servers] == [True, False]  # b: auto, and it is loopback


def test_tools_ask_encrypted(controller: Controller, key: str, servers: list[Server]) -> None:
    keys = {"ORION_CONTROLLER": controller.address, "ORION_CONTROLLER_KEY": key, "ORION_CLIENT_KEY": CLIENT_KEY}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "stay"], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=environment(**keys, LD_LIBRARY_PATH=str(client_folder()), ORION_GROUP_ID="tools", ORION_GMEM="64",
                        ORION_WAIT_S="60"),
    )  # fmt: skip
    try:
        assert program.stdin and program.stdout
        assert json.loads(program.stdout.readline()) == [0, [64]]
        until(lambda: "softgpu" in tool("orion_client.smi", ORION_GROUP_ID="tools", **keys).stdout)
        listed = tool("orion_client.smi", "--json", ORION_GROUP_ID="tools", **keys)
        assert listed.returncode == 0, listed.stdout + listed.stderr
        [report] = json.loads(listed.stdout)
        assert program.pid in [session["pid"] for session in report["sessions"]]
        nvml = (
            "import ctypes; n = ctypes.CDLL('libnvidia-ml.so.1'); assert n.nvmlInit_v2() == 0; "
            "name = ctypes.create_string_buffer(96); d = ctypes.c_void_p(); "
            "assert n.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(d)) == 0; "
            "assert n.nvmlDeviceGetName(d, name, 96) == 0; print(name.value.decode())"
        )
        seen = subprocess.run(
            [sys.executable, "-c", nvml], capture_output=True, text=True, timeout=TIMEOUT_S,
            env=environment(**keys, LD_LIBRARY_PATH=str(client_folder()), ORION_GROUP_ID="tools", ORION_GMEM="64"),
        )  # fmt: skip
        # Of a server that could not be asked it would know "Orion vGPU", or nothing.
        assert "softgpu" in seen.stdout.lower() and seen.returncode == 0, seen.stdout + seen.stderr
        program.stdin.write("\n")
        program.stdin.flush()
        assert program.wait(TIMEOUT_S) == 0
    finally:
        program.kill()
        program.wait()
    checked = tool("orion_client.check", "runtime", "controller", **keys)
    assert f"{controller.address} answers" in checked.stdout, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ("", NO_DEVICE, ["takes encrypted connections only", "ORION_CONTROLLER_KEY", "orion-controller key"]),
        (OTHER_KEY, NO_DEVICE, ["no encrypted connection", "ORION_CONTROLLER_KEY", "orion-controller key"]),
        ("short", 1, ["ORION_CONTROLLER_KEY=short is not valid", "orion-controller key"]),
    ],
)
def test_without_the_controllers_key(controller: Controller, given: str, code: int, words: list[str]) -> None:
    found, _, said = run(controller, key=given)
    [line] = said.splitlines()
    assert found == code and all(word in line for word in words), said
    keys = {"ORION_CONTROLLER": controller.address, "ORION_CLIENT_KEY": CLIENT_KEY}
    keys |= {"ORION_CONTROLLER_KEY": given} if given else {}
    for command in (["orion_client.smi"], ["orion_client.check", "runtime", "controller"]):
        shown = tool(*command, **keys)
        assert shown.returncode != 0
        assert "ORION_CONTROLLER_KEY" in " ".join((shown.stdout + shown.stderr).split()), shown.stdout + shown.stderr


def test_encryption_that_is_asked_for_needs_the_controllers_key(controller: Controller) -> None:
    code, _, said = run(controller, key="", ORION_ENCRYPT="on")
    assert code == 1 and "ORION_CONTROLLER_KEY" in said, said


@pytest.mark.parametrize("given", ["", "d" * 32])
def test_without_the_pools_client_key(controller: Controller, key: str, servers: list[Server], given: str) -> None:
    code, _, said = run(controller, key=key, ORION_CLIENT_KEY=given)
    assert code == NOT_PERMITTED and "missing or wrong" in said and "ORION_CLIENT_KEY" in said, said


def test_a_server_of_the_pool_cannot_be_used_without_a_ticket(servers: list[Server]) -> None:
    chosen = {"ORION_SERVER": servers[0].address, "ORION_SERVER_KEY": servers[0].key, "ORION_CLIENT_KEY": CLIENT_KEY}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment(**chosen, LD_LIBRARY_PATH=str(client_folder())),
        capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert json.loads(done.stdout)[0] == NOT_PERMITTED and "ORION_CONTROLLER" in done.stderr


def test_a_server_with_another_key_than_the_controller_told(servers: list[Server]) -> None:
    def script(request: Any, _: PoolController) -> Iterable[Reply]:
        if isinstance(request, pool.Allocate):
            granted = pool.ServerTicket(server="a", address=servers[0].address, public_key=OTHER_KEY, ticket=b"t")
            yield pool.Allocated(id=request.id, allocation="a-1", servers=[granted], attach_within_s=60.0)

    scripted = PoolController(script)
    try:
        code, _, said = run(scripted, key="")
        assert code == NO_DEVICE and "does not have the key that its controller told" in said, said
        scripted.wait_for(pool.GiveUp)
    finally:
        scripted.stop()


def test_a_server_of_the_pool_is_not_told_the_pools_client_key() -> None:
    """It could be anybody's who has the server key."""
    pair = curve.pair_of_bytes(bytes(range(1, 33)))
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.curve_server, router.curve_secretkey = True, pair.secret.encode()
    address = f"127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"
    heard: list[dict[str, Any]] = []

    def script(request: Any, _: PoolController) -> Iterable[Reply]:
        assert not isinstance(request, pool.Allocate | pool.Lookup) or request.key == CLIENT_KEY
        if isinstance(request, pool.Allocate):
            granted = pool.ServerTicket(server="a", address=address, public_key=pair.public, ticket=b"t")
            yield pool.Allocated(id=request.id, allocation="a-1", servers=[granted], attach_within_s=60.0)
        elif isinstance(request, pool.Lookup):
            yield pool.LookedUp(id=request.id, servers=[address], public_keys=[pair.public], stats_keys=["told"])

    def serve() -> None:
        while len(heard) < 3:
            if not router.poll(TIMEOUT_S * 1000):
                return
            identity, body = router.recv_multipart()
            heard.append(msgspec.msgpack.decode(body))
            answer = control.Error(id=heard[-1]["id"], code=NOT_PERMITTED, message="heard", hint="")
            router.send_multipart([identity, control.encode(answer)])

    scripted, thread = PoolController(script), threading.Thread(target=serve)
    thread.start()
    try:
        code, _, said = run(scripted, key="")
        assert code == NOT_PERMITTED and "heard" in said, said
        keys = {"ORION_CONTROLLER": scripted.address, "ORION_CLIENT_KEY": CLIENT_KEY}
        assert "heard" in tool("orion_client.smi", **keys).stdout
        nvml = "import ctypes; ctypes.CDLL('libnvidia-ml.so.1').nvmlInit_v2()"
        subprocess.run([sys.executable, "-c", nvml], timeout=TIMEOUT_S, check=True, capture_output=True,
                       env=environment(**keys, LD_LIBRARY_PATH=str(client_folder())))  # fmt: skip
        thread.join(TIMEOUT_S)
    finally:
        scripted.stop()
        context.destroy(linger=0)
    assert [message["type"] for message in heard] == ["attach", "stats", "stats"]
    assert [message.get("key", "") for message in heard] == ["", "told", "told"]
    assert all(CLIENT_KEY not in str(message) for message in heard)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "takes encrypted connections only: give orion-server what `orion-controller key` prints"),
        (["--controller-key", OTHER_KEY], "is --controller-key what `orion-controller key` prints there?"),
    ],
)
def test_a_server_without_the_controllers_key_says_so(
    controller: Controller, key_file: Path, tmp_path: Path, given: list[str], words: str
) -> None:
    options = ["--controller", controller.address, "--name", "lost", "--pool-key-file", str(key_file), *given]
    with Server(tmp_path / "s", *options) as server:
        until(lambda: words in server.log)
        assert "lost" not in controller.log


def test_a_key_for_a_controller_that_does_not_encrypt(tmp_path: Path, key_file: Path) -> None:
    with Controller(tmp_path / "c") as plain:
        code, _, said = run(plain, key=plain.key())
        assert code == NO_DEVICE and "ORION_CONTROLLER_KEY is set" in said and "--curve on" in said, said
        assert run(plain, key="none")[2].count("ORION_CONTROLLER_KEY") == 0
        options = ["--controller", plain.address, "--controller-key", plain.key(), "--pool-key-file", str(key_file)]
        with Server(tmp_path / "s", *options) as server:
            until(lambda: "does not encrypt, and --controller-key asks for it" in server.log)


def test_a_key_that_is_none_is_refused_at_the_start(tmp_path: Path) -> None:
    done = tool(
        "orion_server", "--controller", "127.0.0.1:1", "--controller-key", "short", "--state-dir", str(tmp_path)
    )
    assert done.returncode == 2 and "`orion-controller key`" in done.stderr


def test_a_pool_off_loopback_is_reached_encrypted_by_itself(tmp_path: Path) -> None:
    """In a network namespace, where 198.51.100.1 is an address of loopback's interface and not a loopback address."""
    own_network = ["unshare", "--net"]
    if subprocess.run([*own_network, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a network namespace")
    done = subprocess.run(
        [*own_network, sys.executable, "-m", "tests.e2e.exposed_pool", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=3 * TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == ["0 [64] encrypted", "0 named", "not refused 0", "refused 1"]
