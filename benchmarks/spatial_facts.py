"""Would a latency-sensitive tenant be better off with a part of the multiprocessors than with a share of the time?

    python3 -m benchmarks.spatial_facts [--seconds S] [--out FILE]    one JSON object; needs gcc

One tenant asks for a kernel of 0.2 ms at random times, a quarter of the time, and waits for it; the other computes in
kernels of 2 ms without a pause. Measured natively: how late the first one's answers are, and how much the second gets
done, in each way of sharing one GPU:

| way | what |
|---|---|
| alone | the latency tenant, and the batch tenant, each with the GPU to itself |
| processes | two processes: the driver gives them turns |
| both, streams | two threads of one process; streams of equal, and of different priority |
| green_N | two threads of one process in green contexts: N multiprocessors for the latency tenant |
| mps, mps_P | two processes under MPS; P percent of the multiprocessors for the first, the rest for the other |

A way that the machine does not offer has `error` in place of numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.programs import compile_program

MPS = "nvidia-cuda-mps-control"
MPS_PERCENT = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
START_TIMEOUT_S = 60.0


class Failed(Exception):
    """What a program said before it ended."""


class Tenants:
    """Programs that begin together."""

    def __init__(self, program: Path, per_ms: int, seconds: float) -> None:
        self._program, self._numbers, self._seconds = program, [str(per_ms), str(seconds)], seconds

    def run(self, *ways: list[str], environments: list[dict[str, str]] | None = None) -> list[dict[str, Any]]:
        """One process for each way; their results."""
        started = [
            subprocess.Popen(
                [str(self._program), way[0], *self._numbers, *way[1:]], text=True, env={**os.environ, **extra},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for way, extra in zip(ways, environments or [{} for _ in ways], strict=True)
        ]  # fmt: skip
        try:
            for process in started:
                assert process.stdout
                if process.stdout.readline() != "ready\n":
                    raise Failed((process.communicate()[1] or "ended at once").strip()[-300:])
            for process in started:
                assert process.stdin
                process.stdin.write("go\n")
                process.stdin.flush()
            told = [process.communicate(timeout=self._seconds + START_TIMEOUT_S) for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
        for process, (_, complaint) in zip(started, told, strict=True):
            if process.returncode:
                raise Failed(complaint.strip()[-300:])
        return [json.loads(out) for out, _ in told]


@contextmanager
def mps_daemon() -> Iterator[dict[str, str]]:
    """MPS of our own, in a folder of our own; the environment of its clients."""
    if shutil.which(MPS) is None:
        raise Failed(f"there is no {MPS}")
    with tempfile.TemporaryDirectory(prefix="orion-mps-") as folder:
        environment = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        daemon = subprocess.Popen(
            [MPS, "-f"], env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield environment
        finally:
            subprocess.run([MPS], input="quit\n", text=True, env={**os.environ, **environment}, capture_output=True)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def measure(program: Path, seconds: float) -> dict[str, Any]:
    calibrated = json.loads(subprocess.run([str(program), "calibrate"], check=True, capture_output=True).stdout)
    sms = calibrated["multiprocessors"]
    tenants = Tenants(program, calibrated["iterations_per_ms"], seconds)
    rows: list[dict[str, Any]] = []

    def row(name: str, results: Iterator[list[dict[str, Any]]]) -> None:
        try:
            found = next(results)
            quick = next(r["latency_us"] for r in found if r["latency_us"]["a_second"])
            rows.append({"name": name, "latency_us": quick, "batch_a_second": max(r["batch_a_second"] for r in found)})
        except (Failed, subprocess.SubprocessError, OSError) as error:
            rows.append({"name": name, "error": str(error)})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)

    def under_mps(shares: list[dict[str, str]]) -> Iterator[list[dict[str, Any]]]:
        with mps_daemon() as environment:
            yield tenants.run(["latency"], ["batch"], environments=[environment | share for share in shares])

    row("alone", (tenants.run(["latency"]) + tenants.run(["batch"]) for _ in range(1)))
    row("processes", (tenants.run(["latency"], ["batch"]) for _ in range(1)))
    for way in ("both", "streams"):
        row(way, (tenants.run([way]) for _ in range(1)))
    for count in (sms // 4 // 8 * 8 or 1, sms // 2 // 8 * 8 or 1):
        row(f"green_{count}", (tenants.run(["green", str(count)]) for _ in range(1)))
    row("mps", under_mps([{}, {}]))
    for percent in (25, 50):
        row(f"mps_{percent}", under_mps([{MPS_PERCENT: str(percent)}, {MPS_PERCENT: str(100 - percent)}]))
    return {"machine": describe("benchmarks.spatial_facts"), **calibrated, "seconds": seconds, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each way (default 6)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="orion-spatial-") as folder:
        facts = measure(compile_program("spatial", Path(folder)), arguments.seconds)
    if arguments.out:
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
