"""Fractions of native, made of rows from one run."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

Rows = list[dict[str, Any]]


def fraction(native: dict[str, Any], other: dict[str, Any]) -> float:
    """1.0 = as fast as native, more is better, for either direction of the unit."""
    better_is_more = native["better"] == "higher"
    return float(other["value"] / native["value"] if better_is_more else native["value"] / other["value"])


def medians(rows: Rows) -> dict[str, dict[str, Any]]:
    """One row per name: the median value of its repeats; an error or a differing digest wins over any value."""
    grouped: dict[str, Rows] = defaultdict(list)
    for row in rows:
        grouped[row["name"]].append(row)
    out = {}
    for name, repeats in grouped.items():
        errors = [r for r in repeats if "error" in r]
        if errors:
            out[name] = errors[0]
            continue
        merged = dict(repeats[0])
        merged["value"] = statistics.median(r["value"] for r in repeats)
        merged["values"] = [r["value"] for r in repeats]
        merged["digests"] = sorted({r["digest"] for r in repeats})
        merged["clean"] = all(r.get("clean", True) for r in repeats)
        out[name] = merged
    return out


def render(runs: dict[str, Rows]) -> tuple[str, bool]:
    """A text table of all runs against runs["native"], and whether every digest agrees and every client was clean."""
    native = medians(runs["native"])
    others = {name: medians(rows) for name, rows in runs.items() if name != "native"}
    head = f"{'row':20} {'unit':6} {'native':>10}" + "".join(f" {n:>10} {'fraction':>9} digest   " for n in others)
    lines, good = [head], True
    for name, base in native.items():
        if "error" in base:
            lines.append(f"{name:20} native run failed: {base['error']}")
            good = False
            continue
        line = f"{name:20} {base['unit']:6} {base['value']:10.4g}"
        for rows in others.values():
            row = rows.get(name)
            if row is None or "error" in row:
                line += f" {'failed':>10} {'-':>9} {'-':9}"
                good = False
                continue
            same = row["digests"] == base["digests"]
            verdict = ("same" if same else "DIFFERS") if row["clean"] else "LOCAL GPU"
            good &= same and row["clean"]
            line += f" {row['value']:10.4g} {fraction(base, row):9.3f} {verdict:9}"
        lines.append(line)
    return "\n".join(lines), good
