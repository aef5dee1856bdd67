"""Roll-outs, choice of form, coverage and influence on planted tables."""

import numpy as np
import pytest

from analysis.laws.fit import Observations, fit
from analysis.laws.forms import CHINCHILLA, SURFACE_FORMS, TIED
from analysis.laws.influence import influence
from analysis.laws.validation import (
    Rollout,
    baselines,
    coverage,
    discrepancy,
    levels,
    roll_out,
    score,
)


def planted(b=0.4, noise=0.0, sizes=6, budgets=3):
    flops, params = np.meshgrid(np.geomspace(1e11, 1e13, budgets), np.geomspace(3e4, 6e5, sizes))
    flops, params = flops.ravel(), params.ravel()
    tokens = flops / params / 6
    values = 1.4 + 30 / params**0.4 + 60 / tokens**b
    values = values * np.exp(noise * np.random.default_rng(0).normal(size=len(values)))
    table = Observations(
        {"params": params, "tokens": tokens}, values, [str(i) for i in range(len(values))]
    )
    return table, {"flops": flops, "params": params, "tokens": tokens}


def judged(table, axes, forms=SURFACE_FORMS):
    rollouts = roll_out(forms, table, axes)
    fits = [fit(form, table, starts=24, draws=0) for form in forms]
    return rollouts, score(forms, fits, rollouts)


@pytest.fixture(scope="module")
def tied():
    """A table of the tied law, its axes, roll-outs and scores."""
    table, axes = planted(noise=0.002)
    return table, axes, *judged(table, axes)


def test_a_roll_out_never_sees_what_it_predicts(tied):
    table, axes, rollouts, _ = tied
    assert {rollout.axis for rollout in rollouts} == {"flops", "params", "tokens"}
    for rollout in rollouts:
        column = axes[rollout.axis]
        assert column[rollout.row] > rollout.cutoff
        assert rollout.rows == np.sum(column <= rollout.cutoff)
        assert rollout.achieved == table.values[rollout.row]


def test_all_forms_see_the_same_windows(tied):
    _, _, rollouts, scores = tied
    windows = [{r.window for r in rollouts if r.form == form.name} for form in SURFACE_FORMS]
    assert windows[0] == windows[1] == windows[2]
    assert len({item.rollouts for item in scores}) == 1


def test_the_simplest_form_that_predicts_is_chosen(tied):
    assert [item.form for item in tied[3] if item.chosen] == ["tied"]
    _, untied = judged(*planted(b=0.25, noise=0.0005), (TIED, CHINCHILLA))
    assert [item.form for item in untied if item.chosen] == ["chinchilla"]
    assert untied[0].error > 2 * untied[1].error


def test_a_law_beats_guesses_on_its_own_data(tied):
    table, axes, rollouts, scores = tied
    guesses = {item.name: item.error for item in baselines(rollouts, table, axes)}
    best = next(item.error for item in scores if item.chosen)
    assert best < guesses["log-linear"] / 3
    assert best < guesses["repeat the last value"] / 3


def test_too_few_runs_give_no_roll_outs_and_the_simplest_form():
    table, axes = planted(sizes=3, budgets=2)
    rollouts, scores = judged(table, axes, (TIED,))
    assert rollouts == ()
    assert scores[0].chosen
    assert np.isnan(scores[0].error)
    assert coverage(())[1].total == 0


def rollout(window, distance, error, half=0.01):
    return Rollout(
        form="tied", axis="flops", cutoff=window, rows=9, row=0, distance=distance,
        predicted=2.0, interval=(2 * np.exp(-half), 2 * np.exp(half)), achieved=2 * np.exp(error),
    )  # fmt: skip


def test_discrepancy_is_what_the_bands_lack():
    assert discrepancy([rollout(1, 1.0, 0.009)]).rate == 0
    lacking = [rollout(w, d, 0.05 * d) for w in (1, 2) for d in (1.0, 2.0)]
    plain, wide = coverage(lacking)
    assert (plain.inside, wide.inside, wide.total) == (0, 4, 4)
    assert discrepancy(lacking).tested == 2.0
    assert discrepancy(lacking).rate == pytest.approx(0.05 / 1.6449, rel=0.05)


def test_a_wild_run_is_the_most_influential():
    table, _ = planted(noise=0.001)
    table.values[5] *= 1.1
    law = fit(TIED, table, starts=24, draws=50)
    effects = influence(law, table)
    assert len(effects) == 18
    changes = [abs(item.change) for item in effects]
    assert changes == sorted(changes, reverse=True)


def test_levels_join_near_values():
    assert [len(group) for group in levels(np.array([5.0, 1.0, 1.15, 1.3, 5.5]))] == [3, 2]
