"""Who may reach the server and what travels in clear: the Curve key pair of the control port, the clients' shared key,
the cipher of a session's TCP lanes, and which addresses may be listened on. See docs/security.md, "Network"."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from pathlib import Path

from zmq.utils import z85

from orion_server.config import ConfigError, Settings
from orion_server.secret_file import read_or_make
from wire import control, curve

KEY_FILE_NAME = "server-key"
_KEY_BYTES = 32
_CLIENT_KEY_LEAST = 16
_CLIENT_KEY_MOST = 128
CUDA_ERROR_INVALID_VALUE = 1


def key_pair(folder: Path) -> curve.KeyPair:
    """The server's pair, made at its first start: only the secret is kept, in `folder`."""
    path = folder / KEY_FILE_NAME
    described = "a Curve secret key (40 characters of Z85)"
    secret = read_or_make(path, curve.KEY_FORM, described, lambda: z85.encode(secrets.token_bytes(_KEY_BYTES)).decode())
    try:
        return curve.pair_of(secret)
    except ValueError as error:
        raise ConfigError(f"{path} does not hold {described}: remove it") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def uses_curve(settings: Settings) -> bool:
    """Whether the control port is encrypted."""
    if settings.curve == "auto":
        return settings.client_key_file is not None or not is_loopback(settings.host)
    return settings.curve == "on"


def check_exposed(settings: Settings) -> None:
    """Refuses settings that would leave GPUs, or what is said to them, to whoever reaches the address."""
    encrypts = uses_curve(settings)
    if settings.client_key_file is not None and not encrypts:
        raise ConfigError("--client-key-file needs --curve on: the key would travel in clear")
    if settings.encrypt == "required" and not encrypts:
        raise ConfigError("--encrypt required needs --curve on: the lanes' keys would travel in clear")
    if settings.client_key_file is not None and settings.controller:
        raise ConfigError(
            "--client-key-file and --controller: the clients of a pool come with tickets; name one of them"
        )
    if is_loopback(settings.host):
        return
    missing = []
    if not encrypts:
        missing.append("an encrypted control port (--curve on)")
    if settings.controller:
        # Clients come with tickets, whose key the controller tells.
        if not settings.controller_key and not all(_is_here(item) for item in settings.controller.split(",")):
            missing.append("an encrypted connection to the controller (--controller-key KEY)")
    elif settings.client_key_file is None:
        missing.append("clients that prove who they are (--client-key-file FILE, or a pool's tickets: --controller)")
    if missing:
        raise ConfigError(
            f"refusing to listen on {settings.host}, since anyone who reaches that address could use the GPUs. "
            f"Missing: {'; '.join(missing)}. Or listen on 127.0.0.1"
        )


def cautions(settings: Settings) -> list[str]:
    """What is allowed and should be known; for the log."""
    if not settings.controller or settings.controller_key:
        return []
    away = [item for item in settings.controller.split(",") if not _is_here(item)]
    return [f"the pool's keys travel in clear to {item}: --controller-key encrypts" for item in away]


def _is_here(controller: str) -> bool:
    try:
        return is_loopback(controller.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False  # a name: wherever that leads


class ClientKey:
    """The key that all clients of a server without a controller share. Compares in constant time."""

    def __init__(self, file: Path | None) -> None:
        self._key = b"" if file is None else _read_client_key(file)

    def admits(self, shown: str) -> bool:
        """Whether that is the key, or none is asked for."""
        return not self._key or hmac.compare_digest(shown.encode(), self._key)


def _read_client_key(file: Path) -> bytes:
    try:
        key = file.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"cannot read the clients' key in {file}: {error.strerror}") from error
    printable = all(0x21 <= byte <= 0x7E for byte in key)
    if not _CLIENT_KEY_LEAST <= len(key) <= _CLIENT_KEY_MOST or not printable:
        raise ConfigError(
            f"{file} does not hold a key of {_CLIENT_KEY_LEAST} to {_CLIENT_KEY_MOST} printable characters without "
            "spaces: make one with `openssl rand -hex 32`"
        )
    return key


class LanesRefused(Exception):
    """What the client wants and what the server wants do not go together."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def lanes_encrypted(settings: Settings, request: control.Attach) -> bool:
    """Whether the TCP lanes of a session are encrypted; its ciphers are then the request's."""
    if request.encrypt == "off" and settings.encrypt == "required":
        raise LanesRefused("this server encrypts all TCP lanes and ORION_ENCRYPT is off", "leave ORION_ENCRYPT at auto")
    if request.encrypt == "on" and (settings.encrypt == "off" or not uses_curve(settings)):
        raise LanesRefused("this server does not encrypt TCP lanes and ORION_ENCRYPT is on",
                           "start orion-server with --curve on and without --encrypt off")  # fmt: skip
    if request.encrypt == "off" or settings.encrypt == "off" or not uses_curve(settings):
        return False
    wanted = request.encrypt == "on" or settings.encrypt == "required" or not is_loopback(settings.host)
    if wanted and "raw" not in request.lanes:
        raise LanesRefused(
            "ZeroMQ's lanes are not encrypted", "leave ORION_TCP_LANES at auto, or set ORION_ENCRYPT=off"
        )
    if wanted and not request.ciphers:
        raise LanesRefused("the client knows no cipher for its TCP lanes", "install the server's release there")
    return wanted
