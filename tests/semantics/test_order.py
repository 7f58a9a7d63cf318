"""Records, waits and the order between streams: natively, then through Orion."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.semantics.conftest import PLACES, Run
from tests.semantics.programs import order


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("program", order.PROGRAMS, ids=lambda program: program.__name__)
def test_order(run: Run, program: Callable[..., None], place: str) -> None:
    done = run(place, "order", program.__name__)
    assert done.returncode == 0, done.stdout + done.stderr
