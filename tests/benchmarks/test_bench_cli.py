"""The command line: what it takes, what it refuses, and that its help teaches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import cli, measure_all
from benchmarks.bench import plans, session
from benchmarks.bench.ground import Ground
from benchmarks.bench.model import Network, Observer, Options

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("latency", "launch", "copy", "attach", "scale", "network", "slices", "suite", "all", "report")


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, list(arguments))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Options]]:
    """What would be measured, instead of measuring it."""
    seen: list[tuple[str, Options]] = []

    def measure(command: str, options: Options, observer: Observer) -> session.Result:
        seen.append((command, options))
        return session.Result(command, {"device": options.device}, [], [])

    monkeypatch.setattr(cli, "measure", measure)
    monkeypatch.setattr(measure_all, "measure", measure)
    return seen


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    shown = invoke(command, "--help")
    assert shown.exit_code == 0 and f"  orion-bench {command}" in shown.output


def test_the_help_names_every_command_and_the_exit_codes() -> None:
    shown = invoke("--help").output
    assert all(f"  {command} " in shown for command in COMMANDS)
    assert "0 all well, 1 a row failed or a digest differs, 2 wrong usage" in " ".join(shown.split())


def test_options_arrive(asked: list[tuple[str, Options]], tmp_path: Path) -> None:
    done = invoke("copy", "--device", "softgpu", "--full", "--out", str(tmp_path), "--transports", "native,shm",
                  "--rows", "copy_h2d_pinned", "--sizes", "4,64k,1MiB,1g", "--repeats", "4")  # fmt: skip
    assert done.exit_code == 0
    ((command, options),) = asked
    assert command == "copy" and options.full and options.places == ("native", "shm") and options.repeats == 4
    assert options.sizes_bytes == (4, 1 << 16, 1 << 20, 1 << 30) and options.rows == ("copy_h2d_pinned",)


def test_links_and_clients_arrive(asked: list[tuple[str, Options]]) -> None:
    assert invoke("network", "--device", "softgpu", "--links", "100:25,12.5:1").exit_code == 0
    assert invoke("scale", "--device", "softgpu", "--clients", "1,3").exit_code == 0
    assert asked[0][1].networks == (Network(100, 25), Network(12.5, 1)) and asked[1][1].clients == (1, 3)


def test_all_measures_everything(asked: list[tuple[str, Options]], tmp_path: Path) -> None:
    assert invoke("all", "--device", "softgpu").exit_code == 0
    assert [command for command, _ in asked] == list(session.COMMANDS)
    assert measure_all.main(["--out", str(tmp_path), "--device", "softgpu"]) == 0
    assert [command for command, _ in asked[len(session.COMMANDS) :]] == list(measure_all.STANDARD)


@pytest.mark.parametrize(
    "arguments",
    [
        ["latency", "--device", "abacus"],
        ["latency", "--transports", "pigeon"],
        ["latency", "--rows", "no_such_row", "--device", "softgpu"],
        ["latency", "--repeats", "0"],
        ["copy", "--sizes", "4x"],
        ["copy", "--sizes", "0"],
        ["copy", "--sizes", "999g", "--device", "softgpu"],
        ["scale", "--clients", "0"],
        ["network", "--links", "100"],
        ["slices", "--rows", "alone_101_2ms", "--device", "softgpu"],
        ["latency", "--no-such-option"],
        ["no-such-command"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path)] if len(arguments) > 1 else []
    assert invoke(*arguments, *out).exit_code == 2


def test_a_device_is_chosen(asked: list[tuple[str, Options]], monkeypatch: pytest.MonkeyPatch) -> None:
    for nodes, device in ((["/dev/nvidia0"], "nvidia"), ([], "softgpu")):
        monkeypatch.setattr("benchmarks.machine.glob.glob", lambda _, nodes=nodes: nodes)
        assert invoke("latency").exit_code == 0
        assert asked[-1][1].device == device


def test_softgpu_is_said_to_be_no_gpu(asked: list[tuple[str, Options]]) -> None:
    assert "no GPU timings" in " ".join(invoke("latency", "--device", "softgpu").output.split())
    assert "no GPU timings" not in invoke("latency", "--device", "nvidia").output
    assert session.Result("latency", {"device": "softgpu"}, [], []).record()["note"] == session.SOFTGPU_WORDS


def test_a_network_that_is_not_emulated_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "emulation_is_there", lambda: False)
    done = invoke("network", "--device", "softgpu", "--out", str(tmp_path))
    assert done.exit_code == 1 and "ORION_EMULATE_RTT_US" in done.output
    assert not (tmp_path / "rows.jsonl").exists()


def test_lanes_that_emulate_nothing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORION_TCP_LANES", "zmq")
    done = invoke("network", "--device", "softgpu", "--out", str(tmp_path))
    assert done.exit_code == 1 and "ORION_TCP_LANES" in done.output


def test_without_gcc_it_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.programs.shutil.which", lambda _: None)
    places = ["--transports", "native", "--repeats", "1", "--rows", "event_query"]
    done = invoke("latency", "--device", "softgpu", "--out", str(tmp_path), *places)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert done.exit_code == 1 and all("install gcc" in row["error"] for row in rows if row["place"] == "bare")
    assert [row["row"] for row in rows if "value" in row] == ["event_query"]


def test_without_a_server_nothing_is_measured_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []

    def server(*_: object, **__: object) -> None:
        starts.append(1)
        raise RuntimeError("orion-server did not start:\nNo module named 'pycuda'")

    monkeypatch.setattr("benchmarks.places.server", server)
    done = invoke("suite", "--device", "softgpu", "--rows", "event_query", "--out", str(tmp_path))
    assert done.exit_code == 1 and len(starts) == 1
    assert "did not start" in done.output and "orion-vgpu[gpu]" in done.output
    assert not (tmp_path / "rows.jsonl").exists()


def test_the_grids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plans, "emulation_is_there", lambda: True)
    with Ground(Options("softgpu", tmp_path)) as quick, Ground(Options("softgpu", tmp_path, full=True)) as full:
        cells = {
            (name, depth): [cell for task in plans.COMMANDS[name].tasks(ground) for cell in task.cells]
            for name in plans.COMMANDS
            for depth, ground in (("quick", quick), ("full", full))
        }
    links = {cell.network for cell in cells["network", "quick"] if cell.network}
    assert len(links) == 5 and {(link.rtt_us, link.gbit) for link in links} >= {(25, 25), (1000, 25), (100, 10)}
    assert len({cell.row for cell in cells["network", "quick"]}) == 8
    assert {cell.clients for cell in cells["scale", "quick"]} == {1, 2, 4, 8, 16}
    sizes = {int(cell.row.partition("@")[2]) for cell in cells["copy", "full"] if "@" in cell.row}
    assert min(sizes) == 4 and max(sizes) == 1 << 30
    for name in plans.COMMANDS:
        assert len(set(cells[name, "quick"])) == len(cells[name, "quick"]) < len(cells[name, "full"])
    # A full session goes on from the rows of a quick one where both measure the same.
    assert set(cells["latency", "quick"]) < set(cells["latency", "full"])


def test_measuring_needs_no_package_of_the_terminal(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('typer', 'rich', 'matplotlib', 'click'): sys.modules[name] = None\n"
        "import benchmarks.measure_all, benchmarks.session, benchmarks.suite_session, benchmarks.null_engine\n"
        "sys.exit(benchmarks.measure_all.main(['latency', '--device', 'softgpu', '--transports', 'native',"
        f" '--repeats', '1', '--out', {str(tmp_path)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "launch_and_sync" in (tmp_path / "tables.txt").read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ["pigeon"],
        ["--quick", "--full"],
        ["--transports", "x"],
        ["--repeats", "0"],
        ["--rows", "reply"],
        ["--seconds", "0"],
        ["slices", "--device", "softgpu", "--rows", "alone_101_2ms"],
    ],
)
def test_the_plain_twin_refuses_too(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        measure_all.main([*arguments, "--out", str(tmp_path)])
    assert end.value.code == 2


def test_sizes_in_words() -> None:
    assert cli.parse_sizes("4, 1k,2MB") == (4, 1024, 2 << 20)
    with pytest.raises(typer.Exit):
        cli.parse_sizes("four")
