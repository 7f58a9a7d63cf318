"""Unmodified PyTorch on the test build of the client and a softgpu that records: cuBLAS, cuDNN, cuFFT, cuSOLVER,
cuSPARSE and cuRAND find every function and table that they ask for. What they compute needs a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.frameworks.conftest import CallsCheck

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_every_call_finds_what_it_asks_for(torch_python: Path, check_calls: CallsCheck, transport: str) -> None:
    check_calls(torch_python, "torch_calls.py", ORION_TRANSPORT=transport)
