"""UCX's own measurement (`ucx_perftest`) over the same transports, beside the rows of place "ucx" in the same run: what
a transport over UCX cannot be faster than. UCX_TLS and UCX_NET_DEVICES choose what both use."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time

from benchmarks.bench.ground import Done
from benchmarks.bench.model import BARE, Cell, Row, Task
from benchmarks.bench.runner import TaskError

UCX = "ucx"
# Row -> test, its options, unit, which way is better, what. UCX tells half of a round trip.
FLOORS = {
    "ucx_am_rtt_poll": ("ucp_am_lat", ("-s", "64"), "us", "lower", "64 bytes each way, UCX active messages, both poll"),
    "ucx_am_rtt_sleep": (
        "ucp_am_lat", ("-s", "64", "-E", "sleep"), "us", "lower", "the same, both sleep until an event comes"),
}  # fmt: skip
STREAMS = {
    "ucx_am_poll": ("ucp_am_bw", ("-s", str(1 << 20)), "GB/s", "higher", "UCX active messages of 1 MiB, both poll"),
    "ucx_am_sleep": ("ucp_am_bw", ("-s", str(1 << 20), "-E", "sleep"), "GB/s", "higher", "the same, both sleep"),
}
_ITERATIONS = {"ucp_am_lat": "5000", "ucp_am_bw": "1000"}
_LIMIT_S = 60.0


def perftest(test: str, options: tuple[str, ...]) -> list[float]:
    """The numbers of its last line: iterations, latency's percentile, its average of the last part and of all (us),
    bandwidth of the last part and of all (MB/s), and messages/s twice."""
    program = shutil.which("ucx_perftest")
    if program is None:
        raise TaskError("ucx_perftest is missing: apt-get install ucx-utils", whole=True)
    with socket.socket() as any_free:
        any_free.bind(("127.0.0.1", 0))
        port = str(any_free.getsockname()[1])
    line = [program, "-t", test, "-n", _ITERATIONS[test], "-p", port, *options]
    environment = {**os.environ, "UCX_WARN_UNUSED_ENV_VARS": "n"}
    listener = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        deadline_s = time.monotonic() + _LIMIT_S
        while True:  # it listens some time after it was started
            done = subprocess.run([program, "127.0.0.1", *line[1:]], capture_output=True, text=True, env=environment,
                                  timeout=_LIMIT_S)  # fmt: skip
            final = next((text for text in done.stdout.splitlines() if text.startswith("Final:")), None)
            if final is not None:
                return [float(word) for word in final.split()[1:]]
            if listener.poll() is not None or time.monotonic() > deadline_s:
                raise TaskError(f"ucx_perftest -t {test} failed", done.stdout + done.stderr, whole=True)
            time.sleep(0.1)
    except subprocess.TimeoutExpired:
        raise TaskError(f"ucx_perftest -t {test} did not end in {_LIMIT_S:g} s", whole=True) from None
    finally:
        if listener.poll() is None:
            listener.kill()
        listener.wait()


def floors_task(command: str, repeat: int) -> Task:
    """Of a command: round trips beside `latency`, streams beside `copy`."""
    wanted = STREAMS if command == "copy" else FLOORS
    settings = f"UCX_TLS={os.environ.get('UCX_TLS', '')}"
    cells = tuple(Cell(command, name, BARE, repeat, settings=settings) for name in wanted)

    def run(left: tuple[Cell, ...], done: Done) -> None:
        for cell in left:
            test, options, unit, better, what = wanted[cell.row]
            told = perftest(test, options)
            value = told[5] * (1 << 20) / 1e9 if unit == "GB/s" else 2 * told[1]
            row: Row = {"unit": unit, "better": better, "what": what, "value": float(f"{value:.4g}")}
            done(cell, row)

    return Task(cells, run)
