"""Copies, host functions, device memory and what blocks whom: natively, then through Orion."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.semantics.conftest import PLACES, Run
from tests.semantics.programs import memory


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("program", memory.PROGRAMS, ids=lambda program: program.__name__)
def test_memory(run: Run, program: Callable[..., None], place: str) -> None:
    done = run(place, "memory", program.__name__)
    assert done.returncode == 0, done.stdout + done.stderr
