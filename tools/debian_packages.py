"""Debian packages, downloaded and unpacked with an apt of our own: the machine's stays as it is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from buildlib import run


class Apt:
    """apt-get in `folder`. With `whole` it takes nothing for installed, so that a package's closure is complete."""

    def __init__(self, folder: Path, *, whole: bool = False) -> None:
        for name in ("lists/partial", "archives/partial", "sources.d"):
            (folder / name).mkdir(parents=True)
        copied = self._copy_sources(folder / "sources.d")
        if not copied:
            raise SystemExit("no apt sources in /etc/apt: the cluster tests need Debian 12's packages")
        self._options = [
            *("-o", f"Dir::State::lists={folder}/lists"),
            *("-o", f"Dir::Cache={folder}"),
            *("-o", f"Dir::Cache::archives={folder}/archives"),
            *("-o", "Dir::Etc::sourcelist=/dev/null"),
            *("-o", f"Dir::Etc::sourceparts={folder}/sources.d"),
            *("-o", "Debug::NoLocking=true"),
            *("-o", "APT::Sandbox::User=root"),
            *("-o", "Dpkg::Post-Invoke::=", "-o", "APT::Keep-Downloaded-Packages=true"),
            *("-o", "Acquire::Retries=3"),
        ]
        if whole:
            (folder / "status").touch()
            self._options += ["-o", f"Dir::State::status={folder}/status"]
        self.folder = folder

    @staticmethod
    def _copy_sources(target: Path) -> int:
        """Writes the machine's entries once more with their source packages; returns how many files it found."""
        count = 0
        for path in sorted(Path("/etc/apt/sources.list.d").glob("*.sources")):
            text = re.sub(r"(?m)^Types:.*$", "Types: deb deb-src", path.read_text())
            (target / path.name).write_text(text)
            count += 1
        for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*.list"))]:
            if not path.is_file():
                continue
            lines = [line for line in path.read_text().splitlines() if re.match(r"\s*deb\s", line)]
            if lines:
                both = lines + [re.sub(r"^\s*deb\s", "deb-src ", line) for line in lines]
                (target / f"{path.stem}.list").write_text("\n".join(both) + "\n")
                count += 1
        return count

    def run(self, *arguments: str, cwd: Path | None = None) -> None:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "-q", *self._options, *arguments], cwd=cwd, env=environment, quiet=True)

    def unpack(self, packages: list[str], target: Path) -> dict[str, str]:
        """Unpacks the packages and those of their dependencies that are not installed. Returns name -> version."""
        self.run("install", "--yes", "--download-only", "--no-install-recommends", "--reinstall", *packages)
        versions: dict[str, str] = {}
        for archive in sorted((self.folder / "archives").glob("*.deb")):
            run(["dpkg-deb", "--extract", str(archive), str(target)], quiet=True)
            show = ["dpkg-deb", "--show", "--showformat", "${Package} ${Version}", str(archive)]
            name, version = subprocess.run(show, check=True, capture_output=True, text=True).stdout.split()
            versions[name] = version
        return versions


def merge_usr(root: Path) -> None:
    """Moves bin, sbin and lib* under usr, where Debian 12 has them: packages still carry both spellings."""
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        folder = root / name
        if folder.is_dir() and not folder.is_symlink():
            run(["cp", "-a", "--", f"{folder}/.", str(root / "usr" / name)], quiet=True)
            shutil.rmtree(folder)
            folder.symlink_to(f"usr/{name}")
