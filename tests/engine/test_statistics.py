"""Where the engine says that its thread's time went."""

from __future__ import annotations

import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from session import Session


def wait_for(what: object) -> None:
    deadline = time.monotonic() + 20
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@isolated
def test_the_threads_time_is_accounted_for() -> None:
    began_ns = time.monotonic_ns()
    with Session() as s:
        s.open()
        wait_for(lambda: s.stats().asleep_ns)  # nothing to do: it sleeps at last
        idle = s.stats()
        s.call("PING", value=1)
        wait_for(lambda: s.stats().busy_ns > idle.busy_ns)
        told = s.stats()
        assert told.busy_ns + told.looking_ns + told.asleep_ns <= time.monotonic_ns() - began_ns
        # Asleep again, nothing but sleep is added; the time between two looks belongs to one of the three.
        wait_for(lambda: s.stats().asleep_ns > told.asleep_ns)
        assert s.stats().busy_ns < told.asleep_ns + told.looking_ns + told.busy_ns


@isolated
def test_one_launch_in_64_is_timed() -> None:
    with Session() as s:
        s.open()
        counter = s.map()
        s.load()
        s.function(b"add", 1)
        for _ in range(63):
            s.launch(1, struct.pack("<QI", counter, 1))
        s.sync()
        assert (s.stats().launches, s.stats().launches_timed, s.stats().launches_timed_ns) == (63, 0, 0)
        for _ in range(65):
            s.launch(1, struct.pack("<QI", counter, 1))
        s.sync()
        assert (s.stats().launches, s.stats().launches_timed, s.stats().launches_handed) == (128, 2, 0)
        assert s.stats().launches_timed_ns > 0


if __name__ == "__main__":
    main(globals())
