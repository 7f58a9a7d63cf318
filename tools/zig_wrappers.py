"""Makes the folder of one-executable wrappers around zig's sub-commands, and prints it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from buildlib import ZIG_REQUIREMENT, ZIG_TARGET, cached, recipe_key

TOOLS = {
    "zig-cc": f"cc -target {ZIG_TARGET}",
    "zig-c++": f"c++ -target {ZIG_TARGET}",
    "zig-ar": "ar",
    "zig-ranlib": "ranlib",
}


def zig_folder() -> Path:
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise SystemExit(f"the release build needs zig: pip install {ZIG_REQUIREMENT}")
    return Path(spec.origin).parent


def zig_wrappers() -> Path:
    # Keyed by where zig is, because an isolated build has it in a folder of its own each time.
    zig = zig_folder() / "zig"

    def build(work: Path) -> None:
        for name, arguments in TOOLS.items():
            script = work / name
            script.write_text(f'#!/bin/sh\nexec "{zig}" {arguments} "$@"\n')
            script.chmod(0o755)

    return cached(f"zig-wrappers-{recipe_key([str(zig), *TOOLS.values()])}", build)


if __name__ == "__main__":
    print(zig_wrappers())
