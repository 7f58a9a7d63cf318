"""Writes the texts that fuzz_ptx starts from: one file for each case of the agreement tests, and the modules of ptx/.

python -m softgpu.tests.fuzz_seeds FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from softgpu.tests.agreement import cases, run


def main() -> None:
    folder = Path(sys.argv[1])
    every, _ = cases.everything()
    for number, case in enumerate(every.values()):
        (folder / f"{number:05}").write_text(run.header(case.sm) + case.kernel("k"))
    for path in Path(__file__).with_name("ptx").glob("*.ptx"):
        (folder / path.name).write_bytes(path.read_bytes())


if __name__ == "__main__":
    main()
