"""Plans for other budgets, on a planted law: exact, bounded, and honest about what is unknown."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic import UNIQUE, Law, plant

from analysis.study.advice import recommend
from analysis.study.budgets import RATIOS, plans, quality_law
from analysis.study.findings import find
from analysis.study.folder import read_study
from analysis.study.machines import machines
from tarflow import cost


@pytest.fixture(scope="module")
def study(digits_tables, digits_findings):
    _, evaluations = digits_tables
    finished = digits_findings.finished
    scored = finished.merge(evaluations, on="run_id", suffixes=("", "_sampling"))
    return digits_findings, scored


@pytest.fixture(scope="module")
def planned(study):
    findings, scored = study
    return plans(findings, scored, recommend(findings))


def test_every_plan_is_the_recommendation_for_its_budget(study, planned):
    findings, _ = study
    budgets = [plan.flops for plan in planned]
    assert budgets == sorted(budgets)
    assert {budget.flops for budget in findings.budgets} <= set(budgets)
    assert budgets[-1] == 100 * findings.budgets[-1].flops
    assert [plan.recommendation for plan in planned if plan.following] == [recommend(findings)]
    for plan in planned[::9]:
        assert plan.recommendation == recommend(findings, plan.flops)
    for item in [plan.recommendation.allocation for plan in planned]:
        assert item.bpd_interval[0] < item.bpd < item.bpd_interval[1]


def test_only_the_farthest_plans_are_untested(study, planned):
    findings, _ = study
    tested = [plan.tested for plan in planned]
    assert tested == sorted(tested, reverse=True)
    assert tested[0]
    assert not tested[-1]
    beyond = np.log([plan.flops / findings.runs["flops"].max() for plan in planned])
    assert beyond[sum(tested)] > findings.surface.discrepancy.tested


def test_a_wrong_size_costs_what_the_planted_law_says(planned):
    law, plan = Law(), next(plan for plan in planned if plan.following)
    model = plan.recommendation.config.model

    def truth(params, times=1.0):
        channels = model.channels * (params / cost.params(model)) ** 0.5  # nearly, at one shape
        wide = replace(model, channels=round(channels), head_dim=1)
        tokens = plan.flops / cost.training_flops(wide) * model.tokens
        return law(cost.params(wide), times * tokens, UNIQUE * model.tokens)

    sizes = dict(zip(RATIOS, plan.wrong_sizes, strict=True))
    assert (sizes[1.0].extra_bits, sizes[1.0].compute) == (0.0, pytest.approx(1.0))
    assert all(size.extra_bits >= 0 for size in plan.wrong_sizes)
    best = truth(sizes[1.0].params)
    for ratio in (4.0, 10.0):
        size = sizes[ratio]
        assert size.extra_bits == pytest.approx(truth(size.params) - best, rel=0.15)
        assert size.interval[0] < size.extra_bits < size.interval[1]
        assert truth(size.params, size.compute) == pytest.approx(best, abs=0.1 * size.extra_bits)
    # A tenth of the size lacks more than any amount of repeated images can give.
    assert sizes[0.1].compute == np.inf


def test_sample_quality_is_predicted_only_by_a_law_that_predicts(study):
    findings, scored = study
    rng = np.random.default_rng(0)
    excess = scored["bpd"] - 1.42
    follows = scored.assign(kid=2 * excess * np.exp(0.05 * rng.standard_normal(len(scored))))
    assert quality_law(findings, follows) is not None
    negative = follows.assign(kid=follows["kid"] - follows["kid"].median())
    assert quality_law(findings, negative) is None
    assert quality_law(findings, scored.iloc[:0]) is None


@pytest.mark.parametrize(("runs", "expected"), [(2, False), (8, True)])
def test_few_runs_give_uncertain_plans_or_none(tmp_path, runs, expected):
    table, evaluations = read_study(plant(tmp_path, limit=runs))
    findings = find(table, evaluations, draws=200)
    scored = findings.finished.merge(evaluations, on="run_id", suffixes=("", "_sampling"))
    # Of 8 runs, some draws call for 1e19 parameters.
    found = plans(findings, scored, recommend(findings))
    assert bool(found) == expected
    assert all(plan.quality is None for plan in found)


def test_machines_know_what_fits_and_when_several_help(study, planned):
    findings, _ = study
    small = planned[0].recommendation.config
    known = {machine.name: machine for machine in machines(findings.finished, small)}
    own = known["the study's machine"]
    assert own.price is None
    assert own.seconds(small) == pytest.approx(cost.run_flops(small) / 2e10)  # planted speed
    assert not any(name.startswith("8 x") for name in known)
    model = replace(small.model, channels=16384, blocks=8, layers=8)
    huge = replace(small, model=model, batch=1024, images=1024)
    known = {machine.name: machine for machine in machines(findings.finished, huge)}
    assert known["T4"].seconds(huge) is None
    wide = replace(huge, model=replace(model, channels=2048))
    assert known["8 x H100"].price == 8 * known["H100"].price
    assert known["8 x H100"].seconds(wide) < known["H100"].seconds(wide) / 4
