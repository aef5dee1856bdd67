import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.findings import find
from analysis.forecast import Forecast, achieved, forecast
from sweeps import final
from sweeps.driver import declare
from sweeps.final import Options
from sweeps.presets import load
from sweeps.study import Size, grid, resolve_study
from tarflow.config import NoiseConfig, RunConfig, from_dict, to_yaml
from tarflow.human import percent
from tarflow.record import read_json, read_table, write_json
from tarflow.run import row_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
LARGE = 1.6e9


def law(params, tokens):
    return 1.5 + 20 * params**-0.4 + 15 * tokens**-0.3


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Write a study of cheap configs whose BPD follows a planted law, nothing trained."""
    out = tmp_path_factory.mktemp("planted") / "study"
    study = load("tiny")
    base = replace(
        study.base,
        model=replace(study.base.model, patch=14, channels=8),
        evaluation=replace(study.base.evaluation, decoder_images=64, samples=16),
    )
    sizes = tuple(Size(channels=width, blocks=2, layers=1) for width in (8, 16, 24, 32, 48))
    budgets = (1e8, 2e8, 4e8, 8e8)
    study = replace(study, base=base, sizes=sizes, budgets=budgets, lr_power=0.0)
    study = resolve_study(replace(study, held_out=None, replicated=None))
    declare(study, out)
    rng = np.random.default_rng(0)
    for run in grid(study):
        row = row_of(run.config, "grid", run.label)
        bpd = law(row["params"], row["tokens"]) * (1 + 0.001 * rng.standard_normal())
        row |= {"status": "done", "bpd": bpd, "bpd_kind": "bound", "bpd_se": 0.01, "loss": bpd}
        row |= {"bpd_median": bpd, "bpd_max": 1.1 * bpd, "bpd_p99": 1.05 * bpd, "mfu": 0.1}
        row |= dict.fromkeys(("train_seconds", "evaluate_seconds"), 0.5)
        row |= dict.fromkeys(("wall_seconds", "device_seconds"), 1.0)
        write_json(out / "runs" / run.run_id / "result.json", {"run": row, "evaluations": []})
    return out


@pytest.fixture
def study(planted, tmp_path):
    return shutil.copytree(planted, tmp_path / "study")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_the_final_run_is_predicted_trained_once_and_compared(study, capsys):
    options = Options(study=str(study), flops=LARGE)
    assert final.final(replace(options, dry_run=True)) == 0
    assert not (study / "final").exists()
    assert final.final(options) == 0
    printed = capsys.readouterr().out
    (path,) = (study / "final").glob("*.json")
    made = from_dict(Forecast, json.loads(path.read_text()))
    rows = read_table(study / "runs.parquet").to_pylist()
    (row,) = [row for row in rows if row["role"] == "final"]
    assert (row["run_id"], row["split"]) == (made.run_id, "test")
    assert made.predicted == pytest.approx(law(row["params"], row["tokens"]), rel=0.02)
    assert made.achieved == row["bpd"]
    assert made.verdict in printed
    assert "the law does not hold here" in made.verdict  # it was planted, the run is real
    assert made.verdict in (study / "report.html").read_text()
    scores = read_table(study / "evaluations.parquet").to_pylist()
    assert {score["reference"] for score in scores} == {"digits/test"}

    model = study / "runs" / row["run_id"] / "model.safetensors"
    stamp, text = model.stat().st_mtime_ns, path.read_text()
    config = study / "runs" / row["run_id"] / "config.yaml"
    assert final.final(Options(study=str(study), config=config)) == 0  # by another name
    assert (model.stat().st_mtime_ns, path.read_text()) == (stamp, text)
    assert final.final(replace(options, flops=1.5 * LARGE, dry_run=True)) == 0
    assert "has been read 1 times" in capsys.readouterr().out


def test_it_works_from_a_script_that_lies_alone(study, tmp_path):
    assert study.parent == tmp_path
    script = shutil.copy(final.__file__, tmp_path)
    command = [sys.executable, script, "study", "--flops", str(LARGE), "--dry-run"]
    printed = subprocess.run(
        command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120
    ).stdout
    assert "final-c" in printed
    assert "Predicted by" in printed


def test_mistakes_are_told_in_one_line(call, study, tmp_path):
    trained = next(study.glob("runs/*/result.json"))
    config = from_dict(RunConfig, json.loads(read_json(trained)["run"]["config"]))
    (tmp_path / "old.yaml").write_text(to_yaml(config))
    for arguments, message in (
        (["nothing"], "holds no study"),
        ([study], "there is no"),
        ([study, "--flops", "-1"], "--flops is -1"),
        ([study, "--flops", "nan"], "--flops is nan: it must be a finite number"),
        ([study, "--flops", "1e9", "--config", "x.yaml"], "not both"),
        ([study, "--config", tmp_path / "old.yaml"], "a final run is a new one"),
    ):
        code, printed = call(final, *arguments)
        assert code == 2
        assert message in printed.err
        assert len(printed.err.splitlines()) == 1


def test_a_law_speaks_only_of_its_own_family(planted):
    runs = pd.DataFrame([read_json(p)["run"] for p in sorted(planted.glob("runs/*/result.json"))])
    findings = find(runs.reindex(columns=[*runs, "parent_id"]), None, draws=50)
    config = from_dict(RunConfig, json.loads(runs["config"].iloc[0]))
    bigger = replace(config, images=4 * config.images)
    assert forecast(findings, bigger, "a").predicted is not None
    noisy = replace(bigger, noise=NoiseConfig(std=0.7))
    assert "noise.std" in forecast(findings, noisy, "a").in_words
    assert forecast(findings, noisy, "a").predicted is None
    deep = replace(bigger, model=replace(bigger.model, blocks=6))
    assert "6 blocks" in forecast(findings, deep, "a").in_words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (2.05, "; inside the 90% interval"),
        (2.12, "no more than other images may move it"),
        (2.5, "the law does not hold here"),
    ],
)
def test_the_verdict_knows_that_the_test_images_are_others(value, words):
    printed = Forecast(
        run_id="a", flops=1e9, law="x", predicted=2.0, low=1.9, high=2.1, in_words="Predicted."
    )
    found = achieved(printed, {"bpd": value, "bpd_se": 0.03, "split": "test"})
    assert words in found.verdict
    assert f"{percent(1 - 2.0 / value)} too low" in found.verdict
