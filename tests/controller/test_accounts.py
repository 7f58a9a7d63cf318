"""Accounts, sessions and tokens on both databases."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa

from orion_controller.store import AccountError, Accounts, Identity, Store, passwords, tables
from orion_controller.store.accounts import CACHE_S, TooBusy
from orion_controller.store.passwords import Cost

CHEAP = Cost(log2_n=4, r=1, p=1)


class Time:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def run(database: str, test: Callable[[Accounts, Time, Store], Awaitable[None]]) -> None:
    """`test` with accounts whose clocks are both the given one."""

    async def inside() -> None:
        store = Store.open(database)
        clock = Time()
        accounts = Accounts(store, CHEAP, now_s=clock, clock=clock)
        try:
            await test(accounts, clock, store)
        finally:
            accounts.close()
            await store.close()

    asyncio.run(inside())


def test_a_password_admits_its_user_alone(database: str) -> None:
    async def test(accounts: Accounts, _clock: Time, _store: Store) -> None:
        await accounts.add_user("ann", "operator", "first word of ann")
        await accounts.add_user("bob", "viewer", "first word of bob")
        assert await accounts.check_password("ann", "first word of ann") == Identity("ann", "operator", None)
        for name, password in (("ann", "first word of bob"), ("ann", ""), ("bob", "first word of ann"),
                               ("eve", "first word of ann"), ("", "x"), ("ann\0", "x"), ("a" * 9999, "x"),
                               ("ann", "x" * 9999), ("ann", "\ud800")):  # fmt: skip
            assert await accounts.check_password(name, password) is None
        await accounts.set_password("ann", "second word of ann")
        assert await accounts.check_password("ann", "first word of ann") is None
        assert await accounts.check_password("ann", "second word of ann") is not None
        assert [(user.name, user.role) for user in await accounts.users()] == [("ann", "operator"), ("bob", "viewer")]

    run(database, test)


def test_an_unknown_user_costs_one_hash_as_a_known_one(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []
    scrypt = passwords.hashlib.scrypt

    def counted(*arguments: Any, **named: Any) -> bytes:
        made.append((named["n"], named["r"], named["p"]))
        return scrypt(*arguments, **named)

    async def test(accounts: Accounts, _clock: Time, _store: Store) -> None:
        await accounts.add_user("ann", "operator", "first word of ann")
        monkeypatch.setattr(passwords.hashlib, "scrypt", counted)
        for name in ("ann", "eve", "not a name", "ann" * 99):
            made.clear()
            await accounts.check_password(name, "wrong word")
            assert made == [(16, 1, 1)], name

    run(database, test)


def test_what_is_kept_is_neither_password_nor_token(database: str) -> None:
    async def test(accounts: Accounts, _clock: Time, store: Store) -> None:
        await accounts.add_user("ann", "operator", "first word of ann")
        await accounts.add_user("bob", "operator", "first word of ann")
        session = await accounts.create_session("ann", 60)
        token = await accounts.create_token("ci", "viewer", None)
        rows = await store.read(
            lambda connection: [
                repr(row)
                for table in (tables.accounts, tables.sessions, tables.api_tokens)
                for row in connection.execute(sa.select(table)).all()
            ]
        )
        assert len(rows) == 4
        for secret in ("first word", session, token, session[6:], token[6:]):
            assert secret not in "".join(rows)
        assert rows[0].split("scrypt")[1] != rows[1].split("scrypt")[1]  # salted

    run(database, test)


def test_a_session_has_its_users_role_until_it_expires(database: str) -> None:
    async def test(accounts: Accounts, clock: Time, store: Store) -> None:
        await accounts.add_user("ann", "operator", "first word of ann")
        session = await accounts.create_session("ann", 60)
        assert await accounts.lookup(session) == Identity("ann", "operator", 1060.0)
        clock.now_s += 59
        assert await accounts.lookup(session) is not None
        clock.now_s += 1
        assert await accounts.lookup(session) is None
        await accounts.create_session("ann", 60)
        count = sa.select(sa.func.count()).select_from(tables.sessions)
        assert await store.read(lambda connection: connection.execute(count).scalar_one()) == 1
        with pytest.raises(AccountError, match="no user eve"):
            await accounts.create_session("eve", 60)

    run(database, test)


def test_tokens_for_programs(database: str) -> None:
    async def test(accounts: Accounts, clock: Time, _store: Store) -> None:
        forever = await accounts.create_token("ci", "viewer", None)
        short = await accounts.create_token("deploy", "operator", 10)
        assert await accounts.lookup(forever) == Identity("token:ci", "viewer", None)
        assert await accounts.lookup(short) == Identity("token:deploy", "operator", 1010.0)
        with pytest.raises(AccountError, match="token deploy already"):
            await accounts.create_token("deploy", "operator", 10)
        clock.now_s += 10
        assert await accounts.lookup(short) is None
        again = await accounts.create_token("deploy", "viewer", 10)  # an expired one's name is free
        assert await accounts.lookup(again) == Identity("token:deploy", "viewer", 1020.0)
        assert [(t.name, t.role, t.expires_s) for t in await accounts.tokens()] == [
            ("ci", "viewer", None), ("deploy", "viewer", 1020.0)]  # fmt: skip
        await accounts.revoke_token("ci")
        assert await accounts.lookup(forever) is None
        with pytest.raises(AccountError, match="no token ci"):
            await accounts.revoke_token("ci")
        for nonsense in ("", "orion_", "orion_" + "x" * 43, "x" * 100_000, "orion_\0", "orion_\u2603", "\ud800"):
            assert await accounts.lookup(nonsense) is None

    run(database, test)


def test_last_use_is_written(database: str) -> None:
    async def test(accounts: Accounts, clock: Time, _store: Store) -> None:
        token = await accounts.create_token("ci", "viewer", None)
        assert (await accounts.tokens())[0].used_s is None
        clock.now_s = 2000.0
        await accounts.lookup(token)
        async with asyncio.timeout(30):
            while (await accounts.tokens())[0].used_s != 2000.0:
                await asyncio.sleep(0.01)

    run(database, test)


def test_revocation_is_at_once_here_and_soon_on_another_replica(database: str) -> None:
    async def test(accounts: Accounts, clock: Time, _store: Store) -> None:
        other_store = Store.open(database)
        other = Accounts(other_store, CHEAP, now_s=clock, clock=clock)
        await accounts.add_user("ann", "operator", "first word of ann")
        await accounts.add_user("bob", "operator", "first word of bob")

        async def ends(session: str, act: Awaitable[Any]) -> None:
            assert await accounts.lookup(session) is not None
            assert await other.lookup(session) is not None
            await act
            assert await accounts.lookup(session) is None
            clock.now_s += CACHE_S
            assert await other.lookup(session) is None

        assert CACHE_S <= 5
        session = await accounts.create_session("ann", 600)
        await ends(session, accounts.revoke(session))
        assert not await accounts.revoke(session)
        session = await accounts.create_session("ann", 600)
        await ends(session, accounts.set_password("ann", "second word of ann"))
        session = await accounts.create_session("ann", 600)
        await ends(session, accounts.remove_user("ann"))
        token = await accounts.create_token("ci", "viewer", None)
        await ends(token, accounts.revoke(token))
        other.close()
        await other_store.close()

    run(database, test)


def test_the_last_operator_stays(database: str) -> None:
    async def test(accounts: Accounts, _clock: Time, _store: Store) -> None:
        for name, role in (("ann", "operator"), ("bob", "operator"), ("eve", "viewer")):
            await accounts.add_user(name, role, "some long word")
        results = await asyncio.gather(accounts.remove_user("ann"), accounts.remove_user("bob"),
                                       return_exceptions=True)  # fmt: skip
        assert [type(result) for result in results] == [type(None), AccountError]
        await accounts.remove_user("eve")
        with pytest.raises(AccountError, match="no user eve"):
            await accounts.remove_user("eve")
        assert [user.name for user in await accounts.users()] == ["bob"]

    run(database, test)


@pytest.mark.parametrize(
    ("name", "role", "password", "sentence"),
    [
        ("ann", "operator", "another word", "there is a user ann already"),
        ("token:x", "operator", "another word", "1 to 64 of"),
        ("", "operator", "another word", "1 to 64 of"),
        ("bob\n", "operator", "another word", "1 to 64 of"),
        ("bob", "root", "another word", "one of viewer, operator"),
        ("bob", "viewer", "short", "8 to 256 characters, not 5"),
        ("bob", "viewer", "x" * 257, "8 to 256 characters, not 257"),
    ],
)
def test_accounts_that_cannot_be(tmp_path: Any, name: str, role: str, password: str, sentence: str) -> None:
    async def test(accounts: Accounts, _clock: Time, _store: Store) -> None:
        await accounts.add_user("ann", "operator", "first word of ann")
        with pytest.raises(AccountError, match=sentence):
            await accounts.add_user(name, role, password)
        assert len(await accounts.users()) == 1

    run(f"sqlite:///{tmp_path}/a.db", test)


def test_the_first_account_is_made_once_with_a_password_that_nobody_knows_yet(database: str) -> None:
    async def test(accounts: Accounts, _clock: Time, store: Store) -> None:
        other_store = Store.open(database)
        other = Accounts(other_store, CHEAP)
        shown = io.StringIO(), io.StringIO()
        made = await asyncio.gather(accounts.ensure_first(show=shown[0]), other.ensure_first(show=shown[1]))
        assert sorted(made) == ["", "admin"]
        text = shown[made.index("admin")].getvalue()
        assert shown[made.index("")].getvalue() == ""
        found = re.search(r"password (\S+)", text)
        assert found is not None and len(found[1]) >= 16
        assert await other.check_password("admin", found[1]) == Identity("admin", "operator", None)
        assert await accounts.ensure_first(show=shown[0]) == ""
        other.close()
        await other_store.close()

    run(database, test)


def test_the_first_password_may_be_given_and_is_then_not_shown(database: str) -> None:
    async def test(accounts: Accounts, _clock: Time, _store: Store) -> None:
        shown = io.StringIO()
        with pytest.raises(AccountError, match="8 to 256"):
            await accounts.ensure_first("admin", shown)
        assert await accounts.ensure_first("a word from a file", shown) == "admin"
        assert await accounts.check_password("admin", "a word from a file") is not None
        assert shown.getvalue() == ""

    run(database, test)


def test_log_ins_beyond_what_can_be_checked_are_turned_away(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orion_controller.store.accounts._CHECKS_WAITING_MAX", 3)

    async def test(accounts: Accounts, _clock: Time, _store: Store) -> None:
        checks = (accounts.check_password("not a name", "x") for _ in range(10))
        results = await asyncio.gather(*checks, return_exceptions=True)
        assert len([result for result in results if isinstance(result, TooBusy)]) == 7
        assert await accounts.check_password("not a name", "x") is None

    run(database, test)


def test_passwords_keep_their_own_cost() -> None:
    stored = passwords.make("a word", CHEAP)
    assert passwords.matches("a word", stored) and not passwords.matches("a Word", stored)
    assert passwords.matches("a word", passwords.make("a word", Cost(5, 2, 1)))
    for broken in ("", "scrypt$4$1$1$AA==$", "argon$4$1$1$AA==$AA==", "scrypt$99$8$1$AA==$AA==", stored[:-8], "$" * 5):
        assert not passwords.matches("a word", broken)


def test_the_configurations_keys_are_tokens_of_their_role(database: str) -> None:
    async def test(_accounts: Accounts, clock: Time, store: Store) -> None:
        accounts = Accounts(store, CHEAP, now_s=clock, clock=clock, keys={"operator": "o" * 40, "viewer": ""})
        try:
            assert await accounts.lookup("o" * 40) == Identity("key:operator", "operator", None)
            for wrong in ("", "o" * 39, "o" * 41, "o" * 9999, "\ud800"):
                assert await accounts.lookup(wrong) is None
            created = await accounts.create_token("ci", "viewer", None)
            found = await accounts.lookup(created)
            assert found is not None and found.role == "viewer"
        finally:
            accounts.close()

    run(database, test)
