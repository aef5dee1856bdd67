"""Laws of repeated data: what repeats are worth, and planted laws extrapolated into them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.laws.extrapolation import Discrepancy
from analysis.laws.fit import Observations, fit
from analysis.laws.forms import CHINCHILLA
from analysis.laws.repetition import effective_tokens, unique_tokens

UNIQUE = 2e5  # tokens of the planted training set


def planted(params, tokens):
    return 1.4 + 30 / params**0.4 + 60 / effective_tokens(tokens, UNIQUE) ** 0.4


def test_repeats_are_worth_nearly_as_much_up_to_four_epochs_and_never_more_than_a_bound():
    epochs = np.array([0.01, 1.0, 4.0, 1e6])
    worth = effective_tokens(epochs * UNIQUE, UNIQUE) / UNIQUE
    assert worth[:2].tolist() == [0.01, 1.0]
    assert worth[2] == pytest.approx(4, rel=0.07)
    assert worth[3] == pytest.approx(1 + 15.4)
    assert effective_tokens(1e12, np.inf) == 1e12


def test_the_size_of_the_training_set_is_read_from_the_table():
    runs = pd.DataFrame({"tokens": [1e5, 8e5], "epochs": [0.5, 4.0]})
    assert unique_tokens(runs) == UNIQUE
    assert unique_tokens(runs.assign(epochs=np.nan)) == np.inf
    assert unique_tokens(runs[["tokens"]]) == np.inf


def test_intervals_of_repeated_data_hold_the_planted_truth():
    """Runs of up to 10 epochs predict one of 125; fits that ignore repeats miss it.

    Bands are those of a study whose roll-outs have tested four times the compute. Parameters and
    noise alone hold 79 of 100 runs at 90%, the widened band 97.
    """
    params, compute = np.geomspace(4e3, 2e5, 6), np.geomspace(3e9, 4e10, 4)
    params, compute = (grid.ravel() for grid in np.meshgrid(params, compute))
    tokens, rng = compute / params, np.random.default_rng(0)
    seen = tokens <= 10 * UNIQUE
    inputs = {"params": params[seen], "tokens": tokens[seen]}
    far = {"params": 2e4, "tokens": 125 * UNIQUE}
    inside = {UNIQUE: 0, np.inf: 0}
    for _ in range(20):
        noise = np.exp(0.003 * rng.standard_normal(seen.sum() + 1))
        values = planted(**inputs) * noise[:-1]
        new = planted(**far) * noise[-1]
        for unique in inside:
            law = fit(
                CHINCHILLA, Observations(inputs, values, unique_tokens=unique), starts=16, draws=60
            )
            law = replace(law, discrepancy=Discrepancy(rate=0.0, tested=np.log(4)))
            low, high = law.band(**far)
            inside[unique] += bool(low <= new <= high)
    assert inside[UNIQUE] >= 17
    assert inside[np.inf] <= 2
