"""Shared device memory and events at the server: who gets what under which token, and when it is given up."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from orion_server import shares
from orion_server.server import Owner
from orion_server.shares import ShareDesk, Shares

GIVE, TAKE, DROP, GIVE_EVENT, TAKE_EVENT = 16, 17, 18, 19, 20
REFUSED, HERE = 16, 17
MIB = 1 << 20
US = Owner("host", 1000, "team")


class Worker:
    """What a worker sends and is answered."""

    def __init__(self, all_shares: Shares, owner: Owner = US) -> None:
        self.desk: ShareDesk = all_shares.open("session", owner)

    def send(self, kind: int, token: bytes = b"", size: int = 0, fd: int = -1) -> tuple[bool, list[tuple[object, ...]]]:
        answers: list[tuple[object, ...]] = []
        kept = self.desk.handle(kind, size, token.ljust(64, b"\0"), fd, lambda *answer: answers.append(answer))
        return kept, answers

    def give(self, size: int = 2 * MIB) -> tuple[bytes, int]:
        fd = os.memfd_create("share")
        kept, answers = self.send(GIVE, size=size, fd=fd)
        ((kind, told, token, _),) = answers
        assert kept and kind == HERE and told == size and isinstance(token, bytes) and len(token) == 16
        return token, fd

    def take(self, token: bytes) -> tuple[object, ...]:
        kept, answers = self.send(TAKE, token)
        assert not kept and len(answers) == 1
        return answers[0]

    def give_event(self, handle: bytes) -> bytes:
        kept, answers = self.send(GIVE_EVENT, handle)
        ((kind, size, token, fd),) = answers
        assert not kept and (kind, size, fd) == (HERE, 0, -1) and isinstance(token, bytes) and len(token) == 16
        return token

    def take_event(self, token: bytes) -> tuple[object, ...]:
        kept, answers = self.send(TAKE_EVENT, token)
        assert not kept and len(answers) == 1
        return answers[0]


@pytest.fixture
def all_shares() -> Iterator[Shares]:
    made = Shares()
    yield made
    for token in list(made._shares):
        made.drop(token)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_the_same_tenant_gets_what_was_given(all_shares: Shares) -> None:
    token, fd = Worker(all_shares).give(6 * MIB)
    assert Worker(all_shares).take(token) == (HERE, 6 * MIB, b"", fd)
    assert Worker(all_shares).take(token)[0] == HERE  # as often as wanted
    assert len({Worker(all_shares).give()[0] for _ in range(20)}) == 20


@pytest.mark.parametrize(
    "other", [Owner("elsewhere", 1000, "team"), Owner("host", 1001, "team"), Owner("host", 1000, "")]
)
def test_nobody_else_does(all_shares: Shares, other: Owner) -> None:
    worker = Worker(all_shares)
    token, fd = worker.give()
    assert Worker(all_shares, other).take(token) == (REFUSED, 0, b"", -1)
    assert Worker(all_shares).take(bytes(16))[0] == REFUSED
    assert Worker(all_shares).take(token[:15] + bytes([token[15] ^ 1]))[0] == REFUSED
    # nor may anybody but the giver end it
    assert Worker(all_shares, other).send(DROP, token) == (False, [])
    assert Worker(all_shares).send(DROP, token) == (False, [])
    assert is_open(fd)
    assert worker.send(DROP, token) == (False, [])
    assert not is_open(fd)
    assert worker.take(token)[0] == REFUSED
    assert worker.send(DROP, token) == (False, [])


def test_it_ends_with_the_worker(all_shares: Shares) -> None:
    one, other = Worker(all_shares), Worker(all_shares)
    ours = [one.give()[1] for _ in range(3)]
    token, theirs = other.give()
    one.desk.close()
    assert not any(is_open(fd) for fd in ours)
    assert is_open(theirs) and len(all_shares) == 1
    assert one.take(token)[0] == HERE


def test_what_no_engine_sends(all_shares: Shares) -> None:
    worker = Worker(all_shares)
    assert worker.send(GIVE, size=MIB) == (False, [(REFUSED, 0, b"", -1)])  # without a descriptor
    assert worker.send(99) == (False, [])
    assert len(all_shares) == 0


def test_one_worker_does_not_take_all_descriptors(all_shares: Shares, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "_OF_ONE_WORKER_MAX", 2)
    worker = Worker(all_shares)
    token, _ = worker.give()
    worker.give()
    fd = os.memfd_create("share")
    assert worker.send(GIVE, size=MIB, fd=fd) == (False, [(REFUSED, 0, b"", -1)])
    os.close(fd)
    Worker(all_shares).give()
    worker.send(DROP, token)
    worker.give()


# ---------------------------------------------------------------------------------------------- events
def test_an_event_goes_to_its_tenant_only(all_shares: Shares) -> None:
    worker, handle = Worker(all_shares), bytes(range(64))
    token = worker.give_event(handle)
    assert Worker(all_shares).take_event(token) == (HERE, 0, handle, -1)
    assert len({worker.give_event(handle) for _ in range(20)}) == 20
    for other in (Owner("elsewhere", 1000, "team"), Owner("host", 1001, "team"), Owner("host", 1000, "")):
        assert Worker(all_shares, other).take_event(token) == (REFUSED, 0, b"", -1)
        assert Worker(all_shares, other).send(DROP, token) == (False, [])
    for forged in (bytes(16), token[:15] + bytes([token[15] ^ 1]), handle[:16]):
        assert Worker(all_shares).take_event(forged) == (REFUSED, 0, b"", -1)
    assert Worker(all_shares).take_event(token)[0] == HERE
    assert worker.send(DROP, token) == (False, [])
    assert Worker(all_shares).take_event(token)[0] == REFUSED


def test_an_event_is_no_memory_and_memory_no_event(all_shares: Shares) -> None:
    worker = Worker(all_shares)
    memory, _ = worker.give()
    event = worker.give_event(b"handle".ljust(64, b"."))
    assert worker.take(event) == worker.take_event(memory) == (REFUSED, 0, b"", -1)
    # a descriptor that comes with an event is not kept
    fd = os.memfd_create("stray")
    kept, answers = worker.send(GIVE_EVENT, bytes(64), fd=fd)
    assert not kept and answers[0][0] == HERE
    os.close(fd)


def test_events_end_with_their_worker_and_are_bounded(all_shares: Shares, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "_EVENTS_OF_ONE_WORKER_MAX", 2)
    one, other = Worker(all_shares), Worker(all_shares)
    tokens = [one.give_event(bytes(64)) for _ in range(2)]
    assert one.send(GIVE_EVENT, bytes(64)) == (False, [(REFUSED, 0, b"", -1)])
    kept = other.give_event(bytes(64))
    other.give()  # memory is counted apart
    one.give()
    one.desk.close()
    assert [other.take_event(token)[0] for token in tokens] == [REFUSED, REFUSED]
    assert other.take_event(kept)[0] == HERE
