"""What Orion itself costs, with an engine that accepts operations and drops the GPU work, beside the machine's floors.

    python3 -m benchmarks.null_engine [--json]

Compiles two small C programs: `native/floors.c` (bare ring, bare shared-memory and TCP ping-pong) and
`native/client_cost.c` (launches and a reply through the shim). Aims: a one-way launch 150 ns over shm and 300 ns over
tcp; a round trip within 3x of the bare shared-memory one, and 2x of the bare TCP one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.programs import compile_program
from benchmarks.servers import client_environment, server
from orion_client import libraries


def preload_cost_us(runs: int = 200) -> float:
    """What preloading the shim adds to a program that does not use CUDA: medians of /bin/true with and without it."""
    preload = {**os.environ, **libraries.environment()}
    times: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(runs):
        for name, environment in (("without", dict(os.environ)), ("with", preload)):
            start = time.perf_counter()
            subprocess.run(["/bin/true"], env=environment, check=True)
            times[name].append(time.perf_counter() - start)
    return (statistics.median(times["with"]) - statistics.median(times["without"])) * 1e6


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="orion-null-") as name:
        folder = Path(name)
        floors, client = compile_program("floors", folder), compile_program("client_cost", folder)
        result: dict[str, Any] = {
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": "python3 -m benchmarks.null_engine",
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "floors": json.loads(subprocess.run([str(floors)], check=True, capture_output=True, text=True).stdout),
        }
        result["preload_us"] = preload_cost_us()
        with server("softgpu", "--null-engine") as address:
            for transport in ("shm", "tcp"):
                done = subprocess.run([str(client)], env=client_environment(address, transport), check=False,
                                      capture_output=True, text=True, timeout=300)  # fmt: skip
                if done.returncode:
                    raise RuntimeError(f"{transport}: {done.stderr}")
                result[transport] = json.loads(done.stdout)
    return result


def report(result: dict[str, Any]) -> str:
    floors, lines = result["floors"], []
    alone = floors["shm_spin_rtt_us"] if (result["cpus"] or 1) > 2 else floors["shm_futex_rtt_us"]
    kind = "spinning" if (result["cpus"] or 1) > 2 else "sleeping (no core to spin on)"
    lines.append(
        f"floors on {result['cpus']} CPUs: ring push {floors['ring_push_ns']:.0f} ns, "
        f"shm round trip {alone:.2f} us {kind}, TCP round trip {floors['tcp_rtt_us']:.1f} us"
    )
    for transport, aim_ns, floor, times in (("shm", 150, alone, 3), ("tcp", 300, floors["tcp_rtt_us"], 2)):
        row = result[transport]
        lines.append(
            f"{transport}: launch {row['launch_wall_ns']:.0f} ns wall, {row['launch_cpu_ns']:.0f} ns CPU "
            f"(aim {aim_ns}); "
            f"reply {row['reply_us']:.1f} us = {row['reply_us'] / floor:.1f}x of the bare round trip (aim {times}x); "
            f"engine replays {row['replay_per_second'] / 1e6:.2f} M launches/s"
        )
    lines.append(f"preloading the shim into a program without CUDA: {result['preload_us']:.0f} us (aim 1000)")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")
    arguments = parser.parse_args(argv)
    result = measure()
    print(json.dumps(result) if arguments.json else report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
