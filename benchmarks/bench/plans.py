"""What each command measures, in which order.

A plan lists tasks repeat by repeat, and within a repeat native, shm and tcp side by side: what is cut off by a limit
leaves whole repeats, and what is compared was measured close together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import rows as row_programs
from benchmarks.bench import ucx
from benchmarks.bench.crowd import ATTACH_TIMEOUT_MS, crowd_task
from benchmarks.bench.ground import Done, Ground, floors_task, known, rounded, streams_task
from benchmarks.bench.model import NATIVE, Cell, Impossible, Network, Options, Row, Task, Unknown
from benchmarks.bench.runner import TaskError
from benchmarks.bench.slices import plan as slices
from benchmarks.measure import spread
from benchmarks.workloads.driver_rows import LEFT_OUT
from orion_client import libraries

LATENCY_ROWS = ("launch_and_sync", "copy_d2h_4b", "event_query", "stream_query", "reply")
COPY_KINDS = ("copy_h2d_pageable", "copy_d2h_pageable", "copy_h2d_pinned", "copy_d2h_pinned")
QUICK_SIZES = (4, 1 << 16, 1 << 20, 1 << 24, 1 << 28)
FULL_SIZES = tuple(4**power for power in range(1, 16))
CLIENTS = (1, 2, 4, 8, 16)
NETWORKS = (Network(25, 25), Network(100, 25), Network(1000, 25), Network(100, 10), Network(100, 100))
NETWORK_ROWS = ("launch_pipelined", "launch_and_sync", "event_query", "copy_d2h_4b", *COPY_KINDS)
EMULATION_VARIABLE = b"ORION_EMULATE_RTT_US"


@dataclass(frozen=True)
class Command:
    """`repeats`: how often everything is measured, quick and full."""

    name: str
    repeats: tuple[int, int]
    what: str
    plan: Callable[[Ground, int], list[Task]]

    def tasks(self, ground: Ground) -> list[Task]:
        options = ground.options
        repeats = options.repeats or self.repeats[options.full]
        return self.plan(ground, repeats)


def checked(names: tuple[str, ...], standard: tuple[str, ...], exists: Callable[[str], bool]) -> tuple[str, ...]:
    unknown = [name for name in names if not exists(name)]
    if unknown:
        raise Unknown(f"no such row: {' '.join(unknown)} (there are: {' '.join(standard)})")
    return names or standard


def latency(ground: Ground, repeats: int) -> list[Task]:
    names = checked(ground.options.rows, LATENCY_ROWS, known)
    tasks = []
    for repeat in range(repeats):
        tasks.append(floors_task(ground, "latency", repeat))
        if ucx.UCX in ground.options.places:
            tasks.append(ucx.floors_task("latency", repeat))
        for place in ground.options.places:
            tasks.append(ground.rows_task(tuple(Cell("latency", name, place, repeat) for name in names)))
    return tasks


def copy(ground: Ground, repeats: int) -> list[Task]:
    options = ground.options
    kinds = checked(options.rows, COPY_KINDS, COPY_KINDS.__contains__)
    sizes = options.sizes_bytes or (FULL_SIZES if options.full else QUICK_SIZES)
    names = tuple(f"{kind}@{size}" for kind in kinds for size in sizes)
    checked(names, (f"4 to {row_programs.MAX_COPY_BYTES} bytes",), known)
    tasks = []
    for repeat in range(repeats):
        if "tcp" in options.places:
            tasks.append(streams_task(ground, "copy", repeat, options.seconds or 1.0))
        if ucx.UCX in options.places:
            tasks.append(ucx.floors_task("copy", repeat))
        for place in options.places:
            tasks.append(ground.rows_task(tuple(Cell("copy", name, place, repeat) for name in names)))
    return tasks


# Of native/client_cost.c: its field, unit, which way is better, what.
COSTS = {
    "launch_wall": ("launch_wall_ns", "ns", "lower", "wall time of a launch in the calling thread"),
    "launch_cpu": ("launch_cpu_ns", "ns", "lower", "CPU time of a launch in the calling thread"),
    "launch_rate": ("replay_per_second", "launches/s", "higher", "launches one after the other, until all have run"),
}
NULL_COSTS = {
    "null_launch_wall": ("launch_wall_ns", "ns", "lower", "a launch's wall time, null engine: Orion alone"),
    "null_launch_cpu": ("launch_cpu_ns", "ns", "lower", "a launch's CPU time, null engine"),
    "null_reply": ("reply_us", "us", "lower", "a question to the server, null engine"),
    "null_replay": ("replay_per_second", "ns", "lower", "what the server's replay of a launch takes, null engine"),
}
# A driver's own queue holds about a thousand launches: bursts stay below, so that its price is seen, not its fullness.
COST_ARGUMENTS = {
    ("nvidia", False): (512, 100, 1000, 100_000),
    ("nvidia", True): (512, 400, 5000, 1_000_000),
    ("softgpu", False): (512, 20, 300, 20_000),
    ("softgpu", True): (512, 100, 2000, 100_000),
}
NULL_ARGUMENTS = {False: (4096, 60, 2000, 300_000), True: (4096, 200, 5000, 2_000_000)}


def cost_task(
    ground: Ground, cells: tuple[Cell, ...], costs: dict[str, tuple[str, str, str, str]], arguments: tuple[int, ...]
) -> Task:
    null = costs is NULL_COSTS

    def run(left: tuple[Cell, ...], done: Done) -> None:
        places = ground.places("null-engine", ("--null-engine",), device="softgpu") if null else ground.places()
        command = [str(ground.program("client_cost")), *map(str, arguments)]
        told = json.loads(ground.run(places, left[0].place, command, ground.options.timeout_s).stdout)
        for cell in left:
            source, unit, better, what = costs[cell.row]
            row: Row = {"unit": unit, "better": better, "what": what, "value": rounded(told[source])}
            if f"{source}_p10" in told:
                row |= {"low": told[f"{source}_p10"], "high": told[f"{source}_p90"]}
            if cell.row == "null_replay":
                row["value"] = rounded(1e9 / told[source])
            if not null:
                row |= {"digest": told["counted"], "exact": True, "expected": told["launched"]}
            done(cell, row)

    return Task(cells, run)


def launch(ground: Ground, repeats: int) -> list[Task]:
    options = ground.options
    arguments = COST_ARGUMENTS[options.device, options.full]
    null_arguments = NULL_ARGUMENTS[options.full]
    settings, null_settings = (" ".join(map(str, numbers)) for numbers in (arguments, null_arguments))
    tasks = []
    for repeat in range(repeats):
        tasks.append(floors_task(ground, "launch", repeat))
        for place in options.places:
            tasks.append(ground.rows_task((Cell("launch", "launch_pipelined", place, repeat),)))
            cells = tuple(Cell("launch", name, place, repeat, settings=settings) for name in COSTS)
            tasks.append(cost_task(ground, cells, COSTS, arguments))
        for place in options.remote:
            cells = tuple(Cell("launch", name, place, repeat, settings=null_settings) for name in NULL_COSTS)
            tasks.append(cost_task(ground, cells, NULL_COSTS, null_arguments))
    return tasks


STAGES = ("process", "init", "context", "module", "kernel")
# Cold: no worker is ready, and neither the server nor the driver has the kernel compiled.
NO_CACHE = {"CUDA_CACHE_DISABLE": "1"}
COLD_SERVER = ("--warm", "0", "--image-cache-mib", "0")
ATTACHES = {False: {"attach_cold": 3, "attach_warm": 5}, True: {"attach_cold": 10, "attach_warm": 20}}
ATTACH_WHAT = {
    "attach_cold": "process start to the result of the first kernel: no worker ready, nothing compiled before",
    "attach_warm": "process start to the result of the first kernel: a worker ready, the kernel known",
}


def attach_task(ground: Ground, cell: Cell, count: int, pause_ms: int) -> Task:
    cold = cell.row == "attach_cold"

    def run(left: tuple[Cell, ...], done: Done) -> None:
        if cold and cell.place != NATIVE:
            places = ground.places("server-cold", COLD_SERVER, NO_CACHE)
        else:
            places = ground.places()
        extra = {"ORION_ATTACH_TIMEOUT_MS": ATTACH_TIMEOUT_MS, **(NO_CACHE if cold else {})}
        # The first one is a warm-up; natively and cold it loads the driver's files.
        command = [str(ground.program("first_kernel")), str(count + 1), str(pause_ms)]
        outcome = ground.run(places, cell.place, command, ground.options.timeout_s, extra=extra)
        told = [json.loads(line) for line in outcome.stdout.splitlines() if line.startswith("{")][1:]
        if len(told) != count:
            raise TaskError(f"{len(told)} of {count} measurements came", outcome.stderr)
        totals = [row["total_ms"] for row in told]
        digests = {row["digest"] for row in told}
        summed = spread(totals)
        stages = {name: rounded(spread([line[f"{name}_ms"] for line in told]).median) for name in STAGES}
        row = {"unit": "ms", "better": "lower", "what": ATTACH_WHAT[cell.row], "value": summed.median,
               "low": summed.low, "high": summed.high, "samples": totals,
               "digest": digests.pop() if len(digests) == 1 else -1, "exact": True,
               "stages_ms": stages}  # fmt: skip
        done(cell, {name: rounded(value) for name, value in row.items()})

    return Task((cell,), run)


def attach(ground: Ground, repeats: int) -> list[Task]:
    options = ground.options
    counts = ATTACHES[options.full]
    # The server makes the next worker ready after each attach; a context on a GPU takes it up to some seconds.
    pause_ms = 2000 if options.device == "nvidia" else 300
    tasks = []
    for repeat in range(repeats):
        for name, count in counts.items():
            for place in options.places:
                pause = pause_ms if name == "attach_warm" and place != NATIVE else 0
                cell = Cell("attach", name, place, repeat, settings=f"{count} times, {pause} ms between")
                tasks.append(attach_task(ground, cell, count, pause))
    return tasks


def scale(ground: Ground, repeats: int) -> list[Task]:
    options = ground.options
    seconds = options.seconds or (3.0 if options.full else 1.0)
    return [
        crowd_task(ground, place, clients, repeat, seconds)
        for repeat in range(repeats)
        for clients in options.clients or CLIENTS
        for place in options.places
    ]


def emulation_is_there() -> bool:
    try:
        return EMULATION_VARIABLE in (libraries.client_folder() / libraries.LIBCUDA).read_bytes()
    except (libraries.LibrariesMissing, OSError):
        return False


def network(ground: Ground, repeats: int) -> list[Task]:
    options = ground.options
    names = checked(options.rows, NETWORK_ROWS, known)
    # A library that does not know the variables would run at full speed under the name of a slow network.
    if not emulation_is_there():
        raise Impossible("this build of the client library emulates no network (ORION_EMULATE_RTT_US): build it again")
    if os.environ.get("ORION_TCP_LANES") == "zmq":
        raise Impossible("networks are emulated on plain TCP lanes: leave ORION_TCP_LANES unset")
    tasks = []
    for repeat in range(repeats):
        for place in (NATIVE, "tcp"):
            if place in options.places:
                tasks.append(ground.rows_task(tuple(Cell("network", name, place, repeat) for name in names)))
        for link in options.networks or NETWORKS:
            tasks.append(ground.rows_task(tuple(Cell("network", name, "tcp", repeat, link) for name in names)))
    return tasks


PACKAGES = {"torch_rows": ("torch",), "array_rows": ()}
ROW_PACKAGES = {
    "gpt2_decode_eager": ("transformers",),
    "bert_infer_bs1": ("transformers",),
    "resnet50_train_bs64": ("torchvision",),
    "resnet50_train_bs256": ("torchvision",),
    "jax_grad_step": ("jax",),
    "cupy_mix": ("cupy",),
}
# Left to --full: the first takes a minute to start, the second tells what the one with a smaller batch tells.
LONG_ROWS = ("gpt2_decode_eager", "resnet50_train_bs256")


def driver_row_names() -> tuple[str, ...]:
    return tuple(name for name in row_programs.ROWS if name not in LEFT_OUT)


def suite_rows(options: Options) -> tuple[str, ...]:
    from importlib.util import find_spec

    from benchmarks.workloads.__main__ import ORDER
    from benchmarks.workloads.registry import WORKLOADS

    if options.rows:
        return checked(options.rows, tuple(ORDER), WORKLOADS.__contains__)
    if options.device == "softgpu":
        return driver_row_names()
    names = []
    for name in ORDER:
        module = WORKLOADS[name].body.__module__.rpartition(".")[2]
        needed = (*PACKAGES.get(module, ()), *ROW_PACKAGES.get(name, ()))
        if all(find_spec(package) is not None for package in needed) and (options.full or name not in LONG_ROWS):
            names.append(name)
    return tuple(names)


def suite(ground: Ground, repeats: int) -> list[Task]:
    from benchmarks.suite_session import run_row

    options = ground.options

    def task(cell: Cell) -> Task:
        def run(left: tuple[Cell, ...], done: Done) -> None:
            row = run_row(ground.places(), cell.place, cell.row, options.timeout_s, options.out)
            row.pop("name", None)
            row["what"] = row.pop("metric", "")
            done(cell, {name: rounded(value) for name, value in row.items()})

        return Task((cell,), run)

    names = suite_rows(options)
    return [
        task(Cell("suite", name, place, repeat))
        for repeat in range(repeats)
        for name in names
        for place in options.places
    ]


COMMANDS = {
    command.name: command
    for command in (
        Command("latency", (3, 10), "round trips that a program waits for, beside the machine's bare floors", latency),
        Command("launch", (3, 10), "what a one-way launch costs client and server, and how fast they go", launch),
        Command("copy", (2, 5), "copies up and down by size, beside bare TCP", copy),
        Command("scale", (1, 3), "many clients on one GPU at once: rate, fairness, latency under load", scale),
        Command("attach", (1, 3), "process start to the first kernel, cold and warm", attach),
        Command("network", (1, 3), "eight rows over emulated networks", network),
        Command("slices", (1, 1), "vGPUs: configured against achieved shares of a GPU, changed live; overhead", slices),
        Command("suite", (1, 3), "real programs: PyTorch, JAX, CuPy, the driver API", suite),
    )
}
