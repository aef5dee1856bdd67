"""Robust fits of the forms in `forms`, with intervals that say when a parameter is unknown.

Legend: `n` rows, `p` parameters, `k` inputs, `R` bootstrap draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.laws.extrapolation import NEVER, Discrepancy
from analysis.laws.forms import Array, Form
from analysis.laws.intervals import LEVEL, Interval, interval_ends, interval_of
from analysis.laws.repetition import effective_tokens
from analysis.laws.solver import Problem, minimise
from analysis.laws.uncertainty import IDENTIFIED, bootstrap, rank_deficient, reasons, settle_scale
from tarflow.errors import UserError

Mask = NDArray[np.bool_]
Space = Literal["log", "raw"]
Status = Literal["converged", "bound-hit", "multi-modal", "rank-deficient", "non-finite"]

NO_COMPUTE = ("batch", "epochs", "group", "unique_tokens")  # inputs that do not count as compute
THINNED = 500  # rows on which the starts of a long table descend
POLISHED = 3  # optima of these rows that are refined on all rows
SCOUTS = 16  # starts of the least-squares fit around which the residual scale is settled


@dataclass(frozen=True)
class Observations:
    """Losses to explain and the inputs that explain them, one row per measurement."""

    inputs: Mapping[str, Array]  # (n,) positive values of each input of a form
    values: Array  # (n,) losses, positive in log space
    clusters: Sequence[str] | None = None  # (n,) rows of one cluster are resampled together
    noise: float | None = None  # known standard deviation of equal runs, relative in log space
    space: Space = "log"  # residuals of ln(values), with a floor of 0 or more, or of raw values
    weights: Array | None = None  # (n,) how often each row counts; once by default
    unique_tokens: float | Array = np.inf  # tokens of the training set of all rows, or (n,) of
    # each; tokens beyond them are repeats

    def take(self, rows: Mask) -> "Observations":
        """Return the rows where the (n,) mask holds."""
        chosen = np.flatnonzero(rows).tolist()
        return replace(
            self,
            inputs={name: column[chosen] for name, column in self.inputs.items()},
            values=self.values[chosen],
            clusters=None if self.clusters is None else [self.clusters[row] for row in chosen],
            weights=None if self.weights is None else self.weights[chosen],
            unique_tokens=self.unique_tokens[chosen]
            if isinstance(self.unique_tokens, np.ndarray)
            else self.unique_tokens,
        )

    def at(self, rows: NDArray[np.intp]) -> dict[str, Array]:
        """Return the inputs of rows, given by position, as `Fit.predict` takes them."""
        inputs = {name: np.asarray(column)[rows] for name, column in self.inputs.items()}
        if isinstance(self.unique_tokens, np.ndarray):
            inputs["unique_tokens"] = self.unique_tokens[rows]
        return inputs

    @property
    def compute(self) -> Array:
        """What each row cost, (n,), up to a constant factor."""
        cost: Array = np.exp(log_compute(self.inputs))
        return cost


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law."""

    form: Form
    status: Status
    values: Mapping[str, float]  # parameters of the formula by name (E, A, a, ...)
    intervals: Mapping[str, Interval]  # 90%, by bootstrap
    reasons: Mapping[str, str]  # "identified", or why a parameter is unknown, as a sentence
    rows: int
    scale: float  # robust standard deviation of the residuals; nan if it cannot be known
    residuals: Array  # (n,) ln(achieved / predicted), or achieved - predicted in raw space
    agreement: float  # share of starts that ended at the best optimum
    resampled: str  # what the bootstrap drew: "runs" or "noise"
    space: Space
    theta: Array  # (p,) inner parameters
    draws: Array  # (R, p) inner parameters of the bootstrap
    centre: Array  # (k,) mean logarithms of the inputs, repeated tokens at their worth
    reach: float  # largest `log_compute` of the data
    unique_tokens: float = np.inf  # of the training set, nan if rows differ; repeats count less
    discrepancy: Discrepancy = NEVER  # error of the form beyond `reach`

    @property
    def name(self) -> str:
        """The form's name."""
        return self.form.name

    @property
    def formula(self) -> str:
        """The form's formula."""
        return self.form.formula

    @property
    def of_compute(self) -> bool:
        """Whether this is a law of compute alone, not of size and data."""
        return self.form.inputs == ("flops",)

    @property
    def identified(self) -> dict[str, bool]:
        """Whether these rows determine each parameter."""
        return {name: reason == IDENTIFIED for name, reason in self.reasons.items()}

    def predict(self, **inputs: ArrayLike) -> Array:
        """Return the law's values: predict(flops=...) or predict(params=..., tokens=...).

        Tokens are those seen, repeats counted; the law knows what repeats are worth. Points with
        another training set than the rows give its size, predict(..., unique_tokens=...). Inputs
        that the form does not read change nothing.
        """
        shape = np.broadcast_shapes(*(np.shape(column) for column in inputs.values()))
        value: Array = self.predict_draws(**inputs)[0].reshape(shape)
        return value

    def predict_draws(self, **inputs: ArrayLike) -> Array:
        """Return values (1 + R, n) at n points: of the law, then of each draw of the bootstrap."""
        logs = self.form.columns(self._columns(inputs)) - self.centre[:, None]
        values: Array = self.form.predict(np.concatenate([self.theta[None], self.draws]), logs)
        return values

    def distance(self, **inputs: ArrayLike) -> Array:
        """Return ln(compute / largest compute of the data) of each point, 0 within the data."""
        columns = self._broadcast(inputs)
        used = {name: columns[name] for name in self.form.inputs if name in columns}
        beyond: Array = np.maximum(0.0, log_compute(used) - self.reach)
        return beyond

    def band(self, level: float = LEVEL, **inputs: ArrayLike) -> tuple[Array, Array]:
        """Return the ends of the band in which one new run falls with probability `level`.

        It adds up the spread of the parameters, the noise of a run, and the error of the form per
        unit of extrapolation that the roll-outs showed. Beyond the farthest roll-out it widens in
        proportion to the distance. If the noise is unknown, the band is unbounded.
        """
        shape = np.broadcast_shapes(*(np.shape(column) for column in inputs.values()))
        if not len(self.draws) or not np.isfinite(self.scale):
            return np.full(shape, -np.inf), np.full(shape, np.inf)
        values, distance = self.predict_draws(**inputs), self.distance(**inputs)
        values = np.log(values) if self.space == "log" else values
        spread = np.hypot(self.scale, self.discrepancy.rate * distance)
        error = np.random.default_rng(0).standard_normal((len(self.draws), 1)) * spread
        ends = np.stack(interval_ends(values[1:] + error, level))
        ends = values[0] + (ends - values[0]) * self.discrepancy.widening(distance)
        low, high = np.exp(ends) if self.space == "log" else ends
        return low.reshape(shape), high.reshape(shape)

    def _columns(self, inputs: Mapping[str, ArrayLike]) -> dict[str, Array]:
        """Return the inputs of the form, (n,) each, repeated tokens at their worth."""
        columns = self._broadcast(inputs)
        unique = columns.get("unique_tokens", np.array(self.unique_tokens))
        used = {name: columns[name] for name in self.form.inputs if name in columns}
        if "tokens" in used and "epochs" not in used and np.isnan(unique).any():
            raise ValueError("the rows differ in unique_tokens: give those of the points too")
        used = _with_repeats(self.form, used, unique)
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
        draws: Number of bootstrap draws.
        seed: Seed of the bootstrap.

    Raises:
        UserError: If a column is missing, not finite, or not positive where it must be.
    """
    logs, values = _checked(form, data)
    weights = np.ones(len(values)) if data.weights is None else np.asarray(data.weights, float)
    centre = form.centre(logs, weights)
    known = {name: data.inputs[name] for name in form.inputs if name in data.inputs}
    reach = float(log_compute(known).max())
    problem, begin = _problem(form, logs - centre[:, None], values, weights, data.space, starts)

    ends, costs = minimise(problem, begin[:SCOUTS], tolerance=1e-6, steps=60)
    if not np.isfinite(costs.min()):
        return _not_finite(form, len(values), data.space, centre, reach)
    problem, theta, scale = settle_scale(problem, ends[costs.argmin()], data.noise, delta)
    theta, agreement = _best(problem, theta, begin)
    deficient = rank_deficient(problem, theta)

    clusters = _numbered(data.clusters, len(values))
    drawn, resampled = bootstrap(problem, theta, scale, clusters, draws, seed)
    natural, spread = form.natural(theta[None], centre)[0], form.natural(drawn, centre)
    intervals = {name: interval_of(spread[:, j]) for j, name in enumerate(form.parameters)}
    return Fit(
        form=form,
        status=_status(problem, theta, agreement, deficient),
        values=dict(zip(form.parameters, natural.tolist(), strict=True)),
        intervals=intervals,
        reasons=reasons(problem, theta, drawn, intervals, deficient, float(np.ptp(values))),
        rows=len(values),
        scale=scale,
        residuals=problem.residuals(theta[None])[0],
        agreement=agreement,
        resampled=resampled,
        space=data.space,
        theta=theta,
        draws=drawn,
        centre=centre,
        reach=reach,
        unique_tokens=_shared(data.unique_tokens),
    )


def log_compute(inputs: Mapping[str, ArrayLike]) -> Array:
    """Return ln(compute) up to a constant: of FLOPs, else N D, else the product of the inputs.

    Width counts twice in a product, because a layer has as many weights as its width squared.
    """
    if "flops" in inputs:
        names = ["flops"]
    elif {"params", "tokens"} <= set(inputs):
        names = ["params", "tokens"]
    else:
        names = [name for name in inputs if name not in NO_COMPUTE]
        names += [name for name in names if name == "width"]
    logs: Array = np.log([np.asarray(inputs[name], float) for name in names]).sum(axis=0)
    return logs


def _with_repeats(
    form: Form, inputs: Mapping[str, Array], unique_tokens: float | Array
) -> dict[str, Array]:
    """Return the inputs with epochs if the form reads them, else with tokens at their worth."""
    columns = dict(inputs)
    if "epochs" in form.inputs and "tokens" in columns:
        columns.setdefault("epochs", columns["tokens"] / unique_tokens)
    elif "tokens" in columns:
        columns["tokens"] = effective_tokens(columns["tokens"], unique_tokens)
    return columns


def _shared(unique_tokens: float | Array) -> float:
    """Return the size of the training set, nan if rows differ."""
    least = float(np.min(unique_tokens))
    return least if np.all(unique_tokens == least) else float("nan")


def _checked(form: Form, data: Observations) -> tuple[Array, Array]:
    """Return the logarithms of the inputs (k, n) and the values (n,), all of them valid."""
    values = np.asarray(data.values, float)
    given = [name for name in form.inputs if name in data.inputs]
    columns = {name: np.asarray(data.inputs[name], float) for name in given}
    columns = _with_repeats(form, columns, data.unique_tokens)
    if missing := [name for name in form.inputs if name not in columns]:
        raise UserError(f"the {form.name} law needs a column of {' and of '.join(missing)}")
    inputs = np.stack([columns[name] for name in form.inputs])
    if inputs.shape[1:] != values.shape or not values.size:
        raise UserError("a fit needs inputs and values of one length, at least one row")
    logged = [name for name in form.inputs if name not in form.raw]
    if not np.all(np.isfinite(inputs)) or not all(np.all(columns[name] > 0) for name in logged):
        raise UserError(f"{' and '.join(logged)} must be positive in every row")
    if not np.all(np.isfinite(values)) or (data.space == "log" and values.min() <= 0):
        raise UserError(
            "losses must be finite, and positive in log space; fit negative ones in raw space"
        )
    return form.columns(columns), values


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
    few = problem.thin(THINNED) if problem.logs.shape[1] > 2 * THINNED else problem
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


def _numbered(clusters: Sequence[str] | None, rows: int) -> NDArray[np.intp]:
    """Return the number of each row's cluster, (n,); every row is its own without clusters."""
    if clusters is None:
        return np.arange(rows)
    return np.unique(np.array(clusters), return_inverse=True)[1]


def _status(problem: Problem, theta: Array, agreement: float, deficient: bool) -> Status:
    if deficient:
        return "rank-deficient"
    if np.any(problem.at_bound(theta)):
        return "bound-hit"
    return "converged" if agreement >= 0.5 else "multi-modal"


def _not_finite(form: Form, rows: int, space: Space, centre: Array, reach: float) -> Fit:
    p = len(form.parameters)
    return Fit(
        form=form,
        status="non-finite",
        values=dict.fromkeys(form.parameters, float("nan")),
        intervals=dict.fromkeys(form.parameters, (-np.inf, np.inf)),
        reasons=dict.fromkeys(form.parameters, "the fit is not finite"),
        rows=rows,
        scale=float("nan"),
        residuals=np.full(rows, np.nan),
        agreement=0.0,
        resampled="noise",
        space=space,
        theta=np.full(p, np.nan),
        draws=np.empty((0, p)),
        centre=centre,
        reach=reach,
    )
