"""The driver-API rows through the whole stack on softgpu: the digests are those of a native H100 run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.rows import NATIVE_DIGESTS, ROWS
from benchmarks.servers import client_environment, server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server("softgpu", log=tmp_path_factory.mktemp("server") / "server.log") as where:
        yield where


def test_every_row_has_a_native_digest() -> None:
    assert NATIVE_DIGESTS.keys() == ROWS.keys()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("name", list(ROWS))
def test_row_has_the_native_digest(address: str, name: str, transport: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.rows", name],
        env=client_environment(address, transport),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["digest"] == NATIVE_DIGESTS[name]
    assert row["device"].startswith("softgpu")
    assert row["clean"]
