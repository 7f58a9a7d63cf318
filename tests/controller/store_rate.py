"""How many allocations a second the store commits, by how many wait at a time.

`python -m tests.controller.store_rate URL`, of an empty database. No test: what it finds depends on machine and disk.
"""

from __future__ import annotations

import asyncio
import sys
import time

from orion_controller.backend import AllocationRecord
from orion_controller.store import Store

_WRITES = 4000


def _record(name: str) -> AllocationRecord:
    return AllocationRecord(
        id=name, group="team", shared=False, reserved=False, gmem_mib=4096, ratio_percent=25, policy="",
        places=[("node-1", 0)], owner="1000@desk", program="train.py", since_s=1.0,
    )  # fmt: skip


async def _measure(url: str) -> None:
    store = Store.open(url)
    for waiting in (1, 8, 64, 512):
        each = (_WRITES if waiting > 1 else 200) // waiting
        took_s: list[float] = []

        async def one(worker: int, each: int = each, waiting: int = waiting, took_s: list[float] = took_s) -> None:
            for number in range(each):
                began_s = time.perf_counter()
                await store.save(_record(f"{waiting}-{worker}-{number}"))
                took_s.append(time.perf_counter() - began_s)

        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        await asyncio.gather(*(one(worker) for worker in range(waiting)))
        whole_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        took_s.sort()
        count = len(took_s)
        print(f"{waiting:4d} at a time: {count / whole_s:7.0f}/s, median {took_s[count // 2] * 1e3:.2f} ms, "
              f"p99 {took_s[count * 99 // 100] * 1e3:.2f} ms, {cpu_s / count * 1e6:.0f} us of a CPU each")  # fmt: skip
    await store.close()


if __name__ == "__main__":
    asyncio.run(_measure(sys.argv[1]))
