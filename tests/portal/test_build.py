"""What is checked in under dist/ belongs to the sources, keeps to the content security policy, and is small."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from orion_controller import portal
from orion_controller.portal import gen_types

FOLDER = Path(portal.__file__).parent
SOURCES = [
    "build_info.mjs",
    "index.html",
    "package-lock.json",
    "package.json",
    "public",
    "src",
    "tsconfig.json",
    "vite.config.mjs",
]
MAX_GZIPPED_BYTES = 150_000


def files_of(root: Path, names: list[str]) -> list[Path]:
    found = []
    for name in names:
        path = root / name
        found += [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sorted(found, key=lambda file: file.relative_to(root).as_posix().encode())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_dist_belongs_to_the_sources() -> None:
    build = json.loads((portal.DIST / "build.json").read_text())
    sources = "".join(f"{sha256(path)}  {path.relative_to(FOLDER).as_posix()}\n" for path in files_of(FOLDER, SOURCES))
    stale = f"dist/ was built from other sources: run `npm ci && npm run build` in {FOLDER}"
    assert hashlib.sha256(sources.encode()).hexdigest() == build["sources_sha256"], stale
    files = {path.relative_to(portal.DIST).as_posix(): sha256(path) for path in files_of(FOLDER, ["dist"])}
    del files["build.json"]
    assert files == build["files"], "a file under dist/ is not what the build wrote"


def test_types_belong_to_the_models() -> None:
    assert gen_types.TARGET.read_text() == gen_types.generate(), (
        "run python -m orion_controller.portal.gen_types, then npm run build"
    )


def test_nothing_inline_and_nothing_from_elsewhere() -> None:
    page = (portal.DIST / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=", page)
    assert not re.search(r"<script(?![^>]*\ssrc=)", page)
    assert not re.search(r"(src|href)=\"(https?:)?//", page)
    for path in portal.DIST.rglob("*.css"):
        assert not re.search(r"@import|url\((?!['\"]?#)", path.read_text()), path


def test_small_enough_for_a_slow_line() -> None:
    files = [path for path in files_of(FOLDER, ["dist"]) if path.suffix in (".css", ".html", ".js", ".svg")]
    size = sum(len(gzip.compress(path.read_bytes(), 9)) for path in files)
    print(f"the portal is {size / 1000:.1f} kB gzipped")
    assert 10_000 < size < MAX_GZIPPED_BYTES


@pytest.mark.slow
def test_building_again_gives_the_same(tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    for name in SOURCES:
        source, target = FOLDER / name, tmp_path / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    for command in (["ci", "--no-audit", "--no-fund"], ["run", "build"]):
        done = subprocess.run(
            [npm, *command], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "CI": "1"}
        )
        assert done.returncode == 0, done.stdout + done.stderr
    built = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in files_of(tmp_path, ["dist"])}
    kept = {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in files_of(FOLDER, ["dist"])}
    assert sorted(built) == sorted(kept)
    assert [name for name in built if built[name] != kept[name]] == []
