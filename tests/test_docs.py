"""The pages people read agree with the code they describe."""

import re
from pathlib import Path

import pytest

from analysis.laws.forms import FORMS
from tarflow import record
from tarflow.forecasts import FORECASTS

ROOT = Path(__file__).parent.parent
TABLES = (ROOT / "docs" / "tables.md").read_text()


def documented(title):
    """Rows (column, type, marked as never null) of the table under a heading."""
    section = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TABLES, re.M | re.S)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (always)? ?\| \S.* \|$", section[1], re.M)
    return [(name, kind, bool(always)) for name, kind, always in rows]


@pytest.mark.parametrize(
    ("title", "schema"),
    [
        ("runs.parquet", record.RUNS),
        ("evaluations.parquet", record.EVALUATIONS),
        ("forecasts.parquet", FORECASTS),
        ("runs/&lt;run_id&gt;/curve.parquet", record.CURVE),
        ("runs/&lt;run_id&gt;/previews.parquet", record.PREVIEWS),
        ("runs/&lt;run_id&gt;/images.parquet", record.IMAGES),
    ],
)
def test_every_column_is_documented_in_order_with_its_type(title, schema):
    assert documented(title) == [(f.name, str(f.type), not f.nullable) for f in schema]


def test_every_form_of_law_is_documented_with_its_formula():
    page = (ROOT / "docs" / "laws.md").read_text()
    rows = re.findall(r"^\| `(.+?)` \| `(.+?)` \| \S.* \| \S.* \|$", page, re.M)
    assert rows == [(name, form.formula) for name, form in FORMS.items()]


def test_links_between_pages_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_decisions_are_numbered_and_say_context_decision_consequence():
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(page.name[:3]) for page in records] == list(range(1, len(records) + 1))
    for page in records:
        text = page.read_text()
        assert text.startswith(f"# {page.name[:3]} ")
        parts = re.findall(r"^## (\w+)$", text, re.M)
        assert parts == ["Context", "Decision", "Consequence"], page.name
        assert len(text.split()) < 450, f"{page.name} is longer than half a page"


def test_contributing_stays_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 60
