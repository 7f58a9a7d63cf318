"""RDMA over real verbs: an emulated machine with soft-RoCE runs server, softgpu and clients (`make rdma`).

ORION_RDMA_CHECKS=server,rows runs these checks of guest.py alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from image import Image, boot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1100)]
BOOT_LIMIT_S = 1000
WANTED = os.environ.get("ORION_RDMA_CHECKS", "")
CHECKS = (
    "soft_roce", "perftest_am_lat", "perftest_am_bw", "server", "says_its_device", "rows", "server_says_it",
    "small_copies", "copies", "falls_back_to_tcp", "insists_on_ucx", "worker_vanishes_in_mid_copy",
    "client_vanishes_in_mid_copy", "server_ends", "direct", "registration_refused", "cuda_cannot_be_registered",
    "cuda_direct",
)  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What the machine printed, from its first line to DONE."""
    folder = tmp_path_factory.mktemp("rdma")
    image = Image(folder / "root")
    archive = image.make((Path(__file__).parent / "init.sh").read_text())
    log = folder / "console.log"
    try:
        yield boot(image.kernel, archive, log, BOOT_LIMIT_S, WANTED)
    except subprocess.TimeoutExpired:
        pytest.fail(f"the machine did not end in {BOOT_LIMIT_S} s; the end of what it printed:\n{end_of(log)}")
    finally:
        archive.unlink(missing_ok=True)


def end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-6000:]


def test_it_came_to_its_end(told: str) -> None:
    assert "\nDONE" in told.replace("\r", ""), told[-6000:]


@pytest.mark.parametrize("name", CHECKS)
def test_check(told: str, name: str) -> None:
    if WANTED and name not in WANTED.split(","):
        pytest.skip("not chosen by ORION_RDMA_CHECKS")
    lines = [line.strip() for line in told.splitlines() if line.startswith(f"CHECK {name} ")]
    assert lines == [f"CHECK {name} ok"], "\n".join(lines) + told[-8000:]


def test_measurements_are_there(told: str) -> None:
    rows = [json.loads(line[4:]) for line in told.splitlines() if line.startswith("ROW {")]
    assert WANTED or {"perftest_am_lat", "perftest_am_bw"} <= {row["name"] for row in rows}
    for row in rows:
        print(row)
    print(*(line.strip() for line in told.splitlines() if line.startswith("TOOK ")), sep="\n")
