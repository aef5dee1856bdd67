"""How certain a fit is: the scale of its residuals, and which parameters it knows.

Legend: `n` rows, `p` parameters, `R` draws.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from analysis.laws.forms import Array, Parameter
from analysis.laws.intervals import TAIL, Interval
from analysis.laws.solver import HUBER, Problem, minimise
from tarflow.human import number

ROBUST_FROM = 5  # degrees of freedom below which an outlier cannot be told from a misfit
IDENTIFIED = "identified"  # the reason given for a parameter that the rows determine


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
    problem: Problem, theta: Array, noise: float, delta: float | None
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
        return problem, theta, max(scale, noise) if free > 0 else noise or scale
    scale = max(robust_scale(residuals, problem.weights, len(theta)), noise)
    for _ in range(10):
        if delta is not None:
            break
        if scale < 1e-9:  # exact data: every residual is rounding
            return replace(problem, delta=np.inf), theta, scale
        problem = replace(problem, delta=HUBER * scale)
        theta = minimise(problem, theta[None], 1e-7)[0][0]
        residuals = problem.residuals(theta[None])[0]
        before = scale
        scale = max(robust_scale(residuals, problem.weights, len(theta)), noise)
        if abs(scale - before) <= 1e-3 * before:
            break
    return problem, theta, scale


def rank_deficient(problem: Problem, theta: Array) -> bool:
    """Tell whether other parameters near theta (p,) give the same fit."""
    columns = problem.slopes(theta[None])[0] * np.sqrt(problem.weights)
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
    freedom: float,
) -> dict[str, str]:
    """Say of each parameter why it is unknown, or that it is identified.

    Args:
        problem: The problem that was fitted.
        theta: (p,) its solution.
        drawn: (R, p) draws.
        intervals: Interval of each parameter of the formula.
        freedom: Degrees of freedom with which the noise is known.
    """
    deficient = rank_deficient(problem, theta)
    spread = float(np.ptp(np.exp(problem.targets) if problem.log else problem.targets))
    stuck = np.zeros(len(theta), dtype=bool)
    if len(drawn):
        stuck = problem.at_bound(theta) | (problem.at_bound(drawn).mean(axis=0) > TAIL)
    why = {
        detail.name: _doubt(detail, intervals[detail.name], deficient, bool(stuck[j]), spread)
        or IDENTIFIED
        for j, detail in enumerate(problem.form.details)
    }
    if freedom == 1:
        only = "one row is left to measure the noise"
        why = {
            name: f"{name} is not identified by these runs: {only}"
            if known == IDENTIFIED
            else known
            for name, known in why.items()
        }
    return why


def _doubt(
    detail: Parameter, interval: Interval, deficient: bool, at_bound: bool, spread: float
) -> str:
    """Say why a parameter is unknown; empty if it is known."""
    name, role, (low, high) = detail.name, detail.role, interval
    if deficient:
        return f"{name} is not identified by these runs: other values give the same fit"
    if not np.isfinite(high - low):
        return f"{name} has no interval: there are no runs left to measure the noise with"
    span = f"90% interval {number(low)} to {number(high)}"
    if at_bound:
        return f"{name} is not identified by these runs: it runs into its bound ({span})"
    if role == "floor" and high - low > 0.5 * spread:
        return f"{name} is not identified by these runs: {span}, over half the range of the losses"
    limit = 2 if role in ("exponent", "power") else 10
    if role != "floor" and high > limit * low:
        return f"{name} is not identified by these runs: {span}, wider than a factor of {limit}"
    return ""
