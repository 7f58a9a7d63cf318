"""The plots of the page, as SVG that takes its colours from the page: one drawing for light and dark.

matplotlib is imported when a plot is drawn, never before: what measures has to run without it. It draws in colours that
stand for names, and `inline` puts the page's CSS variables in their place.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from benchmarks.bench.model import BARE, NATIVE
from benchmarks.bench.plans import STAGES
from benchmarks.bench.summary import BULK_BYTES, Line
from benchmarks.bench.tables import size_text

INK, GRID = "#0a0b0c", "#0d0e0f"
SERIES = [f"#a1b2c{digit}" for digit in "0123456789"]
# What the placeholders become; the page defines the variables for both themes.
VARIABLES = {INK: "--ink", GRID: "--grid"} | {colour: f"--series-{i}" for i, colour in enumerate(SERIES)}
PLACE_SERIES = {NATIVE: 0, "shm": 1, "tcp": 2}
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}


class NoMatplotlib(Exception):
    """matplotlib is not installed."""


def matplotlib() -> Any:
    try:
        import matplotlib as module
        import matplotlib.figure
    except ImportError as error:
        raise NoMatplotlib(str(error)) from None
    return module


def colour(label: str, position: int = 0) -> str:
    return SERIES[PLACE_SERIES.get(label, 3 + position % (len(SERIES) - 3))]


def inline(svg: str, title: str) -> str:
    """An SVG file as part of an HTML page: no header, no addresses, no fixed size, colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    # Only what is referred to keeps its id: several plots share a page.
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r'\sid="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    for placeholder, variable in VARIABLES.items():
        svg = svg.replace(placeholder, f"var({variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def draw(title: str, size: tuple[float, float], body: Callable[[Any], None]) -> str:
    """`body` draws on a figure of that size in inches."""
    module = matplotlib()
    # The salt keeps the ids of one plot apart from another's, and the same from run to run.
    with module.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = module.figure.Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        body(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return inline(buffer.getvalue(), title)


def legend(figure: Any, axes: Any, columns: int = 6) -> None:
    shown = sorted(zip(*axes.get_legend_handles_labels()), key=lambda item: item[1].startswith("bare"))
    handles, labels = [handle for handle, _ in shown], [label for _, label in shown]
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=8.5)


def labels_of(lines: list[Line]) -> list[str]:
    found = dict.fromkeys(label for line in lines for label, entry in line.entries.items() if entry.place != BARE)
    return sorted(found, key=lambda label: PLACE_SERIES.get(label, 9))


def floor(lines: list[Line], name: str) -> float | None:
    for line in lines:
        entry = line.entries.get(BARE)
        if line.name == name and entry is not None and entry.value is not None:
            return entry.value.median
    return None


def measured(lines: list[Line]) -> list[Line]:
    return [line for line in lines if BARE not in line.entries]


def dots(axes: Any, lines: list[Line], labels: list[str], share: bool = False) -> None:
    """A row a line, a dot a place, its spread as a bar; `share`: fractions of native instead of values."""
    step = 0.7 / max(1, len(labels))
    for position, label in enumerate(labels):
        xs, ys, below, above = [], [], [], []
        for i, line in enumerate(lines):
            entry = line.entries.get(label)
            told = entry and (entry.fraction if share else entry.value)
            if told is None or not told:
                continue
            xs.append(told.median)
            ys.append(i + (position - (len(labels) - 1) / 2) * step)
            below.append(max(0.0, told.median - told.low))
            above.append(max(0.0, told.high - told.median))
        axes.errorbar(xs, ys, xerr=[below, above], fmt="o", color=colour(label, position), label=label,
                      elinewidth=1.4)  # fmt: skip
    axes.set_yticks(range(len(lines)), [line.kind for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)


def plain_ticks(axis: Any) -> None:
    """1, 10, 100 instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def latency(lines: list[Line]) -> list[str]:
    rows = measured(lines)

    def body(figure: Any) -> None:
        axes = figure.subplots()
        dots(axes, rows, labels_of(rows))
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
        axes.set_xlabel("us, p10 to p90; less is better")
        bare = floor(lines, "tcp_rtt")
        if bare:
            axes.axvline(bare, color=SERIES[2], linestyle=":", label="bare TCP round trip")
        legend(figure, axes)

    return [draw("Latency", (8.5, 0.9 + 0.5 * len(rows)), body)] if rows else []


def launch(lines: list[Line]) -> list[str]:
    rows = [line for line in measured(lines) if line.unit == "ns"]

    def body(figure: Any) -> None:
        axes = figure.subplots()
        labels = labels_of(rows)
        dots(axes, rows, labels)
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
        axes.set_xlabel("ns, p10 to p90; less is better")
        push = floor(lines, "ring_push")
        if push:
            axes.axvline(push, color=SERIES[1], linestyle=":", label="bare ring push")
        legend(figure, axes)

    return [draw("Launch", (8.5, 0.9 + 0.5 * len(rows)), body)] if rows else []


def copy(lines: list[Line]) -> list[str]:
    kinds = list(dict.fromkeys(line.kind for line in measured(lines)))

    def body(figure: Any) -> None:
        grid = figure.subplots((len(kinds) + 1) // 2, min(2, len(kinds)), squeeze=False, sharex=True, sharey=True)
        for axes, kind in zip(grid.flat, kinds):
            rows = sorted((line for line in lines if line.kind == kind), key=lambda line: line.size_bytes or 0)
            for position, label in enumerate(labels_of(rows)):
                there = [(line.size_bytes, line.entries[label].value) for line in rows if label in line.entries]
                told = [(size, value) for size, value in there if size and value]
                sizes = [size for size, _ in told]
                ink = colour(label, position)
                axes.plot(sizes, [value.median for _, value in told], "o-", color=ink, label=label)
                axes.fill_between(sizes, [value.low for _, value in told], [value.high for _, value in told],
                                  color=ink, alpha=0.18, linewidth=0)  # fmt: skip
            for name, style, text in (("tcp_1_cycling", ":", "bare TCP, 1 stream"),
                                      ("tcp_4_cycling", "--", "bare TCP, 4 streams")):  # fmt: skip
                bare = floor(lines, name)
                if bare:
                    axes.plot([BULK_BYTES, max(line.size_bytes or BULK_BYTES for line in rows)], [bare, bare],
                              color=SERIES[2], linestyle=style, linewidth=1, label=text)  # fmt: skip
            axes.set_title(kind)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            plain_ticks(axes.yaxis)
            sizes_shown = [4, 1 << 10, 1 << 15, 1 << 20, 1 << 25, 1 << 30]
            axes.set_xticks(sizes_shown, [size_text(size) for size in sizes_shown])
            axes.minorticks_off()
        for axes in grid[:, 0]:
            axes.set_ylabel("GB/s")
        legend(figure, grid.flat[0])

    return [draw("Copies by size", (8.5, 0.6 + 2.4 * ((len(kinds) + 1) // 2)), body)] if kinds else []


def attach(lines: list[Line]) -> list[str]:
    bars = []
    for line in lines:
        for label in labels_of([line]):
            stages = next((row["stages_ms"] for row in line.entries[label].rows if "stages_ms" in row), None)
            if stages:
                bars.append((f"{line.kind.removeprefix('attach_')}, {label}", stages))

    def body(figure: Any) -> None:
        axes = figure.subplots()
        starts = [0.0] * len(bars)
        for i, stage in enumerate(STAGES):
            widths = [stages.get(stage, 0.0) for _, stages in bars]
            axes.barh(range(len(bars)), widths, left=starts, color=SERIES[i + 3], label=stage, height=0.62)
            starts = [start + width for start, width in zip(starts, widths)]
        for i, total in enumerate(starts):
            axes.annotate(
                f" {total:.0f} ms" if total >= 10 else f" {total:.1f} ms", (total, i), va="center", fontsize=8
            )
        axes.set_yticks(range(len(bars)), [name for name, _ in bars])
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_xlim(0, max(starts) * 1.12)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("ms, medians; less is better")
        legend(figure, axes)

    return [draw("Attach", (8.5, 0.9 + 0.33 * len(bars)), body)] if bars else []


def scale(lines: list[Line]) -> list[str]:
    panels = [
        ("launch_rate", "launches/s, all together"),
        ("launch_fairness", "slowest / fastest client"),
        ("copy_h2d", "GB/s to the device, all together"),
        ("sync_under_load", "us, launch and wait under load"),
    ]
    panels = [panel for panel in panels if any(line.name == panel[0] for line in lines)]

    def body(figure: Any) -> None:
        from matplotlib.ticker import EngFormatter

        grid = figure.subplots((len(panels) + 1) // 2, 2, squeeze=False)
        for axes, (name, title) in zip(grid.flat, panels):
            rows = sorted((line for line in lines if line.name == name), key=lambda line: line.clients)
            for position, label in enumerate(labels_of(rows)):
                there = [(line.clients, line.entries[label].value) for line in rows if label in line.entries]
                told = [(clients, value.median) for clients, value in there if value]
                axes.plot([n for n, _ in told], [value for _, value in told], "o-", color=colour(label, position),
                          label=label)  # fmt: skip
            axes.set_title(title)
            axes.set_xscale("log", base=2)
            axes.set_xticks([line.clients for line in rows], [str(line.clients) for line in rows])
            axes.minorticks_off()
            axes.set_xlabel("clients")
            if name == "sync_under_load":
                axes.set_yscale("log")
                plain_ticks(axes.yaxis)
            else:
                axes.set_ylim(bottom=0)
                if name == "launch_rate":
                    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        legend(figure, grid.flat[0])

    return [draw("Scale", (8.5, 0.6 + 2.3 * ((len(panels) + 1) // 2)), body)] if panels else []


def network(lines: list[Line]) -> list[str]:
    links = {label: entry.network for line in lines for label, entry in line.entries.items() if entry.network}
    sweeps = []
    for fixed, moving, title, axis in (
        ("gbit", "rtt_us", "{:g} Gbit/s, round-trip time changes", "round-trip time, us"),
        ("rtt_us", "gbit", "{:g} us, bandwidth changes", "Gbit/s"),
    ):
        by_value: dict[float, list[tuple[float, str]]] = {}
        for label, link in links.items():
            by_value.setdefault(link[fixed], []).append((link[moving], label))
        if by_value:
            value, points = max(by_value.items(), key=lambda item: len(item[1]))
            if len(points) > 1:
                sweeps.append((title.format(value), axis, sorted(points)))

    def body(figure: Any) -> None:
        grid = figure.subplots(1, len(sweeps), squeeze=False, sharey=True)
        for axes, (title, axis, points) in zip(grid.flat, sweeps):
            for i, line in enumerate(lines):
                there = [(x, line.entries[label].fraction) for x, label in points if label in line.entries]
                told = [(x, fraction.median) for x, fraction in there if fraction]
                axes.plot([x for x, _ in told], [y for _, y in told], "o-", color=SERIES[i % len(SERIES)],
                          label=line.kind)  # fmt: skip
            axes.axhline(1, color=INK, linewidth=0.8, linestyle=":")
            axes.set_title(title)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks([x for x, _ in points], [f"{x:g}" for x, _ in points])
            plain_ticks(axes.yaxis)
            axes.set_xlabel(axis)
        grid[0, 0].set_ylabel("fraction of native")
        legend(figure, grid[0, 0], 4)

    return [draw("Emulated networks", (8.5, 3.6), body)] if sweeps else []


def suite(lines: list[Line]) -> list[str]:
    rows = [line for line in lines if any(entry.fraction for entry in line.entries.values())]

    def body(figure: Any) -> None:
        axes = figure.subplots()
        dots(axes, rows, [label for label in labels_of(rows) if label != NATIVE], share=True)
        axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if low < tick < high]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("fraction of native; more is better")
        legend(figure, axes)

    return [draw("Programs", (8.5, 0.9 + 0.3 * len(rows)), body)] if rows else []


PLOTS: dict[str, Callable[[list[Line]], list[str]]] = {
    "latency": latency,
    "launch": launch,
    "copy": copy,
    "attach": attach,
    "scale": scale,
    "network": network,
    "suite": suite,
}
