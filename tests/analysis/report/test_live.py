"""The page of a study that is going on, in a browser whose clock the tests move."""

import json
import time

import pytest
from synthetic import plant

from analysis.report.page import write_report


@pytest.fixture
def study(tmp_path):
    folder = plant(tmp_path / "study", limit=4)
    (folder / "progress.json").write_text(json.dumps({"counts": "4 of 20 done · 2 running"}))
    write_report(folder, live=True)
    return folder


@pytest.fixture
def page(browser, study):
    opened = browser.new_page(viewport={"width": 1280, "height": 700})
    opened.complaints = []
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.clock.install(time=time.time())
    opened.goto((study / "report.html").as_uri() + "#runs&run=ab12")
    opened.wait_for_selector("html[data-drawn]")
    yield opened
    assert not opened.complaints
    opened.close()


def later(page, seconds):
    """Move the clock; tell whether the page has reloaded itself."""
    page.evaluate("window.old = true")
    page.clock.fast_forward(1000 * seconds)
    page.clock.run_for(1500)
    page.wait_for_timeout(300)
    page.wait_for_selector("html[data-drawn]")
    return not page.evaluate("window.old === true")


def rows(page):
    return page.locator("#run-table tbody tr").count()


def test_a_live_page_shows_new_runs_where_the_reader_was_until_the_study_ends(page, study):
    assert (
        "4 of 20 done · 2 running; this page reloads itself" in page.locator("#live").inner_text()
    )
    page.evaluate("scrollTo(0, 800)")
    plant(study, limit=7)
    write_report(study, live=True)
    assert rows(page) == 4
    assert later(page, 20)
    assert rows(page) == 7
    assert page.evaluate("location.hash") == "#runs&run=ab12"
    assert page.evaluate("scrollY") == 800
    plant(study, limit=8)
    write_report(study)
    assert later(page, 20)
    assert rows(page) == 8
    assert page.locator("#live").count() == 0
    assert page.evaluate("scrollY") == 800
    assert not later(page, 60)


def test_a_live_page_waits_for_its_reader(page):
    page.locator("#filter").focus()
    assert not later(page, 60)
    page.locator("#filter").blur()
    page.evaluate("getSelection().selectAllChildren(document.querySelector('h1'))")
    assert not later(page, 60)
    page.evaluate("getSelection().removeAllRanges()")
    page.locator("#live button", has_text="Pause").click()
    assert not later(page, 60)
    assert "paused" in page.locator("#live").inner_text()
    page.locator("#live button", has_text="Resume").click()
    assert later(page, 20)


def test_a_live_page_that_nobody_renews_stops_reloading_and_says_so(page):
    later(page, 3700)
    assert "the study may have stopped" in page.locator("#live").inner_text()
    assert not later(page, 60)
