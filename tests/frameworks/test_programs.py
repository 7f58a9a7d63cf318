"""The framework programs of benchmarks.framework_session on the test build of the client and a softgpu that records:
each reaches its end over both transports. Whether their results are the native ones needs a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.framework_session import PROGRAMS, programs_in, told
from orion_client.private_server import PrivateServer
from tests.runtime.tools import run_program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("name", list(programs_in(PROGRAMS)))
def test_reaches_its_end(
    client_for_tests: Path,
    recording_server: PrivateServer,
    request: pytest.FixtureRequest,
    name: str,
    transport: str,
) -> None:
    python = request.getfixturevalue("torch_python" if name.startswith("torch_") else "jax_python")
    settings = {"ORION_TRANSPORT": transport, "ORION_REMOTE": "1", "TRITON_LIBCUDA_PATH": str(client_for_tests)}
    done = run_program(client_for_tests, recording_server, python, PROGRAMS / f"{name}.py", **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert told(done.stdout)["clean"]
