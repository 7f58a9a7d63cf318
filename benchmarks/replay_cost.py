"""What the engine costs for each launch that it replays, above the driver's own: nanoseconds and instructions.

    python3 -m benchmarks.replay_cost

Compiles `native/replay_cost.c` with the engine's sources and their flags; the driver below does nothing.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "orion_server" / "engine"
FEW, MANY = 1000, 3000


def compile_program(folder: Path) -> Path:
    found = subprocess.run([sys.executable, str(ROOT / "tools" / "build_libzmq.py")], check=True, capture_output=True,
                           text=True)  # fmt: skip
    zmq = Path(found.stdout.split()[-1])
    sources = [str(path) for path in sorted(ENGINE.glob("*.c")) if not path.name.startswith("_engine")]
    output = folder / "replay_cost"
    subprocess.run(
        ["gcc", "-O2", "-std=c11", "-D_GNU_SOURCE", f"-I{ROOT}/wire/include", f"-I{ENGINE}", f"-I{zmq}/include",
         str(ROOT / "benchmarks/native/replay_cost.c"), *sources, str(zmq / "lib/libzmq.a"), "-o", str(output),
         "-lstdc++", "-lpthread", "-lrt", "-ldl"], check=True)  # fmt: skip
    return output


def instructions(program: Path, launches: int) -> int:
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", f"--callgrind-out-file={program}.out", "--collect-atstart=no",
         "--toggle-collect=orion_engine_run", str(program), str(launches)],
        check=True, capture_output=True, text=True)  # fmt: skip
    collected = re.search(r"Collected : (\d+)", done.stderr)
    assert collected is not None, done.stderr
    return int(collected[1])


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="orion-replay-") as folder:
        program = compile_program(Path(folder))
        timed = subprocess.run([str(program)], check=True, capture_output=True, text=True)
        each = (instructions(program, MANY) - instructions(program, FEW)) / (MANY - FEW)
        print(json.dumps({**json.loads(timed.stdout), "launch_replay_instructions": round(each)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
