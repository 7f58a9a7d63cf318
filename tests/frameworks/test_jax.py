"""Unmodified JAX on the test build of the client and a softgpu that records: XLA and NVIDIA's libraries below it find
every function and table that they ask for. What they compute needs a GPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.frameworks.conftest import CallsCheck
from tests.runtime.tools import HERE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def device_node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JAX looks for /dev/nvidiactl before it asks the driver. docs/limits.md has users create the file; a test writes
    nothing into /dev, and shows it to this one program."""
    library = tmp_path_factory.mktemp("node") / "device_node.so"
    source = HERE.parent / "frameworks" / "device_node.c"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", str(source), "-o", str(library), "-ldl"], check=True)
    return library


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_every_call_finds_what_it_asks_for(
    jax_python: Path, check_calls: CallsCheck, device_node: Path, transport: str
) -> None:
    # Its check of versions asks CUPTI, which is not there (docs/limits.md). Tuning compares what kernels computed.
    check_calls(
        jax_python,
        "jax_calls.py",
        ORION_TRANSPORT=transport,
        LD_PRELOAD=str(device_node),
        JAX_PLATFORMS="cuda",
        JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1",
        XLA_FLAGS="--xla_gpu_autotune_level=0",
        XLA_PYTHON_CLIENT_MEM_FRACTION="0.2",
    )
