"""Whom the command line named, and how a command ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

import typer

from orion_client import pool_client, settings
from orion_client.control_client import ServerRefused, ServerUnreachable
from orion_client.pool_client import EXIT_NOT_ALLOWED, EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_USAGE, PoolClient, PoolError

CUDA_ERROR_NOT_PERMITTED = 800


@dataclass
class Chosen:
    """What stands before the command's name."""

    server: str | None
    controller: str | None
    token_file: Path | None
    ca_file: str | None
    timeout_s: float

    def pool(self) -> PoolClient | None:
        """The controller to ask; None: a server is meant. What is named in the command goes before what is set."""
        if self.server:
            return None
        token = None
        if self.token_file is not None:
            with usage_errors():
                token = settings.admin_token(self.token_file)
        with refusals():
            access = pool_client.find(self.controller, token, self.ca_file)
        return PoolClient(access, self.timeout_s) if access else None

    def server_address(self) -> str:
        """The server to ask where there is no controller."""
        with usage_errors():
            if self.server:
                return settings.parse_server(self.server)
            return (settings.servers() or [settings.DEFAULT_SERVER])[0]

    def admin_token(self) -> str:
        """Of the server."""
        with usage_errors():
            return settings.admin_token(self.token_file)


def chosen(context: typer.Context) -> Chosen:
    """The options of orionctl itself."""
    return cast(Chosen, context.obj)


def pool_of(context: typer.Context) -> PoolClient:
    """For commands that only a controller can answer."""
    options = chosen(context)
    if options.server:
        fail(f"`{context.command_path.removeprefix('orionctl ')}` asks a controller, not one server: "
             "leave --server out and name --controller URL", EXIT_USAGE)  # fmt: skip
    found = options.pool()
    if found is None:
        fail("no controller is named: --controller URL, ORION_CONTROLLER_URL, or a line `controller = URL` in "
             "~/.orion/ctl.conf", EXIT_USAGE)  # fmt: skip
    return found


@contextmanager
def refusals() -> Iterator[None]:
    """What was refused becomes one line on stderr and the exit code."""
    try:
        yield
    except PoolError as error:
        fail(sentence(error), error.exit_code)
    except ServerRefused as error:
        fail(sentence(error), EXIT_NOT_ALLOWED if error.code == CUDA_ERROR_NOT_PERMITTED else EXIT_REFUSED)
    except ServerUnreachable as error:
        fail(sentence(error), EXIT_UNREACHABLE)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Settings that cannot be used."""
    try:
        yield
    except settings.SettingError as error:
        fail(str(error), EXIT_USAGE)


def sentence(error: PoolError | ServerUnreachable) -> str:
    """What happened and what to do, in a line that no answer can break."""
    text = f"{error}; {error.hint}" if error.hint else str(error)
    return "".join(c if c.isprintable() else " " for c in text)


def fail(text: str, code: int) -> NoReturn:
    """Ends the command."""
    print(f"orionctl: {text}", file=sys.stderr)
    raise typer.Exit(code)


def say(text: str) -> None:
    """For people only: never in the way of what a program reads."""
    print(text, file=sys.stderr)
