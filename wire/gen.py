"""The generator: `python -m wire.gen` writes every generated file, `--check` fails when one is stale.

Each output is made by one function that returns its text; OUTPUTS names them all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from wire import gen_api, gen_coverage, gen_errors, gen_ops, gen_version

ROOT = Path(__file__).resolve().parent.parent

OUTPUTS: dict[str, Callable[[], str]] = {
    "wire/include/gen_ops.h": gen_ops.header,
    "wire/include/gen_cuda_api.h": gen_api.prototypes,
    "shim/src/gen/gen_stubs.c": gen_api.stubs,
    "shim/src/gen/gen_default_stream.c": gen_api.default_stream,
    "shim/src/gen/gen_procaddr.c": gen_api.procaddr,
    "shim/src/gen/gen_exports.map": gen_api.export_map,
    "shim/src/gen/gen_errors.h": gen_errors.header,
    "shim/src/gen/gen_errors.c": gen_errors.source,
    "docs/api-coverage.md": gen_coverage.table,
    "wire/gen_wire_version.py": gen_version.module,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m wire.gen", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    arguments = parser.parse_args(argv)
    stale = []
    for name, make in OUTPUTS.items():
        path = ROOT / name
        text = make()
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if not arguments.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for name in stale:
        print(f"{'stale' if arguments.check else 'wrote'} {name}")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
