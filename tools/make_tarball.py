"""Packs the two client libraries, with their licences, for machines that have no Python."""

from __future__ import annotations

import io
import tarfile
import tempfile
import tomllib
from pathlib import Path

from build_native import CLIENT_LIBRARIES, ROOT, build_release_client

README = """\
Client libraries of Orion {version} for Linux on x86-64, glibc 2.17 or newer.

Run a CUDA program on a remote GPU:

    ORION_SERVER=HOST:PORT LD_PRELOAD=/path/to/{folder}/libcuda.so.1 PROGRAM

or put this folder first in LD_LIBRARY_PATH. Licences are in `licences`.
"""


def make_tarball() -> Path:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    folder = f"orion-client-{version}"
    target = ROOT / "dist" / f"{folder}-linux-x86_64.tar.gz"
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        build_release_client(Path(scratch))
        licences = sorted((Path(scratch) / "licences").iterdir())
        members = [Path(scratch) / name for name in CLIENT_LIBRARIES] + licences
        with tarfile.open(target, "w:gz") as tar:
            for path in members:
                member = tar.gettarinfo(path, f"{folder}/{path.relative_to(scratch)}")
                member.uid = member.gid = 0
                member.uname = member.gname = "root"
                with path.open("rb") as content:
                    tar.addfile(member, content)
            readme = README.format(version=version, folder=folder).encode()
            member = tarfile.TarInfo(f"{folder}/README")
            member.size = len(readme)
            member.mode = 0o644
            tar.addfile(member, io.BytesIO(readme))
    return target


if __name__ == "__main__":
    print(make_tarball())
