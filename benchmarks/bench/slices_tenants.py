"""Tenants of one GPU (native/slice_probe.c): calibrated alone and natively once, then let go together."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.bench.crowd import ATTACH_TIMEOUT_MS, Client
from benchmarks.bench.ground import Ground
from benchmarks.bench.model import NATIVE, Cell, Row
from benchmarks.bench.runner import TaskError, identity
from benchmarks.bench.slices_server import wait_until_free
from benchmarks.bench.slices_windows import Work
from benchmarks.bench.store import Store
from benchmarks.places import Places

# A training step queues more than the GPU needs for the next milliseconds; so does a tenant here.
QUEUED_MS, DEPTH_LIMITS = 10.0, (4, 64)
# Blocks (0: one a multiprocessor) and threads of a kernel. softgpu interprets each thread.
SHAPES = {"nvidia": ("0", "256"), "softgpu": ("1", "32")}
# A kernel of softgpu would else use every core, and two tenants be no faster than one.
SOFTGPU_ENVIRONMENT = {"SOFTGPU_THREADS": "1"}
# Seconds that a tenant may need to attach and to load its kernel, beside the seconds that it works.
START_S = 60.0


@dataclass(frozen=True)
class Item:
    """A fixed amount of work: a kernel that takes `kernel_ms` alone, or a graph launch of `graph` such kernels."""

    kernel_ms: float
    graph: int = 0

    @property
    def name(self) -> str:
        return f"graph_{self.graph}x{self.kernel_ms:g}ms" if self.graph else f"{self.kernel_ms:g}ms"

    @property
    def item_ms(self) -> float:
        return self.kernel_ms * max(1, self.graph)

    @property
    def depth(self) -> int:
        low, high = DEPTH_LIMITS
        return max(low, min(high, round(QUEUED_MS / self.item_ms)))


@dataclass(frozen=True)
class Ruler:
    """An item as calibrated: what it takes alone is the unit of all shares of this run."""

    iterations: int
    alone_ms: float
    digest: int


@dataclass(frozen=True)
class Tenant:
    """One client process. `ratio` in percent; None asks for none. `load`: its requests' share of the GPU, 0 to 1; 0: it
    saturates. `elastic`: the percent of the GPU that it is to get where idle time is shared out on top of the ratio."""

    item: Item
    ratio: int | None = None
    load: float = 0.0
    group: str = ""
    elastic: float | None = None

    @property
    def promised(self) -> float | None:
        """Percent of the GPU that it is to get."""
        return self.ratio if self.elastic is None else self.elastic

    def environment(self) -> dict[str, str]:
        extra = {"ORION_ATTACH_TIMEOUT_MS": ATTACH_TIMEOUT_MS}
        if self.ratio is not None:
            extra["ORION_RATIO"] = str(self.ratio)
        if self.group:
            extra |= {"ORION_GROUP_ID": self.group, "ORION_RES_GROUP": "BOX"}
        return extra


@dataclass(frozen=True)
class Told:
    """What a tenant did. Times in seconds since the first tenant began, which was at `first_s` of CLOCK_MONOTONIC."""

    tenant: Tenant
    ruler: Ruler
    done_s: list[float]
    latency_s: list[float]
    digest: int
    until_s: float
    first_s: float

    def work(self) -> Work:
        return Work(self.done_s, self.ruler.alone_ms / 1e3, self.until_s)


def sliced(ground: Ground) -> Places:
    """The server whose GPU is shared by vGPUs."""
    return ground.places("server-slices", ("--vgpu-count", "4"), softgpu_environment(ground))


def elastic(ground: Ground) -> Places:
    """The same, and who has work gets what others leave."""
    options = ("--vgpu-count", "4", "--ratio-policy", "elastic")
    return ground.places("server-elastic", options, softgpu_environment(ground))


def whole(ground: Ground) -> Places:
    """The same server without vGPUs: nobody is limited."""
    return ground.places("server-whole", ("--vgpu-count", "0"), softgpu_environment(ground))


def native(ground: Ground) -> Places:
    """No server at all."""
    return Places(ground.options.device, (NATIVE,), ground.options.out / "native.log")


def softgpu_environment(ground: Ground) -> dict[str, str]:
    return SOFTGPU_ENVIRONMENT if ground.options.device == "softgpu" else {}


def calibration_cell(item: Item) -> Cell:
    return Cell("slices", f"calibrate_{item.name}", NATIVE)


def calibrate(ground: Ground, item: Item) -> Row:
    places = native(ground)
    command = [str(ground.program("slice_probe")), "calibrate", f"{item.item_ms:g}", str(item.graph)]
    command += [*SHAPES[ground.options.device], str(item.depth)]
    outcome = ground.run(places, NATIVE, command, ground.options.timeout_s, extra=softgpu_environment(ground))
    told = json.loads(outcome.stdout)
    if told["digest"] < 0:
        raise TaskError("not every kernel computed the same")
    return {"unit": "ms", "better": "lower", "what": f"{item.name}: the ruler, alone and natively",
            "value": told["alone_ms"], "iterations": told["iterations"], "digest": told["digest"],
            "exact": True}  # fmt: skip


def ruler(ground: Ground, item: Item) -> Ruler:
    """As this run has calibrated it, now or before it was resumed."""
    cell = calibration_cell(item)
    row = Store(ground.options.out).get(identity(cell, ground.options))
    if row is None:
        raise TaskError(f"{cell.row} was not measured: there is no ruler")
    return Ruler(row["iterations"], row["value"], row["digest"])


def command_of(ground: Ground, tenant: Tenant, measure: Ruler, seconds: float, seed: int) -> list[str]:
    shape = SHAPES[ground.options.device]
    program = str(ground.program("slice_probe"))
    base = [str(measure.iterations), str(tenant.item.graph), *shape, f"{seconds:g}"]
    if tenant.load:
        return [program, "request", *base, f"{tenant.load * 1e3 / measure.alone_ms:.6g}", str(seed)]
    return [program, "saturate", *base, str(tenant.item.depth)]


def run_tenants(
    ground: Ground, places: Places, place: str, tenants: Sequence[Tenant], seconds: float,
    during: Callable[[float], None] | None = None,
) -> list[Told]:  # fmt: skip
    """All tenants at once, for that long. `during` is called when they have been let go, with that CLOCK_MONOTONIC."""
    rulers = [ruler(ground, tenant.item) for tenant in tenants]
    clients: list[Client] = []
    deadline = time.monotonic() + max(START_S, ground.options.timeout_s) + 2 * seconds
    try:
        base = places.environment(place)
        if place != NATIVE:
            wait_until_free(places.address)
        for position, (tenant, measure) in enumerate(zip(tenants, rulers)):
            # The seed is the tenant's place: the same arrivals alone and beside others.
            command = places.command(place, command_of(ground, tenant, measure, seconds, 1 + position))
            environment = {**base, **softgpu_environment(ground), **tenant.environment()}
            clients.append(start(command, environment))
        for client in clients:
            while (line := client.next(deadline)) != "ready":
                raise TaskError(f"unexpected: {line}", whole=True)
        let_go_s = time.monotonic()
        for client in clients:
            client.go()
        if during is not None:
            during(let_go_s)
        told = [json.loads(client.next(deadline)) for client in clients]
        for client in clients:
            client.process.wait(timeout=START_S)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise TaskError(str(error), whole=True) from None
    finally:
        for client in clients:
            client.stop()
    return [
        as_told(tenant, measure, one, min(other["began"] for other in told), seconds)
        for tenant, measure, one in zip(tenants, rulers, told)
    ]


def start(command: list[str], environment: Mapping[str, str]) -> Client:
    return Client(
        subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )
    )  # fmt: skip


def as_told(tenant: Tenant, measure: Ruler, told: Mapping[str, Any], first_s: float, seconds: float) -> Told:
    offset_s = told["began"] - first_s
    return Told(
        tenant,
        measure,
        [offset_s + at / 1e6 for at in told["done_us"]],
        [at / 1e6 for at in told.get("latency_us", [])],
        told["digest"],
        offset_s + seconds,
        first_s,
    )


def group_name(purpose: str) -> str:
    return f"orion-bench-{purpose}-{os.getpid()}"
