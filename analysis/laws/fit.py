"""Robust fits of the forms in `laws`, with intervals that say when a parameter is unknown.

Legend: `n` rows, `p` parameters, `R` draws, `m` points asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from analysis.laws.forms import Array, Form
from analysis.laws.intervals import LEVEL, Interval
from analysis.laws.solver import Problem, minimise
from analysis.laws.uncertainty import (
    bootstrap,
    doubt,
    interval_of,
    settle_scale,
    singular_values,
)
from tarflow.errors import UserError

Space = Literal["log", "raw"]
Status = Literal["converged", "bound-hit", "multi-modal", "rank-deficient", "non-finite"]

SCOUTS = 16  # starts of the least-squares fit around which the residual scale is settled


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law."""

    form: Form
    status: Status
    values: Mapping[str, float]  # parameters of the formula by name (E, A, a, ...)
    intervals: Mapping[str, Interval]  # 90%, by bootstrap
    identified: Mapping[str, bool]
    reasons: Mapping[str, str]  # one plain sentence per parameter
    rows: int
    scale: float  # robust standard deviation of the residuals; nan if it cannot be known
    residuals: Array  # (n,) ln(achieved / predicted), or achieved - predicted in raw space
    agreement: float  # share of starts that ended at the best optimum
    singular_values: Array  # (p,) of the Jacobian with columns of length 1, largest first
    resampled: str  # "runs" or "noise": what the bootstrap drew
    space: Space
    cost: float  # robust sum of squares, -2 ln likelihood up to a constant
    theta: Array  # (p,) inner parameters
    draws: Array  # (R, p) inner parameters of the bootstrap
    centre: Array  # (k,) mean logs of the inputs
    reach: float  # ln of the largest compute in the data (product of the inputs)
    discrepancy: float = 0.0  # standard deviation per unit of ln(compute) beyond `reach`

    @property
    def name(self) -> str:
        """The form's name."""
        return self.form.name

    @property
    def formula(self) -> str:
        """The form's formula."""
        return self.form.formula

    def predict(self, **inputs: ArrayLike) -> Array:
        """Return the law's values: predict(flops=...) or predict(params=..., tokens=...)."""
        logs, shape = self._logs(inputs)
        value: Array = self.form.predict(self.theta[None], logs)[0].reshape(shape)
        return value

    def predict_draws(self, **inputs: ArrayLike) -> Array:
        """Return the values of every bootstrap draw, (R, m)."""
        return self.form.predict(self.draws, self._logs(inputs)[0])

    def natural_draws(self) -> dict[str, Array]:
        """Return the parameters of the formula for every draw, (R,) each."""
        natural = self.form.natural(self.draws, self.centre)
        return dict(zip(self.form.parameters, natural.T, strict=True))

    def distance(self, **inputs: ArrayLike) -> Array:
        """Return ln(compute / largest compute of the data), 0 inside, for m points."""
        logs, _ = self._logs(inputs)
        beyond: Array = np.maximum(0.0, logs.sum(axis=0) + self.centre.sum() - self.reach)
        return beyond

    def band(self, level: float = LEVEL, **inputs: ArrayLike) -> tuple[Array, Array]:
        """Return the ends of the band in which one new run falls with probability `level`.

        It adds the spread of the parameters, the noise of a run, and what the roll-outs showed
        the form to miss per unit of extrapolation. Wide open (-inf, inf) if the noise is unknown.
        """
        logs, shape = self._logs(inputs)
        if not len(self.draws) or not np.isfinite(self.scale):
            return np.full(shape, -np.inf), np.full(shape, np.inf)
        value = self.form.predict(self.draws, logs)
        spread = np.hypot(self.scale, self.discrepancy * self.distance(**inputs))
        error = np.random.default_rng(0).standard_normal((len(value), 1)) * spread
        value = value * np.exp(error) if self.space == "log" else value + error
        low, high = np.quantile(value, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low.reshape(shape), high.reshape(shape)

    def _logs(self, inputs: Mapping[str, ArrayLike]) -> tuple[Array, tuple[int, ...]]:
        if set(inputs) != set(self.form.inputs):
            raise ValueError(f"{self.name} takes {', '.join(self.form.inputs)}")
        arrays = np.broadcast_arrays(*(np.asarray(inputs[k], float) for k in self.form.inputs))
        logs = np.log(np.stack([array.ravel() for array in arrays]))
        return logs - self.centre[:, None], arrays[0].shape


def fit(
    form: Form,
    inputs: Mapping[str, ArrayLike],
    values: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    se: ArrayLike | None = None,
    clusters: Sequence[object] | None = None,
    space: Space = "log",
    noise: float | None = None,
    delta: float | None = None,
    starts: int = 100,
    draws: int = 1000,
    seed: int = 0,
) -> Fit:
    """Fit a form to rows by Huber's loss around a robust scale.

    Args:
        form: the law.
        inputs: a positive column per input of the form, (n,) each.
        values: (n,) the loss to explain; positive in log space.
        weights: (n,) how often each row counts; 1 by default.
        se: (n,) known standard errors of the values; only their ratios matter.
        clusters: (n,) run of each row: rows of one run are resampled together.
        space: residuals of ln(values), whose floor is 0, or of the raw values.
        noise: known standard deviation between equal runs (relative in log space): the
            residual scale is not taken to be less.
        delta: where Huber's loss turns linear, in residual units: 1e-3 in log space is the
            published choice (Hoffmann et al. 2022), inf is least squares; by default 1.345
            times the robust scale.
        starts: initial points of the search.
        draws: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        UserError: if a column is missing, not finite, or not positive where it must be.
    """
    logs, y = _columns(form, inputs, values, space)
    count = np.ones(len(y)) if weights is None else np.asarray(weights, float)
    centre = np.average(logs, axis=1, weights=count)
    error = np.ones(len(y)) if se is None else _relative_error(se, y, space)
    floor = 0.0 if space == "log" else -np.inf
    low, high = form.bounds(y, floor)
    targets = np.log(y) if space == "log" else y
    problem = Problem(
        form, logs - centre[:, None], targets, count, error, np.inf, space == "log", low, high
    )
    begin = form.starts(y, floor, starts)
    ends, costs = minimise(problem, begin[:SCOUTS], tolerance=1e-6, steps=60)
    if not np.isfinite(costs.min()):
        return _not_finite(form, len(y), space, centre, float(logs.sum(axis=0).max()))
    free = float(count.sum()) - len(form.parameters)
    problem, theta, scale = settle_scale(problem, ends[costs.argmin()], free, noise, delta)
    ends, costs = minimise(problem, np.concatenate([theta[None], begin]))
    theta, cost = ends[costs.argmin()], float(costs.min())
    slack = 1e-4 * cost + 1e-12 * float(count.sum())
    agreement = float(np.mean(costs[1:] <= cost + slack))
    singular = singular_values(problem, theta)
    names = np.arange(len(y)) if clusters is None else np.unique(
        np.array([str(name) for name in clusters]), return_inverse=True
    )[1]  # fmt: skip
    drawn, resampled = bootstrap(problem, theta, scale, names, draws, seed)
    natural = form.natural(theta[None], centre)[0]
    spread = form.natural(drawn, centre)
    intervals = {
        name: interval_of(column) for name, column in zip(form.parameters, spread.T, strict=True)
    }
    deficient = len(y) < len(form.parameters) or singular[-1] < 1e-7 * singular[0]
    at_bound = {
        name: bool(theta[j] <= low[j] or theta[j] >= high[j])
        or float(np.mean((drawn[:, j] <= low[j]) | (drawn[:, j] >= high[j]))) > (1 - LEVEL) / 2
        for j, name in enumerate(form.parameters)
        if len(drawn)
    }
    status: Status = "converged" if agreement >= 0.5 else "multi-modal"
    if np.any((theta <= low) | (theta >= high)):
        status = "bound-hit"
    if deficient:
        status = "rank-deficient"
    reasons = {
        name: doubt(name, intervals[name], deficient, at_bound.get(name, False), y)
        for name in form.parameters
    }
    return Fit(
        form=form,
        status=status,
        values=dict(zip(form.parameters, natural.tolist(), strict=True)),
        intervals=intervals,
        identified={name: not reason for name, reason in reasons.items()},
        reasons={name: reason or "identified" for name, reason in reasons.items()},
        rows=len(y),
        scale=scale,
        residuals=problem.residuals(theta[None])[0] * error,
        agreement=agreement,
        singular_values=singular,
        resampled=resampled,
        space=space,
        cost=2 * cost / scale**2 if scale > 0 else float("nan"),
        theta=theta,
        draws=drawn,
        centre=centre,
        reach=float(logs.sum(axis=0).max()),
    )


def _columns(
    form: Form, inputs: Mapping[str, ArrayLike], values: ArrayLike, space: Space
) -> tuple[Array, Array]:
    y = np.asarray(values, float)
    if missing := [name for name in form.inputs if name not in inputs]:
        raise UserError(f"the {form.name} law needs a column of {' and of '.join(missing)}")
    x = np.stack([np.asarray(inputs[name], float) for name in form.inputs])
    if x.shape[1:] != y.shape or not y.size:
        raise UserError("a fit needs inputs and values of one length, at least one row")
    if not np.all(np.isfinite(x) & (x > 0)):
        raise UserError(f"{' and '.join(form.inputs)} must be positive in every row")
    if not np.all(np.isfinite(y)) or (space == "log" and y.min() <= 0):
        raise UserError(
            "losses must be finite, and positive in log space; fit negative ones in raw space"
        )
    return np.log(x), y


def _relative_error(se: ArrayLike, y: Array, space: Space) -> Array:
    error = np.asarray(se, float) / (y if space == "log" else 1.0)
    if error.shape != y.shape or not np.all(error > 0):
        raise UserError("standard errors must be positive, one per row")
    return error / float(np.median(error))


def _not_finite(form: Form, rows: int, space: Space, centre: Array, reach: float) -> Fit:
    p = len(form.parameters)
    return Fit(
        form=form,
        status="non-finite",
        values=dict.fromkeys(form.parameters, float("nan")),
        intervals=dict.fromkeys(form.parameters, (-np.inf, np.inf)),
        identified=dict.fromkeys(form.parameters, False),
        reasons=dict.fromkeys(form.parameters, "the fit is not finite"),
        rows=rows,
        scale=float("nan"),
        residuals=np.full(rows, np.nan),
        agreement=0.0,
        singular_values=np.zeros(p),
        resampled="noise",
        space=space,
        cost=float("nan"),
        theta=np.full(p, np.nan),
        draws=np.empty((0, p)),
        centre=centre,
        reach=reach,
    )
