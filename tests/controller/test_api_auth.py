"""Who may do what, how one logs in, and what a browser of another site cannot do."""

from __future__ import annotations

import asyncio
from http.cookies import SimpleCookie

import pytest

from orion_controller.api.app import SECURITY_HEADERS, all_routes
from orion_controller.api.auth import Backoff, LoginGuard, Refusal, address_key
from orion_controller.store.accounts import Accounts, Identity, TooBusy
from tests.controller.http_world import PASSWORDS, Time, World, go

FORM = "application/x-www-form-urlencoded"


def cookie_of(answer) -> SimpleCookie:
    return SimpleCookie(answer.headers["Set-Cookie"])


def test_every_route_asks_for_its_role(tmp_path):
    async def body(w: World) -> None:
        for route in all_routes():
            path = route.path.replace("{id}", "x").replace("{name}", "x").replace("{group}", "x")
            path = path.replace("{allocation}", "x")
            nobody = await w.call(route.method, path, token="")
            assert (nobody.status == 401) == (route.role is not None), route.path
            if route.role is None:
                continue
            assert nobody.headers["WWW-Authenticate"].startswith("Bearer") and nobody.json["hint"]
            wrong = await w.call(route.method, path, token="orion_" + "x" * 43)
            assert wrong.status == 401
            if "logout" not in path:
                viewer = await w.call(route.method, path, token=w.viewer)
                assert (viewer.status == 403) == (route.role == "operator"), route.path
                assert viewer.status != 401
        assert w.pool.all_events[-1].kind == "node.registered"  # none of it did anything

    go(tmp_path, body)


def test_a_login_gives_a_token_and_a_cookie_that_scripts_cannot_read(tmp_path):
    async def body(w: World) -> None:
        answer = await w.login("vic", PASSWORDS["vic"])
        assert answer.status == 200
        told = answer.json
        assert (told["user"], told["role"], told["expires_s"]) == ("vic", "viewer", 1000.0 + 600)
        morsel = cookie_of(answer)["orion_token"]
        assert morsel.value == told["token"] and morsel["path"] == "/" and morsel["max-age"] == "600"
        assert morsel["httponly"] and morsel["samesite"] == "Strict" and not morsel["secure"]
        assert answer.headers["Cache-Control"] == "no-store"
        assert (await w.get("/api/v1/me", token=told["token"])).json == {"user": "vic", "role": "viewer"}
        event = w.pool.all_events[-1]
        assert (event.kind, event.user) == ("user.login", "vic") and told["token"] not in event.message
        w.clock.now_s += 601
        assert (await w.get("/api/v1/me", token=told["token"])).status == 401

    go(tmp_path, body, session_ttl_s=600.0)


def test_the_cookie_is_secure_under_tls(tmp_path):
    async def body(w: World) -> None:
        assert cookie_of(await w.login("vic", PASSWORDS["vic"]))["orion_token"]["secure"]

    go(tmp_path, body, secure_cookies=True)


def test_a_logout_ends_the_session(tmp_path):
    async def body(w: World) -> None:
        token = (await w.login("ann", PASSWORDS["ann"])).json["token"]
        answer = await w.call("POST", "/api/v1/logout", token=token)
        assert answer.status == 204 and cookie_of(answer)["orion_token"]["max-age"] == "0"
        assert (await w.get("/api/v1/me", token=token)).status == 401
        program = await w.accounts.create_token("ci", "operator", None)
        assert (await w.call("POST", "/api/v1/logout", token=program)).status == 409
        assert (await w.get("/api/v1/me", token=program)).json["user"] == "token:ci"

    go(tmp_path, body)


def test_a_cookie_changes_nothing_for_another_sites_page(tmp_path):
    async def body(w: World) -> None:
        cookie = {"Cookie": f"orion_token={w.operator}"}
        own = w.url
        reading = await w.get("/api/v1/me", token="", headers={**cookie, "Origin": "http://evil.example"})
        assert reading.status == 200 and "Access-Control-Allow-Origin" not in reading.headers
        for headers, status in (
            ({}, 403),
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": "http://[bad"}, 403),
            ({"Origin": own + ".evil.example"}, 403),
            ({"Sec-Fetch-Site": "cross-site", "Origin": own}, 403),
            ({"Sec-Fetch-Site": "same-site"}, 403),
            ({"Sec-Fetch-Site": "none"}, 403),
            ({"Sec-Fetch-Site": "same-origin", "Content-Type": FORM}, 415),
            ({"Sec-Fetch-Site": "same-origin"}, 200),
            ({"Origin": own}, 200),
        ):
            answer = await w.call("PATCH", "/api/v1/nodes/node-0000", {"draining": True}, token="",
                                  headers={**cookie, **headers})  # fmt: skip
            assert answer.status == status, headers
        # Whoever sends the token as a header is no browser that was tricked.
        assert (await w.call("PATCH", "/api/v1/nodes/node-0000", {"draining": True})).status == 200
        # A wrong header is not made good by a cookie.
        answer = await w.get("/api/v1/me", token="", headers={**cookie, "Authorization": "Basic eDp5"})
        assert answer.status == 401

    go(tmp_path, body)


def test_another_sites_page_cannot_log_a_browser_in(tmp_path):
    async def body(w: World) -> None:
        ann = {"user": "ann", "password": PASSWORDS["ann"]}
        for headers, status in (({"Origin": "http://evil.example"}, 403), ({"Sec-Fetch-Site": "cross-site"}, 403),
                                ({"Origin": w.url}, 200), ({}, 200)):  # fmt: skip
            assert (await w.call("POST", "/api/v1/login", ann, token="", headers=headers)).status == status
        raw = b'{"user":"ann","password":"x"}'
        assert (await w.call("POST", "/api/v1/login", raw=raw, headers={"Content-Type": "text/plain"})).status == 415

    go(tmp_path, body)


def test_who_guesses_waits_longer_and_longer(tmp_path):
    async def body(w: World) -> None:
        for _ in range(5):
            answer = await w.login("ann", "wrong")
            assert answer.status == 401 and answer.json["code"] == "wrong_password"
        # Also the right one waits now; other users from the same machine do not.
        answer = await w.login("ann", PASSWORDS["ann"])
        assert answer.status == 429 and answer.headers["Retry-After"] == "2" and answer.json["hint"]
        assert (await w.login("vic", PASSWORDS["vic"])).status == 200
        w.clock.now_s += 1.0
        assert (await w.login("ann", "wrong")).status == 401
        w.clock.now_s += 1.0
        assert (await w.login("ann", PASSWORDS["ann"])).status == 429
        w.clock.now_s += 1.0
        assert (await w.login("ann", PASSWORDS["ann"])).status == 200
        assert (await w.login("ann", "wrong")).status == 401  # counted from anew
        failed = [event for event in w.pool.all_events if event.kind == "user.login_failed"]
        assert len(failed) == 7 and {event.user for event in failed} == {""}

    go(tmp_path, body)


def test_many_users_from_one_address_and_one_user_from_many():
    clock = Time()
    guard = LoginGuard(clock)
    for number in range(20):
        guard.enter(f"user{number}", "192.0.2.1")
    with pytest.raises(Refusal, match="try again in 2 s"):
        guard.enter("somebody", "192.0.2.1")
    guard.enter("somebody", "192.0.2.2")
    # A success of one's own does not wipe what was guessed at others.
    clock.now_s += 1
    guard.enter("mallory", "192.0.2.1")
    guard.passed("mallory", "192.0.2.1")
    clock.now_s += 1
    guard.enter("user3", "192.0.2.1")
    with pytest.raises(Refusal):
        guard.enter("user3", "192.0.2.1")
    # A whole IPv6 network is one machine.
    for number in range(20):
        guard.enter(f"other{number}", f"2001:db8::{number}")
    with pytest.raises(Refusal):
        guard.enter("somebody", "2001:db8::ffff")
    guard.enter("somebody", "2001:db8:0:1::1")
    # From everywhere at once: slowed, but never for longer than 10 s.
    for number in range(100):
        guard.enter("admin", f"198.51.{number}.1")
    with pytest.raises(Refusal):
        guard.enter("admin", "203.0.113.1")
    clock.now_s += 10
    guard.enter("admin", "203.0.113.1")


def test_a_thousand_guesses_at_once_are_not_all_free(tmp_path):
    async def body(w: World) -> None:
        answers = await asyncio.gather(*(w.login("ann", f"guess {i}") for i in range(50)))
        assert sorted(answer.status for answer in answers) == [401] * 5 + [429] * 45

    go(tmp_path, body)


def test_a_login_that_could_not_be_checked_does_not_count(tmp_path, monkeypatch):
    async def busy(self: Accounts, name: str, password: str) -> Identity | None:
        raise TooBusy("too many log-ins at once")

    async def body(w: World) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Accounts, "check_password", busy)
            for _ in range(30):
                answer = await w.login("ann", PASSWORDS["ann"])
                assert (answer.status, answer.json["code"]) == (503, "busy") and answer.headers["Retry-After"]
        assert (await w.login("ann", PASSWORDS["ann"])).status == 200

    go(tmp_path, body)


def test_backoff_is_bounded_and_forgets():
    clock = Time()
    backoff = Backoff(clock, free=2, most_s=60.0, forget_s=900.0, keys_most=3)
    for expected in (0, 0, 1, 2, 4, 8, 16, 32, 60, 60):
        assert backoff.wait_s("a") == expected
        backoff.count("a")
    for _ in range(200):
        backoff.count("a")
    assert backoff.wait_s("a") == 60
    clock.now_s += 59
    assert backoff.wait_s("a") == 1
    clock.now_s += 841
    assert backoff.wait_s("a") == 0
    backoff.count("a")
    assert backoff.wait_s("a") == 0  # the first one again
    for key in "bcdefgh":
        backoff.count(key)
    assert len(backoff._failures) == 3


def test_addresses():
    assert address_key("192.0.2.7") == address_key("::ffff:192.0.2.7") == "192.0.2.7"
    assert address_key("2001:db8::1") == address_key("2001:db8::2") == "2001:db8::/64"
    assert address_key("fe80::1%eth0") == "fe80::/64"
    assert address_key(None) == "" and address_key("somewhere") == "somewhere"


def test_every_answer_carries_the_security_headers(tmp_path):
    async def body(w: World) -> None:
        answers = [await w.get(path) for path in ("/", "/api/v1/me", "/api/v1/none", "/metrics")]
        answers += [await w.get("/api/v1/me", token=""), await w.call("PUT", "/healthz")]
        for answer in answers:
            for name, value in SECURITY_HEADERS.items():
                assert answer.headers[name] == value
        assert (await w.get("/api/v1/me")).headers["Cache-Control"] == "no-store"
        policy = SECURITY_HEADERS["Content-Security-Policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy

    go(tmp_path, body)
