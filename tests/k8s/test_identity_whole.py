"""Pods that prove who they are, whole: orion-controller with an API server, an orion-server, programs and tools, all
encrypted, without any client key. The API server is small; everything of Orion's is real."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from orion_client.libraries import client_folder
from tests.e2e.test_pool import PROGRAM
from tests.e2e.test_pool_secure import until
from tests.k8s.test_identity import ANN, BOB, Reviewer, reviewing
from tests.security.server import TIMEOUT_S, Server, environment

NOT_PERMITTED = 800


class RunningReviewer:
    """The API server in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.stack = AsyncExitStack()
        self.reviewer: Reviewer = self._run(self._start())

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    async def _start(self) -> Reviewer:
        reviewer, _ = await self.stack.enter_async_context(reviewing())
        return reviewer

    def stop(self) -> None:
        self._run(self.stack.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)


class Pods:
    """The pool, and what runs in it as in a pod."""

    def __init__(self, folder: Path, reviewer: Reviewer) -> None:
        self.folder, self.reviewer = folder, reviewer
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump({
            "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": reviewer.url}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }))  # fmt: skip
        config = folder / "controller.yaml"
        config.write_text(f"kubernetes: {{token-review: true, audience: orion, kubeconfig: {kubeconfig}}}\n")
        ready = folder / "ready"
        command = [sys.executable, "-m", "orion_controller.cli", "start", "--config-file", str(config), "--data-dir",
                   str(folder / "data"), "--http", "127.0.0.1:0", "--zmq", "127.0.0.1:0", "--curve", "on",
                   "--ready-file", str(ready), "--exit-with-parent"]  # fmt: skip
        with (folder / "log").open("a") as log:
            self.process = subprocess.Popen(command, env=environment(ORION_ADMIN_PASSWORD="correct horse battery"),
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # fmt: skip
        until(lambda: ready.exists() or self.process.poll() is not None)
        assert ready.exists(), (folder / "log").read_text()
        self.address = ready.read_text().split()[1]
        shown = subprocess.run([sys.executable, "-m", "orion_controller.cli", "key", "--data-dir",
                                str(folder / "data")], env=environment(), capture_output=True, text=True,
                               check=True, timeout=TIMEOUT_S)  # fmt: skip
        self.key = shown.stdout.strip()
        self.server = Server(folder / "server", "--curve", "on", "--controller", self.address, "--controller-key",
                             self.key, "--name", "gpus")  # fmt: skip
        until(lambda: f"at {self.address} as" in self.server.log)

    def environment_of(self, uid: str, token: str) -> dict[str, str]:
        file = self.folder / f"token-of-{uid}"
        file.write_text(token)
        return environment(
            ORION_CONTROLLER=self.address, ORION_CONTROLLER_KEY=self.key, ORION_GROUP_ID=uid, ORION_GMEM="64",
            ORION_RATIO="10", ORION_TOKEN_FILE=str(file), ORION_ATTACH_TIMEOUT_MS="30000",
            LD_LIBRARY_PATH=str(client_folder()),
        )  # fmt: skip

    def run(self, uid: str, token: str) -> tuple[int, str]:
        """A program's code of cuInit, and what the library said."""
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=self.environment_of(uid, token),
                              capture_output=True, text=True, timeout=TIMEOUT_S)  # fmt: skip
        return json.loads(done.stdout)[0], done.stderr

    def start(self, uid: str, token: str) -> subprocess.Popen[str]:
        """A program that stays."""
        program = subprocess.Popen([sys.executable, "-c", PROGRAM, "stay"], text=True, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, env=self.environment_of(uid, token))  # fmt: skip
        assert program.stdout is not None and json.loads(program.stdout.readline())[0] == 0
        return program

    def tool(self, uid: str, token: str, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", *command], env=self.environment_of(uid, token),
                              capture_output=True, text=True, timeout=TIMEOUT_S)  # fmt: skip

    def stop(self) -> None:
        self.server.__exit__(None, None, None)
        self.process.terminate()
        self.process.wait(TIMEOUT_S)


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    running = RunningReviewer()
    made = Pods(tmp_path_factory.mktemp("pods"), running.reviewer)
    try:
        yield made
    finally:
        made.stop()
        running.stop()


def test_a_program_has_the_vgpu_of_its_pod_and_of_no_other(pods: Pods) -> None:
    token = pods.reviewer.issue(ANN, padding=1200)
    code, said = pods.run(ANN, token)
    assert code == 0, said
    code, said = pods.run(BOB, token)
    assert code == NOT_PERMITTED and "that of another pod" in said
    code, said = pods.run(ANN, pods.reviewer.issue(ANN, audience="vault"))
    assert code == NOT_PERMITTED and "audience" in said
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=TIMEOUT_S,
                          env=pods.environment_of(ANN, token) | {"ORION_TOKEN_FILE": ""})  # fmt: skip
    assert json.loads(done.stdout)[0] == NOT_PERMITTED and "ORION_TOKEN_FILE" in done.stderr


def test_tools_in_a_pod_see_that_pod(pods: Pods) -> None:
    tokens = {uid: pods.reviewer.issue(uid) for uid in (ANN, BOB)}
    programs = {uid: pods.start(uid, token) for uid, token in tokens.items()}
    try:
        for uid, token in tokens.items():
            seen: list[Any] = []

            def look(uid: str = uid, token: str = token, seen: list[Any] = seen) -> bool:
                done = pods.tool(uid, token, "orion_client.smi", "--json")
                seen[:] = json.loads(done.stdout) if done.returncode == 0 else [done.stderr]
                return str(programs[uid].pid) in done.stdout

            until(look)
            (server,) = seen
            assert [session["pid"] for session in server["sessions"]] == [programs[uid].pid]
            assert {vgpu["group"] for vgpu in server["vgpus"]} == {uid}
            listed = pods.tool(uid, token, "orion_client.smi.nvidia", "-L")
            assert listed.returncode == 0 and len(listed.stdout.splitlines()) == 1, listed
        checked = pods.tool(ANN, tokens[ANN], "orion_client.check", "runtime", "controller")
        assert f"{pods.address} answers" in checked.stdout, checked.stdout
        for command in (("orion_client.smi", "--json"), ("orion_client.smi.nvidia", "-L")):
            other = pods.tool(BOB, tokens[ANN], *command)
            assert other.returncode != 0 and "another pod" in other.stdout + other.stderr, other
        checked = pods.tool(BOB, tokens[ANN], "orion_client.check", "runtime", "controller")
        assert "another pod" in checked.stdout and checked.returncode != 0
    finally:
        for program in programs.values():
            program.communicate("\n", TIMEOUT_S)


def test_an_api_server_that_is_away_is_named(pods: Pods) -> None:
    token = pods.reviewer.issue("uid-of-dora")
    pods.reviewer.away = True
    try:
        code, said = pods.run("uid-of-dora", token)
        assert code == 46 and "API server" in said and "try again" in said
    finally:
        pods.reviewer.away = False
    assert pods.run("uid-of-dora", token)[0] == 0


def test_a_controller_that_cannot_review_does_not_start(tmp_path: Path) -> None:
    config = tmp_path / "controller.yaml"
    config.write_text("kubernetes: {token-review: true}\n")
    done = subprocess.run(
        [sys.executable, "-m", "orion_controller.cli", "start", "--config-file", str(config), "--data-dir",
         str(tmp_path), "--http", "127.0.0.1:0", "--zmq", "127.0.0.1:0"],
        env=environment(ORION_ADMIN_PASSWORD="correct horse battery"), capture_output=True, text=True,
        timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode != 0 and "kubernetes.token-review needs the API server" in done.stderr
    assert "Traceback" not in done.stderr
