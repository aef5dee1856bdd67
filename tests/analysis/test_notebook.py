"""A study opened in a notebook."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from synthetic import plant

import analysis
from analysis.report.figures.theme import PLACEHOLDERS, SCHEMES
from analysis.study.advice import recommend
from tarflow import cost
from tarflow.config import RunConfig
from tarflow.errors import UserError

ROOT = Path(__file__).parents[2]
BUDGET = 2.4e13  # FLOPs: 4 times the largest run of a planted study


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    planted = shutil.copytree(digits, tmp_path_factory.mktemp("notebook") / "digits")
    (planted / "study.yaml").write_text(yaml.safe_dump({"note": "<b>wide</b>"}))
    return planted


@pytest.fixture(scope="module")
def study(folder):
    return analysis.open(str(folder))


def test_a_study_tells_what_it_holds_before_any_law_is_fitted(folder):
    study = analysis.open(folder)
    facts = re.sub(r"<[^>]+>", "|", study._repr_html_())
    assert "|runs||21 of 22 finished|" in facts
    assert "&lt;b&gt;wide&lt;/b&gt;" in facts
    assert "findings" not in vars(study)
    assert len(study.runs) == 22
    assert len(study.evaluations) == 21


def test_predictions_and_configs_are_those_of_the_report(study):
    prediction = study.predict(flops=BUDGET)
    advice = recommend(study.findings, BUDGET)
    assert (prediction.bits, prediction.size) == (
        advice.allocation.bpd,
        cost.params(advice.config.model),
    )
    assert prediction.low < prediction.bits < prediction.high
    assert prediction.images == advice.config.images
    assert isinstance(study.best(), RunConfig)
    assert study.best(flops=BUDGET) == advice.config
    assert study.law is study.findings.surface
    assert study.law.formula in repr(study.law)
    assert len(repr(study.law)) < 500  # a line, not its draws


@pytest.mark.parametrize("scheme", SCHEMES)
def test_figures_have_the_colours_of_a_scheme(study, scheme):
    assert "law" in study.figures
    paper = SCHEMES[scheme][PLACEHOLDERS.index("#040404")]
    for name in study.figures:
        drawn = study.plot(name, scheme)
        assert not [colour for colour in PLACEHOLDERS if colour in drawn.to_json()], name
        assert drawn.layout.paper_bgcolor == paper


def test_schemes_are_those_of_the_page():
    css = (ROOT / "analysis" / "report" / "report.css").read_text()
    names = ("ink", "soft", "line", "paper", "law")
    light, dark = css.split("@media (prefers-color-scheme: dark)")
    for scheme, colours in ((light, SCHEMES["light"]), (dark, SCHEMES["dark"])):
        assert [re.search(rf"--{name}: (#\w+);", scheme)[1] for name in names] == list(colours)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda study: study.plot("lwa"), "the figures are law"),
        (lambda study: study.plot("law", "sepia"), "choose light or dark"),
        (lambda study: study.predict(flops=-1), "must be positive"),
        (lambda study: analysis.open(study.path / "runs"), "holds no study"),
    ],
)
def test_mistakes_say_what_to_do(study, wrong, message):
    with pytest.raises(UserError, match=message):
        wrong(study)


def test_a_study_without_laws_is_open_all_the_same(tmp_path):
    study = analysis.open(plant(tmp_path, limit=2))
    with pytest.raises(UserError, match="too few finished runs for a law"):
        _ = study.law
    assert study.plot("law").data


def test_importing_the_package_stays_light():
    code = "import sys, analysis; sys.exit('pandas' in sys.modules or analysis.__all__ == [])"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_example_runs(folder, tmp_path, monkeypatch, capsys):
    path = ROOT / "examples" / "notebook.py"
    monkeypatch.setattr(sys, "argv", [str(path), str(folder), str(tmp_path)])
    runpy.run_path(str(path), run_name="__main__")
    assert "2.4e13 FLOPs: 1." in capsys.readouterr().out
    assert sorted(page.name for page in tmp_path.iterdir()) == ["law-dark.html", "law-light.html"]
