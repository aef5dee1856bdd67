"""Roll-outs, weights of the forms, coverage and influence on planted tables."""

import numpy as np
import pytest

from analysis.laws.average import fit_law
from analysis.laws.fit import fit
from analysis.laws.forms import SURFACE_FORMS, TIED
from analysis.laws.influence import influence
from analysis.laws.intervals import NORMAL_90
from analysis.laws.observations import Observations
from analysis.laws.validation import (
    AVERAGE,
    Rollout,
    baselines,
    coverage,
    discrepancy,
    levels,
    windows_of,
)


def planted(b=0.4, noise=0.0, sizes=6, budgets=4):
    flops, params = np.meshgrid(np.geomspace(1e11, 1e13, budgets), np.geomspace(3e4, 6e5, sizes))
    flops, params = flops.ravel(), params.ravel()
    tokens = flops / params / 6
    values = 1.4 + 30 / params**0.4 + 60 / tokens**b
    values = values * np.exp(noise * np.random.default_rng(0).normal(size=len(values)))
    table = Observations(
        {"params": params, "tokens": tokens}, values, [str(i) for i in range(len(values))]
    )
    return table, {"flops": flops, "params": params, "tokens": tokens}


@pytest.fixture(scope="module")
def tied():
    """A table of the tied law, its axes and its law."""
    table, axes = planted(noise=0.002)
    return table, axes, fit_law(table, SURFACE_FORMS, axes, draws=200)


def test_a_roll_out_never_sees_what_it_predicts(tied):
    table, axes, law = tied
    assert {rollout.axis for rollout in law.rollouts} == {"flops", "params", "tokens"}
    for rollout in law.rollouts:
        column = axes[rollout.axis]
        assert column[rollout.row] > rollout.cutoff
        assert rollout.rows == np.sum(column <= rollout.cutoff)
        assert rollout.achieved == table.values[rollout.row]


def test_a_roll_out_is_what_a_fit_to_its_rows_predicts(tied):
    table, _, law = tied
    row = next(r for r in law.rollouts if r.form == "tied" and r.axis == "flops")
    window = next(w for w in law.trials.windows if (w.axis, w.cutoff) == (row.axis, row.cutoff))
    alone = fit(TIED, table.take(window.seen), draws=0)
    at = {name: column[row.row] for name, column in table.inputs.items()}
    # The residual scale of Huber's loss is that of all rows, so the two differ a little.
    assert row.predicted == pytest.approx(float(alone.predict(**at)), rel=1e-3)


@pytest.mark.parametrize("rows", [12, 13, 40])
def test_any_table_of_twelve_runs_has_three_windows(rows):
    dense = {"flops": 1.1 ** np.arange(rows)}
    windows = windows_of(dense, fewest=8)
    assert len(windows) >= 3
    assert all(8 <= window.seen.sum() < rows for window in windows)


def test_forms_weigh_as_they_predict(tied):
    weights = {item.form: item.weight for item in tied[2].scores}
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["tied"] > max(weights["chinchilla"], weights["gamma"])
    table, axes = planted(b=0.25, noise=0.0005)
    untied = fit_law(table, SURFACE_FORMS, axes, draws=20).scores
    assert untied[0].weight < 0.02
    assert untied[0].error > 2 * untied[1].error


def test_a_law_beats_guesses_on_its_own_data(tied):
    table, _, law = tied
    guesses = {item.name: item.error for item in baselines(law.trials.windows, table)}
    assert law.rollout_error < guesses["log-linear"] / 3
    assert law.rollout_error < guesses["repeat the last value"] / 3


def test_too_few_runs_give_no_roll_outs_and_the_simplest_form():
    table, axes = planted(sizes=3, budgets=2)
    law = fit_law(table, SURFACE_FORMS, axes, draws=20)
    assert law.rollouts == ()
    assert [(item.form, item.weight) for item in law.scores] == [("tied", 1.0)]
    assert coverage(())[1].total == 0


def rollout(window, distance, error, half=0.01, run=0):
    return Rollout(
        form=AVERAGE, axis="flops", cutoff=window, rows=9, row=0, run=run, distance=distance,
        predicted=2.0, interval=(2 * np.exp(-half), 2 * np.exp(half)), achieved=2 * np.exp(error),
    )  # fmt: skip


def test_discrepancy_is_what_the_bands_lack():
    lacking = [rollout(w, d, 0.05, run=r) for w, d in ((1, 1.0), (2, 2.0)) for r in range(40)]
    plain, wide = coverage(lacking)
    assert (plain.inside, wide.inside, wide.total) == (0, 80, 80)
    assert plain.score == pytest.approx(0.02 + 20 * 0.04)
    assert wide.score == pytest.approx(0.1)
    assert discrepancy(lacking).tested == 2.0
    assert discrepancy(lacking).factor == pytest.approx(5)


def test_few_runs_change_a_band_little():
    assert discrepancy([]).factor == 1
    errors = 0.01 * np.abs(np.random.default_rng(0).standard_normal(2000)) / NORMAL_90
    kept = [rollout(1, 1.0, error, run=run) for run, error in enumerate(errors)]
    assert discrepancy(kept).factor == pytest.approx(1, abs=0.05)
    wild = [rollout(window, 1.0, 1.0) for window in range(50)]  # of one run
    assert 1 < discrepancy(wild).factor < 1.3
    exact = [rollout(1, 1.0, 0.0, run=run) for run in range(10)]
    assert 0.7 < discrepancy(exact).factor < 0.9
    assert discrepancy(exact).widening_only.factor == 1


def test_a_wild_run_is_the_most_influential():
    table, _ = planted(noise=0.001)
    table.values[5] *= 1.1
    effects = influence(fit(TIED, table, starts=24, draws=50))
    assert len(effects) == 24
    changes = [abs(item.change) for item in effects]
    assert changes == sorted(changes, reverse=True)
    without = table.take(np.arange(24) != int(effects[0].cluster))
    law = fit(TIED, table, draws=0)
    at = {name: column[[table.compute.argmax()]] for name, column in table.inputs.items()}
    change = float(fit(TIED, without, draws=0).predict(**at)[0] / law.predict(**at)[0] - 1)
    assert effects[0].change == pytest.approx(change, rel=0.2)


def test_levels_join_near_values():
    assert [len(group) for group in levels(np.array([5.0, 1.0, 1.15, 1.3, 5.5]))] == [3, 2]
