"""How sure a fit is: the scale of its residuals, its bootstrap, and which parameters are known.

Legend: `n` rows, `p` parameters, `R` draws.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from analysis.laws.forms import Array
from analysis.laws.intervals import LEVEL, Interval
from analysis.laws.solver import HUBER, Problem, minimise

ROBUST_FROM = 5  # degrees of freedom below which an outlier cannot be told from a misfit
CASES_FROM = 6  # runs per parameter from which runs are resampled; below, noise is
DRAW_STEPS = 60  # of the solver; a draw needs no more digits than its noise
SEVERAL_STARTS_TO = 60  # rows up to which each draw is fitted from three starts


def robust_scale(residuals: Array, weights: Array, parameters: int) -> float:
    """Return the scaled median of |residuals|, leaving out those the parameters absorbed.

    A fit makes about `parameters` residuals vanish, so the median is taken over the rest.

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
    problem: Problem, theta: Array, free: float, noise: float | None, delta: float | None
) -> tuple[Problem, Array, float]:
    """Settle the residual scale and Huber's delta around the least-squares fit.

    Args:
        problem: with any delta.
        theta: (p,) where to begin.
        free: degrees of freedom.
        noise: known standard deviation between equal runs: the scale is no less.
        delta: to use instead of 1.345 scales.

    Returns:
        The problem with its delta, the parameters there, and the scale (nan if unknown).
    """
    problem = replace(problem, delta=np.inf if delta is None else delta)
    theta = minimise(problem, theta[None], 1e-7)[0][0]
    residuals = problem.residuals(theta[None])[0]
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
    """Refit resampled tables: whole runs where there are many, else noise around the law.

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
        fitted = problem.targets - problem.residuals(theta[None])[0] * problem.scale
        error = rng.standard_normal((draws, len(fitted))) * scale * problem.scale
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


def singular_values(problem: Problem, theta: Array) -> Array:
    """Return the (p,) singular values of the Jacobian with columns of length 1, largest first."""
    columns = problem.form.jacobian(theta[None], problem.logs)[0] * np.sqrt(problem.weights)
    if problem.log:
        columns = columns / problem.form.predict(theta[None], problem.logs)
    length = np.linalg.norm(columns, axis=1, keepdims=True)
    unit = columns / np.where(length > 1e-12 * length.max(), length, np.inf)
    values = np.zeros(len(theta))
    found = np.linalg.svd(unit, compute_uv=False)
    values[: len(found)] = found
    return values


def interval_of(column: Array) -> Interval:
    """Return the 90% interval of draws (R,); everything if there are none."""
    if not len(column):
        return -np.inf, np.inf
    low, high = np.quantile(column, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def doubt(name: str, interval: Interval, deficient: bool, at_bound: bool, y: Array) -> str:
    """Say why a parameter is unknown; empty if it is known."""
    low, high = interval
    if deficient:
        return f"{name} is not identified by these runs: other values give the same fit"
    if not np.isfinite(high - low):
        return f"{name} has no interval: there are no runs left to measure the noise with"
    span = f"90% interval {low:.3g} to {high:.3g}"
    if at_bound:
        return f"{name} is not identified by these runs: it runs into its bound ({span})"
    if name == "E" and high - low > 0.5 * np.ptp(y):
        return f"{name} is not identified by these runs: {span}, more than half the losses' range"
    limit = 10 if name in "AB" else 2
    if name != "E" and high > limit * low:
        return f"{name} is not identified by these runs: {span}, more than a factor {limit}"
    return ""
