"""The average of forms: what it predicts, what it promises, and whose parameters it shows."""

import numpy as np
import pytest

from analysis.laws.average import THIN, fit_law
from analysis.laws.forms import POWER, SIGMOID, SURFACE_FORMS
from analysis.laws.observations import Observations

EXPONENTS = {"tied": (0.4, 0.4, 1.0), "chinchilla": (0.3, 0.52, 1.0), "gamma": (0.4, 0.4, 0.7)}


def truth(name, params, tokens):
    a, b, g = EXPONENTS[name]
    return 1 + ((params / 3e4) ** -a / 2 + (tokens / 5e5) ** -b / 2) ** g


def table(name, rows=20, noise=0.004, seed=0):
    """Runs of a planted law, six sizes at each budget."""
    rng = np.random.default_rng(seed)
    budgets = np.geomspace(2e9, 4e10, -(-rows // 6))
    params, compute = np.meshgrid(np.geomspace(5e3, 2e5, 6), budgets)
    params, tokens = params.ravel()[:rows], (compute / params).ravel()[:rows]
    values = truth(name, params, tokens) * np.exp(noise * rng.standard_normal(rows))
    return Observations({"params": params, "tokens": tokens}, values)


def law_of(data, forms=SURFACE_FORMS, draws=300):
    return fit_law(data, forms, {"compute": data.compute} | dict(data.inputs), draws=draws)


@pytest.mark.parametrize("name", EXPONENTS)
def test_exponents_of_any_law_lie_in_their_intervals(name):
    """A law chosen for its simplicity held the exponent of N in 7% and 28% of such studies."""
    inside = []
    for seed in range(6):
        law = law_of(table(name, 24, seed=seed), draws=100)
        inside += [
            law.intervals[key][0] <= value <= law.intervals[key][1]
            for key, value in zip("ab", EXPONENTS[name], strict=False)
        ]
    assert np.mean(inside) >= 0.75


def test_the_prediction_is_the_average_of_its_members():
    law = law_of(table("chinchilla"))
    at = {"params": 1e5, "tokens": 1e6}
    parts = [float(member.predict(**at)) for member in law.members]
    assert sum(law.weights) == pytest.approx(1)
    assert float(law.predict(**at)) == pytest.approx(np.exp(np.log(parts) @ law.weights))
    draws = sum(len(member.draws) for member in law.members)
    assert len(law.predict_draws(**at)) == 1 + draws
    assert law.residuals == pytest.approx(
        np.log(law.data.values) - np.log(law.predict(**law.data.inputs))
    )


def test_bands_hold_runs_beyond_the_data():
    """Over 70 seeds, they hold 93, 87 and 76% at 4 times the compute."""
    inside, at = 0, {"params": 1e5, "tokens": 1.6e6}
    for name in EXPONENTS:
        for seed in range(4):
            law = law_of(table(name, seed=seed), draws=150)
            noise = 0.004 * np.random.default_rng([seed, 1]).standard_normal()
            low, high = law.band(**at)
            inside += low <= truth(name, **at) * np.exp(noise) <= high
    assert inside >= 9


def test_a_curve_of_one_input_keeps_its_power_law():
    x = np.geomspace(1e4, 1e7, 30)
    data = Observations({"flops": x}, 0.2 + 40 / x**0.4)
    law = fit_law(data, (POWER, SIGMOID), {"compute": x}, draws=20)
    assert law.form is POWER  # the bend of the other form lies at its bound
    assert float(law.predict(flops=1e9)) == pytest.approx(0.2 + 40 / 1e9**0.4, rel=1e-4)


def test_a_long_table_is_tested_on_some_of_its_rows():
    rng = np.random.default_rng(0)
    rows = 2 * THIN + 7
    params, tokens = 10 ** rng.uniform(4, 6, rows), 10 ** rng.uniform(5, 8, rows)
    values = truth("chinchilla", params, tokens) * np.exp(0.004 * rng.standard_normal(rows))
    law = law_of(Observations({"params": params, "tokens": tokens}, values), draws=100)
    assert max(len(window.seen) for window in law.trials.windows) <= THIN
    assert law.rows == rows
    low, high = law.intervals["b"]
    assert low < 0.52 < high < 1.1 * low
