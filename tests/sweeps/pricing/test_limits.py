import time
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
from rich.console import Console
from small_studies import rows, wee, with_ray, write_study

from sweeps import scaling
from sweeps.design.study import Point, grid, resolve_study
from sweeps.failures import last_errors
from sweeps.lease import FILE
from sweeps.pricing.limits import Limits, limits_from, time_of
from sweeps.running.batch import BatchContext, StopConditions
from sweeps.running.run_queue import RunQueue
from sweeps.running.trainable import execute_and_record
from sweeps.watching.progress import Progress
from tarflow import cost
from tarflow.errors import ConfigError, StepOutOfMemory, UserError
from tarflow.record import read_json
from tarflow.train import loop

NOON = datetime(2026, 11, 27, 12).timestamp()


@pytest.fixture
def batch(tmp_path, monkeypatch):
    """Return a queue of four runs of 100 s on one device each, and a clock to set."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: NOON + now[0])
    runs = grid(resolve_study(replace(wee("x"), branches=False)))
    progress = Progress(len(runs), {run.run_id: 100.0 for run in runs}, 2, Console(quiet=True))

    def queue(**limits):
        context = BatchContext(
            tmp_path, None, SimpleNamespace(lost=""), None, None, limits=Limits(**limits)
        )
        return RunQueue(runs, StopConditions(progress, context, 1.0)), now, runs

    return queue


def test_nothing_is_launched_that_should_end_too_late(batch):
    queue, now, runs = batch(end=NOON + 150, end_option="--until 12:02")
    assert queue.suggest("a") == {"index": 0}
    queue.stop.progress.start(runs[0])
    now[0] = 60.0  # another run would end at 160
    assert queue.suggest("b") is None
    assert not queue.stop.stop_all()
    queue.stop.progress.end(runs[0], {"status": "done", "bpd": 2.0})
    queue.on_trial_complete("a")
    assert queue.suggest("b") == {"index": 1}  # runs end after 60 s, so this one at 120
    queue.stop.progress.start(runs[1])
    now[0] = 151.0
    assert queue.stop.stop_all()
    assert queue.stop.reason == "--until 12:02 is used up"


def test_what_runs_counts_with_what_it_still_needs(batch):
    queue, now, runs = batch(device_seconds=250.0, device_option="--max-cost 1")
    for trial, run in zip("ab", runs[:2], strict=True):
        assert isinstance(queue.suggest(trial), dict)
        queue.stop.progress.start(run)
    now[0] = 10.0
    assert queue.suggest("c") is None  # 3 x 100 s are more than 250
    now[0] = 100.0
    for trial, run in zip("ab", runs[:2], strict=True):
        queue.stop.progress.end(run, {"status": "done", "bpd": 2.0})
        queue.on_trial_complete(trial)
    assert queue.suggest("c") == "FINISHED"
    assert not queue.stop.stop_all()
    assert queue.stop.too_tight == "--max-cost 1"


def test_the_tightest_limit_holds_and_is_named():
    limits = limits_from(NOON, 2.0, max_hours=8, until="18:30", max_device_hours=5, max_cost=4)
    assert (limits.end_option, limits.end) == ("--until 18:30", NOON + 6.5 * 3600)
    assert (limits.device_option, limits.device_seconds) == ("--max-cost 4", 2 * 3600)
    morning = NOON + timedelta(hours=18).total_seconds()
    assert time_of("06:00", NOON) == time_of("2026-11-28T06:00", NOON) == morning
    with pytest.raises(UserError, match="has passed: it is 2026-11-27T12:00 now"):
        time_of("2026-11-27T11:59", NOON)


def test_prices_of_the_user_come_first_and_mistakes_are_named(tmp_path, monkeypatch):
    file = tmp_path / "prices.yaml"
    monkeypatch.setenv("TARFLOW_PRICES", str(file))
    file.write_text("H100: 2.5\ncore: 0.04\n")
    assert cost.price_of("H100") == cost.Price(2.5, "your price")
    assert cost.price_of("A100").hourly == cost.PRICES["A100"]
    file.write_text("H10: 2.5\n")
    with pytest.raises(ConfigError, match="H10 is no device; write one of H200"):
        cost.price_of("A100")
    file.write_text("H100: free\n")
    with pytest.raises(ConfigError, match="H100 is free; write US dollars per hour"):
        cost.price_of("A100")


def test_later_failures_stop_a_study_only_if_machines_are_to_blame():
    done = {"status": "done"}
    died, bad = ({"status": "failed", "error": error} for error in ("NCCL error", "Diverged: nan"))
    assert last_errors([done, died, died, died, died]) == ["NCCL error"] * 4
    assert not last_errors([done, died, died, died])
    assert not last_errors([done, bad, bad, bad, bad])
    assert last_errors([bad, bad])


@with_ray
def test_a_study_within_a_limit_says_what_is_missing(tmp_path, capsys):
    """The longest run should take a quarter of an hour, the others a second each."""
    held_out = Point(size="c8-b2-l1", budget=3e12)
    study = replace(wee("thrifty"), held_out=held_out, branches=False)
    path, out = write_study(tmp_path, study), tmp_path / "out"
    options = scaling.Options(study=str(path), out=out, price=1.0, max_cost=0.1)
    assert scaling.scale(options) == 1
    printed = capsys.readouterr().out
    assert "stopped early: what is left would pass --max-cost 0.1" in printed
    longest = grid(resolve_study(study))[-1]
    assert f"1 run not done: {longest.label}; run the same command again" in printed
    assert {row["status"] for row in rows(out).values()} == {"done"}
    assert set(rows(out)) == {run.run_id for run in grid(resolve_study(study))} - {longest.run_id}
    assert read_json(out / "outcome.json")["missing"] == [longest.label]
    assert f"Missing: {longest.label}" in (out / "report.html").read_text()


def test_too_large_a_step_is_tried_once_more_with_half_the_micro_batch(tmp_path, monkeypatch):
    tried, make = [], loop.make_train_step

    def cramped(state, config, execution):
        def step(*_):
            raise MemoryError(f"{execution.micro_batch} images")

        tried.append(execution.micro_batch)
        return make(state, config, execution) if execution.micro_batch <= limit else step

    monkeypatch.setattr(loop, "make_train_step", cramped)
    run = grid(resolve_study(wee("large")))[0]
    limit = run.config.batch // 2
    (tmp_path / FILE).touch()  # the driver's
    row = execute_and_record(run, str(tmp_path), str(tmp_path), lambda _: None)
    assert row["status"] == "done"
    assert tried == [run.config.batch, limit]
    limit = 1
    other = replace(run, config=replace(run.config, seed=9))
    with pytest.raises(StepOutOfMemory, match=f"a pass over {run.config.batch // 2} images"):
        execute_and_record(other, str(tmp_path), str(tmp_path), lambda _: None)
