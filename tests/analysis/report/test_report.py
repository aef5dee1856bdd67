"""The report as a reader gets it: one file, opened offline in a real browser."""

import json
import re
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
from browser_pages import open_page, undrawn
from pypdf import PdfReader
from synthetic import plant

from analysis.report.page import write_report
from analysis.report.template import PLOTLY
from analysis.study.settings import SETTING, best_setting, pareto_front
from tarflow import record


@pytest.fixture(scope="module")
def study(searched):
    return searched


@pytest.fixture(scope="module")
def page(browser, study):
    """One page for the tests below; whatever they do, it neither complains nor calls out."""
    opened = open_page(browser, study / "report.html")
    yield opened
    assert not opened.complaints
    assert not opened.outside
    opened.close()


def test_every_figure_is_drawn(page):
    for tab in page.locator(".tabs button").all():
        tab.click()
    titles = page.locator("section h3").all_text_contents()
    assert page.locator("figure:has(.plot)").count() >= 18, titles
    assert undrawn(page) == []
    assert page.locator(".empty").count() == 0


def test_axes_fit_their_margins_so_that_the_first_figure_is_drawn_once(page):
    again = "plot => plot._fullLayout._redrawFromAutoMarginCount"
    assert page.locator("#law .plot").evaluate(again) is None


def test_forecasts_stand_beside_what_came_out(page):
    section = page.locator("#forecasts")
    words = section.inner_text()
    assert "The one forecast whose run has ended came out inside its 90% interval." in words
    assert "1 of 1 forecasts in" in words
    cells = section.locator("table").first.locator("tbody td").all_text_contents()
    assert cells[0] == "80 channels · 4x2 · 2.4e13 FLOPs"
    assert cells[1:5] == ["1.520", "1.500 to 1.540", "1.530 ± 0.010", "inside, 0.65% too low"]
    assert cells[5] == "1.560 ± 0.010, expected 1.550"


def test_samples_are_embedded_pictures(page):
    pictures = page.locator("#samples .gallery img")
    assert pictures.count() == 6  # one per size of the grid
    assert pictures.evaluate_all("all => all.every(one => one.naturalWidth >= 100)")


def test_run_table_sorts_and_filters(page):
    def column(number):
        return page.locator(f"#run-table tbody td:nth-child({number})").all_text_contents()

    bpd = 9
    page.locator("#run-table th button", has_text="BPD").click()
    values = [float(text) for text in column(bpd) if text != "–"]
    assert len(values) > 20
    assert values == sorted(values)
    assert column(bpd)[-1] == "–"  # the failed run has none and comes last
    page.locator("#run-table th button", has_text="BPD").click()
    assert [float(text) for text in column(bpd) if text != "–"] == values[::-1]
    page.locator("#filter").fill("failed")
    rows = page.locator("#run-table tbody tr:visible")
    assert rows.count() == 1
    assert "not finite in block 3" in rows.inner_text()


def test_csv_holds_what_is_drawn(page, study, tmp_path):
    with page.expect_download() as download:
        page.locator("#law a[download]").click()
    assert download.value.suggested_filename == "digits-law-law.csv"
    path = tmp_path / "law.csv"
    download.value.save_as(path)
    drawn = pd.read_csv(path)
    assert list(drawn)[:4] == ["series", "run_id", "training FLOPs", "bits per dimension"]
    assert (
        drawn["run_id"].nunique() == 22
    )  # 18 of the grid, two more seeds, the larger one, a final one
    runs = pd.read_parquet(study / "runs.parquet").set_index("run_id")
    points = drawn[drawn["series"].str.endswith("params")].set_index("run_id")
    assert len(points) == 21
    assert points["bits per dimension"].to_dict() == pytest.approx(
        runs.loc[points.index, "bpd"].to_dict(), rel=1e-6
    )


def test_hover_names_the_run(page):
    page.locator("#law").scroll_into_view_if_needed()
    point = page.locator("#law .scatterlayer .trace .points path").first.bounding_box()
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    text = page.locator("#law .hoverlayer").text_content()
    assert re.search(r"\d+ channels · 4x2 · 1.5e11 FLOPs", text), text


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_no_sideways_scrolling(browser, study, width, scheme):
    page = open_page(browser, study / "report.html", width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not page.complaints + page.outside
    page.close()


def test_first_screen_answers_in_words(page):
    words = page.locator(".lede").inner_text()
    assert re.match(
        r"\w+ times the compute should take you from \d\.\d{3} to \d\.\d{3} bits per dimension "
        r"\(\d\.\d{3} to \d\.\d{3}; lower is better\): \d+ channels, [\d,]+ images, "
        r"about [\d.]+ (s|min) on the study's machine\.",
        words,
    )
    claims = page.locator(".claim").all_text_contents()
    assert claims[0].startswith("Fitted to runs with a quarter of its compute or less, the law ")
    top = page.locator(".lede, .claim, .best, #law svg.main-svg").evaluate_all(
        "all => Math.max(...all.map(one => one.getBoundingClientRect().top + window.scrollY))"
    )
    assert top < 900  # all of it on the first screen


def test_figures_are_saved_in_every_format(page, tmp_path):
    def saved(format):
        with page.expect_download() as download:
            page.locator(f"#law .save[data-format={format}]").click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        return path.read_bytes()

    assert saved("png").startswith(b"\x89PNG")
    assert saved("svg").startswith(b"<svg")
    fragment = saved("html").decode()
    assert fragment.startswith('<div id="digits-law-law" style="height: 500px"></div>')
    pasted = page.context.browser.new_page()
    pasted.set_content(f"<script>{PLOTLY.read_text()}</script>{fragment}")
    assert pasted.locator("svg.main-svg .trace").count() >= 6
    assert "#010101" not in fragment  # colours are those of the page
    pasted.close()


def test_laws_are_saved_as_json(page, tmp_path):
    with page.expect_download() as download:
        page.locator("#symbols > p a[download]").click()
    path = tmp_path / "laws.json"
    download.value.save_as(path)
    laws = json.loads(path.read_text())
    names = [fit["name"] for fit in laws["law_of_size_and_data"]["fits"]]
    assert "chinchilla" in names
    assert laws["best_sizes"][0]["bpd"] > 0


def test_page_prints_without_holes(page):
    """The first page holds answer and law; no page is nearly empty."""
    page.emulate_media(media="print")
    sheets = PdfReader(BytesIO(page.pdf(format="A4")))
    texts = [sheet.extract_text() for sheet in sheets.pages]
    assert "times the compute" in texts[0]
    assert "bits per dimension" in texts[0]
    assert len(texts) < 25
    page.emulate_media(media="screen")


def test_page_holds_no_path_of_the_machine(study):
    text = (study / "report.html").read_text()
    assert str(study.parent) not in text
    assert str(Path.home()) + "/" not in text


def test_page_is_self_contained(study):
    text = (study / "report.html").read_text()
    assert len(re.findall(r"plotly\.js \(basic - minified\) v\d", text)) == 1
    assert not re.findall(r"<(?:script|img|iframe)[^>]+src=\"?https?:", text)
    assert not re.findall(r"<link[^>]+href=\"?https?:", text)
    assert len(text) < 5e6


def test_bits_of_latents_are_never_named_like_those_of_pixels(tmp_path):
    folder = plant(tmp_path / "latents", search=3)
    (folder / "forecasts.parquet").unlink()  # it keeps its words
    for path in folder.glob("runs/*/result.json"):
        stored = json.loads(path.read_text())
        stored["run"]["bpd_kind"] = "latent"
        record.write_json(path, stored)
    text = write_report(folder).read_text()
    assert len(re.findall("its per latent dimension", text)) > 20
    assert not re.search("its per dimension", text)
    assert re.search("latent BPD", text)
    assert not re.search(r"(?<!latent )\bBPD\b(?! bound on)", text)  # in the words of a config


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_too_few_runs_still_give_a_page(browser, tmp_path, finished):
    page = open_page(browser, write_report(plant(tmp_path / "study", limit=finished)))
    assert "Too few runs for a law" in page.locator(".lede").inner_text()
    assert page.locator("#run-table tbody tr").count() == finished
    assert page.locator("#law .plot").count() == min(finished, 1)
    assert page.locator("#budget, #slider").count() == 0
    assert not page.complaints + page.outside
    assert "sweeps/search.py" in page.locator("#search").inner_text()
    page.close()


def test_best_setting_is_scored_on_draws_it_was_not_chosen_by():
    rows = [(0.0, "chosen", 0.3), (0.0, "scored", 0.1), (2.0, "chosen", 0.1), (2.0, "scored", 0.2)]
    scored = pd.DataFrame(rows, columns=["guidance", "half", "kid"]).assign(run_id="a", bpd=1.0)
    for name in set(SETTING) - {"guidance"}:
        scored[name] = "same"
    best = best_setting(scored)
    assert best[["guidance", "half", "kid"]].to_numpy().tolist() == [[2.0, "scored", 0.2]]


def test_pareto_front_holds_what_nothing_beats():
    scored = pd.DataFrame({"bpd": [1.0, 2.0, 3.0, 3.0], "kid": [5.0, 6.0, 4.0, 3.0]})
    assert pareto_front(scored).index.tolist() == [0, 3]


def test_newer_results_are_read(tmp_path):
    folder = plant(tmp_path, limit=1)
    (folder / "runs.parquet").unlink()
    text = write_report(folder).read_text()
    assert "1 of 1 run finished" in text
