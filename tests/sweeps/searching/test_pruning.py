"""Pruning: what is decided, what is recorded of it, and what a resumed search does."""

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import optuna
import pytest
import ray
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from small_studies import rows, wee, with_ray, write_study

from sweeps import lease, search
from sweeps.design.outcomes import PRUNED, WORST
from sweeps.design.study import resolve_study
from sweeps.pricing.plan import make_plan
from sweeps.running.trainable import Reporter, execute
from sweeps.search import Options
from sweeps.searching.choice import scored_runs
from sweeps.searching.explore import Suggester
from sweeps.searching.journal import completed, ended, open_journal, open_study, pruned, settle
from sweeps.searching.pruning import Pruner
from sweeps.searching.rungs import FILE, Rungs, bracket_of, expected, kept_rows, parts
from sweeps.searching.space import TrainingSpace
from sweeps.watching.progress import Progress
from tarflow.record import write_json, write_result
from tarflow.run import run
from tarflow.train.preemption import request_stop

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
BUDGET = 2e8


def searched():
    """Return a study to search, whose candidates take a second or two each."""
    study = replace(wee("wee"), held_out=None, replicated=None)
    evaluation = replace(study.base.evaluation, samples=24)
    return replace(study, base=replace(study.base, evaluation=evaluation))


@pytest.fixture
def space():
    return TrainingSpace(resolve_study(searched()), BUDGET)


def params(space, ratio):
    return space.base | {"lr_ratio": ratio}


def reach(pruner, space, ratio, quarters, bpd):
    """Let a candidate reach a share of its budget; return Tune's decision and its run id."""
    config = params(space, ratio)
    name = space.name(config)
    folder = pruner.out / "runs" / name
    kept = json.loads((folder / FILE).read_text()) if (folder / FILE).exists() else {}
    row = {"run_id": name, "status": PRUNED, "bpd": bpd, "error": f"stopped at {quarters}/4"}
    write_json(folder / FILE, kept | {quarters: row})
    (folder / "state").mkdir(exist_ok=True)
    trial = SimpleNamespace(trial_id=name, config=config)
    if not kept:
        pruner.on_trial_add(None, trial)
    return pruner.on_trial_result(None, trial, {"quarters": quarters, "bpd_there": bpd}), name


def status(out, name):
    file = out / "runs" / name / "result.json"
    return json.loads(file.read_text())["run"]["status"] if file.exists() else None


def test_the_worse_half_at_a_share_ends_there(space, tmp_path):
    pruner = Pruner("halving", space, tmp_path, [])
    go, stop = TrialScheduler.CONTINUE, TrialScheduler.STOP
    decisions = [(0.5, 1, 3.0), (0.6, 1, 4.0), (0.7, 1, 2.0), (0.5, 2, 2.5), (0.7, 2, 2.6)]
    reached = [reach(pruner, space, *each) for each in decisions]
    assert [decision for decision, _ in reached] == [go, stop, go, go, stop]
    assert [status(tmp_path, name) for _, name in reached] == [None, PRUNED, PRUNED, None, PRUNED]
    assert [(tmp_path / "runs" / name / "state").exists() for _, name in reached[:2]] == [
        True,
        False,
    ]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("is_pruned", [False, True])
def test_only_a_pruned_candidate_loses_what_it_writes_when_it_is_stopped(
    space, tmp_path, is_pruned
):
    planned = space.run_of(space.base)
    folder = tmp_path / "runs" / planned.run_id
    write_json(tmp_path / lease.FILE, {})

    def stop(progress):
        if is_pruned:
            write_result(folder, kept_rows(folder)[progress["quarters"]])
        (folder / "state").mkdir(exist_ok=True)
        (folder / "state" / "100.pt").touch()
        raise SystemExit

    with pytest.raises(SystemExit):
        execute(planned, str(tmp_path), str(tmp_path), lambda _: None, partial(Rungs, stop))
    assert (folder / "state").exists() != is_pruned


def test_a_resumed_search_compares_with_the_candidates_before(space, tmp_path):
    before = Pruner("halving", space, tmp_path, [])
    names = [reach(before, space, ratio, 1, bpd)[1] for ratio, bpd in ((0.5, 3.0), (0.6, 2.0))]
    fresh = Pruner("halving", space, tmp_path, [])
    resumed = Pruner("halving", space, tmp_path, names)
    assert reach(fresh, space, 0.7, 1, 2.7)[0] == TrialScheduler.CONTINUE
    assert reach(resumed, space, 0.8, 1, 2.7)[0] == TrialScheduler.STOP


def test_hyperband_compares_some_later_and_some_never(space, tmp_path):
    names = [f"{number:010x}" for number in range(0, 16**10, 16**10 // 200)]
    drawn = [bracket_of(name, "hyperband") for name in names]
    shares = [drawn.count(bracket) / len(names) for bracket in range(3)]
    assert shares == pytest.approx(parts("hyperband"), abs=0.01)
    assert {bracket_of(name, "halving") for name in names} == {0}
    pruner = Pruner("hyperband", space, tmp_path, [])
    by_bracket = {}
    for ratio in [0.3 + 0.01 * step for step in range(60)]:
        bracket = bracket_of(space.name(params(space, ratio)), "hyperband")
        by_bracket.setdefault(bracket, []).append(ratio)
    for bracket, last in ((0, 1), (1, 2), (2, 2)):
        first, second = by_bracket[bracket][:2]
        for quarters in range(1, last + 1):
            decisions = [reach(pruner, space, first, quarters, 2.0)[0]]
            decisions.append(reach(pruner, space, second, quarters, 3.0)[0])
        stops = TrialScheduler.STOP in decisions
        assert stops == (bracket < 2)


def test_what_pruning_should_save_is_what_it_saves(space, tmp_path):
    """Candidates that come one by one in random order, whose shares tell how they end."""
    count, finished, budgets = 40, 0, 0.0
    for order in range(4):
        pruner = Pruner("halving", space, tmp_path / str(order), [])
        for position in range(count):
            bpd = 2 + (position * 17 + 7 * order) % count / count
            used = 4
            for quarters in (1, 2):
                ratio = 0.3 + 0.01 * position
                if reach(pruner, space, ratio, quarters, bpd)[0] == TrialScheduler.STOP:
                    used = quarters
                    break
            finished, budgets = finished + (used == 4), budgets + used / 4
    foreseen = expected(count, 0, "halving")
    assert finished / 4 == pytest.approx(foreseen.finished, rel=0.3)
    assert budgets / 4 == pytest.approx(foreseen.budgets, rel=0.15)


def test_a_pruned_candidate_is_told_once_and_is_not_tried_again(space, tmp_path):
    study = open_study(space, journal := open_journal(tmp_path))
    asked = Suggester(space, study, journal, 0, 3, tmp_path)
    names = [space.name(asked.suggest(trial)) for trial in "abc"]
    for name in names[:2]:
        row = {"run_id": name, "status": PRUNED, "bpd": 3.0}
        write_json(tmp_path / "runs" / name / "result.json", {"run": row, "evaluations": []})
    asked.on_trial_complete("a", {"quarters": 1, "bpd_there": 3.0})
    assert asked.left == 2
    settle(study, space, tmp_path)  # the driver was killed before it could tell b
    states = [trial.state for trial in study.trials]
    stopped = [TrialState.PRUNED, TrialState.PRUNED, TrialState.FAIL, TrialState.WAITING]
    assert states == stopped
    assert [space.name(each) for each in ended(study, space, tmp_path)] == names[:2]
    assert study.best_trials == []


def test_the_sampler_takes_pruned_candidates_for_the_worst(space, tmp_path):
    """Those that learn slowly are pruned: the sampler must leave them alone."""
    study = open_study(space, journal := open_journal(tmp_path))
    asked = Suggester(space, study, journal, 0, 60, tmp_path)
    slow = []
    for trial in map(str, range(40)):
        config = asked.suggest(trial)
        name, ratio = space.name(config), config["lr_ratio"]
        slow.append(ratio < 1)
        if ratio < 1:
            row = {"run_id": name, "status": PRUNED, "bpd": 3.0}
            write_json(tmp_path / "runs" / name / "result.json", {"run": row, "evaluations": []})
            asked.on_trial_complete(trial, {"quarters": 1, "bpd_there": 3.0})
        else:
            asked.on_trial_complete(trial, {"bpd": 3 - ratio, "kid": 2 - ratio})
    assert len(pruned(study)) == sum(slow)
    assert sum(slow[-20:]) < sum(slow[:20])
    assert sum(slow[-20:]) < 7  # two thirds of the range are slow


def test_a_run_waits_for_the_decision_unless_it_has_to_leave(monkeypatch):
    decision = threading.Event()

    def report(progress):
        assert decision.wait(60)
        if progress["bpd_there"] > 3:
            sys.exit(0)

    monkeypatch.setattr(ray.tune, "report", report)
    reporter = Reporter()
    leaving = threading.Timer(0.5, request_stop)
    leaving.start()
    reporter.ask({"quarters": 1, "bpd_there": 2.0})  # returns without an answer
    decision.set()
    reporter.ask({"quarters": 1, "bpd_there": 2.0})
    with pytest.raises(SystemExit):
        reporter.ask({"quarters": 2, "bpd_there": 4.0})


def test_a_grid_trains_what_a_search_has_pruned(space, tmp_path):
    planned = space.run_of(space.base)
    row = {"run_id": planned.run_id, "status": PRUNED, "bpd": 3.0, "error": None}
    result = {"run": row, "evaluations": []}
    write_json(tmp_path / "runs" / planned.run_id / "result.json", result)
    plan = make_plan(space.study, tmp_path, runs=[planned])
    assert [row.state for row in plan.left] == ["to do"]
    assert not search.make_search_plan(Options(trials=0), space, tmp_path).rows


def test_progress_counts_what_was_stopped_early():
    progress = Progress(3, {}, 1, search.Console(quiet=True), [{"status": PRUNED}, {"bpd": 2.0}])
    task = SimpleNamespace(run_id="a", label="a")
    progress.start(task)
    row = {"status": PRUNED, "bpd": 1.0, "error": "stopped at 1/4 of its budget"}
    progress.end(task, row)
    assert progress.counts().startswith("1 of 5 done · 2 stopped early · best 2.000 bits")
    assert "a stopped at 1/4 of its budget: 1.000 bits per dimension there" in progress.lines[0]


@with_ray
def test_a_killed_search_with_pruning_resumes(tmp_path):
    """Pruned candidates stay so, and comparisons change no number of the others."""
    out, study = tmp_path / "out", write_study(tmp_path, searched())
    options = Options(study=str(study), trials=6, sampler_trials=0, out=out, prune="halving")
    command = [sys.executable, search.__file__, study, "--out", out, "--trials", "6"]
    command += ["--sampler-trials", "0", "--prune", "halving", "--yes"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def results():
        return {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")}

    deadline = time.monotonic() + 240
    while len(results()) < 2 and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = results()
    assert kept
    assert search.search(options) == 0
    assert kept.items() <= results().items()
    kept = results()
    assert search.search(options) == 0
    assert kept == results()

    space, table = TrainingSpace(resolve_study(searched()), BUDGET), rows(out)
    title, journal = space.title, open_journal(out)
    told = optuna.load_study(study_name=title, storage=journal)
    assert all(trial.state.is_finished() for trial in told.trials)
    assert len(completed(told)) + len(pruned(told)) == 6
    stopped = {space.name(trial.params) for trial in pruned(told)}
    assert stopped
    assert stopped == {name for name, row in table.items() if row["status"] == PRUNED}
    for name in stopped:
        row, whole = table[name], json.loads(table[name]["config"])["images"]
        assert row["images"] / whole == pytest.approx(
            0.25 if "1/4" in row["error"] else 0.5, abs=32 / whole
        )
        assert row["flops"] < 0.6 * BUDGET
        assert not (out / "runs" / name / "model.safetensors").exists()
        assert not (out / "runs" / name / "state").exists()
        assert (out / "runs" / name / "curve.parquet").exists()
    assert not stopped & set(scored_runs(out, list(table))["run_id"])

    survivor = next(trial for trial in completed(told) if WORST not in trial.values)
    planned = space.run_of(survivor.params)
    alone = run(planned.config, tmp_path / "alone", "search")
    assert alone["bpd"] == table[planned.run_id]["bpd"]
