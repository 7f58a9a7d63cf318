"""Settings of orion-server: built-in defaults, then the configuration file, then the command line."""

from __future__ import annotations

import configparser
import ipaddress
import os
import socket
import stat
import tempfile
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from wire import curve

DEFAULT_CONFIG_FILE = Path("/etc/orion/server.conf")
DEFAULT_PORT = 9960
DEFAULT_CONTROLLER_PORT = 9123
DEFAULT_METRICS_PORT = 9961
# A unix socket's path has 107 bytes; ours end in a slash and a session's id.
_MAX_FOLDER_BYTES = 85
CURVE_CHOICES = ("auto", "on", "off")
ENCRYPT_CHOICES = ("auto", "required", "off")
RATIO_POLICIES = ("hard", "elastic")
LOG_LEVELS = ("debug", "info", "warning", "error")

# What a client may set for its worker. Everything else of its environment stays with it.
CLIENT_ENVIRONMENT = frozenset(
    {
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "CUDA_DEVICE_DEFAULT_PERSISTING_L2_CACHE_PERCENTAGE_LIMIT",
        "CUDA_DISABLE_PTX_JIT",
        "CUDA_FORCE_PTX_JIT",
        "CUDA_MODULE_DATA_LOADING",
        "CUDA_MODULE_LOADING",
        "CUDA_SCALE_LAUNCH_QUEUES",
    }
)


class ConfigError(Exception):
    """A setting that cannot be used: the message names it and says what is allowed."""


@dataclass(frozen=True)
class Settings:
    """Everything that orion-server can be told."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    device: str = "auto"
    libcuda: str | None = None
    devices: str | None = None
    nvml: str = "auto"
    warm: int | None = None  # two on a GPU, one otherwise
    max_sessions: int = 64
    image_cache_mib: int = 2048
    vgpu_count: int = 4
    ratio_policy: str = "hard"
    overcommit_ratio: bool = False
    pinned_mib: int = 0  # pinned host memory of each worker; 0: no limit
    reserve_mib: int = 0  # of each GPU's memory, which vGPUs never get: other programs use it
    swap_mib: int = 0  # by which the quotas of a GPU may exceed its memory; idle vGPUs' goes to host memory. 0: none
    metrics_listen: str | None = None
    controller: str = ""  # host:port[,host:port...] of the pool's controller and its replicas
    name: str = ""  # in the pool; the machine's otherwise
    advertise: str = ""  # host:port under which clients reach this server, where it is not what it listens on
    pool_key: str = ""  # the pool's server key
    controller_key: str = ""  # the controllers' public key (z85); empty: their port is not encrypted
    curve: str = "auto"  # the control port: encrypted off loopback, and where clients show a key
    encrypt: str = "auto"  # TCP lanes: off loopback
    client_key_file: Path | None = None
    enable_shm: bool = True
    shm_dir: Path | None = None  # of sessions' sockets, for clients in containers that see this folder alone
    enable_rdma: bool = False  # offer UCX's lanes: never encrypted
    ibverbs_device: str = ""  # the RDMA device to use, such as mlx5_0; empty: any
    bind_net: str = ""  # the network interface whose address is listened on, instead of `host`
    log_level: str = "info"
    json_log: bool = False
    drain_timeout_s: float = 30.0
    bind_timeout_s: float = 10.0
    connect_timeout_s: float = 5.0
    worker_start_timeout_s: float = 60.0
    worker_uids: str = ""  # FIRST-LAST or off; empty: isolation.DEFAULT_WORKER_UIDS where the server is root
    require_isolation: bool = False
    seccomp: bool = True
    socket_dir: Path | None = None
    ready_file: Path | None = None
    ready_fd: int | None = None
    ignored: tuple[str, ...] = field(default=(), compare=False)


def parse_listen(text: str, option: str = "--listen", default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """`host:port`, `:port` or `host`; port 0 lets the system choose. Only an IPv4 address."""
    host, separator, port_text = text.rpartition(":")
    if not separator:
        host, port_text = text, str(default_port)
    host = host.strip("[]") or "127.0.0.1"
    try:
        port = int(port_text)
    except ValueError:
        raise ConfigError(f"{option} {text}: {port_text!r} is not a port number") from None
    if not 0 <= port <= 65535:
        raise ConfigError(f"{option} {text}: a port is 0 (any free one) to 65535")
    check_address(host)
    return ("127.0.0.1" if host == "localhost" else host), port


def check_slices(settings: Settings) -> None:
    """Refuses what cannot divide a GPU."""
    if not 0 <= settings.vgpu_count <= 100:
        raise ConfigError(f"a vgpu_count of {settings.vgpu_count}: it is 1 to 100, or 0 for no limits by default")
    if settings.ratio_policy not in RATIO_POLICIES:
        raise ConfigError(f"a ratio policy {settings.ratio_policy!r}: it is one of {', '.join(RATIO_POLICIES)}")
    if settings.reserve_mib < 0:
        raise ConfigError(f"a reserve_mib of {settings.reserve_mib}: it is a number of MiB, or 0 for none")
    if settings.swap_mib < 0:
        raise ConfigError(f"a swap_mib of {settings.swap_mib}: it is a number of MiB, or 0 for none")
    if settings.pinned_mib < 0:
        raise ConfigError(f"a pinned_mib of {settings.pinned_mib}: it is a number of MiB, or 0 for no limit")


def check_pool(settings: Settings) -> Settings:
    """The settings with the controllers' default port written out; ConfigError for what no controller is."""
    if settings.controller_key and not curve.is_public_key(settings.controller_key):
        raise ConfigError("--controller-key: it is the 40 characters that `orion-controller key` prints")
    if not settings.controller:
        return settings
    found = []
    for item in settings.controller.split(","):
        host, separator, port = item.strip().rpartition(":")
        host, port = (host, port) if separator else (item.strip(), str(DEFAULT_CONTROLLER_PORT))
        if not host or not port.isdigit() or not 1 <= int(port) <= 65535 or any(c in host for c in " /\t"):
            raise ConfigError(f"--controller {settings.controller}: expected HOST:PORT[,HOST:PORT...]")
        found.append(f"{host}:{port}")
    if len(settings.name) > 255:
        raise ConfigError("--name: at most 255 characters")
    return replace(settings, controller=",".join(found), name=settings.name or os.uname().nodename)


def read_key(path: Path) -> str:
    """A key from its file, which only its owner may read."""
    try:
        text = path.read_text(encoding="utf-8").strip()
        mode = stat.S_IMODE(path.stat().st_mode)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the key file {path}: {error}") from error
    if mode & 0o077:
        raise ConfigError(f"the key file {path} is open to other users (mode {mode:o}): chmod 600 {path}")
    if not 16 <= len(text) <= 256:
        raise ConfigError(f"the key file {path} holds {len(text)} characters: a key has 16 to 256")
    return text


def check_address(host: str) -> None:
    """Refuses what is not an IPv4 address. Which of them may be listened on: network.check_exposed."""
    if host == "localhost":
        return
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ConfigError(f"{host!r} is not an IP address: use 127.0.0.1") from None
    if address.version != 4:
        raise ConfigError(f"refusing to listen on {host}: only IPv4 is served in this version; use 127.0.0.1")


def check_loopback(host: str, option: str) -> None:
    """Refuses every address that another machine could reach: nobody is authenticated there."""
    check_address(host)
    if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
        raise ConfigError(f"{option}: refusing to listen on {host}, which other machines reach; use 127.0.0.1")


def check_choices(settings: Settings) -> None:
    """Refuses words that mean nothing."""
    if settings.curve not in CURVE_CHOICES:
        raise ConfigError(f"--curve {settings.curve}: it is one of {', '.join(CURVE_CHOICES)}")
    if settings.encrypt not in ENCRYPT_CHOICES:
        raise ConfigError(f"--encrypt {settings.encrypt}: it is one of {', '.join(ENCRYPT_CHOICES)}")


# The product's file: section, key -> our field. Keys of features that are not there are named, not silently eaten.
_FILE_KEYS: dict[tuple[str, str], str] = {
    ("server", "listen_port"): "port",
    ("server", "bind_addr"): "host",
    ("server", "bind_net"): "bind_net",
    ("server", "enable_shm"): "enable_shm",
    ("server", "enable_rdma"): "enable_rdma",
    ("server", "ibverbs_device"): "ibverbs_device",
    ("server", "device"): "device",
    ("server", "libcuda"): "libcuda",
    ("server", "devices"): "devices",
    ("server", "nvml"): "nvml",
    ("server", "warm_workers"): "warm",
    ("server", "max_sessions"): "max_sessions",
    ("server", "image_cache_mib"): "image_cache_mib",
    ("server", "vgpu_count"): "vgpu_count",
    ("server", "ratio_policy"): "ratio_policy",
    ("server", "overcommit_ratio"): "overcommit_ratio",
    ("server", "pinned_mib"): "pinned_mib",
    ("server", "reserve_mib"): "reserve_mib",
    ("server", "swap_mib"): "swap_mib",
    ("server", "metrics_listen"): "metrics_listen",
    ("server", "name"): "name",
    ("server", "advertise"): "advertise",
    ("controller", "controller_addr"): "controller",
    ("controller", "pool_key"): "pool_key",
    ("controller", "controller_key"): "controller_key",
    ("server", "curve"): "curve",
    ("server", "encrypt"): "encrypt",
    ("server", "client_key_file"): "client_key_file",
    ("server", "drain_timeout"): "drain_timeout_s",
    ("server", "connect_timeout"): "connect_timeout_s",
    ("server", "worker_start_timeout"): "worker_start_timeout_s",
    ("server", "comm_path"): "socket_dir",
    ("server", "shm_dir"): "shm_dir",
    ("server", "worker_uids"): "worker_uids",
    ("server", "require_isolation"): "require_isolation",
    ("server-log", "log_level"): "log_level",
    ("log", "log_level"): "log_level",
    ("server-log", "json"): "json_log",
    ("log", "json"): "json_log",
}
_PRODUCT_LEVELS = {"warn": "warning"}


def load_file(path: Path, base: Settings) -> Settings:
    """Reads an INI file over `base`."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with path.open(encoding="utf-8") as file:
            parser.read_file(file)
    except (OSError, configparser.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    settings = base
    ignored: list[str] = []
    for section in parser.sections():
        for key, raw in parser.items(section):
            name = _FILE_KEYS.get((section, key))
            if name is None:
                ignored.append(f"[{section}] {key}")
                continue
            value = _convert(name, raw.strip().strip('"'), f"{path}: [{section}] {key}")
            settings = replace(settings, **{name: value})
    check_address(settings.host)
    return replace(settings, ignored=tuple(ignored))


def _convert(name: str, raw: str, where: str) -> Any:
    default = next(f for f in fields(Settings) if f.name == name).default
    try:
        if name == "log_level":
            level = _PRODUCT_LEVELS.get(raw.lower(), raw.lower())
            if level not in LOG_LEVELS:
                raise ValueError(raw)
            return level
        if name in ("socket_dir", "shm_dir", "client_key_file"):
            return Path(raw)
        if isinstance(default, bool):
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[raw.lower()]
        if isinstance(default, int) or name == "warm":
            return int(raw)
        if isinstance(default, float):
            return float(raw)
    except (KeyError, ValueError):
        raise ConfigError(f"{where} = {raw!r} is not a value for it") from None
    return raw


def private_directory(wanted: Path | None) -> Path:
    """The per-user folder for the workers' unix sockets: owned by us, closed to everybody else."""
    if wanted is None:
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        if runtime and os.access(runtime, os.W_OK):
            wanted = Path(runtime) / "orion"
        else:
            wanted = Path(tempfile.gettempdir()) / f"orion-{os.geteuid()}"
    try:
        wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = wanted.lstat()
    except OSError as error:
        raise ConfigError(
            f"cannot make the socket folder {wanted}: {error.strerror}; name another with --socket-dir"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise ConfigError(f"{wanted} is not a folder of this user: remove it or name another with --socket-dir")
    if status.st_mode & 0o077:
        raise ConfigError(
            f"{wanted} is open to other users (mode {stat.S_IMODE(status.st_mode):o}): chmod 700 {wanted}"
        )
    if len(os.fsencode(wanted)) > _MAX_FOLDER_BYTES:
        raise ConfigError(f"{wanted} is too long for a unix socket's path: name a shorter folder with --socket-dir")
    return wanted


def shm_directory(wanted: Path) -> Path:
    """The folder of --shm-dir, which containers mount: nobody but this server may make or remove files there, and it
    holds nothing but sockets. Those of a server that was killed are removed."""
    try:
        wanted.mkdir(mode=0o711, parents=True, exist_ok=True)
        status = wanted.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise ConfigError(f"{wanted} is not a folder of this user: remove it or name another with --shm-dir")
        if status.st_mode & 0o022:
            raise ConfigError(
                f"others may change {wanted} (mode {stat.S_IMODE(status.st_mode):o}): chmod go-w {wanted}"
            )
        wanted.chmod(0o711)
        for path in wanted.iterdir():
            if path.suffix == ".sock" and stat.S_ISSOCK(path.lstat().st_mode) and not _listens(path):
                path.unlink()
    except OSError as error:
        raise ConfigError(f"cannot use the folder {wanted}: {error.strerror}; name another with --shm-dir") from error
    if len(os.fsencode(wanted)) > _MAX_FOLDER_BYTES:
        raise ConfigError(f"{wanted} is too long for a unix socket's path: name a shorter folder with --shm-dir")
    return wanted


def _listens(path: Path) -> bool:
    """Whether a server is behind a socket's file: another one may use the folder too."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.settimeout(0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True
