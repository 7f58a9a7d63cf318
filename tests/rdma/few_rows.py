"""benchmarks.rows with few repeats of the copies: an emulated CPU that also plays the network takes seconds for each.
The digests are those of the whole rows: they do not depend on how often a copy is timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from benchmarks import rows
from benchmarks.measure import timed_groups


def few(step: Callable[[], Any], finish: Callable[[], Any], groups: int, each: int = 1, **more: Any) -> list[float]:
    """A large copy has been made there and back, and once more, before this is called: none is timed."""
    if step.__name__ in ("up", "down") and each == 1:
        return [float("nan")]
    return timed_groups(step, finish, groups, each, **more)


if __name__ == "__main__":
    rows.timed_groups = few
    rows.MAX_GROUP_S = 0.02
    sys.exit(rows.main(sys.argv[1:]))
