"""The facts about launches on softgpu: every launch counted, and a driver that loses them found out; the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.launch_facts import text_of
from benchmarks.launch_model import MIXES, Costs, Mix, predict
from orion_client import libraries

ROOT = Path(__file__).resolve().parents[2]
COSTS = Costs(launch=4000, graph_node=800, updated_node=1000, built_node=3000, handed_over={1: 4000, 2: 2400, 4: 1600})


def facts(folder: Path, **environment: str) -> tuple[int, dict[str, Any]]:
    out = folder / "facts.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.launch_facts", "--out", str(out)],
        env={**os.environ, "LD_LIBRARY_PATH": str(libraries.softgpu_folder()), **environment},
        cwd=ROOT,
        timeout=120,
    )
    return done.returncode, json.loads(out.read_text())


def test_every_launch_is_counted(tmp_path: Path) -> None:
    code, told = facts(tmp_path)
    assert code == 0 and told["good"] and told["device"].startswith("softgpu")
    rows = {row["name"]: row for row in told["rows"]}
    assert all(row["whole"] for row in rows.values())
    # Three samples and two before them, of 16 launches each; the last one of eight threads.
    assert rows["launch_buffer_16"]["counted"] == 5 * 16
    assert rows["threads_8_handed_over"]["counted"] == rows["threads_8_own_context"]["counted"] == 5 * 8 * 16
    # Parameters do change: amounts are between 1 and 5, and 1 where nothing was updated.
    assert rows["graph_99_updated_0"]["counted"] == 5 * 99 < rows["graph_99_updated_100"]["counted"] <= 5 * 5 * 99
    assert told["digest"] == sum(row["counted"] for row in rows.values())
    assert [row["name"] for row in told["predictions"]] == [mix.name for mix in MIXES]
    assert "MISSING" not in text_of(told)


def test_a_driver_that_runs_nothing_is_found_out(tmp_path: Path) -> None:
    code, told = facts(tmp_path, SOFTGPU_RECORD="1")
    assert code == 1 and not told["good"] and told["digest"] == 0
    assert "LAUNCHES ARE MISSING" in text_of(told)


def test_a_program_that_the_engine_does_not_hold_up_gains_nothing() -> None:
    told = predict(Mix("client bound", launches=100, step_us=5000, waits=1), COSTS)
    assert told["engine_busy"] == 0.08 and told["best"] == "launches"
    # A graph would be cheaper to issue and still be slower: the device would start when the program has ended.
    assert told["engine_us"]["graph"] < told["engine_us"]["launches"]
    assert told["step_us"] == {"launches": 5000, "graph": 5080, "threads": 5000}


@pytest.mark.parametrize(
    ("mix", "best"),
    [
        (Mix("same again and again", launches=100, changed=0), "graph"),
        (Mix("other parameters each time", launches=100, changed=1), "graph"),
        (Mix("never the same", launches=100, repeated=0), "launches"),
        (Mix("never the same, four streams", launches=100, repeated=0, streams=4), "threads"),
        (Mix("two streams and a half", launches=100, repeated=0, streams=3), "threads"),
    ],
)
def test_where_the_engine_is_the_limit_the_cheapest_way_wins(mix: Mix, best: str) -> None:
    assert predict(mix, COSTS)["best"] == best


def test_updates_can_cost_more_than_launches() -> None:
    dear = Costs(launch=4000, graph_node=800, updated_node=5000, built_node=3000, handed_over={})
    assert predict(Mix("r", launches=100, changed=0.1), dear)["best"] == "graph"
    assert predict(Mix("r", launches=100, changed=1), dear)["best"] == "launches"
