import sys
from dataclasses import replace

import pytest
from training_runs import config
from written_forecasts import written

from tarflow.__main__ import main
from tarflow.config import EvaluationConfig, ExecutionConfig
from tarflow.config_files import to_yaml
from tarflow.forecasts import read_forecasts, write_forecast
from tarflow.identity import run_id
from tarflow.record import read_result
from tarflow.run import resolve_config


@pytest.fixture
def run():
    return config(
        execution=ExecutionConfig(device="cpu"),
        images=16,
        evaluation=EvaluationConfig(samples=0, decoder_images=4),
    )


def test_the_expected_value_comes_first_and_what_came_out_last(run, tmp_path, capsys):
    resolved = resolve_config(run)
    expected = written(1.0, 0.9, 1.1, run_id=run_id(resolved))
    other = replace(expected, run_id="other")
    for forecast in (other, expected):
        write_forecast(tmp_path, forecast)
    (tmp_path / "best.yaml").write_text(to_yaml(resolved))
    command = ["train", str(tmp_path / "best.yaml"), "--out", str(tmp_path / "run")]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines()[0] == expected.in_words
    row = read_result(tmp_path / "run")["run"]
    untouched, found = read_forecasts(tmp_path)
    assert untouched == other
    assert (found.achieved, found.achieved_se) == (row["bpd"], row["bpd_se"])
    assert (found.predicted, found.low, found.time) == (1.0, 0.9, expected.time)
    assert shown.out.splitlines()[-1] == found.verdict
    assert "outside the 90% interval" in found.verdict
    assert main(command) == 0
    assert capsys.readouterr().err.splitlines()[1].startswith("trained already")
    assert read_forecasts(tmp_path) == [untouched, found]


def test_flags_of_fields_change_the_run_and_its_name(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(to_yaml(run))
    command = ["train", "run.yaml", "--optim.lr", "0.02", "--set", "seed=3", "data.flip=true"]
    command += ["--tag", "wide, new", "--tag", "wide"]
    assert main(command) == 0
    optim, data = replace(run.optim, lr=0.02), replace(run.data, flip=True)
    changed = resolve_config(replace(run, optim=optim, data=data, seed=3))
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == [run_id(changed)]
    assert read_result(tmp_path / "runs" / run_id(changed))["run"]["tags"] == "wide, new"


def test_a_folder_that_holds_another_run_is_refused(run, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(to_yaml(run))
    command = ["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]
    assert main(command) == 0
    with pytest.raises(SystemExit) as ended:
        sys.exit(main([*command, "--optim.lr", "0.02"]))
    assert ended.value.code == 2
    own = run_id(resolve_config(run))
    assert f"{tmp_path}/run holds another run, {own}; this is " in capsys.readouterr().err


def test_a_tracker_gets_the_run_and_a_missing_one_is_told_before_training(
    run, tmp_path, capsys, monkeypatch
):
    pytest.importorskip("tensorboardX")
    (tmp_path / "run.yaml").write_text(to_yaml(resolve_config(run)))
    command = ["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "runs" / "one")]
    monkeypatch.delitem(sys.modules, "tarflow.mirror.wandb", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit) as ended:
        sys.exit(main([*command, "--tracker", "wandb"]))
    assert ended.value.code == 2
    assert "pip install 'tarflow[wandb]'" in capsys.readouterr().err
    assert read_result(tmp_path / "runs" / "one") is None
    assert main([*command, "--tracker", "tensorboard"]) == 0
    assert len(list((tmp_path / "runs" / "tensorboard").iterdir())) == 1
