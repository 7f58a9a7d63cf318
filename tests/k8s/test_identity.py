"""Which pod asks: real TokenReviews over HTTP, what is remembered of them, and who may name which group."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from orion_controller import identity
from orion_controller.api import pod_models
from orion_controller.identity import Identities, NotProven, expiry_of
from orion_controller.kube_api import Access, KubeApi
from tests.controller.linked import Keys, World, world
from wire import pool as wire
from wire import ticket

NOW_S = 1_800_000_000.0
ANN, BOB = "uid-of-ann", "uid-of-bob"


def jwt(name: str, expires_s: float = NOW_S + 600, padding: int = 0) -> str:
    """As the API server makes them, but for the signature."""

    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    claims = {"exp": expires_s, "sub": name, "x": "y" * padding}
    return f"{part({'alg': 'RS256'})}.{part(claims)}.{name}-signature"


class Reviewer:
    """Answers TokenReviews as an API server does: bound tokens of known pods, their audiences, their end."""

    def __init__(self) -> None:
        self.tokens: dict[str, tuple[str, tuple[str, ...], float]] = {}  # pod uid, audiences, end
        self.now_s = NOW_S
        self.reviews = 0
        self.away = False
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.url = ""

    def issue(self, uid: str, audience: str = "orion", expires_s: float = NOW_S + 600, padding: int = 0) -> str:
        token = jwt(f"{uid}-{len(self.tokens)}", expires_s, padding)
        self.tokens[token] = (uid, (audience,), expires_s)
        return token

    async def answer(self, request: web.Request) -> web.Response:
        self.reviews += 1
        await self.may_answer.wait()
        if self.away:
            return web.json_response({"kind": "Status", "message": "etcd is away"}, status=500)
        body = await request.json()
        assert request.path == "/apis/authentication.k8s.io/v1/tokenreviews" and body["kind"] == "TokenReview"
        asked = body["spec"]["audiences"]
        uid, audiences, expires_s = self.tokens.get(body["spec"]["token"], ("", (), 0.0))
        common = [audience for audience in audiences if audience in asked]
        status: dict[str, Any] = {"user": {}}
        if not audiences:
            status["error"] = "[invalid bearer token, token lookup failed]"
        elif expires_s <= self.now_s:
            status["error"] = "[invalid bearer token, Token has expired.]"
        elif not common:
            status["error"] = f"token audiences {list(audiences)} is invalid for the target audiences {asked}"
        else:
            extra = {"authentication.kubernetes.io/pod-name": ["p"], "authentication.kubernetes.io/pod-uid": [uid]}
            user = {"username": "system:serviceaccount:default:default", "uid": "1", "extra": extra if uid else {}}
            status = {"authenticated": True, "user": user, "audiences": common}
        return web.json_response(body | {"status": status}, status=201)


@asynccontextmanager
async def reviewing(**options: Any) -> Any:
    reviewer = Reviewer()
    app = web.Application()
    app.router.add_post("/apis/authentication.k8s.io/v1/tokenreviews", reviewer.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    reviewer.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with KubeApi(Access(reviewer.url), timeout_s=5.0) as kube:
        identities = Identities(kube.token_review, wall_clock=lambda: reviewer.now_s, **options)
        try:
            yield reviewer, identities
        finally:
            reviewer.may_answer.set()
            await identities.close()
            await runner.cleanup()


def go(body: Callable[[Reviewer, Identities], Awaitable[None]]) -> None:
    async def run() -> None:
        async with reviewing() as (reviewer, identities):
            await body(reviewer, identities)

    asyncio.run(run())


async def refused(identities: Identities, token: str, uid: str) -> NotProven:
    with pytest.raises(NotProven) as caught:
        await identities.check(token, uid)
    return caught.value


# ------------------------------------------------------------------------------------------------ tokens


def test_a_token_proves_its_own_pod_alone_also_when_it_is_remembered() -> None:
    """TensorFusion's flaw: a cache by token alone, read before the uid is compared."""

    async def body(reviewer: Reviewer, identities: Identities) -> None:
        token = reviewer.issue(ANN)
        await identities.check(token, ANN)
        await identities.check(token, ANN)
        assert reviewer.reviews == 1
        error = await refused(identities, token, BOB)
        assert error.code == 800 and "that of another pod" in str(error)
        await identities.check(token, ANN)  # and its own pod has it still
        other = reviewer.issue(BOB)
        assert "that of another pod" in str(await refused(identities, other, ANN))

    go(body)


@pytest.mark.parametrize(
    ("uid", "made", "sentence"),
    [
        (ANN, {"audience": "vault"}, "audience"),
        (ANN, {"expires_s": NOW_S - 1}, "has expired"),
        (ANN, None, "invalid bearer token"),
        ("", {}, "not bound to a pod"),
    ],
)
def test_other_tokens_are_refused_with_a_sentence(uid: str, made: dict[str, Any] | None, sentence: str) -> None:
    async def body(reviewer: Reviewer, identities: Identities) -> None:
        token = jwt("nobody's") if made is None else reviewer.issue(uid, **made)
        error = await refused(identities, token, ANN)
        assert error.code == 800 and sentence in str(error) and "ORION_TOKEN_FILE" in error.hint
        count = reviewer.reviews
        await refused(identities, token, ANN)
        assert reviewer.reviews == count  # who is refused and tries at once does not ask the API server again
        reviewer.now_s += identity.REFUSED_S + 1
        await refused(identities, token, ANN)
        assert reviewer.reviews == count + 1

    go(body)


def test_what_is_remembered_ends_with_the_token() -> None:
    async def body(reviewer: Reviewer, identities: Identities) -> None:
        token = reviewer.issue(ANN, expires_s=NOW_S + 30)
        await identities.check(token, ANN)
        reviewer.now_s = NOW_S + 31  # well within the time for which an answer is taken without asking
        assert "has expired" in str(await refused(identities, token, ANN))

    go(body)


def test_the_api_server_is_away_known_pods_go_on_and_new_ones_are_told_to_try_again() -> None:
    async def body(reviewer: Reviewer, identities: Identities) -> None:
        token = reviewer.issue(ANN, expires_s=NOW_S + 3000)
        await identities.check(token, ANN)
        reviewer.away = True
        reviewer.now_s += identity.FRESH_S + 1
        await identities.check(token, ANN)
        count = reviewer.reviews
        await identities.check(token, ANN)
        assert reviewer.reviews == count  # a question without an answer is not repeated for each program
        error = await refused(identities, reviewer.issue(BOB), BOB)
        assert error.code == 46 and "API server" in str(error) and "try again" in error.hint
        assert (await refused(identities, token, BOB)).code == 46  # known, but not as this pod's
        reviewer.now_s = NOW_S + 3001
        assert (await refused(identities, token, ANN)).code == 46
        reviewer.away = False
        await identities.check(reviewer.issue(BOB, expires_s=NOW_S + 9000), BOB)  # nothing of this is remembered

    go(body)


def test_a_pod_that_was_deleted_is_found_out() -> None:
    async def body(reviewer: Reviewer, identities: Identities) -> None:
        token = reviewer.issue(ANN)
        await identities.check(token, ANN)
        del reviewer.tokens[token]
        reviewer.now_s += identity.FRESH_S + 1
        await refused(identities, token, ANN)
        reviewer.away = True
        reviewer.now_s += identity.REFUSED_S + 1
        assert (await refused(identities, token, ANN)).code == 46  # not believed as before

    go(body)


def test_programs_that_start_together_ask_once_and_none_waits_for_another_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(reviewer: Reviewer, identities: Identities) -> None:
        monkeypatch.setattr(identity, "WAITING_MOST", 2)
        reviewer.may_answer.clear()
        tokens = {uid: reviewer.issue(uid) for uid in (ANN, BOB, "c")}
        asking = [asyncio.ensure_future(identities.check(tokens[uid], uid)) for uid in (ANN,) * 5 + (BOB,)]
        while reviewer.reviews < 2:
            await asyncio.sleep(0.01)
        assert "too many" in str(await refused(identities, tokens["c"], "c"))
        asking[0].cancel()  # its program was killed; the others of the pod have their answer
        reviewer.may_answer.set()
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError) and results[1:] == [None] * 5
        assert reviewer.reviews == 2

    go(body)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(reviewer: Reviewer, identities: Identities) -> None:
        monkeypatch.setattr(identity, "ENTRIES_MOST", 4)
        tokens = [reviewer.issue(ANN) for _ in range(6)]
        for token in tokens:
            await identities.check(token, ANN)
            await refused(identities, token, BOB)
        assert len(identities._proven) == len(identities._refused) == 4
        await identities.check(tokens[-1], ANN)
        assert reviewer.reviews == 12

    go(body)


def test_a_uid_that_is_none_asks_nobody() -> None:
    async def body(reviewer: Reviewer, identities: Identities) -> None:
        token = reviewer.issue(ANN)
        for uid in ("", "x" * 64):
            assert "ORION_GROUP_ID" in str(await refused(identities, token, uid))
        assert not reviewer.reviews

    go(body)


@pytest.mark.parametrize(
    "token", ["", "a.b", "a.b.c", "a.!!.c", "a." + "e30" + ".c", "." * 2, "a.ImEi.c", "a." + "W" * 4000 + ".c"]
)
def test_an_end_that_is_not_told(token: str) -> None:
    assert expiry_of(token) is None


def test_an_end_is_read() -> None:
    assert expiry_of(jwt("x", 1234.5)) == 1234.5


# ------------------------------------------------------------------------------------------------ in the controller


def in_pool(
    folder: Path, body: Callable[[World, Reviewer], Awaitable[None]], keys: Keys | None = None, **options: Any
) -> None:
    async def run() -> None:
        async with reviewing() as (reviewer, identities):
            async with world(folder, keys=keys, identities=identities, **options) as pool:
                for name in "ab":
                    pool.server(name, gpus=1)
                await pool.joined("a", "b")
                await body(pool, reviewer)

    asyncio.run(run())


def test_pods_get_vgpus_by_their_tokens_and_nobody_without(tmp_path: Path) -> None:
    async def body(pool: World, reviewer: Reviewer) -> None:
        token = reviewer.issue(ANN, padding=1500)
        client = pool.client()
        given = await client.allocate(group=ANN, token=token)
        assert isinstance(given, wire.Allocated)
        for wish, sentence in (
            ({"group": ANN}, "none came"),
            ({"group": ANN, "key": "k" * 32}, "none came"),
            ({"group": BOB, "token": token}, "that of another pod"),
            ({"group": "", "token": token}, "ORION_GROUP_ID"),
            ({"group": ANN, "token": jwt("made up")}, "does not accept"),
        ):
            answer = await client.allocate(**wish)
            assert isinstance(answer, wire.Error) and answer.code == 800, answer
            assert sentence in answer.message, answer.message
        answer = await client.allocate(group=ANN, token="t" * 8193)
        assert isinstance(answer, wire.Error) and answer.code == 1 and "token" in answer.message
        assert len(pool.controller.groups()) == 1

    in_pool(tmp_path, body)


def test_outside_of_kubernetes_the_client_key_is_enough_and_a_token_is_always_looked_at(tmp_path: Path) -> None:
    async def body(pool: World, reviewer: Reviewer) -> None:
        client = pool.client()
        assert isinstance(await client.allocate(group="team", key="k" * 32), wire.Allocated)
        refusal = await client.allocate(group="team", key="wrong")
        assert refusal.code == 800 and "ORION_TOKEN_FILE" in refusal.hint
        answer = await client.allocate(group=BOB, key="k" * 32, token=reviewer.issue(ANN))
        assert answer.code == 800 and "another pod" in answer.message

    in_pool(tmp_path, body, keys=Keys(client="k" * 32))


def test_a_pod_gets_what_is_reserved_for_it_and_nothing_else(tmp_path: Path) -> None:
    async def body(pool: World, reviewer: Reviewer) -> None:
        tokens = {uid: reviewer.issue(uid) for uid in (ANN, BOB)}
        client = pool.client()
        refusal = await client.allocate(group=ANN, token=tokens[ANN])
        assert refusal.code == 800 and "nothing is reserved" in refusal.message and "orion-scheduler" in refusal.hint
        part = pod_models.PodContainer(name="main", gmem_mib=1000, ratio_percent=10)
        wish = pod_models.PodWish(uid=ANN, namespace="n", name="p", containers=[part])
        (outcome,) = await pool.controller.reserve_pods([wish], "scheduler")
        assert not outcome.refusal
        first = await client.allocate(group=ANN, token=tokens[ANN], gmem_mib=16000, ratio=100, vgpu=2)
        second = await client.allocate(group=ANN, token=tokens[ANN])
        assert first.allocation == second.allocation  # its processes share it, whatever they ask for
        assert [ticket_of(s.ticket).gmem_mib for s in first.servers] == [1000]
        assert (await client.allocate(group=BOB, token=tokens[BOB])).code == 800
        assert sum(group.vgpus for group in pool.controller.groups()) == 1

    in_pool(tmp_path, body, only_reserved=True)


def ticket_of(data: bytes) -> ticket.Ticket:
    return ticket._decoder.decode(data[: -ticket.MAC_BYTES])


def test_a_pod_learns_of_its_own_group_alone(tmp_path: Path) -> None:
    """Two pods on one machine, whose programs have the same process id and user, as in containers."""

    async def body(pool: World, reviewer: Reviewer) -> None:
        tokens = {uid: reviewer.issue(uid) for uid in (ANN, BOB)}
        clients = {uid: pool.client() for uid in tokens}
        for uid, server in ((ANN, "a"), (BOB, "b")):
            given = await clients[uid].allocate(group=uid, token=tokens[uid], ratio=100, node=server)
            assert [s.server for s in given.servers] == [server]
            pool.servers[server].attach(given.servers[0].ticket)
        await pool.until(lambda: pool.controller.summary().sessions == 2)
        looked = {}
        for uid, server in ((ANN, "a"), (BOB, "b")):
            asked = wire.Lookup(id=0, group=uid, token=tokens[uid], host="boot", uid=1000, pid=1)
            looked[uid] = await clients[uid].ask(asked)
            assert looked[uid].servers == [f"{server}:9960"]
            link = pool.servers[server].link
            (key,) = looked[uid].stats_keys
            # The server tells it of this group, and neither of all of them nor of another.
            assert link.admits_to_stats(key, uid)
            assert not link.admits_to_stats(key) and not link.admits_to_stats(key, "uid-of-carl")
        for wrong in (
            {"group": BOB, "token": tokens[ANN]},
            {"group": BOB},
            {"host": "boot", "uid": 1000, "pid": 1},
            {"host": "boot", "uid": 1000, "pid": 1, "token": tokens[ANN]},
        ):
            answer = await clients[ANN].ask(wire.Lookup(id=0, **wrong))
            assert isinstance(answer, wire.Error) and answer.code == 800, (wrong, answer)

    in_pool(tmp_path, body)


def test_nobody_takes_a_place_in_the_queue_or_an_allocation_that_was_told_to_another(tmp_path: Path) -> None:
    async def body(pool: World, reviewer: Reviewer) -> None:
        tokens = {uid: reviewer.issue(uid) for uid in (ANN, BOB, "carl")}
        for _ in range(2):
            given = await pool.client().allocate(group="carl", token=tokens["carl"], ratio=100)
            pool.servers[given.servers[0].server].attach(given.servers[0].ticket)
        await pool.until(lambda: pool.controller.summary().sessions == 2)
        ann, bob = pool.client(), pool.client()
        queued = await ann.allocate(group=ANN, token=tokens[ANN], ratio=100, wait_s=60.0)
        assert isinstance(queued, wire.Queued)
        stolen = await bob.ask(wire.StillWaiting(id=0, ticket=queued.ticket))
        assert isinstance(stolen, wire.Error) and "not in the queue" in stolen.message
        await bob.tell(wire.GiveUp(id=0, ticket=queued.ticket))
        assert isinstance(await ann.ask(wire.StillWaiting(id=0, ticket=queued.ticket)), wire.Queued)
        pool.servers["a"].end(next(iter(pool.servers["a"].simulated.sessions)))
        await pool.until(lambda: any(group.group == ANN for group in pool.controller.groups()))
        # It is served while it does not ask: the answer waits for it, and for nobody else.
        stolen = await bob.ask(wire.StillWaiting(id=0, ticket=queued.ticket))
        assert isinstance(stolen, wire.Error)
        given = await ann.ask(wire.StillWaiting(id=0, ticket=queued.ticket))
        assert isinstance(given, wire.Allocated)
        await bob.tell(wire.GiveUp(id=0, allocation=given.allocation))
        assert isinstance(await bob.allocate(group=BOB, token=tokens[BOB], ratio=100), wire.Allocated | wire.Error)
        assert given.allocation in pool.controller.group_ids()
        await ann.tell(wire.GiveUp(id=0, allocation=given.allocation))
        await pool.until(lambda: given.allocation not in pool.controller.group_ids())

    in_pool(tmp_path, body)


def test_the_loop_goes_on_while_the_api_server_thinks(tmp_path: Path) -> None:
    async def body(pool: World, reviewer: Reviewer) -> None:
        reviewer.may_answer.clear()
        token = reviewer.issue(ANN)
        waits = asyncio.ensure_future(pool.client().allocate(group=ANN, token=token))
        while not reviewer.reviews:
            await asyncio.sleep(0.01)
        refusal = await pool.client().allocate(group=BOB)
        assert refusal.code == 800 and not waits.done()
        reviewer.may_answer.set()
        assert isinstance(await waits, wire.Allocated)

    in_pool(tmp_path, body)
