"""Prepares ResourceClaims on a node: a reservation in the controller and a CDI specification for the containers.

What was prepared is kept in a folder that outlives driver and kubelet, a file a claim. A claim is prepared once,
however often the kubelet asks; a claim that has ended while the controller was away is given back later.
"""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from orion_controller.api import models
from orion_controller.kube_api import KubeApi, KubeError, path_of
from orion_k8s.dra import API, cdi, devices
from orion_k8s.dra.claims import ClaimError, Wish, read
from orion_k8s.dra.devices import Device
from orion_k8s.dra.pool_api import PoolApi, PoolError

log = logging.getLogger("orion.dra")

TTL_S = 600.0  # of a reservation whose pod's program has not come yet; it is renewed
KEEP_S = 60.0
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}")  # it becomes a file's name
_AWAY = (0, 503)


class Prepared(msgspec.Struct, kw_only=True):
    """A claim as it is kept. `results`: request, pool and device of each vGPU."""

    uid: str
    namespace: str
    name: str
    pod_uid: str
    allocation: str
    gmem_mib: int
    ratio_percent: int
    server: str
    servers: int
    results: list[tuple[str, str, str]]
    is_ending: bool = False


class Claims:
    """Belongs to one event loop."""

    def __init__(self, kube: KubeApi, pool: PoolApi, *, driver: str, prefix: str, state: Path, cdi_folder: Path,
                 contents: cdi.Contents) -> None:  # fmt: skip
        self._kube = kube
        self._pool = pool
        self._driver = driver
        self._prefix = prefix
        self._state = state
        self._cdi = cdi_folder
        self._contents = contents
        self._index: dict[tuple[str, str], Device] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._of_pod: dict[str, str] = {}  # claim by the pod that it is for
        self.prepared: dict[str, Prepared] = {}

    def load(self) -> None:
        """What an earlier driver has prepared, with its CDI files: their folder may not have outlived a restart."""
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        decoder = msgspec.json.Decoder(Prepared)
        for path in sorted(self._state.glob("*.json")):
            try:
                record = decoder.decode(path.read_bytes())
            except (OSError, msgspec.DecodeError) as error:
                log.error("%s is left out: %s", path, error)
                continue
            self.prepared[record.uid] = record
            self._of_pod[record.pod_uid] = record.uid
            if not record.is_ending:
                self._write_cdi(record)

    # ------------------------------------------------------------------------------------------------ the kubelet

    async def prepare(self, namespace: str, name: str, uid: str) -> Prepared:
        """ClaimError, PoolError, KubeError, OSError: it is not prepared, and the kubelet asks again."""
        _check(uid)
        async with self._alone(uid):
            record = self.prepared.get(uid)
            if record is not None and record.is_ending:
                await self._end(record)
                record = None
            if record is None:
                return await self._prepare(namespace, name, uid)
            try:
                await self._renew(record)
            except PoolError as error:
                if error.status not in _AWAY:
                    raise
                log.warning("%s/%s is as it was prepared: %s", namespace, name, error)
            self._write_cdi(record)
            return record

    async def unprepare(self, uid: str) -> None:
        """Also of a claim that was never prepared. OSError."""
        _check(uid)
        async with self._alone(uid):
            cdi.file_of(self._cdi, self._driver, uid).unlink(missing_ok=True)
            record = self.prepared.get(uid)
            if record is None:
                return
            record.is_ending = True
            self._save(record)
            try:
                await self._end(record)
            except PoolError as error:  # a pod must not wait for the controller to end
                log.warning("%s/%s is given back later: %s", record.namespace, record.name, error)

    # ------------------------------------------------------------------------------------------------ time

    async def keep(self, interval_s: float = KEEP_S) -> None:
        """For ever: reservations for which no program has come yet do not expire; what has ended is given back."""
        while True:
            await asyncio.sleep(interval_s)
            await self.keep_once()

    async def keep_once(self) -> None:
        for uid in list(self.prepared):
            async with self._alone(uid):
                record = self.prepared.get(uid)
                if record is None:
                    continue
                try:
                    await (self._end(record) if record.is_ending else self._renew(record))
                except (PoolError, ClaimError, OSError) as error:
                    log.warning("%s/%s: %s", record.namespace, record.name, error)

    # ------------------------------------------------------------------------------------------------ inside

    async def _prepare(self, namespace: str, name: str, uid: str) -> Prepared:
        claim = await self._kube.get(path_of("resourceclaims", namespace, name, api=API))
        if (claim.get("metadata") or {}).get("uid") != uid:
            raise ClaimError(f"{namespace}/{name} is another claim of that name: this one is gone")
        wish = await self._read(claim)
        other = self._of_pod.setdefault(wish.pod_uid, uid)
        if other != uid:
            raise ClaimError(f"the pod {namespace}/{wish.pod_name} has another claim for vGPUs: ask for all of them in "
                             "one claim, with count or with several requests")  # fmt: skip
        try:
            record = await self._reserve(wish, namespace, name, uid)
            self._save(record)
            self._write_cdi(record)
        except BaseException:
            if uid not in self.prepared:
                del self._of_pod[wish.pod_uid]
            raise
        log.info("%s/%s: %d vGPUs of %d MiB and %d %% for the pod %s, as %s", namespace, name, len(wish.results),
                 wish.size.gmem_mib, wish.size.ratio_percent, wish.pod_name, record.allocation)  # fmt: skip
        return record

    async def _read(self, claim: dict[str, Any]) -> Wish:
        try:
            return read(claim, self._index, self._driver)
        except ClaimError:
            self._index = devices.index(await self._pool.gpus(), self._prefix)  # a server may have come since
        return read(claim, self._index, self._driver)

    async def _reserve(self, wish: Wish, namespace: str, name: str, uid: str) -> Prepared:
        record = Prepared(
            uid=uid, namespace=namespace, name=name, pod_uid=wish.pod_uid, allocation="", gmem_mib=wish.size.gmem_mib,
            ratio_percent=wish.size.ratio_percent, server=wish.places[0][0],
            servers=len({server for server, _ in wish.places}), results=list(wish.results),
        )  # fmt: skip
        group = await self._pool.reserve(_request(record))
        if (group.vgpus, group.gmem_mib, group.ratio_percent) != (
            len(record.results), record.gmem_mib, record.ratio_percent,
        ):  # fmt: skip
            raise ClaimError(
                f"the pod {namespace}/{wish.pod_name} has {group.vgpus} vGPUs of {group.gmem_mib} MiB and "
                f"{group.ratio_percent} % already: it asks for them with a claim or with limits, not with both"
            )
        record.allocation = group.id
        return record

    async def _renew(self, record: Prepared) -> None:
        """The reservation is there, and for some time."""
        group = await self._pool.group(record.allocation)
        if group is not None and group.state != "reserved":
            return
        now = await self._pool.reserve(_request(record))
        if now.id != record.allocation:
            record.allocation = now.id
            self._save(record)

    async def _end(self, record: Prepared) -> None:
        await self._pool.end(record.allocation)
        self._file(record.uid).unlink(missing_ok=True)
        self.prepared.pop(record.uid, None)
        self._of_pod.pop(record.pod_uid, None)
        log.info("%s/%s: given back", record.namespace, record.name)

    def _save(self, record: Prepared) -> None:
        cdi.write_whole(self._file(record.uid), record)
        self.prepared[record.uid] = record

    def _file(self, uid: str) -> Path:
        return self._state / f"{uid}.json"

    def _write_cdi(self, record: Prepared) -> None:
        values = {
            "ORION_GROUP_ID": record.pod_uid,
            "ORION_VGPU": str(len(record.results)),
            "ORION_GMEM": str(record.gmem_mib),
            "ORION_RATIO": str(record.ratio_percent),
            # All programs of the pod share what the claim has: another one of its own would be beyond the claim.
            "ORION_RES_GROUP": "BOX",
            "ORION_CROSS_NODE": "1" if record.servers > 1 else "0",
        }
        made = cdi.specification(self._driver, record.uid, values, self._contents)
        cdi.write_whole(cdi.file_of(self._cdi, self._driver, record.uid), made)

    def _alone(self, uid: str) -> asyncio.Lock:
        """One at a time for a claim."""
        lock = self._locks.get(uid)
        if lock is None:
            lock = self._locks[uid] = asyncio.Lock()
        return lock


def _request(record: Prepared) -> models.Reserve:
    return models.Reserve(
        group=record.pod_uid, vgpus=len(record.results), gmem_mib=record.gmem_mib, ratio_percent=record.ratio_percent,
        node=record.server, cross_node=record.servers > 1, ttl_s=TTL_S,
    )  # fmt: skip


def _check(uid: str) -> None:
    if not _UID.fullmatch(uid):
        raise ClaimError(f"{uid!r:.120} is no uid of a claim")


def sentence(error: Exception) -> str:
    """For the pod's events."""
    if isinstance(error, KubeError) and not error.status:
        return f"the API server does not answer: {error}"
    if isinstance(error, OSError):
        return f"the node's files cannot be written: {error}"
    return str(error)


FAILURES = (ClaimError, PoolError, KubeError, OSError)
__all__ = ["FAILURES", "Claims", "Prepared", "sentence"]
