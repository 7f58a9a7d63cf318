"""The table of attach stages: made of runs by hand, and of real processes on softgpu."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import attach_stages


def remote(total_ms: float, bind_us: int, warm: bool) -> dict[str, Any]:
    server = {
        "address": "127.0.0.1:1",
        "transport": "shm",
        "warm": warm,
        "stages_ns": {"connect": 1_000_000, "bind": bind_us * 1000},
        "server_ns": {"worker": 10_000},
    }
    function = {"calls": 1, "waits": 1, "total_ns": 2_000_000, "first_at_ns": 9_000_000}
    return {
        "ms": {"start": 1.0, "total": total_ms},
        "attach": {"config_ns": 100_000, "total_ns": 5_000_000, "servers": [server]},
        "images": {"known_bytes": 5, "uploaded_bytes": 0, "small_bytes": 7, "hash_ns": 0},
        "functions": {"cuMemAlloc_v2": function},
    }


def test_medians_and_fractions() -> None:
    shm = attach_stages.summary(
        [remote(20.0, 300, True), remote(40.0, 100, False), remote(30.0, 200, True), {"error": "exit 1", "tail": ""}]
    )
    native = attach_stages.summary([{"ms": {"start": 1.0, "total": 60.0}}])
    assert (shm["runs"], shm["failed"]) == (3, 1)
    assert shm["ms"]["total"] == 30.0
    assert (shm["attach"]["attach: bind"], shm["attach"]["cold workers"]) == (0.2, 1.0)
    text = attach_stages.render("driver", {"native": native, "shm": shm})
    assert "fraction of native (total): shm 2.00" in text
    assert "cuMemAlloc_v2" in text
    assert "shm: 3 runs, 1 failed" in text


@pytest.mark.parametrize("place", ["shm", "tcp"])
def test_every_stage_is_there(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "softgpu", "--runs", "1", "--gap", "0", "--places", place, "--out", str(tmp_path)]
    assert attach_stages.main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["results"]
    assert set(told) == {"driver", "driver-lazy"}
    for by_place in told.values():
        one = by_place[place]
        assert {"start", "cuInit", "module", "kernel", "read", "total", "exit"} <= set(one["ms"])
        assert {"attach: connect", "attach: bind", "  server: worker", "  server: register"} <= set(one["attach"])
        assert "cuLaunchKernel" in one["functions"]
    # A worker with the driver's own defaults is ready or starting: nothing of the client's variables makes a cold one.
    assert "attach took" in (tmp_path / "server.log").read_text()
    assert (tmp_path / "attach.json").is_file()
