"""What pages of the REST API cost with a full pool: `python3 -m benchmarks.controller_pages [--nodes 1000]`.

A real controller's pool with simulated servers, every vGPU given out to a group of its own with a program on it; real
accounts; HTTP over loopback from the same process. Prints JSON: milliseconds of each page (first, and the median,
which includes the client's part), CPU time of the first, and the longest time for which the event loop was kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from orion_controller.service import Controller
from orion_controller.store import Store
from tests.controller.http_world import World, world
from tests.controller.linked import Leads
from tests.controller.simulated import SimulatedServer, wish

GPUS, VGPUS, CAPACITY_MIB = 8, 8, 80_000
PAGES = {
    "summary": "/api/v1/summary",
    "nodes": "/api/v1/nodes",
    "node": "/api/v1/nodes/node0001",
    "gpus": "/api/v1/gpus",
    "gpus by utilization": "/api/v1/gpus?sort=-utilization_percent&limit=50",
    "gpus of a node": "/api/v1/gpus?node=node0001&limit=1000",
    "vgpus": "/api/v1/vgpus",
    "vgpus sorted": "/api/v1/vgpus?sort=-used_mib",
    "vgpus searched": "/api/v1/vgpus?q=node0002",
    "groups": "/api/v1/groups",
    "sessions": "/api/v1/sessions",
    "events": "/api/v1/events",
    "history": "/api/v1/history",
    "portal": "/",
    "metrics": "/metrics",
}


def fill(controller: Controller, nodes: int) -> None:
    """Registers servers and gives every vGPU out, as messages of servers and clients would."""
    pool = controller.pool
    now_s, wall_s = time.monotonic(), time.time()
    servers = {f"node{n:04d}": SimulatedServer(f"node{n:04d}", GPUS, CAPACITY_MIB, VGPUS) for n in range(nodes)}
    for server in servers.values():
        pool.register(server.register(), now_s, wall_s)
    for number in range(nodes * GPUS * VGPUS):
        asked = wish(gmem_mib=CAPACITY_MIB // VGPUS, ratio=100 // VGPUS, group=f"team-{number % 500}", pid=number)
        allocation = pool.allocate(asked, now_s, wall_s)
        for ticket in pool.tickets(allocation, now_s, wall_s):
            servers[ticket.server].attach(ticket, pid=number)
    for server in servers.values():
        server.beat(pool, now_s)


class Stalls:
    """The longest time for which the event loop did nothing else."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def watch(self) -> None:
        while True:
            began_s = time.perf_counter()
            await asyncio.sleep(0.001)
            self.longest_s = max(self.longest_s, time.perf_counter() - began_s - 0.001)


async def measure(w: World, repeats: int) -> dict[str, Any]:
    rows = {}
    for name, path in PAGES.items():
        stalls = Stalls()
        watch = asyncio.ensure_future(stalls.watch())
        took_ms, cpu_ms, size = [], [], 0
        for _ in range(repeats):
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            answer = await w.get(path)
            cpu_ms.append(1000 * (time.process_time() - began_cpu_s))
            took_ms.append(1000 * (time.perf_counter() - began_s))
            size = len(answer.body)
            if answer.status != 200:
                raise RuntimeError(f"{path}: {answer.status} {answer.body[:200]!r}")
            await asyncio.sleep(0.05)
        watch.cancel()
        rows[name] = {
            "first_ms": round(took_ms[0], 1), "median_ms": round(statistics.median(took_ms), 1),
            "max_ms": round(max(took_ms), 1), "first_cpu_ms": round(cpu_ms[0], 1),
            "stall_ms": round(1000 * stalls.longest_s, 1), "bytes": size,
        }  # fmt: skip
    return rows


async def run(nodes: int, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "accounts").mkdir()
        store = Store.open(f"sqlite:///{folder / 'pool.db'}")
        store.fence(None)
        controller = Controller(store, Leads(), name="pages")
        try:
            await controller.take_over()
            fill(controller, nodes)
            async with world(folder / "accounts", controller, clock=time.monotonic, wall_clock=time.time) as w:
                rows = await measure(w, repeats)
            summary = controller.summary()
        finally:
            await controller.close()
            await store.close()
    return {"nodes": summary.nodes, "gpus": summary.gpus, "vgpus": summary.vgpus, "sessions": summary.sessions,
            "repeats": repeats, "pages": rows}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    json.dump(uvloop.run(run(arguments.nodes, arguments.repeats)), sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
