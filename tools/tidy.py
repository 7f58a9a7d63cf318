"""Runs clang-tidy over the sources that the build compiles, a few at a time.

A file is checked again only when it, a header, or the configuration changed: clean results are kept in build/tidy.
The analyzer gives up on a function after MAX_NODES states, for time: with clang's own 225,000 the whole takes three
times as long (319 instead of 107 s on 2 CPUs). `--deep` takes clang's own; run it before a release.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from buildlib import job_count, recipe_key

ROOT = Path(__file__).resolve().parent.parent
# The one of the virtual environment, whatever PATH has.
CLANG_TIDY = str(Path(sys.executable).with_name("clang-tidy"))
RESULTS = ROOT / "build" / "tidy"
# What gcc alone knows.
REMOVED = ["--removed-arg=-fno-reorder-blocks-and-partition"]
MAX_NODES = 20_000
HEADER_FOLDERS = ("shim", "softgpu", "wire", "orion_server/engine", "orion_server/arbiter")


def analyzer_option(text: str) -> list[str]:
    """Arguments for clang-tidy; its own configuration reaches the checks of the analyzer, not the analyzer."""
    return [f"--extra-arg-before={part}" for part in ("-Xclang", "-analyzer-config", "-Xclang", text)]


def sources() -> dict[Path, list[str]]:
    """Each source with the arguments that clang-tidy needs to find its flags."""
    found: dict[Path, list[str]] = {}
    for database in sorted((ROOT / "build").glob("*/compile_commands.json")):
        for entry in json.loads(database.read_text()):
            path = Path(entry["directory"], entry["file"]).resolve()
            if path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "build"):
                found[path] = ["-p", str(database.parent)]
    libzmq = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "build_libzmq.py")], check=True, capture_output=True, text=True
    ).stdout.strip()
    # cffi compiles these without leaving a compilation database.
    for name in ("engine", "arbiter"):
        folder = ROOT / "orion_server" / name
        flags = ["-std=c11", "-D_GNU_SOURCE", f"-I{ROOT}/wire/include", f"-I{folder}"]
        flags += [f"-I{libzmq}/include", f"-I{sysconfig.get_path('include')}"]
        for path in sorted(folder.glob("*.c")):
            if not path.name.startswith(f"_{name}"):
                found[path] = ["--", *flags]
    return {path: flags for path, flags in sorted(found.items()) if not path.name.startswith("gen_")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="only these (default: all)")
    parser.add_argument("--deep", action="store_true", help="follow each function as far as clang's analyzer does")
    arguments = parser.parse_args()
    wanted = {path.resolve() for path in arguments.files}
    depth = [] if arguments.deep else analyzer_option(f"max-nodes={MAX_NODES}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    headers = [
        path.read_bytes()
        for folder in HEADER_FOLDERS
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".h", ".def", ".inc")
    ]
    common = recipe_key([(ROOT / ".clang-tidy").read_bytes(), *headers])
    work = {path: flags for path, flags in sources().items() if not wanted or path in wanted}

    def check(item: tuple[Path, list[str]]) -> bool:
        path, flags = item
        mark = RESULTS / recipe_key([common, str(path), path.read_bytes(), *flags, *depth])
        if mark.exists():
            return True
        place = flags if flags[0] == "-p" else []
        rest = [] if place else flags
        done = subprocess.run(
            [CLANG_TIDY, "--quiet", *REMOVED, *depth, *place, str(path), *rest],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        if done.returncode == 0:
            mark.touch()
            return True
        print(done.stdout, end="", flush=True)
        if "error:" not in done.stdout:
            print(done.stderr, end="", file=sys.stderr, flush=True)
        return False

    with ThreadPoolExecutor(job_count()) as pool:
        results = list(pool.map(check, work.items()))
    print(f"clang-tidy: {results.count(True)} of {len(results)} files clean")
    if not work or not all(results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
