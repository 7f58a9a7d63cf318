"""Rows of one run, summed up: medians, spreads, ratios to native and to the bare floors, and verdicts on digests.

A ratio to native is made repeat by repeat, of rows that were measured side by side, and its median and range are told.
1.00 = as fast as native, more is better, whichever way the unit points.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.bench.ground import WAITS
from benchmarks.bench.model import BARE, NATIVE, Row
from benchmarks.measure import Spread, percentile
from benchmarks.rows import NATIVE_DIGESTS
from benchmarks.workloads.registry import agree, fraction

SAME, DIFFERENT, LOCAL_GPU, FAILED, UNCHECKED, NOTHING = "same", "DIFFERENT", "LOCAL GPU", "failed", "unchecked", ""
BAD = (DIFFERENT, LOCAL_GPU, FAILED)
# The smallest copy whose speed is bandwidth and not a round trip.
BULK_BYTES = 1 << 20
# Of a row, beside its value, what the summary for machines repeats.
DETAILS = ("tenants", "lost_pp", "p50", "p90", "requests", "each", "unsettled", "answer_ms", "iterations")


@dataclass
class Entry:
    """A row in one place. `floors`: label and ratio to that floor, value/floor in the row's unit."""

    label: str
    place: str
    network: dict[str, float] | None = None
    value: Spread | None = None
    repeats: int = 0
    fraction: Spread | None = None
    floors: list[tuple[str, float]] = field(default_factory=list)
    verdict: str = NOTHING
    error: str = ""
    rows: list[Row] = field(default_factory=list)

    @property
    def bad(self) -> bool:
        return self.verdict in BAD


@dataclass
class Line:
    """A row in all its places."""

    command: str
    name: str
    clients: int
    unit: str = ""
    better: str = ""
    what: str = ""
    entries: dict[str, Entry] = field(default_factory=dict)

    @property
    def bad(self) -> bool:
        return any(entry.bad for entry in self.entries.values())

    @property
    def kind(self) -> str:
        """The name without a size."""
        return self.name.partition("@")[0]

    @property
    def size_bytes(self) -> int | None:
        size = self.name.partition("@")[2]
        return int(size) if size.isdigit() else None


def network_label(network: dict[str, float]) -> str:
    return f"{network['rtt_us']:g} us, {network['gbit']:g} Gbit/s"


def label_of(row: Row) -> str:
    return network_label(row["network"]) if row.get("network") else str(row["place"])


def value_of(rows: list[Row]) -> Spread:
    """The median of the repeats' medians, and the range in which most of what was measured lies."""
    values = [float(row["value"]) for row in rows]
    samples = [sample for row in rows for sample in row.get("samples", [])]
    if samples:
        low, high = percentile(samples, 0.1), percentile(samples, 0.9)
    else:
        low = min(row["low"] if "low" in row else row["value"] for row in rows)
        high = max(row["high"] if "high" in row else row["value"] for row in rows)
    return Spread(statistics.median(values), low, high)


def verdict_of(entry: Entry, native: Entry | None, reference: Row | None) -> str:
    if entry.error:
        return FAILED
    told = [row for row in entry.rows if row.get("digest") is not None]
    if not told:
        return NOTHING
    if entry.place != NATIVE and not all(row.get("clean", True) for row in told):
        return LOCAL_GPU
    # What the program itself knows to be right: a crowd's errors, the launches that were made.
    wanted = [row.get("expected", 0 if row["command"] == "scale" else None) for row in told]
    if any(right is not None and row["digest"] != right for row, right in zip(told, wanted)):
        return DIFFERENT
    base = next((row for row in native.rows if row.get("digest") is not None), None) if native else None
    base = base or reference
    if base is None:
        # Rows of `slices` know what their kernels compute natively: the ruler was made with it.
        known = told[0]["command"] == "slices" and all("expected" in row for row in told)
        return SAME if known else UNCHECKED
    return SAME if all(agree(base, row) for row in told) else DIFFERENT


def floors_of(line: Line, entry: Entry, floors: dict[tuple[str, str], tuple[float, int]]) -> list[tuple[str, float]]:
    """The ratios to the bare floors that this row can be held against."""
    if entry.value is None or entry.place in (NATIVE, BARE):
        return []

    def ratio(name: str, label: str) -> list[tuple[str, float]]:
        found = floors.get((line.command, name))
        return [(label, entry.value.median / found[0])] if found and found[0] and entry.value else []

    size = line.size_bytes
    bulk = line.kind.startswith("copy_") and line.unit == "GB/s" and (size is None or size >= BULK_BYTES)
    waits = line.kind in WAITS or line.kind == "null_reply"
    if entry.network is not None:
        if bulk:
            return [("the link", entry.value.median / (entry.network["gbit"] / 8))]
        return [("the link", entry.value.median / entry.network["rtt_us"])] if waits else []
    if waits and entry.place == "tcp":
        return ratio("tcp_rtt", "bare TCP")
    if waits and entry.place == "ucx":
        cpus = floors.get((line.command, "ucx_am_rtt_poll"), (0.0, 0))[1]
        return ratio("ucx_am_rtt_poll" if cpus > 2 else "ucx_am_rtt_sleep", "bare UCX")
    if waits and entry.place == "shm":
        cpus = floors.get((line.command, "shm_spin_rtt"), (0.0, 0))[1]
        # With fewer than three there is no core to spin on.
        return ratio("shm_spin_rtt" if cpus > 2 else "shm_futex_rtt", "bare shm")
    if line.kind == "null_launch_wall":
        return ratio("ring_push", "ring push")
    if line.kind == "null_replay":
        return ratio("ring_drain", "bare ring")
    if bulk and entry.place == "tcp":
        return [*ratio("tcp_1_cycling", "1 stream"), *ratio("tcp_4_cycling", "4 streams")]
    if bulk and entry.place == "ucx":
        return [*ratio("ucx_am_poll", "UCX polling"), *ratio("ucx_am_sleep", "UCX asleep")]
    return []


def summarise(rows: Iterable[Row]) -> list[Line]:
    """Lines in the order in which their rows first came. `rows` are those of one run: one machine, one commit."""
    lines: dict[tuple[str, str, int], Line] = {}
    for row in rows:
        clients = row.get("clients", 1)
        line = lines.setdefault((row["command"], row["row"], clients), Line(row["command"], row["row"], clients))
        label = label_of(row)
        entry = line.entries.setdefault(label, Entry(label, row["place"], row.get("network")))
        entry.rows.append(row)
        for name in ("unit", "better", "what"):
            if row.get(name) and not getattr(line, name):
                setattr(line, name, row[name])
    for line in lines.values():
        for entry in line.entries.values():
            good = [row for row in entry.rows if "value" in row]
            entry.error = next((row.get("error", "no value") for row in entry.rows if "value" not in row), "")
            entry.repeats = len(good)
            if good:
                entry.value = value_of(good)
    floors = {
        (line.command, line.name): (entry.value.median, (entry.rows[0].get("run") or {}).get("cpus") or 1)
        for line in lines.values()
        for entry in line.entries.values()
        if entry.place == BARE and entry.value is not None
    }
    for line in lines.values():
        _compare(line, floors)
    return list(lines.values())


def _compare(line: Line, floors: dict[tuple[str, str], tuple[float, int]]) -> None:
    native = line.entries.get(NATIVE)
    reference: Row | None = None
    if native is None or native.error:
        known = NATIVE_DIGESTS.get(line.name)
        if known is not None:
            reference = {"exact": True, "digest": known}
        else:
            # Without a native run all places must at least agree.
            others = [row for entry in line.entries.values() for row in entry.rows if row.get("digest") is not None]
            reference = others[0] if len({row["place"] for row in others}) > 1 else None
    by_repeat = {row["repeat"]: row for row in native.rows if row.get("value")} if native else {}
    for entry in line.entries.values():
        if entry.place == BARE:
            entry.verdict = FAILED if entry.error else NOTHING
            continue
        entry.verdict = verdict_of(entry, native if native and not native.error else None, reference)
        entry.floors = floors_of(line, entry, floors)
        if entry.place != NATIVE:
            pairs = [
                fraction(by_repeat[row["repeat"]], row)
                for row in entry.rows
                if row.get("value") and row["repeat"] in by_repeat
            ]
            if pairs:
                entry.fraction = Spread(statistics.median(pairs), min(pairs), max(pairs))


def runs_of(rows: Iterable[Row]) -> list[tuple[Row, list[Row]]]:
    """Rows grouped by where and with what they were measured, the run with the newest row last."""
    grouped: dict[str, tuple[Row, list[Row]]] = {}
    for row in rows:
        run = row.get("run") or {}
        grouped.setdefault(repr(sorted(run.items())), (run, []))[1].append(row)
    return sorted(grouped.values(), key=lambda item: max(str(row.get("when", "")) for row in item[1]))


def good(lines: Iterable[Line]) -> bool:
    return not any(line.bad for line in lines)


def details_of(entry: Entry) -> list[Row]:
    """For each repeat; of rows that have more to tell than a value."""
    found = [{name: row[name] for name in DETAILS if name in row} for row in entry.rows]
    return found if any(found) else []


def as_json(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """The summary for machines."""

    def told(value: Spread | None) -> dict[str, float] | None:
        return None if value is None else {"median": value.median, "low": value.low, "high": value.high}

    out = []
    for line in lines:
        places = {
            label: {
                "value": told(entry.value),
                "repeats": entry.repeats,
                "fraction_of_native": told(entry.fraction),
                "floors": dict(entry.floors),
                "digest": entry.verdict,
                "digests": sorted({str(row["digest"]) for row in entry.rows if row.get("digest") is not None}),
                **({"details": details} if (details := details_of(entry)) else {}),
                **({"error": entry.error} if entry.error else {}),
            }
            for label, entry in line.entries.items()
        }
        out.append({"command": line.command, "row": line.name, "clients": line.clients, "unit": line.unit,
                    "better": line.better, "what": line.what, "places": places})  # fmt: skip
    return out
