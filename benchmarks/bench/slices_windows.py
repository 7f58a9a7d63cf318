"""From the times at which fixed amounts of work were done to shares of a GPU: pure arithmetic.

The share in a window is the work done in it, in seconds that the work takes alone, over the window's length. The work
of an item counts evenly over the time since the item before it. The first second is dropped: clocks settle then.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import percentile

WINDOWS_S = (0.1, 1.0, 10.0)
DROPPED_S = 1.0
# Windows slide by a tenth of their length.
STEPS_A_WINDOW = 10


class Work:
    """What one tenant has done by when. `done_s`: ends of items, ascending; `item_s`: what an item takes alone;
    `until_s`: how long it tried."""

    def __init__(
        self, done_s: Sequence[float], item_s: float, until_s: float = 0.0, dropped_s: float = DROPPED_S
    ) -> None:
        before = bisect.bisect_right(done_s, dropped_s)
        # The end of the last item that is dropped is where the first one that counts began.
        first = done_s[before - 1] if before else 0.0
        self.at_s = [first, *done_s[before:]]
        self.item_s = item_s
        # A tenant that got nothing any more has not ended at its last item. Within a second it is the cut at the end.
        self.end_s = until_s if until_s - self.at_s[-1] > max(1.0, 2 * item_s) else self.at_s[-1]

    @property
    def begin_s(self) -> float:
        return self.at_s[0]

    def by(self, when_s: float) -> float:
        """Seconds of work done since `begin_s`."""
        after = bisect.bisect_right(self.at_s, when_s)
        if after == 0:
            return 0.0
        if after == len(self.at_s):
            return (after - 1) * self.item_s
        earlier, later = self.at_s[after - 1], self.at_s[after]
        return (after - 1 + (when_s - earlier) / (later - earlier)) * self.item_s

    def share(self, begin_s: float, window_s: float) -> float:
        """Of the GPU, 0 to 1, in one window."""
        return (self.by(begin_s + window_s) - self.by(begin_s)) / window_s

    def mean(self) -> float:
        return self.share(self.begin_s, self.end_s - self.begin_s) if self.end_s > self.begin_s else 0.0

    def starts(self, window_s: float, step_s: float) -> list[float]:
        """Where windows of that length begin that lie within what was measured."""
        room = self.end_s - self.begin_s - window_s
        # The margin keeps a window that fits exactly, whatever the sums of floats say.
        return [self.begin_s + i * step_s for i in range(int(room / step_s + 1e-9) + 1)] if room >= -1e-9 else []

    def shares(self, window_s: float) -> list[float]:
        return [self.share(start, window_s) for start in self.starts(window_s, window_s / STEPS_A_WINDOW)]


@dataclass(frozen=True)
class Deviation:
    """Shares in sliding windows of one length, in percent; `worst_pp`: from what was configured, percentage points."""

    minimum: float
    maximum: float
    worst_pp: float

    def record(self) -> dict[str, float]:
        return {"min": self.minimum, "max": self.maximum, "worst_pp": self.worst_pp}


def deviations(work: Work, configured_percent: float) -> dict[str, dict[str, float]]:
    """For each window that fits, by its length in seconds as text (JSON has no other keys)."""
    out = {}
    for window_s in WINDOWS_S:
        shares = [100 * share for share in work.shares(window_s)]
        if shares:
            worst = max(abs(share - configured_percent) for share in shares)
            out[f"{window_s:g}"] = Deviation(min(shares), max(shares), worst).record()
    return out


def series(work: Work, window_s: float = 0.1) -> list[list[float]]:
    """Time and share in percent of windows side by side: what a plot shows."""
    return [[start, 100 * work.share(start, window_s)] for start in work.starts(window_s, window_s)]


def settled_s(
    work: Work, changed_s: float, until_s: float, percent: float, tolerance_pp: float, window_s: float = 0.1
) -> float | None:
    """How long after `changed_s` the windows begin that all have the new share, up to `until_s`; None: never."""
    step_s = window_s / STEPS_A_WINDOW
    count = int((until_s - window_s - changed_s) / step_s + 1e-9) + 1
    settled: float | None = None
    for i in range(count - 1, -1, -1):
        if abs(100 * work.share(changed_s + i * step_s, window_s) - percent) > tolerance_pp:
            break
        settled = i * step_s
    return settled


def lost_pp(shares_percent: Sequence[float], configured_percent: Sequence[float]) -> float:
    """Percentage points of the GPU that tenants together were to have and nobody got."""
    return min(100.0, sum(configured_percent)) - sum(shares_percent)


def together(works: Sequence[Work]) -> tuple[float, float]:
    """The time in which all tenants were measured."""
    return max(work.begin_s for work in works), min(work.end_s for work in works)


@dataclass(frozen=True)
class Latency:
    """Of requests, in milliseconds."""

    p50: float
    p90: float
    p99: float
    count: int


def latency(done_s: Sequence[float], latency_s: Sequence[float], dropped_s: float = DROPPED_S) -> Latency | None:
    kept = sorted(1e3 * took for end, took in zip(done_s, latency_s) if end - took > dropped_s)
    if not kept:
        return None
    return Latency(percentile(kept, 0.5), percentile(kept, 0.9), percentile(kept, 0.99), len(kept))


def record_of(work: Work, configured_percent: float | None) -> dict[str, Any]:
    """What a row keeps of one tenant."""
    told: dict[str, Any] = {"mean": 100 * work.mean(), "windows": {}}
    if configured_percent is not None:
        told["configured"] = configured_percent
    told["windows"] = deviations(work, told["mean"] if configured_percent is None else configured_percent)
    return told
