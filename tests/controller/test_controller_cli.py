"""The commands of orion-controller on a database of their own; the running controller is tested elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import Result
from typer.testing import CliRunner

from orion_controller.cli import app
from orion_controller.store import schema, tables
from orion_controller.store.engine import make_engine, parse_url
from orion_controller.store.passwords import Cost


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("orion_controller.config.SYSTEM_FILE", tmp_path / "none.yaml")
    monkeypatch.setattr("orion_controller.store.passwords.DEFAULT_COST", Cost(log2_n=4, r=1, p=1))
    for name in ("PORT", "LOG", "ORION_ADMIN_PASSWORD", "ORION_ADMIN_PASSWORD_FILE"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str, code: int = 0, stdin: str = "") -> Result:
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def test_users_are_added_listed_and_removed(database: str) -> None:
    where = ("--database", database)
    run("user", "add", "ann", "--role", "operator", "--password-stdin", *where, stdin="first word of ann\n")
    generated = run("user", "add", "bob", "--generate", *where).stdout
    assert generated.startswith("bob: ") and len(generated.split()[1]) >= 16
    listed = json.loads(run("user", "list", "--json", *where).stdout)
    assert [(user["name"], user["role"]) for user in listed] == [("ann", "operator"), ("bob", "viewer")]
    assert "operator" in run("user", "list", *where).stdout
    for arguments, sentence in (
        (("user", "add", "ann", "--generate"), "there is a user ann already"),
        (("user", "add", "eve", "--role", "root", "--generate"), "one of viewer, operator"),
        (("user", "remove", "ann"), "last operator"),
        (("user", "passwd", "eve", "--generate"), "no user eve"),
    ):
        assert sentence in run(*arguments, *where, code=1).stderr
    short = run("user", "passwd", "bob", "--password-stdin", *where, stdin="short\n", code=1)
    assert "8 to 256 characters" in short.stderr
    run("user", "remove", "bob", *where)
    assert [user["name"] for user in json.loads(run("user", "list", "--json", *where).stdout)] == ["ann"]


def test_a_password_is_never_asked_for_without_a_terminal(tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path))
    assert "no terminal" in run("user", "add", "ann", *where, code=2).stderr
    assert "exclude" in run("user", "add", "ann", "--generate", "--password-stdin", *where, code=2).stderr
    assert not list(tmp_path.iterdir())


def test_tokens_are_shown_once_and_what_was_done_is_in_the_audit_trail(tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path))
    token = run("token", "create", "ci", "--role", "operator", "--days", "2", *where).stdout.strip()
    assert token.startswith("orion_")
    listed = run("token", "list", "--json", *where).stdout
    (info,) = json.loads(listed)
    assert (info["name"], info["role"]) == ("ci", "operator")
    assert info["expires_s"] - info["created_s"] == pytest.approx(2 * 86400)
    assert token not in listed
    run("token", "revoke", "ci", *where)
    assert "no token ci" in run("token", "revoke", "ci", *where, code=1).stderr
    engine = make_engine(parse_url(f"sqlite:///{tmp_path}/controller.db"), writes=False)
    with engine.begin() as connection:
        rows = connection.execute(sa.select(tables.events.c.kind, tables.events.c.username)).all()
    engine.dispose()
    assert [row.kind for row in rows] == ["token.created", "token.revoked"]
    assert all(row.username.startswith("local:") for row in rows)


def test_the_database_is_upgraded_shown_and_checked(database: str, tmp_path: Path) -> None:
    where = ("--database", database)
    assert f"schema {schema.newest()}, was empty" in run("database", "upgrade", *where).stdout
    assert "as it was" in run("database", "upgrade", *where).stdout
    status = json.loads(run("database", "status", "--json", *where).stdout)
    assert (status["schema"], status["allocations"], status["leader"]) == (schema.newest(), 0, "")
    assert "good" in run("database", "check", *where).stdout
    engine = make_engine(parse_url(database))
    with engine.begin() as connection:
        connection.execute(sa.insert(tables.allocations).values(id="a-1", version=1, body="{}"))
    assert "allocation a-1 cannot be read" in run("database", "check", *where, code=1).stderr
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0999'"))
    engine.dispose()
    for command in (("database", "check"), ("database", "upgrade"), ("user", "list")):
        assert "newer version" in run(*command, *where, code=1).stderr


def test_commands_leave_an_older_schema_to_the_controller_that_uses_it(database: str) -> None:
    engine = make_engine(parse_url(database))
    schema.upgrade(engine, "0001")
    where = ("--database", database)
    assert "orion-controller database upgrade" in run("user", "add", "ann", "--generate", *where, code=1).stderr
    with engine.connect() as connection:
        assert schema.current(connection) == "0001"
    engine.dispose()
    run("database", "upgrade", *where)
    run("user", "add", "ann", "--generate", *where)


def test_looking_makes_nothing(tmp_path: Path) -> None:
    for command in ("status", "check"):
        assert "there is no database" in run("database", command, "--data-dir", str(tmp_path / "x"), code=1).stderr
    assert not (tmp_path / "x").exists()
    away = run("database", "status", "--database", "postgresql://u:hidden@127.0.0.1:1/n", code=1)
    assert "cannot use the database" in away.stderr and "hidden" not in away.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--zmq", "0.0.0.0:9123"), "refusing to listen where other machines can reach it. Missing:"),
        (("--http", "0.0.0.0:80"), "TLS"),
        (("--policy", "best"), "--policy = 'best': it is one of binpack, spread"),
        (("--lease", "x"), "--lease = 'x': it is a number from 1 to 3600 seconds"),
        (("--config-file", "/nowhere.yaml"), "cannot read /nowhere.yaml"),
        (("--admin-password-file", "/nowhere"), "cannot read the password of admin in /nowhere"),
        (("--log-file", "/proc/x/y"), "cannot write the log /proc/x/y"),
        (("--tls-cert", "/nowhere"), "go together"),
    ],
)
def test_a_start_that_cannot_be_says_why(arguments: tuple[str, ...], sentence: str) -> None:
    assert sentence in run("start", *arguments, code=2).stderr


def test_help_names_what_there_is() -> None:
    said = run("--help").stdout
    for word in ("start", "user", "token", "database", "Exit codes"):
        assert word in said
    assert "--install-completion" in said
    assert run("--version").stdout.startswith("orion-controller ")
