import json
from dataclasses import replace

import pytest

from sweeps import hardware
from sweeps.design.branches import StartPoint
from sweeps.design.presets import load
from sweeps.design.study import Size, grid, resolve_study
from sweeps.pricing import expect
from sweeps.pricing.expect import Rate
from sweeps.pricing.plan import make_plan, wall_seconds
from sweeps.pricing.words import study_summary, table
from tarflow import cost, human
from tarflow.config import ExecutionConfig, NoiseConfig
from tarflow.config_files import to_dict
from tarflow.errors import UserError
from tarflow.record import write_json

RATE = Rate(1e11, "test")


@pytest.fixture(autouse=True)
def probed(monkeypatch, tmp_path):
    """Give every test its own cache and a rate without a probe."""
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hardware, "probe", lambda: RATE.flops)


def finish(out, run, slower=1.0, status="done"):
    """Leave what a run that took `slower` times the expected seconds leaves."""
    seconds = expect.expected_seconds(run.config, 500, RATE)
    row = {
        "run_id": run.run_id,
        "status": status,
        "error": "RuntimeError: the process died" if status == "failed" else None,
        "config": json.dumps(to_dict(run.config)),
        "images": run.config.images,
        "flops": cost.run_flops(run.config),
        "flops_marginal": cost.run_flops(run.config),
        "train_seconds": slower * seconds.train,
        "evaluate_seconds": seconds.evaluate,
    }
    write_json(out / "runs" / run.run_id / "result.json", {"run": row, "evaluations": []})


def test_states_are_read_from_the_folder(tmp_path):
    study = resolve_study(load("tiny"))
    done, failed, partly, *_ = grid(study)
    finish(tmp_path, done)
    finish(tmp_path, failed, status="failed")
    half = partly.config.images // 2
    write_json(tmp_path / "runs" / partly.run_id / "state" / f"{half:015d}.json", {})
    plan = make_plan(study, tmp_path)
    rows = {row.run.run_id: row for row in plan.rows}
    states = [rows[run.run_id].state for run in (done, failed, partly)]
    assert states == ["done", "failed", "partly"]
    assert [row.state for row in plan.rows].count("to do") == len(plan.rows) - 3
    assert rows[done.run_id].left == 0
    whole = rows[partly.run_id].seconds
    assert rows[partly.run_id].left == pytest.approx(whole.train / 2 + whole.evaluate, rel=0.02)


def test_finished_runs_correct_the_expectation(tmp_path):
    study = resolve_study(load("tiny"))
    before = {row.run.run_id: row.seconds for row in make_plan(study, tmp_path).rows}
    for run, slower in zip(grid(study), (3.0, 3.0, 3.3), strict=False):
        finish(tmp_path, run, slower)
    plan = make_plan(study, tmp_path)
    assert plan.corrected_by == 3
    assert "corrected by 3 finished runs" in " ".join(study_summary(study, plan))
    assert 0 < plan.spread < expect.SPREAD
    for row in plan.rows:
        assert row.seconds.train == pytest.approx(3 * before[row.run.run_id].train)
        assert row.seconds.evaluate == pytest.approx(before[row.run.run_id].evaluate)


def scoring(run):
    """Return what 500 held-out images more are expected to take."""
    few, many = (expect.expected_seconds(run, count, RATE).evaluate for count in (500, 1000))
    return many - few


def test_more_work_is_expected_to_take_longer():
    run = grid(resolve_study(load("tiny")))[0].config
    once = expect.expected_seconds(run, 500, RATE)
    twice = expect.expected_seconds(replace(run, images=2 * run.images), 500, RATE)
    assert twice.train == pytest.approx(2 * once.train)
    assert twice.evaluate == once.evaluate
    shared = replace(run, execution=replace(run.execution, workers=2))
    assert 0 < scoring(shared) == pytest.approx(scoring(run) / 2)
    fewer_steps = expect.expected_seconds(replace(run, batch=2 * run.batch), 500, RATE)
    assert fewer_steps.train < once.train


def test_longest_run_comes_first_and_totals_add_up(tmp_path):
    study = resolve_study(load("digits"))
    plan = make_plan(study, tmp_path, devices=2, price=0.5)
    whole = [row.seconds.total for row in plan.rows]
    assert whole == sorted(whole, reverse=True)
    seconds = [row.expected for row in plan.rows]
    assert plan.device_hours == pytest.approx(sum(seconds) / 3600)
    assert plan.money == pytest.approx(0.5 * plan.device_hours)
    assert plan.flops == sum(cost.run_flops(row.run.config) for row in plan.rows)
    assert plan.wall_seconds >= max(sum(seconds) / 2, seconds[0])


def test_wall_time_packs_small_runs_and_queues_large_ones(tmp_path):
    study = resolve_study(load("tiny"))
    rows = [
        replace(row, left=seconds, start=StartPoint())
        for row, seconds in zip(make_plan(study, tmp_path).rows, (4, 3, 3, 2), strict=False)
    ]
    assert wall_seconds(rows, 2) == 6
    assert wall_seconds(rows, 1) == 12
    assert wall_seconds(rows, 100) == 4
    run = rows[0].run
    large = replace(run, config=replace(run.config, execution=ExecutionConfig(workers=2)))
    assert wall_seconds([replace(rows[0], run=large), *rows[1:]], 2) == 4 + 5


def test_accelerators_are_priced(tmp_path):
    study = load("cifar10")
    study = replace(study, base=replace(study.base, data=replace(study.base.data, hash="0")))
    listed = make_plan(study, tmp_path)
    assert listed.price.hourly == cost.PRICES["A100"]
    assert listed.money == pytest.approx(listed.device_hours * listed.price.hourly)
    line = study_summary(study, listed)[0]
    assert f"{human.digits(listed.device_hours)} A100-hours, about ${listed.money:.3g} at" in line
    assert any("nothing measured yet" in row for row in study_summary(study, listed))
    faster = make_plan(study, tmp_path, accelerator="H100", price=9.0)
    assert faster.device_hours < listed.device_hours
    assert faster.price.hourly == 9.0
    with pytest.raises(UserError, match="accelerator 'H10' is not known; did you mean 'H100'"):
        make_plan(study, tmp_path, accelerator="H10")


def test_the_gpus_of_this_machine_are_planned_with(tmp_path, monkeypatch):
    study = load("tiny")
    study = replace(study, base=replace(study.base, data=replace(study.base.data, hash="0")))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "DRIVER", tmp_path)
    monkeypatch.setattr(hardware, "FIRST_GPU", tmp_path)
    assert make_plan(study, tmp_path / "study").rate.accelerator == ""
    for number in "01":
        (tmp_path / number).mkdir()
        (tmp_path / number / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\n")
    plan = make_plan(study, tmp_path / "study")
    assert (plan.rate.accelerator, plan.devices, plan.gpus, plan.money) == ("H100", 2, 2, 0)
    assert "on 2 H100s" in study_summary(study, plan)[0]
    assert (plan.rate.runs_per_device, plan.slots) == (4, 8)  # runs so small
    assert plan.device_hours == pytest.approx(sum(row.left for row in plan.rows) / 4 / 3600)
    study64 = load("imagenet64")
    base = replace(study64.base, data=replace(study64.base.data, hash="0"))
    large = make_plan(replace(study64, base=base), tmp_path / "study")
    assert (large.rate.runs_per_device, large.slots) == (1, 8)
    on_cores = replace(study, base=replace(study.base, execution=ExecutionConfig(device="cpu")))
    assert make_plan(on_cores, tmp_path / "study").gpus == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert make_plan(study, tmp_path / "study").gpus == 0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (tmp_path / "1" / "information").write_text("Model: \t\t Some Other Card\n")
    assert make_plan(study, tmp_path / "study").gpus == 0


def test_a_plan_says_what_its_precision_costs(tmp_path):
    study = load("tiny")
    for precision, lines in (("bfloat16", 1), ("float32", 0)):
        base = replace(study.base, noise=NoiseConfig(type="uniform"), precision=precision)
        coarse = resolve_study(replace(study, base=base))
        summary = study_summary(coarse, make_plan(coarse, tmp_path))
        assert sum("can cost about 0.06 bits per dimension" in line for line in summary) == lines


def test_runs_that_do_not_fit_the_accelerator_are_named(tmp_path):
    study = load("cifar10")
    base = replace(
        study.base,
        data=replace(study.base.data, hash="0"),
        execution=ExecutionConfig(micro_batch=256),
    )
    study = replace(study, base=base)
    assert (
        "micro_batch" in study_summary(study, make_plan(study, tmp_path, accelerator="A10G"))[-1]
    )
    assert "micro_batch" not in " ".join(
        study_summary(study, make_plan(study, tmp_path, accelerator="H200"))
    )


def test_runs_that_divide_their_state_are_marked(tmp_path):
    study = load("imagenet64")
    base = replace(study.base, data=replace(study.base.data, hash="0"))
    sizes = tuple(Size(channels=channels, blocks=8, layers=8) for channels in (256, 1024))
    changes = {"base": base, "sizes": sizes, "replicated": None, "held_out": None}
    study = replace(study, budgets=(1e20,), accelerator="T4", **changes)
    plan = make_plan(study, tmp_path)
    states = list(table(plan).columns[-1].cells)
    assert [cell.endswith("sharded") for cell in states] == [
        row.run.config.model.channels == 1024 for row in plan.rows
    ]
    assert "sharded: c1024-b8-l8-1e20-s0;" in " ".join(study_summary(study, plan))
    roomy = make_plan(replace(study, accelerator="H200"), tmp_path)
    assert "sharded" not in " ".join(study_summary(study, roomy))


def test_the_probe_runs_once_per_machine(monkeypatch):
    calls = []
    monkeypatch.setattr(hardware, "probe", lambda: calls.append(1) or 5e10)
    assert expect.core_rate() == expect.core_rate()
    assert calls == [1]
    assert expect.core_rate().flops == 5e10


def test_the_probe_measures_this_machine(monkeypatch):
    monkeypatch.undo()
    assert 1e8 < hardware.probe() < 1e13
