"""A law is believed only when it predicts: roll-outs, weights of forms, baselines, coverage.

A roll-out fits a law to the cheaper (smaller, shorter) runs and predicts the others.
Legend: `n` rows, `p` parameters, `W` windows, `R` draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from analysis.laws.extrapolation import FAR, Discrepancy
from analysis.laws.fit import Fit
from analysis.laws.forms import GROUP, Array
from analysis.laws.intervals import LEVEL, Interval
from analysis.laws.observations import Mask, Observations
from analysis.laws.uncertainty import rank_deficient

WINDOWS = 4  # per axis
FIRST, LAST = 0.5, 0.8  # shares of the rows that the smallest and the largest window see
FEWEST_WINDOWS = 3  # per axis, of small tables
NEAR = 0.2  # values of an axis within 20% of each other are one level
EQUAL = 0.05  # rows within 5% of a cutoff are seen too: budgets round to whole batches
SPARE = 2  # rows a window needs beyond the parameters of the largest form
STARTS = 8  # of every fit inside a roll-out, besides those around the fit of all rows
SHARPNESS = 4.0  # a form with half the error weighs 2^4 times as much
PROMISED_RUNS = 20  # runs that miss as normal errors do, counted beside those of the roll-outs
PROMISED = ndtri((1 + np.arange(0.01, 1, 0.01)) / 2) / ndtri((1 + LEVEL) / 2)  # their misses


@dataclass(frozen=True, eq=False)
class Window:
    """What a fit sees of a table: the rows up to a cutoff along an axis."""

    axis: str  # compute, params or tokens
    cutoff: float
    seen: Mask  # (n,)


@dataclass(frozen=True)
class Rollout:
    """One run predicted from cheaper (smaller, shorter) runs only."""

    form: str  # name of a form, or AVERAGE
    axis: str  # what the window grows along
    cutoff: float  # largest value of the axis the fit has seen
    rows: int  # number of rows the fit has seen
    row: int  # position of the predicted row in the table
    run: int  # number of its run: checkpoints of one run, and branches of one trunk, share it
    distance: float  # ln(compute of the row / largest compute seen); 0 if not beyond
    predicted: float
    achieved: float
    interval: Interval | None = None  # 90% band of parameters and noise; of the average only

    @property
    def error(self) -> float:
        """Relative error, predicted / achieved - 1."""
        return self.predicted / self.achieved - 1

    @property
    def window(self) -> tuple[str, float]:
        """What the fit has seen."""
        return self.axis, self.cutoff

    @property
    def log_error(self) -> float:
        """ln(achieved / predicted)."""
        return float(np.log(self.achieved / self.predicted))

    @cached_property
    def miss(self) -> float:
        """The error in units of the distance to the end of the band on its side."""
        low, high = self.interval or (-np.inf, np.inf)
        half = (
            np.log(high / self.predicted) if self.log_error > 0 else np.log(self.predicted / low)
        )
        return float(abs(self.log_error) / max(half, 1e-12))


AVERAGE = "average"
CORRECTED = "corrected by roll-outs"


@dataclass(frozen=True)
class Score:
    """How well a form did in the roll-outs, and what it weighs in the average."""

    form: str
    parameters: int
    rollouts: int
    windows: int
    error: float  # mean over windows of the mean absolute log error; nan without windows
    error_se: float  # its standard error over predicted runs: windows share their runs
    weight: float
    aicc: float  # shown, not decisive; nan where undefined
    bic: float


@dataclass(frozen=True)
class Baseline:
    """How well a guess without a law would have done on the same roll-outs."""

    name: str  # "repeat the last value" or "log-linear"
    rollouts: int
    error: float  # as in Score


@dataclass(frozen=True)
class Coverage:
    """How often a band held what it promised on the roll-outs beyond the compute seen."""

    band: str  # "parameters and noise", or CORRECTED
    level: float  # promised
    inside: int
    total: int
    score: float  # mean interval score in ln(loss) (Gneiting and Raftery 2007); less is better

    @property
    def achieved(self) -> float:
        """Share of roll-outs inside the band."""
        return self.inside / self.total if self.total else float("nan")


@dataclass(frozen=True, eq=False)
class Trials:
    """Fits of the same windows by several members of an average."""

    windows: tuple[Window, ...]
    thetas: tuple[Array, ...]  # by member: inner parameters (W, p)
    predicted: tuple[Array, ...]  # by member: ln of the predictions of all rows (W, n)

    def errors(self, achieved: Array) -> list[Array]:
        """Return |log errors| (W, n) of each member, nan where a row was seen."""
        seen = np.stack([window.seen for window in self.windows])
        return [np.where(seen, np.nan, np.abs(achieved - values)) for values in self.predicted]


def windows_of(axes: Mapping[str, Array], fewest: int) -> tuple[Window, ...]:
    """Cut a table at quantiles of each axis, so that any table has windows, however it is spaced.

    Args:
        axes: Columns to cut along, (n,) each.
        fewest: Rows that every window must see.

    Returns:
        The distinct windows; none of them sees all rows.
    """
    cut: dict[bytes, Window] = {}
    for axis, column in axes.items():
        rows = len(column)
        first = max(fewest, int(np.ceil(FIRST * rows)))
        last = min(max(int(LAST * rows), first + FEWEST_WINDOWS - 1), rows - 1)
        if first > last:
            continue
        for count in np.unique(np.linspace(first, last, WINDOWS).round().astype(int)):
            end = np.sort(column)[count - 1] * (1 + EQUAL)
            seen = column <= end
            if not seen.all():
                window = Window(axis, float(column[seen].max()), seen)
                cut.setdefault(seen.tobytes(), window)
    return tuple(cut.values())


def try_out(fits: Sequence[Fit], windows: Sequence[Window]) -> Trials:
    """Fit every member to every window. Windows that some member cannot fit are left out."""
    if not windows:
        return Trials((), (), ())
    masks = np.stack([window.seen for window in windows]).astype(float)
    thetas = [law.refit(weights=masks, starts=STARTS) for law in fits]
    good = [
        all(_fitted(law, theta[w], window.seen) for law, theta in zip(fits, thetas, strict=True))
        for w, window in enumerate(windows)
    ]
    kept = np.flatnonzero(good)
    thetas = [theta[kept] for theta in thetas]
    predicted = tuple(
        np.log(np.maximum(law.form.predict(theta, law.problem.logs), 1e-300))
        for law, theta in zip(fits, thetas, strict=True)
    )
    return Trials(tuple(windows[int(w)] for w in kept), tuple(thetas), predicted)


def _fitted(law: Fit, theta: Array, seen: Mask) -> bool:
    return bool(np.isfinite(theta).all()) and not rank_deficient(law.problem.rows(seen), theta)


def weigh(errors: Sequence[Array], parameters: Sequence[int]) -> Array:
    """Return the weight of each member, (m,), by its mean absolute error in the windows (W, n).

    Without windows, the first member with the fewest parameters has all the weight.
    """
    if not errors:
        alone: Array = np.eye(len(parameters))[int(np.argmin(parameters))]
        return alone
    size = np.array([np.nanmean(error, axis=1).mean() for error in errors])
    relative = np.maximum(size, 1e-12) / max(float(size.min()), 1e-12)
    raised: Array = relative**-SHARPNESS
    weights: Array = raised / raised.sum()
    return weights


def score(
    fits: Sequence[Fit], trials: Trials, weights: Array, data: Observations
) -> tuple[Score, ...]:
    """Score the forms. Members of one form share a line, in proportion to their weights."""
    errors = trials.errors(np.log(data.values)) if trials.windows else []
    runs = list(data.clusters or map(str, range(len(data.values))))
    scores = []
    for form in dict.fromkeys(law.form for law in fits):
        own = [at for at, law in enumerate(fits) if law.form is form]
        law, shares = fits[own[0]], weights[own]
        shares = shares / shares.sum() if shares.sum() else np.full(len(own), 1 / len(own))
        p, n = len(form.parameters), law.rows
        free = n - p - 1
        error, error_se, rollouts = float("nan"), float("nan"), 0
        if errors:
            size = sum(share * errors[at] for share, at in zip(shares, own, strict=True))
            error = float(np.nanmean(size, axis=1).mean())
            error_se = _standard_error(size, runs)
            rollouts = int(np.isfinite(size).sum())
        scores.append(
            Score(
                form=form.name,
                parameters=p,
                rollouts=rollouts,
                windows=len(trials.windows),
                error=error,
                error_se=error_se,
                weight=float(weights[own].sum()),
                aicc=_likelihood(law) + 2 * p * n / free if free > 0 else float("nan"),
                bic=_likelihood(law) + p * float(np.log(n)),
            )
        )
    return tuple(scores)


def _standard_error(errors: Array, runs: Sequence[str]) -> float:
    """Return the standard error over runs of the mean of errors (W, n).

    Windows are nested, so one run is predicted by several of them: its errors count once.
    """
    sums: dict[str, list[float]] = {}
    for row, run in enumerate(runs):
        column = errors[:, row]
        if np.isfinite(column).any():
            sums.setdefault(run, []).append(float(np.nanmean(column)))
    means = np.array([np.mean(values) for values in sums.values()])
    return float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else 0.0


def _likelihood(law: Fit) -> float:
    """Return -2 ln likelihood of normal residuals, up to a constant."""
    return law.rows * float(np.log(max(float(np.mean(law.residuals**2)), 1e-30)))


def levels(column: Array) -> list[NDArray[np.intp]]:
    """Return the positions of rows of nearly equal value, group by group, smallest value first.

    >>> [group.tolist() for group in levels(np.array([10.0, 1.0, 1.1, 9.5]))]
    [[1, 2], [3, 0]]
    """
    order = np.argsort(column, kind="stable")
    steps = np.diff(np.log(column[order]))
    return np.split(order, np.flatnonzero(steps > np.log1p(NEAR)) + 1)


def baselines(windows: Sequence[Window], data: Observations) -> tuple[Baseline, ...]:
    """Score two guesses without a law on the windows: last value, log-linear."""
    if not windows:
        return ()
    columns = [column for name, column in data.inputs.items() if name != GROUP]
    logs = np.log(np.stack([np.ones_like(data.values) * np.e, *columns]))
    achieved = np.log(data.values)
    errors: dict[str, list[float]] = {"repeat the last value": [], "log-linear": []}
    for window in windows:
        seen, unseen = window.seen, ~window.seen
        line = np.linalg.lstsq(logs[:, seen].T, achieved[seen], rcond=None)[0]
        guesses = achieved[seen].min(), line @ logs[:, unseen]
        for sizes, guess in zip(errors.values(), guesses, strict=True):
            sizes.append(float(np.mean(np.abs(achieved[unseen] - guess))))
    count = sum(int((~window.seen).sum()) for window in windows)
    return tuple(Baseline(name, count, float(np.mean(sizes))) for name, sizes in errors.items())


def discrepancy(rollouts: Sequence[Rollout]) -> Discrepancy:
    """Return how wide the bands of roll-outs must be to hold 90% of them, and how far they go.

    Roll-outs of one run err together, so they count as one. `PROMISED_RUNS` runs that err as the
    bands promise are added, because few runs may be lucky or unlucky.
    """
    banded = _banded(rollouts)
    runs = [item.run for item in banded]
    _, which, count = np.unique(runs, return_inverse=True, return_counts=True)
    promised = np.full(len(PROMISED), PROMISED_RUNS / len(PROMISED))
    weights = np.concatenate([1 / count[which], promised])
    misses = np.concatenate([[item.miss for item in banded], PROMISED])
    order = np.argsort(misses)
    passed = np.cumsum(weights[order])
    factor = misses[order][np.searchsorted(passed, LEVEL * passed[-1])]
    return Discrepancy(float(factor), max((item.distance for item in banded), default=0.0))


def coverage(rollouts: Sequence[Rollout]) -> tuple[Coverage, ...]:
    """Count the roll-outs beyond the compute seen inside their bands.

    A window of the corrected band is judged with the factor of the other windows.
    """
    banded = _banded(rollouts)
    beyond = [rollout for rollout in banded if rollout.distance >= FAR]
    bands: dict[str, list[tuple[Rollout, float]]] = {"parameters and noise": [], CORRECTED: []}
    for window in dict.fromkeys(rollout.window for rollout in beyond):
        factor = discrepancy([rollout for rollout in banded if rollout.window != window]).factor
        own = [rollout for rollout in beyond if rollout.window == window]
        bands["parameters and noise"] += [(rollout, 1.0) for rollout in own]
        bands[CORRECTED] += [(rollout, factor) for rollout in own]
    return tuple(
        Coverage(
            band=band,
            level=LEVEL,
            inside=sum(rollout.miss <= factor for rollout, factor in items),
            total=len(items),
            score=float(np.mean([_interval_score(*item) for item in items]) if items else np.nan),
        )
        for band, items in bands.items()
    )


def _interval_score(rollout: Rollout, factor: float) -> float:
    """Return the width of the band in ln(loss) plus 2 / (1 - level) times what lies outside."""
    low, high = np.log(rollout.interval or (np.nan, np.nan)) - np.log(rollout.predicted)
    outside = max(factor * low - rollout.log_error, rollout.log_error - factor * high, 0.0)
    return float(factor * (high - low) + 2 / (1 - LEVEL) * outside)


def _banded(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Return the roll-outs that have a band."""
    return [r for r in rollouts if r.interval and all(map(isfinite, r.interval))]
