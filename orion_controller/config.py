"""Settings of orion-controller: defaults, then /etc/orion/controller.yaml, then ~/.orion/controller.yaml, then the
environment, then the command line. The product's keys are accepted; those of its etcd are named and ignored."""

from __future__ import annotations

import difflib
import ipaddress
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from orion_controller.store.accounts import FIRST_USER
from orion_controller.store.engine import StoreError, parse_url, url_of_folder
from wire.pool import DEFAULT_PORT

SYSTEM_FILE = Path("/etc/orion/controller.yaml")
DEFAULT_HTTP_PORT = 15502
LOG_LEVELS = ("debug", "info", "warning", "error")
POLICIES = ("binpack", "spread")
CURVE_CHOICES = ("auto", "on", "off")
_PRODUCT_LEVELS = {"warn": "warning"}
_FILE_BYTES_MAX = 1 << 20
_KEY_CHARACTERS_MAX = 256
_BEARER_CHARACTERS_LEAST = 16


class ConfigError(Exception):
    """A setting that cannot be used: the message names where it stands and what is allowed."""


class Endpoint(NamedTuple):
    """Where to listen. Port 0: any free one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        return ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


DEFAULT_HTTP = Endpoint("127.0.0.1", DEFAULT_HTTP_PORT)
DEFAULT_ZMQ = Endpoint("127.0.0.1", DEFAULT_PORT)


@dataclass(frozen=True)
class Settings:
    """Everything that orion-controller can be told. Times in seconds; empty text: not set."""

    http: Endpoint = DEFAULT_HTTP
    zmq: Endpoint = DEFAULT_ZMQ
    advertise_http: str = ""  # URL by which others reach this replica's HTTP
    advertise_zmq: str = ""  # HOST:PORT by which servers and clients reach this replica
    replica_id: str = ""
    data_dir: Path = field(default_factory=lambda: default_data_dir())
    database: str = field(default="", repr=False)  # URL, which may hold a password; empty: SQLite in data_dir
    tls_cert: Path | None = None
    tls_key: Path | None = None
    behind_proxy: bool = False  # something in front of it speaks TLS
    curve: str = "auto"  # the ZeroMQ port: encrypted off loopback
    insecure_network: bool = False
    client_key: str = field(default="", repr=False)  # what clients, servers and administrators' tools have to know
    server_key: str = field(default="", repr=False)
    administrator_key: str = field(default="", repr=False)  # programs show it as a bearer token; an operator's rights
    viewer_key: str = field(default="", repr=False)  # the same with a viewer's
    token_review: bool = False  # pods prove who they are by their service account's token
    token_audience: str = "orion"
    require_reservation: bool = False  # pods get only what orion-scheduler has reserved for them
    kubeconfig: str = ""  # of the API server that reviews tokens; empty: KUBECONFIG, else this pod's own
    admin_password: str = field(default="", repr=False)  # of the first account
    admin_password_file: Path | None = None
    login_ttl_s: float = 12 * 3600.0
    vgpu_count: int = 4
    policy: str = "binpack"
    queue_patience_s: float = 30.0
    idle_release_s: float = 30.0
    lease_s: float = 5.0
    heartbeat_s: float = 1.0
    events_kept: int = 10_000
    log_level: str = "info"
    log_file: Path | None = None
    json_log: bool = False
    ready_file: Path | None = None
    ready_fd: int | None = None
    ignored: tuple[str, ...] = field(default=(), compare=False)  # keys that this program does not know
    ignored_etcd: tuple[str, ...] = field(default=(), compare=False)  # the product's, of a database that is not there
    cautions: tuple[str, ...] = field(default=(), compare=False)

    @property
    def database_url(self) -> str:
        return self.database or url_of_folder(self.data_dir)

    @property
    def uses_curve(self) -> bool:
        """Whether the ZeroMQ port is encrypted."""
        return not self.zmq.is_loopback if self.curve == "auto" else self.curve == "on"

    def zmq_for_others(self, port: int) -> str:
        """HOST:PORT for servers, clients and other replicas, when the port is bound."""
        return self.advertise_zmq or f"{_name_for_others(self.zmq.host)}:{port}"

    def http_for_others(self, port: int) -> str:
        """The URL for people, tools and other replicas, when the port is bound."""
        scheme = "http" if self.tls_cert is None else "https"
        return self.advertise_http or f"{scheme}://{_name_for_others(self.http.host)}:{port}"

    def first_password(self) -> str:
        """Of the first account; empty: to be made up. ConfigError when its file cannot be read."""
        if self.admin_password_file is None:
            return self.admin_password
        try:
            password = self.admin_password_file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"cannot read the password of {FIRST_USER} in {self.admin_password_file}: {reason}"
            ) from error
        if not password:
            raise ConfigError(f"{self.admin_password_file} is empty: it holds the password of {FIRST_USER}")
        return password


def _name_for_others(host: str) -> str:
    """Of an address on which this machine listens: its name where that is every address."""
    if ipaddress.ip_address(host).is_unspecified:
        return os.uname().nodename
    return f"[{host}]" if ":" in host else host


def default_data_dir() -> Path:
    """The system's for root, else the user's."""
    if os.geteuid() == 0:
        return Path("/var/lib/orion")
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else Path.home() / ".local" / "state") / "orion"


# --------------------------------------------------------------------------------------------------------- values


def parse_endpoint(value: object, default_port: int) -> Endpoint:
    """`HOST:PORT`, `:PORT`, `PORT` or `HOST`; ValueError says what is allowed."""
    text = str(value).strip()
    allowed = "it is ADDRESS:PORT, for example 127.0.0.1:" + str(default_port)
    if text.isdigit():
        host, port_text = "", text
    elif text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port_text = rest[1:] if rest.startswith(":") else str(default_port) if not rest else "?"
    elif text.count(":") > 1:
        host, port_text = text, str(default_port)
    else:
        host, separator, port_text = text.partition(":")
        port_text = port_text if separator else str(default_port)
    host = {"": "127.0.0.1", "localhost": "127.0.0.1", "*": "0.0.0.0"}.get(host, host)
    try:
        address = str(ipaddress.ip_address(host))
    except ValueError:
        raise ValueError(f"{host!r} is no IP address of this machine; {allowed}") from None
    return Endpoint(address, _port(port_text, allowed))


def _port(text: object, allowed: str = "a port is 0 (any free one) to 65535") -> int:
    if isinstance(text, bool) or not str(text).isdecimal() or not 0 <= int(str(text)) <= 65535:
        raise ValueError(f"{text!r} is no port; {allowed}")
    return int(str(text))


def _host(value: object) -> str:
    return parse_endpoint(f"[{value}]" if ":" in str(value) else value, DEFAULT_PORT).host


def _one_of(choices: tuple[str, ...], synonyms: Mapping[str, str] = {}) -> Callable[[object], str]:
    def convert(value: object) -> str:
        # YAML reads on and off as true and false.
        text = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value).lower()
        text = synonyms.get(text, text)
        if text not in choices:
            raise ValueError(f"it is one of {', '.join(choices)}")
        return text

    return convert


def _truth(value: object) -> bool:
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    try:
        return words[str(value).lower()]
    except KeyError:
        raise ValueError("it is true or false") from None


def _number(least: float, most: float, unit: str = "") -> Callable[[object], float]:
    def convert(value: object) -> float:
        try:
            number = float(str(value))
        except ValueError:
            number = float("nan")
        if isinstance(value, bool) or not least <= number <= most:
            raise ValueError(f"it is a number from {least:g} to {most:g}{unit}")
        return number

    return convert


def _whole(least: int, most: int) -> Callable[[object], int]:
    def convert(value: object) -> int:
        text = str(value)
        if isinstance(value, bool) or not text.isdecimal() or not least <= int(text) <= most:
            raise ValueError(f"it is a whole number from {least} to {most}")
        return int(text)

    return convert


def _text(value: object) -> str:
    if isinstance(value, (dict, list, bool)):
        raise ValueError("it is text")
    return str(value)


def _key(value: object) -> str:
    text = _text(value)
    if len(text) > _KEY_CHARACTERS_MAX or not all(" " < character <= "~" for character in text):
        raise ValueError(f"it has up to {_KEY_CHARACTERS_MAX} printable characters without spaces; "
                         "make one with: openssl rand -hex 32")  # fmt: skip
    return text


def _bearer_key(value: object) -> str:
    text = _key(value)
    if 0 < len(text) < _BEARER_CHARACTERS_LEAST:
        raise ValueError(f"it has at least {_BEARER_CHARACTERS_LEAST} characters; make one with: openssl rand -hex 32")
    return text


def _audience(value: object) -> str:
    text = _text(value)
    if not 1 <= len(text) <= 255 or not all(" " < character <= "~" for character in text):
        raise ValueError("it is the audience of pods' tokens, for example orion")
    return text


def _path(value: object) -> Path:
    text = _text(value)
    if not text or "\0" in text:
        raise ValueError("it is a path")
    return Path(text).expanduser()


def _url(value: object) -> str:
    text = _text(value)
    try:
        parse_url(text)
    except StoreError as error:
        raise ValueError(str(error)) from None
    return text


def _http_url(value: object) -> str:
    text = _text(value).rstrip("/")
    if not text.startswith(("http://", "https://")) or len(text) > 255 or any(c.isspace() for c in text):
        raise ValueError("it is a URL, for example https://controller.example:15502")
    return text


def _address(value: object) -> str:
    host, _, port = _text(value).rpartition(":")
    if not host or len(host) > 240 or any(c.isspace() for c in host):
        raise ValueError(f"it is HOST:PORT, for example controller.example:{DEFAULT_PORT}")
    return f"{host}:{_port(port)}"


_SECONDS = " seconds"
# How the text or YAML value of each field becomes its value.
_CONVERT: dict[str, Callable[[object], Any]] = {
    "http": lambda value: parse_endpoint(value, DEFAULT_HTTP_PORT),
    "zmq": lambda value: parse_endpoint(value, DEFAULT_PORT),
    "zmq.host": _host,
    "zmq.port": _port,
    "advertise_http": _http_url,
    "advertise_zmq": _address,
    "replica_id": _text,
    "data_dir": _path,
    "database": _url,
    "tls_cert": _path,
    "tls_key": _path,
    "behind_proxy": _truth,
    "curve": _one_of(CURVE_CHOICES),
    "insecure_network": _truth,
    "client_key": _key,
    "server_key": _key,
    "administrator_key": _bearer_key,
    "viewer_key": _bearer_key,
    "token_review": _truth,
    "token_audience": _audience,
    "require_reservation": _truth,
    "kubeconfig": _text,
    "admin_password": _text,
    "admin_password_file": _path,
    "login_ttl_s": _number(60, 30 * 86400, _SECONDS),
    "vgpu_count": _whole(1, 100),
    "policy": _one_of(POLICIES),
    "queue_patience_s": _number(0, 86400, _SECONDS),
    "idle_release_s": _number(0, 86400, _SECONDS),
    "lease_s": _number(1, 3600, _SECONDS),
    "heartbeat_s": _number(0.1, 60, _SECONDS),
    "events_kept": _whole(100, 10_000_000),
    "log_level": _one_of(LOG_LEVELS, _PRODUCT_LEVELS),
    "log_file": _path,
    "json_log": _truth,
    "ready_file": _path,
    "ready_fd": _whole(0, 1 << 20),
}

# ----------------------------------------------------------------------------------------------------------- file

# Keys of the file; - and _ are the same in them. The product's first.
_FILE_KEYS: dict[tuple[str, ...], str] = {
    ("controller", "listen_ip"): "zmq.host",
    ("controller", "listen_port"): "zmq.port",
    ("controller", "log_level"): "log_level",
    ("controller", "log_file"): "log_file",
    ("controller", "vgpu_num"): "vgpu_count",
    ("controller", "authentication", "client_key"): "client_key",
    ("controller", "authentication", "server_key"): "server_key",
    ("controller", "authentication", "administrator_key"): "administrator_key",
    ("controller", "authentication", "viewer_key"): "viewer_key",
    ("controller", "authentication", "admin_password"): "admin_password",
    ("controller", "authentication", "admin_password_file"): "admin_password_file",
    ("controller", "authentication", "login_ttl"): "login_ttl_s",
    ("controller", "http"): "http",
    ("controller", "zmq"): "zmq",
    ("controller", "advertise_http"): "advertise_http",
    ("controller", "advertise_zmq"): "advertise_zmq",
    ("controller", "replica_id"): "replica_id",
    ("controller", "data_dir"): "data_dir",
    ("controller", "tls_cert"): "tls_cert",
    ("controller", "tls_key"): "tls_key",
    ("controller", "behind_proxy"): "behind_proxy",
    ("controller", "curve"): "curve",
    ("controller", "insecure_network"): "insecure_network",
    ("controller", "vgpu_count"): "vgpu_count",
    ("controller", "policy"): "policy",
    ("controller", "queue_patience"): "queue_patience_s",
    ("controller", "idle_release"): "idle_release_s",
    ("controller", "lease"): "lease_s",
    ("controller", "heartbeat"): "heartbeat_s",
    ("controller", "events_kept"): "events_kept",
    ("controller", "json_log"): "json_log",
    ("database", "url"): "database",
    ("kubernetes", "token_review"): "token_review",
    ("kubernetes", "audience"): "token_audience",
    ("kubernetes", "require_reservation"): "require_reservation",
    ("kubernetes", "kubeconfig"): "kubeconfig",
}
_SECTIONS = {path[:depth] for path in _FILE_KEYS for depth in range(1, len(path))}
_ETCD_KEYS = {
    "name", "data_dir", "listen_client_urls", "advertise_client_urls", "listen_peer_urls",
    "initial_advertise_peer_urls", "initial_cluster", "initial_cluster_state", "initial_cluster_token",
}  # fmt: skip
_KEYS_WORTH_HIDING = ("client_key", "server_key", "administrator_key", "viewer_key", "admin_password", "database")


def load_file(path: Path, base: Settings) -> Settings:
    """Reads a YAML file over `base`."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_FILE_BYTES_MAX + 1)
        if len(data) > _FILE_BYTES_MAX:
            raise ConfigError(f"{path} is larger than 1 MiB: it is no configuration")
        content = yaml.safe_load(data)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return base
    if not isinstance(content, dict):
        raise ConfigError(f"{path} has no sections: it begins with `controller:`")
    values: dict[str, Any] = {}
    ignored: list[str] = []
    etcd: list[str] = []

    def walk(section: dict[Any, Any], above: tuple[str, ...]) -> None:
        for key, value in section.items():
            names = (*above, str(key).replace("-", "_"))
            shown = ".".join((*above, str(key)))
            if names in _SECTIONS:
                if isinstance(value, dict):
                    walk(value, names)
                elif value is not None:
                    raise ConfigError(f"{path}: {shown} = {value!r}: it is a section with keys of its own")
            elif names in _FILE_KEYS:
                # Empty and null are the product's ways to leave a key out.
                if value is not None and value != "":
                    values[_FILE_KEYS[names]] = _converted(_FILE_KEYS[names], value, f"{path}: {shown}")
            elif above == ("database",) and names[1] in _ETCD_KEYS:
                etcd.append(shown)
            else:
                near = difflib.get_close_matches(names[-1], [known[-1] for known in _FILE_KEYS], 1)
                ignored.append(f"{path}: {shown}" + (f" (meant: {near[0]}?)" if near else ""))

    walk(content, ())
    cautions = base.cautions
    if mode & stat.S_IROTH and any(values.get(name) for name in _KEYS_WORTH_HIDING):
        cautions += (f"{path} holds keys or passwords and everybody on this machine can read it: chmod o-r {path}",)
    settings = _with(base, values)
    return replace(settings, ignored=base.ignored + tuple(ignored), ignored_etcd=base.ignored_etcd + tuple(etcd),
                   cautions=cautions)  # fmt: skip


def _converted(name: str, value: object, where: str) -> Any:
    try:
        return _CONVERT[name](value)
    except ValueError as error:
        shown = "" if name in _KEYS_WORTH_HIDING else f" = {str(value)[:100]!r}"
        raise ConfigError(f"{where}{shown}: {error}") from None


def _with(base: Settings, values: dict[str, Any]) -> Settings:
    rest = {name: value for name, value in values.items() if not name.startswith("zmq.")}
    settings = replace(base, **rest)
    zmq = settings.zmq._replace(
        **{name.removeprefix("zmq."): value for name, value in values.items() if name.startswith("zmq.")}
    )
    return replace(settings, zmq=zmq)


# ---------------------------------------------------------------------------------------------------- environment

# The product's container has PORT and LOG. Ours have names of their own, of which none begins with
# ORION_CONTROLLER_PORT or _SERVICE: Kubernetes sets those in every pod beside a service named orion-controller.
_ENVIRONMENT: list[tuple[str, str]] = [
    ("PORT", "zmq.port"),
    ("LOG", "log_level"),
    *((f"ORION_CONTROLLER_{name.removesuffix('_s').upper()}", name) for name in _CONVERT if "." not in name),
    ("ORION_ADMIN_PASSWORD", "admin_password"),
    ("ORION_ADMIN_PASSWORD_FILE", "admin_password_file"),
]


def load_environment(environment: Mapping[str, str], base: Settings) -> Settings:
    """Reads ORION_CONTROLLER_* and the product's variables over `base`."""
    values = {
        name: _converted(name, environment[variable], f"the environment's {variable}")
        for variable, name in _ENVIRONMENT
        if environment.get(variable)
    }
    if "zmq" in values:
        values.pop("zmq.port", None)
    if "admin_password" in values and "admin_password_file" not in values:
        values["admin_password_file"] = None
    return _with(base, values)


# ------------------------------------------------------------------------------------------------------ all of it


def load(given: Mapping[str, Any], config_file: Path | None = None,
         environment: Mapping[str, str] | None = None) -> Settings:  # fmt: skip
    """Settings from files, environment and the command line's options (None: not given), checked on their own and
    together, but not for who can reach the ports: check_exposed."""
    environment = os.environ if environment is None else environment
    named = config_file or (_path(environment["ORION_CONTROLLER_CONFIG_FILE"])
                            if environment.get("ORION_CONTROLLER_CONFIG_FILE") else None)  # fmt: skip
    settings = Settings()
    if named is not None:
        settings = load_file(named, settings)
    else:
        for path in (SYSTEM_FILE, Path(environment.get("HOME") or Path.home()) / ".orion" / SYSTEM_FILE.name):
            if path.is_file():
                settings = load_file(path, settings)
    settings = load_environment(environment, settings)
    options = {name: _converted(name, value, f"--{name.removesuffix('_s').replace('_', '-')}")
               for name, value in given.items() if value is not None}  # fmt: skip
    settings = _with(settings, options)
    _check_together(settings)
    return settings


def _check_together(settings: Settings) -> None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigError("tls_cert and tls_key go together: name both files, or neither")
    for name, path in (("tls_cert", settings.tls_cert), ("tls_key", settings.tls_key)):
        if path is not None and not path.is_file():
            raise ConfigError(f"{name} = {str(path)!r}: there is no such file")
    if settings.require_reservation and not settings.token_review:
        raise ConfigError("require_reservation needs token_review: who does not prove its pod could name another's")
    if settings.lease_s < 2 * settings.heartbeat_s:
        raise ConfigError(
            f"a lease of {settings.lease_s:g} s with a heartbeat each {settings.heartbeat_s:g} s: a lease is at least "
            "two heartbeats"
        )


# ------------------------------------------------------------------------------------------------ who can reach it


def check_exposed(settings: Settings) -> list[str]:
    """What is missing for the addresses that other machines can reach; empty: nothing, it may listen there."""
    missing: list[str] = []
    if not settings.http.is_loopback and settings.tls_cert is None and not settings.behind_proxy:
        missing.append(
            f"for HTTP on {settings.http}: TLS (--tls-cert FILE --tls-key FILE), or --behind-proxy where something in "
            "front of it speaks TLS"
        )
    if not settings.zmq.is_loopback:
        # Pods show a token; where nobody else is to come, there is no client key.
        keys = {"client-key": settings.client_key or settings.token_review, "server-key": settings.server_key}
        for name in (name for name, key in keys.items() if not key):
            missing.append(f"for servers and clients on {settings.zmq}: controller.authentication.{name} in the "
                           f"configuration, or ORION_CONTROLLER_{name.replace('-', '_').upper()}")  # fmt: skip
        if not settings.uses_curve and not settings.insecure_network:
            missing.append(
                f"for servers and clients on {settings.zmq}: encryption (--curve auto or on), or --insecure-network "
                "where nobody can listen in"
            )
        if not settings.uses_curve and settings.token_review:
            missing.append(f"for servers and clients on {settings.zmq}: encryption (--curve auto or on), since pods "
                           "show their tokens to nobody in clear (kubernetes.token-review)")  # fmt: skip
    return missing


def cautions(settings: Settings) -> list[str]:
    """What is allowed and should be known; for the log."""
    found = list(settings.cautions)
    if not settings.zmq.is_loopback and not settings.uses_curve:
        found.append(f"servers and clients on {settings.zmq} are not encrypted (--insecure-network): keys and tickets "
                     "travel in clear")  # fmt: skip
    if not settings.http.is_loopback and settings.tls_cert is None:
        found.append(f"HTTP on {settings.http} is not encrypted (--behind-proxy): only a proxy with TLS may reach it")
    if settings.ignored_etcd:
        found.append("the configuration's keys for etcd are ignored, the database is ours: "
                     + ", ".join(settings.ignored_etcd))  # fmt: skip
    found += [f"configuration: {key} is not known to this version and was ignored" for key in settings.ignored]
    return found
