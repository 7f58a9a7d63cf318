"""`orion-bench`: the command line for people. What it measures is in benchmarks.bench, without rich and typer."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from benchmarks.bench import session
from benchmarks.bench.model import DEFAULT_OUT, NATIVE, Cell, Impossible, Network, Observer, Options, Row, Unknown
from benchmarks.bench.session import Lines, Result, failures, measure, resume_words
from benchmarks.bench.tables import Table, plain, tables_of
from benchmarks.machine import choose_device
from benchmarks.places import parse_places
from orion_client import __version__

STYLES = {"good": "green", "poor": "yellow", "bad": "bold red", "dim": "dim"}
SIZE_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
TERMINAL_HELP = {"help_option_names": ["-h", "--help"]}

_HELP = """Measures Orion: every figure is a ratio to native, or to the machine's bare floor, of the same run.

\b
  orion-bench latency                         round trips, on the best device here
  orion-bench copy --sizes 4,64k,16m          copies of your sizes
  orion-bench all && orion-bench report       everything quick, then one page of tables and plots
  orion-bench all --full --out ~/h200         everything; Ctrl-C, and the same command goes on later
  orion-bench latency --json | jq .good       for programs

Every row carries a digest of its result, which must be the native one. Each finished row is saved at once in
--out (rows.jsonl); the same command measures what is missing there. On a machine without a GPU softgpu stands in:
such numbers check the path and are no GPU timings. With a GPU, clients run where no driver can be reached (needs root).

Exit status: 0 all well, 1 a row failed or a digest differs, 2 wrong usage, 130 stopped by Ctrl-C.
"""

app = typer.Typer(add_completion=True, rich_markup_mode=None, no_args_is_help=True, help=_HELP,
                  context_settings=TERMINAL_HELP)  # fmt: skip
notes = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

Device = Annotated[str, typer.Option(help="auto (a GPU, else softgpu), nvidia or softgpu.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder of rows.jsonl and the server's logs.")]
Full = Annotated[bool, typer.Option("--full/--quick", help="The whole grid, or the one that decides in minutes.")]
Transports = Annotated[str, typer.Option(help="Places to compare, of native, shm, tcp and ucx.")]
Repeats = Annotated[int | None, typer.Option(min=1, max=1000, help="How often everything is measured.")]
Timeout = Annotated[float, typer.Option(min=0.01, metavar="SECONDS", help="Limit of one row.")]
Budget = Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Begin no row after that time.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
Rows = Annotated[str, typer.Option(metavar="NAME,...", help="Only these rows.")]
Seconds = Annotated[float | None, typer.Option(min=0.05, max=600, help="Seconds of each load or bare stream.")]
DEVICE, OUT, TRANSPORTS, TIMEOUT_S = "auto", DEFAULT_OUT, "native,shm,tcp", 120.0


class Bars(Observer):
    """Progress on a terminal: a bar a command, and which row is being measured."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def begin(self, command: str, cells: int, saved: int) -> None:
        if saved:
            notes.print(f"{command}: {saved} of {cells} rows were saved before", style="dim")
        columns = (TextColumn("{task.fields[command]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                   TextColumn("{task.description}"))  # fmt: skip
        self._progress = Progress(*columns, console=notes, transient=True)
        self._task = self._progress.add_task("", total=cells, completed=saved, command=command)
        self._progress.start()

    def now(self, label: str) -> None:
        if self._progress is not None:
            self._progress.update(self._task, description=label)

    def row(self, cell: Cell, row: Row) -> None:
        if self._progress is not None:
            self._progress.advance(self._task)
            self._progress.update(self._task, description=cell.label)
        if "error" in row:
            notes.print(f"{cell.command} {cell.label} FAILED: {row['error']}", style="bold red")
            if row.get("tail"):
                notes.print(row["tail"][-600:].rstrip(), style="dim")

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def wrong_usage(text: str) -> NoReturn:
    notes.print(f"orion-bench: {text}")
    raise typer.Exit(session.USAGE)


def parse_sizes(text: str) -> tuple[int, ...]:
    """`4,64k,16m` in bytes."""
    sizes = []
    for word in filter(None, text.split(",")):
        found = re.fullmatch(r"(\d+)\s*([kmg]?)(?:i?b)?", word.strip().lower())
        if not found or int(found[1]) == 0:
            wrong_usage(f"--sizes: {word!r} is no size; write 4, 64k, 16m or 1g")
        sizes.append(int(found[1]) * SIZE_UNITS[found[2]])
    return tuple(sizes)


def parse_clients(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdigit() and 1 <= int(word) <= 64 for word in words):
        wrong_usage("--clients takes numbers from 1 to 64: 1,2,4")
    return tuple(map(int, words))


def parse_links(text: str) -> tuple[Network, ...]:
    """`100:25,1000:10`: round-trip time in microseconds and Gbit/s."""
    links = []
    for word in filter(None, text.split(",")):
        found = re.fullmatch(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", word.strip())
        if not found or float(found[2]) == 0:
            wrong_usage(f"--links: {word!r} is no link; write MICROSECONDS:GBIT, 100:25 for example")
        links.append(Network(float(found[1]), float(found[2])))
    return tuple(links)


def names_in(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def options_of(
    device: str, out: Path, full: bool, transports: str, repeats: int | None, timeout_s: float,
    budget_s: float | None, **more: Any,
) -> Options:  # fmt: skip
    if device not in ("auto", "nvidia", "softgpu"):
        wrong_usage("--device is one of auto, nvidia, softgpu")
    try:
        places = parse_places(transports)
    except ValueError as error:
        wrong_usage(f"--transports: {error}")
    return Options(choose_device(device), out, full, places, repeats, timeout_s=timeout_s, budget_s=budget_s,
                   by=shlex.join(["orion-bench", *sys.argv[1:]]), **more)  # fmt: skip


def show(table: Table) -> None:
    """Colours and folding on a terminal; elsewhere lines that are not cut."""
    if not sys.stdout.isatty():
        print(plain(table))
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(title=table.title, caption=table.note, title_justify="left", caption_justify="left",
                      title_style="bold", caption_style="dim", box=SIMPLE_HEAD, pad_edge=False)  # fmt: skip
    for position, head in enumerate(table.head):
        shown.add_column(head, justify="left" if position < table.words else "right")
    for row in table.rows:
        shown.add_row(*(Text(cell.text, style=STYLES.get(cell.mark, "")) for cell in row))
    Console().print(shown)


def show_result(result: Result, options: Options, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.record()), flush=True)
    else:
        for table in tables_of(result.lines, result.command):
            show(table)
    for sentence in failures(result.lines):
        notes.print(f"WRONG: {sentence}", style="bold red")
    if result.not_reached:
        notes.print(f"{len(result.not_reached)} rows were not reached in the time given. {resume_words(options)}")


def run(commands: tuple[str, ...], options: Options, as_json: bool) -> NoReturn:
    """Measures, shows, and ends with the exit status."""
    if options.device == "softgpu":
        notes.print(session.SOFTGPU_WORDS, style="yellow")
    if NATIVE not in options.places:
        notes.print("No native rows: there is nothing to be a fraction of.", style="yellow")
    status = session.OK
    try:
        for command in commands:
            try:
                result = measure(command, options, Bars() if sys.stderr.isatty() else Lines())
            except Unknown as error:
                wrong_usage(f"{command}: {error}")
            except Impossible as error:
                notes.print(f"orion-bench {command}: {error}", style="bold red")
                status = session.WRONG
                continue
            except OSError as error:
                wrong_usage(f"{options.out}: {error.strerror or error}")
            status = max(status, result.status)
            show_result(result, options, as_json)
    except KeyboardInterrupt:
        notes.print(f"\nStopped. {resume_words(options)}")
        raise typer.Exit(session.INTERRUPTED) from None
    if not as_json:
        notes.print(f"Rows are in {options.out}; `{report_command(options)}` makes a page of them.", style="dim")
    raise typer.Exit(status)


def report_command(options: Options) -> str:
    return "orion-bench report" + ("" if options.out == DEFAULT_OUT else f" --out {shlex.quote(str(options.out))}")


@app.callback(invoke_without_command=True)
def main_options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        print(f"orion-bench {__version__}")
        raise typer.Exit


LATENCY_HELP = """What a program waits for: a launch with its wait, four bytes back, queries, a question to the server.

Native beside shm and tcp, and beside the bare floors of the same run: two words in shared memory, a TCP
ping-pong (compiled here: needs gcc).

\b
  orion-bench latency
  orion-bench latency --rows launch_and_sync --transports native,shm --repeats 10
  orion-bench latency --full --json > latency.json
"""


@app.command(help=LATENCY_HELP, short_help=session.COMMANDS["latency"].what, context_settings=TERMINAL_HELP)
def latency(
    device: Device = DEVICE, out: Out = OUT, full: Full = False, transports: Transports = TRANSPORTS,
    rows: Rows = "", repeats: Repeats = None, timeout: Timeout = TIMEOUT_S, budget: Budget = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    options = options_of(device, out, full, transports, repeats, timeout, budget, rows=names_in(rows))
    run(("latency",), options, as_json)


LAUNCH_HELP = """What a one-way launch costs: wall and CPU time of the calling thread, and how many a second go through.

The device's rows beside native; Orion alone in front of an engine that drops all work (null_...), beside the bare
ring; null_replay is what the server needs for one launch. Needs gcc.

\b
  orion-bench launch
  orion-bench launch --transports native,tcp --repeats 5
"""


@app.command(help=LAUNCH_HELP, short_help=session.COMMANDS["launch"].what, context_settings=TERMINAL_HELP)
def launch(
    device: Device = DEVICE, out: Out = OUT, full: Full = False, transports: Transports = TRANSPORTS,
    repeats: Repeats = None, timeout: Timeout = TIMEOUT_S, budget: Budget = None, as_json: Json = False,
) -> None:  # fmt: skip
    run(("launch",), options_of(device, out, full, transports, repeats, timeout, budget), as_json)


COPY_HELP = """Copies to and from the device, pageable and page-locked, by size: GB/s and the fraction of native.

Over tcp also beside bare loopback TCP of the same run, one stream and four, through a large buffer. Needs gcc.
Quick: 4 B, 64 KiB, 1 MiB, 16 MiB, 256 MiB. Full: 4 B to 1 GiB in steps of four.

\b
  orion-bench copy
  orion-bench copy --rows copy_h2d_pinned,copy_d2h_pinned --sizes 64k,1m,1g
"""


@app.command(help=COPY_HELP, short_help=session.COMMANDS["copy"].what, context_settings=TERMINAL_HELP)
def copy(
    device: Device = DEVICE, out: Out = OUT, full: Full = False, transports: Transports = TRANSPORTS,
    rows: Rows = "", sizes: Annotated[str, typer.Option(metavar="SIZE,...", help="4,64k,16m,1g")] = "",
    seconds: Seconds = None, repeats: Repeats = None, timeout: Timeout = TIMEOUT_S, budget: Budget = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    options = options_of(device, out, full, transports, repeats, timeout, budget, rows=names_in(rows),
                         sizes_bytes=parse_sizes(sizes), seconds=seconds)  # fmt: skip
    run(("copy",), options, as_json)


ATTACH_HELP = """Process start to the result of the first kernel, again and again, and where the time goes.

Cold: no worker is ready, and neither server nor driver has the kernel compiled. Warm: a worker waits, the kernel is
known. The process is a C program: no interpreter is in the time. Needs gcc.

\b
  orion-bench attach
  orion-bench attach --transports native,shm --full
"""


@app.command(help=ATTACH_HELP, short_help=session.COMMANDS["attach"].what, context_settings=TERMINAL_HELP)
def attach(
    device: Device = DEVICE, out: Out = OUT, full: Full = False, transports: Transports = TRANSPORTS,
    repeats: Repeats = None, timeout: Timeout = TIMEOUT_S, budget: Budget = None, as_json: Json = False,
) -> None:  # fmt: skip
    run(("attach",), options_of(device, out, full, transports, repeats, timeout, budget), as_json)


SCALE_HELP = """1, 2, 4, 8 and 16 client processes on one GPU at the same time, beside as many native processes.

The launches and copies of all together, the slowest client's share of the fastest's, and how long one client waits for
its launch while the others launch. Each also as a ratio to one client. Needs gcc.

\b
  orion-bench scale
  orion-bench scale --clients 1,4 --seconds 5 --transports native,shm
"""


@app.command(help=SCALE_HELP, short_help=session.COMMANDS["scale"].what, context_settings=TERMINAL_HELP)
def scale(
    device: Device = DEVICE, out: Out = OUT, full: Full = False, transports: Transports = TRANSPORTS,
    clients: Annotated[str, typer.Option(metavar="N,...", help="How many clients at once.")] = "",
    seconds: Seconds = None, repeats: Repeats = None, timeout: Timeout = TIMEOUT_S, budget: Budget = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    options = options_of(device, out, full, transports, repeats, timeout, budget, clients=parse_clients(clients),
                         seconds=seconds)  # fmt: skip
    run(("scale",), options, as_json)


NETWORK_HELP = """Eight rows over emulated networks: fractions of native.

Round-trip times of 25, 100 and 1000 us at 25 Gbit/s, and 10, 25 and 100 Gbit/s at 100 us, beside tcp over loopback
without emulation. The client library emulates (ORION_EMULATE_RTT_US, ORION_EMULATE_GBIT).

\b
  orion-bench network
  orion-bench network --links 200:40,5000:1 --rows launch_pipelined,launch_and_sync
"""


@app.command(help=NETWORK_HELP, short_help=session.COMMANDS["network"].what, context_settings=TERMINAL_HELP)
def network(
    device: Device = DEVICE, out: Out = OUT, full: Full = False, rows: Rows = "",
    links: Annotated[str, typer.Option(metavar="US:GBIT,...", help="Links of your own.")] = "",
    repeats: Repeats = None, timeout: Timeout = TIMEOUT_S, budget: Budget = None, as_json: Json = False,
) -> None:  # fmt: skip
    options = options_of(device, out, full, "native,tcp", repeats, timeout, budget, rows=names_in(rows),
                         networks=parse_links(links))  # fmt: skip
    run(("network",), options, as_json)


SLICES_HELP = """What share of a GPU tenants get, beside what they were configured to get.

Kernels of a fixed amount of work, calibrated alone and natively in this run, are the ruler: the share in a window is
the work done in it, over the window. Rows: tenants alone at their ratios (kernels and graphs), pairs and fours,
requests that come by chance alone and beside a saturating tenant, a ratio that changes while the program runs, and
what slices cost; beside native programs under the driver's own time-slicing. `off` is the worst of all windows.

Quick: 12 s a row, within eight minutes on a GPU. Full: 31 s a row, ratios from 10 to 90, kernels from 0.2 to 50 ms.
Over shm, one pair over tcp. Needs gcc.

\b
  orion-bench slices
  orion-bench slices --rows pair_30_70_2ms,change_30_70_2ms --transports shm
  orion-bench slices --full --out ~/h200      Ctrl-C, and the same command goes on later
"""


@app.command(help=SLICES_HELP, short_help=session.COMMANDS["slices"].what, context_settings=TERMINAL_HELP)
def slices(
    device: Device = DEVICE, out: Out = OUT, full: Full = False, transports: Transports = TRANSPORTS,
    rows: Rows = "", seconds: Seconds = None, repeats: Repeats = None, timeout: Timeout = TIMEOUT_S,
    budget: Budget = None, as_json: Json = False,
) -> None:  # fmt: skip
    options = options_of(device, out, full, transports, repeats, timeout, budget, rows=names_in(rows), seconds=seconds)
    run(("slices",), options, as_json)


SUITE_HELP = """Real programs (PyTorch, JAX, CuPy, the driver API) natively, over shm and over tcp.

Programs whose packages are missing are left out; --rows asks for one all the same. On softgpu: the driver API alone.
`waits`: how often a step waited for the server.

\b
  orion-bench suite
  orion-bench suite --rows resnet50_train_bs64,bert_infer_bs1
  orion-bench suite --full --timeout 300 --out ~/h200
"""


@app.command(help=SUITE_HELP, short_help=session.COMMANDS["suite"].what, context_settings=TERMINAL_HELP)
def suite(
    device: Device = DEVICE, out: Out = OUT, full: Full = False, transports: Transports = TRANSPORTS,
    rows: Rows = "", repeats: Repeats = None, timeout: Timeout = TIMEOUT_S, budget: Budget = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    options = options_of(device, out, full, transports, repeats, timeout, budget, rows=names_in(rows))
    run(("suite",), options, as_json)


ALL_HELP = """All measurements, one after the other: latency, launch, copy, scale, attach, network, slices, suite.

\b
  orion-bench all
  orion-bench all --full --out ~/h200      Ctrl-C, and the same command goes on later
"""


@app.command(
    name="all", help=ALL_HELP, short_help="all measurements, one after the other", context_settings=TERMINAL_HELP
)
def everything(
    device: Device = DEVICE, out: Out = OUT, full: Full = False, transports: Transports = TRANSPORTS,
    repeats: Repeats = None, timeout: Timeout = TIMEOUT_S, budget: Budget = None, as_json: Json = False,
) -> None:  # fmt: skip
    run(tuple(session.COMMANDS), options_of(device, out, full, transports, repeats, timeout, budget), as_json)


REPORT_HELP = """One HTML page of all saved rows: tables and plots, nothing loaded from elsewhere.

Reads --out, or the folders and files given: rows.jsonl, and the suite.json of benchmarks.suite_session. Of each command
the newest run is shown. Needs matplotlib: pip install 'orion-vgpu[report]'.

\b
  orion-bench report
  orion-bench report ~/h200 --html h200.html
"""


@app.command(help=REPORT_HELP, short_help="one HTML page of all saved rows", context_settings=TERMINAL_HELP)
def report(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH]...", help="Saved rows (default: --out).")
    ] = None,
    out: Out = OUT,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="The page (default: report.html in --out).")] = None,
) -> None:
    from benchmarks.bench import report as page

    try:
        written, status = page.write(paths or [out], html or out / "report.html")
    except page.NoReport as error:
        wrong_usage(str(error))
    except OSError as error:
        wrong_usage(f"{error.filename}: {error.strerror}")
    print(written)
    if status:
        notes.print("A row failed or a digest differs: the page says which.", style="bold red")
    raise typer.Exit(status)


def main() -> None:
    """Entry of the installed command."""
    app(prog_name="orion-bench")


if __name__ == "__main__":
    main()
