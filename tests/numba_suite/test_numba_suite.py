"""A selection of numba-cuda's own suite, unmodified, through the client library, a worker and softgpu. `make numba`
runs all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
RUNNER = ROOT / "tools" / "numba_suite.py"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_selection_fails_where_the_list_says_so_and_nowhere_else() -> None:
    done = subprocess.run([sys.executable, str(RUNNER), "--selection"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


JUDGED = """
import sys
sys.path.insert(0, "tools")
import numba_suite
numba_suite.expected_failures = lambda: {"a.t::known": "reason", "b.t::elsewhere": "reason"}
outcomes = dict(pair.split("=") for pair in sys.argv[1:])
sys.exit(numba_suite.judge(outcomes, {"a.t"}))
"""


@pytest.mark.parametrize(
    "outcomes, code, line",
    [
        (["a.t::x=passed", "a.t::known=failed"], 0, "1 passed, 1 failed, 0 skipped"),
        (["a.t::x=failed", "a.t::known=failed"], 1, "fails, and expected.toml does not say so: a.t::x"),
        (["a.t::x=passed", "a.t::known=passed"], 1, "passes: take it out of expected.toml: a.t::known"),
        (["a.t::x=passed"], 1, "in expected.toml, but there is no such test: a.t::known"),
        (["a.t::x=passed", "a.t::known=skipped"], 0, "1 passed, 0 failed, 1 skipped"),
    ],
)
def test_the_list_must_be_right_in_both_directions(outcomes: list[str], code: int, line: str) -> None:
    done = subprocess.run([sys.executable, "-c", JUDGED, *outcomes], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code, done.stderr
    assert line in done.stdout
