"""What the dynamic section and symbol table of a shared library say, through binutils."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path


def _readelf(option: str, library: Path) -> str:
    return subprocess.run(
        ["readelf", "--wide", option, str(library)], check=True, capture_output=True, text=True
    ).stdout


def dynamic_entries(library: Path, kind: str) -> list[str]:
    """The values of NEEDED or SONAME."""
    return re.findall(rf"\({kind}\).*\[(.+)\]", _readelf("--dynamic", library))


def exported_names(library: Path) -> set[str]:
    names = set()
    for line in _readelf("--dyn-syms", library).splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[4] in ("GLOBAL", "WEAK", "UNIQUE") and fields[6] != "UND":
            names.add(fields[7].split("@")[0])
    return names


def needed_versions(library: Path, prefix: str) -> set[tuple[int, ...]]:
    """The symbol versions, as tuples, that the library needs of its dependencies: GLIBC_2.17 is (2, 17)."""
    found = re.findall(rf"Name: {prefix}_([0-9.]+)\b", _readelf("--version-info", library))
    return {tuple(int(part) for part in version.split(".")) for version in found}
