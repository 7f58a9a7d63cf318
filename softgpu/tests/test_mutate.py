"""The mutation check of the handlers (softgpu/tests/mutate.py) can tell, and finds nothing new in a sample."""

from __future__ import annotations

import time

import pytest

from softgpu.tests import mutate

SOURCE = """int pick(int a, int b) {
  if (a < b) return a + 1;
  return b;
}
void build(Decoder& d) {
  int n = a + b;
}
"""


def test_mutants_stand_in_handlers_only_and_keep_the_lines() -> None:
    mutants = mutate.mutants_of("x.cc", SOURCE)
    becomes = {m.becomes for m in mutants}
    assert {"if (a <= b) return a + 1;", "if (!(a < b)) return a + 1;", "if (a < b) return a - 1;"} <= becomes
    assert all(m.line == 1 for m in mutants)
    for i, m in enumerate(mutants):
        m.number = i
    text = mutate.instrument(SOURCE, mutants)
    assert text.count("SG_MUTANT(") == len(mutants) and text.count("\n") == SOURCE.count("\n")


def test_accepted_survivors_have_reasons_and_exist() -> None:
    """A line that has changed is no longer accepted."""
    exist = set()
    for file in mutate.FILES:
        text = (mutate.SOURCES / "vm" / file).read_text()
        exist |= {(m.file, m.original, m.becomes) for m in mutate.mutants_of(file, text)}
    for key, reason in mutate.accepted().items():
        assert key in exist, f"mutants.toml: no such mutant any more: {key}"
        assert len(reason) > 10, key


@pytest.mark.slow
def test_a_sample_of_mutants_turns_a_case_red() -> None:
    """Another file and other mutants each day."""
    day = int(time.time()) // 86400
    files = [f for f in mutate.FILES if f.endswith(".cc")]
    fates, sentence = mutate.check([files[day % len(files)]], 150, day, 25.0)
    survivors = [f"{m.file}:{m.line + 1}: {m.original} -> {m.becomes}" for m in fates["survived"]]
    assert not survivors, f"{sentence}: " + "; ".join(survivors)
    assert fates["killed"]
