"""What becomes of the output of an area program."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.area_session import Result, main
from benchmarks.places import Outcome
from benchmarks.sections import Section, outcomes

SECTIONS = [Section("one"), Section("two")]
OUTPUT = "-- one\nok 1 a\nnote 2 x = 3\n-- two\nok 3 b\nFAIL 4 c: expected 1, got 2\n"


def test_failures_belong_to_their_section() -> None:
    result = Result()
    result.take(SECTIONS, Outcome(1, OUTPUT, "", 0.5))
    assert result.checks == 3
    assert result.failed == {"two": ["FAIL 4 c: expected 1, got 2"]}
    assert result.notes == ["one: 2 x = 3"]


def test_a_crash_is_a_failure_where_it_happened() -> None:
    result = Result()
    result.take(SECTIONS, Outcome(-11, "-- one\nok 1 a\n", "the end", 0.5))
    assert list(result.failed) == ["one"]
    assert "exit -11" in result.failed["one"][0] and "the end" in result.failed["one"][0]


def test_only_notes_that_differ_from_native_are_kept() -> None:
    native, other = Result(notes=["a: 1 x = 1", "a: 2 y = 2"]), Result(notes=["a: 1 x = 1", "a: 2 y = 3"])
    assert native.record(None)["notes"] == native.notes
    assert other.record(native)["notes_not_native"] == ["a: 2 y = 3"]
    assert "notes_not_native" not in native.record(native)


def test_the_driver_api_program_through_the_shim(tmp_path: Path) -> None:
    assert main(["--device", "softgpu", "--out", str(tmp_path), "--only", "driver_api", "--places", "shm,tcp"]) == 0
    kept = json.loads((tmp_path / "areas.json").read_text())["programs"]["driver_api"]
    assert kept["shm"]["checks"] == kept["tcp"]["checks"] > 1000
    assert kept["shm"]["failures"] == kept["tcp"]["failures"] == 0


def test_a_crash_is_looked_for_section_by_section() -> None:
    sections = [*SECTIONS, Section("end", frozenset({"last"}))]
    seen: list[list[str]] = []

    def run(names: list[str]) -> Outcome:
        seen.append(names)
        return Outcome(-11 if "two" in names else 0, "", "", 0.1)

    ran = [(section.name, outcome.code) for chosen, outcome in outcomes(sections, run, False) for section in chosen]
    assert seen == [["one", "two"], ["one"], ["two"], ["end"]]
    assert ran == [("one", 0), ("two", -11), ("end", 0)]
