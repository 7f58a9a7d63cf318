"""The tables of `orion-bench slices`: a line a tenant, and what misses a target marked."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

from benchmarks.bench.model import NATIVE, Row
from benchmarks.bench.slices import CHANGE_TOLERANCE_PP, TARGETS
from benchmarks.bench.slices_windows import WINDOWS_S
from benchmarks.bench.summary import FAILED, SAME, Entry, Line
from benchmarks.bench.tables import Table, Text, number

# Percentage points off in windows of so many seconds, for items of up to so many milliseconds.
WORST_PP, WORST_ITEM_MS = {"1": 2.0, "10": 1.0}, 11.0
# Percentage points of the GPU that tenants together may lose: two of them, more of them.
LOST_PP = {2: 3.0}
LOST_PP_MORE = 4.0
# p99 beside a saturating tenant of small kernels, as a multiple of p99 alone at the same ratio.
BESIDE, BESIDE_SUFFIX = 1.10, "_beside_2ms"
# What a tenant gets done of what it was granted may be that much less, or more: a hard share is no more than itself.
GRANTED_OFF = 0.03
NONE = Text("-", "dim")

SHARES_NOTE = (
    "Percent of one GPU's time, measured with one ruler: items of fixed work, calibrated alone and natively in this "
    "run. Off: the largest deviation from what was configured over all sliding windows of that length, in percentage "
    "points, the first second dropped. Lost: what tenants together were to have and did not get. "
    "Targets: 2 pp off over 1 s, 1 over 10 s for items up to 10 ms; 3 pp lost by two tenants, 4 by four; 0.97 to 1.03 "
    "of what was granted."
)
REQUESTS_NOTE = (
    "Milliseconds from arrival to answer; arrivals are the same ones in every row. The ratio is to the row alone in "
    "the same place; the target is 1.10 beside kernels of 2 ms."
)
OTHERS_NOTE = (
    "Overhead: alternately without slices and with ratio 100; target 1 %. Change: from the request until every window "
    f"of 100 ms is within {CHANGE_TOLERANCE_PP:g} pp of the new share, and stays there; target 100 ms."
)


def good_rows(entry: Entry) -> list[Row]:
    return [row for row in entry.rows if "value" in row]


def digest_cell(entry: Entry) -> Text:
    return Text(entry.verdict, "bad" if entry.bad else "good" if entry.verdict == SAME else "poor")


def within(value: float, target: float | None, text: str) -> Text:
    return Text(text) if target is None else Text(text, "good" if value <= target else "poor")


def over_tenants(rows: list[Row]) -> list[list[Row]]:
    """For each tenant what all repeats told of it."""
    return [list(repeats) for repeats in zip(*(row["tenants"] for row in rows))]


def worst_cell(repeats: list[Row], window: str) -> Text:
    told = [one["windows"][window]["worst_pp"] for one in repeats if window in one.get("windows", {})]
    if not told:
        return NONE
    limited = "configured" in repeats[0] and repeats[0]["item_ms"] <= WORST_ITEM_MS
    return within(max(told), WORST_PP.get(window) if limited else None, f"{max(told):.2f}")


def lost_cell(rows: list[Row], tenants: int) -> Text:
    told = [row["lost_pp"] for row in rows if "lost_pp" in row]
    if not told:
        return NONE
    # Natively nobody promised anything.
    target = None if rows[0]["place"] == NATIVE else LOST_PP.get(tenants, LOST_PP_MORE)
    # Less than nothing: together they got more than they were to have.
    worst = max(told, key=abs)
    return within(abs(worst), target, f"{worst:.2f}")


def shares(lines: Iterable[Line]) -> Table:
    windows = [f"{window:g}" for window in WINDOWS_S]
    head = ["row", "where", "item", "digest", "configured", "achieved", *(f"off, {window} s" for window in windows),
            "of granted", "together", "lost"]  # fmt: skip
    table = Table("slices", "Slices: configured and achieved shares", SHARES_NOTE, head, words=4)
    for line in lines:
        for label, entry in line.entries.items():
            rows = good_rows(entry)
            if not rows:
                table.rows.append([Text(line.name), Text(label), NONE, Text(FAILED, "bad"), *[NONE] * (len(head) - 4)])
                continue
            for position, repeats in enumerate(over_tenants(rows)):
                first = position == 0
                mean = statistics.fmean(one["mean"] for one in repeats)
                configured = repeats[0].get("configured")
                granted = NONE
                if configured:
                    part = mean / configured
                    granted = Text(f"{part:.3f}", "good" if abs(part - 1) <= GRANTED_OFF else "poor")
                together = statistics.fmean(row["value"] for row in rows)
                table.rows.append([
                    Text(line.name if first else ""), Text(label if first else ""), Text(repeats[0]["item"]),
                    digest_cell(entry) if first else Text(""),
                    Text(f"{configured} %") if configured else NONE, Text(f"{mean:.2f} %"),
                    *(worst_cell(repeats, window) for window in windows), granted,
                    Text(f"{together:.2f} %") if first and line.clients > 1 else NONE,
                    lost_cell(rows, line.clients) if first else NONE,
                ])  # fmt: skip
    return table


def p99_alone(lines: Iterable[Line], line: Line, label: str) -> float | None:
    name = line.name.partition("_beside_")[0]
    for other in lines:
        entry = other.entries.get(label)
        if other.name == name and other is not line and entry is not None and entry.value is not None:
            return entry.value.median
    return None


def requests(lines: list[Line]) -> Table:
    head = ["row", "where", "digest", "p50", "p90", "p99", "requests", "p99 of alone"]
    table = Table("slices", "Slices: requests of a small tenant", REQUESTS_NOTE, head, words=3)
    for line in lines:
        for label, entry in line.entries.items():
            rows = good_rows(entry)
            if not rows or entry.value is None:
                table.rows.append([Text(line.name), Text(label), Text(FAILED, "bad"), *[NONE] * (len(head) - 3)])
                continue
            alone = p99_alone(lines, line, label)
            ratio = NONE
            if alone:
                part = entry.value.median / alone
                target = BESIDE if line.name.endswith(BESIDE_SUFFIX) and label != NATIVE else None
                ratio = within(part, target, f"{part:.2f}")
            p50, p90 = (statistics.median(row[name] for row in rows) for name in ("p50", "p90"))
            table.rows.append([
                Text(line.name), Text(label), digest_cell(entry), Text(number(p50)), Text(number(p90)),
                Text(number(entry.value.median)), Text(str(sum(row["requests"] for row in rows))), ratio,
            ])  # fmt: skip
    return table


def others(lines: Iterable[Line]) -> Table:
    head = ["row", "digest", "unit", "value", "least", "most", "target"]
    table = Table("slices", "Slices: change while a program runs, and what slices cost", OTHERS_NOTE, head, words=3)
    for line in lines:
        for entry in line.entries.values():
            target = TARGETS[kind_of(line)]
            cells = [Text(line.name), digest_cell(entry), Text(line.unit, "dim")]
            if entry.value is None:
                cells += [Text(FAILED, "bad"), NONE, NONE]
            else:
                value = within(entry.value.median, target, number(entry.value.median))
                if any(row.get("unsettled") for row in good_rows(entry)):
                    value = Text("never", "poor")
                cells += [value, Text(number(entry.value.low)), Text(number(entry.value.high))]
            table.rows.append([*cells, Text(f"{target:g}", "dim")])
    return table


def rulers(lines: Iterable[Line]) -> Table:
    note = "What each item takes alone and natively in this run: the unit of all shares above."
    table = Table("slices", "Slices: the ruler", note, ["item", "iterations", "alone, ms"])
    for line in lines:
        for entry in line.entries.values():
            iterations = [str(row["iterations"]) for row in good_rows(entry)]
            table.rows.append([
                Text(line.name.removeprefix("calibrate_")), Text(", ".join(iterations) or "-"),
                Text(number(entry.value.median)) if entry.value else Text(FAILED, "bad"),
            ])  # fmt: skip
    return table


def kind_of(line: Line) -> str:
    """shares, requests, ruler, or the name of the target that the row is held against."""
    if line.name.startswith("calibrate_"):
        return "ruler"
    if "inference_" in line.name:
        return "requests"
    return next((name for name in TARGETS if line.name.startswith(name)), "shares")


def slices_tables(lines: list[Line]) -> list[Table]:
    def of(wanted: Callable[[str], bool]) -> list[Line]:
        return [line for line in lines if wanted(kind_of(line))]

    parts = ((shares, of("shares".__eq__)), (requests, of("requests".__eq__)), (others, of(TARGETS.__contains__)),
             (rulers, of("ruler".__eq__)))  # fmt: skip
    return [build(mine) for build, mine in parts if mine]
