"""The law of a table: the average of several forms, each weighted by how well it predicts.

No form is best on all tables, and the one chosen on a single table is often the wrong one. So
every form is fitted twice, with all rows alike and with more weight on expensive ones, and the
logarithms of the predictions are averaged. Intervals pool the draws of all of them. Parameters are
those of the most general form, because the intervals of a special form hold only if it is true.
Legend: `n` rows, `m` members, `W` windows, `R` draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import ArrayLike

from analysis.laws.extrapolation import Discrepancy
from analysis.laws.fit import Fit, fit
from analysis.laws.forms import Array, Form
from analysis.laws.intervals import Interval, interval_ends
from analysis.laws.observations import Mask, Observations, Space, log_compute
from analysis.laws.predictor import Predictor, in_words
from analysis.laws.validation import (
    AVERAGE,
    SPARE,
    Rollout,
    Score,
    Trials,
    discrepancy,
    score,
    try_out,
    weigh,
    windows_of,
)

FOCUS = (0.0, 0.5)  # powers of compute that weight the rows, one member each
CURVE_FOCUS = (0.0, 0.5, 1.0)  # the same for laws of one input
FEWER_STARTS = 24  # of members beside the plain fit of their form, which has searched
DRAWS = 1000
WINDOW_DRAWS = 100  # behind the band of each roll-out
THIN = 600  # rows of a table from which roll-outs take every second, third, ... one
FEW = 500  # draws of a form whose parameters are shown beside those of the general one
LIGHT = 0.01  # members that weigh less are left out


@dataclass(frozen=True, eq=False, repr=False)
class Law(Predictor):
    """An average of fitted forms."""

    members: tuple[Fit, ...]  # with draws in proportion to their weights
    weights: tuple[float, ...]
    fits: tuple[Fit, ...]  # every form, without weights of the rows
    scores: tuple[Score, ...]  # of the same forms
    rollouts: tuple[Rollout, ...]  # of each form and of the average
    sample: Observations  # the rows of the roll-outs: of a long table every second, third, ...
    trials: Trials
    discrepancy: Discrepancy

    def __repr__(self) -> str:
        return in_words(self.formula, self.rows, self.values, self.intervals)

    @property
    def general(self) -> Fit:
        """The fit of the form with the most parameters, of those that run into no bound."""
        return _general(self.fits)

    @property
    def focus(self) -> dict[float, float]:
        """Share of the members whose rows are weighted by each power of their compute."""
        shares: dict[float, float] = {}
        for weight, law in zip(self.weights, self.members, strict=True):
            shares[law.focus] = shares.get(law.focus, 0.0) + weight
        return dict(sorted(shares.items()))

    @property
    def space(self) -> Space:
        """Whether residuals are those of the logarithm."""
        return self.general.space

    @property
    def name(self) -> str:
        """The forms with weight, heaviest first."""
        heavy = [item for item in self.scores if item.weight >= LIGHT]
        return ", ".join(item.form for item in sorted(heavy, key=lambda item: -item.weight))

    @property
    def form(self) -> Form:
        """The most general form."""
        return self.general.form

    @property
    def formula(self) -> str:
        """Formula of the most general form."""
        return self.general.formula

    @property
    def of_compute(self) -> bool:
        """Whether this is a law of compute alone, not of size and data."""
        return self.general.of_compute

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.general.rows

    @property
    def values(self) -> Mapping[str, float]:
        """Parameters of the most general form."""
        return self.general.values

    @property
    def intervals(self) -> Mapping[str, Interval]:
        """Their 90% intervals."""
        return self.general.intervals

    @property
    def reasons(self) -> Mapping[str, str]:
        """ "identified", or why a parameter is unknown, as a sentence."""
        return self.general.reasons

    @property
    def identified(self) -> dict[str, bool]:
        """Whether these rows determine each parameter of the most general form."""
        return self.general.identified

    @property
    def data(self) -> Observations:
        """The rows."""
        return self.general.data

    @property
    def heaviest(self) -> Fit:
        """The member with the most weight."""
        return max(zip(self.weights, self.members, strict=True), key=lambda pair: pair[0])[1]

    @property
    def rollout_error(self) -> float:
        """Mean over windows of the average's mean absolute log error; nan without windows."""
        windows: dict[tuple[str, float], list[float]] = {}
        for item in self.rollouts:
            if item.form == AVERAGE:
                windows.setdefault(item.window, []).append(abs(item.log_error))
        return float(np.mean([np.mean(w) for w in windows.values()])) if windows else float("nan")

    @property
    def known(self) -> bool:
        """Whether the runs leave something to measure the noise with."""
        return any(len(law.draws) for law in self.members)

    @cached_property
    def residuals(self) -> Array:
        """ln(achieved / predicted) of the rows, (n,); differences in raw space."""
        weighed = zip(self.weights, self.members, strict=True)
        return np.asarray(sum(weight * law.residuals for weight, law in weighed))

    @cached_property
    def untied(self) -> "Law":
        """The average without forms that fix how the best size grows with compute.

        With one exponent for size and data, the best size grows with the square root of compute,
        whatever the runs say.
        """
        kept = [law for law in self.fits if _free(law.form)]
        if not kept:
            return self
        weights = np.array([self._weight_of(law.form) for law in kept])
        weights = weights / weights.sum() if weights.sum() else np.full(len(kept), 1 / len(kept))
        shares = list(zip(kept, weights.tolist(), strict=True))
        total = min(len(law.draws) / weight for law, weight in shares if weight)
        members = tuple(law.first_draws(int(np.ceil(weight * total))) for law, weight in shares)
        return replace(self, members=members, weights=tuple(weights.tolist()))

    def with_unique_tokens(self, tokens: float) -> "Law":
        """Return the same law for a training set of another size."""
        members, fits = (
            tuple(replace(law, unique_tokens=tokens) for law in laws)
            for laws in (self.members, self.fits)
        )
        return replace(self, members=members, fits=fits)

    def predict_draws(self, **inputs: ArrayLike) -> Array:
        """Return values (1 + R, n) at n points: of the average, then of the members' draws."""
        parts = [law.predict_draws(**inputs) for law in self.members]
        mean = self._mean([part[0] for part in parts])
        return np.concatenate([mean[None], *(part[1:] for part in parts)])

    def without_draws(self) -> "Law":
        """Return the law without its draws, which tells values only."""
        return replace(self, members=tuple(law.first_draws(0) for law in self.members))

    def noise_draws(self, **inputs: ArrayLike) -> Array:
        """Return the standard deviation (R, n) of one run at n points, of each draw."""
        return np.concatenate([law.noise_draws(**inputs) for law in self.members])

    def distance(self, **inputs: ArrayLike) -> Array:
        """Return ln(compute / largest compute of the data) of each point, 0 within the data."""
        return self.general.distance(**inputs)

    def _weight_of(self, form: Form) -> float:
        return next(item.weight for item in self.scores if item.form == form.name)

    def _mean(self, values: Sequence[Array]) -> Array:
        stacked = np.stack(values)
        weights = np.array(self.weights)[:, None]
        if self.space == "log":
            mean: Array = np.exp(np.sum(weights * np.log(stacked), axis=0))
            return mean
        return np.asarray(np.sum(weights * stacked, axis=0))


def fit_law(
    data: Observations,
    forms: Sequence[Form],
    axes: Mapping[str, Array],
    *,
    delta: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Law | None:
    """Fit the average of some forms.

    Args:
        data: The rows to explain.
        forms: The forms; those that the rows cannot tell apart are left out.
        axes: Columns along which roll-outs cut the table, (n,) each.
        delta: Where Huber's loss turns linear, in ln(loss); by the residuals if None.
        draws: Number of draws behind the intervals, over all members.
        seed: Seed of the draws.

    Returns:
        The law; None if the rows tell no form.
    """
    simplest = min(len(form.parameters) for form in forms)
    candidates = (
        _determined(form, data, len(form.parameters) > simplest, delta) for form in forms
    )
    fits = [law for law in candidates if law is not None]
    if not fits:
        return None
    again = partial(fit, delta=delta, draws=0, starts=FEWER_STARTS)
    powers = CURVE_FOCUS if len(fits[0].form.inputs) == 1 else FOCUS
    members = [again(law.form, data, focus=f) if f else law for law in fits for f in powers]
    kept = _thinned(len(data.values))
    sample, tested = data, members
    if not kept.all():
        sample = data.take(kept)
        tested = [again(law.form, sample, focus=f) for law in fits for f in powers]
    fewest = max(len(law.theta) for law in fits) + SPARE
    windows = windows_of({name: column[kept] for name, column in axes.items()}, fewest)
    trials = try_out(tested, windows)
    errors = trials.errors(np.log(sample.values)) if trials.windows else []
    weights = weigh(errors, [len(law.theta) for law in members])
    weights = np.where(weights >= LIGHT, weights, 0.0)
    weights = weights / weights.sum()
    rollouts = _rollouts(tested, trials, weights, seed)
    counts = np.ceil(weights * draws).astype(int).tolist()
    fits = [
        law.with_draws(draws if law is _general(fits) else max(own, min(FEW, draws)), seed)
        for law, own in zip(fits, counts[:: len(powers)], strict=True)
    ]
    plain = dict(zip(range(0, len(members), len(powers)), fits, strict=True))
    return Law(
        members=tuple(
            plain[at].first_draws(count) if at in plain else members[at].with_draws(count, seed)
            for at, count in enumerate(counts)
            if count
        ),
        weights=tuple(float(weight) for weight in weights if weight),
        fits=tuple(fits),
        scores=score(members, trials, weights, sample),
        rollouts=rollouts,
        sample=sample,
        trials=trials,
        discrepancy=discrepancy(rollouts),
    )


def _general(fits: Sequence[Fit]) -> Fit:
    return max(fits, key=lambda law: (law.status != "bound-hit", len(law.theta)))


def _determined(form: Form, data: Observations, strict: bool, delta: float | None) -> Fit | None:
    """Return the fit of a form, None if the rows cannot tell its parameters apart.

    The simplest form needs only one spare row, and may be told badly: its reasons say so.
    """
    if len(data.values) < len(form.parameters) + (SPARE if strict else 1):
        return None
    law = fit(form, data, delta=delta, draws=0)
    known = law.status not in ("rank-deficient", "non-finite")
    return law if known or (not strict and law.status == "rank-deficient") else None


def _thinned(rows: int) -> Mask:
    """Return the mask of every row, or every second, third, ... of a long table."""
    kept: Mask = np.arange(rows) % (rows // THIN + 1) == 0
    return kept


def _free(form: Form) -> bool:
    """Tell whether size and data have exponents of their own."""
    coefficients = [name for name in form.parameters if form.role_of(name) == "coefficient"]
    exponents = {form.exponent_of(name) for name in coefficients}
    return len(exponents) == len(coefficients)


def _rollouts(
    fits: Sequence[Fit], trials: Trials, weights: Array, seed: int
) -> tuple[Rollout, ...]:
    """Return what the average and each form predict of the rows beyond each window."""
    rollouts: list[Rollout] = []
    if not trials.windows:
        return ()
    data = fits[0].data
    compute, runs = log_compute(data.inputs), data.runs
    pooled = _pooled(fits, trials, weights, seed)
    mean = sum(w * values for w, values in zip(weights, trials.predicted, strict=True))
    for number, window in enumerate(trials.windows):
        unseen = np.flatnonzero(~window.seen)
        low, high = interval_ends(pooled[number][:, unseen])
        shown = {AVERAGE: mean[number]}
        for law, values in zip(fits, trials.predicted, strict=True):
            shown.setdefault(law.form.name, values[number])
        for form, values in shown.items():
            rollouts += [
                Rollout(
                    form=form,
                    axis=window.axis,
                    cutoff=window.cutoff,
                    rows=int(window.seen.sum()),
                    row=int(row),
                    run=int(runs[row]),
                    distance=max(0.0, float(compute[row] - compute[window.seen].max())),
                    predicted=float(np.exp(values[row])),
                    achieved=float(data.values[row]),
                    interval=(float(np.exp(low[at])), float(np.exp(high[at])))
                    if form == AVERAGE
                    else None,
                )
                for at, row in enumerate(unseen)
            ]
    return tuple(rollouts)


def _pooled(fits: Sequence[Fit], trials: Trials, weights: Array, seed: int) -> list[Array]:
    """Return draws of ln(loss) of new runs at all rows, (R, n) for each window, of all members."""
    count = len(trials.windows)
    pooled: list[list[Array]] = [[] for _ in trials.windows]
    masks = np.stack([window.seen for window in trials.windows]).astype(float)
    for at, (law, thetas) in enumerate(zip(fits, trials.thetas, strict=True)):
        draws = int(np.ceil(weights[at] * WINDOW_DRAWS))
        noise = law.draw_noise(draws, seed + at) if weights[at] else None
        if noise is None:
            continue
        fitted = trials.predicted[at]
        targets = (fitted[:, None] + noise.errors).reshape(count * draws, -1)
        drawn = law.refit(
            targets=targets,
            weights=np.repeat(masks, draws, axis=0),
            begin=np.repeat(thetas, draws, axis=0),
        )
        values = np.log(np.maximum(law.form.predict(drawn, law.problem.logs), 1e-300))
        unit = np.random.default_rng([seed, at]).standard_normal((len(values), 1))
        spread = np.tile(noise.at(log_compute(law.data.inputs)), (count, 1))
        for number, part in enumerate(np.split(values + unit * spread, count)):
            pooled[number].append(part)
    return [np.concatenate(parts) if parts else np.empty((0, 0)) for parts in pooled]
