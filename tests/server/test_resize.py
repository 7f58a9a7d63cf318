"""Slices of a running server: what clients are told, what workers' seats hold, and changes while they run.

The null engine: everything but a GPU. Whether programs are held to what their seats say is tested with the engine.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from orion_client.private_server import PrivateServer
from orion_client.settings import admin_token as find_token
from tests.server.seat_view import SeatView, worker_pids
from wire import control

MIB = 1 << 20
CARD_MIB = 8192  # of the null engine
Attach = Callable[..., control.Attach]


@pytest.fixture
def server() -> Iterator[PrivateServer]:
    with PrivateServer("softgpu", extra=("--null-engine", "--vgpu-count", "4")) as running:
        yield running


@pytest.fixture
def seats(server: PrivateServer) -> Iterator[Callable[[], list[SeatView]]]:
    """Seats of the workers that have a vGPU."""
    made: list[SeatView] = []

    def look() -> list[SeatView]:
        found = [SeatView(pid) for pid in worker_pids(server.process.pid)]
        made.extend(found)
        return [seat for seat in found if seat.read("quota_bytes")]

    yield look
    for seat in made:
        seat.close()


def resize(target: str, request_id: int = 50, **changes: Any) -> control.Resize:
    return control.Resize(**{"id": request_id, "token": find_token(None), "target": target, **changes})


def vgpus(client: Any) -> list[control.VgpuStats]:
    found: list[control.VgpuStats] = client.ask(control.Stats(id=99)).vgpus
    return found


def attached(client: Any, request: control.Attach) -> control.Attached:
    answer = client.ask(request)
    assert isinstance(answer, control.Attached), answer
    return answer


def refused(answer: Any, code: int) -> str:
    assert isinstance(answer, control.Error), answer
    assert answer.code == code, answer
    return answer.message


def test_a_client_sees_a_card_of_its_quota(client: Any, attach: Attach, seats: Callable[[], list[SeatView]]) -> None:
    assert attached(client, attach()).devices[0].total_bytes == CARD_MIB // 4 * MIB
    assert attached(client, attach(gmem_mib=512, ratio=10)).devices[0].total_bytes == 512 * MIB
    assert sorted(seat.read("quota_bytes") for seat in seats()) == [512 * MIB, CARD_MIB // 4 * MIB]
    assert all(seat.read("is_limited") for seat in seats())
    first, second = sorted(vgpus(client), key=lambda v: v.vgpu)
    assert (first.quota_bytes, first.ratio, first.policy) == (CARD_MIB // 4 * MIB, 25, "hard")
    assert (second.quota_bytes, second.ratio, second.pids) == (512 * MIB, 10, [os.getpid()])


def test_without_a_vgpu_count_nothing_is_limited(attach: Attach, connect: Callable[[str], Any]) -> None:
    with PrivateServer("softgpu", extra=("--null-engine",)) as free:
        client = connect(free.address)
        assert attached(client, attach()).devices[0].total_bytes == CARD_MIB * MIB
        (mine,) = vgpus(client)
        assert (mine.quota_bytes, mine.ratio) == (0, 0)


def test_a_full_server_says_what_is_left(client: Any, attach: Attach) -> None:
    attached(client, attach(gmem_mib=8000, ratio=50))
    text = refused(client.ask(attach(gmem_mib=200, ratio=50)), 2)
    assert text == "no GPU has 200 MiB left for a vGPU: GPU 0 has 192 MiB left of 8,192 MiB"
    text = refused(client.ask(attach(gmem_mib=192, ratio=51)), 46)
    assert text == "no GPU has 51 % left: 1 vGPU holds 50 %"
    refused(client.ask(attach(gmem_mib=9000)), 2)
    assert refused(client.ask(attach(ratio=101)), 1) == "a ratio of 101 %: it is 1 to 100"
    attached(client, attach(gmem_mib=192, ratio=50))


def test_sessions_of_a_group_share_one_vgpu(
    client: Any, attach: Attach, seats: Callable[[], list[SeatView]], eventually: Callable[..., None]
) -> None:
    box = {"group": "team", "res_group": "BOX"}
    attached(client, attach(gmem_mib=7000, ratio=60, **box))
    assert attached(client, attach(**box)).devices[0].total_bytes == 7000 * MIB
    (shared,) = vgpus(client)
    assert len(shared.sessions) == 2 and shared.shared
    assert [seat.read("quota_bytes") for seat in seats()] == [7000 * MIB] * 2
    refused(client.ask(attach(group="team")), 2)  # without BOX: a vGPU of its own, for which there is no room
    first, second = seats()
    os.kill(first.pid, signal.SIGKILL)
    eventually(lambda: [len(v.sessions) for v in vgpus(client)] == [1])
    os.kill(second.pid, signal.SIGKILL)
    eventually(lambda: vgpus(client) == [])


def test_a_quota_comes_back_when_its_worker_is_killed(
    client: Any, attach: Attach, seats: Callable[[], list[SeatView]], eventually: Callable[..., None]
) -> None:
    attached(client, attach(gmem_mib=CARD_MIB, ratio=100))
    refused(client.ask(attach(gmem_mib=1, ratio=1)), 2)
    (seat,) = seats()
    os.kill(seat.pid, signal.SIGKILL)
    eventually(lambda: isinstance(client.ask(attach(gmem_mib=CARD_MIB, ratio=100)), control.Attached))


def test_a_resize_is_in_force_before_its_answer(
    client: Any, attach: Attach, seats: Callable[[], list[SeatView]]
) -> None:
    attached(client, attach(group="team", res_group="BOX"))
    attached(client, attach(group="team", res_group="BOX"))
    for gmem, ratio in ((4096, 50), (1024, 10), (8192, 100)):
        answer = client.ask(resize("team", gmem_mib=gmem, ratio=ratio, policy="elastic"))
        assert isinstance(answer, control.Resized), answer
        (now,) = answer.vgpus
        assert (now.quota_bytes, now.ratio, now.policy) == (gmem * MIB, ratio, "elastic")
        assert [seat.read("quota_bytes") for seat in seats()] == [gmem * MIB] * 2


def test_a_resize_finds_its_target(client: Any, attach: Attach) -> None:
    session = attached(client, attach(group="team")).session
    for target in ("team", session, str(os.getpid()), "vgpu-1"):
        assert isinstance(client.ask(resize(target, ratio=30)), control.Resized)
    assert refused(client.ask(resize("team", ratio=30, gpu=3)), 101) == "'team' has no vGPU on GPU 3"
    answer = client.ask(resize("taem", ratio=30))
    assert refused(answer, 1) == "no group, session, process or vGPU is called 'taem'"
    assert answer.hint == "did you mean team?"


@pytest.mark.parametrize(
    ("changes", "code", "sentence"),
    [
        ({"ratio": 0}, 1, "a ratio of 0 %: it is 1 to 100"),
        ({"ratio": 101}, 1, "a ratio of 101 %: it is 1 to 100"),
        ({"ratio": -5}, 1, "a ratio of -5 %: it is 1 to 100"),
        ({"gmem_mib": 0}, 1, "a memory quota of 0 MiB: it is at least 1 MiB"),
        ({"gmem_mib": -1}, 1, "a memory quota of -1 MiB: it is at least 1 MiB"),
        ({"gmem_mib": 9000}, 2, "GPU 0 has 6,144 MiB left of 8,192 MiB, the change needs 6,952 MiB more"),
        ({}, 1, "nothing to change"),
    ],
)
def test_a_change_that_cannot_be_is_refused(
    client: Any, attach: Attach, changes: dict[str, int], code: int, sentence: str
) -> None:
    attached(client, attach(group="team"))
    before = vgpus(client)
    assert refused(client.ask(resize("team", **changes)), code) == sentence
    assert [(v.quota_bytes, v.ratio) for v in vgpus(client)] == [(v.quota_bytes, v.ratio) for v in before]


def test_a_ratio_that_is_no_number_is_refused(client: Any) -> None:
    client.send(msgpack.packb({"v": 1, "type": "resize", "id": 4, "target": "team", "ratio": "abc"}))
    assert "$.ratio" in refused(client.receive(), 1)


def test_a_resize_of_a_vgpu_that_is_gone(
    client: Any, attach: Attach, seats: Callable[[], list[SeatView]], eventually: Callable[..., None]
) -> None:
    attached(client, attach(group="team"))
    os.kill(seats()[0].pid, signal.SIGKILL)
    eventually(lambda: vgpus(client) == [])
    for target in ("team", "vgpu-1"):
        text = refused(client.ask(resize(target, ratio=50)), 1)
        assert text == f"the vGPU of '{target}' is gone: its last program has ended"


def test_of_two_resizes_at_once_both_are_answered_and_the_last_stays(
    client: Any, attach: Attach, connect: Callable[[str], Any], server: PrivateServer
) -> None:
    attached(client, attach(group="team"))
    other = connect(server.address)
    for round_number in range(20):
        client.send(control.encode(resize("team", 100 + round_number, gmem_mib=1000, ratio=10)))
        other.send(control.encode(resize("team", 200 + round_number, gmem_mib=2000, ratio=20)))
        mine, theirs = client.receive(), other.receive()
        assert [(v.quota_bytes, v.ratio) for v in mine.vgpus] == [(1000 * MIB, 10)]
        assert [(v.quota_bytes, v.ratio) for v in theirs.vgpus] == [(2000 * MIB, 20)]
        (now,) = vgpus(client)
        assert (now.quota_bytes, now.ratio) in ((1000 * MIB, 10), (2000 * MIB, 20))  # one of them, whole


def test_a_quota_below_what_is_used_is_refused_or_blocks(
    client: Any, attach: Attach, seats: Callable[[], list[SeatView]]
) -> None:
    attached(client, attach(group="team", gmem_mib=4096, ratio=50))
    (seat,) = seats()
    seat.write("charged_bytes", 3000 * MIB)  # as the engine does when a program allocates
    text = refused(client.ask(resize("team", gmem_mib=2048)), 2)
    assert text == "vgpu-1 uses 3,000 MiB of GPU 0, more than 2,048 MiB"
    assert seat.read("quota_bytes") == 4096 * MIB
    answer = client.ask(resize("team", gmem_mib=2048, shrink="block"))
    assert isinstance(answer, control.Resized)
    assert (answer.vgpus[0].quota_bytes, answer.vgpus[0].used_bytes) == (2048 * MIB, 3000 * MIB)
    assert seat.read("quota_bytes") == 2048 * MIB
    assert seat.read("granted_bytes") <= 2048 * MIB
    seat.write("charged_bytes", 0)


@pytest.mark.parametrize("token", ["", "0" * 64, "x"])
def test_changes_need_the_admin_token(client: Any, attach: Attach, token: str) -> None:
    attached(client, attach(group="team"))
    requests = (
        control.Resize(id=1, token=token, target="team", ratio=50),
        control.Configure(id=2, token=token, vgpu_count=1),
        control.Drain(id=3, token=token),
    )
    for request in requests:
        answer = client.ask(request)
        assert "administrator" in refused(answer, 800)
        path = Path(answer.hint.split(" on the server's machine")[0].removeprefix("it lies in "))
        assert path.name == "admin-token" and path.is_file()
    assert [v.ratio for v in vgpus(client)] == [25]
    attached(client, attach())  # not draining


def test_a_new_default_is_for_the_next_client(client: Any, attach: Attach) -> None:
    attached(client, attach())
    answer = client.ask(control.Configure(id=1, token=find_token(None), vgpu_count=2, policy="elastic"))
    assert isinstance(answer, control.Configured)
    assert (answer.defaults.vgpu_count, answer.defaults.policy) == (2, "elastic")
    assert attached(client, attach()).devices[0].total_bytes == CARD_MIB // 2 * MIB
    assert [(v.ratio, v.policy) for v in vgpus(client)] == [(25, "hard"), (50, "elastic")]
    text = refused(client.ask(control.Configure(id=2, token=find_token(None), vgpu_count=101)), 1)
    assert "101" in text


def test_the_management_library_is_told_of_the_own_vgpu_alone(client: Any, attach: Attach) -> None:
    identity = {"uid": os.geteuid(), "host": control.boot_id()}
    attached(client, attach(pid=11, group="team", gmem_mib=1000, ratio=10))
    attached(client, attach(pid=12, group="team", gmem_mib=2000, ratio=10))

    def seen(pid: int, **more: Any) -> control.StatsAnswer:
        answer = client.ask(control.Stats(id=9, telemetry=True, pid=pid, group="team", **identity, **more))
        assert isinstance(answer, control.StatsAnswer)
        return answer

    for pid, mib in ((11, 1000), (12, 2000)):
        answer = seen(pid)
        assert [gpu.total_bytes for gpu in answer.gpus] == [mib * MIB]
        assert [session.pid for session in answer.sessions] == [pid]
        assert answer.vgpus == [] and answer.gpus[0].given_bytes == 0  # nothing of others
    assert seen(13).gpus[0].total_bytes == CARD_MIB // 4 * MIB  # what it would get
    assert seen(13, gmem_mib=100).gpus[0].total_bytes == 100 * MIB
