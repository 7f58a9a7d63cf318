"""A replica as a process of its own, for test_leader.py: takes part in the election, tries to write all the time
whether it leads or not, and prints what it saw: one JSON object a line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

from orion_controller.backend import AllocationRecord
from orion_controller.leader import Election, boottime_s
from orion_controller.store import NotLeading, Store, StoreError


async def run(url: str, name: str, lease_s: float) -> None:
    store = Store.open(url, retry_s=0.0)
    election = Election(store, name, f"{name}:9123", f"http://{name}", renew_s=min(lease_s / 8, 1.0), lease_s=lease_s)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await election.start()
    number = 0
    while not stopping.is_set():
        at_s = boottime_s()
        leads, term = election.is_leader, election.term
        number += 1
        record = AllocationRecord(
            id=f"{name}-{number}", group="", shared=False, reserved=False, gmem_mib=1, ratio_percent=1, policy="",
            places=[], owner=name, program="", since_s=at_s,
        )  # fmt: skip
        try:
            await store.save(record)
            wrote = "yes"
        except NotLeading:
            wrote = "refused"
        except StoreError:
            wrote = "failed"
        line = {"at": at_s, "leads": leads, "term": term, "wrote": wrote, "leader": election.leader_address}
        os.write(1, json.dumps(line).encode() + b"\n")
        await asyncio.sleep(0.02)
    await election.stop()
    await store.close()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], float(sys.argv[3])))
