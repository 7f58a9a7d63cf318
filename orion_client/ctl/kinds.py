"""What there is to see in a pool: for each kind of thing its names, its columns, and what it is found by."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orion_client.text import age, printable

Row = dict[str, Any]
Cell = Callable[[Row], Any]
_STATES = {"ready": "green", "active": "green", "draining": "yellow", "lost": "red", "error": "red",
           "warning": "yellow", "idle": "dim", "reserved": "yellow"}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column of a table. `wide`: only in `-o wide`."""

    title: str
    cell: Cell
    right: bool = False
    wide: bool = False

    def text(self, row: Row) -> str:
        """What stands there; nothing known is a dash."""
        value = self.cell(row)
        return "-" if value is None or value == "" else printable(str(value))

    def colour(self, row: Row) -> str:
        """Of states alone."""
        return _STATES.get(str(self.cell(row)), "") if self.title in ("STATE", "LEVEL") else ""


@dataclass(frozen=True)
class Kind:
    """A kind of thing. `names`: what of a row people call it, the unique one first."""

    plural: str
    singular: str
    short: tuple[str, ...]
    names: tuple[Cell, ...]
    columns: tuple[Column, ...]

    def name(self, row: Row) -> str:
        return str(self.names[0](row))


def _of(key: str) -> Cell:
    return lambda row: row.get(key)


def _number(title: str, cell: Cell | str, wide: bool = False) -> Column:
    read = _of(cell) if isinstance(cell, str) else cell
    return Column(title, read, right=True, wide=wide)


def _text(title: str, key: str, wide: bool = False) -> Column:
    return Column(title, _of(key), wide=wide)


def _percent(title: str, key: str, wide: bool = False) -> Column:
    def cell(row: Row) -> str | None:
        value = row.get(key)
        return None if value is None else f"{value:.0f} %"

    return Column(title, cell, right=True, wide=wide)


def _pair(title: str, first: str, second: str, wide: bool = False) -> Column:
    return Column(title, lambda row: f"{row.get(first) or 0:,} / {row.get(second) or 0:,}", right=True, wide=wide)


def _since(title: str, key: str = "since_s", wide: bool = False) -> Column:
    def cell(row: Row) -> str | None:
        return age(time.time() - row[key]) if row.get(key) else None

    return Column(title, cell, right=True, wide=wide)


def gpu_name(row: Row) -> str:
    """NODE/ORDINAL."""
    return f"{row.get('node')}/{row.get('ordinal')}"


def _limit(title: str, key: str) -> Column:
    return Column(title, lambda row: "no limit" if row.get(key) is None else f"{row[key]:,}", right=True)


NODES = Kind(
    "nodes", "node", ("no",), (_of("name"), _of("address")),
    (
        _text("NAME", "name"), _text("STATE", "state"), _number("GPUS", "gpus"), _number("VGPUS", "vgpus"),
        _number("SESSIONS", "sessions"), _pair("MIB GIVEN / ALL", "memory_given_mib", "memory_mib"),
        _percent("UTIL", "utilization_percent"), _since("AGE"), _text("ADDRESS", "address", wide=True),
        _text("VERSION", "version", wide=True), _text("DRIVER", "driver", wide=True),
        _text("KIND", "device_kind", wide=True), _since("HEARD", "last_heartbeat_s", wide=True),
    ),
)  # fmt: skip
GPUS = Kind(
    "gpus", "gpu", (), (gpu_name, _of("uuid")),
    (
        Column("GPU", gpu_name), _text("NAME", "name"), _pair("MIB USED / ALL", "used_mib", "total_mib"),
        _pair("MIB GIVEN / FOR VGPUS", "given_mib", "capacity_mib"), _pair("% GIVEN / ALL", "ratio_given_percent",
                                                                          "ratio_percent"),
        _pair("VGPUS", "vgpus", "max_vgpus"), _percent("UTIL", "utilization_percent"),
        _number("TEMP", lambda r: None if r.get("temperature_c") is None else f"{r['temperature_c']} C"),
        _number("POWER", lambda r: None if r.get("power_w") is None else f"{r['power_w']} W"),
        Column("HEALTH", lambda r: r.get("health") or "well"), _text("UUID", "uuid", wide=True),
    ),
)  # fmt: skip
VGPUS = Kind(
    "vgpus", "vgpu", ("vg",), (_of("id"), _of("vgpu")),
    (
        _text("ID", "id"), Column("GPU", gpu_name), _pair("MIB USED / QUOTA", "used_mib", "quota_mib"),
        _percent("RATIO", "ratio_percent"), _percent("ACHIEVED", "achieved_percent"), _text("POLICY", "policy"),
        _number("SESSIONS", "sessions"), _text("ON SERVER", "vgpu", wide=True),
        _number("THROTTLED", lambda r: f"{(r.get('throttled_ms') or 0) / 1000:,.1f} s", wide=True),
        _number("LAUNCHES", lambda r: f"{r.get('launches') or 0:,}", wide=True),
    ),
)  # fmt: skip
GROUPS = Kind(
    "groups", "group", ("gr",), (_of("id"), _of("group")),
    (
        _text("ID", "id"), _text("GROUP", "group"), _text("STATE", "state"), _number("VGPUS", "vgpus"),
        _number("MIB EACH", lambda r: f"{r.get('gmem_mib') or 0:,}"),
        _number("MIB USED", lambda r: f"{r.get('used_mib') or 0:,}"), _percent("RATIO", "ratio_percent"),
        _percent("ACHIEVED", "achieved_percent"), _text("POLICY", "policy"), _number("SESSIONS", "sessions"),
        _text("OWNER", "owner"), _since("AGE"), Column("NODES", lambda r: ",".join(r.get("nodes") or []), wide=True),
        _text("PROGRAM", "program", wide=True), Column("SHARED", lambda r: "yes" if r.get("shared") else "no",
                                                       wide=True),
        _number("EXPIRES IN", lambda r: age(r["expires_s"] - time.time()) if r.get("expires_s") else None, wide=True),
    ),
)  # fmt: skip
SESSIONS = Kind(
    "sessions", "session", ("se",), (_of("id"),),
    (
        _text("ID", "id"), _text("NODE", "node"), _text("GROUP", "group_name"), _number("PID", "pid"),
        Column("PROGRAM", lambda r: str(r.get("program") or "").rpartition("/")[2]), _text("TRANSPORT", "transport"),
        _since("AGE"), _text("ALLOCATION", "group", wide=True), _number("UID", "uid", wide=True),
        _text("HOST", "host", wide=True), _text("PATH", "program", wide=True),
    ),
)  # fmt: skip
QUEUE = Kind(
    "queue", "waiting", (), (_of("position"), _of("group")),
    (
        _number("POSITION", "position"), _text("GROUP", "group"), _number("VGPUS", "vgpus"),
        _number("MIB EACH", lambda r: f"{r.get('gmem_mib') or 0:,}"), _percent("RATIO", "ratio_percent"),
        _text("OWNER", "owner"), _since("WAITS"), _text("REASON", "reason"), _text("PROGRAM", "program", wide=True),
    ),
)  # fmt: skip
LIMITS = Kind(
    "limits", "limit", ("li",), (_of("group"),),
    (
        _text("GROUP", "group"), _limit("VGPUS", "vgpus"), _limit("MIB", "gmem_mib"),
        _limit("RATIO %", "ratio_percent"),
    ),
)  # fmt: skip
EVENTS = Kind(
    "events", "event", ("ev",), (_of("id"),),
    (
        Column("TIME", lambda r: time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(r.get("at_s") or 0))),
        _text("LEVEL", "level"), _text("KIND", "kind"), _text("SUBJECT", "subject"), _text("USER", "user"),
        _text("MESSAGE", "message"), _number("ID", "id", wide=True),
    ),
)  # fmt: skip
AUDIT = Kind("audit", "audit", (), EVENTS.names, EVENTS.columns)
ALL = (NODES, GPUS, VGPUS, GROUPS, SESSIONS, QUEUE, LIMITS, EVENTS, AUDIT)


def find(word: str) -> Kind | None:
    """By plural, singular or short name."""
    wanted = word.lower()
    for kind in ALL:
        if wanted in (kind.plural, kind.singular, *kind.short):
            return kind
    return None
