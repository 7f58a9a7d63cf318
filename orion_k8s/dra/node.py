"""Prepares ResourceClaims on a node: a reservation in the controller and a CDI specification for the containers.

What was prepared is kept in a folder that outlives driver and kubelet, a file a claim. A claim is prepared once,
however often the kubelet asks; a claim that has ended while the controller was away is given back later. In the
controller a pod has a part for each of its claims; all of them are asked for together, since what is not asked for
again is given back.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from orion_controller.api import pod_models
from orion_controller.kube_api import KubeApi, KubeError, path_of
from orion_k8s.dra import API, cdi
from orion_k8s.dra.claims import ClaimError, Wish, read
from orion_k8s.dra.devices import Index
from orion_k8s.dra.pool_api import PoolApi, PoolError

log = logging.getLogger("orion.dra")

KEEP_S = 30.0
PART = "claim:"  # begins the name of a claim's part in the controller
_RENEWS_EACH = 10  # looks
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}")  # it becomes a file's name
_AWAY = (0, 503)


class Prepared(msgspec.Struct, kw_only=True):
    """A claim as it is kept. `places`: server and GPU of each vGPU; `results`: its request, pool and device."""

    uid: str
    namespace: str
    name: str
    pod_uid: str
    pod_name: str
    gmem_mib: int
    ratio_percent: int
    places: list[tuple[str, int]]
    results: list[tuple[str, str, str]]
    is_ending: bool = False


class Claims:
    """Belongs to one event loop."""

    def __init__(self, kube: KubeApi, pool: PoolApi, *, driver: str, prefix: str, state: Path, cdi_folder: Path,
                 contents: cdi.Contents, cluster: str = "") -> None:  # fmt: skip
        """`cluster`: this one's id in reservations; empty: the uid of its namespace kube-system."""
        self._kube = kube
        self._cluster = cluster
        self._pool = pool
        self._driver = driver
        self._prefix = prefix
        self._state = state
        self._cdi = cdi_folder
        self._contents = contents
        self._index = Index([], prefix)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
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
                if error.status not in _AWAY and error.code != "not_ready":
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

    async def keep(self) -> None:
        """For ever: gives back what has ended while the controller was away, and sees that the controller has what was
        prepared."""
        for look in itertools.count(1):
            await asyncio.sleep(KEEP_S)
            await self.keep_once(renews=look % _RENEWS_EACH == 0)

    async def keep_once(self, renews: bool = True) -> None:
        for uid in list(self.prepared):
            async with self._alone(uid):
                record = self.prepared.get(uid)
                if record is None or not (record.is_ending or renews):
                    continue
                try:
                    await (self._end(record) if record.is_ending else self._renew(record))
                except (PoolError, OSError) as error:
                    log.warning("%s/%s: %s", record.namespace, record.name, error)

    # ------------------------------------------------------------------------------------------------ inside

    async def _prepare(self, namespace: str, name: str, uid: str) -> Prepared:
        claim = await self._kube.get(path_of("resourceclaims", namespace, name, api=API))
        if (claim.get("metadata") or {}).get("uid") != uid:
            raise ClaimError(f"{namespace}/{name} is another claim of that name: this one is gone")
        wish = await self._read(claim)
        record = Prepared(
            uid=uid, namespace=namespace, name=name, pod_uid=wish.pod_uid, pod_name=wish.pod_name,
            gmem_mib=wish.size.gmem_mib, ratio_percent=wish.size.ratio_percent, places=list(wish.places),
            results=list(wish.results),
        )  # fmt: skip
        async with self._alone(f"pod {record.pod_uid}"):
            there = await self._pool.pod(record.pod_uid)
            if there is not None and not all(part.container.startswith(PART) for part in there.parts):
                raise ClaimError(f"the pod {namespace}/{wish.pod_name} has vGPUs by its limits already: it asks for "
                                 "them with a claim or with limits, not with both")  # fmt: skip
            await self._reserve(record)
            self._save(record)
        self._write_cdi(record)
        log.info("%s/%s: %d vGPUs of %d MiB and %d %% for the pod %s", namespace, name, len(wish.results),
                 wish.size.gmem_mib, wish.size.ratio_percent, wish.pod_name)  # fmt: skip
        return record

    async def _read(self, claim: dict[str, Any]) -> Wish:
        try:
            return read(claim, self._index, self._driver)
        except ClaimError:
            self._index = Index(await self._pool.gpus(), self._prefix)  # a server may have come since
        return read(claim, self._index, self._driver)

    async def _reserve(self, record: Prepared) -> None:
        """This and all that the pod has besides; the pod's lock is held."""
        known = [r for r in self.prepared.values() if r.pod_uid == record.pod_uid and not r.is_ending]
        records = {r.uid: r for r in [*known, record]}
        self._cluster = self._cluster or await self._kube.cluster_id()
        await self._pool.reserve(pod_models.PodWish(
            uid=record.pod_uid, namespace=record.namespace, name=record.pod_name, ttl_s=0.0,
            cluster=self._cluster,
            containers=[_part(records[uid]) for uid in sorted(records)],
        ))  # fmt: skip

    async def _renew(self, record: Prepared) -> None:
        """What was reserved is there: a controller may have lost it, with its database or with a server."""
        async with self._alone(f"pod {record.pod_uid}"):
            await self._reserve(record)

    async def _end(self, record: Prepared) -> None:
        async with self._alone(f"pod {record.pod_uid}"):
            rest = [r for r in self.prepared.values() if r.pod_uid == record.pod_uid and not r.is_ending]
            if rest:
                await self._reserve(rest[0])
            else:
                await self._pool.release([record.pod_uid], "its ResourceClaim is no longer used")
            self._file(record.uid).unlink(missing_ok=True)
            self.prepared.pop(record.uid, None)
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
            "ORION_CROSS_NODE": "1" if len({server for server, _ in record.places}) > 1 else "0",
        }
        made = cdi.specification(self._driver, record.uid, values, self._contents)
        cdi.write_whole(cdi.file_of(self._cdi, self._driver, record.uid), made)

    def _alone(self, what: str) -> asyncio.Lock:
        """One at a time for a claim (its uid), or within that for a pod."""
        lock = self._locks.get(what)
        if lock is None:
            lock = self._locks[what] = asyncio.Lock()
        return lock


def _part(record: Prepared) -> pod_models.PodContainer:
    return pod_models.PodContainer(
        name=f"{PART}{record.uid}", vgpus=len(record.places), gmem_mib=record.gmem_mib,
        ratio_percent=record.ratio_percent,
        places=[pod_models.PodPlace(node=server, ordinal=ordinal) for server, ordinal in record.places],
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
