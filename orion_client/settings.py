"""The client's configuration as the library reads it: environment, ~/.orion/client.conf, /etc/orion/client.conf."""

from __future__ import annotations

import ipaddress
import os
import tempfile
from pathlib import Path

DEFAULT_SERVER = "127.0.0.1:9960"
DEFAULT_PORT = 9960
DEFAULT_CONTROLLER_PORT = 9123
# The product's names of keys, by ours.
_ALIASES = {"ORION_CONTROLLER": "controller_addr"}
NO_KEYS = "none"  # as ORION_SERVER_KEY: the servers at hand are not encrypted, whatever client.conf says
_KEY_CHARACTERS = 40
TOKEN_BYTES_MOST = 8192  # of a pod's token: what a controller takes


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


def server_key(server: str) -> str:
    """The public key of a server (z85), empty when its control port is not encrypted. ORION_SERVER_KEY has them in the
    order of ORION_SERVER; a server that is not named there, by an option, has the first."""
    value = setting("ORION_SERVER_KEY")
    if not value or value == NO_KEYS:
        return ""
    keys = [key.strip() for key in value.split(",")]
    configured = servers()
    position = configured.index(server) if server in configured else 0
    if position >= len(keys):
        raise SettingError("ORION_SERVER_KEY has fewer keys than ORION_SERVER has servers")
    if keys[position] and len(keys[position]) != _KEY_CHARACTERS:
        raise SettingError("ORION_SERVER_KEY is the 40 characters that `orion-server key` prints on the server")
    return keys[position]


def controller_key() -> str:
    """The public key (z85) of the controller and all its replicas; empty when their port is not encrypted."""
    value = setting("ORION_CONTROLLER_KEY")
    if not value or value == NO_KEYS:
        return ""
    if len(value) != _KEY_CHARACTERS:
        raise SettingError("ORION_CONTROLLER_KEY is the 40 characters that `orion-controller key` prints")
    return value


def client_key() -> str:
    """What a controller, or a server without one, may ask of its clients; empty when nobody set it."""
    return setting("ORION_CLIENT_KEY") or ""


def pod_token(controller: str) -> str:
    """The service-account token by which this pod proves to a controller that it is itself, read anew since it is
    renewed; empty where there is none, or where it would travel in clear. SettingError for a file that cannot be it."""
    file = setting("ORION_TOKEN_FILE")
    if not file or not (controller_key() or _is_loopback(controller)):
        return ""
    try:
        with open(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as opened:  # a FIFO: at its end
            token = (opened.read(TOKEN_BYTES_MOST + 1) or b"").rstrip(b"\r\n")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise SettingError(f"cannot read ORION_TOKEN_FILE={file}: {error.strerror}") from None
    if not token or len(token) > TOKEN_BYTES_MOST or not all(0x21 <= byte <= 0x7E for byte in token):
        raise SettingError(f"ORION_TOKEN_FILE={file} holds no token of at most {TOKEN_BYTES_MOST} bytes")
    return token.decode()


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name: wherever that leads


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
