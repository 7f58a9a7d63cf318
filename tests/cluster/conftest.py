"""One cluster of two nodes for all tests here, with the images that they run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.machine import check_host

ROOT = Path(__file__).resolve().parents[2]


def _tool(*command: str | Path) -> list[Path]:
    """Runs a script of tools/; the folders or files that it prints. What it says passes to the terminal."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False
    )
    if done.returncode != 0:
        pytest.fail(f"{command[0]} failed (exit {done.returncode}); what it said is above", pytrace=False)
    return [Path(line) for line in done.stdout.split()]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    folder = tmp_path_factory.mktemp("images")
    # For work on the tests themselves: a wheel that was built before.
    wheel = os.environ.get("ORION_TEST_WHEEL")
    yield _tool("tools/build_test_images.py", folder, *(["--wheel", wheel] if wheel else []))
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def cluster(images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    try:
        check_host()
    except RuntimeError as error:
        pytest.fail(str(error), pytrace=False)
    commands, tools, kubernetes = _tool("tools/build_kubernetes.py")
    work = tmp_path_factory.mktemp("cluster")
    made = Cluster(work, tools=tools / "root", programs=kubernetes / "bin", commands=commands, nodes=2)
    try:
        for archive in images:
            made.import_image(archive)
        yield made
    finally:
        made.stop()
        # Gigabytes of unpacked images; the logs are in the message of a test that failed.
        shutil.rmtree(work)
