"""A pool for the commands to look at and to change: the service's side of the REST API, with a state that tests set."""

from __future__ import annotations

import time
from typing import Any, Literal

import msgspec

from orion_controller.api import models
from orion_controller.backend import ServiceError

NOW_S = 1_800_000_000.0
MIB = 1 << 20


class StubBackend:
    """orion_controller.backend.Backend without servers."""

    is_leader = True
    leader_url = ""

    def __init__(self) -> None:
        self.started_s = time.time()
        self._nodes = {name: self._node(name) for name in ("gpu1", "gpu2")}
        self._gpus = [self._gpu(node, ordinal) for node in self._nodes for ordinal in range(2)]
        self._groups = {
            "a1": self._group("a1", "team-a", ["gpu1"], achieved=42.0),
            "b1": self._group("b1", "team-b", ["gpu1", "gpu2"], achieved=7.0),
            "b2": self._group("b2", "team-b", ["gpu2"]),
        }
        self._sessions = {
            "s1": self._session("s1", "gpu1", "a1"),
            "s2": self._session("s2", "gpu2", "b1", program="/opt/\x1b[2Jevil"),
        }
        self._limits = {"team-a": models.Limits(group="team-a", vgpus=8)}
        self._events: list[models.Event] = []
        self.patched: list[tuple[str, models.PatchGroup, str]] = []
        self.note("info", "node.registered", "gpu1", "gpu1 is here", "")

    def _node(self, name: str) -> models.Node:
        return models.Node(
            name=name, address=f"{name}:9960", state="ready", version="0.1.0", driver="580.1", device_kind="nvidia",
            gpus=2, vgpus=2, sessions=1, memory_mib=160_000, memory_given_mib=16_384, memory_used_mib=1_000,
            utilization_percent=33.0, last_heartbeat_s=time.time(), since_s=self.started_s,
        )  # fmt: skip

    def _gpu(self, node: str, ordinal: int) -> models.Gpu:
        return models.Gpu(
            node=node, ordinal=ordinal, uuid=f"GPU-{node}-{ordinal}", name="NVIDIA H200", total_mib=143_771,
            capacity_mib=140_000, given_mib=8_192, used_mib=500, ratio_given_percent=25, ratio_percent=100, vgpus=1,
            max_vgpus=4, utilization_percent=37 if ordinal else None, temperature_c=41, power_w=120,
        )  # fmt: skip

    def _group(self, id: str, name: str, nodes: list[str], achieved: float = 0.0) -> models.Group:
        return models.Group(
            id=id, group=name, state="active", shared=False, reserved=False, vgpus=len(nodes), nodes=nodes,
            gmem_mib=8_192, ratio_percent=25, policy="hard", used_mib=512, achieved_percent=achieved, sessions=1,
            program="/usr/bin/train", owner="1000@here", since_s=self.started_s,
        )  # fmt: skip

    def _session(self, id: str, node: str, group: str, program: str = "/usr/bin/train") -> models.Session:
        return models.Session(
            id=id, node=node, group=group, group_name=self._groups[group].group, pid=4711, uid=1000, host="boot",
            program=program, transport="tcp", since_s=self.started_s,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------ reads

    def summary(self) -> models.Summary:
        return models.Summary(
            nodes=2, nodes_ready=2, nodes_draining=0, nodes_lost=0, gpus=4, vgpus=4, vgpus_free=12, memory_mib=560_000,
            memory_given_mib=32_768, memory_used_mib=2_000, ratio_given_percent=100, ratio_percent=400,
            utilization_percent=37.0, sessions=len(self._sessions), groups=len(self._groups), queue=1,
            controller="stub", leader=True, version="0.1.0", since_s=self.started_s,
        )  # fmt: skip

    def nodes(self) -> list[models.Node]:
        return list(self._nodes.values())

    def gpus(self, node: str = "") -> list[models.Gpu]:
        return [gpu for gpu in self._gpus if node in ("", gpu.node)]

    def vgpus(self, node: str = "", group: str = "") -> list[models.Vgpu]:
        found = [
            models.Vgpu(
                id=f"{g.id}/{index}", vgpu=f"vgpu-{index}", node=name, ordinal=index, group=g.id, quota_mib=g.gmem_mib,
                used_mib=256, ratio_percent=g.ratio_percent, policy=g.policy, achieved_percent=g.achieved_percent,
                throttled_ms=10, launches=99, sessions=1,
            )
            for g in self._groups.values()
            for index, name in enumerate(g.nodes)
        ]  # fmt: skip
        return [v for v in found if node in ("", v.node) and group in ("", v.group, self._groups[v.group].group)]

    def groups(self) -> list[models.Group]:
        return list(self._groups.values())

    def sessions(self, node: str = "", group: str = "") -> list[models.Session]:
        return [s for s in self._sessions.values() if node in ("", s.node) and group in ("", s.group, s.group_name)]

    def queue(self) -> list[models.Waiting]:
        return [
            models.Waiting(position=1, group="team-c", vgpus=4, gmem_mib=80_000, ratio_percent=100, owner="7@there",
                           program="late", since_s=self.started_s, reason="no room")
        ]  # fmt: skip

    def limits(self) -> list[models.Limits]:
        return list(self._limits.values())

    def history(self, scope: str) -> models.History:
        return models.History(scope=scope, start_s=NOW_S, step_s=10.0, series=[])

    async def events(self, after: int = 0, limit: int = 200, audit: bool = False) -> list[models.Event]:
        return [e for e in self._events if e.id > after and (e.user or not audit)][-limit:]

    # ------------------------------------------------------------------------------------------------ changes

    async def patch_group(self, group_id: str, change: models.PatchGroup, user: str) -> models.Group:
        group = self._find(self._groups, group_id, "group")
        if change.gmem_mib is not None and change.gmem_mib < group.used_mib and change.shrink == "refuse":
            raise ServiceError(409, "below_usage", f"{group.used_mib} MiB are used", "use shrink=block")
        self.patched.append((group_id, change, user))
        named = {"gmem_mib": change.gmem_mib, "ratio_percent": change.ratio_percent, "policy": change.policy}
        changed = msgspec.structs.replace(group, **{k: v for k, v in named.items() if v is not None})
        self._groups[group_id] = changed
        self.note("info", "group.resized", group_id, "resized", user)
        return changed

    async def end_group(self, group_id: str, user: str) -> None:
        self._find(self._groups, group_id, "group")
        del self._groups[group_id]
        self._sessions = {k: s for k, s in self._sessions.items() if s.group != group_id}
        self.note("warning", "group.ended", group_id, "ended", user)

    async def end_session(self, session_id: str, user: str) -> None:
        self._find(self._sessions, session_id, "session")
        node = self._sessions.pop(session_id).node
        self._nodes[node] = msgspec.structs.replace(self._nodes[node], sessions=0)
        self.note("warning", "session.ended", session_id, "ended", user)

    async def forget_node(self, node: str, user: str) -> None:
        if self._find(self._nodes, node, "node").state != "lost":
            raise ServiceError(409, "refused", f"{node} is in the pool", "stop its orion-server first")
        del self._nodes[node]

    async def set_draining(self, node: str, draining: bool, user: str) -> models.Node:
        found = self._find(self._nodes, node, "node")
        state: Literal["draining", "ready"] = "draining" if draining else "ready"
        self._nodes[node] = msgspec.structs.replace(found, state=state)
        self.note("info", "node.draining", node, state, user)
        return self._nodes[node]

    async def reserve(self, wish: models.Reserve, user: str) -> models.Group:
        if wish.vgpus > 12:
            raise ServiceError(409, "no_room", "there is no room for so many", "ask for less")
        group = self._group("r1", wish.group, ["gpu1"] * wish.vgpus)
        self._groups["r1"] = msgspec.structs.replace(group, state="reserved", expires_s=time.time() + wish.ttl_s)
        return self._groups["r1"]

    async def set_limits(self, group: str, limits: models.LimitsBody | None, user: str) -> models.Limits | None:
        if limits is None:
            self._find(self._limits, group, "limits")
            del self._limits[group]
            return None
        self._limits[group] = models.Limits(group=group, **msgspec.to_builtins(limits))
        return self._limits[group]

    def note(
        self, level: Literal["info", "warning", "error"], kind: str, subject: str, message: str, user: str
    ) -> None:
        self._events.append(
            models.Event(id=len(self._events) + 1, at_s=NOW_S, level=level, kind=kind, subject=subject, message=message,
                         user=user)
        )  # fmt: skip

    @staticmethod
    def _find(among: dict[str, Any], name: str, what: str) -> Any:
        if name not in among:
            raise ServiceError(404, "not_found", f"no {what} is called {name!r}", "look again")
        return among[name]
