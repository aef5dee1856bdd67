"""A law is believed only when it predicts: roll-outs, choice of form, baselines, coverage.

A roll-out fits a law to the cheaper (smaller, shorter) runs and predicts the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.laws.extrapolation import FAR, Discrepancy
from analysis.laws.fit import Fit, Observations, fit
from analysis.laws.forms import Array, Form
from analysis.laws.intervals import LEVEL, NORMAL_90, Interval

CUTOFFS = 4  # windows per axis
NEAR = 0.2  # values of an axis within 20% of each other are one level
SPARE = 2  # rows a window needs beyond the parameters of the largest form
ROUNDING = 1e-9  # errors that tell exact laws apart by nothing but rounding
STARTS, DRAWS = 24, 100  # of every fit inside a roll-out

Window = tuple[str, float]  # what a fit has seen: an axis and its largest value


@dataclass(frozen=True)
class Rollout:
    """One run predicted by a law fitted to cheaper (smaller, shorter) runs only."""

    form: str
    axis: str  # what the window grows along: flops, params or tokens
    cutoff: float  # largest value of the axis the fit has seen
    rows: int  # number of rows the fit has seen
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
    def window(self) -> Window:
        """What the fit has seen; roll-outs of one window share their fit."""
        return self.axis, self.cutoff

    @property
    def log_error(self) -> float:
        """ln(achieved / predicted)."""
        return float(np.log(self.achieved / self.predicted))

    @property
    def spread(self) -> float:
        """Relative standard deviation that the 90% band stands for."""
        low, high = self.interval
        return float(np.log(high / low) / 2 / NORMAL_90) if 0 < low <= high else float("inf")


@dataclass(frozen=True)
class Score:
    """How well a form did in the roll-outs."""

    form: str
    parameters: int
    rollouts: int
    windows: int
    error: float  # mean over windows of the mean absolute relative error; nan without windows
    error_se: float  # its standard error over windows
    aicc: float  # shown, not decisive; nan where undefined
    bic: float
    near: bool  # cannot be told apart from the least error
    chosen: bool


@dataclass(frozen=True)
class Baseline:
    """How well a guess without a law would have done on the same roll-outs."""

    name: str  # "repeat the last value" or "log-linear"
    rollouts: int
    error: float  # as in Score


@dataclass(frozen=True)
class Coverage:
    """How often a band held what it promised on the roll-outs."""

    band: str  # "parameters and noise", or "with discrepancy"
    level: float  # promised
    inside: int
    total: int

    @property
    def achieved(self) -> float:
        """Share of roll-outs inside the band."""
        return self.inside / self.total if self.total else float("nan")


def roll_out(
    forms: Sequence[Form], data: Observations, axes: Mapping[str, Array], seed: int = 0
) -> tuple[Rollout, ...]:
    """Predict every run from windows that grow along each axis; all forms see the same windows.

    Args:
        forms: Laws with the same inputs.
        data: The rows.
        axes: Columns to cut along, (n,) each: flops, params, tokens.
        seed: Seed of the bootstrap.

    Returns:
        The predictions; none if every window has too few rows for the largest form.
    """
    fewest = max(len(form.parameters) for form in forms) + SPARE
    rollouts = []
    for axis, column in axes.items():
        for cutoff in _cutoffs(column, fewest):
            seen = column <= cutoff
            window = data.take(seen)
            for form in forms:
                law = fit(form, window, starts=STARTS, draws=DRAWS, seed=seed)
                if law.status in ("rank-deficient", "non-finite"):
                    break  # a window that fails one form must not count for the others
                rollouts += predict_rows(law, data, np.flatnonzero(~seen), axis, cutoff)
    complete = {
        window
        for window in {rollout.window for rollout in rollouts}
        if {r.form for r in rollouts if r.window == window} == {form.name for form in forms}
    }
    return tuple(rollout for rollout in rollouts if rollout.window in complete)


def predict_rows(
    law: Fit, data: Observations, rows: NDArray[np.intp], axis: str, cutoff: float
) -> list[Rollout]:
    """Predict rows, given by position, by a law fitted up to a cutoff of an axis."""
    inputs = data.at(rows)
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
            achieved=float(data.values[row]),
        )
        for i, row in enumerate(rows)
    ]


def levels(column: Array) -> list[NDArray[np.intp]]:
    """Return the positions of rows of nearly equal value, group by group, smallest value first.

    >>> [group.tolist() for group in levels(np.array([10.0, 1.0, 1.1, 9.5]))]
    [[1, 2], [3, 0]]
    """
    order = np.argsort(column, kind="stable")
    steps = np.diff(np.log(column[order]))
    return np.split(order, np.flatnonzero(steps > np.log1p(NEAR)) + 1)


def _cutoffs(column: Array, fewest: int) -> list[float]:
    """Return level ends that leave `fewest` rows or more, thinned evenly, never the last one."""
    ends = [float(column[group].max()) for group in levels(column)][:-1]
    ends = [end for end in ends if np.sum(column <= end) >= fewest]
    if not ends:
        return []
    return [ends[i] for i in np.unique(np.linspace(0, len(ends) - 1, CUTOFFS).round().astype(int))]


def score(
    forms: Sequence[Form], fits: Sequence[Fit], rollouts: Sequence[Rollout]
) -> tuple[Score, ...]:
    """Score forms by their error in the roll-outs, and choose one.

    The one-standard-error rule decides: a form with fewer parameters wins if its error exceeds the
    least by no more than the standard error of the paired difference over windows. Without
    roll-outs the form with the fewest parameters wins.
    """
    errors = {form.name: _window_errors(rollouts, form.name) for form in forms}
    near = {form.name for form in forms}
    if rollouts:
        best = errors[min(forms, key=lambda form: float(errors[form.name].mean())).name]
        near = {
            name
            for name, error in errors.items()
            if (error - best).mean() <= _standard_error(error - best) + ROUNDING
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


def _window_errors(rollouts: Sequence[Rollout], form: str) -> Array:
    """Return the mean absolute relative error of each window, in a fixed order."""
    windows: dict[Window, list[float]] = {}
    for rollout in rollouts:
        if rollout.form == form:
            windows.setdefault(rollout.window, []).append(abs(rollout.error))
    return np.array([np.mean(windows[key]) for key in sorted(windows)])


def _likelihood(law: Fit) -> float:
    """Return -2 ln likelihood of normal residuals, up to a constant."""
    return law.rows * float(np.log(max(float(np.mean(law.residuals**2)), 1e-30)))


def _standard_error(values: Array) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def baselines(
    rollouts: Sequence[Rollout], data: Observations, axes: Mapping[str, Array]
) -> tuple[Baseline, ...]:
    """Score two guesses without a law on the windows of the roll-outs: last value, log-linear."""
    errors: dict[str, dict[Window, list[float]]] = {"repeat the last value": {}, "log-linear": {}}
    logs = np.log(np.stack([np.ones_like(data.values) * np.e, *data.inputs.values()]))
    targets = {(rollout.window, rollout.row): rollout for rollout in rollouts}  # shared by forms
    for rollout in targets.values():
        seen = axes[rollout.axis] <= rollout.cutoff
        line = np.linalg.lstsq(logs[:, seen].T, np.log(data.values[seen]), rcond=None)[0]
        guesses = float(data.values[seen].min()), float(np.exp(line @ logs[:, rollout.row]))
        for windows, guess in zip(errors.values(), guesses, strict=True):
            windows.setdefault(rollout.window, []).append(abs(guess / rollout.achieved - 1))
    return tuple(
        Baseline(
            name=name,
            rollouts=len(targets),
            error=float(np.mean([np.mean(w) for w in windows.values()])) if windows else np.nan,
        )
        for name, windows in errors.items()
    )


def discrepancy(rollouts: Sequence[Rollout]) -> Discrepancy:
    """Return the error of a form beyond its runs, and how far the roll-outs have tested it.

    The rate is chosen so that 90% of the extrapolating roll-outs lie inside their widened 90%
    band; 0 without such roll-outs.
    """
    beyond = _beyond(rollouts)
    needed = [
        np.sqrt(max(0.0, (r.log_error / NORMAL_90) ** 2 - r.spread**2)) / r.distance
        for r in beyond
    ]
    rate = float(np.quantile(needed, LEVEL, method="higher")) if needed else 0.0
    return Discrepancy(rate, tested=max((r.distance for r in beyond), default=0.0))


def coverage(rollouts: Sequence[Rollout]) -> tuple[Coverage, ...]:
    """Count the extrapolating roll-outs of one form inside their bands.

    For the widened band, each window is judged with the discrepancy of the other windows, as if
    they had tested every distance.
    """
    beyond = _beyond(rollouts)
    plain = sum(r.interval[0] <= r.achieved <= r.interval[1] for r in beyond)
    wide = 0
    for rollout in beyond:
        extra = discrepancy([r for r in beyond if r.window != rollout.window])
        spread = np.hypot(rollout.spread, extra.rate * rollout.distance)
        wide += bool(abs(rollout.log_error) <= NORMAL_90 * spread)
    return (
        Coverage("parameters and noise", LEVEL, plain, len(beyond)),
        Coverage("with discrepancy", LEVEL, wide, len(beyond)),
    )


def _beyond(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Return the roll-outs that extrapolate: an error over a distance near zero has no slope."""
    return [r for r in rollouts if r.distance >= FAR and np.isfinite(r.spread)]
