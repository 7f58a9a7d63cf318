"""From the ends of fixed amounts of work to shares of a GPU: known series, known windows."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bench.slices_windows import (
    Work,
    deviations,
    latency,
    lost_pp,
    record_of,
    series,
    settled_s,
    together,
)


def steady(share: float, item_s: float, until_s: float, since_s: float = 0.0) -> list[float]:
    """Ends of items of a tenant that gets exactly that share."""
    apart = item_s / share
    return [since_s + apart * i for i in range(1, int((until_s - since_s) / apart + 1e-9) + 1)]


def turns(on_s: float, period_s: float, item_s: float, until_s: float) -> list[float]:
    """Ends of items of a tenant that has the whole GPU for `on_s` of each period."""
    ends = []
    for period in range(int(until_s / period_s)):
        ends += [period * period_s + item_s * i for i in range(1, round(on_s / item_s) + 1)]
    return ends


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("item_s", [0.0002, 0.002, 0.01])
def test_a_steady_tenant_is_off_nowhere(share: float, item_s: float) -> None:
    work = Work(steady(share, item_s, 12.0), item_s)
    assert work.mean() == pytest.approx(share)
    found = deviations(work, 100 * share)
    assert set(found) == {"0.1", "1", "10"}
    for window in found.values():
        assert window["worst_pp"] == pytest.approx(0, abs=1e-6)


def test_the_first_second_is_dropped() -> None:
    # Nothing at first, then all of the GPU: the window of the start is not seen.
    work = Work(steady(1.0, 0.002, 12.0, since_s=0.9), 0.002)
    assert work.begin_s == pytest.approx(1.0) and work.mean() == pytest.approx(1.0)
    # The item that ends behind the first second has begun before it or with it: its work counts evenly.
    late = Work([3.0, 4.0], 1.0)
    assert late.begin_s == 0.0 and late.by(3.0) == 1.0 and late.by(1.5) == 0.5


def test_turns_are_seen_by_short_windows_and_not_by_long_ones() -> None:
    # Half a second of the GPU, half a second without.
    work = Work(turns(0.5, 1.0, 0.01, 22.0), 0.01)
    found = deviations(work, 50)
    assert found["0.1"]["max"] == pytest.approx(100) and found["0.1"]["min"] < 5
    assert found["0.1"]["worst_pp"] == pytest.approx(50, abs=1)
    assert found["1"]["worst_pp"] < 1.0
    assert found["10"]["worst_pp"] < 0.1


def test_a_known_deviation() -> None:
    # 30 % for ten seconds, then 50 %: the worst window of a second has 50, of ten seconds what lies in it.
    item_s = 0.001
    ends = steady(0.3, item_s, 10.0)
    ends += steady(0.5, item_s, 16.0, since_s=ends[-1])
    found = deviations(Work(ends, item_s), 30)
    assert found["1"]["worst_pp"] == pytest.approx(20, abs=0.1) and found["1"]["min"] == pytest.approx(30, abs=0.1)
    # The last window of ten seconds begins at 6 s: four seconds of 30 and six of 50.
    assert found["10"]["worst_pp"] == pytest.approx(12, abs=0.1)


def test_windows_that_do_not_fit_are_not_told() -> None:
    assert set(deviations(Work(steady(0.5, 0.002, 4.0), 0.002), 50)) == {"0.1", "1"}
    # 11 s without the first hold windows of 10 s.
    assert "10" in deviations(Work(steady(0.5, 0.002, 12.0), 0.002), 50)


def test_a_tenant_that_gets_nothing_any_more_is_not_forgotten() -> None:
    ends = steady(0.5, 0.002, 6.0)
    assert Work(ends, 0.002).mean() == pytest.approx(0.5)
    starved = Work(ends, 0.002, until_s=11.0)
    assert starved.end_s == 11.0 and starved.mean() == pytest.approx(0.25)
    assert deviations(starved, 50)["1"]["min"] == pytest.approx(0)
    # The item that is cut off at the end is no starvation.
    assert Work(ends, 0.002, until_s=6.3).end_s == pytest.approx(6.0)


def test_nothing_done_is_no_share() -> None:
    work = Work([], 0.002)
    assert work.mean() == 0.0 and deviations(work, 50) == {} and series(work) == []


def test_ends_at_the_same_time_are_counted() -> None:
    # A waiting thread that was late sees several items end at once.
    work = Work([1.0, 2.0, 2.0, 2.0, 3.0], 0.25)
    assert work.by(2.0) == pytest.approx(0.75) and work.by(3.0) == pytest.approx(1.0)


@given(
    st.lists(st.floats(0.001, 0.5), min_size=1, max_size=200),
    st.floats(0.0001, 0.05),
    st.floats(0, 50),
    st.floats(0.01, 10),
)
def test_work_is_neither_lost_nor_made(gaps: list[float], item_s: float, start_s: float, window_s: float) -> None:
    ends, at = [], 0.0
    for gap in gaps:
        at += gap
        ends.append(at)
    work = Work(ends, item_s, dropped_s=0.0)
    assert work.by(work.end_s) == pytest.approx(len(ends) * item_s)
    parts = 7
    whole = work.share(start_s, window_s) * window_s
    pieces = sum(work.share(start_s + i * window_s / parts, window_s / parts) * window_s / parts for i in range(parts))
    assert math.isclose(whole, pieces, abs_tol=1e-6)
    assert -1e-9 <= whole <= len(ends) * item_s + 1e-9


def changed(delay_s: float, item_s: float = 0.002) -> Work:
    """30 % until 3 s and `delay_s`, then 70 %."""
    ends = steady(0.3, item_s, 3.0 + delay_s)
    return Work(ends + steady(0.7, item_s, 6.0, since_s=ends[-1]), item_s)


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.3])
def test_a_change_is_found_where_it_is(delay_s: float) -> None:
    took_s = settled_s(changed(delay_s), 3.0, 5.0, 70, tolerance_pp=5)
    # A window that holds an eighth of the old share is still within 5 points of the new one.
    assert took_s is not None and delay_s - 0.02 <= took_s <= delay_s + 0.01


def test_a_change_that_does_not_come_is_never_settled() -> None:
    work = Work(steady(0.3, 0.002, 6.0), 0.002)
    assert settled_s(work, 3.0, 5.0, 70, 10) is None
    assert settled_s(work, 3.0, 5.0, 30, 10) == 0.0


def test_a_share_that_falls_back_has_not_settled() -> None:
    ends = steady(0.3, 0.002, 3.0)
    ends += steady(0.7, 0.002, 4.0, since_s=ends[-1])
    ends += steady(0.3, 0.002, 4.5, since_s=ends[-1])
    ends += steady(0.7, 0.002, 6.0, since_s=ends[-1])
    took_s = settled_s(Work(ends, 0.002), 3.0, 6.0, 70, 5)
    assert took_s is not None and 1.4 <= took_s <= 1.6


def test_what_a_group_loses() -> None:
    assert lost_pp([45.9, 45.9], [50, 50]) == pytest.approx(8.2)
    # A GPU has no more than all of it; a GPU that is given out in part can lose that part only.
    assert lost_pp([60, 39], [80, 80]) == pytest.approx(1)
    assert lost_pp([20, 30, 39.5], [20, 30, 40]) == pytest.approx(0.5)


def test_tenants_are_compared_while_all_run() -> None:
    first, second = Work(steady(0.5, 0.002, 6.0), 0.002), Work(steady(0.5, 0.002, 5.0, since_s=0.5), 0.002)
    begin_s, end_s = together([first, second])
    assert begin_s == pytest.approx(1.0, abs=0.01) and end_s == pytest.approx(5.0, abs=0.01)


def test_latencies_count_from_the_arrival_and_without_the_first_second() -> None:
    took = [0.9, *[0.001 * i for i in range(1, 101)]]
    done = [1.5, *[2.0 + i for i in range(100)]]
    found = latency(done, took)
    assert found is not None and found.count == 100
    assert found.p50 == pytest.approx(50.5, abs=1) and found.p99 == pytest.approx(99, abs=1.1)
    assert latency([0.5], [0.1]) is None


def test_a_tenant_without_a_ratio_is_held_against_its_own_mean() -> None:
    told = record_of(Work(steady(0.46, 0.002, 5.0), 0.002), None)
    assert "configured" not in told and told["mean"] == pytest.approx(46)
    assert told["windows"]["1"]["worst_pp"] == pytest.approx(0, abs=1e-6)


def test_a_series_is_side_by_side() -> None:
    points = series(Work(steady(0.5, 0.002, 4.0), 0.002))
    assert len(points) == 30 and points[1][0] - points[0][0] == pytest.approx(0.1)
    assert all(share == pytest.approx(50) for _, share in points)
