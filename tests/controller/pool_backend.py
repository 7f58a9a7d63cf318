"""A Backend over plain data, for tests of what stands on it: every answer is known, nothing moves by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from orion_controller.api import models, pod_models
from orion_controller.backend import Backend, ServiceError

GPU_MIB = 81_920


class PoolBackend:
    """`populate` fills it; tests may change its lists. `failure`: what the next change raises. `calls` counts reads."""

    def __init__(self, nodes: int = 0, gpus_per_node: int = 2, vgpus_per_gpu: int = 2) -> None:
        self.is_leader = True
        self.leader_url = ""
        self.failure: BaseException | None = None
        self.calls: list[str] = []
        self.all_nodes: dict[str, models.Node] = {}
        self.all_gpus: list[models.Gpu] = []
        self.all_vgpus: dict[str, list[models.Vgpu]] = {}  # by group id
        self.all_groups: dict[str, models.Group] = {}
        self.all_sessions: dict[str, models.Session] = {}
        self.all_pods: dict[str, pod_models.Pod] = {}
        self.all_queue: list[models.Waiting] = []
        self.all_limits: dict[str, models.Limits] = {}
        self.all_events: list[models.Event] = []
        if nodes:
            self.populate(nodes, gpus_per_node, vgpus_per_gpu)

    def populate(self, nodes: int, gpus_per_node: int, vgpus_per_gpu: int) -> None:
        """Each vGPU is a group of its own with one session; every eighth group is a reservation."""
        number = 0
        for n in range(nodes):
            name = f"node-{n:04d}"
            for ordinal in range(gpus_per_node):
                for _ in range(vgpus_per_gpu):
                    self._add_group(number, name, ordinal, 100 // vgpus_per_gpu)
                    number += 1
                self.all_gpus.append(
                    models.Gpu(
                        node=name, ordinal=ordinal, uuid=f"GPU-{n:08x}-{ordinal}", name="NVIDIA H100",
                        total_mib=GPU_MIB, capacity_mib=GPU_MIB - 1024, given_mib=8192 * vgpus_per_gpu,
                        used_mib=1024 * vgpus_per_gpu, ratio_given_percent=100, ratio_percent=100,
                        vgpus=vgpus_per_gpu, max_vgpus=8,
                        utilization_percent=None if n % 3 == 2 else (7 * n + ordinal) % 101, temperature_c=40 + n % 40,
                        power_w=300, health="" if n % 50 != 49 else "Xid 79",
                    )
                )  # fmt: skip
            self.all_nodes[name] = models.Node(
                name=name, address=f"127.0.{n >> 8}.{n & 255}:9960", state="lost" if n % 7 == 6 else "ready",
                version="0.1.0", driver="580.95", device_kind="NVIDIA H100", gpus=gpus_per_node,
                vgpus=gpus_per_node * vgpus_per_gpu, sessions=gpus_per_node * vgpus_per_gpu,
                memory_mib=GPU_MIB * gpus_per_node, memory_given_mib=8192 * gpus_per_node * vgpus_per_gpu,
                memory_used_mib=0, utilization_percent=None if n % 3 == 2 else float(n % 100), last_heartbeat_s=1000.0,
                since_s=100.0 + n,
            )  # fmt: skip
        self.all_pods["pod-uid"] = pod_models.Pod(
            uid="pod-uid", namespace="ml", name="trainer", state="reserved", parts=[], vgpus=0, nodes=[], sessions=0,
            since_s=1.0, expires_s=99.0,
        )  # fmt: skip
        self.all_queue = [
            models.Waiting(position=1, group="late", vgpus=4, gmem_mib=8192, ratio_percent=50, owner="1000@desk",
                           program="python", since_s=10.0, reason="no room")
        ]  # fmt: skip
        self.all_limits = {"*": models.Limits(group="*", vgpus=64)}
        self.note("info", "node.registered", "node-0000", "2 GPUs", "")

    def _add_group(self, number: int, node: str, ordinal: int, ratio_percent: int) -> None:
        group_id = f"alloc-{number:06d}"
        name = f"team-{number % 10}"
        is_reserved = number % 8 == 7
        self.all_groups[group_id] = models.Group(
            id=group_id, group=name, state="reserved" if is_reserved else "active", shared=False, reserved=is_reserved,
            vgpus=1, nodes=[node], gmem_mib=8192, ratio_percent=ratio_percent, policy="hard", used_mib=1024,
            achieved_percent=float(number % 50), sessions=0 if is_reserved else 1, program="python train.py",
            owner=f"ml/trainer-{number}" if number % 2 else f"1000@desk-{number}", since_s=float(number),
            expires_s=99.0 if is_reserved else None,
        )  # fmt: skip
        self.all_vgpus[group_id] = [
            models.Vgpu(
                id=f"{group_id}/0", vgpu="" if is_reserved else f"vgpu{number}", node=node, ordinal=ordinal,
                group=group_id, quota_mib=8192, used_mib=1024, ratio_percent=ratio_percent, policy="hard",
                achieved_percent=float(number % 50), throttled_ms=number, launches=2 * number,
                sessions=0 if is_reserved else 1,
            )
        ]  # fmt: skip
        if not is_reserved:
            self.all_sessions[f"s/{number}"] = models.Session(
                id=f"s/{number}", node=node, group=group_id, group_name=name, pid=1000 + number, uid=1000, host="desk",
                program="python train.py", transport="tcp", since_s=float(number),
            )  # fmt: skip

    # ------------------------------------------------------------------------------------------------ reads

    def summary(self) -> models.Summary:
        states = [node.state for node in self.all_nodes.values()]
        return models.Summary(
            nodes=len(states), nodes_ready=states.count("ready"), nodes_draining=states.count("draining"),
            nodes_lost=states.count("lost"), gpus=len(self.all_gpus), vgpus=sum(map(len, self.all_vgpus.values())),
            vgpus_free=7, memory_mib=1, memory_given_mib=1, memory_used_mib=1, ratio_given_percent=1, ratio_percent=1,
            utilization_percent=None, sessions=len(self.all_sessions), groups=len(self.all_groups),
            queue=len(self.all_queue), controller="test", leader=self.is_leader, version="0.1.0", since_s=1.0,
        )  # fmt: skip

    def nodes(self) -> list[models.Node]:
        self.calls.append("nodes")
        return list(self.all_nodes.values())

    def gpus(self, node: str = "") -> list[models.Gpu]:
        return [gpu for gpu in self.all_gpus if node in ("", gpu.node)]

    def vgpus(self, node: str = "", group: str = "") -> list[models.Vgpu]:
        of = [self.all_vgpus.get(group, [])] if group else self.all_vgpus.values()
        return [vgpu for vgpus in of for vgpu in vgpus if node in ("", vgpu.node)]

    def groups(self) -> list[models.Group]:
        self.calls.append("groups")
        return list(self.all_groups.values())

    def sessions(self, node: str = "", group: str = "") -> list[models.Session]:
        return [s for s in self.all_sessions.values() if node in ("", s.node) and group in ("", s.group)]

    def pods(self) -> Iterator[pod_models.Pod]:
        return iter(list(self.all_pods.values()))

    def queue(self) -> list[models.Waiting]:
        return list(self.all_queue)

    def limits(self) -> list[models.Limits]:
        return list(self.all_limits.values())

    def history(self, scope: str) -> models.History:
        kind, _, name = scope.partition("/")
        known = {"pool": not name, "node": name in self.all_nodes, "group": name in self.all_groups,
                 "gpu": any(f"{gpu.node}/{gpu.ordinal}" == name for gpu in self.all_gpus)}  # fmt: skip
        if not known.get(kind):
            raise ServiceError(404, "not_found", f"nothing is known of {scope!r}")
        series = [models.Series(name="utilization", unit="%", values=[1.0, None, 3.0])]
        return models.History(scope=scope, start_s=1.0, step_s=5.0, series=series)

    async def events(self, after: int = 0, limit: int = 200, audit: bool = False) -> list[models.Event]:
        self.calls.append("events")
        return [e for e in self.all_events if e.id > after and (e.user or not audit)][-limit:]

    # ------------------------------------------------------------------------------------------------ changes

    def _begin(self) -> None:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    def _group(self, group_id: str) -> models.Group:
        if group_id not in self.all_groups:
            raise ServiceError(404, "not_found", f"there is no group {group_id}", "orionctl get groups")
        return self.all_groups[group_id]

    async def patch_group(self, group_id: str, change: models.PatchGroup, user: str) -> models.Group:
        self._begin()
        group = self._group(group_id)
        if change.gmem_mib is not None and change.gmem_mib < group.used_mib and change.shrink == "refuse":
            raise ServiceError(409, "below_usage", f"it uses {group.used_mib} MiB", "shrink=block")
        given = {k: v for k, v in msgspec.structs.asdict(change).items() if v is not None and k != "shrink"}
        self.all_groups[group_id] = msgspec.structs.replace(group, **given)
        self.note("info", "group.resized", group_id, "changed", user)
        return self.all_groups[group_id]

    async def end_group(self, group_id: str, user: str) -> None:
        self._begin()
        self._group(group_id)
        del self.all_groups[group_id], self.all_vgpus[group_id]
        self.all_sessions = {k: s for k, s in self.all_sessions.items() if s.group != group_id}
        self.note("warning", "group.end", group_id, "was told to end", user)

    async def end_session(self, session_id: str, user: str) -> None:
        self._begin()
        if self.all_sessions.pop(session_id, None) is None:
            raise ServiceError(404, "not_found", f"there is no session {session_id}")
        self.note("warning", "session.end", session_id, "was told to end", user)

    async def forget_node(self, node: str, user: str) -> None:
        self._begin()
        if node not in self.all_nodes:
            raise ServiceError(404, "not_found", f"there is no node {node}")
        if self.all_nodes[node].state != "lost":
            raise ServiceError(409, "refused", f"{node} is in the pool", "stop its orion-server first")
        del self.all_nodes[node]

    async def set_draining(self, node: str, draining: bool, user: str) -> models.Node:
        self._begin()
        if node not in self.all_nodes:
            raise ServiceError(404, "not_found", f"there is no node {node}")
        self.all_nodes[node].state = "draining" if draining else "ready"
        self.note("info", "node.draining", node, "changed", user)
        return self.all_nodes[node]

    async def reserve_pods(self, wishes: list[pod_models.PodWish], user: str) -> list[pod_models.PodOutcome]:
        self._begin()
        outcomes = []
        for wish in wishes:
            if not self.all_nodes:
                outcomes.append(pod_models.PodOutcome(uid=wish.uid, refusal="no_room", message="there is no room"))
                continue
            node = next(iter(self.all_nodes))
            parts = [
                pod_models.PodPart(container=c.name, group=f"p-{c.name}", gmem_mib=c.gmem_mib or 8192,
                                   ratio_percent=c.ratio_percent or 25, nodes=[node] * c.vgpus,
                                   ordinals=[0] * c.vgpus, sessions=0)
                for c in wish.containers
            ]  # fmt: skip
            outcomes.append(pod_models.PodOutcome(uid=wish.uid, parts=[] if wish.check else parts))
            if not wish.check:
                self.all_pods[wish.uid] = pod_models.Pod(
                    uid=wish.uid, namespace=wish.namespace, name=wish.name, state="reserved", parts=parts,
                    vgpus=sum(len(part.nodes) for part in parts), nodes=[node], sessions=0, since_s=1.0,
                )  # fmt: skip
        return outcomes

    async def release_pods(self, gone: pod_models.PodsGone, user: str) -> pod_models.PodsReleased:
        self._begin()
        for uid in gone.uids:
            self.all_pods.pop(uid, None)
        return pod_models.PodsReleased(released=list(gone.uids), kept=[])

    async def reserve(self, wish: models.Reserve, user: str) -> models.Group:
        self._begin()
        if wish.vgpus > 16 or not self.all_nodes:
            raise ServiceError(409, "no_room", "there is no room")
        number = len(self.all_groups) + 1_000_000 + len(self.all_events)
        node = next(iter(self.all_nodes))
        self._add_group(number - number % 8 + 7, node, 0, wish.ratio_percent or 25)
        group_id = next(reversed(self.all_groups))
        group = self.all_groups[group_id]
        group.group, group.vgpus, group.gmem_mib = wish.group, wish.vgpus, wish.gmem_mib or 8192
        first = self.all_vgpus[group_id][0]
        self.all_vgpus[group_id] = [
            msgspec.structs.replace(first, id=f"{group_id}/{i}", ordinal=i // 2) for i in range(wish.vgpus)
        ]
        self.note("info", "group.reserved", group_id, "reserved", user)
        return group

    async def set_limits(self, group: str, limits: models.LimitsBody | None, user: str) -> models.Limits | None:
        self._begin()
        self.note("info", "limits.set", group, "changed", user)
        if limits is None:
            self.all_limits.pop(group, None)
            return None
        self.all_limits[group] = models.Limits(group=group, **msgspec.structs.asdict(limits))
        return self.all_limits[group]

    def note(
        self, level: Literal["info", "warning", "error"], kind: str, subject: str, message: str, user: str
    ) -> None:
        last = self.all_events[-1].id if self.all_events else 0
        self.all_events.append(
            models.Event(id=last + 1, at_s=1.0, level=level, kind=kind, subject=subject, message=message, user=user)
        )


def as_backend(pool: PoolBackend) -> Backend:
    """Only for the type checker: that it is one."""
    return pool
