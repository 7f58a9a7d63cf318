"""What the tests of the portal need of a controller, and of a page that shows it.

`Portal` starts the stand-in (server.py). For the real controller another class with the same attributes is enough:
`url`, `operator` and `viewer` (user, password), `stop()`, and `start()` on the same port with the log-ins still valid.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.portal.server import PASSWORDS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request

ROOT = Path(__file__).resolve().parents[2]
# The machine may be busy; what is waited for comes in well under a second.
TIMEOUT_MS = 30_000


_SETTLED = """
document.getElementById("title") && !document.querySelector(".loading, .stale") &&
![...document.querySelectorAll(".plot-area")].some((plot) => !plot.querySelector("canvas"))
"""


class Portal:
    operator = ("admin", PASSWORDS["admin"])
    viewer = ("guest", PASSWORDS["guest"])

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self.url = ""
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        port = str(urlsplit(self.url).port) if self.url else "0"
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/portal/server.py"), "--port", port, *self.arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, "the stand-in did not start"

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def __enter__(self) -> Portal:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Visit:
    """A browser context with one page that is watched: complaints of the console, requests to elsewhere."""

    def __init__(
        self, browser: Browser, portal: Portal, width: int = 1280, height: int = 860, scheme: str = "light"
    ) -> None:
        self.portal = portal
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self.context: BrowserContext = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,  # type: ignore[arg-type]
            reduced_motion="reduce",
        )
        self.context.set_default_timeout(TIMEOUT_MS)
        self.page: Page = self.context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} {message.location.get('url', '')}")

    def _request(self, request: Request) -> None:
        if not request.url.startswith(self.portal.url):
            self.elsewhere.append(request.url)

    def open(self, route: str = "") -> None:
        self.page.goto(f"{self.portal.url}#/{route}")

    def log_in(self, who: tuple[str, str], route: str = "") -> None:
        self.open(route)
        self.page.get_by_label("User").fill(who[0])
        self.page.get_by_label("Password", exact=True).fill(who[1])
        self.page.get_by_role("button", name="Log in").click()
        self.page.locator("nav[aria-label=Pages]").wait_for(state="attached")
        # Asking who one is, before one is anybody: the browser counts the answer 401 as an error.
        self.complaints = [text for text in self.complaints if not re.search(r"401 .*/api/v1/me$", text)]

    def heading(self, text: str) -> None:
        self.page.get_by_role("heading", level=1, name=text).wait_for()

    def settled(self) -> None:
        """Waits until nothing is being loaded for the first time."""
        # Not wait_for_function: that is eval, which the content security policy refuses.
        deadline = time.monotonic() + TIMEOUT_MS / 1000
        while not self.page.evaluate(_SETTLED):
            assert time.monotonic() < deadline, f"{self.page.url} is still loading"
            self.page.wait_for_timeout(50)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()
