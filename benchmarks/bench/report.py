"""The page: all saved rows of a machine as tables and plots in one HTML file that loads nothing."""

from __future__ import annotations

import html
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench import slices_plots
from benchmarks.bench.model import NATIVE, Row
from benchmarks.bench.plans import COMMANDS
from benchmarks.bench.plots import PLOTS, NoMatplotlib
from benchmarks.bench.session import OK, SOFTGPU_WORDS, WRONG, failures
from benchmarks.bench.store import newest, read_rows
from benchmarks.bench.summary import SAME, UNCHECKED, Line, good, runs_of, summarise
from benchmarks.bench.tables import Table, number, tables_of

SUITE_FILE = "suite.json"
ALL_PLOTS = {**PLOTS, "slices": slices_plots.slices}
INSTALL = "the page needs matplotlib: pip install 'orion-vgpu[report]'"


class NoReport(Exception):
    """There is nothing to write or nothing to write it with; the message says what to do."""


@dataclass
class Section:
    """One command: the newest run that has rows of it."""

    command: str
    run: Row
    rows: list[Row]
    lines: list[Line]


def rows_of_suite(path: Path) -> list[Row]:
    """The rows of a suite.json of benchmarks.suite_session."""
    told = json.loads(path.read_text())
    machine = told["machine"]
    run = {name: machine.get(name, "") for name in ("commit", "cpu", "cpus", "kernel", "gpu")}
    run["device"] = "softgpu" if "--device softgpu" in machine.get("command", "") else "nvidia"
    rows = []
    for place, measured in told["rows"].items():
        for name, row in measured.items():
            kept = {
                **row,
                "command": "suite",
                "row": name,
                "place": place,
                "repeat": 0,
                "run": run,
                "what": row.get("metric", ""),
                "by": machine.get("command", ""),
                "when": machine.get("when", ""),
            }
            rows.append(kept)  # fmt: skip
    return rows


def load(paths: Iterable[Path]) -> list[Row]:
    rows: list[Row] = []
    for path in paths:
        try:
            rows += rows_of_suite(path) if path.suffix == ".json" else read_rows(path)
            if (path / SUITE_FILE).exists():
                rows += rows_of_suite(path / SUITE_FILE)
        except FileNotFoundError:
            raise NoReport(f"{path} does not exist: measure first, with `orion-bench all` for example") from None
        except (ValueError, KeyError, AttributeError) as error:
            raise NoReport(f"{path} holds no rows of orion-bench: {error}") from None
    return newest(rows)


def sections_of(rows: list[Row]) -> list[Section]:
    found: dict[str, Section] = {}
    for run, group in runs_of(rows):
        for command in COMMANDS:
            mine = [row for row in group if row["command"] == command]
            if mine:
                found[command] = Section(command, run, mine, summarise(mine))
    return [found[command] for command in COMMANDS if command in found]


def write(paths: list[Path], target: Path) -> tuple[Path, int]:
    """Writes the page. The status is that of the rows: 1 when one failed or a digest differs."""
    sections = sections_of(load(paths))
    if not sections:
        raise NoReport(f"no rows in {', '.join(map(str, paths))}: measure first, with `orion-bench all` for example")
    try:
        text = page(sections)
    except NoMatplotlib:
        raise NoReport(INSTALL) from None
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    return target, OK if all(good(section.lines) for section in sections) else WRONG


def e(text: object) -> str:
    return html.escape(str(text))


def value_in(sections: list[Section], command: str, row: str, label: str) -> float | None:
    for section in sections:
        for line in section.lines:
            entry = line.entries.get(label)
            if section.command == command and line.name == row and entry is not None and entry.value is not None:
                return entry.value.median
    return None


def facts(sections: list[Section]) -> list[tuple[str, str]]:
    """What every result has to say, and where its sections differ each of it."""

    def all_of(name: str) -> str:
        return " · ".join(dict.fromkeys(str(section.run.get(name) or "unknown") for section in sections))

    rows = [row for section in sections for row in section.rows]
    lanes = dict.fromkeys(str(row["tcp_lanes"]) for row in rows if row.get("tcp_lanes"))
    driver = value_in(sections, "launch", "launch_wall", NATIVE)
    cost = f"{number(driver)} ns a launch (wall time in the calling thread)" if driver else "not measured"
    device = [section.run.get("device") for section in sections]
    gpu = all_of("gpu") if "nvidia" in device else "none: softgpu stands in"
    times = sorted(str(row["when"]) for row in rows if row.get("when"))
    return [
        ("GPU, driver", gpu),
        ("CPU", f"{all_of('cpu')}, {all_of('cpus')} CPUs, Linux {all_of('kernel')}"),
        ("commit", all_of("commit")),
        ("native driver" if "nvidia" in device else "native softgpu", cost),
        ("tcp lanes", " · ".join(lanes) or "no rows over tcp"),
        ("measured", f"{times[0]} to {times[-1]}" if times else "unknown"),
        ("commands", "\n".join(dict.fromkeys(str(row["by"]) for row in rows if row.get("by"))) or "unknown"),
    ]


def glance(sections: list[Section]) -> str:
    """A number a place and kind of work: the median of the fractions."""
    cards = []
    for section in sections:
        fractions: dict[str, list[float]] = {}
        for line in section.lines:
            for label, entry in line.entries.items():
                if entry.fraction is not None:
                    fractions.setdefault(label, []).append(entry.fraction.median)
        if fractions:
            told = "".join(
                f"<div><b>{statistics.median(values):.2f}</b><span>{e(label)}</span></div>"
                for label, values in fractions.items()
            )
            cards.append(f'<a class="card" href="#{section.command}"><h3>{section.command}</h3>{told}</a>')
    if not cards:
        return ""
    note = "Median over the rows of each part: fraction of native. 1.00 is as fast as native, more is better."
    return f'<section><h2>At a glance</h2><p class="note">{note}</p><div class="cards">{"".join(cards)}</div></section>'


def table_html(table: Table) -> str:
    def css(position: int, mark: str) -> str:
        classes = " ".join(filter(None, ("word" if position < table.words else "", mark)))
        return f' class="{classes}"' if classes else ""

    head = "".join(f'<th scope="col"{css(i, "")}>{e(text)}</th>' for i, text in enumerate(table.head))
    rows = "".join(
        "<tr>" + "".join(f"<td{css(i, cell.mark)}>{e(cell.text)}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in table.rows
    )
    return (f'<h3>{e(table.title)}</h3><p class="note">{e(table.note)}</p><div class="scroll"><table>'
            f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>")  # fmt: skip


def meanings(section: Section) -> str:
    """What each row measures, once."""
    told = {line.kind: line.what for line in section.lines if line.what}
    if section.command == "copy":
        return ""
    items = "".join(f"<dt>{e(name)}</dt><dd>{e(what)}</dd>" for name, what in told.items())
    return f"<details><summary>What the rows are</summary><dl>{items}</dl></details>" if items else ""


def section_html(section: Section) -> str:
    plots = "".join(f'<figure class="plot">{plot}</figure>' for plot in ALL_PLOTS[section.command](section.lines))
    tables = "".join(table_html(table) for table in tables_of(section.lines, section.command))
    run = section.run
    where = f"{run.get('gpu') or run.get('device', '')}, commit {str(run.get('commit') or 'unknown')[:12]}"
    return (f'<section id="{section.command}"><h2>{e(section.command)}</h2>'
            f'<p class="note">{e(COMMANDS[section.command].what)} · {e(where)}</p>'
            f"{plots}{tables}{meanings(section)}</section>")  # fmt: skip


def page(sections: list[Section]) -> str:
    wrong = [sentence for section in sections for sentence in failures(section.lines)]
    if wrong:
        items = "".join(f"<li>{e(sentence)}</li>" for sentence in wrong)
        verdict = f'<div class="verdict wrong"><b>{len(wrong)} rows are wrong</b><ul>{items}</ul></div>'
    else:
        verdicts = [entry.verdict for section in sections for line in section.lines for entry in line.entries.values()]
        same, unchecked = verdicts.count(SAME), verdicts.count(UNCHECKED)
        more = f" {unchecked} more have no native row beside them." if unchecked else ""
        verdict = (
            f'<div class="verdict fine"><b>{same} results, every digest is the native one.</b>{more} '
            f"No row failed.</div>"
        )
    soft = any(section.run.get("device") == "softgpu" for section in sections)
    warning = f'<div class="verdict soft">{e(SOFTGPU_WORDS)}</div>' if soft else ""
    told = "".join(f"<dt>{e(name)}</dt><dd>{e(text)}</dd>" for name, text in facts(sections))
    links = "".join(f'<a href="#{section.command}">{section.command}</a>' for section in sections)
    body = "".join(section_html(section) for section in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Orion: measurements</title><style>{STYLE}</style></head><body><main>"
        f"<h1>Orion: measurements</h1>{warning}{verdict}<dl class=\"facts\">{told}</dl><nav>{links}</nav>"
        f"{glance(sections)}{body}"
        '<footer>Values are medians; in brackets the 10th and 90th percentile, behind a fraction the range of the '
        "repeats. Ratios are made of rows that were measured side by side in one run.</footer>"
        "</main></body></html>\n"
    )  # fmt: skip


LIGHT = (
    "--paper:#ffffff;--panel:#f6f7f9;--ink:#1c2430;--soft:#5b6675;--grid:#d9dee5;--good:#0b7a4b;--poor:#a15c00;"
    "--bad:#b3261e;--link:#1d4ed8;--series-0:#6b7280;--series-1:#2563eb;--series-2:#d97706;--series-3:#0d9488;"
    "--series-4:#7c3aed;--series-5:#dc2626;--series-6:#0891b2;--series-7:#65a30d;--series-8:#db2777;--series-9:#854d0e;"
)
DARK = (
    "--paper:#12161c;--panel:#1a2028;--ink:#e4e8ee;--soft:#9aa5b4;--grid:#333c48;--good:#4ade80;--poor:#fbbf24;"
    "--bad:#ff8a80;--link:#8ab4ff;--series-0:#9ca3af;--series-1:#60a5fa;--series-2:#fbbf24;--series-3:#2dd4bf;"
    "--series-4:#a78bfa;--series-5:#f87171;--series-6:#22d3ee;--series-7:#a3e635;--series-8:#f472b6;--series-9:#d6a35c;"
)
STYLE = (
    f":root{{color-scheme:light dark;{LIGHT}}}@media (prefers-color-scheme:dark){{:root{{{DARK}}}}}"
    + """
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:80rem;margin:0 auto;padding:1.5rem 1.25rem 4rem}
h1{font-size:1.7rem;margin:.5rem 0 1rem}h2{font-size:1.3rem;margin:2.5rem 0 .25rem}
h2::first-letter,.card h3::first-letter{text-transform:uppercase}
h3{font-size:1rem;margin:1.25rem 0 .1rem}
.note,footer{color:var(--soft);margin:.1rem 0 .6rem;font-size:.87rem}footer{margin-top:3rem}
.verdict{border-left:4px solid var(--good);background:var(--panel);padding:.6rem .9rem;margin:.6rem 0;border-radius:4px}
.verdict.wrong{border-color:var(--bad)}.verdict.wrong b{color:var(--bad)}.verdict.soft{border-color:var(--poor)}
.verdict ul{margin:.3rem 0 0;padding-left:1.2rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:.8rem 0;font-size:.9rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere;white-space:pre-wrap}
nav{display:flex;flex-wrap:wrap;gap:.4rem 1rem;margin:1rem 0}a{color:var(--link)}
.cards{display:flex;flex-wrap:wrap;gap:.75rem}
.card{background:var(--panel);border-radius:8px;padding:.6rem .9rem;color:var(--ink);min-width:7rem}
.card{text-decoration:none}
.card h3{margin:0 0 .2rem;font-size:.82rem;color:var(--soft);font-weight:600}
.card div{display:flex;gap:.5rem;align-items:baseline}.card b{font-size:1.15rem;font-variant-numeric:tabular-nums}
.card span{color:var(--soft);font-size:.8rem}
.plot{margin:.75rem 0 1rem;max-width:62rem}
.plot svg{width:100%;height:auto;display:block}.plot text{font-family:inherit!important}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.83rem;font-variant-numeric:tabular-nums;min-width:100%}
th,td{padding:.28rem .7rem;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}
th{color:var(--soft);font-weight:600;border-bottom-width:2px}.word{text-align:left}
tbody tr:hover{background:var(--panel)}
.good{color:var(--good)}.poor{color:var(--poor)}.bad{color:var(--bad);font-weight:700}.dim{color:var(--soft)}
details{margin:.6rem 0}summary{cursor:pointer;color:var(--soft)}
@media print{body{font-size:11px}nav{display:none}}
"""
)
