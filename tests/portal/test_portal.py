"""The portal in a real browser: what an operator does in it. Quick; the pages' looks are in test_pages.py."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.portal.portals import TIMEOUT_MS, Portal, Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
from playwright.sync_api import expect

expect.set_options(timeout=TIMEOUT_MS)


def tab_to(visit: Visit, target: Locator, key: str = "Tab", most: int = 80) -> None:
    """Goes to `target` with the keyboard alone."""
    for _ in range(most):
        if target.evaluate("element => element === document.activeElement"):
            return
        visit.page.keyboard.press(key)
    raise AssertionError(f"{target} is not reached with {key}")


def test_log_in_wrong_password_log_out(browser: Browser, portal: Portal) -> None:
    with Visit(browser, portal) as visit:
        page = visit.page
        # A deep link goes on to where it led once somebody has logged in.
        visit.open("nodes/gpu-02")
        expect(page.get_by_label("User")).to_be_focused()
        page.keyboard.type(portal.operator[0])
        page.keyboard.press("Tab")
        page.keyboard.type("not the password")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("User or password is wrong.")
        expect(page.get_by_label("Password", exact=True)).to_be_focused()
        page.keyboard.type(portal.operator[1])
        page.keyboard.press("Enter")
        visit.heading("gpu-02")
        cookie = visit.context.cookies()[0]
        assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"
        assert page.evaluate("document.cookie") == ""
        assert page.evaluate("JSON.stringify([localStorage, sessionStorage])") == "[{},{}]"
        page.get_by_role("button", name="Log out").click()
        visit.heading("Log in to the pool")
        expect(page.get_by_role("status").first).to_contain_text("You have logged out.")
        page.reload()
        visit.heading("Log in to the pool")
        assert visit.elsewhere == []


def test_ratio_is_changed_with_the_keyboard_alone(browser: Browser, portal: Portal) -> None:
    with Visit(browser, portal) as visit:
        visit.log_in(portal.operator, "groups?q=lab-1")
        page = visit.page
        row = page.get_by_role("row").filter(has=page.get_by_role("link", name="lab-1", exact=True))
        change = row.get_by_role("button", name="Change lab-1")
        change.wait_for()
        page.keyboard.press("Tab")
        tab_to(visit, change)
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name="Change lab-1")
        dialog.wait_for()
        # The focus stays in the dialog, whichever way it goes round.
        for key in ["Tab"] * 14 + ["Shift+Tab"] * 4:
            page.keyboard.press(key)
            assert page.evaluate(
                "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
            )
        ratio = dialog.get_by_label("Ratio: share of a GPU's time")
        tab_to(visit, ratio)
        page.keyboard.press("Control+a")
        page.keyboard.type("7")
        page.keyboard.press("Enter")
        review = page.get_by_role("dialog", name="Change lab-1 now?")
        expect(review).to_contain_text("7\u00a0%")
        expect(review.get_by_role("button", name="Change now")).to_be_focused()
        page.keyboard.press("Enter")
        review.wait_for(state="detached")
        expect(page.get_by_role("status", name="Results")).to_contain_text("lab-1 has changed: ratio 7\u00a0%")
        expect(row).to_contain_text("of 7\u00a0%")
        expect(change).to_be_focused()
        visit.open("audit")
        expect(page.get_by_role("row").filter(has_text="group.resized")).to_contain_text("admin")
        assert visit.complaints == []


def test_quota_below_use_is_refused_and_can_be_set_to_fall(browser: Browser, portal: Portal) -> None:
    with Visit(browser, portal) as visit:
        visit.log_in(portal.operator, "groups")
        page = visit.page
        page.get_by_role("button", name="Change batch-1").click()
        dialog = page.get_by_role("dialog")
        expect(dialog.get_by_role("group", name="If a program uses more than that")).to_have_count(0)
        dialog.get_by_label("Memory of each vGPU").fill("100")
        dialog.get_by_role("button", name="Review the change").click()
        dialog.get_by_role("button", name="Change now").click()
        expect(dialog.get_by_role("alert")).to_contain_text("which is more than 100")
        # The browser tells of the answer 409; the portal has no complaint of its own.
        visit.complaints = [text for text in visit.complaints if "409" not in text]
        dialog.get_by_role("button", name="Back").click()
        dialog.get_by_label("Set it, and let usage fall").check()
        dialog.get_by_role("button", name="Review the change").click()
        expect(dialog).to_contain_text("its new allocations fail until it uses less")
        dialog.get_by_role("button", name="Change now").click()
        dialog.wait_for(state="detached")
        row = page.get_by_role("row").filter(has=page.get_by_role("link", name="batch-1", exact=True))
        expect(row).to_contain_text("of 200\u00a0MiB")
        # Esc leaves everything as it is.
        page.get_by_role("button", name="Change batch-1").click()
        dialog.get_by_label("Memory of each vGPU").fill("5000")
        page.keyboard.press("Escape")
        dialog.wait_for(state="detached")
        expect(row).to_contain_text("of 200\u00a0MiB")
        assert visit.complaints == []


def test_node_is_drained_and_undrained(browser: Browser, portal: Portal) -> None:
    with Visit(browser, portal) as visit:
        visit.log_in(portal.operator, "nodes")
        page = visit.page
        row = page.get_by_role("row").filter(has=page.get_by_role("link", name="gpu-01", exact=True))
        row.get_by_role("button", name="Drain gpu-01").click()
        dialog = page.get_by_role("dialog", name="Drain gpu-01?")
        expect(dialog).to_contain_text("gets no new vGPUs")
        expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
        dialog.get_by_role("button", name="Drain", exact=True).click()
        expect(row).to_contain_text("Draining")
        row.get_by_role("link", name="gpu-01", exact=True).click()
        visit.heading("gpu-01")
        expect(page.get_by_role("heading", level=1)).to_be_focused()
        page.get_by_role("button", name="Undrain gpu-01").click()
        page.get_by_role("dialog").get_by_role("button", name="Undrain").click()
        expect(page.locator(".heading")).to_contain_text("Ready")
        assert visit.complaints == []


def test_task_and_group_are_ended(browser: Browser, portal: Portal) -> None:
    with Visit(browser, portal) as visit:
        visit.log_in(portal.operator, "tasks")
        page = visit.page
        first = page.get_by_role("rowheader").first
        name = re.search(r"process \d+", first.inner_text())
        assert name is not None
        row = page.get_by_role("row").filter(has_text=name.group())
        row.get_by_role("button", name=re.compile("^End ")).click()
        page.get_by_role("dialog").get_by_role("button", name="End the task").click()
        row.wait_for(state="detached")
        # The button that had the focus is gone; the focus is not lost.
        expect(page.get_by_role("heading", level=1)).to_be_focused()
        visit.open("groups?q=render-1")
        page.get_by_role("button", name="End render-1").click()
        page.get_by_role("dialog").get_by_role("button", name="End the group").click()
        expect(page.get_by_text("Nothing matches.")).to_be_visible()
        assert visit.complaints == []


@pytest.mark.slow
def test_limits_are_set_and_removed(browser: Browser, portal: Portal) -> None:
    with Visit(browser, portal) as visit:
        visit.log_in(portal.operator, "limits")
        page = visit.page
        page.get_by_role("button", name="Add limits").click()
        dialog = page.get_by_role("dialog", name="Add limits")
        dialog.get_by_label("Group").fill("team/a b")
        dialog.get_by_label("vGPUs", exact=True).fill("0")
        dialog.get_by_label("Memory, over all vGPUs").fill("4096")
        dialog.get_by_role("button", name="Set the limits").click()
        row = page.get_by_role("row").filter(has_text="team/a b")
        expect(row).to_contain_text("4\u00a0GiB")
        expect(row.get_by_role("cell").first).to_have_text(re.compile("0$"))
        expect(row).to_contain_text("no limit")
        row.get_by_role("button", name="Remove the limits of team/a b").click()
        page.get_by_role("dialog").get_by_role("button", name="Remove").click()
        row.wait_for(state="detached")
        assert visit.complaints == []


def test_viewer_sees_everything_and_no_buttons_that_change(browser: Browser, portal: Portal) -> None:
    changing = re.compile("^(Change|End|Drain|Undrain|Remove|Add) ?")
    with Visit(browser, portal) as operator, Visit(browser, portal) as viewer:
        operator.log_in(portal.operator)
        viewer.log_in(portal.viewer)
        for route in ("nodes", "nodes/gpu-01", "groups", "tasks", "limits"):
            for visit in (operator, viewer):
                visit.open(route)
                visit.settled()
                visit.page.locator("tbody tr").first.wait_for()
            expect(operator.page.get_by_role("button", name=changing).first).to_be_visible()
            assert viewer.page.get_by_role("button", name=changing).count() == 0, route
        # The server does not rely on that.
        status = viewer.page.evaluate(
            "fetch('api/v1/nodes/gpu-01', {method: 'PATCH', body: '{\"draining\": true}'}).then((got) => got.status)"
        )
        assert status == 403


@pytest.mark.slow
def test_back_forward_and_links_keep_search_sort_and_page(browser: Browser, portal: Portal) -> None:
    with Visit(browser, portal) as visit:
        visit.log_in(portal.operator)
        page = visit.page
        page.get_by_role("link", name="GPUs", exact=True).first.click()
        visit.heading("GPUs")
        page.get_by_role("button", name="Next page").click()
        expect(page.locator(".pager")).to_contain_text("26–50 of 112")
        page.get_by_role("button", name="Utilisation").click()
        expect(page.locator(".pager")).to_contain_text("1–25 of 112")
        expect(page.get_by_role("columnheader", name="Utilisation")).to_have_attribute(
            "aria-sort", re.compile("ascending|descending")
        )
        page.get_by_role("rowheader").first.get_by_role("link").click()
        visit.heading("GPU ")
        page.go_back()
        visit.heading("GPUs")
        assert "sort=" in page.url
        page.go_back()
        expect(page.locator(".pager")).to_contain_text("26–50 of 112")
        page.go_back()
        page.go_back()
        visit.heading("Overview")
        page.go_forward()
        visit.heading("GPUs")
        page.get_by_role("searchbox", name="Search GPUs").fill("gpu-07/")
        expect(page.get_by_text("Nothing matches.")).to_be_visible()
        page.get_by_role("searchbox", name="Search GPUs").fill("gpu-07")
        expect(page.get_by_role("rowheader")).to_have_count(8)
        link = page.url
        visit.open("nowhere/at/all")
        visit.heading("There is no such page")
        page.goto(link)
        page.reload()
        expect(page.get_by_role("rowheader")).to_have_count(8)
        expect(page.get_by_role("searchbox", name="Search GPUs")).to_have_value("gpu-07")
        visit.open("nodes/nobody")
        expect(page.get_by_role("alert").filter(has_text="There is no node nobody.")).to_be_visible()


def test_lost_connection_is_told_and_recovered_from(browser: Browser, portal: Portal) -> None:
    with Visit(browser, portal) as visit:
        visit.log_in(portal.operator, "nodes")
        page = visit.page
        page.locator("tbody tr").first.wait_for()
        portal.stop()
        note = page.get_by_role("alert").filter(has_text="Not connected since")
        expect(note).to_be_visible()
        # What was known stays to be seen, and a change says why it is not made.
        expect(page.locator("tbody tr")).to_have_count(14)
        page.get_by_role("button", name="Drain gpu-01").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("button", name="Drain", exact=True).click()
        expect(dialog.get_by_role("alert")).to_contain_text("The controller does not answer.")
        page.keyboard.press("Escape")
        portal.start()
        page.get_by_role("button", name="Try now").click()
        expect(note).to_have_count(0)
        expect(page.get_by_role("status", name="Results")).to_contain_text("Connected again.")
        page.get_by_role("button", name="Drain gpu-01").click()
        dialog.get_by_role("button", name="Drain", exact=True).click()
        expect(page.get_by_role("row").filter(has_text="gpu-01")).to_contain_text("Draining")


@pytest.mark.slow
def test_connection_comes_back_without_anybody_doing_anything(browser: Browser, portal: Portal) -> None:
    with Visit(browser, portal) as visit:
        visit.log_in(portal.operator)
        portal.stop()
        note = visit.page.get_by_role("alert").filter(has_text="Not connected since")
        expect(note).to_be_visible()
        portal.start()
        expect(note).to_have_count(0)


@pytest.mark.slow
def test_nothing_is_asked_while_the_tab_is_hidden(browser: Browser, portal: Portal) -> None:
    with Visit(browser, portal) as visit:
        visit.log_in(portal.operator)
        page = visit.page
        visit.settled()
        with page.expect_request("**/api/v1/summary"):
            pass
        page.evaluate(
            "Object.defineProperty(document, 'hidden', {configurable: true, get: () => true});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
        page.wait_for_load_state("networkidle")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(5000)
        assert asked == []
        with page.expect_request("**/api/v1/summary"):
            page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")


@pytest.mark.slow
def test_expired_log_in_leads_to_the_log_in_page_and_back(browser: Browser, portal: Portal) -> None:
    with Visit(browser, portal) as visit:
        visit.log_in(portal.operator, "queue")
        visit.heading("Queue")
        visit.context.clear_cookies()
        visit.heading("Log in to the pool")
        expect(visit.page.get_by_role("status").first).to_contain_text("expired")
        visit.page.get_by_label("User").fill(portal.viewer[0])
        visit.page.get_by_label("Password", exact=True).fill(portal.viewer[1])
        visit.page.get_by_role("button", name="Log in").click()
        visit.heading("Queue")
