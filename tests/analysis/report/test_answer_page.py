"""The page about any table: the printed answer, and figures of it, in a real browser."""

import json

import numpy as np
import pandas as pd
import pytest
from browser_pages import open_page, undrawn

from analysis.__main__ import main
from analysis.report.figures.answer import losses, rows_of
from analysis.report.figures.theme import log_axis
from analysis.table.answer import ask
from analysis.table.law import Options
from analysis.table.reading import RunTable
from tarflow.human import number

E, A, B, EXPONENT = 1.7, 400.0, 1200.0, 0.35
SURFACE = ["--loss", "loss", "--params", "N", "--tokens", "D"]
CURVE = ["--loss", "error", "--x", "examples", "--form", "power"]
COMMON = ["rows", "residuals", "validation", "parameters"]
SIZES = ["rows", "slices", "sizes", *COMMON[1:]]


def surface(rows, seed=0):
    """Runs of a planted law at random sizes and lengths."""
    rng = np.random.default_rng(seed)
    size, tokens = 10 ** rng.uniform(7, 10, rows), 10 ** rng.uniform(9, 12, rows)
    noise = np.exp(0.003 * rng.standard_normal(rows))
    return pd.DataFrame(
        {"N": size, "D": tokens, "loss": (E + A / size**EXPONENT + B / tokens**EXPONENT) * noise}
    )


def curve():
    x = np.geomspace(1e4, 1e8, 20)
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(20))
    return pd.DataFrame({"examples": x, "error": (0.3 + 40 / x**0.4) * noise})


TABLES = {
    "surface": (surface(30), [*SURFACE, "--predict", "N=20B,D=2T"], SIZES),
    "curve": (curve(), [*CURVE, "--predict", "examples=1e9"], COMMON),
    "few": (surface(5, seed=2), SURFACE, SIZES),
}


def write(folder, table, *options):
    """Write the page of a table, and return its path and the exit code."""
    table.to_csv(folder / "runs.csv", index=False)
    page = folder / "page.html"
    command = ["fit", str(folder / "runs.csv"), *options, "--draws", "200"]
    return page, main([*command, "--report", str(page)])


@pytest.mark.parametrize("name", TABLES)
def test_page_shows_the_answer_and_draws_every_figure(name, browser, tmp_path, capsys):
    table, options, sections = TABLES[name]
    report, code = write(tmp_path, table, *options)
    printed = capsys.readouterr().out
    assert code == 0
    assert f"Wrote {report}: " in printed
    answer = [line for line in printed.splitlines() if line.startswith(("Prediction", "Law:"))]
    assert len(answer) == 2
    for width, scheme in ((390, "dark"), (1280, "light")):
        page = open_page(browser, report, width, scheme)
        text = page.locator("section.summary").inner_text()
        assert all(line in text for line in answer)
        shown = [one.get_attribute("id") for one in page.locator("section[id]").all()]
        assert shown == sections
        assert undrawn(page) == []
        untested = page.locator("#validation .empty").count()
        assert untested == (name == "few")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not page.complaints + page.outside
        page.close()


def test_figure_marks_wrong_rows_and_predictions():
    table = surface(30).rename(columns={"N": "params", "D": "tokens"})
    table.loc[12, "loss"] *= 1.3
    columns = {"params": "N", "tokens": "D"}
    answer = ask(
        RunTable(table, 30, 0, 0, {}), columns, ["N=20B,D=2T"], options=Options(draws=200)
    )
    traces = {one.name: one for one in losses(answer, rows_of(answer), "loss").data}
    assert traces["far from the law"].meta == ("row 12",)
    prediction, (_, value) = traces["prediction, 90% interval"], answer.predictions[0]
    assert prediction.x == pytest.approx([6 * 20e9 * 2e12])
    assert prediction.y[0] + prediction.error_y.array[0] == pytest.approx(value.high)
    achieved = E + A / table["params"] ** EXPONENT + B / table["tokens"] ** EXPONENT
    assert traces["the law at each row"].y == pytest.approx(achieved, rel=0.01)


def test_rows_without_a_law_are_shown_without_one(browser, tmp_path):
    rng = np.random.default_rng(0)
    table = surface(12).assign(loss=2 + rng.random(12))
    report, code = write(tmp_path, table, *SURFACE)
    assert code == 0
    page = open_page(browser, report)
    assert page.locator(".lede").inner_text().startswith("no law")
    assert [one.get_attribute("id") for one in page.locator("section[id]").all()] == ["rows"]
    names = json.loads(page.locator("#rows script").text_content())["data"]
    assert [trace["name"] for trace in names] == ["rows"]
    assert undrawn(page) + page.complaints == []
    page.close()


def test_page_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    surface(8).to_csv(tmp_path / "runs.csv", index=False)
    page = tmp_path / "file" / "page.html"
    assert main(["fit", str(tmp_path / "runs.csv"), *SURFACE, "--report", str(page)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: cannot write {page}: ")
    assert shown.count("\n") == 1


def test_axis_without_a_round_number_has_a_tick():
    assert log_axis([1.468, 1.468], number)["ticktext"] == ["1.5"]
