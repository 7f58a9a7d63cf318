"""What a program's launches would cost the engine's thread, done in other ways: a prediction from measured costs.

A step of a program is as long as the slowest of those that work on it side by side: the program that makes the calls,
the engine that repeats them, the GPU. So a cheaper way to issue shortens a step by no more than the engine holds it up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Mix:
    """What one step of a program asks for."""

    name: str
    launches: int
    step_us: float = 0  # as measured over shm with single launches; 0: as long as the engine takes
    repeated: float = 1.0  # of the launches: same kernel, grid and stream as at this place of the step before
    changed: float = 1.0  # of those: some byte of the parameters differs
    streams: int = 1  # that are launched on side by side, with nothing between them that orders them
    waits: float = 0.0  # in a step, that the program makes


# Steps and waits: benchmarks/results/2026-11-28-h100-suite.json, shm. Launches: tests/frameworks/data. What repeats was
# recorded on softgpu (SOFTGPU_RECORD=1, PyTorch 2.14, transformers 5.24): of GPT-2's 328 launches a token there, 90 %
# have the kernel, grid and block of the token before, 99 % of those with other parameters (2 % of the bytes), and no
# token's sequence is the one of the token before; of BERT's 155 all have, and two get other parameters.
MIXES = (
    Mix("gpt2_decode_eager", launches=284, step_us=8795, repeated=0.90, changed=0.99, waits=2),
    Mix("bert_infer_bs1", launches=154, step_us=6892, repeated=1.0, changed=0.013, waits=1),
    Mix("resnet50_train_bs64", launches=894, step_us=25488, waits=0.1),
    Mix("launch_pipelined", launches=1000, changed=0),
    Mix("four threads with own streams", launches=4000, changed=0, streams=4),
)


@dataclass(frozen=True)
class Costs:
    """Nanoseconds of the issuing thread for each launch (or node)."""

    launch: float
    graph_node: float
    updated_node: float
    built_node: float
    handed_over: Mapping[int, float]  # by number of launching threads

    @classmethod
    def of(cls, rows: Mapping[str, Row], nodes: int = 99) -> Costs:
        """From the rows of launch_facts. What can be kept up is counted: the device's time where that is longer."""

        def kept_up(name: str) -> float:
            return max(float(rows[name][part]["median"]) for part in ("issue_ns", "total_ns"))

        return cls(
            launch=rows["launch_8_unbroken"]["issue_ns"]["median"],
            graph_node=kept_up(f"graph_{nodes}_updated_0_unbroken"),
            updated_node=rows[f"graph_{nodes}_updated_100"]["updated_node_ns"]["median"],
            built_node=rows[f"graph_{nodes}_built"]["issue_ns"]["median"]
            + rows[f"graph_{nodes}_built"]["instantiate_node_ns"]["median"],
            handed_over={n: rows[f"threads_{n}_handed_over"]["issue_ns"]["median"] for n in (1, 2, 4, 8)},
        )


def predict(mix: Mix, costs: Costs) -> dict[str, Any]:
    """Engine time of a step in each way, and how long the step could be at best.

    `graph_delay_us` is what a graph costs besides: its first kernel starts only when the last of its launches is known,
    so a device that worked beside the program now works after it (counted: the least that its kernels take). It is free
    only where the engine is what the step waits for, since then the launches lie in the ring already.
    """
    single = mix.launches * costs.launch / 1e3
    in_graph = mix.launches * mix.repeated
    graph = (in_graph * (costs.graph_node + mix.changed * costs.updated_node)) / 1e3
    graph += (mix.launches - in_graph) * costs.launch / 1e3
    threads = max((n for n in costs.handed_over if n <= mix.streams), default=1)
    sharded = single if threads < 2 else mix.launches * costs.handed_over[threads] / 1e3
    step = mix.step_us or single
    busy = single / step
    delay = min(1.0, mix.waits) * in_graph * costs.graph_node / 1e3 if mix.step_us else 0.0
    if mix.step_us:  # the program or the device is what it waits for, as long as the engine keeps up
        ways = {"launches": max(step, single), "graph": max(step, graph) + delay, "threads": max(step, sharded)}
    else:
        ways = {"launches": single, "graph": graph, "threads": sharded}
    return {
        "name": mix.name,
        "engine_busy": round(busy, 3),
        "engine_us": {"launches": round(single, 1), "graph": round(graph, 1), "threads": round(sharded, 1)},
        "graph_delay_us": round(delay, 1),
        "step_us": {way: round(value, 1) for way, value in ways.items()},
        "best": min(ways, key=lambda way: (ways[way], list(ways).index(way))),
    }


def predictions(rows: list[Row]) -> list[dict[str, Any]]:
    costs = Costs.of({row["name"]: row for row in rows})
    return [predict(mix, costs) for mix in MIXES]
