"""A planted study end to end: its findings, the rows left out, the run recommended."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.laws.allocation import Sizes, allocate
from analysis.laws.average import fit_law
from analysis.laws.forms import SURFACE_FORMS
from analysis.laws.observations import Observations
from analysis.laws.repetition import effective_tokens
from analysis.study.advice import recommend, repetition
from analysis.study.findings import find
from analysis.study.forecast import forecast
from analysis.study.rows import choose
from analysis.study.warnings import warnings_of
from tarflow import config as c
from tarflow import cost, identity
from tarflow.config_files import to_dict
from tarflow.errors import UserError
from tarflow.evaluate.held_out import Likelihood
from tarflow.model_config import ModelConfig

SIZES, BUDGETS, LARGEST = (16, 32, 48, 64, 80), (1.5e11, 5e11, 1.5e12), (64, 6e12)


def run(channels, flops, seed=0, **changes):
    """One row of the runs table on the planted law 1.42 + 30/N^.4 + 46/D^.4."""
    config = c.RunConfig(
        model=ModelConfig(channels=channels, head_dim=16),
        data=c.DataConfig(hash="5eed"),
        optim=c.OptimConfig(lr=3e-3),
        precision="float32",
        batch=32,
        seed=seed,
    )
    images = c.round_images(flops / cost.training_flops(config.model), 32)
    config = replace(config, images=images)
    params, tokens = cost.params(config.model), images * config.model.tokens
    noise = np.random.default_rng([channels, int(flops / 1e9), seed]).normal()
    row = {
        "run_id": identity.run_id(config),
        "label": f"c{channels} {flops:.1e} s{seed}", "role": "grid",
        "status": "done", "config": json.dumps(to_dict(config)), "data_hash": "5eed",
        "classes": 0, "patch": 4, "channels": channels, "blocks": 4, "layers": 2, "lr": 3e-3,
        "noise_type": "gaussian", "noise_std": 0.2, "bpd_kind": "bound", "numerics_version": 1,
        "params": params, "tokens": tokens, "flops": cost.run_flops(config), "epochs": 1.0,
        "bpd": 1.42 + 30 / params**0.4 + 46 / tokens**0.4 + 0.003 * noise, "bpd_se": 0.01,
        "bpd_median": 1.6, "bpd_p99": 2.3, "bpd_max": 2.6, "seed": seed,
    }  # fmt: skip
    return row | changes


def table(*more):
    rows = [run(size, budget) for budget in BUDGETS for size in SIZES]
    rows += [run(48, BUDGETS[1], seed=1), run(48, BUDGETS[1], seed=2), run(*LARGEST)]
    return pd.DataFrame([*rows, *more])


def repeated(unique, **changes):
    """The same grid on few images: repeats are worth as much as in the planted law."""
    runs = table()
    epochs = runs["tokens"] / unique
    worth = effective_tokens(runs["tokens"], unique)
    bpd = runs["bpd"] + 46 / worth**0.4 - 46 / runs["tokens"] ** 0.4
    return runs.assign(epochs=epochs, bpd=bpd, **changes)


def evaluations(runs):
    return pd.DataFrame(
        {
            "run_id": runs["run_id"], "feature_extractor": "small", "guidance": 0.0,
            "rule": "log-scale", "part": "both", "guided_blocks": "all", "annealed": True,
            "temperature": 1.0, "denoise": 1.0,
            "solver": "sequential", "half": "all", "kid": 0.1 * runs["bpd"] ** 2,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def study():
    runs = table()
    return find(runs, evaluations(runs), draws=200)


def test_the_planted_law_is_found(study):
    assert len(study.runs) == 18
    assert [budget.sizes for budget in study.budgets] == [5, 5, 5, 1]
    for name, value in {"E": 1.42, "A": 30, "a": 0.4}.items():
        low, high = study.surface.intervals[name]
        assert low - 0.5 * (high - low) < value < high + 0.5 * (high - low)
    assert study.surface.predict(params=3e6, tokens=1e7) == pytest.approx(1.57, rel=0.01)
    assert study.noise.runs == 3
    assert 0.0005 < study.noise.std < 0.008


def test_the_largest_run_is_predicted_by_laws_that_have_not_seen_it(study):
    assert [item.law.form.inputs[0] for item in study.held_out] == ["flops", "params"]
    for item in study.held_out:
        assert item.law.rows == (3 if item.law.of_compute else 17)
        assert item.flops == pytest.approx(LARGEST[1], rel=0.01)
        assert item.ratio == pytest.approx(4, rel=0.02)
        assert abs(item.error) < 0.02 < abs(item.last_value_error)
        assert item.inside == (item.interval[0] <= item.achieved <= item.interval[1])


def test_the_frontier_is_the_best_of_every_budget(study):
    points = study.frontier_points
    assert len(points) == 4
    for budget, bpd in zip(study.budgets, points["bpd"], strict=True):
        values = study.runs[study.runs["run_id"].isin(budget.run_ids)]["bpd"]
        assert bpd == pytest.approx(values.min(), abs=0.006)
    assert points["bpd"].is_monotonic_decreasing


def test_the_law_of_compute_is_that_of_the_best_sizes_between_those_tried():
    def loss(params, tokens):
        return 1.42 + 30 / params**0.4 + 46 / tokens**0.4

    rows = pd.DataFrame(
        [run(size, budget) for budget in (*BUDGETS, 4e12) for size in (16, 32, 80)]
    )
    rows["bpd"] = loss(rows["params"], rows["tokens"])
    found = find(rows, None, draws=50)
    flops = found.frontier_points["flops"].to_numpy()
    sizes = Sizes(ModelConfig(head_dim=16))
    params = np.geomspace(1e4, 1e7, 2000)
    tokens = flops[:, None] / sizes.flops_per_token(params)
    best = loss(params, tokens).min(axis=1)
    assert (found.frontier_points["bpd"] / best - 1).max() > 0.005
    assert found.frontier.predict(flops=flops) == pytest.approx(best, rel=0.001)


def test_sizes_grow_with_the_budget(study):
    sizes = [item.params for item in study.allocation]
    assert sizes == sorted(sizes)
    assert [round(i.flops / study.budgets[-1].flops) for i in study.allocation][::5] == [1, 100]
    assert [item.sizes for item in study.isoflops] == [5, 5, 5]


def test_likelihood_and_quality_are_correlated_by_rank(study):
    assert study.correlation.spearman == pytest.approx(1)
    assert study.correlation.kendall == pytest.approx(1)
    assert study.correlation.runs == 18


def test_what_the_design_cannot_tell_is_a_warning(study):
    # In this grid every size has the same recipe and every budget brackets its best size.
    assert not any(
        "with the size" in line or "may be the best" in line for line in warnings_of(study)
    )
    batch = np.where(study.runs["channels"] > 48, 64, 32)
    edge = replace(study.isoflops[0], edge="largest", params_interval=(2e4, np.inf))
    other = replace(study, runs=study.runs.assign(batch=batch), isoflops=(edge,))
    lines = warnings_of(other)
    assert any(line.startswith("The batch size changes with the size") for line in lines)
    assert any("at least 20k parameters" in line for line in lines)


def test_row_order_does_not_matter(study):
    runs = table().sample(frac=1, random_state=3)
    other = find(runs, evaluations(runs), draws=200)
    assert warnings_of(other) == warnings_of(study)
    assert other.surface.values == study.surface.values
    assert other.allocation == study.allocation


def test_the_recommendation_is_a_run_not_yet_trained(study):
    advice = recommend(study)
    assert cost.run_flops(advice.config) == pytest.approx(4 * study.budgets[-1].flops, rel=0.01)
    assert identity.run_id(advice.config) not in set(study.finished["run_id"])
    assert "surface law" in advice.allocation.source
    assert f"{advice.config.model.channels} channels" in advice.explanation
    assert "more data" not in advice.explanation
    # With that run finished, the next recommendation is again a run not yet trained.
    again = run(16, 1e11, run_id=identity.run_id(advice.config))
    trained = replace(study, finished=pd.concat([study.finished, pd.DataFrame([again])]))
    assert identity.run_id(recommend(trained).config) != identity.run_id(advice.config)


def final_run(study, **changes):
    """The row of the recommended run, as a final run of the planted law."""
    config = recommend(study).config
    own = run(config.model.channels, cost.run_flops(config), role="final", split="validation")
    own |= {"run_id": identity.run_id(config), "config": json.dumps(to_dict(config))}
    return own | changes


def test_after_a_final_run_laws_read_it_and_the_next_budget_is_recommended(study):
    final = final_run(study)
    after = find(table(final), None, draws=50)
    assert final["run_id"] in set(after.runs["run_id"])
    assert cost.run_flops(recommend(after).config) == pytest.approx(4 * final["flops"], rel=0.01)
    # It alone is the largest budget, so the laws of the others are judged by it.
    assert {item.run_id for item in after.held_out} == {final["run_id"]}
    assert [item.ratio for item in after.held_out] == pytest.approx([4, 4], rel=0.01)
    assert all(item.inside for item in after.held_out)
    assert len(after.isoflops) == len(study.isoflops)


def test_uniform_noise_which_has_no_level_is_read():
    rows = table().assign(noise_type="uniform", noise_std=np.nan)
    chosen, left_out = choose(rows)
    assert len(chosen) == len(rows)
    assert not left_out


def test_final_runs_that_are_no_part_of_the_grid_are_left_out(study):
    noisy = json.loads(final_run(study)["config"])
    noisy["noise"]["std"] = 0.7
    rows = [
        final_run(study, split="test", run_id="a"),
        final_run(study, config=json.dumps(noisy), run_id="b"),
    ]
    chosen, left_out = choose(table(*rows))
    assert set(chosen["role"]) == {"grid"}
    assert {item.run_id: item.reason for item in left_out} == {
        "a": "scored on test images: laws read scores of validation images",
        "b": "noise.std is 0.1 in the grid, 0.7 in this run",
    }
    alone, _ = choose(pd.DataFrame([final_run(study)]))
    assert alone.empty  # a search, for example, has no grid and no law


def test_a_run_trained_outside_the_study_is_not_recommended_again(study):
    advice = recommend(study)
    written = forecast(study, advice.config, "best")
    assert recommend(replace(study, forecasts=(written,))).config == advice.config
    done = replace(study, forecasts=(replace(written, achieved=1.5),))
    assert cost.run_flops(recommend(done).config) == pytest.approx(4 * written.flops, rel=0.01)


def test_repeated_data_call_for_larger_models_and_more_images():
    findings = find(repeated(2e5), None, draws=50)
    advice = recommend(findings, 2e14)
    runs, config = findings.runs, advice.config
    seen = Observations(
        {name: runs[name].to_numpy(float) for name in ("params", "tokens")},
        runs["bpd"].to_numpy(float),
    )
    unaware = allocate(2e14, runs, config, fit_law(seen, SURFACE_FORMS, {}, draws=50), ())
    assert advice.allocation.params > 1.5 * unaware.params
    assert config.images < unaware.images / 1.3
    tokens = config.images * config.model.tokens
    assert advice.allocation.epochs == pytest.approx(tokens / 2e5)
    trained = f"the {runs['epochs'].max():.3g} epochs that the study trained"
    assert f"{tokens / 2e5:.3g} times, within {trained}" in advice.explanation
    assert f"times, beyond {trained}" in recommend(findings, 1e17).explanation
    assert "This budget needs more data: " in advice.explanation
    small = replace(config.model, channels=config.model.head_dim)
    images = c.round_images(6 * 2e5 / config.model.tokens, config.batch)
    words = " ".join(repetition(findings, replace(config, model=small, images=images)))
    assert "6 times" in words
    assert "needs more data" not in words  # a larger model would repeat less
    params, worth = cost.params(config.model), effective_tokens(tokens, 2e5)
    truth = 1.42 + 30 / params**0.4 + 46 / worth**0.4
    low, high = advice.allocation.bpd_interval
    assert low < truth < high


def test_intervals_beyond_the_roll_outs_widen_and_are_called_a_guess(study):
    tested = np.exp(study.surface.discrepancy.tested)
    budgets = [times * study.budgets[-1].flops for times in (1, tested, 30, 833)]
    advice = [recommend(study, flops) for flops in budgets]
    widths = [item.allocation.bpd_interval for item in advice]
    widths = [np.log(high / low) for low, high in widths]
    assert widths == sorted(widths)
    assert widths[3] > np.sqrt(np.log(833) / np.log(tested)) * widths[1]
    assert ["is a guess" in item.explanation for item in advice] == [False, False, True, True]
    assert f"roll-outs have tested up to {tested:.2g} times" in advice[3].explanation
    report = forecast(study, advice[3].config, "x")
    assert "At 833 times the largest budget, the interval is a guess" in report.in_words


def test_a_rate_beyond_the_sizes_trained_is_clamped_not_interpolated(study):
    rates = 0.01 / study.runs["channels"]
    findings = replace(study, runs=study.runs.assign(lr=rates))
    lines = [recommend(findings, flops).explanation for flops in (5e11, 1e15)]
    assert ["interpolated" in line for line in lines] == [True, False]
    assert "clamped to that of the largest size trained" in lines[1]


def test_rows_are_left_out_with_the_reason():
    runs = table(
        run(32, 2e11, status="failed", error="loss is not finite", bpd=None),
        run(32, 3e11, role="search"),
        run(32, 2.5e11, noise_std=0.4),
        run(48, 2e11, bpd=20.0, bpd_se=18.0, bpd_max=1e4),
        run(48, 3e11, data_hash="other"),
    )
    findings = find(runs, None, draws=20)
    assert len(findings.runs) == 18
    assert sorted(item.reason.split(" (")[0] for item in findings.left_out) == [
        "another data set",
        "another noise level: only BPD may be compared across noise levels",
        "failed: loss is not finite",
        "one image moves the mean BPD by more than 1%",
        "role search: laws read grid and final runs only",
    ]
    assert findings.correlation is None


def test_every_mean_that_one_image_moves_is_left_out():
    """Heavy tails on either side, against the mean without each image, computed one by one."""
    rng = np.random.default_rng(0)
    moved, rows = [], []
    for number in range(200):
        bpd = 3 + 0.1 * rng.standard_normal(20 + 5 * number)
        bpd += 0.1 * rng.standard_t(1.0, len(bpd)) if number % 2 else 0.0
        bpd = np.abs(bpd)
        without = np.array([np.delete(bpd, image).mean() for image in range(len(bpd))])
        moved.append(np.abs(without - bpd.mean()).max() > 0.01 * bpd.mean())
        columns = Likelihood("bound", bpd, bpd, np.zeros(len(bpd)), 1.0).columns()
        rows.append(run(48, 1e11, seed=number) | columns)
    _, left_out = choose(pd.DataFrame(rows))
    assert 20 < sum(moved) < 180
    assert {item.run_id for item in left_out} == {
        row["run_id"] for row, alone in zip(rows, moved, strict=True) if alone
    }


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 8])
def test_small_studies_say_too_few_runs(rows):
    findings = find(table().head(rows), None, draws=20)
    assert any("oo few runs" in line or "nothing to fit" in line for line in warnings_of(findings))
    assert len(findings.runs) == rows
    if rows:
        assert identity.run_id(recommend(findings).config) not in set(findings.finished["run_id"])
    else:
        with pytest.raises(UserError, match="nothing to recommend"):
            recommend(findings)
