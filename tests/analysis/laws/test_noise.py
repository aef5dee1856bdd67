"""Noise drawn from residuals: planted noise, Student's widths, errors that runs share."""

import numpy as np
import pytest
from scipy.stats import t as student

from analysis.laws.fit import fit
from analysis.laws.forms import CHINCHILLA, POWER, TIED
from analysis.laws.noise import NOTHING_KNOWN, Known, draw_noise
from analysis.laws.observations import Observations


def drawn(residuals, *, compute=None, clusters=None, known=NOTHING_KNOWN, draws=4000):
    rows = len(residuals)
    return draw_noise(
        residuals,
        np.ones((1, rows)),
        np.zeros(rows) if compute is None else compute,
        clusters=np.arange(rows) if clusters is None else clusters,
        weights=np.ones(rows),
        known=known,
        draws=draws,
        rng=np.random.default_rng(0),
    )


def test_few_rows_give_the_mean_students_interval():
    residuals = np.array([0.3, -1.1, 0.8, 0.0])
    means = drawn(residuals).errors.mean(axis=1)
    half = student.ppf(0.95, 3) * residuals.std(ddof=1) / 2
    assert np.quantile(means, 0.95) == pytest.approx(half, rel=0.15)


def test_runs_that_share_their_error_do_not_count_as_many():
    rng = np.random.default_rng(1)
    runs = np.repeat(np.arange(12), 10)
    residuals = (rng.standard_normal(12)[runs] + 0.1 * rng.standard_normal(120)) * 0.01
    spread = [drawn(residuals, clusters=c).errors.mean(axis=1).std() for c in (None, runs)]
    truth = 0.01 / np.sqrt(12)
    assert spread[1] == pytest.approx(truth, rel=0.4)
    assert spread[0] < truth / 2


@pytest.mark.parametrize("between", [0.5, 1, 4, 100, 2000])
def test_the_mean_of_runs_has_students_interval_whatever_their_rows_share(between):
    """`between` is the variance of means of runs, over that of as many independent rows."""
    rng = np.random.default_rng(1)
    runs = np.repeat(np.arange(6), 10)
    means, rows = rng.standard_normal(6), rng.standard_normal((6, 10))
    means = (means - means.mean()) / means.std(ddof=1)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.sqrt((rows**2).sum() / 54)
    residuals = (rows + means[:, None] * np.sqrt(between / 10)).ravel()
    spread = drawn(residuals, clusters=runs).errors.mean(axis=1)
    half = student.ppf(0.95, 5) * np.sqrt(between / 60)
    assert np.quantile(spread, 0.95) == pytest.approx(half, rel=0.15)


def test_noise_that_falls_with_compute_is_found():
    rng = np.random.default_rng(2)
    compute = np.linspace(0, 6, 80)
    noise = drawn(0.01 * np.exp(-0.3 * compute) * rng.standard_normal(80), compute=compute)
    cheap, expensive = np.median(noise.at(np.array([0.0, 6.0])), axis=0)
    assert cheap / expensive == pytest.approx(np.exp(0.3 * 6), rel=0.5)
    assert noise.at(np.array([60.0])) == pytest.approx(noise.at(np.array([6.0])))


def test_seeds_tell_the_noise_as_well_as_they_can():
    """Two degrees of freedom leave the noise open: its 90% interval spans a factor of 7."""
    scale = drawn(np.zeros(1), known=Known(0.01, 2)).scale
    low, high = np.quantile(scale, [0.05, 0.95])
    assert high / low == pytest.approx(np.sqrt(5.991 / 0.1026), rel=0.1)
    assert drawn(np.zeros(1)) is None


@pytest.mark.parametrize("rows", [5, 6, 20])
def test_intervals_hold_at_any_number_of_rows(rows):
    """As normal intervals of a known scale, five rows hold the exponent in half of the tables."""
    inside, tables, x = 0, 60, np.geomspace(1, 1e3, rows)
    for seed in range(tables):
        error = 0.01 * np.random.default_rng([seed, rows]).standard_normal(rows)
        data = Observations({"flops": x}, (1.5 + 2 / x**0.4) * np.exp(error))
        low, high = fit(POWER, data, starts=8, draws=200, seed=seed).intervals["a"]
        inside += low <= 0.4 <= high
    assert 0.8 <= inside / tables <= 0.98


def test_exponents_of_branches_of_few_trunks_hold():
    """Six sizes, each with branches that share most of their error."""
    sizes, lengths = np.meshgrid(np.geomspace(5e3, 2e5, 6), np.geomspace(1e5, 4e6, 4))
    inputs = {"params": sizes.ravel(), "tokens": lengths.ravel()}
    truth = 1 + 3.8 / inputs["params"] ** 0.3 + 150 / inputs["tokens"] ** 0.5
    trunk = np.unique(inputs["params"], return_inverse=True)[1]
    names = [str(number) for number in trunk]
    held = {True: 0, False: 0}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        error = 0.005 * (0.84 * rng.standard_normal(6)[trunk] + 0.55 * rng.standard_normal(24))
        for told in held:
            data = Observations(inputs, truth * np.exp(error), names if told else None)
            law = fit(CHINCHILLA, data, starts=8, draws=150, seed=seed)
            held[told] += law.intervals["a"][0] <= 0.3 <= law.intervals["a"][1]
    assert held[True] >= 15
    assert held[False] < held[True]


def test_known_noise_is_not_doubted():
    x = np.geomspace(1, 1e3, 4)
    exact = Observations({"params": x, "tokens": x[::-1]}, 2 + 1 / x, noise=Known(0.01, np.inf))
    assert fit(TIED, exact, starts=8, draws=50).noise.scale == pytest.approx(np.full(50, 0.01))
