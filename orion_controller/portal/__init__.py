"""The web portal: static files, built from src/ by `npm run build` and checked in under dist/.

`add_portal(app)` serves them at "/". They are few and small, so they are read once, compressed once and answered from
memory. Everything else (log-in, roles, changes) is the API's; the portal uses nothing but /api/v1.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from pathlib import Path

from aiohttp import web

DIST = Path(__file__).parent / "dist"

# Nothing inline, nothing from elsewhere, not in anybody's frame.
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_COMPRESSIBLE = (".css", ".html", ".js", ".json", ".svg", ".txt")


class _File:
    """A file of the portal, ready to be answered."""

    def __init__(self, path: Path) -> None:
        self.body = path.read_bytes()
        self.gzipped = gzip.compress(self.body, 9, mtime=0) if path.suffix in _COMPRESSIBLE else None
        self.etag = hashlib.sha256(self.body).hexdigest()[:32]
        self.content_type = mimetypes.types_map.get(path.suffix, "application/octet-stream")
        # Names under assets/ contain a hash of the content; the others must be asked for each time.
        self.cache_control = "public, max-age=31536000, immutable" if path.parent.name == "assets" else "no-cache"

    async def answer(self, request: web.Request) -> web.Response:
        headers = {**SECURITY_HEADERS, "Cache-Control": self.cache_control, "Vary": "Accept-Encoding"}
        headers["ETag"] = f'"{self.etag}"'
        if any(tag.value == self.etag for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        headers["Content-Type"] = self.content_type
        if self.content_type.startswith("text/"):
            headers["Content-Type"] += "; charset=utf-8"
        body = self.body
        if self.gzipped is not None and "gzip" in request.headers.get("Accept-Encoding", ""):
            headers["Content-Encoding"] = "gzip"
            body = self.gzipped
        return web.Response(body=body, headers=headers)


def add_portal(app: web.Application) -> None:
    """Serves the portal's files at "/". Raises FileNotFoundError where the build is missing."""
    if not (DIST / "index.html").is_file():
        raise FileNotFoundError(f"{DIST}/index.html is missing: run `npm ci && npm run build` in {DIST.parent}")
    for path in sorted(DIST.rglob("*")):
        if path.is_file():
            file = _File(path)
            app.router.add_get(f"/{path.relative_to(DIST).as_posix()}", file.answer)
            if path == DIST / "index.html":
                app.router.add_get("/", file.answer)
