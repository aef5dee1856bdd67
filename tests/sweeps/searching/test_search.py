import json
import math
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from optuna.trial import TrialState
from ray.tune.search import Searcher
from rich.console import Console

from analysis.study.settings import best_setting, pareto_front
from sweeps import scaling, search
from sweeps.design.outcomes import WORST
from sweeps.design.presets import load
from sweeps.design.study import Size, grid, resolve_study
from sweeps.search import Options
from sweeps.searching.candidates import objectives
from sweeps.searching.choice import choose, rule, verdict, worth_sampling
from sweeps.searching.explore import STARTUP, RoundRobinSearcher, Suggester
from sweeps.searching.journal import completed, draws, ended, open_journal, open_study, settle
from sweeps.searching.sampler_space import SamplingSpace
from sweeps.searching.space import SEED, TrainingSpace
from sweeps.watching.progress import Progress
from tarflow import cost
from tarflow.config import NoiseConfig, RunConfig, SamplerConfig
from tarflow.config_files import read_yaml, to_dict, to_yaml
from tarflow.data.images import open_split
from tarflow.errors import UserError
from tarflow.evaluate.checkpoint_scores import evaluate_setting
from tarflow.evaluate.feature_cache import cached_features
from tarflow.evaluate.features import features, find_extractor
from tarflow.evaluate.metrics import kid
from tarflow.identity import HALVES, WHOLE, run_id, setting_id
from tarflow.model.noise import to_pixels
from tarflow.model.weights import save_model
from tarflow.record import read_table, write_json
from tarflow.run import resolve_config
from tarflow.sample.sampling import sample

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
BUDGET = 2e8


def wee(name="wee", budget=BUDGET):
    """Return a study whose candidates take a second or two each."""
    study = load("tiny")
    evaluation = replace(study.base.evaluation, decoder_images=64, samples=24)
    return replace(
        study,
        name=name,
        base=replace(
            study.base,
            model=replace(study.base.model, patch=14, channels=8),
            evaluation=evaluation,
            execution=replace(study.base.execution, checkpoint_seconds=0.2, report_seconds=0.2),
        ),
        sizes=tuple(Size(channels=width, blocks=2, layers=1) for width in (8, 16)),
        budgets=(budget,),
        held_out=None,
        replicated=None,
    )


def on_ray(test):
    return pytest.mark.ray(pytest.mark.usefixtures("local_ray")(test))


def written(folder, study):
    path = folder / f"{study.name}.yaml"
    path.write_text(to_yaml(study))
    return str(path)


def stamps(out, pattern="runs/*/result.json"):
    return {path: path.stat().st_mtime_ns for path in out.glob(pattern)}


def journal_of(out, title):
    return optuna.load_study(study_name=title, storage=open_journal(out))


def check_journal(out, trials):
    """Every trial is closed, no config was tried twice, and the values are those of the table."""
    space = TrainingSpace(resolve_study(wee()), BUDGET)
    study = journal_of(out, space.title)
    assert all(trial.state.is_finished() for trial in study.trials)
    done = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert len(done) == len({space.name(trial.params) for trial in done}) == trials
    runs = {row["run_id"]: row for row in read_table(out / "runs.parquet").to_pylist()}
    scores = [r for r in read_table(out / "evaluations.parquet").to_pylist() if r["half"] == "all"]
    found = {row["run_id"]: row["kid"] for row in scores}
    for trial in done:
        name = space.name(trial.params)
        assert trial.values == [runs[name]["bpd"], found[name]]
    return runs


@on_ray
def test_a_search_resumes_and_repeats_nothing(tmp_path, capsys):
    path, out = written(tmp_path, wee()), tmp_path / "out"
    options = Options(study=path, trials=4, sampler_trials=3, out=out)
    assert search.search(options) == 0
    printed = capsys.readouterr().out
    runs = check_journal(out, 4)
    assert {row["role"] for row in runs.values()} == {"search"}
    assert all(abs(row["flops"] / BUDGET - 1) < 0.1 for row in runs.values())
    sampled = {}
    for file in out.glob("runs/*/evaluations/*.json"):
        rows = json.loads(file.read_text())
        assert [row["half"] for row in rows] == ["chosen", "scored"]
        assert [row["n"] for row in rows] == [12, 12]
        assert {row["seed"] for row in rows} == {SEED}
        sampled.setdefault(file.parts[-3], []).append(rows[0]["kid"])
    assert sampled
    for name, kids in sampled.items():
        inner = journal_of(out, f"sampling-{name}")
        values = [trial.value for trial in inner.trials if trial.state == TrialState.COMPLETE]
        assert len(values) == 3
        assert set(values) == set(kids)

    best = resolve_config(read_yaml(RunConfig, out / "best.yaml"))
    assert run_id(best) not in runs
    assert best.images in {4 * row["images"] for row in runs.values()}
    words = (out / "best.yaml").read_text()
    assert "lowest KID within 1.0% of the lowest BPD" in words.replace("\n# ", " ")
    assert re.search(r"BPD +KID +±", printed)  # the setting leaves room for numbers
    assert "Pareto front" in printed
    assert "Pareto front" in (out / "report.html").read_text()

    before = stamps(out), stamps(out, "runs/*/evaluations/*.json")
    assert search.search(replace(options, trials=6)) == 0
    check_journal(out, 6)
    assert before[0].items() < stamps(out).items()
    assert before[1].items() <= stamps(out, "runs/*/evaluations/*.json").items()
    assert "(4 done)" in capsys.readouterr().out
    before = stamps(out)
    assert search.search(replace(options, trials=6)) == 0  # nothing is left to do
    assert "every run is done already" in capsys.readouterr().out
    assert stamps(out) == before

    space = TrainingSpace(resolve_study(wee()), BUDGET)
    study = journal_of(out, space.title)  # a repeated suggestion takes what is there
    study.enqueue_trial(study.trials[0].params)
    before = stamps(out)
    assert search.search(replace(options, trials=7, sampler_trials=0)) == 0
    assert stamps(out) == before
    study = journal_of(out, space.title)
    assert study.trials[-1].values == study.trials[0].values


@pytest.mark.slow
@on_ray
def test_a_killed_search_resumes_from_a_script_alone_in_a_folder(tmp_path):
    script, out = shutil.copy(search.__file__, tmp_path), tmp_path / "out"
    written(tmp_path, wee())
    command = [sys.executable, script, "wee.yaml", "--out", "out", "--trials", "4"]
    command += ["--sampler-trials", "1", "--yes"]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not stamps(out) and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = stamps(out)
    assert done
    assert len(done) < 4
    again = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert again.returncode == 0, again.stdout + again.stderr
    check_journal(out, 4)
    kept = stamps(out)
    assert all(kept[path] == stamp for path, stamp in done.items())
    assert not (out / ".ray").exists()


@on_ray
def test_a_mistake_that_only_a_worker_finds_ends_the_search(tmp_path):
    study = wee()
    evaluation = replace(study.base.evaluation, features="efficientnt")
    path = written(tmp_path, replace(study, base=replace(study.base, evaluation=evaluation)))
    with pytest.raises(UserError, match="no features 'efficientnt'"):
        search.search(Options(study=path, trials=2, out=tmp_path / "out"))


@pytest.mark.slow
@on_ray
def test_example_searches(capsys):
    path = Path(__file__).parents[3] / "examples" / "search_digits.py"
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "trials, lowest" in line]
    assert lines[0].startswith("training-1e09: 3 trials, lowest BPD ")
    assert all(line.startswith("sampling-") for line in lines[1:])
    assert len(lines) > 1


# ------------------------------------------------------------------------------------ the journal


@pytest.fixture
def begun(tmp_path):
    """Return a space, its new Optuna study, and a way to make a searcher of it."""
    space = TrainingSpace(resolve_study(wee()), BUDGET)
    journal = open_journal(tmp_path)
    study = open_study(space, journal)
    return space, study, lambda seed: Suggester(space, study, journal, seed, 40, tmp_path)


def test_no_trial_stays_open(begun, tmp_path):
    space, study, searcher = begun
    asked = searcher(0)
    for name in "abcde":
        asked.suggest(name)
    asked.on_trial_complete("a", {"bpd": 2.0, "kid": 1.0})
    asked.on_trial_complete("b", {"bpd": None, "kid": None, "status": "failed"})
    asked.on_trial_complete("c", {"bpd": math.nan, "kid": 1.0})
    asked.on_trial_complete("d", error=True)
    asked.on_trial_complete("e", {"images": 32})  # stopped on the way
    states = [trial.state for trial in study.trials]
    fail = TrialState.FAIL
    assert states == [TrialState.COMPLETE, fail, fail, fail, TrialState.RUNNING]
    settle(study, space, tmp_path)
    stopped = study.trials[4]
    assert stopped.state == fail
    assert space.name(searcher(1).suggest("f")) == space.name(stopped.params)  # first in line


DIVERGED = {"status": "failed", "error": "Diverged: the loss is not finite after 640 images"}
CRASHED = {"status": "failed", "error": "RuntimeError: the process died (out of memory?)"}


def write_run(out, name, row, kid=1.5):
    """Write the result of a run as `tarflow.run` does."""
    scores = [{"half": "all", "kid": kid}] if row["status"] == "done" else []
    result = {"run": {"run_id": name, **row}, "evaluations": scores}
    write_json(out / "runs" / name / "result.json", result)


def test_a_run_that_ended_unheard_is_told_and_a_crashed_one_does_not_count(begun, tmp_path):
    space, study, searcher = begun
    asked = searcher(0)
    names = [space.name(asked.suggest(name)) for name in "abcd"]
    for name, row in zip(names, ({"status": "done", "bpd": 2.5}, DIVERGED, CRASHED), strict=False):
        write_run(tmp_path, name, row)
    settle(study, space, tmp_path)
    assert [trial.values for trial in study.trials[:2]] == [[2.5, 1.5], [WORST, WORST]]
    states = [trial.state for trial in study.trials[2:]]
    assert states == [TrialState.FAIL, TrialState.FAIL, TrialState.WAITING]
    assert [space.name(params) for params in ended(study, space, tmp_path)] == names[:2]
    write_run(tmp_path, names[0], {"status": "done", "bpd": None})
    assert space.values(study.trials[0].params, tmp_path) == [WORST, WORST]


def test_divergences_that_an_earlier_release_called_failures_are_told_once(begun, tmp_path):
    space, study, searcher = begun
    asked = searcher(0)
    names = [space.name(asked.suggest(name)) for name in "ab"]
    for trial, name, row in zip("ab", names, (DIVERGED, CRASHED), strict=True):
        write_run(tmp_path, name, row)
        asked.on_trial_complete(trial, error=True)
    assert [space.name(params) for params in ended(study, space, tmp_path)] == names[:1]
    for _ in range(2):
        settle(study, space, tmp_path)
        assert [trial.values for trial in study.trials] == [None, None, [WORST, WORST]]
        assert [space.name(params) for params in ended(study, space, tmp_path)] == names[:1]


def test_a_candidate_that_diverged_is_not_planned_again(begun, tmp_path):
    space, study, searcher = begun
    write_run(tmp_path, space.name(searcher(0).suggest("a")), DIVERGED)
    settle(study, space, tmp_path)
    options = Options(trials=2)
    plan = search.make_search_plan(options, space, tmp_path)
    assert len(plan.left) == 1
    assert "  1 diverged before" in search.in_words(options, space, plan, 1.0)


def test_the_sampler_learns_to_avoid_a_cliff(begun):
    """BPD and KID fall with the learning rate until it is 1.1 times the study's, then diverge."""
    space, _, searcher = begun
    asked = searcher(0)
    beyond = []
    for trial in map(str, range(40)):
        ratio = asked.suggest(trial)["lr_ratio"]
        row = DIVERGED if ratio > 1.1 else {"status": "done", "bpd": 3 - ratio}
        beyond.append(row is DIVERGED)
        with tempfile.TemporaryDirectory() as out:
            write_run(Path(out), space.name(asked.study.trials[-1].params), row, kid=2 - ratio)
            scores = objectives(space, asked.study.trials[-1].params, out)
        asked.on_trial_complete(trial, {"status": row["status"], **scores})
    assert np.mean(beyond[STARTUP:]) < 0.5


def test_crashed_trials_are_replaced_once_they_have_ended(begun):
    _, study, searcher = begun
    progress = Progress(3, {}, 2, Console())
    asked = searcher(0)
    asked.left = 3
    turns = RoundRobinSearcher([asked], progress)
    good = {"bpd": 2.0, "kid": 1.0}
    for trial in "abc":
        assert isinstance(turns.suggest(trial), dict)
    assert turns.suggest("d") is None  # those that run may crash
    turns.on_trial_complete("a", {"bpd": None, "kid": None, "status": "failed"})
    turns.on_trial_complete("b", good)
    assert isinstance(turns.suggest("d"), dict)
    turns.on_trial_complete("c", error=True)
    turns.on_trial_complete("d", good)
    assert isinstance(turns.suggest("e"), dict)
    turns.on_trial_complete("e", good)
    assert turns.suggest("f") == Searcher.FINISHED
    assert len(completed(study)) == 3
    assert progress.total == 5  # three that count and two that crashed


def test_two_trials_never_work_on_one_run(begun):
    space, study, searcher = begun
    study.enqueue_trial(space.base)
    asked = searcher(0)
    first, second = asked.suggest("a"), asked.suggest("b")
    assert space.name(first) == space.name(space.base)
    assert space.name(second) != space.name(first)


def test_a_seed_is_not_used_twice(begun):
    _, study, searcher = begun
    searcher(0).suggest("base")
    assert searcher(5).suggest("a") != searcher(6).suggest("b")
    assert searcher(5).suggest("c") == {**study.trials[1].params}


# -------------------------------------------------------------------------------------- the spaces


@pytest.mark.parametrize("name", ["digits", "tiny", "cifar10", "starflow-split"])
def test_candidates_cost_the_same_and_can_be_built(name):
    study = load(name)
    space = TrainingSpace(study, search.middle(study.budgets))
    for params in [space.base, *draws(space, 40, seed=1)]:
        config = space.run_of(params).config
        step = study.base.batch * cost.training_flops(config.model)
        assert abs(cost.run_flops(config) - space.budget) <= step / 2 * 1.001
        assert study.min_images * 0.9 <= config.images <= study.max_images * 1.1


def test_a_split_study_is_searched_over_its_splits_at_any_depth():
    study = resolve_study(load("starflow-split"))
    space = TrainingSpace(study, search.middle(study.budgets))
    assert space.splits == ("4-4-4-4", "2-2-2-10", "1-1-1-13")
    assert space.depths == {"total_layers": (8, 32)}
    params = {"channels": 32, "lr_ratio": 1.0, "noise_std": 0.25}
    models = [
        space.run_of(params | {"split": split, "total_layers": total}).config.model
        for split, total in (("4-4-4-4", 12), ("1-1-1-13", 8), ("1-1-1-13", 32))
    ]
    assert [model.layers for model in models] == [3, (1, 1, 1, 5), (2, 2, 2, 26)]
    assert {params["split"] for params in draws(space, 40, seed=1)} == set(space.splits)
    assert "layers split 4-4-4-4 or 2-2-2-10" in words_of(space)


def words_of(space):
    plan = search.make_search_plan(Options(trials=1), space, Path("nowhere"))
    return "\n".join(search.in_words(Options(trials=1), space, plan, 1.0))


@pytest.mark.parametrize("name", ["tiny", "starflow-split"])
def test_the_base_is_the_run_of_the_grid(name):
    study = resolve_study(load(name))
    space = TrainingSpace(study, study.budgets[0])
    assert space.name(space.base) in {run.run_id for run in grid(study)}


def test_settings_that_do_the_same_are_one():
    digits = SamplingSpace("a", "a", resolve_study(wee()).base)
    off = SamplerConfig()
    still = digits.base | {"denoise": 1.0}
    assert (
        digits.sampler(still | {"guidance": 0.0, "temperature": 0.4, "rule": "sigma-linear"})
        == off
    )
    assert digits.sampler(still | {"guidance": 0.7, "guided_blocks": "top:1"}) == off
    assert digits.sampler(digits.base) == off
    model = replace(digits.config.model, classes=10, blocks=2)
    classes = replace(digits, config=replace(digits.config, model=model))
    two = classes.sampler(still | {"guidance": 2.0, "guided_blocks": "top:2"})
    assert two == SamplerConfig(guidance=2.0)
    uniform = replace(digits, config=replace(digits.config, noise=NoiseConfig(type="uniform")))
    assert "denoise" not in uniform.base
    assert uniform.sampler(uniform.base) == off


@pytest.mark.parametrize(
    ("blocks", "choices"),
    [
        (1, ["all"]),
        (3, ["all", "top:1", "top:2"]),
        (8, ["all", "top:1", "top:2", "top:3", "top:5"]),
    ],
)
def test_a_search_holds_the_own_setting_of_a_run(blocks, choices):
    own = SamplerConfig(guidance=3.4, rule="gaussian-score", guided_blocks="top:5", denoise=0.0)
    base = resolve_study(wee()).base
    config = replace(base, model=replace(base.model, classes=10, blocks=blocks), sampler=own)
    space = SamplingSpace("a", "a", config)
    own = own if blocks > 5 else replace(own, guided_blocks="all")
    assert space.sampler(space.base) == own
    assert list(space.words["guided_blocks"]) == choices
    for params in [*space.starts, *draws(space, 20, seed=1)]:
        assert all(low <= params[name] <= high for name, (low, high) in space.ranges.items())
        assert all(params[name] in found for name, found in space.words.items())
    assert len({space.sampler(params).rule for params in draws(space, 20, seed=1)}) == 3


def test_the_own_setting_is_scored_with_all_its_digits(tmp_path):
    own = SamplerConfig(guidance=1.2345, temperature=0.8765, denoise=0.975)
    base = resolve_study(wee()).base
    config = replace(base, model=replace(base.model, classes=10), sampler=own)
    space = SamplingSpace("a", "a", config)
    journal = open_journal(tmp_path)
    searcher = Suggester(space, open_study(space, journal), journal, 0, 4, tmp_path)
    assert space.sampler(searcher.suggest("own")) == own
    other = space.sampler(space.base | {"guidance": 2.3456, "temperature": 0.8764})
    assert other == replace(own, guidance=2.35, temperature=0.88)


def test_draws_scored_together_and_in_halves_have_two_names():
    config = resolve_study(wee()).base
    names = [setting_id(config, 0), setting_id(config, 0, WHOLE), setting_id(config, 0, HALVES)]
    assert names[0] == names[1] != names[2]
    assert setting_id(config, 0, list(HALVES)) == names[2] != setting_id(config, 1, HALVES)


# --------------------------------------------------------------------------- halves and the choice


def test_halves_are_disjoint_draws_and_are_made_once(tmp_path, random_flow):
    config = replace(resolve_study(wee()).base, sampler=SamplerConfig(denoise=0))
    fields = {"image_size": 28, "image_channels": 1, "patch": 14, "channels": 8, "blocks": 2}
    flow = random_flow(torch.float32, layers=2, **fields)
    config = replace(config, model=flow.config)
    save_model(tmp_path / "model.safetensors", flow.state_dict(), config)
    sampler = SamplerConfig(guidance=0.5, temperature=0.5, denoise=0)
    rows = evaluate_setting(tmp_path, sampler, seed=3)
    drawn = sample(flow, 24, sampler, config.noise, seed=3, batch=250)
    extractor = find_extractor(config.evaluation.features)
    made = features(to_pixels(drawn.images), extractor)
    real = cached_features(open_split(config.data, "validation").pixels, extractor)
    for row, half in zip(rows, ((made[:12], real[::2]), (made[12:], real[1::2])), strict=True):
        assert row["kid"] == pytest.approx(kid(*half)[0], rel=1e-4)
    (tmp_path / "model.safetensors").touch()
    before = stamps(tmp_path, "evaluations/*.json")
    assert evaluate_setting(tmp_path, sampler, seed=3) == json.loads(json.dumps(rows))
    assert stamps(tmp_path, "evaluations/*.json") == before
    evaluate_setting(tmp_path, sampler, seed=4)
    evaluate_setting(tmp_path, SamplerConfig(denoise=0), seed=3)
    assert len(stamps(tmp_path, "evaluations/*.json")) == 3


def table(*rows, **columns):
    setting = {"part": "both", "annealed": True, "denoise": 1.0, "solver": "sequential"}
    setting |= {"rule": "log-scale", "guided_blocks": "all"}
    setting |= {"temperature": 1.0, "feature_extractor": "e"}
    return pd.DataFrame([{**setting, **columns, **row} for row in rows])


def test_a_setting_is_chosen_on_one_half_and_judged_on_the_other():
    found = best_setting(
        table(
            {"guidance": 0.0, "half": "all", "kid": 0.5},
            {"guidance": 0.1, "half": "chosen", "kid": 2.0},
            {"guidance": 0.1, "half": "scored", "kid": 1.0},
            {"guidance": 0.2, "half": "chosen", "kid": 1.0},
            {"guidance": 0.2, "half": "scored", "kid": 3.0},
            run_id="a",
            bpd=2.0,
        )
    )
    assert found[["guidance", "kid"]].to_numpy().tolist() == [[0.2, 3.0]]


def sampled(out, space, sampler, kids, se=0.1):
    """Write the scores of one setting as the inner search does."""
    config = replace(space.config, sampler=sampler)
    rows = [
        {"run_id": space.run_id, **to_dict(sampler), "seed": SEED, "half": half, "kid": kid}
        | {"kid_se": se, "feature_extractor": "e"}
        for half, kid in zip(HALVES, kids, strict=True)
    ]
    name = f"{setting_id(config, SEED, HALVES)}.json"
    write_json(out / "runs" / space.run_id / "evaluations" / name, rows)


def test_a_setting_replaces_the_own_one_only_beyond_chance(tmp_path):
    own = SamplerConfig(denoise=0.9)
    space = SamplingSpace("a", "the run", replace(resolve_study(wee()).base, sampler=own))
    sampled(tmp_path, space, own, (2.0, 2.0))
    assert verdict(space, tmp_path) is None  # nothing to compare with
    lucky = SamplerConfig(guidance=0.5, temperature=0.4, rule="gaussian-score")
    untested = replace(space, run_id="b")
    sampled(tmp_path, untested, lucky, (0.1, 0.1))
    assert verdict(untested, tmp_path).sampler == own  # the default setting was not scored
    sampled(tmp_path, space, lucky, (1.0, 1.9))
    kept = verdict(space, tmp_path)
    assert kept.sampler == own
    assert "gaussian-score" in kept.words
    assert "the run's own is kept" in kept.words
    sampled(tmp_path, space, lucky, (1.0, 2.1))
    assert "Higher by 0.1, " in verdict(space, tmp_path).words
    sampled(tmp_path, space, lucky, (1.0, 1.9))
    better = replace(lucky, guided_blocks="top:1")
    sampled(tmp_path, space, better, (0.9, 1.5))
    used = verdict(space, tmp_path)
    assert used.sampler == better
    assert "Lower by 0.5, the 90% interval of a difference is ± 0.233: it is used" in used.words
    sampled(tmp_path, space, own, (0.1, 2.0))
    assert verdict(space, tmp_path).sampler == own


@pytest.mark.slow
@on_ray
def test_a_grid_ends_with_a_search_for_a_way_to_sample(tmp_path, capsys):
    study = replace(wee(), sizes=wee().sizes[:1])
    path, out = written(tmp_path, study), tmp_path / "out"
    options = scaling.Options(study=path, out=out, sampler_trials=2)
    assert scaling.scale(options) == 0
    printed = capsys.readouterr().out
    assert "then 2 sampler settings of the best run" in printed
    files = stamps(out, "runs/*/evaluations/*.json")
    assert len(files) == 2
    best = (out / "best.yaml").read_text()
    assert "Sampler: of 2 settings tried on" in best
    assert scaling.scale(options) == 0  # nothing is left to do
    assert "every run is done already" in capsys.readouterr().out
    assert (out / "best.yaml").read_text() == best
    runs = stamps(out)
    assert scaling.scale(replace(options, sampler_trials=3)) == 0  # one more
    more = stamps(out, "runs/*/evaluations/*.json")
    assert files.items() < more.items()
    assert len(more) == 3
    assert stamps(out) == runs


def test_the_choice_is_the_best_samples_near_the_best_bpd():
    found = pd.DataFrame(
        [("a", 2.0, 9.0), ("b", 2.01, 5.0), ("c", 2.015, 7.0), ("d", 2.1, 1.0)],
        columns=["run_id", "bpd", "kid"],
    )
    assert pareto_front(found)["run_id"].tolist() == ["a", "b", "d"]
    assert choose(found.assign(kid_chosen=np.nan))["run_id"] == "b"
    assert choose(found.assign(kid_chosen=[3.0, 2.0, 1.0, 0.0]))["run_id"] == "c"
    assert choose(found.assign(kid_chosen=[3.0, np.nan, np.nan, 0.0]))["run_id"] == "a"


def test_the_kid_of_the_chosen_run_is_not_low_by_luck():
    """Twenty runs that are equally good: the KID of the chosen one is right on average."""
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(200):
        rows = [
            {"run_id": run, "guidance": guidance, "half": half, "kid": rng.normal(1.0, 0.1)}
            for run in map(str, range(20))
            for guidance in (0.0, 0.5)
            for half in HALVES
        ]
        errors.append(choose(best_setting(table(*rows, bpd=2.0)))["kid"] - 1.0)
    assert abs(np.mean(errors)) < 4 * 0.1 / len(errors) ** 0.5


def test_the_front_of_equal_runs_is_drawn_without_bias():
    """Twenty runs of equal KID, BPD falling: what is lowest by one half is not so by the other."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(200):
        runs = pd.DataFrame({"bpd": np.arange(20.0), "kid": rng.normal(1.0, 0.1, 20)})
        runs["kid_chosen"] = rng.normal(1.0, 0.1, 20)
        drawn.append(pareto_front(runs)["kid"].mean())
    assert abs(np.mean(drawn) - 1.0) < 4 * np.std(drawn) / len(drawn) ** 0.5


def test_a_setting_drawn_twice_is_not_scored_at_its_luckier_draw():
    rng = np.random.default_rng(0)
    kids = []
    for _ in range(400):
        rows = [
            {"guidance": 0.0, "half": half, "kid": rng.normal(1.0, 0.1)}
            for _seed in range(2)
            for half in HALVES
        ]
        kids.append(best_setting(table(*rows, run_id="a", bpd=2.0))["kid"].iloc[0])
    assert abs(np.mean(kids) - 1.0) < 4 * 0.1 / len(kids) ** 0.5


def test_the_printed_choice_says_which_draws_made_it():
    row = {"guidance": 0.0, "kid": 1.0, "kid_se": 0.1, "kid_chosen": 0.8, "label": "c8"}
    best = table(row, run_id="a", bpd=2.0).iloc[0]
    assert "by one half of the draws: c8 (a)" in rule(best, 5, 0)
    assert "KID 1 ± 0.1 at no guidance, denoising 1, on the other half." in rule(best, 5, 0)
    assert "KID does not tell it apart from 2 of them." in rule(best, 5, 2)
    best["kid_chosen"] = np.nan
    assert "it is low by luck too" in rule(best, 5, 0)


def test_the_front_and_every_noise_level_are_sampled():
    found = pd.DataFrame(
        [
            ("front", 2.0, 1.0, 0.4),
            ("worse", 2.2, 2.0, 0.4),
            ("middle", 2.4, 3.0, 0.2),
            ("low", 3.0, 4.0, 0.1),
            ("lower", 3.1, 4.0, 0.1),
        ],
        columns=["run_id", "bpd", "kid", "noise_std"],
    )
    assert worth_sampling(found)["run_id"].tolist() == ["front", "middle", "low"]
    uniform = found.assign(noise_std=np.nan)
    assert worth_sampling(uniform)["run_id"].tolist() == ["front"]


# -------------------------------------------------------------------------------- the command line


def test_dry_run_says_the_price_and_starts_nothing(call, tmp_path):
    out = tmp_path / "study"
    code, printed = call(search, "tiny", "--dry-run", "--out", out)
    assert code == 0
    assert "40 candidates of 1e+09 training FLOPs" in printed.out
    assert "40 runs (0 done), 4e+10 training FLOPs" in printed.out
    assert re.search(r"to do: [\d.]+ core-\w+, ", printed.out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digts"], "did you mean 'digits'?"),
        (["tiny", "--trials", "0"], "--trials must be at least 1"),
        (["tiny", "--budget", "-1"], "budget is -1"),
        (["tiny", "--budget", "nan"], "--budget is nan: it must be a finite number"),
        (["tiny", "--seed", "-1"], "seed is -1"),
        (["tiny", "--trails", "3"], "--trials"),
        (["cifar10", "--yes"], "data/cifar10"),
    ],
)
def test_a_mistake_is_told_without_a_traceback(call, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, printed = call(search, *arguments)
    assert code == 2
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not any(tmp_path.iterdir())
