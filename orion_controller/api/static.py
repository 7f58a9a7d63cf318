"""The portal's files at "/". They are few: read once, compressed once, answered from memory; nothing is listed."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
import re
from pathlib import Path

from aiohttp import web

DIST = Path(__file__).parent.parent / "portal" / "dist"
_COMPRESSIBLE = (".css", ".html", ".js", ".json", ".map", ".mjs", ".svg", ".txt")
# A content hash in the name, as bundlers write it: such a file never changes.
_HASHED = re.compile(r"[-.][A-Za-z0-9_-]{8,}\.\w+$")
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".svg": "image/svg+xml", ".woff2": "font/woff2"}
_MISSING = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Orion</title></head>
<body><h1>The portal is not built</h1>
<p>This controller works, but its web pages are missing from the installation. In a source tree they are built with
<code>npm ci &amp;&amp; npm run build</code> in <code>orion_controller/portal</code>.</p>
<p>Without them: <code>orionctl get nodes</code>, or the API that
<a href="/openapi.json">/openapi.json</a> describes.</p>
</body></html>
"""


class File:
    """A file, ready to be answered."""

    def __init__(self, body: bytes, suffix: str, *, is_hashed: bool = False, gzipped: bytes | None = None,
                 brotli: bytes | None = None) -> None:  # fmt: skip
        self.body, self.brotli = body, brotli
        is_worth = suffix in _COMPRESSIBLE and len(body) > 500
        self.gzipped = gzipped or (gzip.compress(body, 9, mtime=0) if is_worth else None)
        self.etag = hashlib.sha256(body).hexdigest()[:32]
        kind = _TYPES.get(suffix) or mimetypes.types_map.get(suffix, "application/octet-stream")
        self.content_type = f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
        self.cache_control = "public, max-age=31536000, immutable" if is_hashed else "no-cache"

    def answer(self, request: web.Request, status: int = 200) -> web.Response:
        """In the shortest encoding that is accepted, or 304."""
        headers = {"Cache-Control": self.cache_control, "ETag": f'"{self.etag}"', "Vary": "Accept-Encoding"}
        if any(tag.value in (self.etag, "*") for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        headers["Content-Type"] = self.content_type
        body = self.body
        accepted = _accepted(request.headers.get("Accept-Encoding", ""))
        if self.brotli is not None and "br" in accepted:
            headers["Content-Encoding"], body = "br", self.brotli
        elif self.gzipped is not None and "gzip" in accepted:
            headers["Content-Encoding"], body = "gzip", self.gzipped
        return web.Response(status=status, body=body, headers=headers)


def _accepted(header: str) -> set[str]:
    found = set()
    for part in header.lower().split(","):
        name, _, weight = part.strip().partition(";")
        if not re.fullmatch(r"\s*q=0(\.0*)?\s*", weight):
            found.add(name.strip())
    return found


class Static:
    """A folder as it was at the start."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
        self._files: dict[str, File] = {}
        for path in paths:
            if path.suffix in (".gz", ".br") and path.with_suffix("").is_file():
                continue
            beside = {kind: path.with_name(path.name + kind) for kind in (".gz", ".br")}
            read = {kind: other.read_bytes() for kind, other in beside.items() if other.is_file()}
            name = path.relative_to(folder).as_posix()
            is_hashed = name.startswith("assets/") and bool(_HASHED.search(path.name))
            self._files[name] = File(path.read_bytes(), path.suffix, is_hashed=is_hashed, gzipped=read.get(".gz"),
                                     brotli=read.get(".br"))  # fmt: skip
        self._index = self._files.get("index.html")
        self._missing = File(_MISSING, ".html")

    def answer(self, request: web.Request) -> web.Response:
        """A file; for another page that a browser asks for, the portal itself. 404 for all else."""
        name = request.path.lstrip("/")
        file = self._files.get(name)
        if file is not None:
            return file.answer(request)
        is_page = not name or ("text/html" in request.headers.get("Accept", "") and "." not in name.rpartition("/")[2])
        if not is_page or name.startswith("api/"):
            raise web.HTTPNotFound
        return self._index.answer(request) if self._index is not None else self._missing.answer(request, 503)

    def is_page(self, request: web.Request) -> bool:
        """Whether a person opens the portal."""
        return request.path in ("/", "/index.html")
