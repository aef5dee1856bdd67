"""Robust fits of the forms in `forms`, with intervals that say when a parameter is unknown.

Legend: `n` rows, `p` parameters, `k` inputs, `R` draws, `S` problems solved side by side.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from analysis.laws.extrapolation import NEVER, Discrepancy
from analysis.laws.forms import Array, Form
from analysis.laws.intervals import Interval, interval_of
from analysis.laws.noise import NOTHING_KNOWN, Known, Noise, draw_noise, tamed
from analysis.laws.observations import (
    Observations,
    Space,
    checked_columns,
    log_compute,
    shared_size,
    with_repeats,
)
from analysis.laws.predictor import Predictor, in_words
from analysis.laws.solver import Problem, minimise
from analysis.laws.uncertainty import IDENTIFIED, rank_deficient, reasons, settle_scale

Status = Literal["converged", "bound-hit", "multi-modal", "rank-deficient", "non-finite"]

THINNED = 500  # rows on which the starts of a long table descend
POLISHED = 3  # optima of these rows that are refined on all rows
SCOUTS = 16  # starts of the least-squares fit around which the residual scale is settled
DRAW_STEPS = 60  # of the solver: a draw needs no more digits than its noise leaves
SEVERAL_STARTS_TO = 60  # rows up to which each draw is fitted from three starts
LINEAR_FROM = 1000  # rows from which draws take one linear step: their laws hardly differ


@dataclass(frozen=True, eq=False, repr=False)
class Fit(Predictor):
    """A fitted law of one form."""

    form: Form
    status: Status
    values: Mapping[str, float]  # parameters of the formula by name (E, A, a, ...)
    intervals: Mapping[str, Interval]  # 90%
    reasons: Mapping[str, str]  # "identified", or why a parameter is unknown, as a sentence
    scale: float  # robust standard deviation of the residuals; nan if it cannot be known
    residuals: Array  # (n,) ln(achieved / predicted), or achieved - predicted in raw space
    agreement: float  # share of starts that ended at the best optimum
    theta: Array  # (p,) inner parameters
    draws: Array  # (R, p) inner parameters, each fitted to the law with other errors
    noise: Noise | None  # the errors; None without draws
    centre: Array  # (k,) mean logarithms of the inputs, repeated tokens at their worth
    reach: float  # largest `log_compute` of the data
    data: Observations
    problem: Problem  # what theta minimises
    unique_tokens: float = np.inf  # of the training set, nan if rows differ; repeats count less
    discrepancy: Discrepancy = NEVER  # how far the form errs beyond `reach`
    focus: float = 0.0  # power of their compute that weights the rows

    def __repr__(self) -> str:
        return in_words(self.formula, self.rows, self.values, self.intervals)

    @property
    def name(self) -> str:
        """The form's name."""
        return self.form.name

    @property
    def formula(self) -> str:
        """The form's formula."""
        return self.form.formula

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.residuals)

    @property
    def space(self) -> Space:
        """Whether residuals are those of the logarithm."""
        return self.data.space

    @property
    def of_compute(self) -> bool:
        """Whether this is a law of compute alone, not of size and data."""
        return self.form.inputs == ("flops",)

    @property
    def identified(self) -> dict[str, bool]:
        """Whether these rows determine each parameter."""
        return {name: reason == IDENTIFIED for name, reason in self.reasons.items()}

    def predict_draws(self, **inputs: ArrayLike) -> Array:
        """Return values (1 + R, n) at n points: of the law, then of each draw."""
        logs = self.form.columns(self._columns(inputs)) - self.centre[:, None]
        values: Array = self.form.predict(np.concatenate([self.theta[None], self.draws]), logs)
        return values

    def without_draws(self) -> "Fit":
        """Return the law without its draws, which tells values only."""
        return self.first_draws(0)

    def distance(self, **inputs: ArrayLike) -> Array:
        """Return ln(compute / largest compute of the data) of each point, 0 within the data."""
        columns = self._broadcast(inputs)
        used = {name: columns[name] for name in self.form.inputs if name in columns}
        beyond: Array = np.maximum(0.0, log_compute(used) - self.reach)
        return beyond

    def noise_draws(self, **inputs: ArrayLike) -> Array:
        """Return the standard deviation (R, n) of one run at n points, of each draw."""
        compute = log_compute(self._broadcast(inputs))
        return np.empty((0, len(compute))) if self.noise is None else self.noise.at(compute)

    @property
    def residual_noise(self) -> Known:
        """The noise that the residuals show, as it may serve another law of such runs."""
        spare = max(self.rows - len(self.theta), 0)
        square = float(np.sum(tamed(self.residuals, spare) ** 2))
        return Known(float(np.sqrt(square / spare)), spare) if spare else NOTHING_KNOWN

    def refit(
        self,
        *,
        targets: Array | None = None,
        weights: Array | None = None,
        begin: Array | None = None,
        starts: int = 0,
    ) -> Array:
        """Return the inner parameters (S, p) for other targets or row weights (S, n).

        Args:
            targets: Values, or their logs in log space.
            weights: Multiples of the weights of the rows; 0 leaves a row out.
            begin: (S, p) where the search starts; by default at theta and around it.
            starts: Number of other starting points.
        """
        problem = self.problem if targets is None else replace(self.problem, targets=targets)
        if weights is not None:
            problem = replace(problem, weights=problem.weights * weights)
        count = max(
            len(rows) if rows.ndim == 2 else 1 for rows in (problem.targets, problem.weights)
        )
        if begin is not None:
            return minimise(problem, begin, 1e-5, DRAW_STEPS)[0]
        around = self._around() if self.rows <= SEVERAL_STARTS_TO or starts else self.theta[None]
        if starts:
            floor = 0.0 if problem.log else -np.inf
            more = self.form.starts(self.data.values, floor, starts, problem.logs)
            around = np.concatenate([around, more])
        which = np.tile(np.arange(count), len(around))
        ends, costs = minimise(
            problem.take(which), np.repeat(around, count, axis=0), 1e-5, DRAW_STEPS
        )
        best = costs.reshape(len(around), count).argmin(axis=0)
        fitted: Array = ends.reshape(len(around), count, -1)[best, np.arange(count)]
        return fitted

    def draw_noise(self, draws: int, seed: int) -> Noise | None:
        """Draw the errors of the rows; None if nothing tells the noise."""
        free = ~self.problem.at_bound(self.theta)
        return draw_noise(
            self.residuals,
            self.problem.slopes(self.theta[None])[0, free],
            log_compute(self.data.inputs),
            clusters=self.data.runs,
            weights=self.data.counts,
            known=self.data.noise,
            draws=draws,
            rng=np.random.default_rng(seed),
        )

    def with_draws(self, draws: int, seed: int = 0) -> "Fit":
        """Return the fit with draws of its parameters and the intervals that follow from them."""
        known = draws and self.status != "non-finite"
        noise = self.draw_noise(draws, seed) if known else None
        if noise is None:
            return self
        if self.rows >= LINEAR_FROM:
            drawn = self.theta + self.problem.linear_step(self.theta, noise.errors)
            drawn = np.clip(drawn, self.problem.low, self.problem.high)
        else:
            drawn = self.refit(targets=self.problem.targets - self.residuals + noise.errors)
        natural = self.form.natural(drawn, self.centre)
        names = self.form.parameters
        intervals = {name: interval_of(natural[:, j]) for j, name in enumerate(names)}
        freedom = self.rows - len(self.theta) + self.data.noise.freedom
        why = reasons(self.problem, self.theta, drawn, intervals, freedom)
        return replace(self, draws=drawn, noise=noise, intervals=intervals, reasons=why)

    def first_draws(self, count: int) -> "Fit":
        """Return the fit with the first of its draws only."""
        noise = self.noise.take(count) if self.noise else None
        return replace(self, draws=self.draws[:count], noise=noise)

    def _around(self) -> Array:
        """Return starting points (3, p) at theta, and with smaller and larger other parameters."""
        roles = [self.form.role_of(name) for name in self.form.parameters]
        shrink = np.where([role == "coefficient" for role in roles], 1.0, 0.6)
        return np.stack([self.theta, self.theta * shrink, self.theta / shrink])

    def _columns(self, inputs: Mapping[str, ArrayLike]) -> dict[str, Array]:
        """Return the inputs of the form, (n,) each, repeated tokens at their worth."""
        columns = self._broadcast(inputs)
        unique = columns.get("unique_tokens", np.array(self.unique_tokens))
        used = {name: columns[name] for name in self.form.inputs if name in columns}
        if "tokens" in used and "epochs" not in used and np.isnan(unique).any():
            raise ValueError("the rows differ in unique_tokens: give those of the points too")
        used = with_repeats(self.form, used, unique)
        if set(used) != set(self.form.inputs):
            raise ValueError(f"{self.name} takes {', '.join(self.form.inputs)}")
        return used

    def _broadcast(self, inputs: Mapping[str, ArrayLike]) -> dict[str, Array]:
        arrays = np.broadcast_arrays(*(np.asarray(column, float) for column in inputs.values()))
        return {name: array.ravel() for name, array in zip(inputs, arrays, strict=True)}


def fit(
    form: Form,
    data: Observations,
    *,
    delta: float | None = None,
    starts: int = 100,
    draws: int = 1000,
    focus: float = 0.0,
    seed: int = 0,
) -> Fit:
    """Fit a form by Huber's loss around a robust scale.

    Args:
        form: The law.
        data: The rows to explain.
        delta: Where Huber's loss turns linear, in residual units. 1e-3 in log space is the
            published choice (Hoffmann et al. 2022), inf is least squares; by default 1.345 times
            the robust scale.
        starts: Number of initial points of the search.
        draws: Number of draws behind the intervals.
        focus: Rows are weighted by their compute to this power: above 0, expensive rows, which
            are nearest to what a law is asked, count more.
        seed: Seed of the draws.

    Raises:
        UserError: If a column is missing, not finite, or not positive where it must be.
    """
    logs, values = checked_columns(form, data)
    weights = data.counts
    centre = form.centre(logs, weights)
    known = {name: data.inputs[name] for name in form.inputs if name in data.inputs}
    compute = log_compute(known)
    if focus:
        near = np.exp(focus * (compute - compute.max()))
        weights = weights * near * (weights.sum() / np.sum(weights * near))
    problem, begin = _problem(form, logs - centre[:, None], values, weights, data.space, starts)

    ends, costs = minimise(_thinned(problem), begin[:SCOUTS], tolerance=1e-6, steps=60)
    theta, agreement, scale = np.full(len(form.parameters), np.nan), 0.0, float("nan")
    status: Status = "non-finite"
    if np.isfinite(costs.min()):
        least = data.noise.std
        problem, theta, scale = settle_scale(problem, ends[costs.argmin()], least, delta)
        theta, agreement = _best(problem, theta, begin)
        status = _status(problem, theta, agreement)
    natural = form.natural(theta[None], centre)[0]
    unknown = dict.fromkeys(form.parameters, (-np.inf, np.inf))
    why = "the fit is not finite"
    point = Fit(
        form=form,
        status=status,
        values=dict(zip(form.parameters, natural.tolist(), strict=True)),
        intervals=unknown,
        reasons=dict.fromkeys(form.parameters, why)
        if status == "non-finite"
        else reasons(problem, theta, np.empty((0, len(theta))), unknown, 0.0),
        scale=scale,
        residuals=problem.residuals(theta[None])[0],
        agreement=agreement,
        theta=theta,
        draws=np.empty((0, len(theta))),
        noise=None,
        centre=centre,
        reach=float(compute.max()),
        data=data,
        problem=problem,
        unique_tokens=shared_size(data.unique_tokens),
        focus=focus,
    )
    return point.with_draws(draws, seed)


def _problem(
    form: Form, logs: Array, values: Array, weights: Array, space: Space, starts: int
) -> tuple[Problem, Array]:
    """Return the least-squares problem of centred logs (k, n), and its starting points."""
    log, floor = space == "log", 0.0 if space == "log" else -np.inf
    low, high = form.bounds(values, floor, logs)
    targets = np.log(values) if log else values
    problem = Problem(form, logs, targets, weights, np.inf, log, low, high)
    return problem, form.starts(values, floor, starts, logs)


def _best(problem: Problem, theta: Array, begin: Array) -> tuple[Array, float]:
    """Return the best parameters (p,) from theta and all starts, and the share that agrees.

    In a long table, all starts descend on some rows, and the best optima are refined on all.
    """
    few = _thinned(problem)
    ends, costs = minimise(few, np.concatenate([theta[None], begin]))
    cost = float(costs.min())
    slack = 1e-4 * cost + 1e-12 * float(few.weights.sum())
    agreement = float(np.mean(costs[1:] <= cost + slack))
    if few is not problem:
        ends, costs = minimise(problem, np.stack([theta, *ends[_distinct(costs, slack)]]))
    return ends[costs.argmin()], agreement


def _distinct(costs: Array, slack: float) -> list[int]:
    """Return the positions of the best optima, at most POLISHED, of costs apart by `slack`."""
    chosen: list[int] = []
    for at in np.argsort(costs).tolist():
        if not chosen or costs[at] > costs[chosen[-1]] + slack:
            chosen.append(at)
    return chosen[:POLISHED]


def _thinned(problem: Problem) -> Problem:
    """Return the problem of some of many rows, the same ones every time."""
    rows = problem.logs.shape[1]
    if rows <= 2 * THINNED:
        return problem
    return problem.rows(np.sort(np.random.default_rng(0).choice(rows, THINNED, replace=False)))


def _status(problem: Problem, theta: Array, agreement: float) -> Status:
    if rank_deficient(problem, theta):
        return "rank-deficient"
    if np.any(problem.at_bound(theta)):
        return "bound-hit"
    return "converged" if agreement >= 0.5 else "multi-modal"
