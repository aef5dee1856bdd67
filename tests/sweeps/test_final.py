import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from written_forecasts import written

from analysis.study.findings import find
from analysis.study.folder import read_study
from analysis.study.forecast import forecast, table_hash
from analysis.study.rows import choose
from sweeps import final
from sweeps.design.declared import declare
from sweeps.design.presets import load
from sweeps.design.study import Size, grid, resolve_study
from sweeps.final import Options
from sweeps.running import runner
from tarflow.config import NoiseConfig, RunConfig
from tarflow.config_files import from_dict, to_yaml
from tarflow.forecasts import read_forecasts, write_forecast, write_outcome
from tarflow.human import bits
from tarflow.model.flow import TarFlow, initialise
from tarflow.model.weights import save_model
from tarflow.record import read_json, read_table, write_json
from tarflow.run import row_of

WRITTEN = written(1.293, 1.28, 1.307, run_id="new")

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
        folder = out / "runs" / run.run_id
        write_json(folder / "result.json", {"run": row, "evaluations": []})
        flow = TarFlow(run.config.model)
        initialise(flow, 0)
        save_model(folder / "model.safetensors", flow.state_dict(), run.config)
    return out


@pytest.fixture
def study(planted, tmp_path):
    return shutil.copytree(planted, tmp_path / "study")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_final_run_is_predicted_trained_once_and_compared(study, capsys, monkeypatch):
    options = Options(study=str(study), flops=LARGE)
    assert final.final(replace(options, dry_run=True)) == 0
    assert not read_forecasts(study)
    monkeypatch.setattr(runner, "score_on_test", interrupted)
    with pytest.raises(KeyboardInterrupt):
        final.final(options)
    (made,) = read_forecasts(study)  # written before, and not yet compared
    assert (made.done, made.origin, made.split) == (False, "final", "validation")
    grid = choose(read_study(study)[0])[0].query("role == 'grid'")
    assert made.table_hash == table_hash(grid)
    monkeypatch.undo()
    capsys.readouterr()
    model = study / "runs" / made.run_id / "model.safetensors"
    stamp = model.stat().st_mtime_ns
    assert final.final(options) == 0  # resumed, although the laws have read it by now
    assert model.stat().st_mtime_ns == stamp
    printed = capsys.readouterr().out
    (row,) = [r for r in read_table(study / "runs.parquet").to_pylist() if r["role"] == "final"]
    (found,) = read_forecasts(study)
    outcome = dict.fromkeys(("achieved", "achieved_se", "test_bpd", "test_se", "shift", "ended"))
    assert replace(found, **outcome) == made  # what was predicted stays as it was written
    assert made.predicted == pytest.approx(law(row["params"], row["tokens"]), rel=0.02)
    assert (row["split"], found.achieved) == ("validation", row["bpd"])
    best = largest_and_best(study)
    assert found.test_bpd == bits_on_test(study, row)
    assert found.shift == pytest.approx(bits_on_test(study, best) - best["bpd"])
    assert "outside the 90% interval" in found.verdict  # the law was planted, the run is real
    assert "0 of 1 forecasts in" in printed
    assert found.verdict in printed
    page = (study / "report.html").read_text()
    assert bits(found.test_predicted) in page
    assert bits(found.achieved) in page

    config = study / "runs" / made.run_id / "config.yaml"
    assert final.final(Options(study=str(study), config=config)) == 0  # by another name
    assert "every run is done already" in capsys.readouterr().out
    assert read_forecasts(study) == [found]
    assert final.final(replace(options, flops=1.5 * LARGE, dry_run=True)) == 0
    assert "read for 1 other final run" in capsys.readouterr().out


def interrupted(*_):
    raise KeyboardInterrupt


def bits_on_test(study, row):
    return read_json(study / "runs" / row["run_id"] / "test.json")["bpd"]


def largest_and_best(study):
    grid = pd.read_parquet(study / "runs.parquet").query("role == 'grid' and flops > 7e8")
    return grid.sort_values("bpd").iloc[0]


def test_set_changes_the_config_to_train(study):
    plain = final.Final(Options(study=str(study), flops=LARGE))
    changed = final.Final(
        Options(study=str(study), flops=LARGE, changes=(("optim.lr=0.02",),), tag=("fast",))
    )
    assert changed.final_run.config.optim.lr == 0.02
    assert changed.final_run.run_id != plain.final_run.run_id
    assert changed.final_run.tags == ("fast",)
    assert "with optim.lr=0.02" in changed.lines


def test_it_works_from_a_script_that_lies_alone(study, tmp_path):
    assert study.parent == tmp_path
    script = shutil.copy(final.__file__, tmp_path)
    command = [sys.executable, script, "study", "--flops", str(LARGE), "--dry-run"]
    printed = subprocess.run(
        command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120
    ).stdout
    assert "final-c" in printed
    assert "Expected" in printed


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
        (
            [study, "--config", tmp_path / "old.yaml"],
            "as role grid: a final run is a new one",
        ),
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
    ("outcome", "words"),
    [
        (
            {"achieved": 1.294, "test_bpd": 1.319, "shift": 0.026},
            "Predicted 1.293 (1.280 to 1.307), achieved 1.294 on the same validation images: "
            "inside the 90% interval, 0.08% too low. On test images 1.319; the grid's best run is "
            "0.026 higher there too.",
        ),
        (
            {"achieved": 1.31},
            "Predicted 1.293 (1.280 to 1.307), achieved 1.310 on the same validation images: "
            "outside the 90% interval, 1.3% too low.",
        ),
        (
            {"test_bpd": 1.319},  # of an earlier release
            "Predicted 1.293 (1.280 to 1.307) on validation images, on which the run was not "
            "scored. On test images 1.319.",
        ),
        ({}, ""),
    ],
)
def test_a_run_is_judged_on_the_images_that_the_law_was_fitted_to(outcome, words):
    assert replace(WRITTEN, **outcome).verdict == words


def test_final_runs_of_earlier_releases_are_read_and_keep_their_test_bits(tmp_path):
    old = {"run_id": "old", "flops": 1e9, "law": "E", "predicted": 2.0, "low": 1.9, "high": 2.1}
    old |= {"in_words": "Predicted 2.", "achieved": 2.2, "achieved_se": 0.1, "verdict": "Out."}
    write_json(tmp_path / "final" / "old.json", old)
    (read,) = read_forecasts(tmp_path)
    assert (read.achieved, read.inside, read.test_bpd) == (None, None, 2.2)
    write_forecast(tmp_path, WRITTEN)
    assert write_forecast(tmp_path, replace(WRITTEN, predicted=3.0)) == WRITTEN
    scored = {"run_id": "new", "bpd": 1.3, "bpd_se": 0.01, "split": "test"}
    write_outcome(tmp_path, scored)
    assert write_outcome(tmp_path, scored | {"bpd": 9.0, "split": "validation"}).test_bpd == 1.3
    assert [item.run_id for item in read_forecasts(tmp_path)] == ["old", "new"]
