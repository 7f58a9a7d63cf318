"""Hot calls take no more instructions in the client library than when they were last counted."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from benchmarks.instruction_counts import committed, complaints, count, per_call, self_costs

DUMP = """\
version: 1
positions: line
events: Ir
ob=(1) /somewhere/local_calls
fn=(1) run_launch
10 7
+1 3
cob=(2) /somewhere/libcuda.so.1
cfn=(2) cuLaunchKernel
calls=16 0
+1 1600
* 2

ob=(2)
fn=(2)
0 900
cob=(3) /lib/libc.so.6
cfn=(3) memcpy
calls=16 0
0 700
0 20

ob=(3)
fn=(3)
0 700
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="counted on x86-64")
@pytest.mark.timeout(150)
def test_hot_calls_take_the_instructions_that_are_committed() -> None:
    said = complaints(per_call(count()), committed())
    assert not said, "\n".join(said)


def test_a_call_that_has_grown_is_named_and_the_remedy_told() -> None:
    said = complaints({"launch": 130, "query": 119, "fresh": 1}, {"launch": 100, "query": 100, "gone": 10})
    assert len(said) == 3
    assert said[0].startswith("launch takes 130 instructions in the client library, 100 when last counted")
    assert said[1].startswith("gone is in") and said[2].startswith("fresh is counted")
    assert all("benchmarks.instruction_counts --update" in sentence for sentence in said)


def test_costs_are_those_of_each_function_itself_outside_the_measuring_program(tmp_path: Path) -> None:
    dump = tmp_path / "out"
    dump.write_text(DUMP)
    assert self_costs(dump) == {"cuLaunchKernel": 920, "memcpy": 700}
