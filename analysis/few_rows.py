"""Intervals of a law from few rows: Student's widths, and a jackknife over runs.

Legend: `p` parameters, `G` runs, `R` draws.
"""

from dataclasses import replace

import numpy as np
from scipy.stats import t as student

from analysis.laws.fit import Fit, Observations, fit
from analysis.laws.forms import Array
from analysis.laws.intervals import LEVEL, NORMAL_90, interval_of
from analysis.laws.uncertainty import IDENTIFIED, doubt

STARTS = 8  # of a fit without one run, which lies near the fit of all


def widened(law: Fit, data: Observations, seed: int = 0) -> Fit:
    """Return a law with intervals that know how few rows or runs they rest on.

    Resampled runs need no change. Noise drawn around the law is too narrow twice over: the scale
    of the residuals is itself a guess from n - p rows, and rows of one run share their error. The
    first calls for Student's distribution; for the second, the law is fitted without each run in
    turn (a jackknife over clusters, MacKinnon, Nielsen and Webb 2023).

    Args:
        law: The law.
        data: The rows it was fitted to.
        seed: Seed of the draws.
    """
    if law.resampled == "runs" or not len(law.draws):
        return law
    runs = sorted(set(data.clusters or map(str, range(law.rows))))
    free = len(runs) - len(law.theta)
    if free < 1:
        return _with_draws(law, law.draws[:0], 1.0, data)
    ratio = float(student.ppf((1 + LEVEL) / 2, free)) / NORMAL_90
    if len(runs) == law.rows:
        return _with_draws(law, law.theta + ratio * (law.draws - law.theta), ratio, data)
    moved = np.stack([_without(law, data, run) for run in runs])
    weights = np.random.default_rng(seed).standard_normal((len(law.draws), len(runs)))
    share = np.sqrt((len(runs) - 1) / len(runs))
    spread = share * weights @ (moved - moved.mean(axis=0))
    return _with_draws(law, law.theta + ratio * spread, ratio, data)


def _without(law: Fit, data: Observations, run: str) -> Array:
    """Return the inner parameters (p,) fitted without a run, around the centre of the law."""
    kept = np.array([name != run for name in data.clusters or ()])
    other = fit(law.form, data.take(kept), starts=STARTS, draws=0)
    theta, form = other.theta.copy(), law.form
    for column, name in enumerate(form.parameters):
        if name in "AB":
            exponent = form.parameters.index(form.exponent_of(name))
            shift = (law.centre - other.centre)["AB".index(name)]
            theta[column] -= theta[exponent] * shift
    return theta


def _with_draws(law: Fit, draws: Array, ratio: float, data: Observations) -> Fit:
    """Return a law with other draws (R, p), and what follows from them."""
    values = np.log(data.values)
    low, high = law.form.bounds(data.values, 0.0)
    draws = np.clip(draws, low, high)
    natural = law.form.natural(draws, law.centre)
    intervals = {name: interval_of(natural[:, j]) for j, name in enumerate(law.form.parameters)}
    reasons = {
        name: reason
        if reason != IDENTIFIED
        else doubt(name, intervals[name], False, False, float(np.ptp(values))) or IDENTIFIED
        for name, reason in law.reasons.items()
    }
    if law.rows - len(law.theta) == 1:
        only = "one row is left to measure the noise"
        reasons = {name: f"{name} is not identified by these runs: {only}" for name in reasons}
    return replace(law, draws=draws, intervals=intervals, reasons=reasons, scale=law.scale * ratio)
