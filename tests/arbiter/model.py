"""A GPU, its workers and the arbiter in simulated time: policy.c is real, everything else is arithmetic."""

from __future__ import annotations

import bisect
import ctypes
import heapq
import math
import os
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
ARBITER = ROOT / "orion_server" / "arbiter"
NEVER = NO_LIMIT = (1 << 64) - 1
MS = 1_000_000
WINDOW_NS, AHEAD_NS, WINDOW_UNLIMITED_NS, LINGER_NS, LEAD_NS = 4 * MS, MS, 20 * MS, 200_000, 150_000
# A switch between two processes costs a GPU about that long (H200: turns of 5 ms lost 4.7 %).
TIMER_JITTER_NS, SWITCH_NS, MESSAGE_NS = 60_000, 300_000, 20_000


@cache
def library() -> Any:
    """policy.c and residency.c, compiled once per change."""
    sources = [Path(__file__).with_name("policy_api.c"), ARBITER / "policy.c", ARBITER / "residency.c"]
    target = ROOT / "build" / "arbiter_tests" / "libpolicy.so"
    newest = max(path.stat().st_mtime for path in [*sources, *ARBITER.glob("*.h")])
    if not target.exists() or target.stat().st_mtime < newest:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(f".{os.getpid()}")
        command = ["gcc", "-std=c11", "-O1", "-g", "-shared", "-fPIC", f"-I{ARBITER}", *map(str, sources)]
        subprocess.run([*command, "-o", str(fresh)], check=True)
        fresh.replace(target)
    loaded = ctypes.CDLL(str(target))
    for name in ("model_new", "residency_new", "residency_seat_of"):
        getattr(loaded, name).restype = ctypes.c_void_p
    for name in ("model_grant", "model_budget", "model_recalled", "policy_decide", "residency_promised"):
        getattr(loaded, name).restype = ctypes.c_uint64
    loaded.model_credit.restype = ctypes.c_int64
    loaded.policy_achieved.restype = ctypes.c_double
    return loaded


def u64(value: float) -> ctypes.c_uint64:
    return ctypes.c_uint64(int(value))


class Policy:
    """policy.h, with Python's numbers."""

    def __init__(self, turn_ns: int = 0, now_ns: int = 0) -> None:
        self.lib = library()
        self.p = ctypes.c_void_p(self.lib.model_new(u64(turn_ns), u64(now_ns)))

    def add_slice(self, ratio: int, elastic: bool = False, now_ns: int = 0) -> int:
        return int(self.lib.policy_add_slice(self.p, ratio, elastic, u64(now_ns)))

    def set_slice(self, index: int, ratio: int, now_ns: int, elastic: bool = False) -> None:
        self.lib.policy_set_slice(self.p, index, ratio, elastic, u64(now_ns))

    def remove_slice(self, index: int, now_ns: int) -> None:
        self.lib.policy_remove_slice(self.p, index, u64(now_ns))

    def add_seat(self, index: int, now_ns: int = 0, spent_ns: int = 0) -> int:
        return int(self.lib.policy_add_seat(self.p, index, u64(spent_ns), u64(now_ns)))

    def remove_seat(self, seat: int, now_ns: int) -> None:
        self.lib.policy_remove_seat(self.p, seat, u64(now_ns))

    def tell(self, seat: int, now_ns: int, *, wants: bool = False, returned: int = 0, ending: int = 0,
             spent_ns: int = 0, in_flight_ns: int = 0) -> None:  # fmt: skip
        self.lib.model_tell(self.p, seat, wants, u64(returned), u64(ending), u64(spent_ns), u64(in_flight_ns),
                            u64(now_ns))  # fmt: skip

    def decide(self, now_ns: int) -> int:
        return int(self.lib.policy_decide(self.p, u64(now_ns)))

    def turn(self, seat: int) -> tuple[int, int, int]:
        """Grant, budget, recalled."""
        return tuple(int(getattr(self.lib, f"model_{n}")(self.p, seat)) for n in ("grant", "budget", "recalled"))  # type: ignore[return-value]

    def holds(self, seat: int) -> bool:
        return bool(self.lib.model_holds(self.p, seat))

    def credit_ns(self, index: int) -> int:
        return int(self.lib.model_credit(self.p, index))

    def achieved(self, index: int, window_ns: int, now_ns: int) -> float:
        return float(self.lib.policy_achieved(self.p, index, u64(window_ns), u64(now_ns)))


@dataclass(eq=False)
class Tenant:
    """One client and its worker: kernels of `kernel_ms` (lognormal, CV 0.5), as many as it may launch, or, with
    `arrivals_hz`, one at random times. `first_guess`: how wrong the first estimate is; `bias`: of the measurement."""

    ratio: int
    kernel_ms: float
    elastic: bool = False
    arrivals_hz: float = 0.0
    first_guess: float = 1.0
    bias: float = 1.0
    gap_ms: float = 0.0  # between a kernel's end and the next one's launch: a program that waits for each
    busy: Callable[[float], bool] = lambda seconds: True
    # state
    seat: int = 0
    slice: int = 0
    queue: list[int] = field(default_factory=list)  # arrivals that wait
    flying: list[tuple[int, int]] = field(default_factory=list)  # (real ns, estimated ns), in order
    estimate_ns: float = 0.0
    measured: bool = False
    spent_ns: float = 0.0
    admitted_ns: float = 0.0
    grant: int = 0
    budget_ns: int = 0
    recalled: int = 0
    returned: int = 0
    ending: int = 0
    wants: bool = False
    idle_since_ns: int = -1
    next_ready_ns: int = 0
    ran_since_ns: int = 0
    look_ns: int = 0  # when the worker looks again at what is left
    runs: list[tuple[int, int]] = field(default_factory=list)  # (start, end) on the GPU
    latencies_ns: list[int] = field(default_factory=list)


class Machine:
    """Event by event. The GPU runs one kernel at a time; kernels of the worker that has launched first go first."""

    def __init__(self, tenants: list[Tenant], seed: int = 1, turn_ns: int = 0) -> None:
        self.dice = random.Random(seed)
        self.tenants = tenants
        self.policy = Policy(turn_ns)
        self.now_ns = 0
        self.events: list[tuple[int, int, str, int]] = []
        self.count = 0
        self.gpu_free_ns = 0
        self.gpu_owner = -1
        self.overlaps = 0
        for index, tenant in enumerate(tenants):
            tenant.slice = self.policy.add_slice(tenant.ratio, tenant.elastic)
            tenant.seat = self.policy.add_seat(tenant.slice)
            tenant.estimate_ns = tenant.kernel_ms * MS * tenant.first_guess
            if tenant.arrivals_hz:
                self.at(self.dice.expovariate(tenant.arrivals_hz) * 1e9, "arrive", index)
            else:
                self.at(0, "work", index)
        self.timer_ns = NEVER

    def at(self, when_ns: float, what: str, index: int) -> None:
        self.count += 1
        heapq.heappush(self.events, (int(when_ns), self.count, what, index))

    def run(self, seconds: float) -> None:
        end_ns = self.now_ns + int(seconds * 1e9)
        while self.events and self.events[0][0] <= end_ns:
            self.now_ns, _, what, index = heapq.heappop(self.events)
            getattr(self, f"on_{what}")(index)
        self.now_ns = end_ns

    # ---- the worker
    def on_arrive(self, index: int) -> None:
        tenant = self.tenants[index]
        tenant.queue.append(self.now_ns)
        self.at(self.now_ns + self.dice.expovariate(tenant.arrivals_hz) * 1e9, "arrive", index)
        self.on_work(index)

    def has_work(self, tenant: Tenant) -> bool:
        if tenant.arrivals_hz:
            return bool(tenant.queue)
        if not tenant.busy(self.now_ns / 1e9):
            if tenant.next_ready_ns <= self.now_ns:
                tenant.next_ready_ns = self.now_ns + 5 * MS
                self.at(tenant.next_ready_ns, "work", self.tenants.index(tenant))
            return False
        return self.now_ns >= tenant.next_ready_ns and not (tenant.gap_ms and tenant.flying)

    def holds(self, tenant: Tenant) -> bool:
        return tenant.grant != tenant.returned

    def on_work(self, index: int) -> None:
        tenant = self.tenants[index]
        rung = False
        while self.has_work(tenant) and self.admits(tenant):
            self.launch(index)
        if self.has_work(tenant) and not self.holds(tenant) and not tenant.wants:
            tenant.wants = rung = True
        if self.holds(tenant):
            flying, left = sum(estimate for _, estimate in tenant.flying), self.left_ns(tenant)
            spent_up = tenant.recalled == tenant.grant or tenant.admitted_ns >= tenant.budget_ns
            if not spent_up and tenant.budget_ns != NO_LIMIT and tenant.admitted_ns > tenant.budget_ns - WINDOW_NS / 2:
                rung = True
            if spent_up and tenant.ending != tenant.grant and (flying < LEAD_NS or 0 < left < LEAD_NS):
                tenant.ending, rung = tenant.grant, True
            if not tenant.flying and (spent_up or self.lingered(tenant, index)):
                tenant.returned = tenant.grant
                tenant.wants = self.has_work(tenant)
                rung = True
            self.look_again(tenant, index, spent_up, left)
        if rung:
            self.at(self.now_ns + MESSAGE_NS * self.dice.random(), "doorbell", index)

    def left_ns(self, tenant: Tenant) -> int:
        """What is left of the work in flight, by its estimates (left_ns of turns.c)."""
        flying = sum(estimate for _, estimate in tenant.flying)
        return max(0, flying - (self.now_ns - tenant.ran_since_ns)) if tenant.flying else 0

    def look_again(self, tenant: Tenant, index: int, spent_up: bool, left_ns: int) -> None:
        """A worker that has the GPU looks all the time; here when something comes of it."""
        until = LEAD_NS - 1000 if spent_up else AHEAD_NS // 2 - 1000
        if tenant.flying and tenant.measured and left_ns > until and tenant.look_ns <= self.now_ns:
            tenant.look_ns = self.now_ns + left_ns - until
            self.at(tenant.look_ns, "work", index)

    def lingered(self, tenant: Tenant, index: int) -> bool:
        if self.has_work(tenant):
            tenant.idle_since_ns = -1
            return False
        if tenant.idle_since_ns < 0:
            tenant.idle_since_ns = self.now_ns
            self.at(self.now_ns + LINGER_NS, "work", index)
        return self.now_ns - tenant.idle_since_ns >= LINGER_NS

    def admits(self, tenant: Tenant) -> bool:
        if not self.holds(tenant) or tenant.recalled == tenant.grant or tenant.admitted_ns >= tenant.budget_ns:
            return False
        flying = sum(estimate for _, estimate in tenant.flying)
        if not tenant.measured and tenant.budget_ns != NO_LIMIT:
            return not tenant.flying
        if tenant.budget_ns == NO_LIMIT:
            return flying < WINDOW_UNLIMITED_NS
        return flying < WINDOW_NS and self.left_ns(tenant) < AHEAD_NS

    def launch(self, index: int) -> None:
        tenant = self.tenants[index]
        sigma = math.sqrt(math.log(1.25))
        real = max(1000, int(tenant.kernel_ms * MS * self.dice.lognormvariate(-sigma * sigma / 2, sigma)))
        switch = SWITCH_NS if self.gpu_owner not in (-1, index) else 0
        if self.gpu_owner not in (-1, index) and self.gpu_free_ns > self.now_ns + LEAD_NS:
            self.overlaps += 1
        start = max(self.now_ns, self.gpu_free_ns) + switch
        self.gpu_owner, self.gpu_free_ns = index, start + real
        if not tenant.flying:
            tenant.ran_since_ns = self.now_ns
        tenant.flying.append((real, int(tenant.estimate_ns)))
        tenant.admitted_ns += tenant.estimate_ns
        tenant.runs.append((start, start + real))
        tenant.idle_since_ns = -1
        if tenant.arrivals_hz:
            tenant.latencies_ns.append(start + real - tenant.queue.pop(0))
        self.at(start + real, "end", index)

    def on_end(self, index: int) -> None:
        tenant = self.tenants[index]
        real, estimate = tenant.flying.pop(0)
        tenant.ran_since_ns = self.now_ns
        measured = real * tenant.bias * self.dice.gauss(1, 0.01)
        tenant.spent_ns += measured
        tenant.admitted_ns += measured - estimate  # the estimate is replaced
        tenant.estimate_ns += (measured - tenant.estimate_ns) * (0.3 if tenant.measured else 1)
        tenant.measured = True
        if tenant.gap_ms:
            tenant.next_ready_ns = self.now_ns + int(tenant.gap_ms * MS)
            self.at(tenant.next_ready_ns, "work", index)
        self.on_work(index)

    # ---- the arbiter
    def on_doorbell(self, _index: int) -> None:
        for tenant in self.tenants:
            flying = sum(estimate for _, estimate in tenant.flying)
            self.policy.tell(tenant.seat, self.now_ns, wants=tenant.wants, returned=tenant.returned,
                             ending=tenant.ending, spent_ns=int(tenant.spent_ns), in_flight_ns=flying)  # fmt: skip
        again_ns = self.policy.decide(self.now_ns)
        for index, tenant in enumerate(self.tenants):
            turn = self.policy.turn(tenant.seat)
            if turn != (tenant.grant, tenant.budget_ns, tenant.recalled):
                self.at(self.now_ns + MESSAGE_NS * self.dice.random(), "news", index)
        if again_ns != NEVER:
            self.timer_ns = again_ns
            self.at(again_ns + TIMER_JITTER_NS * self.dice.random(), "timer", 0)

    def on_timer(self, index: int) -> None:
        if self.timer_ns <= self.now_ns:
            self.timer_ns = NEVER
            self.on_doorbell(index)

    def on_news(self, index: int) -> None:
        tenant = self.tenants[index]
        grant, budget, recalled = self.policy.turn(tenant.seat)
        if grant != tenant.grant:
            tenant.admitted_ns = 0.0
            tenant.wants = False
        tenant.grant, tenant.budget_ns, tenant.recalled = grant, budget, recalled
        self.on_work(index)

    # ---- what came of it
    def worst_error_pp(self, index: int, window_s: float, share: float, from_s: float = 1.0) -> float:
        """Largest difference in percentage points from `share` over sliding windows."""
        return max(abs(100 * s - 100 * share) for s in self.shares(index, window_s, from_s))

    def shares(self, index: int, window_s: float, from_s: float = 1.0) -> list[float]:
        runs = self.tenants[index].runs
        ends = [end for _, end in runs]
        total = [0]
        for start, end in runs:
            total.append(total[-1] + end - start)

        def busy(t_ns: float) -> float:
            k = bisect.bisect_left(ends, t_ns)
            inside = max(0.0, t_ns - runs[k][0]) if k < len(runs) else 0.0
            return total[k] + inside

        window_ns = window_s * 1e9
        at_ns, found = from_s * 1e9, []
        while at_ns + window_ns <= self.now_ns:
            found.append((busy(at_ns + window_ns) - busy(at_ns)) / window_ns)
            at_ns += window_ns / 10
        return found
