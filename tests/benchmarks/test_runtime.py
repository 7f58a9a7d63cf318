"""The comparison of runtime programs, and that nvcc takes their sources (where there is one)."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.places import Outcome
from benchmarks.runtime_session import DELIBERATE, VARIANTS, Run, build, find_nvcc
from benchmarks.sections import Section, listed

SECTIONS = [Section("one"), Section("two")]


def run(text: str, code: int | None = 0) -> Run:
    taken = Run()
    taken.take(SECTIONS, Outcome(code, text, "", 1.0))
    return taken


def test_equal_output_has_no_difference() -> None:
    assert (
        run("-- one\na 1\n-- two\nb 2\nfailures 0\n").differences(run("-- one\na 1\n-- two\nb 2\nfailures 0\n")) == {}
    )


def test_each_changed_missing_and_added_line_is_told() -> None:
    native = run("-- one\na 1\na 2\n-- two\nb 2\n")
    assert run("-- one\na 1\na 3\n-- two\nb 2\n").differences(native) == {"one": ["- a 2", "+ a 3"]}
    assert run("-- one\na 1\n-- two\nb 2\nc 3\n").differences(native) == {"one": ["- a 2"], "two": ["+ c 3"]}


def test_a_broken_promise_or_a_crash_is_a_failure() -> None:
    assert run("-- two\nFAIL line 3 b: expected 1, got 2\n", 1).failed == {"two": ["FAIL line 3 b: expected 1, got 2"]}
    assert "no end in" in run("-- one\n", None).failed["one"][0]


def test_only_deliberate_differences_are_excused_and_only_where_they_belong() -> None:
    native = run("-- one\nattribute.110 1\nattribute.89 1\nattribute.111 1\n-- two\nb 2\n")
    there = run("-- one\nattribute.110 0\nattribute.89 0\nattribute.111 0\n-- two\nb 2\n")
    shm, tcp = there.record(native, "shm"), there.record(native, "tcp")
    assert shm["deliberate"] == {"attribute.110": DELIBERATE["attribute.110"][2]}
    assert shm["different"] == {
        "one": ["- attribute.89 1", "+ attribute.89 0", "- attribute.111 1", "+ attribute.111 0"]
    }
    assert tcp["deliberate"].keys() == {"attribute.110", "attribute.89"}
    assert tcp["different"] == {"one": ["- attribute.111 1", "+ attribute.111 0"]}


def test_another_value_a_missing_line_or_an_equal_one_is_not_deliberate() -> None:
    native = run("-- one\nattribute.110 1\nattribute.113 0\n")
    for text in ("-- one\nattribute.110 2\nattribute.113 0\n", "-- one\nattribute.113 0\n"):
        record = run(text).record(native, "tcp")
        assert record["deliberate"] == {} and "- attribute.110 1" in record["different"]["one"]
    assert all(reason for _, _, reason in DELIBERATE.values())


@pytest.mark.slow
@pytest.mark.skipif(find_nvcc() is None, reason="no nvcc")
def test_every_variant_builds(tmp_path: Path) -> None:
    programs = build(tmp_path, list(VARIANTS))
    assert programs.keys() == VARIANTS.keys()
    names = {variant: [section.name for section in listed(program)] for variant, program in programs.items()}
    assert set(names["rdc"]) - set(names["static"]) == {"linked"}
    assert names["static"] == names["shared"] == names["per_thread"] == names["ptx"]
