"""`orionctl login`, `logout`, `whoami`."""

from __future__ import annotations

import getpass
import ipaddress
import json
import sys
from typing import Annotated
from urllib.parse import urlsplit

import typer

from orion_client import pool_client
from orion_client.ctl.context import fail, pool_of, refusals, say
from orion_client.pool_client import EXIT_USAGE, PoolError
from orion_client.text import printable

LOGIN_HELP = """Asks for a user's name and password and keeps the token that the controller gives for them.

The token is kept in ~/.orion/token (mode 0600) and sent to that controller alone. Programs use ORION_TOKEN instead.

\b
  orionctl --controller http://127.0.0.1:15502 login
  echo "$PASSWORD" | orionctl login --user admin --password-stdin
"""


def login(
    context: typer.Context,
    user: Annotated[str | None, typer.Option(help="The user's name; asked for on a terminal.")] = None,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")] = False,
) -> None:
    pool = pool_of(context)
    terminal = sys.stdin.isatty()
    if user is None and (password_stdin or not terminal):
        fail("name --user where there is no terminal to ask on", EXIT_USAGE)
    if not password_stdin and not terminal:
        fail("--password-stdin reads the password where there is no terminal to ask on", EXIT_USAGE)
    if _is_readable_on_the_way(pool.access.url):
        say(f"orionctl: {pool.access.url} is not encrypted: the password can be read on the way; use https")
    name = user if user is not None else input("user: ").strip()
    password = sys.stdin.readline().rstrip("\r\n") if password_stdin else getpass.getpass("password: ")
    if not name or not password:
        fail("a name and a password are needed", EXIT_USAGE)
    with refusals():
        answer = pool.send("POST", "login", {"user": name, "password": password})
        if not isinstance(answer, dict) or not answer.get("token"):
            raise PoolError("the controller gave no token")
    try:
        pool_client.store_token(pool.access.url, str(answer["token"]))
    except OSError as error:
        fail(f"cannot keep the token in {pool_client.token_file()}: {error.strerror}", EXIT_USAGE)
    print(printable(f"logged in as {answer.get('user')} ({answer.get('role')})"))


def logout(context: typer.Context) -> None:
    """Makes the token invalid, and forgets it."""
    pool = pool_of(context)
    with refusals():
        try:
            if pool.access.token:
                pool.send("POST", "logout")
        except PoolError as error:
            # What has expired or was revoked already is what was wanted.
            if error.exit_code != pool_client.EXIT_NOT_ALLOWED:
                raise
        finally:
            forgotten = pool_client.forget_token()
    print("logged out" if forgotten or pool.access.token else "nobody was logged in")


def whoami(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False
) -> None:
    """Shows as whom the controller knows you."""
    pool = pool_of(context)
    with refusals():
        me = pool.get("me")
        if not isinstance(me, dict):
            raise PoolError("the controller does not say who that is")
    if as_json:
        print(json.dumps(me))
    else:
        print(printable(f"{me.get('user')} ({me.get('role')})"))


def _is_readable_on_the_way(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return False
    try:
        return not ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return True
