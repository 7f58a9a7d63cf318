"""The pool's REST API (/api/v1) as the commands use it: one connection, plain data, errors that say what to do.

Where the controller is and who asks: options, then ORION_CONTROLLER_URL, ORION_TOKEN and ORION_CA_FILE, then
~/.orion/ctl.conf (controller, ca_file), then /etc/orion/ctl.conf. `orionctl login` keeps its token in ~/.orion/token,
mode 0600, with the controller that gave it: it is sent to no other.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urljoin, urlsplit

import urllib3

PAGE = 500
DEFAULT_HTTP_PORT = 15502
MAX_ITEMS = 200_000
MAX_ANSWER_BYTES = 64 << 20
_MAX_REDIRECTS = 3
_PREFIX = "/api/v1/"
EXIT_OK, EXIT_REFUSED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_NOT_ALLOWED = 0, 1, 2, 3, 4


class PoolError(Exception):
    """The request did not do what was wanted. `exit_code`: for the command; `code`: the API's word."""

    def __init__(self, message: str, hint: str = "", exit_code: int = EXIT_REFUSED, code: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code
        self.code = code


@dataclass(frozen=True)
class Access:
    """Where the controller is, and by which right one asks."""

    url: str  # "http://host:port", without a slash at the end
    token: str = ""
    ca_file: str = ""


def configuration_files() -> list[Path]:
    """Files that name the controller, the user's first."""
    return [_home() / "ctl.conf", Path("/etc/orion/ctl.conf")]


def token_file() -> Path:
    """Where `orionctl login` keeps its token."""
    return _home() / "token"


def configured(key: str) -> str:
    """The value of a line `key = value` of ctl.conf; empty when nobody set it."""
    for path in configuration_files():
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            name, separator, value = line.strip().partition("=")
            if separator and name[:1] not in "#;[" and name.strip().lower() == key:
                return value.strip()
    return ""


def find(url: str | None = None, token: str | None = None, ca_file: str | None = None) -> Access | None:
    """Who to ask, or None when no controller is named. PoolError (usage) for an address that is none."""
    wanted = url or os.environ.get("ORION_CONTROLLER_URL", "") or configured("controller")
    if not wanted:
        return None
    address = parse_url(wanted)
    secret = token or os.environ.get("ORION_TOKEN", "").strip() or stored_token(address)
    authority = ca_file or os.environ.get("ORION_CA_FILE", "") or configured("ca_file")
    if authority and not os.access(authority, os.R_OK):
        raise PoolError(f"the file of trusted certificates {authority} cannot be read", exit_code=EXIT_USAGE)
    return Access(address, secret, authority)


def parse_url(text: str) -> str:
    """`[http[s]://]host[:port]` as a URL without a path. A host alone: the controller's default port there."""
    whole = text.strip()
    if "://" not in whole:
        has_port = ":" in whole.rpartition("]")[2]
        whole = f"http://{whole}" if has_port else f"http://{whole}:{DEFAULT_HTTP_PORT}"
    try:
        parts = urlsplit(whole)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        valid = valid and not parts.query and not parts.username and parts.path in ("", "/")
        valid = valid and not any(c.isspace() for c in whole)
    except ValueError:
        valid = False
    if not valid:
        raise PoolError(f"{text!r} is not the address of a controller, for example http://127.0.0.1:15502",
                        exit_code=EXIT_USAGE)  # fmt: skip
    return f"{parts.scheme}://{parts.netloc}"


def stored_token(url: str) -> str:
    """The token that `orionctl login` was given by this controller; empty when there is none."""
    try:
        saved = json.loads(token_file().read_text(encoding="utf-8"))
        return str(saved["token"]) if saved["controller"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def store_token(url: str, token: str) -> None:
    """Keeps a token for the user alone; replaces the file as a whole, so that nobody reads half of one."""
    path = token_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".token")  # made with mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"controller": url, "token": token}, file)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def forget_token() -> bool:
    """Whether there was one."""
    try:
        token_file().unlink()
    except FileNotFoundError:
        return False
    return True


def _home() -> Path:
    return Path(os.environ.get("HOME") or str(Path("~").expanduser())) / ".orion"


class PoolClient:
    """One controller. Each request is answered, refused or given up after `timeout_s`."""

    def __init__(self, access: Access, timeout_s: float = 5.0) -> None:
        self.access = access
        self.date = ""  # the controller's clock, as its last answer told
        timeout = urllib3.Timeout(connect=timeout_s, read=timeout_s)
        options: dict[str, Any] = {"ca_certs": access.ca_file} if access.ca_file else {}
        self._http = urllib3.PoolManager(timeout=timeout, retries=False, **options)

    def get(self, path: str, **query: Any) -> Any:
        """The answer to a GET below /api/v1; what is None or empty of `query` is left out."""
        wanted = {name: value for name, value in query.items() if value not in (None, "")}
        return self._ask("GET", path + ("?" + urlencode(wanted) if wanted else ""))

    def items(self, kind: str, most: int = MAX_ITEMS, **query: Any) -> list[dict[str, Any]]:
        """All of a list, page after page."""
        return list(self._pages(kind, most, query))

    def send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Asks for a change; the answer, or None when it has none."""
        return self._ask(method, path, body)

    def _pages(self, kind: str, most: int, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
        offset = 0
        while offset < most:
            page = self.get(kind, limit=min(PAGE, most - offset), offset=offset or None, **query)
            items = page.get("items") if isinstance(page, dict) else None
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise self._strange(f"GET {_PREFIX}{kind} is no list")
            yield from items
            offset += len(items)
            total = page.get("total")
            if not items or not isinstance(total, int) or offset >= total:
                return

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Accept": "application/json"}
        if self.access.token:
            headers["Authorization"] = f"Bearer {self.access.token}"
        data = None
        if body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        url = self.access.url + _PREFIX + path
        for _ in range(_MAX_REDIRECTS + 1):
            status, text, location = self._exchange(method, url, headers, data)
            if status not in (307, 308) or not location:
                return self._answer(status, text)
            # Another replica leads. It has the same tokens; but never from https down to plain http.
            following = urljoin(url, location)
            if urlsplit(url).scheme == "https" and urlsplit(following).scheme != "https":
                raise self._strange("it points to a leader without TLS")
            url = following
        raise self._strange("its replicas point to each other; none leads")

    def _exchange(self, method: str, url: str, headers: dict[str, str], data: bytes | None) -> tuple[int, bytes, str]:
        try:
            answer = self._http.request(method, url, body=data, headers=headers, redirect=False, preload_content=False)
            try:
                text = answer.read(MAX_ANSWER_BYTES + 1)
            finally:
                answer.release_conn()
        except urllib3.exceptions.SSLError as error:
            raise PoolError(f"{self.access.url} is not trusted: {_reason(error)}",
                            "name the authority's certificate: --ca-file FILE, ORION_CA_FILE or ca_file in ctl.conf",
                            EXIT_UNREACHABLE) from None  # fmt: skip
        except (urllib3.exceptions.HTTPError, UnicodeError) as error:
            raise PoolError(f"no controller answers at {self.access.url}: {_reason(error)}",
                            "is it running there? --controller URL or ORION_CONTROLLER_URL names another",
                            EXIT_UNREACHABLE) from None  # fmt: skip
        self.date = answer.headers.get("Date", "")
        if len(text) > MAX_ANSWER_BYTES:
            raise self._strange(f"it is longer than {MAX_ANSWER_BYTES} bytes")
        return answer.status, text, answer.headers.get("Location", "")

    def _answer(self, status: int, text: bytes) -> Any:
        if status == 204 or (200 <= status < 300 and not text):
            return None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise self._strange(f"HTTP {status} without JSON") from None
        if 200 <= status < 300:
            return value
        told = value if isinstance(value, dict) else {}
        message = str(told.get("message") or f"HTTP {status}")
        hint, code = str(told.get("hint") or ""), str(told.get("code") or "")
        if status == 401:
            hint = hint or "`orionctl login`, or set ORION_TOKEN"
        # 503: no replica leads, or its database is gone: nobody is there who could answer.
        codes = {401: EXIT_NOT_ALLOWED, 403: EXIT_NOT_ALLOWED, 503: EXIT_UNREACHABLE}
        raise PoolError(message, hint, codes.get(status, EXIT_REFUSED), code)

    def _strange(self, what: str) -> PoolError:
        return PoolError(f"{self.access.url} does not answer like an orion-controller: {what}",
                         "is it the controller's HTTP port? (9123, ZeroMQ's, is not)", EXIT_UNREACHABLE)  # fmt: skip


def part(text: str) -> str:
    """A name as one part of a path."""
    return quote(text, safe="")


def _reason(error: BaseException) -> str:
    """The innermost sentence: urllib3 wraps what the system said."""
    inner: BaseException | None = error
    for _ in range(8):
        following = getattr(inner, "reason", None) or (inner.__cause__ if inner else None)
        if not isinstance(following, BaseException):
            break
        inner = following
    if isinstance(inner, urllib3.exceptions.ConnectTimeoutError | urllib3.exceptions.ReadTimeoutError):
        return "no answer in time"
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    text = str(inner).rpartition("object at ")[2] or str(inner)
    return text.partition(">: ")[2] or text
