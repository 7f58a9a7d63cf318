"""A worker whose UCX has CUDA support: its modules run on softgpu, which is a libcuda. Over UCX's tcp, where copies may
not go straight: the client's UCX has no CUDA, and would lose the session (docs/rdma.md). And a client whose UCX is of
another release, Debian's."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.places import Places
from benchmarks.rows import NATIVE_DIGESTS
from benchmarks.ucx_session import Way, check_bytes_and_order, run, run_rows, ways

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ucx_folder() -> Iterator[Path]:
    # Where workers, which have uids of their own, may read it.
    with tempfile.TemporaryDirectory(prefix="orion-ucx-cuda-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        command = [sys.executable, str(ROOT / "tools" / "fetch_ucx.py"), "--softgpu", "--copy-to", str(folder)]
        subprocess.run(command, check=True, timeout=600)
        yield folder


@pytest.fixture(params=["ucx", "ucx_without_cuda"])
def way(request: pytest.FixtureRequest, ucx_folder: Path) -> Way:
    return next(way for way in ways(ucx_folder, ucx_folder) if way.name == request.param)


@pytest.fixture
def places(way: Way, tmp_path: Path) -> Iterator[Places]:
    with Places("softgpu", (way.place,), tmp_path / "server.log", ("--log-level", "info"), way.server) as running:
        yield running


@pytest.mark.timeout(600)
def test_copies(way: Way, places: Places, tmp_path: Path) -> None:
    assert check_bytes_and_order(places, way) == ""
    names = ["copy_h2d_pinned", "copy_d2h_pageable", "copy_bounce_pinned"]
    rows = run_rows(places, way, names, 240)
    assert {name: rows[name].get("digest") for name in names} == {name: NATIVE_DIGESTS[name] for name in names}, rows
    log = (tmp_path / "server.log").read_text()
    assert way.says in log, log
    # Whether it has CUDA support is UCX's word: it warns of a transport that was asked for and is not there.
    assert "is not available" not in log, log
    assert places.restarts == 0


@pytest.mark.parametrize("way", ["ucx_without_cuda"], indirect=True)
def test_another_release_is_not_tried(way: Way, places: Places) -> None:
    """The client's is the system's, of 1.21 or before."""
    theirs = {name: value for name, value in way.client.items() if name != "ORION_UCX_TEST_LIBRARIES"}
    row = ["-m", "benchmarks.rows", "copy_h2d_pinned@1048576"]
    outcome = run(places, replace(way, client=theirs), row, 60)
    assert not outcome.good
    assert re.search(r"the worker's UCX is 1\.22 and this one 1\.\d+: both need the same release", outcome.stderr), (
        outcome
    )
