"""Ratios point the right way, and nothing that is wrong can look right."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.bench.summary import Line, as_json, good, runs_of, summarise
from benchmarks.bench.tables import number, plain, size_text, tables_of
from tests.benchmarks.bench_rows import floor, row, whole_run


def one(rows: list[dict[str, Any]], name: str = "launch_and_sync") -> Line:
    return next(line for line in summarise(rows) if line.name == name)


@pytest.mark.parametrize(("better", "expected"), [("lower", 0.5), ("higher", 2.0)])
def test_a_larger_fraction_is_always_better(better: str, expected: float) -> None:
    line = one([row(value=10, better=better), row(place="shm", value=20, better=better)])
    fraction = line.entries["shm"].fraction
    assert fraction is not None and fraction.median == expected


def test_fractions_are_made_repeat_by_repeat() -> None:
    rows = [row(value=10), row(value=100, repeat=1), row(place="shm", value=20), row(place="shm", value=100, repeat=1)]
    fraction = one(rows).entries["shm"].fraction
    assert fraction is not None
    assert (fraction.low, fraction.median, fraction.high) == (0.5, 0.75, 1.0)


def test_a_repeat_without_its_native_row_is_no_fraction() -> None:
    line = one([row(value=10), row(place="shm", value=20), row(place="shm", value=1, repeat=1)])
    fraction = line.entries["shm"].fraction
    assert fraction is not None and fraction.low == fraction.high == 0.5


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        ({}, "same"),
        ({"digest": 8}, "DIFFERENT"),
        ({"clean": False}, "LOCAL GPU"),
        ({"exact": False, "rtol": 0.1, "digest": 7.5}, "DIFFERENT"),  # the native row decides how exact
    ],
)
def test_verdicts(other: dict[str, Any], verdict: str) -> None:
    lines = summarise([row(), row(place="shm", **other)])
    assert lines[0].entries["shm"].verdict == verdict
    assert good(lines) is (verdict == "same")
    assert (verdict in plain(tables_of(lines, "latency")[0])) is True


def test_one_wrong_digest_among_repeats_is_wrong() -> None:
    assert not good(summarise([row(), row(place="shm"), row(place="shm", repeat=1, digest=8)]))
    assert not good(summarise([row(), row(repeat=1, digest=8), row(place="shm")]))


def test_a_failed_row_is_told_and_not_good() -> None:
    failed = {"command": "latency", "row": "launch_and_sync", "place": "tcp", "repeat": 0, "error": "exit 1", "run": {}}
    lines = summarise([row(), failed])
    assert not good(lines) and lines[0].entries["tcp"].verdict == "failed"
    assert "tcp failed" in plain(tables_of(lines, "latency")[0])


def test_a_floor_that_failed_is_told_too() -> None:
    failed = {"command": "copy", "row": "tcp_1_fixed", "place": "bare", "repeat": 0, "error": "no gcc", "run": {}}
    lines = summarise([failed])
    assert not good(lines) and "failed" in plain(tables_of(lines, "copy")[0])


def test_without_native_a_known_digest_decides() -> None:
    assert one([row(place="shm", digest=4500)]).entries["shm"].verdict == "same"
    assert one([row(place="shm", digest=4501)]).entries["shm"].verdict == "DIFFERENT"


def test_without_native_and_known_digest_places_must_agree() -> None:
    name = "copy_h2d_pinned@64"
    assert one([row(name=name, place="shm")], name).entries["shm"].verdict == "unchecked"
    lines = summarise([row(name=name, place="shm"), row(name=name, place="tcp", digest=8)])
    assert not good(lines)


@pytest.mark.parametrize(("digest", "right"), [(0, True), (3, False)])
def test_a_crowd_counts_its_own_errors(digest: int, right: bool) -> None:
    rows = [row("scale", "launch_rate", place, digest=digest) for place in ("native", "shm")]
    assert good(summarise(rows)) is right


def test_lost_launches_are_wrong_even_when_native_lost_as_many() -> None:
    rows = [row("launch", "launch_wall", place, digest=9, expected=10) for place in ("native", "shm")]
    assert not good(summarise(rows))


def test_floors_are_those_of_the_command_and_the_transport() -> None:
    lines = summarise([row(), row(place="shm", value=5), row(place="tcp", value=100), floor("latency", "tcp_rtt", 20),
                       floor("latency", "shm_spin_rtt", 0.5), floor("launch", "tcp_rtt", 1)])  # fmt: skip
    entries = lines[0].entries
    assert entries["shm"].floors == [("bare shm", 10.0)] and entries["tcp"].floors == [("bare TCP", 5.0)]
    assert entries["native"].floors == []


def test_a_small_copy_is_not_held_against_bandwidth() -> None:
    rows = [row("copy", f"copy_h2d_pinned@{size}", "tcp", 2.5, unit="GB/s", better="higher") for size in (4, 1 << 20)]
    small, large = summarise([*rows, floor("copy", "tcp_1_cycling", 5, "GB/s", "higher")])[:2]
    assert small.entries["tcp"].floors == [] and large.entries["tcp"].floors == [("1 stream", 0.5)]


def test_an_emulated_network_is_a_place_of_its_own() -> None:
    line = next(line for line in summarise(whole_run()) if line.command == "network")
    assert list(line.entries) == ["native", "tcp", "25 us, 25 Gbit/s", "100 us, 25 Gbit/s", "1000 us, 25 Gbit/s",
                                  "100 us, 10 Gbit/s", "100 us, 100 Gbit/s"]  # fmt: skip
    slow = line.entries["1000 us, 25 Gbit/s"]
    assert slow.floors == [("the link", 1.02)] and slow.fraction and slow.fraction.median == pytest.approx(10 / 1020)


def test_scale_tells_the_ratio_to_one_client() -> None:
    rows = [row("scale", "launch_rate", place, 100.0 * n, better="higher", digest=0, clients=n)
            for n in (1, 4) for place in ("native", "shm")]  # fmt: skip
    shown = plain(tables_of(summarise(rows), "scale")[0]).splitlines()
    assert shown[2].split().count("client") == 2 and shown[-1].split().count("4.00") == 2


def test_every_command_has_its_table() -> None:
    lines = summarise(whole_run())
    words_of = {
        "latency": "2.5x bare TCP",
        "copy": "2.00 / 1.11",
        "suite": "waits, tcp",
        "network": "0.0098",
        "attach": "attach_warm",
        "launch": "launch_wall",
        "scale": "of 1 client",
    }
    for command, words in words_of.items():
        assert words in "\n".join(plain(table) for table in tables_of(lines, command)), command
    assert tables_of(lines, "nothing") == []


def test_runs_of_two_machines_are_kept_apart() -> None:
    other = row(run={**row()["run"], "boot": "two"}, when="2026-12-02T10:00:00Z")
    assert [len(rows) for _, rows in runs_of([other, row(), row(place="shm")])] == [2, 1]


def test_the_json_has_what_the_table_has() -> None:
    told = as_json(summarise([row(), row(place="shm", value=20)]))
    assert told[0]["places"]["shm"]["fraction_of_native"]["median"] == 0.5
    assert told[0]["places"]["shm"]["digests"] == ["7"] and told[0]["places"]["shm"]["digest"] == "same"


def test_numbers_are_short() -> None:
    assert [number(v) for v in (0.00123, 1.234, 12.34, 123.4, 1234.5, 1.5e6)] == [
        "0.00123", "1.23", "12.3", "123", "1234", "1.5 M"]  # fmt: skip
    assert [size_text(v) for v in (4, 1 << 16, 1 << 20, 3 << 20, 1 << 30)] == [
        "4 B", "64 KiB", "1 MiB", "3 MiB", "1 GiB"]  # fmt: skip
