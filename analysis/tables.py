"""The law of any table of runs: which form, what it predicts, and how far to believe it.

Three lines ask a file (`read_columns` is in `analysis.reading`):

>>> columns = {"params": "N", "tokens": "D", "loss": "loss"}
>>> law = fit_table(read_columns(Path("runs.csv"), columns).values)  # doctest: +SKIP
>>> law.predict(params=7e9, tokens=2e12), law.best_size(flops=1e24)  # doctest: +SKIP
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import f as fisher

from analysis.few_rows import widened
from analysis.laws.allocation import CREDIBLE
from analysis.laws.fit import Fit, Observations, fit
from analysis.laws.forms import FRONTIER_FORMS, POWER, SURFACE_FORMS, TIED, Array, Form
from analysis.laws.intervals import LEVEL, Interval, interval_of
from analysis.laws.uncertainty import ROBUST_FROM
from analysis.laws.validation import (
    SPARE,
    STARTS,
    Rollout,
    Score,
    discrepancy,
    roll_out,
    score,
)
from tarflow.errors import UserError
from tarflow.human import percent

WINDOWS = 8  # groups of rows of rising compute; roll-outs predict the groups beyond a window
RAY = 0.05  # spread of ln(D / N^k) within which size and data cannot be told apart
FLOPS = 6.0  # training FLOPs per parameter and token (Kaplan et al. 2020)
SMALL = 0.5  # residuals over the spread of the losses, below which there is a law
CHANCE = 0.01  # probability that losses without a law pass for one
SPOILED = 0.05  # probability that a row of a small table is left out by chance
EXACT = 1e-9  # relative residuals below which a law is exact
OUTLIER = 5.0  # residual scales from which a row is named


@dataclass(frozen=True)
class Prediction:
    """What a law predicts for one new run, with its 90% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BestSize:
    """The size of the lowest loss at a budget of 6 N D training FLOPs, with 90% intervals."""

    flops: float
    params: float
    params_interval: Interval
    tokens: float
    tokens_interval: Interval


@dataclass(frozen=True)
class HeldOut:
    """The most expensive rows, predicted by a law that was chosen and fitted without them."""

    formula: str
    rows: int  # held out
    error: float  # mean of |predicted / achieved - 1|
    repeat_error: float  # the same of "the lowest loss so far, repeated"
    inside: int  # rows in their 90% intervals


@dataclass(frozen=True)
class Ray:
    """Tokens as a power of size, coefficient * N^exponent, in every row."""

    coefficient: float
    exponent: float

    def __str__(self) -> str:
        power = "" if abs(self.exponent - 1) < 0.02 else f"^{self.exponent:.3g}"
        return f"D = {self.coefficient:.3g} N{power}"


@dataclass(frozen=True, eq=False)
class TableLaw:
    """The law of a table, of the form that predicts its most expensive rows best."""

    law: Fit  # of the chosen form
    fits: tuple[Fit, ...]  # every form that the rows can tell apart
    scores: tuple[Score, ...]  # of the same forms
    data: Observations
    rows: tuple[int, ...]  # row of the file by position
    scale: float  # robust standard deviation of the relative residuals
    alone: Mapping[int, str]  # rows left out because each of them alone spoils the law
    ray: Ray | None = None  # set if sizes and tokens vary together: a law of 6 N D was fitted

    @property
    def nothing(self) -> str:
        """A sentence if the losses follow no law, otherwise empty."""
        return _nothing(self.law, self.data, self.scale)

    @property
    def outliers(self) -> dict[int, str]:
        """Rows far from the law, which hardly count, and by how much they miss it."""
        far = np.abs(self.law.residuals) > OUTLIER * max(self.scale, EXACT)
        return {
            self.rows[at]: f"{np.exp(abs(miss)):.3g} times "
            f"{'above' if miss > 0 else 'below'} the law"
            for at, miss in enumerate(self.law.residuals)
            if far[at]
        }

    def predict(self, **inputs: float) -> Prediction:
        """Return the loss of one new run: predict(params=..., tokens=...) or predict(flops=...).

        Raises:
            UserError: If sizes and tokens vary together in the table, but not at this point.
        """
        if self.ray and "flops" not in inputs:
            tokens = self.ray.coefficient * inputs["params"] ** self.ray.exponent
            if abs(np.log(inputs["tokens"] / tokens)) > 4 * RAY:
                raise UserError(f"all rows have {self.ray}: they predict such runs only")
            inputs = {"flops": FLOPS * inputs["params"] * inputs["tokens"]}
        low, high = self.law.band(LEVEL, **inputs)
        return Prediction(float(self.law.predict(**inputs)), float(low), float(high))

    def best_size(self, flops: float) -> BestSize | None:
        """Return the best size at a budget; None if the rows do not tell it within a factor of 10.

        The interval covers all forms that predict as well, and widens beyond the roll-outs.
        """
        if self.law.of_compute or self.law.status == "rank-deficient" or not len(self.law.draws):
            return None
        flops = float(flops)
        near = {item.form for item in self.scores if item.near} - {self.law.name}
        rivals = [law for law in self.fits if law.name in near and len(law.draws)]
        logs = np.concatenate(
            [_best_sizes(self.law, flops), *(_best_sizes(law, flops)[1:] for law in rivals)]
        )
        beyond = max(0.0, float(np.log(flops / FLOPS)) - self.law.reach)
        logs = logs[0] + (logs - logs[0]) * self.law.discrepancy.widening(beyond)
        low, high = interval_of(logs[1:])
        if high - low > np.log(CREDIBLE):
            return None
        params, ends = float(np.exp(logs[0])), (float(np.exp(low)), float(np.exp(high)))
        tokens = flops / FLOPS
        return BestSize(flops, params, ends, tokens / params, (tokens / ends[1], tokens / ends[0]))


def fit_table(values: pd.DataFrame, seed: int = 0) -> TableLaw:
    """Fit the law that predicts the most expensive rows best.

    Args:
        values: Positive columns `loss` and either `flops`, or `params` and `tokens`; rows with the
            same `run`, if there is such a column, share their error.
        seed: Seed of the bootstrap.

    Raises:
        UserError: If there are fewer rows than parameters, or all have one size or one length.

    >>> C = np.geomspace(1e18, 1e22, 20)
    >>> law = fit_table(pd.DataFrame({"flops": C, "loss": 1.7 + 2e3 / C**0.17}))
    >>> round(law.law.values["E"], 3), round(law.predict(flops=1e23).value, 3)
    (1.7, 1.946)
    """
    ray = None
    if "flops" not in values:
        ray = _ray(values)
        if ray:
            flops = FLOPS * values["params"] * values["tokens"]
            values = values.drop(columns=["params", "tokens"]).assign(flops=flops)
    data = _observations(values)
    alone = _spoilers(values, data)
    values = values.drop(index=list(alone))
    data = _observations(values)
    forms = _forms(FRONTIER_FORMS if "flops" in data.inputs else SURFACE_FORMS, data)
    with np.errstate(over="ignore", under="ignore"):
        rollouts = roll_out(forms, data, {"compute": _groups(data)}, seed)
        plain = [fit(form, data, seed=seed) for form in forms]
        fits = [widened(law, data, seed) for law in plain]
    scores = score(forms, fits, rollouts)
    fits = [replace(law, discrepancy=discrepancy(_of(rollouts, law.form))) for law in fits]
    chosen = next(at for at, item in enumerate(scores) if item.chosen)
    return TableLaw(
        law=fits[chosen],
        fits=tuple(fits),
        scores=scores,
        data=data,
        rows=tuple(values.index),
        scale=plain[chosen].scale,
        alone=alone,
        ray=ray,
    )


def hold_out(values: pd.DataFrame, share: float, seed: int = 0) -> HeldOut:
    """Fit the cheapest rows, and predict the others.

    Args:
        values: As in `fit_table`; rows of one run stay together.
        share: Share of the rows that the law sees, between 0 and 1.
        seed: Seed of the bootstrap.

    Raises:
        UserError: If nothing is left to fit or to predict.
    """
    if not 0 < share < 1:
        raise UserError(f"--holdout is {share:g}: give the share of rows to fit, such as 0.8")
    compute = _compute(_observations(values))
    limit = np.sort(compute)[int(np.ceil(share * len(compute))) - 1]
    seen = compute <= limit * (1 + 1e-9)
    if seen.all():
        raise UserError(f"--holdout {share:g} leaves no row more expensive than those it fits")
    try:
        part = fit_table(values[seen], seed)
    except UserError as error:
        raise UserError(f"--holdout {share:g} leaves too little to fit: {error}") from None
    inputs = values[~seen]
    names = [name for name in ("flops", "params", "tokens") if name in inputs]
    points = inputs[names].to_numpy(float).tolist()
    predicted = [part.predict(**dict(zip(names, point, strict=True))) for point in points]
    achieved = inputs["loss"].to_numpy(float)
    value = np.array([item.value for item in predicted])
    lowest = float(values["loss"][seen].min())
    return HeldOut(
        formula=part.law.formula,
        rows=len(achieved),
        error=float(np.mean(np.abs(value / achieved - 1))),
        repeat_error=float(np.mean(np.abs(lowest / achieved - 1))),
        inside=sum(
            p.low <= loss <= p.high for p, loss in zip(predicted, achieved.tolist(), strict=True)
        ),
    )


def _observations(values: pd.DataFrame) -> Observations:
    names = [name for name in ("flops", "params", "tokens") if name in values]
    return Observations(
        {name: values[name].to_numpy(float) for name in names},
        values["loss"].to_numpy(float),
        list(values["run"]) if "run" in values else None,
    )


def _ray(values: pd.DataFrame) -> Ray | None:
    """Return how tokens follow from size if they do in every row, otherwise None."""
    size, tokens = np.log(values["params"]), np.log(values["tokens"])
    for column, other, spread in (("params", "tokens", size), ("tokens", "params", tokens)):
        if np.ptp(spread) < RAY:
            raise UserError(f"every row has the same {column}: fit the {other} alone with --x")
    exponent, offset = np.polyfit(size, tokens, 1)
    if np.std(tokens - offset - exponent * size) > RAY:
        return None
    if abs(exponent - 1) < 0.02:
        return Ray(float(np.exp(np.mean(tokens - size))), 1.0)
    return Ray(float(np.exp(offset)), float(exponent))


def _forms(candidates: Sequence[Form], data: Observations) -> list[Form]:
    """Return the forms whose parameters the rows can tell apart, at least the simplest."""
    rows, fewest = len(data.values), min(len(form.parameters) for form in candidates)
    if rows <= fewest:
        raise UserError(f"{rows} rows: a law of {fewest} parameters needs at least {fewest + 1}")
    simplest = next(form for form in candidates if len(form.parameters) == fewest)
    with np.errstate(over="ignore", under="ignore"):
        return [
            form
            for form in candidates
            if form is simplest
            or (
                rows >= len(form.parameters) + SPARE
                and fit(form, data, starts=STARTS, draws=0).status
                not in ("rank-deficient", "non-finite")
            )
        ]


def _spoilers(values: pd.DataFrame, data: Observations) -> dict[int, str]:
    """Return rows of a small table without which the others agree, and what they spoil.

    Huber's loss needs five spare rows. With fewer, each row is left out in turn: an F-test says
    whether the best such table fits better by more than chance (Bonferroni over the rows).
    """
    form = POWER if "flops" in data.inputs else TIED
    rows, free = len(values), len(values) - len(form.parameters) - 1
    if not 1 <= free < ROBUST_FROM or data.clusters is not None:
        return {}
    whole = _square(form, data)
    squares = [_square(form, data.take(np.arange(rows) != row)) for row in range(rows)]
    row, least = int(np.argmin(squares)), max(min(squares), EXACT**2)
    if rows * fisher.sf((whole - least) / (least / free), 1, free) > SPOILED:
        return {}
    scales = np.sqrt(whole / (free + 1)), np.sqrt(least / free)
    why = f"without it, residuals fall from {percent(scales[0])} to {percent(scales[1])}"
    return {int(values.index[row]): why}


def _square(form: Form, data: Observations) -> float:
    """Return the least sum of squared residuals of a form."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.sum(fit(form, data, delta=np.inf, starts=STARTS, draws=0).residuals ** 2))


def _compute(data: Observations) -> Array:
    """Return what orders the rows, (n,): their compute, or the largest one of their run."""
    if data.clusters is None:
        return data.compute
    compute = pd.Series(data.compute)
    largest: Array = compute.groupby(list(data.clusters)).transform("max").to_numpy(float)
    return largest


def _groups(data: Observations) -> Array:
    """Return a number per row, (n,), that doubles from one group of equal size to the next.

    Roll-outs cut where values jump. Cutting at quantiles of compute gives windows to any table,
    however evenly its runs are spaced.
    """
    compute = _compute(data)
    ends = np.quantile(compute, np.arange(1, WINDOWS) / WINDOWS, method="lower")
    groups: Array = np.exp2(np.searchsorted(ends, compute).astype(np.float64))
    return groups


def _of(rollouts: Sequence[Rollout], form: Form) -> list[Rollout]:
    return [rollout for rollout in rollouts if rollout.form == form.name]


def _best_sizes(law: Fit, flops: float) -> Array:
    """Return ln(best size) at 6 N D FLOPs, (1 + R,): of the law, then of each of its draws.

    At the optimum a A / N^a = b B / D^b. The outer power of the gamma form does not move it.
    """
    theta = dict(zip(law.form.parameters, np.vstack([law.theta, law.draws]).T, strict=True))
    a, b = theta["a"], theta[law.form.exponent_of("B")]
    size, tokens = law.centre
    total = np.log(flops / FLOPS)
    terms = np.log(a / b) + theta["A"] - theta["B"] + a * size + b * (total - tokens)
    logs: Array = terms / (a + b)
    return logs


def _nothing(law: Fit, data: Observations, scale: float) -> str:
    """Say that a constant explains the losses as well as the law; empty if it does not.

    An F-test over the rows that are no outliers. Five rows never pass it, so residuals that are
    small beside the losses' spread count as a law without it.
    """
    kept = np.abs(law.residuals) <= OUTLIER * max(scale, EXACT)
    rows, parameters = int(kept.sum()), len(law.theta)
    logs = np.log(data.values)[kept]
    left, whole = float(np.sum(law.residuals[kept] ** 2)), float(np.sum((logs - logs.mean()) ** 2))
    free = rows - parameters
    if whole <= rows * EXACT**2:
        return "no law: the losses are equal"
    if free < 1 or left <= rows * EXACT**2:
        return ""
    ratio = max(whole - left, 0.0) / (parameters - 1) / (left / free)
    small = np.sqrt(left / free) < SMALL * np.sqrt(whole / (rows - 1))
    if small or fisher.sf(ratio, parameters - 1, free) < CHANCE:
        return ""
    return f"no law: residuals {percent(scale)}, as large as the spread of the losses"
