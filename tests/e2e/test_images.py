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

# The section loads images of 31 and 33 KiB, 1 MiB, 4 MiB + 1 and 24 MiB, each one twice. Small ones go with their load.
SECTION = "large_images"
SIZES = (31 << 10, 33 << 10, 1 << 20, (4 << 20) + 1, 24 << 20)
SMALL_BELOW = {"shm": 4 << 20, "tcp": 32 << 10, "ucx": 32 << 10}


def offered(transport: str) -> tuple[int, int]:
    """How many images are named by their hash first, and their bytes."""
    sizes = [size for size in SIZES if size >= SMALL_BELOW[transport]]
    return len(sizes), sum(sizes)


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
    count, size_bytes = offered(transport)
    first = run(own_server.address, transport, program, SECTION)
    assert first.returncode == 0, first.stdout[-500:] + first.stderr
    before = settled(own_server.address, count)
    assert (before.uploads, before.uploaded_bytes, before.misses) == (count, size_bytes, count)
    assert (before.count, before.size_bytes, before.hits) == (count, size_bytes, count)
    second = run(own_server.address, transport, program, SECTION)
    assert second.returncode == 0, second.stdout[-500:] + second.stderr
    after = settled(own_server.address, count)
    assert (after.uploads, after.misses, after.refused_proofs) == (before.uploads, before.misses, 0)
    assert after.hits == before.hits + 2 * count


def test_the_client_tells_what_it_sent(
    own_server: PrivateServer, transport: str, program: str, run: Run, tmp_path: Path
) -> None:
    count, size_bytes = offered(transport)
    told = []
    for number in range(2):
        file = tmp_path / str(number)
        assert run(own_server.address, transport, program, SECTION, ORION_STATS=f"json:{file}").returncode == 0
        settled(own_server.address, count)
        told.append(json.loads(file.read_text())["images"])
    first, second = told
    assert (first["uploaded"], first["uploaded_bytes"]) == (count, size_bytes)
    assert (first["known"], first["known_bytes"]) == (count, size_bytes)
    assert (second["uploaded"], second["uploaded_bytes"]) == (0, 0)
    assert (second["known"], second["known_bytes"]) == (2 * count, 2 * size_bytes)
    small = 2 * (len(SIZES) - count)
    assert first["small"] == second["small"] >= small
    assert second["small_bytes"] >= 2 * (sum(SIZES) - size_bytes)
    assert min(first["hash_ns"], second["hash_ns"]) > 0


def test_the_bound_holds(small_cache: PrivateServer, program: str, run: Run) -> None:
    for _ in range(2):
        done = run(small_cache.address, "tcp", program, SECTION)
        assert done.returncode == 0, done.stdout[-500:] + done.stderr
        count, size_bytes = offered("tcp")
        images = settled(small_cache.address, count - 1)
        assert images.bound_bytes == 8 << 20
        assert images.size_bytes == size_bytes - (24 << 20)
        assert images.count == count - 1
