"""The client's configuration as the library reads it: environment, ~/.orion/client.conf, /etc/orion/client.conf."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

DEFAULT_SERVER = "127.0.0.1:9960"
DEFAULT_PORT = 9960
DEFAULT_CONTROLLER_PORT = 9123
# The product's names of keys, by ours.
_ALIASES = {"ORION_CONTROLLER": "controller_addr"}


class SettingError(Exception):
    """A value that cannot be used."""


def config_files() -> list[Path]:
    """Files that are read, the user's first."""
    home = os.environ.get("HOME") or str(Path("~").expanduser())
    return [Path(home) / ".orion" / "client.conf", Path("/etc/orion/client.conf")]


def setting(key: str) -> str | None:
    """The value of a key and None when nobody set it. Sections of the files only group keys for the reader."""
    return _find(key)[1]


def _find(key: str) -> tuple[int, str | None]:
    """Where a key stands (the higher goes before; 0: nowhere), and its value."""
    if os.environ.get(key):
        return 3, os.environ[key]
    names = {key.lower(), _ALIASES.get(key, key).lower()}
    for place, path in zip((2, 1), config_files(), strict=True):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            name, separator, value = line.strip().partition("=")
            if separator and name[:1] not in "#;[" and name.strip().lower() in names and value.strip():
                return place, value.strip()
    return 0, None


def controllers() -> list[str]:
    """Replicas of the controller (ORION_CONTROLLER, or the product's controller_addr) that a program here would ask;
    empty when none is named, or when ORION_SERVER stands in a place that goes before, or in the same one."""
    place, value = _find("ORION_CONTROLLER")
    if value is None or place <= _find("ORION_SERVER")[0]:
        return []
    return [parse_server(item, DEFAULT_CONTROLLER_PORT) for item in value.split(",")]


def parse_server(text: str, default_port: int = DEFAULT_PORT) -> str:
    """`host[:port]` as host:port."""
    host, separator, port = text.strip().rpartition(":")
    if not separator:
        host, port = text.strip(), str(default_port)
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise SettingError(f"{text!r} is not host:port, for example {DEFAULT_SERVER}")
    return f"{host}:{int(port)}"


def servers() -> list[str]:
    """Configured servers; empty when nobody named one."""
    value = setting("ORION_SERVER")
    return [parse_server(item) for item in value.split(",")] if value else []


def runtime_folder() -> Path:
    """Where servers of this user keep their sockets and the admin token, unless they were told otherwise."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime) / "orion"
    return Path(tempfile.gettempdir()) / f"orion-{os.geteuid()}"


def admin_token(file: Path | None) -> str:
    """Of `file`, else ORION_ADMIN_TOKEN, else of a server of this user on this machine; empty when there is none."""
    if file is None and os.environ.get("ORION_ADMIN_TOKEN"):
        return os.environ["ORION_ADMIN_TOKEN"].strip()
    try:
        return (file or runtime_folder() / "admin-token").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        if file is None:
            return ""
        raise SettingError(f"cannot read the token in {file}: {getattr(error, 'strerror', error)}") from None
