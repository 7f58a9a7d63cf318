"""How fast copies between two devices are, and the two legs that one between servers consists of.

    python3 -m benchmarks.peer_copies [--device softgpu] [--transport shm|tcp] [--servers 1|2]

Starts servers on this machine and prints one line of JSON: GB/s (10^9 bytes a second), medians of `rounds`, for device
0 to page-locked memory (d2h), page-locked memory to device 1 (h2d), one after the other (both_legs), and device to
device (peer).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.driver import Driver

SIZES_BYTES = (4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20)
ROUNDS = 7


def seconds(call: Callable[[], None], times: int) -> float:
    call()
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(times):
            call()
        taken.append((time.perf_counter() - began) / times)
    return statistics.median(taken)


class Pair:
    """Two devices, a buffer on each, page-locked memory of each one's context, and a stream of each."""

    def __init__(self, size_bytes: int) -> None:
        self.driver = Driver()
        self.size_bytes = size_bytes
        self.contexts = [self.driver.context, ctypes.c_void_p()]
        self.driver("cuDevicePrimaryCtxRetain", ctypes.byref(self.contexts[1]), 1)
        self.memory, self.pinned, self.streams = [], [], []
        for context in self.contexts:
            self.driver("cuCtxSetCurrent", context)
            self.memory.append(self.driver.allocate(size_bytes))
            self.pinned.append(self.driver.host_allocate(size_bytes))
            self.streams.append(self.driver.stream())

    def out(self, bytes_: int) -> None:
        size, host = ctypes.c_size_t(bytes_), ctypes.c_void_p(self.pinned[0])
        self.driver("cuMemcpyDtoHAsync_v2", host, self.memory[0], size, self.streams[0])
        self.driver("cuStreamSynchronize", self.streams[0])

    def into(self, bytes_: int) -> None:
        size, host = ctypes.c_size_t(bytes_), ctypes.c_void_p(self.pinned[1])
        self.driver("cuMemcpyHtoDAsync_v2", self.memory[1], host, size, self.streams[1])
        self.driver("cuStreamSynchronize", self.streams[1])

    def both_legs(self, bytes_: int) -> None:
        self.out(bytes_)
        self.into(bytes_)

    def peer(self, bytes_: int) -> None:
        ends = (self.memory[1], self.contexts[1], self.memory[0], self.contexts[0])
        self.driver("cuMemcpyPeerAsync", *ends, ctypes.c_size_t(bytes_), self.streams[1])
        self.driver("cuStreamSynchronize", self.streams[1])


def measure() -> dict[str, dict[str, float]]:
    """GB/s by size in bytes and kind of copy."""
    pair = Pair(max(SIZES_BYTES))
    table = {}
    for size in SIZES_BYTES:
        times = max(1, min(200, (64 << 20) // size))
        calls = {"d2h": pair.out, "h2d": pair.into, "both_legs": pair.both_legs, "peer": pair.peer}
        row = {}
        for name, call in calls.items():
            row[name] = round(size / seconds(lambda call=call, size=size: call(size), times) / 1e9, 4)  # type: ignore[misc]
        table[str(size)] = row
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="softgpu")
    parser.add_argument("--transport", choices=("shm", "tcp"), default="shm")
    parser.add_argument("--servers", type=int, choices=(1, 2), default=2)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside:
        print(json.dumps(measure()))
        return 0
    from orion_client.libraries import client_folder
    from orion_client.private_server import PrivateServer

    if chosen.servers == 1:
        os.environ["SOFTGPU_DEVICES"] = "2"
    with ExitStack() as stack:
        servers = [stack.enter_context(PrivateServer(chosen.device)) for _ in range(chosen.servers)]
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(client_folder()),
            "ORION_SERVER": ",".join(server.address for server in servers),
            "ORION_TRANSPORT": chosen.transport,
        }
        inside = [sys.executable, "-m", "benchmarks.peer_copies", "--inside"]
        done = subprocess.run(inside, env=environment, check=True, capture_output=True, text=True)
    result = {"transport": chosen.transport, "servers": chosen.servers, "rounds": ROUNDS}
    print(json.dumps({**result, "gb_per_s": json.loads(done.stdout)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
