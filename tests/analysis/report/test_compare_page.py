"""The page that compares studies, in a real browser."""

import io
from contextlib import redirect_stdout

import pytest
import yaml
from browser_pages import open_page, undrawn
from synthetic import Law, plant

from analysis.__main__ import main
from analysis.report.page import write_report

HOSTILE = "<img src=x onerror=alert(1)>"


def noted(folder, note, **options):
    plant(folder, **options)
    (folder / "study.yaml").write_text(yaml.safe_dump({"seed": 1, "note": note}))
    return folder


@pytest.fixture(scope="module")
def written(digits, tmp_path_factory):
    home = tmp_path_factory.mktemp("compared")
    studies = [
        digits,
        noted(home / HOSTILE, HOSTILE, law=Law(E=1.5), seed=1),
        plant(home / "few", limit=2),
    ]
    page = home / "page.html"
    with redirect_stdout(io.StringIO()) as printed:
        assert main(["compare", *map(str, studies), "--out", str(page)]) == 0
    return page, printed.getvalue()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_laws_pairs_and_settings_are_shown_whatever_the_names(browser, written, width, scheme):
    file, _ = written
    page = open_page(browser, file, width, scheme)
    assert page.locator("figure:has(.plot)").count() == 3  # laws, and pairs of both others
    assert undrawn(page) == []
    assert page.locator(".lede").first.inner_text().startswith("digits is better than <img")
    assert page.locator(".study-note").inner_text() == f"{HOSTILE} {HOSTILE}"
    cells = page.locator("#settings td").all_inner_texts()
    assert cells == ["seed", "0", "1", "0"]
    assert page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not page.complaints + page.outside
    assert str(file.parent) not in file.read_text()
    page.close()


def test_the_terminal_shows_every_pair(written):
    _, printed = written
    assert "in 21 of the 21 runs that both trained" in printed
    cells = [line.split("│") for line in printed.splitlines() if "│" in line]
    assert sum("+0.08" in row[4] or "+0.07" in row[4] for row in cells) == 21


def test_a_study_shows_its_note(tmp_path):
    text = write_report(noted(tmp_path, HOSTILE, limit=1)).read_text()
    assert '<p class="study-note">&lt;img src=x onerror=alert(1)&gt;</p>' in text
