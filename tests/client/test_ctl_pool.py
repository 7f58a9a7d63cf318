"""orionctl with a controller, as an operator meets it."""

from __future__ import annotations

import http.server
import json
import os
import pty
import select
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from orion_client.ctl.app import app
from orion_client.pool_client import PAGE, Access, PoolClient
from tests.client.pool_http import PASSWORD, PoolServer

ROOT = Path(__file__).resolve().parents[2]
Ctl = Callable[..., Result]
Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def pool() -> Iterator[PoolServer]:
    running = PoolServer()
    yield running
    running.close()


def environment(pool: PoolServer, home: Path, **extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ORION_")}
    own = {
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "ORION_CONTROLLER_URL": pool.url,
        "ORION_TOKEN": "operator-token",
    }
    return {k: v for k, v in {**kept, **own, **extra}.items() if v}


@pytest.fixture
def ctl(pool: PoolServer, tmp_path: Path) -> Ctl:
    """In this process: a hundred starts of an interpreter are a minute."""

    def run(*arguments: str, stdin: str = "", **extra: str) -> Result:
        wanted = environment(pool, tmp_path, **extra)
        gone: dict[str, str | None] = {name: None for name in os.environ if name not in wanted}
        return CliRunner().invoke(app, arguments, input=stdin, env={**gone, **wanted})

    return run


@pytest.fixture
def shell(pool: PoolServer, tmp_path: Path) -> Shell:
    """As a process of its own."""

    def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "orion_client.ctl", *arguments]
        variables = environment(pool, tmp_path, **extra)
        return subprocess.run(line, capture_output=True, text=True, env=variables, timeout=60)

    return run


def test_get_shows_tables_json_yaml_and_names(ctl: Ctl) -> None:
    table = ctl("get", "nodes")
    assert table.exit_code == 0, table.stderr
    lines = table.stdout.splitlines()
    assert lines[0].split()[:2] == ["NAME", "STATE"] and lines[1].split()[:2] == ["gpu1", "ready"]
    assert "\x1b" not in table.stdout and not any(line.endswith(" ") for line in lines)
    assert "ADDRESS" not in lines[0] and "gpu1:9960" in ctl("get", "node", "-o", "wide").stdout
    assert len(ctl("get", "nodes", "--no-headers").stdout.splitlines()) == 2
    assert ctl("get", "gpus", "--node", "gpu2", "-o", "name").stdout.split() == ["gpu/gpu2/0", "gpu/gpu2/1"]
    data = json.loads(ctl("get", "groups", "-o", "json", "--sort", "-achieved_percent").stdout)
    assert data["total"] == 3 and [row["id"] for row in data["items"]] == ["a1", "b1", "b2"]
    assert data["items"][0]["owner"] == "1000@here"
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(ctl("get", "limits", "-o", "yaml").stdout)["items"][0]["vgpus"] == 8
    assert "no limit" in ctl("get", "limits").stdout


def test_get_one_by_any_of_its_names(ctl: Ctl) -> None:
    assert json.loads(ctl("get", "gpu", "gpu1/1", "-o", "json").stdout)["uuid"] == "GPU-gpu1-1"
    assert json.loads(ctl("get", "group", "team-a", "-o", "json").stdout)["id"] == "a1"
    assert json.loads(ctl("get", "groups", "team-b", "-o", "json").stdout)["total"] == 2
    missing = ctl("get", "node", "gpu3")
    assert missing.exit_code == 1 and missing.stdout == ""
    assert "no node is called 'gpu3'" in missing.stderr and "did you mean gpu" in missing.stderr


def test_every_kind_can_be_shown(ctl: Ctl) -> None:
    for kind, word in (("vgpus", "a1/0"), ("sessions", "s1"), ("queue", "no room"), ("events", "node.registered")):
        done = ctl("get", kind, "-o", "wide")
        assert done.exit_code == 0 and word in done.stdout, done
    assert ctl("get", "audit").stderr.strip() == "no audit"


def test_a_program_s_name_does_not_steer_the_terminal(ctl: Ctl) -> None:
    assert "\x1b" not in ctl("get", "sessions", "-o", "wide").stdout
    assert "\x1b" not in ctl("describe", "session", "s2").stdout


def test_describe_shows_what_belongs_to_a_thing(ctl: Ctl) -> None:
    node = ctl("describe", "node", "gpu1").stdout
    for word in ("state:", "driver:", "gpus:", "gpu1/1", "a1/0", "s1", "node.registered"):
        assert word in node, node
    group = json.loads(ctl("describe", "group", "a1", "-o", "json").stdout)
    assert group["group"]["group"] == "team-a" and [s["id"] for s in group["sessions"]] == ["s1"]
    assert len(json.loads(ctl("describe", "gpu", "gpu2/0", "-o", "json").stdout)["vgpus"]) == 1
    several = ctl("describe", "group", "team-b")
    assert several.exit_code == 1 and "b1, b2" in several.stderr
    assert ctl("describe", "queue", "1").exit_code == 2


def test_set_changes_a_group(ctl: Ctl, pool: PoolServer) -> None:
    done = ctl("set", "team-a", "--gmem", "4096", "--ratio", "50", "--policy", "elastic", "--json")
    assert done.exit_code == 0, done.stderr
    (row,) = json.loads(done.stdout)["items"]
    assert (row["gmem_mib"], row["ratio_percent"], row["policy"]) == (4096, 50, "elastic")
    ((group, change, user),) = pool.backend.patched
    assert (group, change.gmem_mib, change.shrink, user) == ("a1", 4096, "refuse", "admin")
    refused = ctl("set", "a1", "--gmem", "100")
    assert refused.exit_code == 1 and "512 MiB are used; use shrink=block" in refused.stderr
    assert ctl("set", "a1", "--gmem", "100", "--shrink", "block").exit_code == 0
    several = ctl("set", "team-b", "--ratio", "30")
    assert several.exit_code == 1 and "--all" in several.stderr
    assert ctl("set", "team-b", "--ratio", "30", "--all").exit_code == 0
    assert [group for group, _, _ in pool.backend.patched] == ["a1", "a1", "b1", "b2"]
    assert ctl("set", "a1", "--gpu", "0", "--ratio", "5").exit_code == 2


def test_drain_waits_until_the_node_is_empty(ctl: Ctl, pool: PoolServer, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "orion_client.ctl", "drain", "gpu1", "--wait"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=environment(pool, tmp_path)) as waiting:  # fmt: skip
        assert waiting.stderr is not None and waiting.stdout is not None
        assert waiting.stderr.readline() == "gpu1: 1 session(s) left\n"
        assert waiting.poll() is None
        assert ctl("end", "--session", "s1", "--yes").exit_code == 0
        assert waiting.wait(60) == 0
        assert waiting.stdout.read() == "gpu1: drained\n"
    late = ctl("drain", "gpu2", "--wait", "--wait-timeout", "0.1")
    assert late.exit_code == 1 and "still has 1 session(s)" in late.stderr
    assert ctl("undrain", "gpu2").stdout == "gpu2: ready\n"
    kept = ctl("forget", "gpu2")
    assert kept.exit_code == 1 and "gpu2 is in the pool" in kept.stderr
    assert ctl("drain").exit_code == 2


def test_end_asks_or_wants_yes(ctl: Ctl, pool: PoolServer) -> None:
    asked = ctl("end", "team-a")
    assert asked.exit_code == 2 and "--yes" in asked.stderr
    assert "a1" in {g.id for g in pool.backend.groups()}
    assert ctl("end", "team-a", "--yes").exit_code == 0
    assert "a1" not in {g.id for g in pool.backend.groups()}
    assert ctl("end", "team-b", "--all", "-y").exit_code == 0
    assert pool.backend.groups() == []
    assert ctl("end", "--yes").exit_code == 2


def on_terminal(pool: PoolServer, home: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    """The command on a terminal of its own, and the other end of that."""
    ours, theirs = pty.openpty()
    variables = environment(pool, home, TERM="xterm", COLUMNS="120", LINES="40")
    process = subprocess.Popen([sys.executable, "-m", "orion_client.ctl", *arguments], stdin=theirs, stdout=theirs,
                               stderr=theirs, env=variables, start_new_session=True)  # fmt: skip
    os.close(theirs)
    return process, ours


def read_until(terminal: int, word: bytes, timeout_s: float = 60.0) -> bytes:
    seen = b""
    deadline_s = time.monotonic() + timeout_s
    while word not in seen:
        assert select.select([terminal], [], [], max(0.0, deadline_s - time.monotonic()))[0], seen
        seen += os.read(terminal, 65536)
    return seen


def read_to_end(terminal: int) -> bytes:
    seen = b""
    while select.select([terminal], [], [], 60)[0]:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # EIO: the other end is closed
            break
        if not data:
            break
        seen += data
    os.close(terminal)
    return seen


def test_end_on_a_terminal_asks(pool: PoolServer, tmp_path: Path) -> None:
    for answer, code, is_left in ((b"n\n", 1, True), (b"y\n", 0, False)):
        process, terminal = on_terminal(pool, tmp_path, "end", "team-a")
        assert b"group a1 (team-a: 1 vGPU(s), 1 session(s))" in read_until(terminal, b"[y/N]")
        os.write(terminal, answer)
        read_to_end(terminal)
        assert process.wait(60) == code
        assert ("a1" in {g.id for g in pool.backend.groups()}) is is_left


def test_top_once_and_live(ctl: Ctl, pool: PoolServer, tmp_path: Path) -> None:
    once = ctl("top")
    assert once.exit_code == 0, once.stderr
    assert "2 of 2 nodes ready" in once.stdout and "12 free" in once.stdout and "\x1b" not in once.stdout
    assert once.stdout.index("team-a") < once.stdout.index("team-b")  # who does most is first
    process, terminal = on_terminal(pool, tmp_path, "top", "-n", "0.2")
    read_until(terminal, b"q quits")
    os.write(terminal, b"q")
    read_to_end(terminal)
    assert process.wait(60) == 0


def test_colours_are_for_terminals(pool: PoolServer, tmp_path: Path) -> None:
    process, terminal = on_terminal(pool, tmp_path, "get", "nodes")
    assert b"\x1b[32mready" in read_to_end(terminal)
    assert process.wait(60) == 0


def test_events_follow(pool: PoolServer, tmp_path: Path) -> None:
    line = [sys.executable, "-u", "-m", "orion_client.ctl", "events", "--follow", "-o", "json"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment(pool, tmp_path)) as following:
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["kind"] == "node.registered"
        pool.backend.note("error", "node.lost", "gpu2", "not heard of", "")
        assert json.loads(following.stdout.readline())["subject"] == "gpu2"
        following.send_signal(2)
        assert following.wait(60) == 0


def test_limits_and_reservations(ctl: Ctl) -> None:
    done = ctl("limits", "set", "team-a", "--gmem", "65536", "-o", "json")
    assert json.loads(done.stdout) == {"group": "team-a", "vgpus": 8, "gmem_mib": 65536, "ratio_percent": None}
    done = ctl("limits", "set", "team-a", "--vgpus", "none", "-o", "json")
    assert json.loads(done.stdout)["vgpus"] is None
    assert ctl("limits", "set", "team-a", "--vgpus", "-3").exit_code == 2
    assert ctl("limits", "delete", "team-a").exit_code == 0
    assert ctl("limits", "delete", "team-a").exit_code == 1
    done = ctl("reserve", "team-z", "--vgpus", "2", "--ttl", "60", "-o", "json")
    assert json.loads(done.stdout)["state"] == "reserved"
    refused = ctl("reserve", "team-z", "--vgpus", "13")
    assert refused.exit_code == 1 and "no room for so many; ask for less" in refused.stderr


def test_login_keeps_a_token_for_its_controller_alone(ctl: Ctl, pool: PoolServer, tmp_path: Path) -> None:
    without = {"ORION_TOKEN": ""}
    denied = ctl("get", "nodes", **without)
    assert denied.exit_code == 4 and "orionctl login" in denied.stderr
    wrong = ctl("login", "--user", "admin", "--password-stdin", stdin="no\n", **without)
    assert wrong.exit_code == 4 and "password is wrong" in wrong.stderr
    done = ctl("login", "--user", "admin", "--password-stdin", stdin=f"{PASSWORD}\n", **without)
    assert done.exit_code == 0 and done.stdout == "logged in as admin (operator)\n", done
    assert PASSWORD not in done.stdout + done.stderr
    token = tmp_path / ".orion" / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and "session-token" in token.read_text()
    assert ctl("whoami", **without).stdout == "admin (operator)\n"
    other = PoolServer()
    try:
        assert ctl("--controller", other.url, "get", "nodes", **without).exit_code == 4
    finally:
        other.close()
    assert ctl("logout", **without).stdout == "logged out\n"
    assert not token.exists() and ctl("whoami", **without).exit_code == 4


def test_exit_codes(ctl: Ctl, pool: PoolServer, tmp_path: Path) -> None:
    assert ctl("set", "a1", "--ratio", "5", ORION_TOKEN="viewer-token").exit_code == 4
    gone = ctl("--controller", "http://127.0.0.1:1", "get", "nodes")
    assert gone.exit_code == 3 and "Connection refused" in gone.stderr and len(gone.stderr.splitlines()) == 1
    assert ctl("get", "planets").exit_code == 2
    assert ctl("--controller", "ftp://x", "get", "nodes").exit_code == 2
    assert ctl("--controller", pool.url, "--server", "127.0.0.1:1", "get", "nodes").exit_code == 2
    assert ctl("--server", "127.0.0.1:1", "get", "nodes").exit_code == 2
    nobody = ctl("get", "nodes", ORION_CONTROLLER_URL="")
    assert nobody.exit_code == 2 and "ctl.conf" in nobody.stderr
    (tmp_path / ".orion").mkdir()
    (tmp_path / ".orion" / "ctl.conf").write_text(f"# where\ncontroller = {pool.url}\n")
    assert ctl("get", "nodes", ORION_CONTROLLER_URL="").exit_code == 0


def test_what_is_no_controller_is_said_to_be_none(ctl: Ctl) -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = ctl("--controller", f"127.0.0.1:{server.server_port}", "get", "nodes")
        server.shutdown()
    assert done.exit_code == 3 and "does not answer like an orion-controller" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("orionctl get no", {"nodes"}),
        ("orionctl get nodes gp", {"gpu1", "gpu2"}),
        ("orionctl set te", {"team-a", "team-b"}),
        ("orionctl drain ", {"gpu1", "gpu2"}),
        ("orionctl dra", {"drain"}),
    ],
)
def test_completion_knows_the_pool(shell: Shell, words: str, expected: set[str]) -> None:
    typed = words.split(" ")
    done = shell(_ORIONCTL_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(typed) - 1))
    assert set(done.stdout.split()) == expected, done


def test_completion_without_a_controller_is_silent(shell: Shell) -> None:
    done = shell(_ORIONCTL_COMPLETE="complete_bash", COMP_WORDS="orionctl drain ", COMP_CWORD="2",
               ORION_CONTROLLER_URL="http://127.0.0.1:1")  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_lists_are_read_page_by_page(pool: PoolServer, tmp_path: Path) -> None:
    node = pool.backend.nodes()[0]
    pool.backend._nodes = {f"n{i:04}": msgspec.structs.replace(node, name=f"n{i:04}") for i in range(2 * PAGE + 1)}
    rows = PoolClient(Access(pool.url, "viewer-token"), 20).items("nodes")
    assert [row["name"] for row in rows] == sorted(pool.backend._nodes)
    assert len(pool.requests) == 3
