"""`orion-bench` measures, on softgpu: small rows through the whole stack, and Ctrl-C in the middle of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench.store import read_rows

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(300)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.cli", *arguments, "--device", "softgpu"]


def bench(*arguments: str, status: int = 0) -> tuple[Any, str]:
    """The JSON that it prints, and what it says."""
    done = subprocess.run(command(*arguments, "--json"), cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout), done.stderr


def test_latency(tmp_path: Path) -> None:
    told, said = bench("latency", "--repeats", "1", "--out", str(tmp_path))
    assert told["good"] and told["run"]["device"] == "softgpu" and "no GPU timings" in " ".join(said.split())
    rows = {line["row"]: line["places"] for line in told["rows"]}
    for name in ("launch_and_sync", "copy_d2h_4b", "event_query", "stream_query", "reply"):
        assert {place: kept["digest"] for place, kept in rows[name].items()} == dict.fromkeys(
            ("native", "shm", "tcp"), "same"
        )
        assert rows[name]["tcp"]["fraction_of_native"]["median"] > 0
    assert rows["reply"]["tcp"]["floors"].keys() == {"bare TCP"} and rows["reply"]["shm"]["floors"].keys() == {
        "bare shm"
    }
    assert rows["tcp_rtt"]["bare"]["value"]["median"] > 0
    saved = (tmp_path / "rows.jsonl").read_bytes()
    # Again: everything is there, no server is started, nothing is added.
    assert bench("latency", "--repeats", "1", "--out", str(tmp_path))[0] == told
    assert (tmp_path / "rows.jsonl").read_bytes() == saved


def test_copy(tmp_path: Path) -> None:
    told, _ = bench("copy", "--sizes", "4,64k", "--seconds", "0.2", "--repeats", "1", "--out", str(tmp_path))
    places = {line["row"]: line["places"] for line in told["rows"]}
    assert told["good"] and len([name for name in places if "@" in name]) == 8
    digests = {
        place["digests"][0] for name, line in places.items() if name.endswith("@65536") for place in line.values()
    }
    assert len(digests) == 1
    assert all(places[name]["bare"]["value"]["median"] > 0 for name in ("tcp_1_fixed", "tcp_4_cycling"))


def test_two_clients_and_launches_and_attaches(tmp_path: Path) -> None:
    few = ["--repeats", "1", "--out", str(tmp_path)]
    told, _ = bench("scale", "--clients", "1,2", "--seconds", "0.1", *few)
    two = {line["row"]: line["places"] for line in told["rows"] if line["clients"] == 2}
    assert told["good"] and set(two) == {"launch_rate", "launch_fairness", "copy_h2d", "copy_d2h", "sync_under_load"}
    assert 0 <= two["launch_fairness"]["shm"]["value"]["median"] <= 1
    told, _ = bench("launch", "--transports", "native,shm", *few)
    rows = {line["row"]: line["places"] for line in told["rows"]}
    assert told["good"] and rows["launch_wall"]["shm"]["digest"] == "same"
    assert rows["null_launch_wall"]["shm"]["floors"].keys() == {"ring push"} and "native" not in rows["null_replay"]
    told, _ = bench("attach", "--transports", "native,shm", *few)
    rows = {line["row"]: line["places"] for line in told["rows"]}
    assert told["good"] and rows["attach_cold"]["shm"]["digests"] == rows["attach_warm"]["native"]["digests"] == ["42"]


def test_slices(tmp_path: Path) -> None:
    rows = ["native_pair_2ms", "pair_30_70_2ms", "inference_50_1ms", "overhead_launch_rate"]
    few = ["--rows", ",".join(rows), "--seconds", "1.5", "--out", str(tmp_path)]
    told, said = bench("slices", *few)
    places = {line["row"]: line["places"] for line in told["rows"]}
    assert told["good"] and "no GPU timings" in " ".join(said.split())
    assert set(places) == {*rows, "calibrate_2ms", "calibrate_1ms"}
    assert {where["digest"] for line in places.values() for where in line.values()} == {"same"}
    assert set(places["pair_30_70_2ms"]) == {"shm", "tcp"}
    (details,) = places["pair_30_70_2ms"]["shm"]["details"]
    assert [tenant["configured"] for tenant in details["tenants"]] == [30, 70]
    assert all(tenant["items"] > 0 for tenant in details["tenants"])
    assert places["inference_50_1ms"]["shm"]["details"][0]["requests"] > 0
    # Again, and nothing is measured: the ruler is the saved one.
    saved = (tmp_path / "rows.jsonl").read_bytes()
    assert bench("slices", *few)[0] == told and (tmp_path / "rows.jsonl").read_bytes() == saved


def test_a_ratio_changes_while_a_program_runs(tmp_path: Path) -> None:
    told, _ = bench("slices", "--rows", "change_30_70_2ms", "--transports", "shm", "--out", str(tmp_path))
    (change,) = [line["places"]["shm"] for line in told["rows"] if line["row"] == "change_30_70_2ms"]
    assert told["good"] and change["digest"] == "same"
    # Each of the two requests was answered; whether the share follows is for a machine with time to spare.
    assert len(change["details"][0]["answer_ms"]) == len(change["details"][0]["each"]) == 2


def test_a_row_that_cannot_end_is_a_failure(tmp_path: Path) -> None:
    told, said = bench("suite", "--rows", "launch_pipelined", "--transports", "native", "--timeout", "0.01", "--out",
                       str(tmp_path), status=1)  # fmt: skip
    assert not told["good"] and "no end in" in told["rows"][0]["places"]["native"]["error"]
    assert "WRONG: suite launch_pipelined over native failed" in said


def descendants(pid: int) -> set[int]:
    """Processes that `pid` started, with theirs."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            child = int(path.parent.name)
            found |= {child} | descendants(child)
    return found


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    arguments = command("copy", "--sizes", "4,64k", "--repeats", "50", "--out", str(tmp_path))
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Tests that a shell has started in the background were told to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    rows = tmp_path / "rows.jsonl"
    deadline = time.monotonic() + 120
    while not (rows.exists() and "@4" in rows.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    started = descendants(process.pid)
    assert started
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "with the same command" in " ".join(said.split()) and str(tmp_path) in said
    assert "orion-bench copy --sizes 4,64k --repeats 50" in said and "Traceback" not in said
    text = rows.read_text()
    assert text.endswith("\n") and len(list(read_rows(rows))) == len(text.splitlines())
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists() and os.path.exists(f"/proc/{pid}/exe")]
