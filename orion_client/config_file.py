"""client.conf, line by line: which keys there are, what each may be, and what a file has that is neither.

The product's files are accepted: its keys are known here, with what becomes of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orion_client import settings
from wire import curve

MAX_FILE_BYTES = 1 << 20
_BOOLEANS = ("true", "false", "1", "0", "yes", "no", "on", "off")


@dataclass(frozen=True)
class Key:
    """A key that is known. `allowed`: for people. `without_effect`: why the product's key changes nothing here."""

    allowed: str
    accepts: Callable[[str], bool]
    without_effect: str = ""


@dataclass(frozen=True)
class Trouble:
    """Something in a file that will not do what its writer wanted."""

    kind: str  # "invalid", "unknown", "syntax", "without_effect", "unreadable"
    path: str
    line: int  # from 1; 0: the whole file
    key: str
    message: str


def _number(low: int, high: int) -> Key:
    return Key(f"a number from {low} to {high}", lambda v: v.isdecimal() and len(v) < 20 and low <= int(v) <= high)


def _decimal(high: float) -> Key:
    pattern = re.compile(r"\d+(\.\d*)?|\.\d+")
    return Key(f"a number from 0 to {high:g}", lambda v: bool(pattern.fullmatch(v)) and float(v) <= high)


def _word(*words: str) -> Key:
    return Key(" or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words), lambda v: v.lower() in words)


def _addresses(default_port: int) -> Key:
    def accepts(value: str) -> bool:
        try:
            return all(settings.parse_server(item, default_port) for item in value.split(","))
        except settings.SettingError:
            return False

    return Key(f"host:port[,host:port...], for example 127.0.0.1:{default_port}", accepts)


def _text(most_bytes: int) -> Key:
    return Key(f"text of at most {most_bytes} bytes", lambda v: len(v.encode()) <= most_bytes)


def _public_keys(value: str) -> bool:
    """One, or one for each server."""
    return value == settings.NO_KEYS or all(
        not key.strip() or curve.is_public_key(key.strip()) for key in value.split(",")
    )


def _public_key(value: str) -> bool:
    return value == settings.NO_KEYS or curve.is_public_key(value)


def _silent(key: Key, why: str) -> Key:
    return Key(key.allowed, key.accepts, why)


_LOG = "the library's log is set by ORION_LOG and ORION_LOG_FILE"
_BOOLEAN = Key("true or false", lambda v: v.strip("\"'").lower() in _BOOLEANS)
_QUOTED_LEVEL = Key("ERROR, WARNING, INFO or DEBUG",
                    lambda v: v.strip("\"'").upper() in ("ERROR", "WARNING", "INFO", "DEBUG"))  # fmt: skip

# By lower-case name: a section only groups keys for the reader.
KEYS: dict[str, Key] = {
    "orion_server": _addresses(settings.DEFAULT_PORT),
    "orion_controller": _addresses(settings.DEFAULT_CONTROLLER_PORT),
    "orion_server_key": Key("the 40 characters that `orion-server key` prints, one key for each server", _public_keys),
    "orion_controller_key": Key("the 40 characters that `orion-controller key` prints", _public_key),
    "orion_client_key": _text(256),
    "orion_token_file": _text(1023),
    "orion_encrypt": _word("auto", "on", "off"),
    "orion_cipher": _word("auto", "aes256gcm", "chacha20poly1305"),
    "orion_wait_s": _number(0, 86400),
    "orion_k8s_pod_name": _text(255),
    "orion_k8s_pod_uid": _text(255),
    "orion_k8s_pod_ns": _text(255),
    "orion_transport": _word("auto", "shm", "ucx", "tcp"),
    "orion_ibverbs_device": _text(48),
    "orion_ucx_spin_us": _number(0, 1000000),
    "orion_tcp_lanes": _word("auto", "raw", "zmq"),
    "orion_tcp_stripes": _number(0, 8),
    "orion_emulate_rtt_us": _decimal(1e6),
    "orion_emulate_gbit": _decimal(1e4),
    "orion_vgpu": _number(1, 64),
    "orion_gmem": _number(1, 1 << 30),
    "orion_ratio": _number(1, 100),
    "orion_ratio_policy": _word("hard", "elastic"),
    "orion_group_id": _text(255),
    "orion_res_group": Key("BOX", lambda v: v == "BOX"),
    "orion_cross_node": _number(0, 1),
    "orion_reserved": _number(0, 1),
    "orion_schedule_rule": _word("local-first", "binpack", "spread"),
    "orion_spin_us": _number(0, 1000000),
    "orion_copy_threads": _number(1, 16),
    "orion_coherent": _word("params", "all", "off"),
    "orion_sync": _number(0, 1),
    "orion_device_printf": _number(0, 1),
    "orion_attach_timeout_ms": _number(1, 3600000),
    "orion_stats": Key("0, 1 or json:PATH", lambda v: v in ("0", "1") or (v.startswith("json:") and len(v) > 5)),
    "orion_runtime_selftest": _number(0, 1),
    "orion_log": _word("error", "warn", "info", "debug"),
    "orion_log_file": _text(1023),
    # The product's.
    "controller_addr": _addresses(settings.DEFAULT_CONTROLLER_PORT),
    "enable_net": _silent(_BOOLEAN, "TCP is used wherever shared memory cannot be; ORION_TRANSPORT chooses"),
    "shm_path_base": _silent(_text(255), "shared memory is passed over a socket and has no path"),
    "log_with_time": _silent(_BOOLEAN, _LOG),
    "log_to_screen": _silent(_BOOLEAN, _LOG),
    "log_to_file": _silent(_BOOLEAN, _LOG),
    "log_level": _silent(_QUOTED_LEVEL, _LOG),
    "file_log_level": _silent(_QUOTED_LEVEL, _LOG),
}


def troubles(path: Path) -> list[Trouble]:
    """All that is wrong with a file, in the order of its lines; nothing for a file that is not there."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        return [Trouble("unreadable", str(path), 0, "", f"cannot be read: {error.strerror}")]
    if len(data) > MAX_FILE_BYTES:
        return [Trouble("unreadable", str(path), 0, "", f"is larger than {MAX_FILE_BYTES} bytes")]
    found = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
        trouble = _line_trouble(str(path), number, line.strip())
        if trouble is not None:
            found.append(trouble)
    return found


def value_trouble(key: str, value: str) -> str:
    """Why a key cannot have this value: what is allowed. Empty when it can, or when the key is not known."""
    known = KEYS.get(key.lower())
    return "" if known is None or known.accepts(value) else known.allowed


def _line_trouble(path: str, number: int, line: str) -> Trouble | None:
    if not line or line[0] in "#;[":
        return None
    name, separator, value = line.partition("=")
    name, value = name.strip(), value.strip()
    if not separator or not name:
        return Trouble(
            "syntax", path, number, name[:60], f"{line[:60]!r} is neither NAME = VALUE, [section] nor # comment"
        )
    known = KEYS.get(name.lower())
    if known is None:
        return Trouble("unknown", path, number, name[:60], f"no setting is called {name[:60]!r}")
    if not known.accepts(value):
        return Trouble("invalid", path, number, name, f"{name} = {value[:60]} is not {known.allowed}")
    if known.without_effect:
        return Trouble(
            "without_effect", path, number, name, f"{name} is accepted and changes nothing: {known.without_effect}"
        )
    return None
