"""Every page, in both themes and two widths: no complaint in the console, nothing wider than the window, no serious
finding of axe-core; and how long the first page takes with 8,000 GPUs. Screenshots go to build/screenshots."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from orion_controller import portal as portal_package
from tests.portal.portals import TIMEOUT_MS, Portal, Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
from playwright.sync_api import expect

expect.set_options(timeout=TIMEOUT_MS)

FOLDER = Path(portal_package.__file__).parent
AXE = FOLDER / "node_modules" / "axe-core" / "axe.min.js"
ROUTES = [
    "",
    "nodes",
    "nodes/gpu-02",
    "gpus",
    "gpus/gpu-02/3",
    "groups",
    "vgpus",
    "tasks",
    "queue",
    "limits",
    "events",
    "audit",
]
LOOKS = [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")]


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core, from the portal's development dependencies."""
    if not AXE.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("axe-core is not there, and neither is npm to get it with")
        subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=FOLDER, check=True, capture_output=True)
    return AXE.read_text()


def scan(page: Page, axe: str) -> list[str]:
    if not page.evaluate("'axe' in window"):
        page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{finding['id']} ({finding['impact']}): {json.dumps([node['target'] for node in finding['nodes']][:4])}"
        for finding in found["violations"]
        if finding["impact"] in ("serious", "critical")
    ]


def name_of(route: str, width: int, scheme: str) -> str:
    return f"{route.replace('/', '-') or 'overview'}-{width}-{scheme}.png"


@pytest.mark.slow
@pytest.mark.parametrize("width, scheme", LOOKS)
def test_every_page(browser: Browser, portal: Portal, screenshots: Path, axe: str, width: int, scheme: str) -> None:
    with Visit(browser, portal, width=width, scheme=scheme) as visit:
        page = visit.page
        visit.open()
        visit.heading("Log in to the pool")
        page.screenshot(path=screenshots / name_of("login", width, scheme))
        findings = [f"log-in: {finding}" for finding in scan(page, axe)]
        visit.log_in(portal.operator)
        group = page.evaluate(
            "fetch('api/v1/groups?q=batch-1').then(answer => answer.json()).then(page => page.items[0].id)"
        )
        for route in [*ROUTES, f"groups/{group}"]:
            visit.open(route)
            visit.settled()
            name = route.replace(group, "batch-1")
            page.screenshot(path=screenshots / name_of(name, width, scheme), full_page=True)
            wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            if wide > 0:
                findings.append(f"/{route} is {wide} pixels wider than the window")
            if page.evaluate(
                "[...document.querySelectorAll('.table-scroll')].some((box) => box.scrollWidth > box.clientWidth)"
            ):
                findings.append(f"/{route}: a table is wider than its place")
            findings += [f"/{route}: {finding}" for finding in scan(page, axe)]
        visit.open("groups")
        page.get_by_role("button", name="Change batch-1").click()
        page.get_by_label("Memory of each vGPU").fill("1000")
        page.screenshot(path=screenshots / name_of("change", width, scheme))
        findings += [f"dialog: {finding}" for finding in scan(page, axe)]
        page.keyboard.press("Escape")
        if width < 900:
            page.get_by_role("button", name="Menu").click()
            expect(page.get_by_role("link", name="Audit trail")).to_be_visible()
            page.screenshot(path=screenshots / name_of("menu", width, scheme))
            findings += [f"menu: {finding}" for finding in scan(page, axe)]
        assert findings == []
        assert visit.complaints == []
        assert visit.elsewhere == []


@pytest.mark.slow
def test_the_scan_finds_what_is_wrong(browser: Browser, portal: Portal, axe: str) -> None:
    with Visit(browser, portal) as visit:
        visit.open()
        visit.heading("Log in to the pool")
        visit.page.evaluate(
            "document.querySelector('.login-hint').style.color = '#ddd';"
            "document.querySelector('label[for=user]').remove();"
        )
        found = {finding.split()[0] for finding in scan(visit.page, axe)}
        assert {"color-contrast", "label"} <= found


@pytest.mark.slow
def test_long_names_and_markup_in_names_do_no_harm(browser: Browser, portal: Portal, screenshots: Path) -> None:
    name = "<img src=x onerror=alert(1)>" + "long" * 50
    for width in (1280, 360):
        with Visit(browser, portal, width=width) as visit:
            visit.log_in(portal.operator, "limits")
            page = visit.page
            page.get_by_role("button", name="Add limits").click()
            page.get_by_role("dialog").get_by_label("Group").fill(name)
            page.get_by_role("dialog").get_by_role("button", name="Set the limits").click()
            expect(page.get_by_role("rowheader").filter(has_text=name)).to_be_visible()
            for route in ("limits", "events", "audit", ""):
                visit.open(route)
                visit.settled()
                expect(page.get_by_text(name).first).to_be_visible()
                assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (route, width)
                page.screenshot(path=screenshots / f"long-{route or 'overview'}-{width}.png")
            assert visit.complaints == []


@pytest.mark.slow
def test_an_empty_pool_has_something_to_say(browser: Browser, screenshots: Path) -> None:
    with Portal("--empty") as portal, Visit(browser, portal) as visit:
        visit.log_in(portal.operator)
        for route, text in [
            ("", "Nothing has been recorded yet"),
            ("nodes", "No node has registered yet"),
            ("gpus", "No node has registered a GPU yet"),
            ("groups", "Nothing is given out"),
            ("tasks", "No task runs"),
            ("queue", "Nobody waits"),
            ("limits", "No group is limited"),
        ]:
            visit.open(route)
            expect(visit.page.get_by_text(text)).to_be_visible()
        visit.open("")
        visit.settled()
        visit.page.screenshot(path=screenshots / "empty-1280-light.png")
        assert visit.complaints == []


def test_theme_is_chosen_and_kept(browser: Browser, portal: Portal) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    with Visit(browser, portal, scheme="light") as visit:
        visit.log_in(portal.operator)
        page = visit.page
        light = page.evaluate(background)
        page.get_by_role("radio", name="Dark").check(force=True)
        dark = page.evaluate(background)
        assert dark != light
        page.reload()
        visit.heading("Overview")
        assert page.evaluate(background) == dark
        page.get_by_role("radio", name="As the system").check(force=True)
        assert page.evaluate(background) == light
        page.emulate_media(color_scheme="dark")
        assert page.evaluate(background) == dark


def test_plots_can_be_read_without_being_seen(browser: Browser, portal: Portal) -> None:
    with Visit(browser, portal) as visit:
        visit.log_in(portal.operator)
        page = visit.page
        plot = page.get_by_role("img", name="Memory, the last hour.")
        expect(plot).to_have_accessible_name(re.compile(r"Given: now .*, mean .*, highest .*\. Used: now .*"))
        figure = page.get_by_role("figure").filter(has=plot)
        figure.get_by_text("As a table").click()
        table = figure.get_by_role("table", name="Memory, the last hour")
        expect(table.get_by_role("columnheader")).to_have_text(["Time", "Given", "Used"])
        assert table.get_by_role("row").count() > 10


@pytest.mark.slow
def test_first_page_with_8000_gpus(browser: Browser, screenshots: Path) -> None:
    """Prints how long it takes; what is asserted is that all of it is there and that no page asks for all of it."""
    with Portal("--nodes", "1000") as portal, Visit(browser, portal) as visit:
        visit.log_in(portal.operator)
        page = visit.page
        sizes: list[int] = []
        page.on("response", lambda answer: sizes.append(len(answer.body())) if "/api/" in answer.url else None)
        for route, ready in [("", ".tiles"), ("gpus", "tbody tr"), ("nodes", "tbody tr"), ("groups", "tbody tr")]:
            page.goto("about:blank")
            began = time.monotonic()
            visit.open(route)
            page.locator(ready).first.wait_for()
            shown = time.monotonic() - began
            visit.settled()
            print(
                f"8,000 GPUs, /{route}: numbers after {shown:.2f} s, everything after {time.monotonic() - began:.2f} s"
            )
        visit.open("gpus")
        expect(page.locator(".pager")).to_contain_text("1–25 of 8,000")
        page.get_by_role("searchbox", name="Search GPUs").fill("gpu-0999")
        expect(page.get_by_role("rowheader")).to_have_count(8)
        page.screenshot(path=screenshots / "gpus-of-8000.png")
        assert max(sizes) < 300_000
