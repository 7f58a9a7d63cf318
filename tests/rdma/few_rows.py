"""benchmarks.rows with few repeats of the copies: an emulated CPU that also plays the network takes seconds for each.
The digests are those of the whole rows: they do not depend on how often a copy is timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from benchmarks import rows
from benchmarks.measure import timed_groups


def few(step: Callable[[], Any], finish: Callable[[], Any], groups: int, each: int = 1, **more: Any) -> list[float]:
    """Large copies are timed with --timed alone: each has been made there and back, and once more, before this."""
    if step.__name__ not in ("up", "down") or each > 1:
        return timed_groups(step, finish, groups, each, **more)
    return timed_groups(step, finish, 3) if TIMED else [float("nan")]


if __name__ == "__main__":
    names = sys.argv[1:]
    TIMED = "--timed" in names
    rows.timed_groups = few
    rows.MAX_GROUP_S = 0.02
    sys.exit(rows.main([name for name in names if name != "--timed"]))
