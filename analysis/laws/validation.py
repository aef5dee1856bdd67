"""A law is believed only when it predicts: roll-outs, baselines and the choice of form.

A roll-out fits a law to the cheaper (smaller, shorter) runs and predicts the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.laws.fit import Fit, Space, fit
from analysis.laws.forms import Array, Form
from analysis.laws.intervals import LEVEL, Interval

Mask = NDArray[np.bool_]

CUTOFFS = 4  # windows per axis
NEAR = 0.2  # values of an axis within 20% of each other are one level
SPARE = 2  # rows a window needs beyond the parameters of the largest form
STARTS, DRAWS = 24, 100  # of every fit inside a roll-out


@dataclass(frozen=True)
class Rollout:
    """One run predicted by a law fitted to cheaper (smaller, shorter) runs only."""

    form: str
    axis: str  # what the window grows along: flops, params or tokens
    cutoff: float  # largest value of the axis the fit has seen
    rows: int  # rows the fit has seen
    row: int  # position of the predicted row in the table
    distance: float  # ln(compute of the row / largest compute seen); 0 if not beyond
    predicted: float
    interval: Interval  # 90% band of parameters and noise, without a discrepancy term
    achieved: float

    @property
    def error(self) -> float:
        """Relative error, predicted / achieved - 1."""
        return self.predicted / self.achieved - 1

    @property
    def window(self) -> tuple[str, float]:
        """What the fit has seen; roll-outs of one window share their fit."""
        return self.axis, self.cutoff


@dataclass(frozen=True)
class Score:
    """How a form did in the roll-outs."""

    form: str
    parameters: int
    rollouts: int
    windows: int
    error: float  # mean over windows of the mean absolute relative error; nan without windows
    error_se: float  # its standard error over windows
    aicc: float  # shown, not decisive; nan where undefined
    bic: float
    near: bool  # not told apart from the least error
    chosen: bool


@dataclass(frozen=True)
class Baseline:
    """What a guess without a law would have scored on the same roll-outs."""

    name: str  # "repeat the last value" or "log-linear"
    rollouts: int
    error: float  # as in Score


@dataclass(frozen=True)
class Table:
    """Rows to fit: inputs by name and values, (n,) each, and the run each row belongs to."""

    inputs: Mapping[str, Array]
    values: Array
    clusters: Sequence[str]
    noise: float | None = None  # known relative standard deviation between equal runs
    space: Space = "log"

    def take(self, rows: Mask) -> "Table":
        """Return the rows where the (n,) mask holds."""
        return replace(
            self,
            inputs={name: column[rows] for name, column in self.inputs.items()},
            values=self.values[rows],
            clusters=[name for name, kept in zip(self.clusters, rows, strict=True) if kept],
        )

    def fit(self, form: Form, starts: int = 100, draws: int = 1000, seed: int = 0) -> Fit:
        """Fit a form to all rows."""
        return fit(
            form, self.inputs, self.values, clusters=self.clusters, noise=self.noise,
            space=self.space, starts=starts, draws=draws, seed=seed,
        )  # fmt: skip

    @property
    def compute(self) -> Array:
        """Product of the inputs, (n,): proportional to the compute."""
        product: Array = np.prod(np.stack(list(self.inputs.values())), axis=0)
        return product


def roll_out(
    forms: Sequence[Form], table: Table, axes: Mapping[str, Array], seed: int = 0
) -> tuple[Rollout, ...]:
    """Predict every run from windows that grow along each axis; all forms see the same windows.

    Args:
        forms: laws with the same inputs.
        table: the rows.
        axes: columns to cut along, (n,) each: flops, params, tokens.
        seed: of the bootstrap.

    Returns:
        No roll-outs when every window has too few rows for the largest form.
    """
    need = max(len(form.parameters) for form in forms) + SPARE
    found = []
    for axis, column in axes.items():
        for cutoff in _cutoffs(column, need):
            seen = column <= cutoff
            window = table.take(seen)
            for form in forms:
                law = window.fit(form, STARTS, DRAWS, seed)
                if law.status in ("rank-deficient", "non-finite"):
                    break  # a design that fails one form must not count for the others
                found += predict_rows(law, table, np.flatnonzero(~seen), axis, cutoff)
    whole = {
        window
        for window in {rollout.window for rollout in found}
        if {r.form for r in found if r.window == window} == {form.name for form in forms}
    }
    return tuple(rollout for rollout in found if rollout.window in whole)


def predict_rows(
    law: Fit, table: Table, rows: NDArray[np.intp], axis: str, cutoff: float
) -> list[Rollout]:
    """Predict rows of a table, given by position, by a law fitted up to a cutoff of an axis."""
    inputs = {name: column[rows] for name, column in table.inputs.items()}
    value, distance = law.predict(**inputs), law.distance(**inputs)
    low, high = law.band(LEVEL, **inputs)
    return [
        Rollout(
            form=law.name,
            axis=axis,
            cutoff=float(cutoff),
            rows=law.rows,
            row=int(row),
            distance=float(distance[i]),
            predicted=float(value[i]),
            interval=(float(low[i]), float(high[i])),
            achieved=float(table.values[row]),
        )
        for i, row in enumerate(rows)
    ]


def levels(column: Array) -> list[Array]:
    """Group the rows of nearly equal value, smallest value first; each group holds positions.

    >>> [group.tolist() for group in levels(np.array([10.0, 1.0, 1.1, 9.5]))]
    [[1, 2], [3, 0]]
    """
    order = np.argsort(column, kind="stable")
    steps = np.diff(np.log(column[order]))
    return np.split(order, np.flatnonzero(steps > np.log1p(NEAR)) + 1)


def _cutoffs(column: Array, need: int) -> list[float]:
    """Return level ends after at least `need` rows, thinned evenly, never the last one."""
    ends = [float(column[group].max()) for group in levels(column)][:-1]
    ends = [end for end in ends if np.sum(column <= end) >= need]
    if not ends:
        return []
    return [ends[i] for i in np.unique(np.linspace(0, len(ends) - 1, CUTOFFS).round().astype(int))]


def window_errors(rollouts: Sequence[Rollout], form: str) -> Array:
    """Return the mean absolute relative error of each window, in a fixed order."""
    windows: dict[tuple[str, float], list[float]] = {}
    for rollout in rollouts:
        if rollout.form == form:
            windows.setdefault(rollout.window, []).append(abs(rollout.error))
    return np.array([np.mean(windows[key]) for key in sorted(windows)])


def score(
    forms: Sequence[Form], fits: Sequence[Fit], rollouts: Sequence[Rollout]
) -> tuple[Score, ...]:
    """Score forms and choose one: least pooled error, one-standard-error rule to fewer parameters.

    A simpler form wins if its error exceeds the least by no more than the standard error of the
    paired difference over windows. Without roll-outs the form with the fewest parameters wins.
    """
    errors = {form.name: window_errors(rollouts, form.name) for form in forms}
    near = {form.name for form in forms}
    if rollouts:
        best = errors[min(forms, key=lambda form: float(errors[form.name].mean())).name]
        near = {
            name
            for name, error in errors.items()
            if (error - best).mean() <= _standard_error(error - best)
        }
    simple_first = sorted(forms, key=lambda form: len(form.parameters))
    chosen = next(form for form in simple_first if form.name in near)
    scores = []
    for form, law in zip(forms, fits, strict=True):
        p, n = len(form.parameters), law.rows
        free = n - p - 1
        scores.append(
            Score(
                form=form.name,
                parameters=p,
                rollouts=sum(rollout.form == form.name for rollout in rollouts),
                windows=len(errors[form.name]),
                error=float(errors[form.name].mean()) if rollouts else float("nan"),
                error_se=_standard_error(errors[form.name]) if rollouts else float("nan"),
                aicc=_likelihood(law) + 2 * p * n / free if free > 0 else float("nan"),
                bic=_likelihood(law) + p * float(np.log(n)),
                near=form.name in near,
                chosen=form is chosen,
            )
        )
    return tuple(scores)


def _likelihood(law: Fit) -> float:
    """Return -2 ln likelihood of normal residuals, up to a constant."""
    return law.rows * float(np.log(max(float(np.mean(law.residuals**2)), 1e-30)))


def _standard_error(values: Array) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def baselines(
    rollouts: Sequence[Rollout], table: Table, axes: Mapping[str, Array]
) -> tuple[Baseline, ...]:
    """Score guesses without a law on the windows of the roll-outs: last value, log-linear."""
    guesses: dict[str, dict[tuple[str, float], list[float]]] = {
        "repeat the last value": {},
        "log-linear": {},
    }
    logs = np.log(np.stack([np.ones_like(table.values) * np.e, *table.inputs.values()]))
    done = set()
    for rollout in rollouts:
        if (rollout.window, rollout.row) in done:
            continue
        done.add((rollout.window, rollout.row))
        seen = axes[rollout.axis] <= rollout.cutoff
        line = np.linalg.lstsq(logs[:, seen].T, np.log(table.values[seen]), rcond=None)[0]
        for name, guess in (
            ("repeat the last value", float(table.values[seen].min())),
            ("log-linear", float(np.exp(line @ logs[:, rollout.row]))),
        ):
            error = abs(guess / rollout.achieved - 1)
            guesses[name].setdefault(rollout.window, []).append(error)
    return tuple(
        Baseline(
            name=name,
            rollouts=len(done),
            error=float(np.mean([np.mean(w) for w in windows.values()])) if windows else np.nan,
        )
        for name, windows in guesses.items()
    )
