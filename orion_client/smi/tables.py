"""What servers and the pool tell, as plain data and as tables for people."""

from __future__ import annotations

import os
import uuid
from typing import Any

import msgspec
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from orion_client.control_client import ServerUnreachable, ask, next_id, stats
from orion_client.pool_client import PoolClient
from orion_client.text import age, mib, printable
from wire import control

# Into a pipe or a file: wide enough that nothing is folded.
PIPE_COLUMNS = 160
MIB = 1 << 20


def report(server: str, timeout_s: float) -> dict[str, Any]:
    """What one server says, as plain data."""
    try:
        answer = stats(server, timeout_s)
        metrics = _metrics(server, timeout_s)
    except ServerUnreachable as error:
        return {"address": server, "error": str(error), "hint": error.hint}
    return {
        "address": server,
        "name": answer.name,
        "version": answer.server,
        "driver": answer.driver,
        "cuda_version": answer.driver_version,
        "gpus": [_gpu_report(answer, gpu, metrics.get(gpu.ordinal, {})) for gpu in answer.gpus],
        "vgpus": [vgpu_report(vgpu) for vgpu in answer.vgpus],
        "sessions": [
            {
                "session": session.session,
                "pid": session.pid,
                "program": session.program,
                "transport": session.transport,
                "devices": list(session.devices),
                "used_bytes": session.used_bytes,
                "since": session.since,
            }
            for session in answer.sessions
        ],
    }


def _metrics(server: str, timeout_s: float) -> dict[int, dict[str, int]]:
    """What the GPUs tell about themselves. A server tells it of those that a new program could get: full ones are not
    in it."""
    request = control.Stats(id=next_id(), telemetry=True, uid=os.geteuid(), host=control.boot_id(), gmem_mib=1)
    answer = ask(server, request, control.StatsAnswer, timeout_s)
    return {gpu.ordinal: gpu.metrics for gpu in answer.gpus}


def _gpu_report(answer: control.StatsAnswer, gpu: control.GpuStats, metrics: dict[str, int]) -> dict[str, Any]:
    on_it = [vgpu for vgpu in answer.vgpus if vgpu.gpu == gpu.ordinal]
    utilization = metrics.get("utilization_gpu_percent")
    if utilization is None and any(vgpu.ratio for vgpu in on_it):
        # The GPU does not tell; what its vGPUs have been charged for is known.
        utilization = min(100, round(sum(vgpu.achieved_1s for vgpu in on_it) * 100))
    power_mw = metrics.get("power_mw")
    return {
        "ordinal": gpu.ordinal,
        "name": gpu.name,
        "uuid": f"GPU-{uuid.UUID(bytes=gpu.uuid)}",
        "total_bytes": gpu.total_bytes,
        "used_bytes": gpu.used_bytes,
        "vgpus": len(on_it),
        "capacity_bytes": gpu.capacity_bytes,
        "given_bytes": gpu.given_bytes,
        "given_percent": gpu.given_percent,
        "utilization_percent": utilization,
        "temperature_c": metrics.get("temperature_c"),
        "power_w": None if power_mw is None else power_mw // 1000,
    }


def pool_reports(pool: PoolClient) -> list[dict[str, Any]]:
    """The whole pool, as if each node had told it itself (sizes as the API has them, in whole MiB)."""
    nodes = {node["name"]: node for node in pool.items("nodes")}
    reports = {
        name: {"address": name, "name": name, "version": node.get("version"), "driver": node.get("driver"),
               "cuda_version": 0, "state": node.get("state"), "gpus": [], "vgpus": [], "sessions": []}
        for name, node in nodes.items()
    }  # fmt: skip
    groups = {group["id"]: group.get("group") or "" for group in pool.items("groups")}
    for gpu in pool.items("gpus"):
        if gpu["node"] in reports:
            reports[gpu["node"]]["gpus"].append(
                {"ordinal": gpu["ordinal"], "name": gpu["name"], "uuid": gpu["uuid"],
                 "total_bytes": gpu["total_mib"] * MIB, "used_bytes": gpu["used_mib"] * MIB, "vgpus": gpu["vgpus"],
                 "capacity_bytes": gpu["capacity_mib"] * MIB, "given_bytes": gpu["given_mib"] * MIB,
                 "given_percent": gpu["ratio_given_percent"], "utilization_percent": gpu["utilization_percent"],
                 "temperature_c": gpu["temperature_c"], "power_w": gpu["power_w"]}
            )  # fmt: skip
    for vgpu in pool.items("vgpus"):
        if vgpu["node"] in reports:
            reports[vgpu["node"]]["vgpus"].append(
                {"vgpu": vgpu["id"], "gpu": vgpu["ordinal"], "group": groups.get(vgpu["group"], ""), "pids": [],
                 "quota_bytes": vgpu["quota_mib"] * MIB, "used_bytes": vgpu["used_mib"] * MIB,
                 "ratio": vgpu["ratio_percent"], "policy": vgpu["policy"],
                 "achieved_10s": vgpu["achieved_percent"] / 100, "throttled_ns": vgpu["throttled_ms"] * 1_000_000}
            )  # fmt: skip
    for session in pool.items("sessions"):
        if session["node"] in reports:
            reports[session["node"]]["sessions"].append(
                {"session": session["id"], "pid": session["pid"], "program": session["program"],
                 "transport": session["transport"], "devices": [], "used_bytes": None, "since": session["since_s"]}
            )  # fmt: skip
    return list(reports.values())


def vgpu_report(vgpu: control.VgpuStats) -> dict[str, Any]:
    """One vGPU as plain data."""
    return dict(msgspec.to_builtins(vgpu))


def vgpu_table(rows: list[tuple[str, dict[str, Any]]]) -> Table:
    """vGPUs for people: (server, report) each. `achieved` is over the last 10 seconds."""
    table = _table("vGPUs")
    several = len({server for server, _ in rows}) > 1
    for column in (*(["server"] if several else []), "vGPU", "group", "GPU"):
        table.add_column(column, overflow="fold")
    for column in ("MiB used / quota", "ratio", "achieved", "throttled"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("policy", no_wrap=True)
    for server, v in rows:
        quota = f"{v['quota_bytes'] >> 20:,}" if v["quota_bytes"] else "no quota"
        pids = f"pid {', '.join(map(str, v['pids'][:3]))}" if v["pids"] else ""
        cells = [
            *([server] if several else []),
            v["vgpu"],
            printable(v["group"]) or pids,
            v["gpu"],
            f"{v['used_bytes'] >> 20:,} / {quota}",
            f"{v['ratio']} %" if v["ratio"] else "none",
            f"{v['achieved_10s'] * 100:.1f} %",
            f"{v['throttled_ns'] / 1e9:,.1f} s",
            v["policy"] if v["ratio"] else "",
        ]
        table.add_row(*(Text(str(cell)) for cell in cells))
    return table


def render(reports: list[dict[str, Any]], now_s: float) -> Group:
    """Tables for people."""
    gpus = _table("GPUs")
    for column in ("server", "GPU", "name", "UUID"):
        gpus.add_column(column, no_wrap=column != "UUID", overflow="fold")
    for column in ("memory used / total", "vGPUs", "util", "temp", "power"):
        gpus.add_column(column, justify="right")
    clients = _table("Clients")
    for column in ("server", "session", "pid", "program", "transport", "GPUs"):
        clients.add_column(column, overflow="fold")
    clients.add_column("memory", justify="right")
    clients.add_column("for", justify="right")
    errors: list[Text] = []
    vgpus: list[tuple[str, dict[str, Any]]] = []
    count = 0
    for r in reports:
        if "error" in r:
            errors.append(Text(f"{r['error']}; {r['hint']}", style="red"))
            continue
        for gpu in r["gpus"]:
            memory = f"{mib(gpu['used_bytes'])} / {mib(gpu['total_bytes'])}"
            row = [r["address"], gpu["ordinal"], printable(gpu["name"]), gpu["uuid"], memory, gpu["vgpus"]]
            row += [
                _with(gpu["utilization_percent"], "%"),
                _with(gpu["temperature_c"], "C"),
                _with(gpu["power_w"], "W"),
            ]
            gpus.add_row(*(Text(str(cell)) for cell in row))
        vgpus += [(r["address"], v) for v in r["vgpus"]]
        for s in r["sessions"]:
            count += 1
            used_by = ",".join(map(str, s["devices"]))
            program = printable(s["program"].rpartition("/")[2])
            row = [r["address"], s["session"], s["pid"], program, s["transport"] or "binding", used_by]
            used = "" if s["used_bytes"] is None else mib(s["used_bytes"])
            clients.add_row(*(Text(printable(str(cell))) for cell in row), Text(used), Text(age(now_s - s["since"])))
    parts: list[Any] = [*errors]
    if len(errors) < len(reports):
        parts += [gpus, *([vgpu_table(vgpus)] if vgpus else []), clients if count else Text("no clients")]
    return Group(*parts)


def _with(value: Any, unit: str) -> str:
    return "N/A" if value is None else f"{value} {unit}"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.ASCII_DOUBLE_HEAD)
