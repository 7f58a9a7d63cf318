"""Unmodified CuPy on the test build of the client and a softgpu that records: it and NVIDIA's libraries below it find
every function and table that they ask for. What they compute needs a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.frameworks.conftest import CallsCheck

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_every_call_finds_what_it_asks_for(
    jax_python: Path, check_calls: CallsCheck, tmp_path: Path, transport: str
) -> None:
    check_calls(jax_python, "cupy_calls.py", ORION_TRANSPORT=transport, CUPY_CACHE_DIR=str(tmp_path))
