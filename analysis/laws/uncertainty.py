"""How certain a fit is: the scale of its residuals, its bootstrap, and which parameters it knows.

Legend: `n` rows, `p` parameters, `R` draws.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from analysis.laws.forms import Array
from analysis.laws.intervals import TAIL, Interval
from analysis.laws.solver import HUBER, Problem, minimise

ROBUST_FROM = 5  # degrees of freedom below which an outlier cannot be told from a misfit
CASES_FROM = 6  # runs per parameter from which runs are resampled; with fewer, noise is
DRAW_STEPS = 60  # of the solver: a draw needs no more digits than its noise leaves
IDENTIFIED = "identified"  # the reason given for a parameter that the rows determine
SEVERAL_STARTS_TO = 60  # rows up to which each draw is fitted from three starts


def robust_scale(residuals: Array, weights: Array, parameters: int) -> float:
    """Return the scaled median of |residuals| without those that the parameters absorbed.

    A fit makes about as many residuals vanish as it has parameters, so the median is taken over
    the rest.

    >>> round(robust_scale(np.array([0.0, 1.0, -1.0, 1.0]), np.ones(4), 1), 4)
    1.4826
    """
    order = np.argsort(np.abs(residuals))
    passed = np.cumsum(weights[order])
    absorbed = min(parameters - 1, passed[-1])
    middle = absorbed + (passed[-1] - absorbed) / 2
    position = min(int(np.searchsorted(passed, middle * (1 - 1e-12))), len(order) - 1)
    return 1.4826 * float(np.abs(residuals)[order[position]])


def settle_scale(
    problem: Problem, theta: Array, noise: float | None, delta: float | None
) -> tuple[Problem, Array, float]:
    """Settle the residual scale and Huber's delta around the least-squares fit.

    Args:
        problem: The problem; its delta is replaced.
        theta: (p,) starting point.
        noise: Known standard deviation between equal runs; the scale is never smaller.
        delta: Fixed delta; None for 1.345 scales.

    Returns:
        The problem with its delta, its best parameters (p,), and the scale (nan if unknown).
    """
    problem = replace(problem, delta=np.inf if delta is None else delta)
    theta = minimise(problem, theta[None], 1e-7)[0][0]
    residuals = problem.residuals(theta[None])[0]
    free = float(problem.weights.sum()) - len(theta)
    if free < ROBUST_FROM:
        square = float(np.sum(problem.weights * residuals**2))
        scale = float(np.sqrt(square / free)) if free > 0 else float("nan")
        known = [value for value in (scale, noise) if value is not None and np.isfinite(value)]
        return problem, theta, max(known, default=float("nan"))
    scale = max(robust_scale(residuals, problem.weights, len(theta)), noise or 0.0)
    for _ in range(10):
        if delta is not None:
            break
        if scale < 1e-9:  # exact data: every residual is rounding
            return replace(problem, delta=np.inf), theta, scale
        problem = replace(problem, delta=HUBER * scale)
        theta = minimise(problem, theta[None], 1e-7)[0][0]
        residuals = problem.residuals(theta[None])[0]
        before = scale
        scale = max(robust_scale(residuals, problem.weights, len(theta)), noise or 0.0)
        if abs(scale - before) <= 1e-3 * before:
            break
    return problem, theta, scale


def bootstrap(
    problem: Problem,
    theta: Array,
    scale: float,
    clusters: NDArray[np.intp],
    draws: int,
    seed: int,
) -> tuple[Array, str]:
    """Refit resampled tables: whole runs if there are many, otherwise noise around the law.

    Args:
        problem: The problem that was fitted.
        theta: (p,) its solution.
        scale: Standard deviation of the residuals; nan if unknown.
        clusters: (n,) number of the run of each row.
        draws: Number of draws.
        seed: Seed of the draws.

    Returns:
        The parameters of every draw, (R, p), and what was drawn: "runs" or "noise".
    """
    rng = np.random.default_rng(seed)
    total = int(clusters.max()) + 1
    if total >= CASES_FROM * len(theta):
        times = rng.multinomial(total, np.full(total, 1 / total), size=draws)
        resampled = "runs"
        trial = replace(problem, weights=problem.weights * times[:, clusters])
    else:
        resampled = "noise"
        if not np.isfinite(scale):
            return np.empty((0, len(theta))), resampled
        fitted = problem.targets - problem.residuals(theta[None])[0]
        error = rng.standard_normal((draws, len(fitted))) * scale
        trial = replace(problem, targets=fitted + error / np.sqrt(problem.weights))
    if not draws:
        return np.empty((0, len(theta))), resampled
    shrink = np.array([1.0 if name in "AB" else 0.6 for name in problem.form.parameters])
    begin = [theta, theta * shrink, theta / shrink]
    if len(clusters) > SEVERAL_STARTS_TO:
        begin = [theta]
    which = np.tile(np.arange(draws), len(begin))
    ends, costs = minimise(trial.take(which), np.repeat(begin, draws, axis=0), 1e-5, DRAW_STEPS)
    best = costs.reshape(len(begin), draws).argmin(axis=0)
    return ends.reshape(len(begin), draws, -1)[best, np.arange(draws)], resampled


def rank_deficient(problem: Problem, theta: Array) -> bool:
    """Tell whether other parameters near theta (p,) give the same fit."""
    columns = problem.form.jacobian(theta[None], problem.logs)[0] * np.sqrt(problem.weights)
    if problem.log:
        columns = columns / problem.form.predict(theta[None], problem.logs)
    if columns.shape[1] < len(theta):
        return True
    length = np.linalg.norm(columns, axis=1, keepdims=True)
    unit = columns / np.where(length > 1e-12 * length.max(), length, np.inf)
    singular = np.linalg.svd(unit, compute_uv=False)
    return bool(singular[-1] < 1e-7 * singular[0])


def reasons(
    problem: Problem,
    theta: Array,
    drawn: Array,
    intervals: Mapping[str, Interval],
    deficient: bool,
    spread: float,
) -> dict[str, str]:
    """Say of each parameter why it is unknown, or that it is identified.

    Args:
        problem: The problem that was fitted.
        theta: (p,) its solution.
        drawn: (R, p) bootstrap draws.
        intervals: Interval of each parameter of the formula.
        deficient: Whether other parameters give the same fit.
        spread: Range of the losses.
    """
    stuck = np.zeros(len(theta), dtype=bool)
    if len(drawn):
        stuck = problem.at_bound(theta) | (problem.at_bound(drawn).mean(axis=0) > TAIL)
    return {
        name: doubt(name, intervals[name], deficient, bool(stuck[j]), spread) or IDENTIFIED
        for j, name in enumerate(problem.form.parameters)
    }


def doubt(name: str, interval: Interval, deficient: bool, at_bound: bool, spread: float) -> str:
    """Say why a parameter is unknown; empty if it is known."""
    low, high = interval
    if deficient:
        return f"{name} is not identified by these runs: other values give the same fit"
    if not np.isfinite(high - low):
        return f"{name} has no interval: there are no runs left to measure the noise with"
    span = f"90% interval {low:.3g} to {high:.3g}"
    if at_bound:
        return f"{name} is not identified by these runs: it runs into its bound ({span})"
    if name == "E" and high - low > 0.5 * spread:
        return f"{name} is not identified by these runs: {span}, over half the range of the losses"
    limit = 10 if name in "AB" else 2
    if name != "E" and high > limit * low:
        return f"{name} is not identified by these runs: {span}, wider than a factor of {limit}"
    return ""
