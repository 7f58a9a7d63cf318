"""The release artefacts, built as a user builds them: `pip wheel .` and `make tarball`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.benchmarks.bench_rows import whole_run
from tests.packaging.elf import exported_names, needed_versions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

ROOT = Path(__file__).resolve().parents[2]
GLIBC_FLOOR = (2, 17)
LICENCES = {
    "LICENSE",
    "NOTICE",
    "libzmq-COPYING",
    "libzmq-COPYING.LESSER",
    "libsodium-LICENSE",
    "zig-LICENSE",
    "libcxx-LICENSE",
}
LICENCES |= {"libcxxabi-LICENSE", "libunwind-LICENSE"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation, so that the compilers of .venv are used; the build itself is the same.
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel installed with no compiler in reach."""
    folder = tmp_path_factory.mktemp("installed")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder),
        str(wheel),
    ]
    environment = {**os.environ, "PATH": str(folder), "CC": "/bin/false", "CXX": "/bin/false"}
    subprocess.run(command, check=True, env=environment)
    return folder


def native_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if ".so" in path.suffixes)


def test_wheel_is_tagged_for_old_distributions(wheel: Path) -> None:
    assert wheel.name.endswith("-cp311-abi3-manylinux_2_17_x86_64.whl")


def test_wheel_holds_what_client_and_server_need_and_no_other_sources(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".so" in name} == {
        "orion_client/lib/libcuda.so.1",
        "orion_client/lib/libnvidia-ml.so.1",
        "orion_server/lib/libcuda.so.1",
        "orion_server/engine/_engine.abi3.so",
        "orion_server/arbiter/_arbiter.abi3.so",
    }
    assert {"wire/__init__.py", "orion_client/run.py", "orion_server/cli.py", "benchmarks/cli.py"} <= set(names)
    sources = [name for name in names if name.endswith((".c", ".cc", ".h", ".o", ".a"))]
    assert sources
    assert [name for name in sources if not name.startswith(("benchmarks/native/", "wire/include/"))] == []
    assert {Path(name).name for name in names if name.startswith("orion_client/lib/licences/")} == LICENCES


def test_the_self_test_is_not_answered_without_a_gpu(installed: Path) -> None:
    """The mark of the build for tests, which answers anywhere; tests/runtime shows what the mark means."""
    assert b"ORION_TEST_RUNTIME_VALIDATED" not in (installed / "orion_client" / "lib" / "libcuda.so.1").read_bytes()


def test_nothing_needs_a_newer_glibc(installed: Path) -> None:
    libraries = native_files(installed)
    assert len(libraries) == 5
    for library in libraries:
        versions = needed_versions(library, "GLIBC")
        assert versions, library
        assert max(versions) <= GLIBC_FLOOR, (library, max(versions))
        assert needed_versions(library, "GLIBCXX") == set(), library


def test_libraries_export_only_their_api(installed: Path) -> None:
    for path, prefixes in (
        ("orion_client/lib/libcuda.so.1", ("cu",)),
        ("orion_client/lib/libnvidia-ml.so.1", ("nvml",)),
        ("orion_server/lib/libcuda.so.1", ("cu",)),
    ):
        names = exported_names(installed / path)
        assert names
        assert [name for name in names if not name.startswith(prefixes)] == []


PROGRAM = """
import orion_client.run, orion_server.cli, orion_server.engine._engine as engine, wire
print(orion_client.run.__file__, orion_server.cli.__file__, engine.__file__, wire.__file__, sep="\\n")
"""


def test_installed_packages_import_without_the_source_tree(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(installed) for line in done.stdout.split())


def test_the_installed_bench_makes_its_page(wheel: Path, installed: Path, tmp_path: Path) -> None:
    (metadata,) = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA")]
    told = zipfile.ZipFile(wheel).read(metadata).decode().splitlines()
    assert "Provides-Extra: report" in told
    assert any(line.startswith("Requires-Dist: matplotlib") and 'extra == "report"' in line for line in told)
    rows = tmp_path / "orion-bench-results" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text("".join(json.dumps(row) + "\n" for row in whole_run()))
    environment = {**os.environ, "PYTHONPATH": f"{installed}:{os.environ.get('PYTHONPATH', '')}"}

    def report(start: str) -> subprocess.CompletedProcess[str]:
        program = f"import sys; sys.argv[1:] = ['report']; {start}; from benchmarks import cli; "
        program += f"assert cli.__file__.startswith({str(installed)!r}); cli.main()"
        return subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True,
                              text=True, check=False)  # fmt: skip

    without = report("sys.modules['matplotlib'] = None")
    assert without.returncode == 2 and "pip install 'orion-vgpu[report]'" in " ".join(without.stderr.split())
    pytest.importorskip("matplotlib")
    made = report("pass")
    assert made.returncode == 0, made.stderr
    page = (tmp_path / made.stdout.strip()).read_text()
    assert page.count("<svg") == 7 and "NVIDIA H200" in page


def test_tarball_holds_the_client_libraries_and_their_licences() -> None:
    done = subprocess.run(
        [sys.executable, "tools/make_tarball.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(done.stdout.strip()) as tar:
        names = tar.getnames()
        folder = names[0].split("/")[0]
        wanted = {"libcuda.so.1", "libnvidia-ml.so.1", "README"} | {f"licences/{name}" for name in LICENCES}
        assert {name.removeprefix(f"{folder}/") for name in names} == wanted
        assert all(member.uid == 0 for member in tar.getmembers())
