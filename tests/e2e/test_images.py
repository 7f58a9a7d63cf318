"""Images travel once: the server keeps them, and a later client of the same program uploads nothing."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orion_client.control_client import stats
from orion_client.private_server import PrivateServer
from wire.control import ImageStats

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]

# The section loads images of 33 KiB, 1 MiB, 4 MiB + 1 and 24 MiB, each one twice; a smaller one goes by another way.
SECTION = "large_images"
IMAGES, LOADS = 4, 8
SMALL_BELOW = 32 << 10
IMAGE_BYTES = (33 << 10) + (1 << 20) + (4 << 20) + 1 + (24 << 20)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("images") / "image_api"
    source = ROOT / "tests" / "programs" / "image_api.c"
    command = ["gcc", "-std=gnu11", f"-I{ROOT / 'wire' / 'include'}", str(source), "-o", str(made), "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return str(made)


@pytest.fixture
def small_cache() -> Iterator[PrivateServer]:
    with PrivateServer("softgpu", extra=("--image-cache-mib", "8")) as running:
        yield running


def settled(server: str, uploads: int) -> ImageStats:
    """The counters once that many uploads have been hashed: the program does not wait for it."""
    deadline_s = time.monotonic() + 20
    while True:
        images = stats(server).images
        assert images is not None
        if images.uploads >= uploads or time.monotonic() > deadline_s:
            return images
        time.sleep(0.05)


def test_a_second_run_uploads_nothing(own_server: PrivateServer, transport: str, program: str, run: Run) -> None:
    first = run(own_server.address, transport, program, SECTION)
    assert first.returncode == 0, first.stdout[-500:] + first.stderr
    before = settled(own_server.address, IMAGES)
    assert (before.uploads, before.uploaded_bytes, before.misses) == (IMAGES, IMAGE_BYTES, IMAGES)
    assert (before.count, before.size_bytes, before.hits) == (IMAGES, IMAGE_BYTES, LOADS - IMAGES)
    second = run(own_server.address, transport, program, SECTION)
    assert second.returncode == 0, second.stdout[-500:] + second.stderr
    after = settled(own_server.address, IMAGES)
    assert (after.uploads, after.misses, after.refused_proofs) == (before.uploads, before.misses, 0)
    assert after.hits == before.hits + LOADS


def test_the_client_tells_what_it_sent(
    own_server: PrivateServer, transport: str, program: str, run: Run, tmp_path: Path
) -> None:
    told = []
    for number in range(2):
        file = tmp_path / str(number)
        assert run(own_server.address, transport, program, SECTION, ORION_STATS=f"json:{file}").returncode == 0
        settled(own_server.address, IMAGES)
        told.append(json.loads(file.read_text())["images"])
    first, second = told
    assert (first["uploaded"], first["uploaded_bytes"]) == (IMAGES, IMAGE_BYTES)
    assert (first["known"], first["known_bytes"]) == (LOADS - IMAGES, IMAGE_BYTES)
    assert (second["uploaded"], second["uploaded_bytes"]) == (0, 0)
    assert (second["known"], second["known_bytes"]) == (LOADS, 2 * IMAGE_BYTES)
    assert first["small"] == second["small"] >= 1
    assert 0 < second["small_bytes"] < SMALL_BELOW * second["small"]
    assert min(first["hash_ns"], second["hash_ns"]) > 0


def test_the_bound_holds(small_cache: PrivateServer, program: str, run: Run) -> None:
    for _ in range(2):
        done = run(small_cache.address, "shm", program, SECTION)
        assert done.returncode == 0, done.stdout[-500:] + done.stderr
        images = settled(small_cache.address, IMAGES - 1)
        assert images.bound_bytes == 8 << 20
        assert images.size_bytes == IMAGE_BYTES - (24 << 20)
        assert images.count == IMAGES - 1
