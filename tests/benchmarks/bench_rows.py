"""Rows as `orion-bench` saves them, made up: what every test of summary, tables and page starts from."""

from __future__ import annotations

from typing import Any

RUN = {"device": "nvidia", "commit": "c0ffee", "cpu": "Some CPU", "cpus": 16, "kernel": "6.1", "boot": "one",
       "gpu": "NVIDIA H200, 580.1"}  # fmt: skip


def row(
    command: str = "latency", name: str = "launch_and_sync", place: str = "native", value: float = 10.0, **more: Any
) -> dict[str, Any]:
    base = {"command": command, "row": name, "place": place, "repeat": 0, "unit": "us", "better": "lower",
            "value": value, "low": value * 0.9, "high": value * 1.1, "digest": 7, "exact": True, "clean": True,
            "what": f"what {name} is", "run": RUN, "by": f"orion-bench {command}",
            "when": "2026-12-01T10:00:00Z"}  # fmt: skip
    return {**base, **more}


def floor(command: str, name: str, value: float, unit: str = "us", better: str = "lower") -> dict[str, Any]:
    return row(command, name, "bare", value, unit=unit, better=better, digest=None)


def whole_run() -> list[dict[str, Any]]:
    """Some rows of every command."""
    rows = [
        floor("latency", "tcp_rtt", 20),
        floor("latency", "shm_spin_rtt", 0.5),
        floor("launch", "ring_push", 90, "ns"),
        floor("copy", "tcp_1_cycling", 5, "GB/s", "higher"),
        floor("copy", "tcp_4_cycling", 9, "GB/s", "higher"),
    ]
    for place, factor in (("native", 1.0), ("shm", 1.25), ("tcp", 5.0)):
        lanes = {"tcp_lanes": "raw"} if place == "tcp" else {}
        rows.append(row("latency", "launch_and_sync", place, 10 * factor, **lanes))
        rows.append(row("launch", "launch_wall", place, 2000 / factor, unit="ns", **lanes))
        for size in (4, 1 << 20, 1 << 28):
            rows.append(
                row("copy", f"copy_h2d_pinned@{size}", place, 50 / factor, unit="GB/s", better="higher", **lanes)
            )
        for clients in (1, 2, 4):
            for name, unit in (("launch_rate", "launches/s"), ("launch_fairness", ""), ("copy_h2d", "GB/s")):
                rows.append(
                    row(
                        "scale",
                        name,
                        place,
                        100.0 / factor * clients,
                        unit=unit,
                        better="higher",
                        digest=0,
                        **({"clients": clients} if clients > 1 else {}),
                        **lanes,
                    )
                )
        stages = {"process": 1, "init": 100 * factor, "context": 50, "module": 10, "kernel": 1}
        rows.append(row("attach", "attach_warm", place, 162 * factor, unit="ms", stages_ms=stages, **lanes))
        rows.append(row("suite", "bert_infer_bs1", place, 8 * factor, unit="ms", waits_per_step=1.0, **lanes))
        if place != "shm":
            rows.append(row("network", "launch_and_sync", place, 10 * factor, **lanes))
    for rtt_us, gbit in ((25, 25), (100, 25), (1000, 25), (100, 10), (100, 100)):
        rows.append(
            row(
                "network",
                "launch_and_sync",
                "tcp",
                20.0 + rtt_us,
                tcp_lanes="raw",
                network={"rtt_us": rtt_us, "gbit": gbit},
            )
        )
    return rows  # fmt: skip
