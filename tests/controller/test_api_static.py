"""The portal's files."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.controller.http_world import World, go


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    folder = tmp_path / "dist"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>portal</title>" + " " * 600)
    (folder / "favicon.svg").write_text("<svg/>")
    (folder / "assets" / "index-DwKgDB3J.js").write_text("export {};" * 100)
    (folder / "assets" / "made-A1b2C3d4.css").write_text("a{}" * 300)
    (folder / "assets" / "made-A1b2C3d4.css.br").write_bytes(b"brotli")
    (folder / "assets" / "made-A1b2C3d4.css.gz").write_bytes(b"gzipped")
    (tmp_path / "secret.txt").write_text("secret")
    return folder


def test_files_are_served_with_their_types_and_ages(tmp_path, dist):
    async def body(w: World) -> None:
        raw = {"Accept-Encoding": "identity"}
        page = await w.get("/", token="", headers=raw)
        assert page.status == 200 and b"portal" in page.body
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert page.headers["Cache-Control"] == "no-cache"
        script = await w.get("/assets/index-DwKgDB3J.js", token="", headers=raw)
        assert script.headers["Content-Type"] == "text/javascript; charset=utf-8"
        assert "immutable" in script.headers["Cache-Control"]
        assert (await w.get("/favicon.svg", headers=raw)).headers["Content-Type"] == "image/svg+xml"
        again = await w.get("/", headers={**raw, "If-None-Match": page.headers["ETag"]})
        assert again.status == 304 and again.body == b""
        head = await w.call("HEAD", "/", token="")
        assert head.status == 200 and head.body == b""

    go(tmp_path, body, portal=dist)


def test_what_is_compressed_beside_a_file_is_used(tmp_path, dist):
    async def body(w: World) -> None:
        path = "/assets/made-A1b2C3d4.css"
        for accepted, expected in (("gzip, br", "br"), ("gzip", "gzip"), ("br;q=0, gzip;q=0.5", "gzip"), ("x", None)):
            asked = {"Accept-Encoding": accepted}
            async with w.http.get(w.url + path, headers=asked, auto_decompress=False) as answer:
                assert answer.headers.get("Content-Encoding") == expected
                assert answer.headers["Vary"] == "Accept-Encoding"
                assert await answer.read() == {"br": b"brotli", "gzip": b"gzipped", None: b"a{}" * 300}[expected]
        # What has none beside it is compressed at the start.
        async with w.http.get(w.url + "/", headers={"Accept-Encoding": "gzip"}, auto_decompress=False) as page:
            assert gzip.decompress(await page.read()) == (dist / "index.html").read_bytes()

    go(tmp_path, body, portal=dist)


def test_nothing_else_is_served_or_listed(tmp_path, dist):
    async def body(w: World) -> None:
        for path in ("/assets/", "/assets", "/secret.txt", "/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt",
                     "/assets/..%2f..%2fsecret.txt", "//etc/passwd", "/missing.js",
                     "/assets/made-A1b2C3d4.css.gz"):  # fmt: skip
            answer = await w.get(path, token="")
            assert answer.status in (400, 404) and b"secret" not in answer.body.replace(b"secret.txt", b""), path
        browser = {"Accept": "text/html"}
        assert b"portal" in (await w.get("/nodes/node-1", token="", headers=browser)).body
        assert (await w.get("/missing.js", headers=browser)).status == 404
        assert (await w.get("/api/nothing", headers=browser)).status == 404
        assert (await w.call("POST", "/", token="")).status == 405

    go(tmp_path, body, portal=dist)


def test_a_portal_that_is_not_built_says_how(tmp_path):
    async def body(w: World) -> None:
        page = await w.get("/", token="")
        assert page.status == 503 and b"npm run build" in page.body
        assert (await w.get("/healthz", token="")).status == 200

    go(tmp_path, body, portal=tmp_path / "nowhere")
