"""Keeps the controller's reservations and the cluster's pods the same.

Pods that are deleted or have ended give their vGPUs back at once; bound pods have theirs until then, also those that
no filter has seen (another scheduler's, a restarted controller's). An edit of a pod's annotations resizes its vGPUs
while its programs run. Pods that wait for room are tried again when there is some.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from orion_controller.api.pod_models import Pod, PodPart
from orion_controller.kube_api import Change, KubeApi, KubeError, path_of
from orion_k8s import asks
from orion_k8s.asks import Asks, BadAsk
from orion_k8s.scheduler.controller_client import ControllerClient, ControllerError
from orion_k8s.scheduler.extender import Extender, wish_of

log = logging.getLogger("orion.scheduler")

COMPONENT = "orion-scheduler"
RETRY = "virtaitech.com/retry"  # annotation: a change of it makes kube-scheduler look at a waiting pod again
RECONCILE_S = 30.0
PAUSE_S = 2.0  # after a failure
AT_ONCE = 32
TOLD_AT_ONCE = 100
TELL_EVERY_S = 1.0
Object = dict[str, Any]


@dataclass
class Seen:
    """A pod that asks for vGPUs. `sizes`: what its annotations say, MiB and percent, 0: nothing; `problem`: why it
    cannot be understood."""

    ask: Asks
    sizes: tuple[int, int]
    problem: str = ""
    confirmed: bool = False
    applied: tuple[int, int] | None = None  # sizes that are in force, or (`refused`) cannot be
    refused: bool = False
    told: dict[str, str] = field(default_factory=dict)  # the last event of each reason


def slim(pod: Object, resource: str = asks.RESOURCE) -> Object | None:
    """What is kept of a pod that asks for vGPUs; None: it does not."""
    return pod if asks.asks_for_vgpus(pod, resource) else None


class Reconciler:
    """Belongs to one event loop."""

    def __init__(self, extender: Extender, controller: ControllerClient, api: KubeApi, *,
                 reconcile_s: float = RECONCILE_S, clock: Callable[[], float] = time.monotonic) -> None:  # fmt: skip
        self._extender, self._controller, self._api = extender, controller, api
        self._resource = extender.options.resource
        self._reconcile_s = reconcile_s
        self._clock = clock
        self.seen: dict[str, Seen] = {}
        self.is_listed = False  # what is seen is all there is
        self.is_well = False  # the last look at the whole was possible
        self._dirty: dict[str, None] = {}
        self._gone: dict[str, str] = {}  # uid -> reason
        self._wake = asyncio.Event()
        self._look = asyncio.Event()
        self._room = 0  # MiB that were free at the last look
        self._told_at_s = -TELL_EVERY_S
        self._has_news = False  # there may be room for those that wait
        self._retries = int(time.time())

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for work in (self._follow(), self._work(), self._look_at_all()):
                group.create_task(work)

    # ------------------------------------------------------------------------------------------------ what is seen

    async def _follow(self) -> None:
        async for change in self._api.follow(path_of("pods"), keep=lambda pod: slim(pod, self._resource)):
            self.take(change)

    def take(self, change: Change) -> None:
        """A change of the cluster's pods."""
        if change.kind == "LISTED":
            now = {str(asks.metadata(pod).get("uid")): pod for pod in change.items}
            for uid in [uid for uid in self.seen if uid not in now]:
                self._ends(uid, "its pod was deleted")
            for pod in change.items:
                self._put(pod)
            self.is_listed = True
            self._look.set()
        elif change.kind == "DELETED":
            uid = str(asks.metadata(change.items[0]).get("uid"))
            if uid in self.seen or slim(change.items[0], self._resource) is not None:
                self._ends(uid, "its pod was deleted")
        else:
            self._put(change.items[0])
        self._wake.set()

    def _put(self, pod: Object) -> None:
        told = asks.metadata(pod)
        uid, problem, sizes = str(told.get("uid") or ""), "", (0, 0)
        try:
            ask = asks.read(pod, self._resource)
            sizes = asks.annotated_sizes(pod)
        except BadAsk as error:
            problem = str(error)
            known = self.seen.get(uid)
            if known is None:
                return  # the filter tells it
            ask, sizes = known.ask, known.sizes
        if ask.is_over:
            self._ends(uid, "its pod has ended")
            return
        known = self.seen.get(uid)
        if known is None:
            known = self.seen[uid] = Seen(ask, sizes)
        is_new = known.ask.node != ask.node or known.sizes != sizes or known.problem != problem or not known.confirmed
        known.ask, known.sizes, known.problem = ask, sizes, problem
        if ask.node and is_new:
            self._dirty[uid] = None

    def _ends(self, uid: str, reason: str) -> None:
        self.seen.pop(uid, None)
        self._dirty.pop(uid, None)
        self._extender.refusals.discard(uid)
        self._gone[uid] = reason
        self._wake.set()

    # ------------------------------------------------------------------------------------------------ what is done

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not await self._work_once():
                await asyncio.sleep(PAUSE_S)
                self._wake.set()

    async def _work_once(self) -> bool:
        """Whether all that was to do is done, or cannot be."""
        gone, self._gone = self._gone, {}
        if gone:
            try:
                for reason in sorted(set(gone.values())):
                    told = await self._controller.release([u for u, why in gone.items() if why == reason], reason)
                    for uid in told.kept:
                        self._gone[uid] = reason
            except ControllerError as error:
                log.warning("%d pods that are gone keep their vGPUs for now: %s", len(gone), error)
                self._gone = gone | self._gone
                return False
            self._has_news = True
        if self._has_news:
            await self._tell_waiting()
        dirty, self._dirty = list(self._dirty), {}
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(uid: str) -> bool:
            async with limit:
                return await self._settle(uid)

        well = await asyncio.gather(*(one(uid) for uid in dirty))
        return all(well) and not self._gone

    async def _settle(self, uid: str) -> bool:
        """A bound pod has its vGPUs, in the sizes of its annotations. Whether that is known now."""
        seen = self.seen.get(uid)
        if seen is None:
            return True
        if seen.problem:
            await self._tell(seen, "Warning", "OrionResizeRefused", seen.problem)
            return True
        try:
            cluster = await self._extender.cluster()
            outcome = await self._controller.reserve(wish_of(seen.ask, 0.0, cluster, node=seen.ask.node))
            if uid not in self.seen:  # it has ended meanwhile: what was reserved now must not stay
                self._gone.setdefault(uid, "its pod has ended")
                self._wake.set()
                return True
            if outcome.refusal == "not_ready":
                self._dirty[uid] = None
                return False
            if outcome.refusal:
                seen.confirmed = False
                await self._tell(seen, "Warning", "OrionNoVgpus",
                                 f"the pod is bound and has no vGPUs: {outcome.message}")  # fmt: skip
                return True
            seen.confirmed = True
            if seen.applied != seen.sizes:
                await self._resize(seen, outcome.parts)
        except (ControllerError, KubeError) as error:
            log.warning("pod %s/%s is settled later: %s", seen.ask.namespace, seen.ask.name, error)
            self._dirty[uid] = None
            return False
        return True

    async def _resize(self, seen: Seen, parts: list[PodPart]) -> None:
        """All vGPUs of the pod or none; ControllerError: it is not known, and tried again."""
        gmem_mib, ratio_percent = sizes = seen.sizes
        is_first = seen.applied is None
        done: list[PodPart] = []
        for part in parts:
            wants_mib = gmem_mib if gmem_mib and gmem_mib != part.gmem_mib else None
            wants_percent = ratio_percent if ratio_percent and ratio_percent != part.ratio_percent else None
            if wants_mib is None and wants_percent is None:
                continue
            try:
                await self._controller.resize(part.group, wants_mib, wants_percent)
            except ControllerError as error:
                for other in done:
                    await self._controller.resize(other.group, other.gmem_mib, other.ratio_percent)
                if error.status in (0, 404, 503):
                    raise
                seen.applied, seen.refused = sizes, True
                await self._tell(seen, "Warning", "OrionResizeRefused",
                                 f"{_told(*sizes)}: refused, the vGPUs stay as they are: {error}")  # fmt: skip
                return
            done.append(part)
        seen.applied, seen.refused = sizes, False
        if done or not is_first:
            seen.told.pop("OrionResizeRefused", None)
            await self._tell(seen, "Normal", "OrionResized", f"{_told(*sizes)} for each of {seen.ask.vgpus} vGPUs")

    async def _tell(self, seen: Seen, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """An event on the pod, once for each thing that there is to say."""
        if seen.told.get(reason) == message:
            return
        seen.told[reason] = message
        log.info("pod %s/%s: %s: %s", seen.ask.namespace, seen.ask.name, reason, message)
        about = {"kind": "Pod", "metadata": {"namespace": seen.ask.namespace, "name": seen.ask.name,
                                             "uid": seen.ask.uid}}  # fmt: skip
        try:
            await self._api.create_event(about, kind, reason, message, COMPONENT)
        except KubeError as error:
            log.warning("no event could be written: %s", error)

    # ------------------------------------------------------------------------------------------------ the whole

    async def _look_at_all(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._reconcile_s):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            try:
                await self.look_once()
                self.is_well = True
            except (ControllerError, KubeError) as error:
                self.is_well = False
                log.warning("reservations and pods could not be compared: %s", error)
                await asyncio.sleep(PAUSE_S)

    async def look_once(self) -> None:
        """Compares everything. ControllerError, KubeError."""
        nodes = await self._controller.nodes()
        self._extender.servers = frozenset(node.name for node in nodes if node.state == "ready")
        room = sum(node.memory_mib - node.memory_given_mib for node in nodes if node.state == "ready")
        has_grown, self._room = room > self._room, room
        held = {pod.uid: pod for pod in await self._controller.pods()}
        cluster = await self._extender.cluster()
        if self.is_listed:
            # Another cluster's pods are not known here, and run all the same. Of those that name no cluster (they were
            # reserved by an older release) nobody knows; the ones of this cluster are claimed below.
            mine = (pod for uid, pod in held.items() if uid not in self.seen and pod.cluster == cluster)
            await self._release_strangers(list(mine))
        for uid, seen in self.seen.items():
            pod = held.get(uid)
            if seen.ask.node and (pod is None or pod.expires_s is not None or pod.cluster != cluster
                                  or (pod.lost and not pod.sessions)):  # fmt: skip
                seen.confirmed = False
                self._dirty[uid] = None
            elif seen.refused:
                seen.applied = (0, 0)  # perhaps not any more
                self._dirty[uid] = None
        self._has_news = self._has_news or has_grown
        self._wake.set()

    async def _release_strangers(self, pods: list[Pod]) -> None:
        """Those of this cluster whose pods are not there any more, as the API server itself says."""
        limit = asyncio.Semaphore(AT_ONCE)

        async def is_gone(pod: Pod) -> bool:
            async with limit:
                try:
                    found = await self._api.get(path_of("pods", pod.namespace, pod.name))
                except KubeError as error:
                    if error.status != 404:
                        raise
                    return True
            told = asks.metadata(found)
            phase = (found.get("status") or {}).get("phase")
            return told.get("uid") != pod.uid or phase in ("Succeeded", "Failed")

        # One that is reserved and not bound yet expires by itself.
        bound = [pod for pod in pods if pod.expires_s is None]
        answers = await asyncio.gather(*(is_gone(pod) for pod in bound))
        for pod, gone in zip(bound, answers, strict=True):
            if gone and pod.uid not in self.seen:
                self._gone[pod.uid] = "its pod is gone"

    async def _tell_waiting(self) -> None:
        """kube-scheduler does not see that there is room: pods that found none are changed, so that it tries again."""
        waiting = self._extender.refusals.pods
        now_s = self._clock()
        rest_s = self._told_at_s + TELL_EVERY_S - now_s
        if rest_s > 0:
            asyncio.get_running_loop().call_later(rest_s, self._wake.set)
            return
        self._has_news = len(waiting) > TOLD_AT_ONCE
        if not waiting:
            return
        self._told_at_s = now_s
        self._retries += 1
        for uid in list(waiting)[:TOLD_AT_ONCE]:
            refused = waiting.pop(uid, None)
            if refused is None:  # placed or deleted while another was told
                continue
            namespace, name, _ = refused
            change = {"metadata": {"uid": uid, "annotations": {RETRY: str(self._retries)}}}
            try:
                await self._api.patch(path_of("pods", namespace, name), change)
            except KubeError as error:
                if error.status not in (404, 409):
                    log.warning("pod %s/%s is not told that there is room: %s", namespace, name, error)


def _told(gmem_mib: int, ratio_percent: int) -> str:
    parts = [f"{gmem_mib} MiB" if gmem_mib else "", f"{ratio_percent} %" if ratio_percent else ""]
    return " and ".join(filter(None, parts)) or "the size of its environment"
