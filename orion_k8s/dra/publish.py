"""Keeps the cluster's ResourceSlices as the pool is: the part of the driver that runs once in a cluster.

It also gives back the vGPUs of pods whose claims are gone without their kubelet: a node that died gives nothing back.
Only of pods that it has seen in claims: another cluster may use the same controller.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from orion_controller.kube_api import KubeApi, KubeError, path_of
from orion_k8s.dra import API, devices
from orion_k8s.dra.claims import claimed, results_of
from orion_k8s.dra.devices import Mode
from orion_k8s.dra.pool_api import PoolApi, PoolError

log = logging.getLogger("orion.dra")

MANAGED_BY = {"app.kubernetes.io/managed-by": "orion-dra-driver"}
GONE_S = 120.0  # a kubelet gives back what its pods had; it has this long for it
SLICES = path_of("resourceslices", api=API)
CLAIMS = path_of("resourceclaims", api=API)
Object = dict[str, Any]


class Publisher:
    """One a cluster and driver: `run`. Only pools whose names begin with `prefix` are its own. While the controller is
    away the slices stay; while the API server is away nothing is known and nothing is done."""

    def __init__(self, kube: KubeApi, pool: PoolApi, *, driver: str, prefix: str, mode: Mode,
                 nodes: Mapping[str, str], interval_s: float, clock: Callable[[], float] = time.monotonic
                 ) -> None:  # fmt: skip
        self._kube = kube
        self._pool = pool
        self._driver = driver
        self._prefix = prefix
        self._mode: Mode = mode
        self._nodes = dict(nodes)
        self._interval_s = interval_s
        self._clock = clock
        self._slices: dict[str, Object] = {}  # by name, as the API server has them
        self._claims: dict[str, Object] = {}  # by uid: those that have devices of this driver
        self._wanted: dict[str, tuple[str, Object]] = {}  # by name: resourceVersion after our write, and what we wrote
        self._gone_since_s: dict[str, float] = {}  # pods that have been in claims and perhaps are not any more
        self._listed = {SLICES: asyncio.Event(), CLAIMS: asyncio.Event()}

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_slices())
            tasks.create_task(self._follow_claims())
            tasks.create_task(self._keep())

    async def _follow_slices(self) -> None:
        async for change in self._kube.follow(SLICES, {"fieldSelector": f"spec.driver={self._driver}"}):
            if change.kind == "LISTED":
                self._slices.clear()
            for item in change.items:
                name = item["metadata"]["name"]
                if change.kind == "DELETED":
                    self._slices.pop(name, None)
                elif str(_pool_of(item).get("name", "")).startswith(f"{self._prefix}/"):
                    self._slices[name] = item
            self._listed[SLICES].set()

    async def _follow_claims(self) -> None:
        async for change in self._kube.follow(CLAIMS):
            before: list[Object] = []
            if change.kind == "LISTED":
                before = list(self._claims.values())
                self._claims.clear()
            for item in change.items:
                uid = item["metadata"]["uid"]
                before += [self._claims[uid]] if uid in self._claims else []
                if change.kind != "DELETED" and results_of(item, self._driver):
                    self._claims[uid] = item
                else:
                    self._claims.pop(uid, None)
            # Those that are still in a claim are sorted out before anything is given back.
            self._gone_since_s |= dict.fromkeys(_pods_of(before), self._clock())
            self._listed[CLAIMS].set()

    async def _keep(self) -> None:
        for listed in self._listed.values():
            await listed.wait()
        while True:
            try:
                await self.reconcile()
            except PoolError as error:
                log.warning("the slices stay as they are: %s", error)
            except KubeError as error:
                log.warning("%s", error)
            await asyncio.sleep(self._interval_s)

    # ------------------------------------------------------------------------------------------------ once

    async def reconcile(self) -> None:
        """PoolError: nothing is changed. KubeError: some may be; what is missing is done next time."""
        gpus, ready = await self._pool.gpus(), await self._pool.ready_nodes()
        taken = claimed(list(self._claims.values()), devices.Index(gpus, self._prefix), self._driver)
        usable = (gpu for gpu in gpus if gpu.node in ready and not gpu.health)
        pools = devices.pools(usable, self._mode, taken, self._prefix)
        there: dict[str, dict[str, Object]] = defaultdict(dict)
        for name, item in self._slices.items():
            there[_pool_of(item)["name"]][name] = item
        failed: KubeError | None = None
        for pool in sorted(set(pools) | set(there)):
            try:
                await self._write(pool, pools.get(pool, []), there.get(pool, {}))
            except KubeError as error:  # the others are not to wait for this one
                failed = failed or error
        await self._give_back()
        if failed is not None:
            raise failed

    async def _give_back(self) -> None:
        until_s, here = self._clock() - GONE_S, _pods_of(self._claims.values())
        self._gone_since_s = {uid: since_s for uid, since_s in self._gone_since_s.items() if uid not in here}
        due = [uid for uid, since_s in self._gone_since_s.items() if since_s <= until_s]
        if due:
            await self._pool.release(due, "no ResourceClaim is reserved for its pod any more")
            for uid in due:
                del self._gone_since_s[uid]

    async def _write(self, pool: str, entries: list[Object], there: dict[str, Object]) -> None:
        newest = max((int(_pool_of(item).get("generation", 0)) for item in there.values()), default=0)
        wanted = devices.slices(self._driver, pool, entries, newest, self._nodes)
        names = {item["metadata"]["name"] for item in wanted}
        if names == set(there) and all(self._is(there[item["metadata"]["name"]], item) for item in wanted):
            return
        for item in wanted:
            item["metadata"]["labels"] = MANAGED_BY
            item["spec"]["pool"]["generation"] = newest + 1
            await self._put(item, there.get(item["metadata"]["name"]))
        for name in set(there) - names:
            try:
                await self._kube.delete(f"{SLICES}/{name}")
            except KubeError as error:
                if error.status != 404:
                    raise
            self._slices.pop(name, None)
        log.info("%s: %d devices in %d slices, generation %d", pool, len(entries), len(wanted), newest + 1)

    def _is(self, there: Object, wanted: Object) -> bool:
        """Whether a slice is as wanted: it says so, or nobody has changed it since we wrote that. An API server drops
        fields of features that it has not, and what is written again is dropped again."""
        if there["spec"] == wanted["spec"]:
            return True
        version, written = self._wanted.get(wanted["metadata"]["name"], ("", {}))
        return bool(version == there["metadata"].get("resourceVersion") and written == wanted["spec"])

    async def _put(self, item: Object, before: Object | None) -> None:
        name = item["metadata"]["name"]
        if before is None:
            told = await self._kube.create(SLICES, item)
        else:
            item["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"]
            told = await self._kube.replace(f"{SLICES}/{name}", item)
        self._slices[name] = told
        self._wanted[name] = (told["metadata"].get("resourceVersion", ""), item["spec"])
        if self._mode == "consumable" and not all(
            device.get("allowMultipleAllocations") for device in told["spec"].get("devices") or []
        ):
            log.error("this cluster does not know allowMultipleAllocations (feature gate DRAConsumableCapacity, on "
                      "from Kubernetes 1.36): one claim takes a whole GPU. Use --devices slots")  # fmt: skip


def _pods_of(claims: Iterable[Object]) -> set[str]:
    reserved = (r for claim in claims for r in (claim.get("status") or {}).get("reservedFor") or [])
    return {str(r.get("uid")) for r in reserved if isinstance(r, dict)}


def _pool_of(item: Object) -> Object:
    found = (item.get("spec") or {}).get("pool")
    return found if isinstance(found, dict) else {}
