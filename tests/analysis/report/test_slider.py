"""The budget slider in a browser: exact numbers, a config that trains, state in the address."""

from dataclasses import replace

import pytest
from browser_pages import open_page

from analysis.report.page import material_of, render
from analysis.study.advice import recommend
from tarflow.config import RunConfig
from tarflow.config_files import read_yaml
from tarflow.human import bits, count, interval, power


@pytest.fixture(scope="module")
def findings(digits_findings):
    return digits_findings


@pytest.fixture(scope="module")
def report(digits, digits_tables, findings, tmp_path_factory):
    path = tmp_path_factory.mktemp("slider") / "report.html"
    path.write_text(render(material_of(digits, *digits_tables, findings, seed=0)))
    return path


@pytest.fixture
def page(browser, report):
    opened = open_page(browser, report)
    yield opened
    assert not opened.complaints
    assert not opened.outside
    opened.close()


def shown(page, name):
    return page.locator(f'[data-show="{name}"]').inner_text()


def check(page, expected):
    item = expected.allocation
    assert shown(page, "budget") == f"{power(item.flops)} FLOPs"
    assert shown(page, "bits") == bits(item.bpd)
    assert shown(page, "band") == f"90% interval {interval(item.bpd_interval, bits)}"
    assert shown(page, "size") == f"{item.channels} channels"
    assert shown(page, "images") == count(expected.config.images)


def test_it_starts_at_the_recommended_run_and_moves_to_exact_recommendations(page, findings):
    check(page, recommend(findings))
    assert shown(page, "ratio") == "4 times the largest budget of the study"
    page.evaluate(f"location.hash = '#budget={findings.budgets[1].flops}'")
    page.wait_for_function("document.getElementById('slider-stop').value < 30")
    check(page, recommend(findings, findings.budgets[1].flops))
    marked = "document.querySelector('#budget-1 .plot').data.find(t => t.name === 'this budget')"
    assert page.evaluate(f"{marked}.x[0]") == pytest.approx(findings.budgets[1].flops)


def test_keys_move_it_and_the_address_restores_it(browser, page):
    page.locator("#slider-stop").focus()
    page.keyboard.press("End")
    assert shown(page, "ratio") == "100 times the largest budget of the study"
    assert "farther than predictions were tested" in page.locator("#slider-stop").get_attribute(
        "aria-valuetext"
    )
    assert "the interval is a guess" in shown(page, "caution")
    assert page.locator(".zones .beyond").is_visible()
    page.locator("#slider-machine").select_option("L4")
    page.locator("#slider-unit").select_option("dollars")
    assert shown(page, "budget") == shown(page, "price")
    assert shown(page, "budget").startswith("$")
    page.locator('[name="slider-size"]').nth(3).focus()
    page.keyboard.press("ArrowRight")
    assert "At 2x the best size" in shown(page, "wrong")
    texts = page.locator("#slider").inner_text()
    page.keyboard.press("Shift+Tab")
    again = browser.new_page()
    again.goto(page.url)
    again.wait_for_selector("html[data-drawn]")
    assert again.locator("#slider").inner_text() == texts
    again.close()


def test_dollars_need_a_machine_with_a_price(page):
    assert page.locator("#slider-machine").input_value() == "the study's machine"
    page.locator("#slider-unit").select_option("dollars")
    assert page.locator("#slider-machine").input_value() == "H200"
    page.locator("#slider-machine").select_option("the study's machine")
    assert page.locator("#slider-unit").input_value() == "compute"


@pytest.mark.parametrize("allowed", [True, False])
def test_the_copied_config_is_the_recommended_one(page, findings, tmp_path, allowed):
    outcome = "window.copied = text" if allowed else "throw new DOMException('not allowed')"
    page.evaluate(f"navigator.clipboard.writeText = async (text) => {{ {outcome} }}; 0")
    page.locator("#slider-stop").focus()
    page.keyboard.press("Home")
    page.locator("#slider-copy").click()
    page.wait_for_function("document.getElementById('slider-copied').textContent")
    if allowed:
        text = page.evaluate("window.copied")
        assert "Copied" in page.locator("#slider-copied").inner_text()
    else:
        assert page.locator("#slider-yaml").is_visible()
        text = page.evaluate("getSelection().toString()")
    (tmp_path / "run.yaml").write_text(text)
    expected = recommend(findings, findings.budgets[0].flops).config
    assert read_yaml(RunConfig, tmp_path / "run.yaml") == expected


def test_the_nearest_run_is_shown_with_its_samples(page, findings):
    run = findings.runs.sort_values("flops").iloc[-1]
    assert power(run["flops"]) in shown(page, "nearest")
    assert bits(run["bpd"]) in shown(page, "measured")
    page.evaluate(
        """id => {
            const picture = document.querySelector('#samples img');
            picture.dataset.run = id;
            window.chooseRun = (chosen) => { window.chosen = chosen; };
        }""",
        run["run_id"],
    )
    page.locator("#slider-stop").focus()
    page.keyboard.press("End")
    assert page.locator(".nearest img").evaluate("one => one.naturalWidth") > 0
    page.locator("#slider-run").click()
    assert page.evaluate("window.chosen") == run["run_id"]


def test_it_fits_a_phone(browser, report):
    page = open_page(browser, report, width=390)
    page.evaluate("navigator.clipboard.writeText = async () => { throw new Error('no') }; 0")
    page.locator("#slider-copy").click()
    page.locator("#slider-yaml").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_the_page_names_no_folder_of_the_machine(digits, digits_tables, findings):
    moved = findings.runs.assign(
        config=findings.runs["config"].str.replace('"digits"', '"/home/ann/photos"')
    )
    moved = replace(findings, runs=moved)
    text = render(material_of(digits, *digits_tables, moved, seed=0))
    assert "/home/ann" not in text
    assert "data.name: write the folder of the images" in text
