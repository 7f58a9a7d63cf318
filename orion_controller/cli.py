"""The command line of orion-controller."""

from __future__ import annotations

import asyncio
import ctypes
import getpass
import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import sqlalchemy as sa
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from orion_controller import __version__, log
from orion_controller.config import ConfigError, Settings, cautions, check_exposed, load
from orion_controller.store import CURVE_SECRET, AccountError, Accounts, Store, StoreError, schema, tables
from orion_controller.store.engine import make_engine, parse_url, shown
from orion_controller.store.store import load_state

_PR_SET_PDEATHSIG = 1
_EXIT_REFUSED = 1
_EXIT_SETUP = 2
_NAMES = {"help_option_names": ["-h", "--help"]}
_HELP = """The pool of GPUs: servers report to it, programs ask it for vGPUs, people look at it and change it.

\b
  orion-controller start                        on 127.0.0.1: HTTP 15502, servers and clients 9123
  orion-controller start --data-dir DIR         its database and secrets there
  orion-controller key                          its public key, for servers and clients
  orion-controller user add ann --role viewer   who may log in to the portal and the API
  orion-controller token create ci              for programs: shown once
  orion-controller database status              where the state is, and how much of it
  orionctl get nodes                            the pool, from anywhere

The first start makes the account "admin" with the password of --admin-password-file, ORION_ADMIN_PASSWORD_FILE or
ORION_ADMIN_PASSWORD, else with one that it makes up and shows once.

Settings are read from /etc/orion/controller.yaml, over it ~/.orion/controller.yaml, over it the environment
(ORION_CONTROLLER_HTTP, ORION_CONTROLLER_ZMQ, ORION_CONTROLLER_DATABASE, ...: as the options are called; PORT and LOG as
in the product's container), over it the options.

Exit codes: 0 done; 1 refused, or the database is away; 2 wrong usage or configuration.
"""
_START_HELP = """Runs the controller until SIGTERM or Ctrl-C. Servers and running programs go on without it meanwhile.

\b
  orion-controller start --http 127.0.0.1:15502 --zmq 127.0.0.1:9123
  orion-controller start --database postgresql://orion@db/orion      several replicas, one leads
  orion-controller start --http 0.0.0.0:15502 --tls-cert C --tls-key K --zmq 0.0.0.0:9123

Addresses that other machines can reach need TLS for HTTP (or --behind-proxy), and for servers and clients the keys
controller.authentication.client-key and server-key of the configuration, and encryption (--curve auto, the default):
servers then need --controller-key and clients ORION_CONTROLLER_KEY, which `orion-controller key` prints.
"""

app = typer.Typer(add_completion=True, rich_markup_mode=None, no_args_is_help=True, help=_HELP,
                  context_settings=_NAMES)  # fmt: skip
user_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Who may log in.", context_settings=_NAMES)
token_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Tokens for programs that use the API.",
                        context_settings=_NAMES)  # fmt: skip
database_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The database of the pool's state.",
                           context_settings=_NAMES)  # fmt: skip
app.add_typer(user_app, name="user")
app.add_typer(token_app, name="token")
app.add_typer(database_app, name="database")

Result = TypeVar("Result")
Json = Annotated[bool, typer.Option("--json", help="Machine-readable.")]
ConfigFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Configuration, instead of the usual files.")]
DataDir = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the database and secrets.")]
Database = Annotated[
    str | None, typer.Option(metavar="URL", help="postgresql://USER@HOST/NAME, or sqlite:///FILE (default: in DIR).")
]
Role = Annotated[str, typer.Option(help="viewer (looks) or operator (changes).")]
PasswordStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]
Generate = Annotated[bool, typer.Option("--generate", help="Make a password up and show it.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"orion-controller {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command("start", help=_START_HELP, context_settings=_NAMES)
def start(
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    http: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Portal and API (127.0.0.1:15502).")] = None,
    zmq: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Servers and clients (127.0.0.1:9123).")] = None,
    advertise_http: Annotated[
        str | None, typer.Option(metavar="URL", help="How others reach this HTTP, where not by the address above.")
    ] = None,
    advertise_zmq: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="How servers and clients reach this replica.")
    ] = None,
    replica_id: Annotated[str | None, typer.Option(metavar="NAME", help="Of this replica (the host's name).")] = None,
    database: Database = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate chain for HTTP, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key, PEM.")] = None,
    behind_proxy: Annotated[bool | None, typer.Option(help="A proxy in front of it speaks TLS.")] = None,
    curve: Annotated[
        str | None, typer.Option(help="Encrypt servers' and clients' port: auto (off loopback), on, off.")
    ] = None,
    insecure_network: Annotated[
        bool | None, typer.Option(help="Allow an unencrypted port for servers and clients off loopback.")
    ] = None,
    admin_password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Password of the first account.")
    ] = None,
    vgpu_count: Annotated[str | None, typer.Option(metavar="N", help="A default vGPU is 1 of N parts (4).")] = None,
    policy: Annotated[str | None, typer.Option(help="Placement: binpack (default) or spread.")] = None,
    queue_patience: Annotated[
        str | None, typer.Option(metavar="SECONDS", help="After this nobody passes who waits (30).")
    ] = None,
    idle_release: Annotated[
        str | None, typer.Option(metavar="SECONDS", help="A group's vGPUs outlive its last program by this (30).")
    ] = None,
    lease: Annotated[str | None, typer.Option(metavar="SECONDS", help="A server silent for this is lost (5).")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Log there instead of on stderr.")] = None,
    json_log: Annotated[bool | None, typer.Option(help="Log one JSON object a line.")] = None,
    ready_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Written when ready: HTTP's URL, then ZeroMQ's address.")
    ] = None,
    ready_fd: Annotated[int | None, typer.Option(min=0, help="The same on this descriptor, then closed.")] = None,
    exit_with_parent: Annotated[bool, typer.Option(help="Stop when the starting process ends.")] = False,
) -> None:
    if exit_with_parent:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    given = {
        "data_dir": data_dir, "http": http, "zmq": zmq, "advertise_http": advertise_http,
        "advertise_zmq": advertise_zmq, "replica_id": replica_id, "database": database, "tls_cert": tls_cert,
        "tls_key": tls_key, "behind_proxy": behind_proxy, "curve": curve,
        "insecure_network": insecure_network, "admin_password_file": admin_password_file,
        "vgpu_count": vgpu_count, "policy": policy, "queue_patience_s": queue_patience, "idle_release_s": idle_release,
        "lease_s": lease, "log_level": log_level, "log_file": log_file, "json_log": json_log,
        "ready_file": ready_file, "ready_fd": ready_fd,
    }  # fmt: skip
    settings = _settings(given, config_file)
    missing = check_exposed(settings)
    if missing:
        _fail("refusing to listen where other machines can reach it. Missing: " + "; ".join(missing), _EXIT_SETUP)
    try:
        settings.first_password()
        log.configure(settings.log_level, settings.json_log, settings.log_file)
    except ConfigError as error:
        _fail(str(error), _EXIT_SETUP)
    except OSError as error:
        _fail(f"cannot write the log {settings.log_file}: {error.strerror}", _EXIT_SETUP)
    for line in cautions(settings):
        logging.getLogger("orion.controller").warning("%s", line)
    from orion_controller import daemon  # late: the commands below need neither aiohttp nor ZeroMQ

    try:
        code = daemon.run(settings)
    except (StoreError, AccountError, ConfigError) as error:
        _fail(str(error), _EXIT_REFUSED)
    raise typer.Exit(code or 0)


@app.command("key", help="Prints the public key of all replicas, made if there is none: --controller-key of servers, "
             "ORION_CONTROLLER_KEY of clients.", context_settings=_NAMES)  # fmt: skip
def key(config_file: ConfigFile = None, data_dir: DataDir = None, database: Database = None) -> None:
    from wire import curve

    async def work(store: Store, _accounts: Accounts) -> bytes:
        return await asyncio.to_thread(store.secret, CURVE_SECRET)

    print(curve.pair_of_bytes(_with_accounts(work, config_file, data_dir, database)).public)


# ----------------------------------------------------------------------------------------------------------- users


@user_app.command("add", help="Adds an account; asks for its password.")
def user_add(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    role: Role = "viewer",
    password_stdin: PasswordStdin = False,
    generate: Generate = False,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    database: Database = None,
) -> None:
    password = _password(password_stdin, generate)

    async def work(store: Store, accounts: Accounts) -> None:
        await accounts.add_user(name, role, password)
        store.add_event("info", "user.added", name, f"account {name} ({role}) added", _who())

    _with_accounts(work, config_file, data_dir, database)
    _say_password(name, password, generate)


@user_app.command("passwd", help="Changes a password and ends the account's sessions.")
def user_passwd(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    password_stdin: PasswordStdin = False,
    generate: Generate = False,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    database: Database = None,
) -> None:
    password = _password(password_stdin, generate)

    async def work(store: Store, accounts: Accounts) -> None:
        await accounts.set_password(name, password)
        store.add_event("info", "user.password", name, f"password of {name} changed", _who())

    _with_accounts(work, config_file, data_dir, database)
    _say_password(name, password, generate)


@user_app.command("remove", help="Removes an account and ends its sessions.")
def user_remove(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    database: Database = None,
) -> None:
    async def work(store: Store, accounts: Accounts) -> None:
        await accounts.remove_user(name)
        store.add_event("info", "user.removed", name, f"account {name} removed", _who())

    _with_accounts(work, config_file, data_dir, database)


@user_app.command("list", help="Shows the accounts.")
def user_list(
    as_json: Json = False, config_file: ConfigFile = None, data_dir: DataDir = None, database: Database = None
) -> None:
    users = _with_accounts(lambda _store, accounts: accounts.users(), config_file, data_dir, database)
    if as_json:
        print(json.dumps([{"name": user.name, "role": user.role, "created_s": user.created_s} for user in users]))
    else:
        _table(["NAME", "ROLE", "CREATED"], [[user.name, user.role, _when(user.created_s)] for user in users])


# ---------------------------------------------------------------------------------------------------------- tokens


@token_app.command("create", help="Makes a token and prints it, this once: `Authorization: Bearer TOKEN`.")
def token_create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which program it is for.")],
    role: Role = "viewer",
    days: Annotated[float | None, typer.Option(min=0.0001, max=36500, help="Valid for; else until revoked.")] = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    database: Database = None,
) -> None:
    async def work(store: Store, accounts: Accounts) -> str:
        token = await accounts.create_token(name, role, None if days is None else days * 86400)
        store.add_event("info", "token.created", name, f"token {name} ({role}) created", _who())
        return token

    print(_with_accounts(work, config_file, data_dir, database))


@token_app.command("revoke", help="Ends a token; replicas follow within seconds.")
def token_revoke(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    database: Database = None,
) -> None:
    async def work(store: Store, accounts: Accounts) -> None:
        await accounts.revoke_token(name)
        store.add_event("info", "token.revoked", name, f"token {name} revoked", _who())

    _with_accounts(work, config_file, data_dir, database)


@token_app.command("list", help="Shows the tokens' names, never the tokens.")
def token_list(
    as_json: Json = False, config_file: ConfigFile = None, data_dir: DataDir = None, database: Database = None
) -> None:
    found = _with_accounts(lambda _store, accounts: accounts.tokens(), config_file, data_dir, database)
    if as_json:
        print(json.dumps([{"name": t.name, "role": t.role, "created_s": t.created_s, "expires_s": t.expires_s,
                           "used_s": t.used_s} for t in found]))  # fmt: skip
    else:
        _table(["NAME", "ROLE", "CREATED", "EXPIRES", "LAST USED"],
               [[t.name, t.role, _when(t.created_s), _when(t.expires_s), _when(t.used_s)] for t in found])  # fmt: skip


# -------------------------------------------------------------------------------------------------------- database


@database_app.command("upgrade", help="Brings the schema up to date; `start` does it too.")
def database_upgrade(config_file: ConfigFile = None, data_dir: DataDir = None, database: Database = None) -> None:
    url = _parse_or_fail(_database_url(config_file, data_dir, database))
    engine = _engine_or_fail(url)
    try:
        before, after = schema.upgrade(engine)
    except StoreError as error:
        _fail(str(error), _EXIT_REFUSED)
    except SQLAlchemyError as error:
        _fail(_away(url, error), _EXIT_REFUSED)
    finally:
        engine.dispose()
    print(f"{shown(url)}: schema {after}" + (f", was {before or 'empty'}" if before != after else ", as it was"))


@database_app.command("status", help="Shows where the state is, its schema, and how much there is of it.")
def database_status(
    as_json: Json = False, config_file: ConfigFile = None, data_dir: DataDir = None, database: Database = None
) -> None:
    def look(connection: sa.Connection) -> dict[str, Any]:
        revision = schema.current(connection)
        found: dict[str, Any] = {"schema": revision, "newest": schema.newest()}
        there = set(sa.inspect(connection).get_table_names())
        for table in (tables.allocations, tables.group_limits, tables.drained_servers, tables.events, tables.accounts,
                      tables.sessions, tables.api_tokens):  # fmt: skip
            if table.name in there:
                found[table.name] = connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
        if tables.leader.name in there:
            row = connection.execute(sa.select(tables.leader)).one()
            found["leader"] = row.replica if row.instance else ""
            found["term"] = row.term
        return found

    url, found = _look(look, config_file, data_dir, database)
    if as_json:
        print(json.dumps({"database": url, **found}))
        return
    _table(["", ""], [["database", url], *([key, str(value) or "-"] for key, value in found.items())])


@database_app.command("check", help="Reads all of it; exit code 1 when something cannot be used.")
def database_check(config_file: ConfigFile = None, data_dir: DataDir = None, database: Database = None) -> None:
    def look(connection: sa.Connection) -> list[str]:
        faults: list[str] = []
        revision = schema.check(connection)
        if revision != schema.newest():
            return [f"schema {revision or '(none)'}, {schema.newest()} is needed: orion-controller database upgrade"]
        if connection.dialect.name == "sqlite":
            faults += [str(line) for line in connection.exec_driver_sql("PRAGMA integrity_check").scalars()
                       if line != "ok"]  # fmt: skip
        load_state(connection, faults.append)
        return faults

    url, faults = _look(look, config_file, data_dir, database)
    for fault in faults:
        print(f"orion-controller: {url}: {fault}", file=sys.stderr)
    if faults:
        raise typer.Exit(_EXIT_REFUSED)
    print(f"{url}: good")


# ---------------------------------------------------------------------------------------------------------- common


def _settings(given: dict[str, Any], config_file: Path | None) -> Settings:
    try:
        return load(given, config_file)
    except ConfigError as error:
        _fail(str(error), _EXIT_SETUP)


def _database_url(config_file: Path | None, data_dir: Path | None, database: str | None) -> str:
    return _settings({"data_dir": data_dir, "database": database}, config_file).database_url


def _with_accounts(work: Callable[[Store, Accounts], Awaitable[Result]], config_file: Path | None,
                   data_dir: Path | None, database: str | None) -> Result:  # fmt: skip
    """Runs `work` on the database, beside a controller that may be running. Makes the schema only where none is: a
    running controller's changes when it is started anew."""
    url = _database_url(config_file, data_dir, database)

    async def run() -> Result:
        store = Store.open(url, migrate="new")
        accounts = Accounts(store)
        try:
            return await work(store, accounts)
        finally:
            accounts.close()
            await store.close()

    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        return asyncio.run(run())
    except (StoreError, AccountError) as error:
        _fail(str(error), _EXIT_REFUSED)


def _parse_or_fail(text: str) -> sa.URL:
    try:
        return parse_url(text)
    except StoreError as error:
        _fail(str(error), _EXIT_SETUP)


def _engine_or_fail(url: sa.URL, writes: bool = True) -> sa.Engine:
    try:
        return make_engine(url, writes)
    except StoreError as error:
        _fail(str(error), _EXIT_REFUSED)


def _look(query: Callable[[sa.Connection], Result], config_file: Path | None, data_dir: Path | None,
          database: str | None) -> tuple[str, Result]:  # fmt: skip
    """Reads; makes nothing where nothing is."""
    url = _parse_or_fail(_database_url(config_file, data_dir, database))
    if url.drivername == "sqlite" and not Path(url.database or "").is_file():
        _fail(f"there is no database {url.database}: it is made by `orion-controller start`", _EXIT_REFUSED)
    engine = _engine_or_fail(url, writes=False)
    try:
        with engine.begin() as connection:
            return shown(url), query(connection)
    except StoreError as error:
        _fail(str(error), _EXIT_REFUSED)
    except SQLAlchemyError as error:
        _fail(_away(url, error), _EXIT_REFUSED)
    finally:
        engine.dispose()


def _away(url: sa.URL, error: SQLAlchemyError) -> str:
    return f"cannot use the database {shown(url)}: {' '.join(str(getattr(error, 'orig', None) or error).split())}"


def _password(from_stdin: bool, generate: bool) -> str:
    if from_stdin and generate:
        _fail("--password-stdin and --generate exclude each other", _EXIT_SETUP)
    if generate:
        return secrets.token_urlsafe(12)
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        _fail("no terminal to ask for the password: use --password-stdin or --generate", _EXIT_SETUP)
    first = getpass.getpass("Password: ")
    if first != getpass.getpass("Again: "):
        _fail("the two passwords differ: nothing was changed", _EXIT_REFUSED)
    return first


def _say_password(name: str, password: str, generated: bool) -> None:
    if generated:
        print(f"{name}: {password}")


def _who() -> str:
    """For the audit trail: who ran this command."""
    try:
        return f"local:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"local:{os.getuid()}"


def _when(at_s: float | None) -> str:
    return "-" if at_s is None else datetime.fromtimestamp(at_s).astimezone().isoformat(" ", "seconds")


def _table(heads: list[str], rows: list[list[str]]) -> None:
    table = Table(box=None, pad_edge=False, show_header=any(heads))
    for head in heads:
        table.add_column(head, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # Into a pipe or a file: wide enough that nothing is cut.
    (Console() if sys.stdout.isatty() else Console(width=500)).print(table, highlight=False, markup=False)


def _fail(text: str, code: int) -> NoReturn:
    print(f"orion-controller: {text}", file=sys.stderr)
    raise typer.Exit(code)


def main() -> None:
    """Entry of the installed command."""
    app(prog_name="orion-controller")


if __name__ == "__main__":
    main()
