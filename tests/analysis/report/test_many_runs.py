"""A study with more runs than a page can show says what it leaves out, and keeps every row."""

import io
import re
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import plant

from analysis.report.figures.runs import loss_curves
from analysis.report.page import write_report
from analysis.study.folder import read_study
from tarflow.record import EVALUATIONS, RUNS

COPIES = 67  # of 18 runs


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of tables alone, as the folders of runs may be gone."""
    few, many = (tmp_path_factory.mktemp(name) for name in ("few", "many"))
    plant(few, limit=18)
    rng = np.random.default_rng(0)
    for name, schema in (("runs", RUNS), ("evaluations", EVALUATIONS)):
        table = pd.read_parquet(few / f"{name}.parquet")
        table = pd.concat([table.assign(copy=copy) for copy in range(COPIES)], ignore_index=True)
        table["run_id"] += table.pop("copy").astype(str)
        if "bpd" in table:
            table["bpd"] *= np.exp(0.003 * rng.standard_normal(len(table)))
        rows = pa.Table.from_pandas(table, schema=schema, preserve_index=False)
        pq.write_table(rows.replace_schema_metadata(schema.metadata), many / f"{name}.parquet")
    return write_report(many)


def test_a_long_study_says_what_is_left_out(browser, report):
    page = browser.new_page()
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-drawn]")
    for section, drawn in (("law", 603), ("images", 242), ("quality", 603)):
        note = page.locator(f"#{section} .thinned").first.inner_text()
        assert note == f"{drawn} of 1,206 runs drawn"
    ids = {
        one
        for trace in page.locator("#law .plot").evaluate("plot => plot.data.map(d => d.meta)")
        for one in (trace if isinstance(trace, list) else [])
    }
    assert 603 <= len(ids) <= 610  # and those of the frontier
    assert page.locator("#run-table tbody tr").count() == 1000
    assert "1,000 runs of the most compute, of 1,206" in page.locator("#runs .aid").inner_text()
    page.close()


def test_the_csv_of_a_long_study_has_every_run(report):
    uri = re.search(r'href="data:text/csv;charset=utf-8,([^"]*)"', report.read_text())[1]
    assert pd.read_csv(io.StringIO(unquote(uri)))["run_id"].nunique() == 18 * COPIES


def test_long_loss_curves_are_thinned_and_say_so(tmp_path):
    runs, _ = read_study(plant(tmp_path, limit=2))
    images = np.arange(1, 1001)
    curve = pd.DataFrame({"images": images, "flops": 1e6 * images, "loss": 1 + 1 / images})
    shown = loss_curves(runs, dict.fromkeys(runs["run_id"], curve), "images")
    assert [len(trace.x) for trace in shown.data] == [250, 250]
    assert shown.layout.meta == {"note": "500 of 2,000 points drawn"}
