"""`python -m orion_k8s.gen` makes the Python modules of */proto/*.proto; `--check` fails when one is stale."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def made() -> dict[Path, str]:
    """The text of each module by its path. RuntimeError: a .proto that the compiler refuses."""
    import grpc_tools
    from grpc_tools import protoc

    sources = sorted((ROOT / "orion_k8s").glob("*/proto/*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        code = protoc.main([
            "protoc", f"-I{ROOT}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}", f"--python_out={folder}",
            f"--grpc_python_out={folder}", *map(str, sources),
        ])  # fmt: skip
        if code:
            raise RuntimeError(f"protoc ended with {code}")
        return {
            ROOT / path.relative_to(folder): path.read_text()
            for path in sorted(Path(folder).rglob("*.py*"))
        }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m orion_k8s.gen", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    arguments = parser.parse_args(argv)
    stale = []
    for path, text in made().items():
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path)
        if not arguments.check:
            path.write_text(text)
    for path in stale:
        print(f"{'stale' if arguments.check else 'wrote'} {path.relative_to(ROOT)}")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
