"""Faults and forks: natively, then through Orion."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.semantics.conftest import PLACES, ROOT, Environment, Run
from tests.semantics.programs import errors


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("program", errors.PROGRAMS, ids=lambda program: program.__name__)
def test_errors(run: Run, program: Callable[..., None], place: str) -> None:
    done = run(place, "errors", program.__name__)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("place", ["shm", "tcp"])
def test_culprit_is_told_at_once(run: Run, place: str) -> None:
    done = run(place, "errors", "waiting_calls_tell_the_culprit", ORION_SYNC="1")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("place", PLACES)
def test_other_clients_are_untouched_by_a_fault(run: Run, environment: Environment, place: str) -> None:
    command = [sys.executable, "-m", "tests.semantics.programs", "errors", "bystander"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(place), cwd=ROOT, text=True, **pipes) as other:  # type: ignore[call-overload]
        assert other.stdout.readline() == "ready\n"
        for _ in range(2):
            assert run(place, "errors", "fault_is_told_by_every_later_call").returncode == 0
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == "good\n"
        other.stdin.close()
        assert other.wait(30) == 0
