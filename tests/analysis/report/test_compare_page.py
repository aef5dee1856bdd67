"""The page that compares studies, in a real browser."""

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
def written(tmp_path_factory):
    home = tmp_path_factory.mktemp("compared")
    studies = [
        plant(home / "digits"),
        noted(home / HOSTILE, HOSTILE, law=Law(E=1.5), seed=1),
        plant(home / "few", limit=2),
    ]
    page = home / "page.html"
    assert main(["compare", *map(str, studies), "--out", str(page)]) == 0
    return page


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_laws_pairs_and_settings_are_shown_whatever_the_names(browser, written, width, scheme):
    page = open_page(browser, written, width, scheme)
    assert page.locator("figure:has(.plot)").count() == 3  # laws, and pairs of both others
    assert undrawn(page) == []
    assert page.locator(".lede").first.inner_text().startswith("digits is better than <img")
    assert page.locator(".study-note").inner_text() == f"{HOSTILE} {HOSTILE}"
    cells = page.locator("#settings td").all_inner_texts()
    assert cells == ["seed", "0", "1", "0"]
    assert page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not page.complaints + page.outside
    assert str(written.parent) not in written.read_text()
    page.close()


def test_a_study_shows_its_note(tmp_path):
    text = write_report(noted(tmp_path, HOSTILE, limit=1)).read_text()
    assert '<p class="study-note">&lt;img src=x onerror=alert(1)&gt;</p>' in text
