"""What the calls that programs make most cost the calling thread, in front of an engine that does no work.

    python3 -m benchmarks.local_calls [--json] [--transport shm|tcp]

Medians of `native/local_calls.c`. What is answered without the worker takes nanoseconds; what takes microseconds asks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.programs import compile_program
from benchmarks.servers import client_environment, server


def measure(transport: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="orion-calls-") as folder:
        program = compile_program("local_calls", Path(folder))
        with server("softgpu", "--null-engine") as address:
            done = subprocess.run([str(program), "time"], env=client_environment(address, transport), check=False,
                                  capture_output=True, text=True, timeout=300)  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    times: dict[str, float] = json.loads(done.stdout)
    del times["loop"]  # the loop around each call: the compiler leaves next to nothing of it
    return times


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")
    parser.add_argument("--transport", choices=("shm", "tcp"), default="shm")
    arguments = parser.parse_args(argv)
    times = measure(arguments.transport)
    if arguments.json:
        print(json.dumps(times))
        return 0
    for name, time_ns in times.items():
        print(f"{name:36} {time_ns:10.1f} ns")
    return 0


if __name__ == "__main__":
    sys.exit(main())
