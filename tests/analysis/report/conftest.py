"""One browser for all pages, and one page with a search that two files of tests read."""

import json
import os
import shutil

import pytest
from synthetic import plant

from analysis.report.page import write_report
from tarflow import record

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="session")
def browser():
    if not CHROMIUM:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed: apt-get install chromium")
        pytest.skip("chromium is not installed: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as session:
        chromium = session.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def hostile():
    """Label and error of one run of `searched`."""
    return "</script><b id=injected>x"


@pytest.fixture(scope="session")
def searched(tmp_path_factory, hostile):
    """A planted study with a search, tags on two runs, a pinned run, and its report."""
    folder = plant(tmp_path_factory.mktemp("studies") / "digits", search=6)
    result = min(folder.glob("runs/*/result.json"))
    stored = json.loads(result.read_text())
    stored["run"] |= {"label": hostile, "error": hostile}
    record.write_json(result, stored)
    second, third = sorted(folder.glob("runs/*/result.json"))[1:3]
    for path, tags in ((second, "new, wide"), (third, "new")):
        tagged = json.loads(path.read_text())
        tagged["run"]["tags"] = tags
        record.write_json(path, tagged)
    settings = {"name": "digits", "pinned": [second.parent.name]}
    record.write_text(folder / "study.yaml", json.dumps(settings))
    record.gather(folder)
    write_report(folder)
    return folder
