"""python3 -m tests.semantics.programs MODULE PROGRAM: runs one of them; an exit status of 0 says that it holds."""

from __future__ import annotations

import importlib
import sys

from tests.semantics.tools import Program


def main() -> None:
    module, name = sys.argv[1:]
    getattr(importlib.import_module(f"tests.semantics.programs.{module}"), name)(Program())
    sys.stdout.flush()


main()
