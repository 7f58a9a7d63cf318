"""The plots of `orion-bench slices`: configured against achieved, and shares over time."""

from __future__ import annotations

from typing import Any

from benchmarks.bench.model import NATIVE, Row
from benchmarks.bench.plots import INK, SERIES, draw, legend
from benchmarks.bench.slices_tables import good_rows, kind_of
from benchmarks.bench.summary import Line


def rows_of(lines: list[Line]) -> list[tuple[Line, Row]]:
    return [(line, row) for line in lines for entry in line.entries.values() for row in good_rows(entry)]


def longest(windows: Row) -> Row | None:
    """Windows of 1 s; in a run that is too short for them, the longest that fit."""
    return windows.get("1") or windows.get("0.1")


def against(lines: list[Line]) -> str | None:
    """A point a tenant, side by side by the kind of its row where they share a configured value."""
    points: dict[str, list[tuple[float, float, float, float]]] = {}
    for line, row in rows_of(lines):
        if kind_of(line) != "shares" or row["place"] == NATIVE:
            continue
        for tenant in row["tenants"]:
            windows = longest(tenant["windows"])
            if windows is None:
                continue
            kind = tenant["item"] if line.clients == 1 else f"{line.name.partition('_')[0]}, {row['place']}"
            points.setdefault(kind, []).append(
                (tenant["configured"], tenant["mean"], windows["min"], windows["max"])
            )  # fmt: skip
    if not points:
        return None

    def body(figure: Any) -> None:
        axes, errors = figure.subplots(1, 2)
        apart = 5.0 / max(1, len(points))
        for position, (kind, told) in enumerate(points.items()):
            shift = (position - (len(points) - 1) / 2) * apart
            ink = SERIES[(position + 1) % len(SERIES)]
            for panel, base in ((axes, 0.0), (errors, 1.0)):
                # On the diagonal nothing may be moved aside.
                xs = [configured + base * shift for configured, *_ in told]
                ys = [mean - base * configured for configured, mean, *_ in told]
                below = [max(0.0, mean - low) for _, mean, low, _ in told]
                above = [max(0.0, high - mean) for _, mean, _, high in told]
                panel.errorbar(xs, ys, yerr=[below, above], fmt="o", color=ink, label=kind, elinewidth=1.2)
        axes.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=":")
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        axes.set_title("achieved, % of the GPU")
        errors.axhline(0, color=INK, linewidth=0.8, linestyle=":")
        errors.axhspan(-2, 2, color=SERIES[0], alpha=0.15, linewidth=0)
        errors.set_xlim(0, 100)
        errors.set_title("achieved - configured, percentage points; band: the target")
        for panel in (axes, errors):
            panel.set_xlabel("configured, %; bars: least and most of the windows of 1 s")
        legend(figure, axes, 7)

    return draw("Configured against achieved", (8.5, 3.9), body)


def panel_title(line: Line, row: Row) -> str:
    return f"{line.name}, {row['place']}"


def over_time(lines: list[Line]) -> str | None:
    """Shares in windows of 100 ms: pairs, and the program whose ratio changes; what was configured as a line."""
    shown = [
        (line, row)
        for line, row in rows_of(lines)
        if "series" in row and row["repeat"] == 0 and line.name.startswith(("pair_", "native_pair", "change_"))
    ]
    # Without what only --full measures: a page shows the pairs that decide.
    shown = [item for item in shown if "changes" in item[1] or item[1]["tenants"][0]["item"] == "2ms"]
    if not shown:
        return None

    def body(figure: Any) -> None:
        grid = figure.subplots((len(shown) + 1) // 2, min(2, len(shown)), squeeze=False, sharey=True)
        for axes, (line, row) in zip(grid.flat, shown):
            for position, points in enumerate(row["series"]):
                axes.plot([at for at, _ in points], [share for _, share in points], color=SERIES[position + 1],
                          linewidth=1.1, label=f"tenant {position + 1}")  # fmt: skip
            for position, (times, ratios) in enumerate(configured_steps(row)):
                axes.plot(times, ratios, drawstyle="steps-post", color=SERIES[position + 1], linewidth=1,
                          linestyle="--", alpha=0.8, label=f"configured, tenant {position + 1}")  # fmt: skip
            axes.set_title(panel_title(line, row))
            axes.set_ylim(0, 105)
            axes.set_xlabel("seconds")
        for axes in grid[:, 0]:
            axes.set_ylabel("% of the GPU, 100 ms")
        for axes in list(grid.flat)[len(shown) :]:
            axes.set_visible(False)
        legend(figure, next(axes for axes, (_, row) in zip(grid.flat, shown) if row is most_tenants(shown)), 4)

    return draw("Shares over time", (8.5, 0.5 + 2.2 * ((len(shown) + 1) // 2)), body)


def most_tenants(shown: list[tuple[Line, Row]]) -> Row:
    return max((row for _, row in shown), key=lambda row: len(row["series"]) + len(configured_steps(row)))


def configured_steps(row: Row) -> list[tuple[list[float], list[float]]]:
    """For each tenant with a ratio: times and the ratio from each on, up to the end of what was measured."""
    end = max((at for points in row["series"] for at, _ in points), default=0.0)
    if "changes" in row:
        steps = [(0.0, row["first_ratio"]), *row["changes"]]
        steps.append((end, steps[-1][1]))
        return [([at for at, _ in steps], [ratio for _, ratio in steps])]
    return [([0.0, end], [tenant["configured"]] * 2) for tenant in row.get("tenants", []) if tenant.get("configured")]


def slices(lines: list[Line]) -> list[str]:
    return [plot for plot in (against(lines), over_time(lines)) if plot is not None]
