"""One run, chosen anywhere, is shown everywhere: figures, table, panel and address."""

import base64
import io
import json
import re

import pandas as pd
import pytest
import torch
from browser_pages import open_page
from PIL import Image

from analysis.report.run_data import first_samples
from analysis.report.sections.samples import same_noise
from tarflow.sample.grid import image_grid, save_grid


@pytest.fixture(scope="module")
def study(searched):
    return searched


@pytest.fixture(scope="module")
def runs(study):
    return pd.read_parquet(study / "runs.parquet").sort_values("flops").set_index("run_id")


@pytest.fixture(scope="module")
def opened(browser, study):
    page = open_page(browser, study / "report.html")
    yield page
    assert not page.complaints + page.outside
    page.close()


@pytest.fixture
def page(opened):
    """The page of all tests, with nothing chosen and no filter."""
    yield opened
    opened.evaluate("chooseRun(null); document.getElementById('filters').reset()")
    opened.mouse.move(0, 0)


def middle(locator):
    locator.scroll_into_view_if_needed()
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def first_point(page):
    return page.locator("#law .scatterlayer .trace .points path").first


def chosen(page):
    """Return the run that the table marks; figures, panel and address must agree with it."""
    [run] = page.locator("#run-table tr[aria-selected=true]").evaluate_all(
        "rows => rows.map(row => row.dataset.run)"
    )
    assert page.locator("#run-panel code").inner_text() == run
    assert f"run={run}" in page.url
    return run


def test_a_run_chosen_in_a_figure_is_shown_everywhere(page, runs):
    page.mouse.click(*middle(first_point(page)))
    run = chosen(page)
    assert page.locator("#law .marks circle.chosen").count() >= 1
    assert page.locator("#curves-1 .marks path.chosen").count() == 1
    assert page.locator("#cost .marks circle.chosen").count() == 2  # training and evaluation
    panel = page.locator("#run-panel")
    assert f"{runs.loc[run, 'bpd']:.3f} ± " in panel.inner_text()
    assert f"{runs.loc[run, 'channels']} channels" in panel.inner_text()
    assert panel.locator("img").evaluate("image => image.naturalWidth") == 242
    assert page.locator("#run-panel .curve path").get_attribute("d").count("L") > 20
    top = page.evaluate("scrollY")
    page.keyboard.press("ArrowRight")
    assert chosen(page) != run
    assert page.evaluate("scrollY") == top
    page.keyboard.press("Escape")
    assert not panel.is_visible()
    assert "run=" not in page.url
    assert page.locator(".marks .chosen").count() == 0


def test_a_run_under_the_pointer_lights_up_while_it_is_there(page):
    page.mouse.move(*middle(first_point(page)))
    page.wait_for_selector("#law .marks .pointed")
    assert page.locator("#run-panel.preview").is_visible()
    assert page.locator("#run-table tr.pointed").count() == 1
    page.mouse.move(2, 2)
    page.wait_for_selector("#law .marks .pointed", state="detached")
    assert not page.locator("#run-panel").is_visible()


def test_the_address_restores_choice_and_filters(browser, study, runs):
    run = runs.index[3]
    fragment = f"#law&run={run}&show-status=failed"
    page = open_page(browser, study / "report.html", fragment=fragment)
    assert chosen(page) == run
    assert page.locator("#run-table tbody tr:visible").count() == 1
    assert page.locator("#filtered").inner_text().startswith("Filtered: 1 of ")
    page.emulate_media(color_scheme="dark")  # figures are drawn again
    page.wait_for_timeout(300)
    assert page.locator("#law .marks circle.chosen").count() >= 1
    page.close()


def test_keyboard_alone_walks_through_the_table(page):
    page.locator("#run-table th button").last.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    first = chosen(page)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    third = chosen(page)
    rows = page.locator("#run-table tbody tr").evaluate_all(
        "all => all.map(row => row.dataset.run)"
    )
    assert [first, third] == [rows[0], rows[2]]
    assert page.evaluate("document.activeElement.dataset.run") == third
    page.keyboard.press("Escape")
    assert not page.locator("#run-panel").is_visible()


def test_arrow_keys_change_tabs(page):
    page.locator("#curves [role=tab]").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#curves [role=tab]").nth(1).get_attribute("aria-selected") == "true"
    assert page.get_by_role("tabpanel").get_attribute("id") == "curves-2"
    page.keyboard.press("ArrowRight")  # from the last to the first
    assert page.get_by_role("tabpanel").get_attribute("id") == "curves-1"
    assert page.evaluate("document.activeElement.tabIndex") == 0


def test_filters_fade_points_and_hide_rows(page, runs):
    page.select_option("[name=show-size]", index=2)
    kept = page.locator("#run-table tbody tr:visible").evaluate_all(
        "rows => rows.map(row => row.dataset.run)"
    )
    assert 0 < len(kept) < len(runs)
    assert runs.loc[kept, "params"].nunique() == 1
    assert page.locator("#shown").inner_text() == f"{len(kept)} of {len(runs)} runs"
    page.wait_for_selector("#cost .plot[data-faded='yes']")
    assert opacities(page).count("1") == 2 * (runs.loc[kept, "status"] == "done").sum()
    page.locator("#filters [type=reset]").click()
    page.wait_for_selector("#filtered", state="hidden")
    assert page.locator("#run-table tbody tr:visible").count() == len(runs)
    assert "show-size" not in page.url
    page.wait_for_selector("#cost .plot[data-faded='']")
    assert set(opacities(page)) == {"1"}


def test_tags_filter_and_a_pinned_run_is_marked_everywhere(page, runs):
    tagged = runs[runs["tags"].fillna("") != ""]
    for tag, count in (("new", 2), ("wide", 1)):
        page.select_option("[name=show-tag]", tag)
        assert page.locator("#run-table tbody tr:visible").count() == count
    [pinned] = tagged.index[tagged["tags"] == "new, wide"]
    row = page.locator("#run-table tbody tr:visible")
    assert row.get_attribute("data-run") == pinned
    assert row.locator("td").first.inner_text().endswith(" · pinned")
    row.click()
    assert page.locator("#run-panel h2").inner_text().endswith(" · pinned")
    assert "new, wide" in page.locator("#run-panel dl").inner_text()


def opacities(page):
    return page.locator("#cost .points path").evaluate_all(
        "points => points.map(point => getComputedStyle(point).opacity)"
    )


def test_ids_are_still_found(page, runs):
    page.locator("#filter").fill(runs.index[5])
    assert page.locator("#run-table tbody tr:visible").count() == 1


def test_hostile_labels_stay_text(page, runs, hostile):
    run = runs.index[runs["label"] == hostile][0]
    page.locator(f"#run-table tr[data-run='{run}']").click()
    assert page.locator("#run-panel .note").inner_text() == hostile
    assert page.locator("#injected").count() == 0


def test_the_strip_cuts_the_same_noise_from_every_run(page, study):
    strips = page.locator("#samples .strips img")
    assert 6 <= strips.count() <= 12
    assert "the same noise" in page.locator("#samples .aid").inner_text()
    sizes = strips.evaluate_all("all => all.map(one => [one.naturalWidth, one.naturalHeight])")
    assert sizes == [[242, 32]] * strips.count()
    first = strips.first
    sheet = Image.open(study / "runs" / first.get_attribute("data-run") / "samples.png")
    assert sheet.size == (726, 726)
    sheet = sheet.reduce(3)
    data = base64.b64decode(first.get_attribute("src").split(",")[1])
    assert Image.open(io.BytesIO(data)).tobytes() == sheet.crop((0, 0, 242, 32)).tobytes()


def test_a_strip_has_the_first_image_of_every_class(tmp_path):
    """Images are numbered by grey level: those of class 0 are 0 and 1, of class 1 are 2 and 3."""
    size = {"image_size": 2, "patch": 1}
    run = {"run_id": "one", "config": json.dumps({"model": size})}
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 1, 2, 2)
    path = tmp_path / "runs" / "one" / "samples.png"
    save_grid(path, image_grid(images, torch.tensor([0, 0, 1, 1])), {})
    strip = Image.open(io.BytesIO(base64.b64decode(first_samples(tmp_path, run).split(",")[1])))
    assert strip.size == (10, 6)
    assert [strip.getpixel(at) for at in ((2, 2), (6, 2), (4, 2))] == [0, 2, 255]


def test_other_noise_is_not_called_the_same():
    rows = {"data_hash": "a", "patch": 4, "classes": 0, "seed_sampling": 0, "lost": 0}
    scored = pd.DataFrame([{"run_id": run, "redrawn": 0, **rows} for run in "ab"])
    assert same_noise(scored, "ab")
    assert not same_noise(scored.assign(patch=[4, 2]), "ab")
    assert not same_noise(scored.assign(redrawn=[0, 1]), "ab")
    assert not same_noise(scored, "abc")


def test_a_tap_chooses(browser, study):
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    page = context.new_page()
    page.goto((study / "report.html").as_uri())
    page.wait_for_selector("html[data-drawn]")
    page.touchscreen.tap(*middle(first_point(page)))
    page.wait_for_selector("#run-panel:not(.preview)")
    assert re.fullmatch(r"[0-9a-f]{10}", chosen(page))
    box = page.locator("#run-panel").bounding_box()
    assert box["height"] <= 844 / 2
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#run-panel [data-close]").tap()
    assert not page.locator("#run-panel").is_visible()
    top = page.evaluate("scrollY")
    swipe(context.new_cdp_session(page), *middle(page.locator("#law .nsewdrag")))
    page.wait_for_function(f"scrollY > {top} + 50")  # a figure does not hold the page
    context.close()


def swipe(session, x, y):
    """Move a finger 150 pixels up."""
    for kind, places in (
        ("touchStart", [y]),
        *(("touchMove", [y - step]) for step in range(15, 165, 15)),
        ("touchEnd", []),
    ):
        points = [{"x": x, "y": at} for at in places]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
