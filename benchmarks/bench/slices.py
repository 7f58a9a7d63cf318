"""`orion-bench slices`: what share of a GPU tenants get, beside what they were configured to get.

Every share is measured with one ruler: items calibrated alone and natively in the same run (slices_tenants). What is
configured is a hard share, a tenant that is alone gets no more than its ratio, but in the rows named elastic: there all
that others leave is shared out on top, and what tenants are to get is told instead of the ratio.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.bench.ground import Done, Ground, rounded
from benchmarks.bench.model import NATIVE, Cell, Row, Task, Unknown
from benchmarks.bench.runner import TaskError
from benchmarks.bench.slices_server import set_ratio, wait_until_free
from benchmarks.bench.slices_tenants import (
    Item,
    Tenant,
    Told,
    calibrate,
    calibration_cell,
    elastic,
    group_name,
    native,
    ruler,
    run_tenants,
    sliced,
    whole,
)
from benchmarks.bench.slices_windows import latency, lost_pp, record_of, series, settled_s, together

# 12 s are the shortest in which windows of 10 s slide, the first second dropped.
SECONDS = {("nvidia", False): 12.0, ("nvidia", True): 31.0, ("softgpu", False): 4.0, ("softgpu", True): 12.0}
OVERHEAD_SECONDS, OVERHEAD_PAIRS = 4.0, {False: 3, True: 10}
# Of client_cost: burst, bursts, waits, launches in one go.
LAUNCH_ARGUMENTS = {"nvidia": ("512", "100", "500", "200000"), "softgpu": ("512", "20", "100", "20000")}
# A small model's answer takes about that long.
REQUEST = Item(1.0)
BATCH = Item(2.0)
# The requests' share of what the tenant may have.
REQUEST_LOAD = 0.5
# Ratios between which a running program is changed, how far apart in time, and how near a window of 100 ms must be to
# count as the new share: a turn of 5 ms and an item of 2 ms more or less are 7 points of it.
CHANGE_RATIOS, CHANGE_APART_S, CHANGE_TOLERANCE_PP = (30, 70), 2.0, 10.0
# Targets, in the unit of the row's value or in percentage points; tables mark what misses them.
TARGETS = {"overhead_saturated": 1.0, "overhead_launch_rate": 1.0, "change": 100.0}


@dataclass(frozen=True)
class Scenario:
    """A row: its name, where it runs, which items it needs calibrated, and how it is measured."""

    name: str
    place: str
    items: tuple[Item, ...]
    settings: str
    measure: Callable[[], Row]
    clients: int = 1


def digests(tenants: list[Told]) -> Row:
    """What each tenant's kernels have computed, and what they had to."""

    def text(values: list[int]) -> str:
        return "/".join(map(str, dict.fromkeys(values)))

    return {"digest": text([told.digest for told in tenants]),
            "expected": text([told.ruler.digest for told in tenants]), "exact": True}  # fmt: skip


def tidy(value: Any) -> Any:
    """Six digits, in dictionaries too."""
    if isinstance(value, dict):
        return {name: tidy(item) for name, item in value.items()}
    if isinstance(value, list):
        return [tidy(item) for item in value]
    return rounded(value)


def tenant_record(told: Told) -> Row:
    tenant = told.tenant
    record: Row = {"item": tenant.item.name, "item_ms": told.ruler.alone_ms, "items": len(told.done_s)}
    if tenant.load:
        return record | {"load": 100 * tenant.load, "configured": tenant.ratio}
    return record | record_of(told.work(), tenant.promised)


def shares_row(tenants: list[Told], what: str) -> Row:
    """Of tenants that saturate: the share that all got together while all ran."""
    works = [told.work() for told in tenants]
    begin_s, end_s = together(works)
    if end_s <= begin_s:
        raise TaskError("a tenant has done no work after the first second")
    shares = [100 * work.share(begin_s, end_s - begin_s) for work in works]
    row: Row = {"unit": "%", "better": "higher", "what": what, "value": sum(shares),
                "tenants": [tenant_record(told) for told in tenants], **digests(tenants)}  # fmt: skip
    ratios = [told.tenant.promised for told in tenants if told.tenant.promised is not None]
    if len(tenants) > 1:
        # What a plot shows; of a tenant alone the windows tell enough.
        row["series"] = [series(work) for work in works]
        row["lost_pp"] = lost_pp(shares, ratios if len(ratios) == len(tenants) else [100.0])
    return row


def request_row(tenants: list[Told], what: str) -> Row:
    """The first tenant answers requests; others saturate."""
    found = latency(tenants[0].done_s, tenants[0].latency_s)
    if found is None:
        raise TaskError("no request came after the first second")
    return {"unit": "ms", "better": "lower", "what": what, "value": found.p99, "p50": found.p50, "p90": found.p90,
            "requests": found.count, "tenants": [tenant_record(told) for told in tenants],
            **digests(tenants)}  # fmt: skip


def change_row(ground: Ground, item: Item, seconds: float) -> Row:
    """A program whose ratio changes while it runs, again and again; the worst time until its share is the new one."""
    places = sliced(ground)
    group = group_name("change")
    changes: list[tuple[float, float, int]] = []

    def during(let_go_s: float) -> None:
        at_s, turn = let_go_s + 1 + CHANGE_APART_S, 1
        while at_s + CHANGE_APART_S <= let_go_s + seconds + 0.01:
            time.sleep(max(0.0, at_s - time.monotonic()))
            ratio = CHANGE_RATIOS[turn % 2]
            changes.append((*set_ratio(places.address, group, ratio, ground.options.timeout_s), ratio))
            at_s, turn = at_s + CHANGE_APART_S, turn + 1

    (told,) = run_tenants(ground, places, "shm", [Tenant(item, CHANGE_RATIOS[0], group=group)], seconds, during)
    work = told.work()
    settled: list[float] = []
    unsettled = 0
    ends_s = [asked_s for asked_s, _, _ in changes[1:]] + [told.first_s + work.end_s]
    for (asked_s, _, ratio), end_s in zip(changes, ends_s):
        took_s = settled_s(work, asked_s - told.first_s, end_s - told.first_s, ratio, CHANGE_TOLERANCE_PP)
        unsettled += took_s is None
        settled.append(1e3 * (end_s - asked_s if took_s is None else took_s))
    if not settled:
        raise TaskError(f"{seconds:g} s are too short: a change needs {1 + 2 * CHANGE_APART_S:g} s", whole=True)
    return {"unit": "ms", "better": "lower",
            "what": "a new ratio is asked for, until every window of 100 ms has the new share; the worst of several",
            "value": max(settled), "low": min(settled), "high": max(settled), "each": settled, "unsettled": unsettled,
            "answer_ms": [1e3 * (answered_s - asked_s) for asked_s, answered_s, _ in changes],
            "changes": [[asked_s - told.first_s, ratio] for asked_s, _, ratio in changes],
            "first_ratio": CHANGE_RATIOS[0], "series": [series(work)], **digests([told])}  # fmt: skip


def pairs_row(without: list[float], with_slices: list[float], unit: str, what: str) -> Row:
    """What slices cost, in percent, measured alternately; `unit` is that of the values."""
    each = [100 * (1 - mine / base) for base, mine in zip(without, with_slices)]
    return {"unit": "%", "better": "lower", "what": what, "value": statistics.median(each), "low": min(each),
            "high": max(each), "each": each, "without": without, "with_slices": with_slices,
            "measured": unit}  # fmt: skip


def overhead_saturated(ground: Ground, item: Item, seconds: float) -> Row:
    without: list[float] = []
    with_slices: list[float] = []
    everything: list[Told] = []
    for _ in range(OVERHEAD_PAIRS[ground.options.full]):
        for places, tenant, kept in (
            (whole(ground), Tenant(item), without),
            (sliced(ground), Tenant(item, 100), with_slices),
        ):
            told = run_tenants(ground, places, "shm", [tenant], seconds)
            everything += told
            kept.append(100 * told[0].work().mean())
    row = pairs_row(without, with_slices, "% of the GPU", "a saturating tenant at ratio 100, beside no slices at all")
    return row | digests(everything)


def overhead_launch_rate(ground: Ground) -> Row:
    without: list[float] = []
    with_slices: list[float] = []
    counted = launched = 0
    command = [str(ground.program("client_cost")), *LAUNCH_ARGUMENTS[ground.options.device]]
    for _ in range(OVERHEAD_PAIRS[ground.options.full]):
        for places, tenant, kept in (
            (whole(ground), Tenant(BATCH), without),
            (sliced(ground), Tenant(BATCH, 100), with_slices),
        ):
            wait_until_free(places.address)
            outcome = ground.run(places, "shm", command, ground.options.timeout_s, extra=tenant.environment())
            told = json.loads(outcome.stdout)
            kept.append(told["replay_per_second"])
            counted, launched = counted + told["counted"], launched + told["launched"]
    row = pairs_row(without, with_slices, "launches/s", "launch rate at ratio 100, beside no slices at all")
    return row | {"digest": counted, "expected": launched, "exact": True}


def scenarios(ground: Ground) -> list[Scenario]:
    """The grid, in the order in which it is measured."""
    options = ground.options
    full, soft = options.full, options.device == "softgpu"
    seconds = options.seconds or SECONDS[options.device, full]
    timed = f"{seconds:g} s"
    found: list[Scenario] = []

    def shares(name: str, place: str, what: str, *tenants: Tenant) -> None:
        def measure() -> Row:
            shared = elastic if any(tenant.elastic is not None for tenant in tenants) else sliced
            places = native(ground) if place == NATIVE else shared(ground)
            return shares_row(run_tenants(ground, places, place, tenants, seconds), what)

        items = tuple(dict.fromkeys(tenant.item for tenant in tenants))
        found.append(Scenario(name, place, items, timed, measure, len(tenants)))

    def requests(name: str, place: str, what: str, *tenants: Tenant) -> None:
        def measure() -> Row:
            places = native(ground) if place == NATIVE else sliced(ground)
            return request_row(run_tenants(ground, places, place, tenants, seconds), what)

        items = tuple(dict.fromkeys(tenant.item for tenant in tenants))
        found.append(Scenario(name, place, items, timed, measure, len(tenants)))

    def group(kind: str, places: tuple[str, ...], *tenants: Tenant) -> None:
        # Four equal ones are told once.
        ratios = "_".join(str(tenant.ratio) for tenant in (tenants[:1] if kind == "four" else tenants))
        items = "_".join(dict.fromkeys(tenant.item.name for tenant in tenants))
        for place in places:
            shares(f"{kind}_{ratios}_{items}", place, "all together, each with its own ratio", *tenants)

    # The thing to beat: the driver's own time-slicing.
    shares("native_alone_2ms", NATIVE, "one program alone, the ruler's own check", Tenant(BATCH))
    shares("native_pair_2ms", NATIVE, "two programs, the driver's own time-slicing", Tenant(BATCH), Tenant(BATCH))

    for kernel_ms in (2.0, 10.0) if soft and not full else (0.2, 2.0, 10.0, 50.0) if full else (0.2, 2.0, 10.0):
        for ratio in range(10, 100, 20) if full else (50,) if soft else (30, 50, 90):
            item = Item(kernel_ms)
            shares(f"alone_{ratio}_{item.name}", "shm", "one tenant, nobody else", Tenant(item, ratio))
    graph = Item(0.2, 10)
    for ratio in (30, 50, 90) if full else (50,):
        shares(f"alone_{ratio}_{graph.name}", "shm", "one tenant that launches graphs", Tenant(graph, ratio))

    group("pair", ("shm", "tcp"), Tenant(BATCH, 30), Tenant(BATCH, 70))
    group("pair", ("shm",), Tenant(BATCH, 50), Tenant(BATCH, 50))
    group("four", ("shm",), *[Tenant(BATCH, 25)] * 4)
    if full:
        for kernel_ms in (0.2, 10.0):
            group("pair", ("shm",), Tenant(Item(kernel_ms), 30), Tenant(Item(kernel_ms), 70))
        group("three", ("shm",), Tenant(Item(0.2), 20), Tenant(Item(2.0), 30), Tenant(Item(10.0), 40))

    # Idle time on top, in proportion to the ratios.
    shares("elastic_30_2ms", "shm", "one elastic tenant, nobody else", Tenant(BATCH, 30, elastic=100))
    for ratios in ((10, 30), (30, 70)) if full or not soft else ((10, 30),):
        name = "_".join(map(str, ratios))
        shares(f"elastic_{name}_2ms", "shm", "elastic tenants together, each with its own ratio",
               *(Tenant(BATCH, ratio, elastic=100 * ratio / sum(ratios)) for ratio in ratios))  # fmt: skip

    inference = Tenant(REQUEST, 50, load=REQUEST_LOAD * 0.5)
    name = f"inference_50_{REQUEST.name}"
    what = "p99 of requests that come by chance, at half of the tenant's share"
    requests(name, "shm", what, inference)
    for kernel_ms in (2.0, 10.0, 50.0) if full else (2.0,):
        batch = Item(kernel_ms)
        requests(f"{name}_beside_{batch.name}", "shm", f"{what}, beside a saturating tenant", inference,
                 Tenant(batch, 50))  # fmt: skip
    free = Tenant(REQUEST, load=inference.load)
    requests(f"native_inference_{REQUEST.name}_beside_2ms", NATIVE,
             "p99 of the same requests beside a saturating program, the driver's own time-slicing", free,
             Tenant(BATCH))  # fmt: skip

    change_s = max(seconds, 1 + 3 * CHANGE_APART_S)
    found.append(
        Scenario("change_30_70_2ms", "shm", (BATCH,), f"{change_s:g} s", lambda: change_row(ground, BATCH, change_s))
    )
    pairs = OVERHEAD_PAIRS[full]
    found.append(
        Scenario("overhead_saturated", "shm", (BATCH,), f"{pairs} times {OVERHEAD_SECONDS:g} s",
                 lambda: overhead_saturated(ground, BATCH, OVERHEAD_SECONDS))
    )  # fmt: skip
    found.append(
        Scenario("overhead_launch_rate", "shm", (), f"{pairs} times {' '.join(LAUNCH_ARGUMENTS[options.device])}",
                 lambda: overhead_launch_rate(ground))
    )  # fmt: skip
    return found


def plan(ground: Ground, repeats: int) -> list[Task]:
    options = ground.options
    every = scenarios(ground)
    names = list(dict.fromkeys(scenario.name for scenario in every))
    unknown = [name for name in options.rows if name not in names]
    if unknown:
        raise Unknown(f"no such row: {' '.join(unknown)} (there are: {' '.join(names)})")
    wanted = [
        scenario
        for scenario in every
        if scenario.place in options.places and (not options.rows or scenario.name in options.rows)
    ]
    items = dict.fromkeys(item for scenario in wanted for item in scenario.items)
    tasks = [calibration_task(ground, item) for item in items]
    for repeat in range(repeats):
        tasks += [scenario_task(ground, scenario, repeat) for scenario in wanted]
    return tasks


def calibration_task(ground: Ground, item: Item) -> Task:
    cell = calibration_cell(item)

    def run(left: tuple[Cell, ...], done: Done) -> None:
        done(cell, tidy(calibrate(ground, item)))

    return Task((cell,), run)


def scenario_task(ground: Ground, scenario: Scenario, repeat: int) -> Task:
    cell = Cell("slices", scenario.name, scenario.place, repeat, clients=scenario.clients, settings=scenario.settings)

    def run(left: tuple[Cell, ...], done: Done) -> None:
        for item in scenario.items:
            ruler(ground, item)
        done(cell, tidy(scenario.measure()))

    return Task((cell,), run)
