"""`orion-bench slices`: its grid, its rows from what tenants tell, its tables and plots, and the probe itself."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench import slices, slices_plots, slices_tables
from benchmarks.bench.ground import Ground
from benchmarks.bench.model import NATIVE, Options, Row, Unknown
from benchmarks.bench.runner import TaskError
from benchmarks.bench.slices_tenants import (
    Item,
    Ruler,
    Tenant,
    Told,
    as_told,
    calibration_cell,
    command_of,
    native,
    ruler,
    run_tenants,
)
from benchmarks.bench.store import Store
from benchmarks.bench.summary import good, summarise
from benchmarks.bench.tables import plain, tables_of
from benchmarks.programs import compile_program
from orion_client import libraries
from tests.benchmarks.bench_rows import RUN, row

BURN = Ruler(1000, 2.0, 77)


def told_of(ratio: int | None, share: float, digest: int = 77, load: float = 0.0, seconds: float = 12.0) -> Told:
    """A tenant that got exactly that share with kernels of 2 ms."""
    apart_s = 0.002 / share
    done_s = [apart_s * i for i in range(1, int(seconds / apart_s) + 1)]
    latency_s = [0.003] * len(done_s) if load else []
    return Told(Tenant(Item(2.0), ratio, load), BURN, done_s, latency_s, digest, seconds, 100.0)


def as_row(name: str, values: Row, place: str = "shm", clients: int = 1) -> Row:
    identity: Row = {"command": "slices", "row": name, "place": place, "repeat": 0, "run": RUN, "by": "orion-bench"}
    return {**identity, **({"clients": clients} if clients > 1 else {}), **slices.tidy(values)}


def whole_run() -> list[Row]:
    change = {"unit": "ms", "better": "lower", "value": 40.0, "low": 20.0, "high": 40.0, "each": [20.0, 40.0],
              "unsettled": 0, "answer_ms": [2.0, 2.0], "changes": [[3.0, 70], [5.0, 30]], "first_ratio": 30,
              "series": [[[1.0, 30.0], [3.1, 70.0], [5.1, 30.0]]], "digest": "77", "expected": "77",
              "exact": True}  # fmt: skip
    return [
        as_row("calibrate_2ms", {"unit": "ms", "better": "lower", "value": 2.0, "iterations": 1000, "digest": 77,
                                 "exact": True}, NATIVE),
        as_row("native_pair_2ms", slices.shares_row([told_of(None, 0.459), told_of(None, 0.459)], "x"), NATIVE, 2),
        as_row("alone_50_2ms", slices.shares_row([told_of(50, 0.495)], "x")),
        as_row("pair_30_70_2ms", slices.shares_row([told_of(30, 0.3), told_of(70, 0.69)], "x"), clients=2),
        as_row("pair_30_70_2ms", slices.shares_row([told_of(30, 0.25), told_of(70, 0.69)], "x"), "tcp", 2),
        as_row("inference_50_1ms", slices.request_row([told_of(50, 0.2, load=0.25)], "x")),
        as_row("inference_50_1ms_beside_2ms",
               slices.request_row([told_of(50, 0.2, load=0.25), told_of(50, 0.5)], "x"), clients=2),
        as_row("change_30_70_2ms", change),
        as_row("overhead_saturated", slices.pairs_row([100.0, 100.0, 100.0], [99.5, 99.0, 97.0], "%", "x")
               | {"digest": "77", "expected": "77", "exact": True}),
    ]  # fmt: skip


def cell(name: str, column: str, where: str = "shm", tenant: int = 0) -> Any:
    """A cell of the table of shares."""
    (table, *_) = tables_of(summarise(whole_run()), "slices")
    at = next(i for i, cells in enumerate(table.rows) if cells[0].text == name and cells[1].text == where)
    return table.rows[at + tenant][table.head.index(column)]


def test_a_row_tells_what_was_configured_and_achieved() -> None:
    told = slices.shares_row([told_of(30, 0.3), told_of(70, 0.69)], "x")
    assert told["value"] == pytest.approx(99, abs=0.1) and told["lost_pp"] == pytest.approx(1, abs=0.1)
    assert [tenant["configured"] for tenant in told["tenants"]] == [30, 70]
    assert told["tenants"][1]["windows"]["10"]["worst_pp"] == pytest.approx(1, abs=0.1)
    assert (told["digest"], told["expected"]) == ("77", "77")
    assert "lost_pp" not in slices.shares_row([told_of(50, 0.5)], "x")
    # The driver promises no ratio: what two programs lose is of the whole GPU.
    assert slices.shares_row([told_of(None, 0.459)] * 2, "x")["lost_pp"] == pytest.approx(8.2, abs=0.1)


def test_a_starved_tenant_is_a_failure_and_no_number() -> None:
    starved = Told(Tenant(Item(2.0), 50), BURN, [], [], 77, 0.5, 100.0)
    with pytest.raises(TaskError, match="no work"):
        slices.shares_row([told_of(50, 0.5), starved], "x")


def test_targets_that_are_missed_are_marked() -> None:
    assert cell("alone_50_2ms", "off, 1 s").mark == "good" and cell("alone_50_2ms", "of granted").text == "0.990"
    assert cell("pair_30_70_2ms", "off, 1 s", "tcp").mark == "poor"
    assert cell("pair_30_70_2ms", "off, 1 s", "tcp", tenant=1).mark == "good"
    assert cell("pair_30_70_2ms", "off, 10 s", "tcp").mark == "poor"
    assert cell("pair_30_70_2ms", "lost").mark == "good" and cell("pair_30_70_2ms", "lost", "tcp").mark == "poor"
    assert (
        cell("native_pair_2ms", "lost", NATIVE).mark == "" and cell("native_pair_2ms", "configured", NATIVE).text == "-"
    )


def test_more_than_was_configured_is_no_success() -> None:
    """A hard share that is exceeded, and a pair that together got more than it was to have."""
    pair = slices.shares_row([told_of(30, 0.5), told_of(70, 0.7)], "x")
    rows = [as_row("alone_50_2ms", slices.shares_row([told_of(50, 0.9)], "x"))]
    rows.append(as_row("pair_30_70_2ms", pair, clients=2))
    (table,) = tables_of(summarise(rows), "slices")
    assert [cells[table.head.index("of granted")].mark for cells in table.rows] == ["poor", "poor", "good"]
    assert table.rows[1][table.head.index("lost")].mark == "poor"


def test_requests_beside_others_are_held_against_those_alone() -> None:
    table = tables_of(summarise(whole_run()), "slices")[1]
    assert [cells[-1].text for cells in table.rows] == ["-", "1.00"] and table.rows[1][-1].mark == "good"


def test_costs_and_changes_are_held_against_their_targets() -> None:
    table = tables_of(summarise(whole_run()), "slices")[2]
    shown = {cells[0].text: [other.text for other in cells] for cells in table.rows}
    assert shown["overhead_saturated"][3:] == ["1.00", "0.5", "3.00", "1"]
    assert shown["change_30_70_2ms"][3] == "40.0"


def test_a_wrong_digest_is_loud_and_a_right_one_is_checked_without_a_native_row() -> None:
    lines = summarise(whole_run())
    assert good(lines) and all(line.entries["shm"].verdict == "same" for line in lines if "shm" in line.entries)
    broken = as_row("alone_50_2ms", slices.shares_row([told_of(50, 0.5, digest=-1)], "x"))
    assert not good(summarise([broken])) and "DIFFERENT" in plain(tables_of(summarise([broken]), "slices")[0])


def test_failed_rows_have_their_line() -> None:
    rows = [as_row(name, {"error": "gone"}) for name in ("alone_50_2ms", "inference_50_1ms", "change_30_70_2ms",
                                                         "calibrate_2ms")]  # fmt: skip
    shown = [plain(table) for table in tables_of(summarise(rows), "slices")]
    assert len(shown) == 4 and all("failed" in text for text in shown)


def test_other_commands_digests_stay_unchecked() -> None:
    rows = [row("launch", "launch_wall", "shm", digest=5, expected=5)]
    assert summarise(rows)[0].entries["shm"].verdict == "unchecked"


def test_plots() -> None:
    pytest.importorskip("matplotlib")
    against, over_time = slices_plots.slices(summarise(whole_run()))
    assert "pair, shm" in against and "pair, tcp" in against and "2ms" in against
    # Four panels: two pairs over time natively and over shm, one over tcp, the change.
    assert over_time.count("pair_30_70_2ms") == 2 and "change_30_70_2ms" in over_time
    assert slices_plots.slices([]) == []
    assert slices_plots.configured_steps(whole_run()[-2]) == [([0.0, 3.0, 5.0, 5.1], [30, 70, 30, 30])]


def scenarios(tmp_path: Path, device: str, full: bool = False, **more: Any) -> list[slices.Scenario]:
    return slices.scenarios(Ground(Options(device, tmp_path, full=full, **more)))


def test_the_quick_grid_is_what_decides(tmp_path: Path) -> None:
    found = {(one.name, one.place) for one in scenarios(tmp_path, "nvidia")}
    wanted = {f"alone_{ratio}_{kernel}ms" for ratio in (30, 50, 90) for kernel in ("0.2", "2", "10")}
    wanted |= {"alone_50_graph_10x0.2ms", "pair_30_70_2ms", "pair_50_50_2ms", "four_25_2ms", "change_30_70_2ms",
               "elastic_30_2ms", "elastic_10_30_2ms", "elastic_30_70_2ms",
               "inference_50_1ms", "inference_50_1ms_beside_2ms", "overhead_saturated",
               "overhead_launch_rate"}  # fmt: skip
    assert {name for name, place in found if place == "shm"} == wanted
    assert ("pair_30_70_2ms", "tcp") in found and ("native_pair_2ms", NATIVE) in found
    assert len(found) == len(scenarios(tmp_path, "nvidia"))


def test_elastic_tenants_are_to_have_what_others_leave() -> None:
    assert Tenant(Item(2.0), 30).promised == 30
    assert Tenant(Item(2.0), 30, elastic=75).promised == 75
    assert Tenant(Item(2.0)).promised is None


def test_the_quick_grid_fits_eight_minutes(tmp_path: Path) -> None:
    found = scenarios(tmp_path, "nvidia")
    items = {item for one in found for item in one.items}
    # A calibration is nine loops of 0.3 s and one of 1.5 s; to attach and to load take a tenant about a second.
    seconds = 5 * len(items)
    for one in found:
        times, _, each = one.settings.rpartition(" times ")
        seconds += 14 if not times else 2 * int(times) * (6 if each.endswith(" s") else 4)
    assert seconds < 8 * 60


def test_the_full_grid(tmp_path: Path) -> None:
    found = {one.name for one in scenarios(tmp_path, "nvidia", full=True)}
    assert {"alone_10_50ms", "alone_70_0.2ms", "three_20_30_40_0.2ms_2ms_10ms"} <= found
    assert {one.settings for one in scenarios(tmp_path, "nvidia", full=True) if one.name.startswith("alone")} == {
        "31 s"
    }


def test_rows_can_be_chosen_and_bring_their_calibration(tmp_path: Path) -> None:
    options = Options("softgpu", tmp_path, rows=("alone_50_10ms",), places=("shm",))
    cells = [cell for task in slices.plan(Ground(options), 2) for cell in task.cells]
    assert [cell.row for cell in cells] == ["calibrate_10ms", "alone_50_10ms", "alone_50_10ms"]
    with pytest.raises(Unknown, match=re.escape("alone_50_10ms")):
        slices.plan(Ground(Options("softgpu", tmp_path, rows=("alone_51_10ms",))), 1)


def test_nothing_is_measured_without_a_ruler(tmp_path: Path) -> None:
    ground = Ground(Options("softgpu", tmp_path))
    with pytest.raises(TaskError, match="no ruler"):
        ruler(ground, Item(2.0))
    record = {**calibration_cell(Item(2.0)).record(), "run": {}, "value": 2.5, "iterations": 9, "digest": 4}
    Store(tmp_path).add(record)
    assert ruler(ground, Item(2.0)) == Ruler(9, 2.5, 4)


def test_requests_come_at_the_rate_of_their_load(tmp_path: Path) -> None:
    with Ground(Options("softgpu", tmp_path)) as ground:
        saturating = command_of(ground, Tenant(Item(0.2, 10), 50), BURN, 12, 1)
        requests = command_of(ground, Tenant(Item(1.0), 50, load=0.25), BURN, 12, 1)
    assert saturating[1:] == ["saturate", "1000", "10", "1", "32", "12", "5"]
    # A quarter of the time with items of 2 ms: 125 a second.
    assert requests[1:] == ["request", "1000", "0", "1", "32", "12", "125", "1"]


def test_tenants_share_a_clock() -> None:
    told = as_told(Tenant(Item(2.0), 50), BURN, {"began": 101.5, "done_us": [250000], "digest": 77}, 101.0, 4.0)
    assert told.done_s == [0.75] and told.until_s == 4.5 and told.first_s == 101.0


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program("slice_probe", tmp_path_factory.mktemp("probe"))


def run_probe(probe: Path, *arguments: str, status: int = 0) -> Any:
    environment = {"LD_LIBRARY_PATH": str(libraries.softgpu_folder()), "SOFTGPU_THREADS": "1"}
    done = subprocess.run([str(probe), *arguments], env=environment, input="go\n", capture_output=True, text=True,
                          timeout=60)  # fmt: skip
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) if status == 0 else done.stderr


@pytest.mark.parametrize("graph", ["0", "5"])
def test_each_kernel_of_the_probe_computes_the_same(probe: Path, graph: str) -> None:
    told = run_probe(probe, "saturate", "200", graph, "1", "32", "0.2", "4")
    again = run_probe(probe, "request", "200", graph, "1", "32", "0.2", "100", "7")
    other = run_probe(probe, "saturate", "201", graph, "1", "32", "0.2", "4")
    assert told["digest"] == again["digest"] > 0 and other["digest"] not in (told["digest"], -1)
    assert told["done_us"] == sorted(told["done_us"]) and len(told["done_us"]) > 4
    assert len(again["latency_us"]) == len(again["done_us"]) and min(again["latency_us"]) > 0


def test_a_seed_means_the_same_arrivals(probe: Path) -> None:
    def arrivals(seed: str) -> list[int]:
        told = run_probe(probe, "request", "10", "0", "1", "32", "0.5", "60", seed)
        # Both are rounded to a microsecond.
        return [round((end - took) / 10) for end, took in zip(told["done_us"], told["latency_us"])]

    first, again, other = arrivals("3"), arrivals("3"), arrivals("4")
    assert all(abs(a - b) <= 1 for a, b in zip(first, again, strict=True)) and first != other
    assert len(first) > 10


def test_the_probe_calibrates(probe: Path) -> None:
    told = run_probe(probe, "calibrate", "2", "0", "1", "32", "5")
    assert told["iterations"] > 1 and told["alone_ms"] > 0 and told["digest"] > 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["calibrate", "0", "0", "1", "32", "4"],
        ["calibrate", "2", "0", "1", "32"],
        ["saturate", "0", "0", "1", "32", "1", "4"],
        ["saturate", "10", "0", "1", "32", "1", "65"],
        ["saturate", "10", "0", "1", "2048", "1", "4"],
        ["request", "10", "0", "1", "32", "1", "0", "1"],
        ["pigeon", "10", "0", "1", "32", "1", "1", "1"],
    ],
)
def test_the_probe_refuses(probe: Path, arguments: list[str]) -> None:
    assert "usage" in run_probe(probe, *arguments, status=2)


def test_a_pair_of_native_tenants(tmp_path: Path) -> None:
    with Ground(Options("softgpu", tmp_path)) as ground:
        Store(tmp_path).add(
            {**calibration_cell(Item(2.0)).record(), "run": {}, "value": 1.0, "iterations": 100, "digest": 4}
        )
        told = run_tenants(ground, native(ground), NATIVE, [Tenant(Item(2.0))] * 2, 0.5)
    assert len(told) == 2 and all(one.done_s and one.digest > 0 for one in told)
    # The digest is not the ruler's: of such rows the summary says so.
    found = slices.digests(told)
    assert found["digest"] != found["expected"] == "4"


def test_a_tenant_that_cannot_start_fails_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ground(Options("softgpu", tmp_path)) as ground:
        Store(tmp_path).add(
            {**calibration_cell(Item(2.0)).record(), "run": {}, "value": 1.0, "iterations": 100, "digest": 4}
        )
        monkeypatch.setattr("benchmarks.bench.slices_tenants.SHAPES", {"softgpu": ("1", "0")})
        with pytest.raises(TaskError, match="ended with 2"):
            run_tenants(ground, native(ground), NATIVE, [Tenant(Item(2.0))] * 2, 0.5)


def test_kinds_of_lines() -> None:
    kinds = {line.name: slices_tables.kind_of(line) for line in summarise(whole_run())}
    assert kinds["native_pair_2ms"] == "shares" and kinds["calibrate_2ms"] == "ruler"
    assert kinds["change_30_70_2ms"] == "change" and kinds["inference_50_1ms"] == "requests"
