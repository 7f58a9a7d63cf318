"""The summary as tables of text with marks, which a terminal, a log and the page show each in its own way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks.bench.model import BARE, NATIVE
from benchmarks.bench.summary import FAILED, NOTHING, SAME, UNCHECKED, Entry, Line
from benchmarks.measure import Spread

TITLES = {
    "latency": "Latency: what a program waits for",
    "launch": "Launch: what a one-way launch costs",
    "copy": "Copies by size",
    "attach": "Attach: process start to the first kernel",
    "scale": "Scale: clients on one GPU at once",
    "network": "Emulated networks: fraction of native",
    "suite": "Programs: fraction of native",
}
# A fraction of native below the first is far off, from the second on as good as native.
FAR_OFF, LEVEL = 0.5, 0.95


@dataclass(frozen=True)
class Text:
    """A cell. Marks: good, poor, bad, dim, or none."""

    text: str
    mark: str = ""


@dataclass
class Table:
    command: str
    title: str
    note: str
    head: list[str]
    rows: list[list[Text]] = field(default_factory=list)
    # How many columns at the left are words.
    words: int = 1


def number(value: float) -> str:
    """Three significant digits, without an exponent for what people measure."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g} M"
    if size >= 1000:
        return f"{value:.0f}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    return f"{value:.3g}"


def size_text(size_bytes: int) -> str:
    for unit, bytes_of in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= bytes_of and size_bytes % bytes_of == 0:
            return f"{size_bytes // bytes_of} {unit}"
    return f"{size_bytes} B"


def spread_text(value: Spread) -> str:
    """The median and its spread; a spread that rounds to the median is left out."""
    median, low, high = number(value.median), number(value.low), number(value.high)
    return median if low == high == median else f"{median} ({low}..{high})"


def value_cell(line: Line, entry: Entry | None) -> Text:
    if entry is None:
        return Text("-", "dim")
    if entry.value is None:
        return Text(FAILED, "bad")
    text = spread_text(entry.value)
    size = line.size_bytes
    if line.unit == "GB/s" and size is not None and size < 1 << 20:
        text = f"{number(entry.value.median)} [{number(size / entry.value.median / 1e3)} us]"
    return Text(text)


def fraction_cell(entry: Entry | None) -> Text:
    if entry is None or entry.fraction is None:
        return Text("-", "dim")
    median = entry.fraction.median
    told = (median, entry.fraction.low, entry.fraction.high)
    shown, low, high = (f"{value:.2f}" if median >= 0.1 else f"{value:.2g}" for value in told)
    text = shown if low == high else f"{shown} ({low}..{high})"
    return Text(text, "poor" if median < FAR_OFF else "good" if median >= LEVEL else "")


def floor_cell(line: Line, entry: Entry | None) -> Text:
    """`4.3x bare TCP` for times; for copies the shares of one stream and of four."""
    if entry is None or not entry.floors:
        return Text("-", "dim")
    if line.command == "copy":
        return Text(" / ".join(f"{ratio:.2f}" for _, ratio in entry.floors))
    lower = line.better == "lower"
    return Text(
        ", ".join(f"{ratio:.1f}x {label}" if lower else f"{ratio:.2f} of {label}" for label, ratio in entry.floors)
    )


def digest_cell(line: Line) -> Text:
    """`same` when every place has the native result; else which has not, loudly."""
    wrong = [f"{label} {entry.verdict}" for label, entry in line.entries.items() if entry.bad]
    if wrong:
        return Text(", ".join(wrong), "bad")
    verdicts = {entry.verdict for entry in line.entries.values()} - {NOTHING}
    if not verdicts:
        return Text("-", "dim")
    return Text(SAME, "good") if verdicts == {SAME} else Text(UNCHECKED, "poor")


def row_name(line: Line) -> list[Text]:
    name = [Text(line.kind)]
    if line.command == "copy":
        name.append(Text(size_text(line.size_bytes) if line.size_bytes else "-"))
    if line.command == "scale":
        name.append(Text(str(line.clients)))
    return name


def labels_in(lines: list[Line]) -> list[str]:
    """Places and networks in the order in which they came, native first."""
    found = dict.fromkeys(label for line in lines for label, entry in line.entries.items() if entry.place != BARE)
    return sorted(found, key=lambda label: label != NATIVE)


def comparison(command: str, lines: list[Line]) -> Table:
    """All rows of a command: each place's value, fraction of native and ratio to its floors."""
    labels = labels_in(lines)
    extra = {"copy": ["size"], "scale": ["clients"]}.get(command, [])
    head = ["row", *extra, "digest", "unit"]
    columns: list[tuple[str, str]] = []
    for label in labels:
        columns.append((label, "value"))
        head.append(label)
        if label != NATIVE:
            columns.append((label, "fraction"))
            head.append("of native")
        if command == "scale":
            columns.append((label, "alone"))
            head.append("of 1 client")
        if any(label in line.entries and line.entries[label].floors for line in lines):
            columns.append((label, "floors"))
            head.append("of 1 / 4 bare streams" if command == "copy" else "of the floor")
    note = "1.00 = as fast as native, more is better; in brackets the spread."
    if command == "copy":
        note += " Beside small copies the time of one, in square brackets."
    if command == "scale":
        note += " The spread of a fraction is the range of the repeats."
    table = Table(command, TITLES.get(command, command), note, head, words=2 + len(extra))
    alone = {line.name: line for line in lines if line.clients == 1}
    if command == "scale":
        order = list(dict.fromkeys(line.name for line in lines))
        lines = sorted(lines, key=lambda line: (order.index(line.name), line.clients))
    for line in lines:
        cells = [*row_name(line), digest_cell(line), Text(line.unit, "dim")]
        for label, what in columns:
            entry = line.entries.get(label)
            if what == "value":
                cells.append(value_cell(line, entry))
            elif what == "fraction":
                cells.append(fraction_cell(entry))
            elif what == "alone":
                cells.append(alone_cell(entry, alone.get(line.name), label))
            else:
                cells.append(floor_cell(line, entry))
        table.rows.append(cells)
    return table


def alone_cell(entry: Entry | None, base: Line | None, label: str) -> Text:
    """A value beside that of one client in the same place, as a plain ratio."""
    one = base.entries.get(label) if base else None
    if entry is None or entry.value is None or one is None or one.value is None or not one.value.median:
        return Text("-", "dim")
    return Text(f"{entry.value.median / one.value.median:.2f}")


def network_table(lines: list[Line]) -> Table:
    """Fractions only, a column a network."""
    labels = labels_in(lines)
    others = [label for label in labels if label != NATIVE]
    head = [
        "row",
        "digest",
        "unit",
        NATIVE,
        *(f"{label}, no emulation" if label == "tcp" else label for label in others),
    ]
    note = "Native in its unit; then fractions of native, and what they are in that unit."
    table = Table("network", TITLES["network"], note, head, words=2)
    for line in lines:
        cells = [Text(line.name), digest_cell(line), Text(line.unit, "dim"),
                 value_cell(line, line.entries.get(NATIVE))]  # fmt: skip
        for label in others:
            entry = line.entries.get(label)
            cell = fraction_cell(entry)
            if entry is not None and entry.verdict == FAILED:
                cell = Text(FAILED, "bad")
            elif entry is not None and entry.value is not None:
                cell = Text(f"{cell.text} [{number(entry.value.median)}]", cell.mark)
            cells.append(cell)
        table.rows.append(cells)
    return table


def suite_table(lines: list[Line]) -> Table:
    """As `comparison`, and how often a step waited for the server."""
    table = comparison("suite", lines)
    others = [label for label in labels_in(lines) if label != NATIVE]
    table.head += [f"waits, {label}" for label in others]
    for line, cells in zip(lines, table.rows):
        waits = []
        for label in others:
            told = [row["waits_per_step"] for row in line.entries[label].rows if "waits_per_step" in row] if (
                label in line.entries
            ) else []  # fmt: skip
            waits.append(Text(f"{told[-1]:.2f}") if told else Text("-", "dim"))
        cells += waits
    return table


def floor_table(command: str, lines: list[Line]) -> Table | None:
    rows = [
        [Text(line.name), Text(line.what), Text(line.unit, "dim"), value_cell(line, line.entries[BARE])]
        for line in lines
        if BARE in line.entries
    ]
    if not rows:
        return None
    note = "Measured in the same run, without any of Orion: no transport can be faster."
    return Table(command, "The machine's bare floors", note, ["floor", "what", "unit", "value"], rows, words=2)


def tables_of(lines: Iterable[Line], command: str) -> list[Table]:
    """The tables of one command; none when it has no rows."""
    mine = [line for line in lines if line.command == command]
    if command == "slices":
        # Its tables are made of these parts.
        from benchmarks.bench.slices_tables import slices_tables

        return slices_tables(mine)
    measured = [line for line in mine if BARE not in line.entries]
    if not mine:
        return []
    out = []
    if measured:
        build = {"network": network_table, "suite": suite_table}.get(command)
        out.append(build(measured) if build else comparison(command, measured))
    floors = floor_table(command, mine)
    return [*out, floors] if floors else out


def plain(table: Table) -> str:
    """For logs: columns of text, no colours."""
    cells = [table.head, *([cell.text for cell in row] for row in table.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.head))]
    lines = [table.title, table.note]
    for row in cells:
        shown = [
            text.ljust(width) if i < table.words else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(shown).rstrip())
    return "\n".join(lines) + "\n"
