"""The arbiter's thread with real seats: turns, memory grants, limits that change, workers that die or lie. What must
come is awaited; nothing here depends on how long it takes."""

from __future__ import annotations

import mmap
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from seats import BLOCK, ELASTIC, MIB, NO_LIMIT, REFUSE, Worker, arbiter, compiled, lib, limits, offset_of, until

MS = 1_000_000


# ---------------------------------------------------------------------------------------------------- turns
def test_work_gets_a_turn_when_it_is_wanted_and_none_before():
    with arbiter() as a:
        worker = a.worker(a.add_slice(ratio=50))
        assert (worker.grant, worker.is_limited) == (0, 1)
        worker.set(wants=1)
        until(worker.holds)
        assert worker.budget_ns == 5 * MS and worker.recalled != worker.grant
        first = worker.grant
        worker.give_back(wants=1)
        until(worker.holds)
        assert worker.grant > first


def test_a_slice_without_a_ratio_and_a_seat_without_a_slice_need_no_turns():
    with arbiter() as a:
        assert a.worker().is_limited == 0
        assert a.worker(a.add_slice(quota=MIB)).is_limited == 0


def test_one_turn_at_a_time_and_each_gets_some():
    with arbiter() as a:
        workers = [a.worker(a.add_slice(ratio=ratio)) for ratio in (20, 30, 50)]
        turns = [0, 0, 0]
        for worker in workers:
            worker.set(wants=1)
        while min(turns) < 3:
            until(lambda: any(worker.holds() for worker in workers))
            holders = [index for index, worker in enumerate(workers) if worker.holds()]
            # Where this thread is slow, the next has its turn beside one that has been recalled.
            assert sum(workers[index].recalled != workers[index].grant for index in holders) <= 1
            turns[holders[0]] += 1
            workers[holders[0]].give_back(spent_ns=MS, wants=1)


def test_alone_at_a_hundred_there_is_no_limit_until_another_comes():
    with arbiter() as a:
        alone, other = a.worker(a.add_slice(ratio=100)), a.worker(a.add_slice(ratio=50))
        alone.set(wants=1)
        until(lambda: alone.holds() and alone.budget_ns == NO_LIMIT)
        other.set(wants=1)
        until(lambda: alone.recalled == alone.grant)
        assert not other.holds() or alone.recalled == alone.grant
        alone.give_back(spent_ns=MS)
        until(other.holds)
        assert other.budget_ns == 5 * MS


def test_elastic_alone_has_no_limit_hard_has():
    with arbiter() as a:
        elastic, hard = a.add_slice(ratio=10, policy=ELASTIC), a.add_slice(ratio=10)
        worker = a.worker(elastic)
        worker.set(wants=1)
        until(lambda: worker.holds() and worker.budget_ns == NO_LIMIT)
        assert a.set_slice(elastic, ratio=10) == 0  # hard from now on: effective before it returns
        assert worker.recalled == worker.grant
        worker.give_back()
        second = a.worker(hard)
        second.set(wants=1)
        until(second.holds)
        assert second.budget_ns == 5 * MS


def test_a_budget_grows_in_place_while_nobody_else_wants_the_gpu():
    with arbiter() as a:
        number = a.add_slice(ratio=90)
        worker = a.worker(number)
        until(lambda: a.usage(number).credit_ns > 4 * MS)
        worker.set(wants=1)
        until(worker.holds)
        grant = worker.grant
        worker.set(spent_ns=3 * MS, wants=0)
        until(lambda: worker.budget_ns > 5 * MS)
        assert worker.grant == grant


def test_a_turn_that_is_about_to_end_lets_the_next_begin():
    with arbiter() as a:
        first, second = (a.worker(a.add_slice(ratio=50)) for _ in range(2))
        first.set(wants=1)
        until(first.holds)
        first.set(ending=first.grant)
        second.set(wants=1)
        until(second.holds)
        assert first.holds() and first.recalled != first.grant


def test_a_worker_that_keeps_its_turn_keeps_nobody_waiting_for_ever():
    with arbiter() as a:
        stuck, other = (a.worker(a.add_slice(ratio=50)) for _ in range(2))
        stuck.set(wants=1)
        until(stuck.holds)
        other.set(wants=1)
        until(other.holds)
        assert stuck.holds() and stuck.recalled == stuck.grant


def test_a_slice_in_debt_waits_until_it_has_earned_it():
    with arbiter() as a:
        number = a.add_slice(ratio=50)
        worker = a.worker(number)
        worker.set(wants=1)
        until(worker.holds)
        worker.give_back(spent_ns=100 * MS, wants=1)
        until(lambda: a.usage(number).credit_ns < 0)
        assert not worker.holds()
        until(worker.holds)  # nobody rings
        assert a.usage(number).credit_ns >= 0 and a.usage(number).turns == 2


def test_turns_of_two_gpus_are_apart():
    with arbiter(gpus=2) as a:
        first, second = a.worker(a.add_slice(ratio=100, gpu=0)), a.worker(a.add_slice(ratio=100, gpu=1))
        first.set(wants=1)
        second.word("wants", 1).value = 1
        second.ring()
        until(lambda: first.holds() and second.word("grant", 1).value)
        assert second.word("budget_ns", 1).value == first.budget_ns == NO_LIMIT
        assert second.grant == first.word("grant", 1).value == 0


def test_a_ratio_that_is_taken_away_and_given_again_charges_nothing_of_the_time_between():
    with arbiter() as a:
        number = a.add_slice(ratio=30)
        worker = a.worker(number)
        worker.set(wants=1)
        until(worker.holds)
        assert a.set_slice(number) == 0 and worker.is_limited == 0
        worker.give_back(spent_ns=3_600_000 * MS)
        assert a.set_slice(number, ratio=30) == 0 and worker.is_limited == 1
        assert a.usage(number).credit_ns >= 0
        worker.set(wants=1)
        until(worker.holds)


def test_a_turn_from_before_a_ratio_was_taken_away_is_none_afterwards():
    with arbiter() as a:
        number = a.add_slice(ratio=30)
        worker = a.worker(number)
        worker.set(wants=1)
        until(worker.holds)
        worker.set(wants=0)
        assert a.set_slice(number) == 0 == a.set_slice(number, ratio=30)
        assert worker.recalled == worker.grant


# ---------------------------------------------------------------------------------------------------- waking
def test_a_worker_is_woken_by_the_word_and_by_its_descriptor_when_it_polls():
    with arbiter() as a:
        worker = a.worker(a.add_slice(ratio=50))
        before = worker.wake
        worker.set(wants=1)
        until(worker.holds)
        until(lambda: worker.wake > before)
        assert select.select([worker.wake_fd], [], [], 0)[0] == []
        worker.set(polls=1, wants=1, returned=worker.grant)
        assert select.select([worker.wake_fd], [], [], 20)[0] == [worker.wake_fd]


def test_a_worker_that_fills_its_wake_up_stops_nobody():
    with arbiter() as a:
        worker, other = (a.worker(a.add_slice(ratio=40)) for _ in range(2))
        os.eventfd_write(worker.wake_fd, NO_LIMIT - 1)  # one more would block
        worker.set(polls=1, wants=1)
        until(worker.holds)
        worker.give_back()
        other.set(wants=1)
        until(other.holds)


# ---------------------------------------------------------------------------------------------------- memory
def test_a_worker_alone_is_granted_the_quota_and_gives_it_back_with_its_seat():
    with arbiter() as a:
        number = a.add_slice(quota=1000 * MIB)
        first = a.worker(number)
        assert (first.granted_bytes, first.quota_bytes, first.others_bytes) == (1000 * MIB, 1000 * MIB, 0)
        assert first.charge(1000 * MIB)
        second = a.worker(number)
        assert second.granted_bytes == 0 and second.others_bytes == 1000 * MIB
        assert not second.ask_and_charge(1)
        first.remove()
        assert second.ask_and_charge(1000 * MIB)
        assert a.usage(number).charged_bytes == 1000 * MIB and a.usage(number).seats == 1


def test_no_quota_is_no_limit():
    with arbiter() as a:
        number = a.add_slice()
        assert [a.worker(number).granted_bytes for _ in range(2)] == [NO_LIMIT, NO_LIMIT]


def test_what_others_do_not_use_is_taken_from_them_to_the_byte():
    with arbiter() as a:
        number = a.add_slice(quota=1000 * MIB)
        first, second, third = (a.worker(number) for _ in range(3))
        assert first.charge(300 * MIB)
        assert second.ask_and_charge(500 * MIB)
        assert not third.ask_and_charge(200 * MIB + 1)
        assert third.ask_and_charge(200 * MIB)
        assert not any(worker.ask_and_charge(1) for worker in (first, second, third))
        assert first.granted_bytes + second.granted_bytes + third.granted_bytes == 1000 * MIB


def test_grants_come_in_steps_where_there_is_room():
    with arbiter() as a:
        number = a.add_slice(quota=1000 * MIB)
        first, second = a.worker(number), a.worker(number)
        assert first.charge(100 * MIB)
        assert second.ask_and_charge(1)
        assert second.granted_bytes == 64 * MIB
        asked = second.asked
        assert second.ask_and_charge(63 * MIB) and second.asked == asked


def test_others_bytes_are_current_when_a_question_is_answered():
    """A worker that wants to know what is free asks for nothing."""
    with arbiter() as a:
        number = a.add_slice(quota=1000 * MIB)
        first, second = a.worker(number), a.worker(number)
        assert first.charge(123 * MIB)
        second.set(asked_bytes=0, asked=second.asked + 1)
        until(lambda: second.answered == second.asked)
        assert second.others_bytes == 123 * MIB


@pytest.mark.parametrize("with_resizes", [False, True])
def test_eight_workers_that_race_are_never_above_the_quota(with_resizes: bool):
    quota, rounds = 1024 * MIB + 12345, 200000
    program = compiled("seat_worker")
    with arbiter() as a:
        number = a.add_slice(quota=quota)
        workers = [a.worker(number) for _ in range(8)]
        truth_fd = os.memfd_create("truth")
        os.ftruncate(truth_fd, 4096)
        truth = mmap.mmap(truth_fd, 4096)
        processes = []
        for index, worker in enumerate(workers):
            fds = (worker.seat_fd, worker.doorbell_fd, truth_fd)
            command = [str(program), *map(str, fds), str(quota), str(rounds), str(index + 1)]
            processes.append(subprocess.Popen(command, pass_fds=fds))
        step = 0
        while with_resizes and any(process.poll() is None for process in processes):
            # Each one takes from all what they do not use; every hundredth makes it less.
            shrink = BLOCK if step % 200 else REFUSE
            assert a.set_slice(number, quota=quota // (2 if step % 100 == 0 else 1), shrink=shrink) in (0, -16)
            step += 1
        assert [process.wait() for process in processes] == [0] * 8
        left, most, charges, refusals = (int.from_bytes(truth[i * 8 : i * 8 + 8], "little") for i in range(4))
        assert left == 0 and most <= quota
        assert sum(worker.granted_bytes for worker in workers) <= quota
        assert charges > rounds and refusals > 0  # they did meet the limit
        if not with_resizes:
            assert most > 0.75 * quota
        assert a.set_slice(number, quota=quota) == 0
        assert a.usage(number).charged_bytes == 0
        assert workers[3].ask_and_charge(quota)  # nothing of it was lost


# ---------------------------------------------------------------------------------------------------- resizing
def test_growing_is_seen_at_once():
    with arbiter() as a:
        number = a.add_slice(quota=10 * MIB)
        worker = a.worker(number)
        assert worker.charge(10 * MIB) and not worker.charge(1)
        assert a.set_slice(number, quota=20 * MIB) == 0
        assert worker.charge(10 * MIB) and worker.quota_bytes == 20 * MIB


def test_a_shrink_below_what_is_charged_is_refused_and_changes_nothing():
    with arbiter() as a:
        number = a.add_slice(quota=100 * MIB, ratio=50)
        workers = [a.worker(number), a.worker(number)]
        assert workers[0].charge(60 * MIB) and workers[1].ask_and_charge(MIB)
        before = [(worker.granted_bytes, worker.quota_bytes) for worker in workers]
        assert a.set_slice(number, quota=61 * MIB - 1, ratio=20) == -16
        assert [(worker.granted_bytes, worker.quota_bytes) for worker in workers] == before
        found = limits(0, 0, 0)
        assert lib.orion_arbiter_get_slice(a.p, number, found, a.usage(number)) == 0
        assert (found.quota_bytes, found.ratio_percent) == (100 * MIB, 50)
        assert a.set_slice(number, quota=61 * MIB, ratio=20) == 0
        assert not any(worker.ask_and_charge(1) for worker in workers)


def test_a_shrink_that_blocks_lets_usage_fall_and_then_grow_to_the_new_quota():
    with arbiter() as a:
        number = a.add_slice(quota=100 * MIB)
        worker = a.worker(number)
        assert worker.charge(80 * MIB)
        assert a.set_slice(number, quota=50 * MIB, shrink=BLOCK) == 0
        assert not worker.ask_and_charge(1)
        worker.word("charged_bytes").value -= 31 * MIB
        assert worker.ask_and_charge(MIB) and not worker.ask_and_charge(1)


def test_a_group_that_is_above_its_new_quota_charges_nothing_until_all_of_it_is_below():
    with arbiter() as a:
        number = a.add_slice(quota=100 * MIB)
        first, second = a.worker(number), a.worker(number)
        assert first.charge(50 * MIB) and second.ask_and_charge(50 * MIB)
        assert a.set_slice(number, quota=60 * MIB, shrink=BLOCK) == 0
        first.word("charged_bytes").value -= 40 * MIB
        assert not first.ask_and_charge(1)  # 10 and 50 of 60
        first.word("charged_bytes").value -= 5 * MIB
        assert first.ask_and_charge(5 * MIB) and not first.ask_and_charge(1)
        second.word("charged_bytes").value -= 50 * MIB
        assert first.ask_and_charge(50 * MIB) and not second.ask_and_charge(1)


def test_a_quota_that_is_raised_again_is_no_longer_overdrawn():
    with arbiter() as a:
        number = a.add_slice(quota=100 * MIB)
        first, second = a.worker(number), a.worker(number)
        assert first.charge(50 * MIB) and second.ask_and_charge(50 * MIB)
        assert a.set_slice(number, quota=60 * MIB, shrink=BLOCK) == 0
        assert a.set_slice(number, quota=110 * MIB) == 0
        assert second.ask_and_charge(10 * MIB) and not first.ask_and_charge(1)


# ---------------------------------------------------------------------------------------------------- ends and errors
WANTS_AND_STAYS = """
import mmap, sys, time
seat = mmap.mmap(int(sys.argv[1]), 0)
seat[int(sys.argv[2])] = 1
print(flush=True)
time.sleep(600)
"""


def test_a_worker_that_is_killed_in_its_turn_gives_all_back():
    with arbiter() as a:
        slices = [a.add_slice(ratio=50, quota=MIB) for _ in range(2)]
        killed, other = (a.worker(number) for number in slices)
        command = [sys.executable, "-c", WANTS_AND_STAYS, str(killed.seat_fd), str(offset_of("wants", 0))]
        process = subprocess.Popen(command, pass_fds=(killed.seat_fd,), stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        killed.ring()
        until(killed.holds)
        process.kill()
        process.wait()
        killed.remove()
        other.set(wants=1)
        until(other.holds)
        assert a.usage(slices[0]).seats == 0 and a.usage(slices[0]).turns == 1


def test_what_ended_workers_have_used_stays_in_the_account_of_the_slice():
    with arbiter() as a:
        number = a.add_slice(ratio=50)
        worker = a.worker(number)
        worker.set(spent_ns=7 * MS, throttled_ns=5, works=3)
        until(lambda: a.usage(number).spent_ns == 7 * MS)
        worker.remove()
        usage = a.usage(number)
        assert (usage.spent_ns, usage.throttled_ns, usage.works, usage.seats) == (7 * MS, 5, 3, 0)


def test_a_slice_that_is_removed_frees_its_seats_for_another():
    with arbiter() as a:
        number = a.add_slice(ratio=50, quota=MIB)
        worker = a.worker(number)
        worker.set(wants=1)
        until(worker.holds)
        worker.set(wants=0)
        assert lib.orion_arbiter_remove_slice(a.p, number) == 0
        assert (worker.is_limited, worker.granted_bytes) == (0, 0)
        old = worker.grant
        again = a.add_slice(ratio=50, quota=2 * MIB)
        assert lib.orion_arbiter_assign(a.p, worker.handle, again) == 0
        assert worker.granted_bytes == 2 * MIB and worker.recalled == old
        worker.set(wants=1)
        until(lambda: worker.grant > old)


def test_numbers_that_are_none_and_limits_out_of_range_are_told():
    with arbiter() as a:
        number = a.add_slice(ratio=1)
        worker = a.worker(number)
        assert [a.add_slice(ratio=101), a.add_slice(policy=2), a.add_slice(gpu=1), a.add_slice(gpu=-1)] == [-22] * 4
        assert [a.set_slice(n, ratio=5) for n in (0, -1, number + 1, 1 << 30)] == [-2] * 4
        assert a.set_slice(number, ratio=101) == -22
        assert lib.orion_arbiter_assign(a.p, worker.handle, number) == -17
        assert lib.orion_arbiter_assign(a.p, 1 << 30, number) == lib.orion_arbiter_remove_slice(a.p, 99) == -2
        worker.remove()
        assert lib.orion_arbiter_remove_seat(a.p, worker.handle) == -2


def test_a_seat_that_its_worker_could_resize_is_not_taken():
    with arbiter() as a:
        unsealable = os.memfd_create("seat", os.MFD_CLOEXEC)
        os.ftruncate(unsealable, lib.orion_arbiter_seat_bytes())
        short = os.memfd_create("seat", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(short, 4096)
        bell = os.eventfd(0)
        assert [lib.orion_arbiter_add_seat(a.p, fd, bell, bell) for fd in (unsealable, short, -1)] == [-22] * 3
        with pytest.raises(PermissionError):
            os.ftruncate(a.worker().seat_fd, 4096)


def liar(worker: Worker, step: int) -> None:
    own = {
        "spent_ns": NO_LIMIT - step,
        "in_flight_ns": NO_LIMIT,
        "returned": step << 40,
        "ending": step * 7,
        "wants": 1,
    }
    memory = {"charged_bytes": NO_LIMIT, "asked_bytes": NO_LIMIT, "asked": worker.asked + 3}
    servers = {"answered": step, "granted_bytes": NO_LIMIT - step, "grant": step * 3, "budget_ns": step}
    worker.set(**own, **memory, **servers, recalled=step, others_bytes=step)


def test_a_worker_that_writes_nonsense_everywhere_hurts_no_other():
    with arbiter() as a:
        bad, good = (a.worker(a.add_slice(ratio=50, quota=100 * MIB)) for _ in range(2))
        turns = 0
        good.set(wants=1)
        for step in range(1, 200):
            liar(bad, step)
            if good.holds():
                turns += 1
                assert good.budget_ns in (5 * MS, 12 * MS)
                good.give_back(spent_ns=MS // 100, wants=1)
        while turns < 100:
            until(good.holds)
            turns += 1
            good.give_back(spent_ns=MS // 100, wants=1)
        assert (good.granted_bytes, good.others_bytes) == (100 * MIB, 0)
        assert good.charge(100 * MIB)
        assert 0 <= a.usage(1).achieved_1s <= 1 and a.usage(2).credit_ns < 100 * MS
        bad.remove()
        until(lambda: a.usage(1).seats == 0)


def test_an_arbiter_that_has_nothing_to_do_sleeps():
    with arbiter() as a:
        worker = a.worker(a.add_slice(ratio=50))
        worker.set(wants=1)
        until(worker.holds)
        worker.give_back()
        until(lambda: a.usage(1).credit_ns > 0)
        tasks = Path("/proc/self/task").iterdir()
        threads = [task for task in tasks if (task / "comm").read_text().strip() == "arbiter"]

        def switches() -> list[str]:
            return [line for task in threads for line in (task / "status").read_text().splitlines() if "ctxt" in line]

        assert len(threads) == 1
        select.select([], [], [], 0.2)  # what is on its way
        before = switches()
        select.select([], [], [], 0.5)
        assert switches() == before
