"""What people see of the pool: the REST API's shapes, made from its state and its last hour."""

from __future__ import annotations

from collections.abc import Iterator

from orion_controller.api import models
from orion_controller.history import GROUPS_MOST, STEP_S, History
from orion_controller.pool import Allocation, Pool, Server
from wire import pool as wire


def mean(values: list[float]) -> float | None:
    """None of nothing."""
    return sum(values) / len(values) if values else None


def node_state(pool: Pool, server: Server) -> models.NodeState:
    if server.is_lost:
        return "lost"
    return "draining" if server.said.draining or server.name in pool.draining else "ready"


def gpus(pool: Pool, node: str = "") -> Iterator[models.Gpu]:
    """In the order of names and ordinals."""
    for name in [node] if node else sorted(pool.servers):
        server = pool.servers.get(name)
        if server is None or server.is_lost:
            continue
        for gpu in sorted(server.said.gpus, key=lambda g: g.ordinal):
            yield _gpu(pool, server, gpu)


def _gpu(pool: Pool, server: Server, gpu: wire.PoolGpu) -> models.Gpu:
    free_mib, free_percent, free_slots = pool.allocator.free(server.name, gpu.ordinal)
    now = server.gpus.get(gpu.ordinal)
    return models.Gpu(
        node=server.name,
        ordinal=gpu.ordinal,
        uuid=gpu.uuid,
        name=gpu.name,
        total_mib=gpu.total_mib,
        capacity_mib=gpu.capacity_mib,
        given_mib=gpu.capacity_mib - free_mib,
        used_mib=now.used_mib if now else 0,
        ratio_given_percent=gpu.ratio_percent - free_percent,
        ratio_percent=gpu.ratio_percent,
        vgpus=gpu.max_vgpus - free_slots,
        max_vgpus=gpu.max_vgpus,
        utilization_percent=now.utilization_percent if now else None,
        temperature_c=now.temperature_c if now else None,
        power_w=now.power_w if now else None,
        health=now.health if now else "",
    )


def node(pool: Pool, server: Server) -> models.Node:
    given = used = vgpus = 0
    capacity = sum(gpu.capacity_mib for gpu in server.said.gpus)
    if not server.is_lost:
        for gpu in server.said.gpus:
            free_mib, _, free_slots = pool.allocator.free(server.name, gpu.ordinal)
            given += gpu.capacity_mib - free_mib
            vgpus += gpu.max_vgpus - free_slots
        used = sum(report.used_mib for report in server.gpus.values())
    return models.Node(
        name=server.name,
        address=server.said.address,
        state=node_state(pool, server),
        version=server.said.version,
        driver=server.said.driver,
        device_kind=server.said.device_kind,
        gpus=len(server.said.gpus),
        vgpus=vgpus,
        sessions=len(server.sessions),
        memory_mib=capacity,
        memory_given_mib=given,
        memory_used_mib=used,
        utilization_percent=utilization(server),
        last_heartbeat_s=server.heard_wall_s,
        since_s=server.since_s,
    )


def utilization(server: Server) -> float | None:
    """Mean over the GPUs that tell it."""
    return mean([float(g.utilization_percent) for g in server.gpus.values() if g.utilization_percent is not None])


def allocation_reports(pool: Pool, allocation: Allocation) -> dict[tuple[str, int], list[wire.VgpuReport]]:
    """What the servers tell of its vGPUs, by place."""
    found: dict[tuple[str, int], list[wire.VgpuReport]] = {}
    for name in allocation.servers:
        server = pool.servers.get(name)
        for report in server.vgpus.get(allocation.id, {}).values() if server else ():
            found.setdefault((name, report.ordinal), []).append(report)
    return found


def vgpus_of(pool: Pool, allocation: Allocation) -> Iterator[models.Vgpu]:
    """Its vGPUs in device order."""
    record = allocation.record
    reports = allocation_reports(pool, allocation)
    for index, (server, ordinal) in enumerate(record.places):
        here = reports.get((server, ordinal))
        report = here.pop(0) if here else None
        yield models.Vgpu(
            id=f"{record.id}/{index}",
            vgpu=report.vgpu if report else "",
            node=server,
            ordinal=ordinal,
            group=record.id,
            quota_mib=report.quota_mib if report else record.gmem_mib,
            used_mib=report.used_mib if report else 0,
            ratio_percent=report.ratio if report else record.ratio_percent,
            policy=report.ratio_policy if report else record.policy or "hard",
            achieved_percent=report.achieved_percent if report else 0.0,
            throttled_ms=report.throttled_ms if report else 0,
            launches=report.launches if report else 0,
            sessions=report.sessions if report else 0,
        )


def group(pool: Pool, allocation: Allocation) -> models.Group:
    record = allocation.record
    servers = allocation.servers
    reports = [r for here in allocation_reports(pool, allocation).values() for r in here]
    policy = reports[0].ratio_policy if reports else record.policy or "hard"
    program = record.program
    for server_name in allocation.sessions:
        for session_id in allocation.sessions[server_name]:
            program = pool.servers[server_name].sessions[session_id].program
    return models.Group(
        id=record.id,
        group=record.group,
        state=allocation.state,
        shared=record.shared,
        reserved=record.reserved,
        vgpus=len(record.places),
        nodes=servers,
        gmem_mib=record.gmem_mib,
        ratio_percent=record.ratio_percent,
        policy=policy,
        used_mib=sum(report.used_mib for report in reports),
        achieved_percent=mean([report.achieved_percent for report in reports]) or 0.0,
        sessions=allocation.session_count,
        program=program,
        owner=record.owner,
        since_s=record.since_s,
        expires_s=record.expires_s,
    )


def sessions(pool: Pool) -> Iterator[models.Session]:
    """By server and since when."""
    for name in sorted(pool.servers):
        for s in sorted(pool.servers[name].sessions.values(), key=lambda s: (s.since_s, s.session)):
            yield models.Session(
                id=s.session,
                node=name,
                group=s.allocation,
                group_name=s.group,
                pid=s.pid,
                uid=s.uid,
                host=s.host,
                program=s.program,
                transport=s.transport,
                since_s=s.since_s,
            )


def queue(pool: Pool) -> list[models.Waiting]:
    """In the order in which they came."""
    found = []
    for position, ticket in enumerate(pool.allocator.waiting(), 1):
        waiting = pool.waiting[ticket]
        wish = waiting.wish
        pod = wish.pod
        found.append(
            models.Waiting(
                position=position,
                group=wish.group,
                vgpus=waiting.request.vgpus,
                gmem_mib=waiting.request.gmem_mib,
                ratio_percent=waiting.request.ratio_percent,
                owner=f"{pod.get('namespace', '')}/{pod['name']}" if pod.get("name") else f"{wish.uid}@{wish.node}",
                program=wish.program,
                since_s=waiting.since_wall_s,
                reason=waiting.reason,
            )
        )
    return found


def summary(pool: Pool, controller: str, leader: bool, version: str, since_s: float) -> models.Summary:
    servers = list(pool.servers.values())
    states = [node_state(pool, server) for server in servers]
    gmem_mib, ratio = pool.default_size()
    total = models.Summary(
        nodes=len(servers),
        nodes_ready=states.count("ready"),
        nodes_draining=states.count("draining"),
        nodes_lost=states.count("lost"),
        gpus=0,
        vgpus=0,
        vgpus_free=0,
        memory_mib=0,
        memory_given_mib=0,
        memory_used_mib=0,
        ratio_given_percent=0,
        ratio_percent=0,
        utilization_percent=None,
        sessions=sum(len(server.sessions) for server in servers),
        groups=len(pool.allocations),
        queue=len(pool.waiting),
        controller=controller,
        leader=leader,
        version=version,
        since_s=since_s,
    )
    told: list[float] = []
    for server, state in zip(servers, states, strict=True):
        if state == "lost":
            continue
        for gpu in server.said.gpus:
            free_mib, free_percent, free_slots = pool.allocator.free(server.name, gpu.ordinal)
            total.gpus += 1
            total.vgpus += gpu.max_vgpus - free_slots
            total.memory_mib += gpu.capacity_mib
            total.memory_given_mib += gpu.capacity_mib - free_mib
            total.ratio_percent += gpu.ratio_percent
            total.ratio_given_percent += gpu.ratio_percent - free_percent
            if state == "ready":
                total.vgpus_free += max(0, min(free_mib // gmem_mib, free_percent // ratio, free_slots))
        for report in server.gpus.values():
            total.memory_used_mib += report.used_mib
            if report.utilization_percent is not None:
                told.append(float(report.utilization_percent))
    total.utilization_percent = mean(told)
    return total


def sample(pool: Pool, past: History, now: models.Summary, wall_s: float) -> None:
    """Puts what is true now into `past`."""
    nodes = {
        s.name: (utilization(s), sum(g.used_mib for g in s.gpus.values()))
        for s in pool.servers.values()
        if not s.is_lost
    }
    gpus = {
        f"{s.name}/{o}": (None if g.utilization_percent is None else float(g.utilization_percent), g.used_mib)
        for s in pool.servers.values()
        for o, g in s.gpus.items()
    }
    groups: dict[str, tuple[float | None, int]] = {}
    # The newest: a sample must not hold up those who ask for vGPUs.
    for allocation in list(pool.allocations.values())[-GROUPS_MOST:]:
        reports = [r for here in allocation_reports(pool, allocation).values() for r in here]
        groups[allocation.id] = (mean([r.achieved_percent for r in reports]), sum(r.used_mib for r in reports))
    past.put(
        wall_s,
        (now.utilization_percent, now.memory_used_mib, now.memory_given_mib, now.vgpus, now.sessions, now.queue),
        nodes, gpus, groups,
    )  # fmt: skip


def history(past: History, scope: str) -> models.History | None:
    """Of pool, node/NAME, gpu/NODE/ORDINAL or group/ID; None: nothing is known of it."""
    kind, _, name = scope.partition("/")
    if kind == "pool" and not name:
        series = [models.Series(name=n, unit=u, values=v) for n, u, v in past.pool_series()]
    else:
        table = {"node": past.nodes, "gpu": past.gpus, "group": past.groups}.get(kind)
        found = table.read(name, past.count - 1, past.length) if table is not None else None
        if found is None:
            return None
        first = "achieved" if kind == "group" else "utilization"
        series = [
            models.Series(name=first, unit="%", values=found[0]),
            models.Series(name="memory_used", unit="MiB", values=found[1]),
        ]
    return models.History(scope=scope, start_s=past.start_s, step_s=STEP_S, series=series)
