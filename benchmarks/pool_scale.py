"""How large a pool one controller keeps: `python3 -m benchmarks.pool_scale OUT.json [--servers 1000]`.

Simulated servers (orion-server's own connection, with no GPU behind it) and clients speak the real protocol to a real
controller with its store, each in a process of its own on this machine. Told: the controller's CPU for heartbeats
alone and with every vGPU given out, the rate and the latency of allocations as clients see them, whether any GPU was
given out twice, and the controller's memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio

from orion_controller.daemon import collect_seldom
from orion_controller.service import Controller
from orion_controller.store import Store
from tests.controller.linked import Leads, LinkedClient, LinkedServer
from tests.controller.simulated import SimulatedServer
from wire import pool as wire
from wire.control import WIRE_VERSION

GPUS, VGPUS, CAPACITY_MIB = 8, 8, 80_000
WATCH_S = 12.0
AT_ONCE = 4000  # tickets that are out, before their programs come


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


# ---------------------------------------------------------------------------------------------------- processes


def controller_process(folder: str, pipe: Connection) -> None:
    async def serve() -> None:
        store = await asyncio.to_thread(Store.open, f"sqlite:///{folder}/pool.db")
        store.fence(None)
        controller = Controller(store, Leads(), name="scale")
        await controller.take_over()
        pipe.send(controller.listen("127.0.0.1", 0, per_connection=1e6))
        loop = asyncio.get_running_loop()
        while (asked := await loop.run_in_executor(None, pipe.recv)) != "stop":
            pipe.send(controller.summary() if asked == "summary" else None)
        await controller.close()
        await store.close()

    import uvloop

    collect_seldom()
    uvloop.run(serve())


def servers_process(address: str, first: int, count: int, pipe: Connection) -> None:
    async def serve() -> None:
        context: Any = zmq.Context(io_threads=1)
        context.setsockopt(zmq.MAX_SOCKETS, 4096)
        servers = {}
        for number in range(first, first + count):
            name = f"node{number:04d}"
            simulated = SimulatedServer(name, gpus=GPUS, capacity_mib=CAPACITY_MIB, max_vgpus=VGPUS)
            servers[name] = LinkedServer(simulated, address, context=context)
            await asyncio.sleep(0.001)  # as on different machines: not all heartbeats at once
        loop = asyncio.get_running_loop()
        while (asked := await loop.run_in_executor(None, pipe.recv)) != "stop":
            for number, (server, ticket) in enumerate(asked):
                servers[server].attach(ticket)
                if number % 20 == 19:
                    await asyncio.sleep(0)  # heartbeats go on
            pipe.send(len(asked))
        for server in servers.values():
            if server.link._timer is not None:
                server.link._timer.cancel()

    import uvloop

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(serve())


async def allocate(address: str, wanted: int, clients: int) -> dict[str, Any]:
    """`wanted` vGPUs of an eighth, asked for by `clients` at a time."""
    context = zmq.asyncio.Context(io_threads=1)
    took_s: list[float] = []
    given: list[tuple[str, bytes]] = []
    refused: Counter[str] = Counter()
    left = iter(range(wanted))

    async def client() -> None:
        socket = LinkedClient(address, context)
        for number in left:
            began_s = time.perf_counter()
            answer = await socket.ask(wire.Allocate(
                id=0, wire=WIRE_VERSION, vgpu=1, gmem_mib=CAPACITY_MIB // VGPUS, ratio=100 // VGPUS, pid=number, uid=1,
                node="client", program="/usr/bin/python3"), 120)  # fmt: skip
            took_s.append(time.perf_counter() - began_s)
            if isinstance(answer, wire.Allocated):
                given.append((answer.servers[0].server, answer.servers[0].ticket))
            else:
                refused[answer.message] += 1
        socket.close()

    began_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    wall_s = time.perf_counter() - began_s
    context.term()
    took_s.sort()
    return {
        "clients": clients, "allocated": len(given), "refused": dict(refused.most_common(3)),
        "per_second": round(len(given) / wall_s), "median_ms": round(1e3 * took_s[len(took_s) // 2], 2),
        "p99_ms": round(1e3 * took_s[int(len(took_s) * 0.99)], 2), "given": given,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- the run


def over_commits(given: list[tuple[str, bytes]]) -> int:
    """GPUs that have more than they can."""
    import msgspec

    from wire.ticket import MAC_BYTES, Ticket

    per_gpu: Counter[tuple[str, int]] = Counter()
    for server, data in given:
        ticket = msgspec.msgpack.decode(data[:-MAC_BYTES], type=Ticket)
        for ordinal in ticket.ordinals:
            per_gpu[server, ordinal] += 1
    return sum(count > VGPUS for count in per_gpu.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--servers", type=int, default=1000)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 64])
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    result: dict[str, Any] = {
        "command": "python3 -m benchmarks.pool_scale " + " ".join(["OUT.json", *sys.argv[2:]]),
        "commit": subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True,
                                 text=True).stdout.strip(),
        "machine": {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
        "servers": options.servers, "gpus": options.servers * GPUS, "vgpus": options.servers * GPUS * VGPUS,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        pipe, theirs = context.Pipe()
        controller = context.Process(target=controller_process, args=(folder, theirs))
        controller.start()
        address = pipe.recv()
        servers_pipe, theirs = context.Pipe()
        servers = context.Process(target=servers_process, args=(address, 0, options.servers, theirs))
        servers.start()
        assert controller.pid is not None

        def ask() -> Any:
            pipe.send("summary")
            return pipe.recv()

        def watch() -> dict[str, float]:
            before_s, began_s = cpu_s(controller.pid), time.monotonic()  # type: ignore[arg-type]
            time.sleep(WATCH_S)
            share = (cpu_s(controller.pid) - before_s) / (time.monotonic() - began_s)  # type: ignore[arg-type]
            return {"cpu_of_one_core": round(share, 4), "rss_mib": round(rss_mib(controller.pid), 1)}  # type: ignore[arg-type]

        try:
            began_s = time.monotonic()
            while ask().nodes_ready < options.servers:
                time.sleep(0.1)
            result["joined_s"] = round(time.monotonic() - began_s, 2)
            time.sleep(3)
            result["heartbeats_idle"] = watch()
            print("heartbeats, nothing given out:", result["heartbeats_idle"], flush=True)
            rows, everything = [], []
            wanted = result["vgpus"] // len(options.clients)
            for clients in options.clients:
                cap = min(wanted, 300 * clients if clients < 8 else 6000)
                row = asyncio.run(allocate(address, cap, clients))
                everything += row.pop("given")
                rows.append(row)
                print("allocations:", row, flush=True)
                # Each program comes with its ticket, or it would be lost.
                servers_pipe.send(everything[-row["allocated"] :])
                servers_pipe.recv()
            result["allocations"] = rows
            left = result["vgpus"] - len(everything)
            rounds: list[dict[str, Any]] = []
            while left > -AT_ONCE and (not rounds or not rounds[-1]["refused"]):
                rounds.append(asyncio.run(allocate(address, min(AT_ONCE, left + 50), 64)))
                everything += rounds[-1]["given"]
                left -= rounds[-1]["allocated"]
                servers_pipe.send(rounds[-1].pop("given"))
                servers_pipe.recv()
            rest = {
                "clients": 64, "allocated": sum(r["allocated"] for r in rounds), "refused": rounds[-1]["refused"],
                "per_second": [r["per_second"] for r in rounds], "p99_ms": [r["p99_ms"] for r in rounds],
            }  # fmt: skip
            result["until_full"] = rest
            result["over_commits"] = over_commits(everything)
            print("until the pool is full:", rest, "over-commits:", result["over_commits"], flush=True)
            time.sleep(5)
            result["heartbeats_full"] = watch()
            result["sessions"] = ask().sessions
            print("heartbeats, everything given out:", result["heartbeats_full"], flush=True)
        finally:
            servers_pipe.send("stop")
            servers.join(30)
            pipe.send("stop")
            controller.join(30)
            for process in (servers, controller):
                if process.is_alive():
                    process.kill()
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
