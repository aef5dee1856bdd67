"""The law of any table of runs: what it predicts, and how far to believe it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.laws.allocation import credible, optimal_params
from analysis.laws.average import DRAWS, Law, fit_law
from analysis.laws.forms import (
    BATCH,
    GROUP,
    POWER,
    POWER_WITHOUT_FLOOR,
    SIGMOID,
    SURFACE_FORMS,
    Array,
    Form,
    grouped,
    shape_forms,
)
from analysis.laws.intervals import LEVEL, Interval, interval_of
from analysis.laws.observations import Observations
from analysis.laws.repetition import repeated_forms
from analysis.table.evidence import EXACT, OUTLIER, no_law, spoilers
from tarflow.errors import UserError, check_counts, check_seed

RAY = 0.05  # spread of ln(D / N^k) within which size and data cannot be told apart
FLOPS = 6.0  # training FLOPs per parameter and token (Kaplan et al. 2020)


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
    """The most expensive rows, predicted by a law that was fitted without them."""

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


@dataclass(frozen=True)
class Options:
    """How a table is fitted."""

    forms: tuple[Form, ...] = ()  # to average; by default all that suit the columns
    delta: float | None = None  # where Huber's loss turns linear; by the residuals if None
    draws: int = DRAWS  # behind the intervals
    seed: int = 0  # of the draws

    def __post_init__(self) -> None:
        check_counts(draws=self.draws)
        check_seed(self.seed)
        if self.delta is not None and not 0 < self.delta < math.inf:
            raise UserError(f"--delta is {self.delta:g}: it must be positive, such as 1e-3")


AUTO = Options()


@dataclass(frozen=True, eq=False)
class TableLaw:
    """The law of a table, an average of forms."""

    law: Law
    rows: tuple[int, ...]  # row of the file by position
    alone: Mapping[int, str]  # rows left out because each of them alone spoils the law
    ray: Ray | None = None  # set if sizes and tokens vary together: a law of 6 N D was fitted
    groups: tuple[str, ...] = ()  # names of the groups, each with its own floor

    @property
    def scale(self) -> float:
        """Robust standard deviation of the relative residuals."""
        return self.law.general.scale

    @property
    def nothing(self) -> str:
        """A sentence if the losses follow no law, otherwise empty."""
        return no_law(self.law, self.scale)

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

    def predict(self, *, group: str = "", **inputs: float) -> Prediction:
        """Return the loss of one new run: predict(params=..., tokens=...) or predict(flops=...).

        Args:
            group: Name of its group, in a table with groups.
            inputs: Every input of the table.

        Raises:
            UserError: If sizes and tokens vary together in the table, but not at this point; or
                if there is no such group.
        """
        if self.groups:
            if group not in self.groups:
                raise UserError(f"group {group!r}: the groups are {', '.join(self.groups)}")
            inputs[GROUP] = float(self.groups.index(group))
        if self.ray and "flops" not in inputs:
            tokens = self.ray.coefficient * inputs["params"] ** self.ray.exponent
            if abs(np.log(inputs["tokens"] / tokens)) > 4 * RAY:
                raise UserError(f"all rows have {self.ray}: they predict such runs only")
            inputs = {"flops": FLOPS * inputs["params"] * inputs["tokens"]}
        low, high = self.law.band(LEVEL, **inputs)
        return Prediction(float(self.law.predict(**inputs)), float(low), float(high))

    def best_size(self, flops: float) -> BestSize | None:
        """Return the best size at a budget; None if the rows do not tell it within a factor of 10.

        The interval pools the forms that let size and data differ, and widens beyond the data.
        """
        sizes = self._best_sizes(flops)
        if sizes is None:
            return None
        ends = interval_of(sizes[1:])
        if not credible(ends):
            return None
        params, tokens = float(sizes[0]), float(flops) / FLOPS
        data = (tokens / ends[1], tokens / ends[0])
        return BestSize(float(flops), params, ends, tokens / params, data)

    def size_interval(self, flops: float) -> Interval | None:
        """Return the 90% interval of the best size, however wide; None if nothing tells it."""
        sizes = self._best_sizes(flops)
        return None if sizes is None else interval_of(sizes[1:])

    def _best_sizes(self, flops: float) -> Array | None:
        """Return the best size by the law and by its draws, (1 + R,)."""
        if set(self.law.data.inputs) != {"params", "tokens"} or not self.law.known:
            return None
        sizes = np.log(optimal_params(self.law.untied, flops, lambda params: FLOPS * params))
        beyond = max(0.0, float(np.log(flops / FLOPS)) - self.law.general.reach)
        widened: Array = sizes[0] + (sizes - sizes[0]) * self.law.discrepancy.widening(beyond)
        return np.exp(widened)


def fit_table(values: pd.DataFrame, options: Options = AUTO) -> TableLaw:
    """Fit the law of a table.

    Args:
        values: Positive columns `loss` and `flops`, or `loss`, `params` and `tokens`, or any
            others that the forms read, such as `width`, `batch` or `unique_tokens`. Rows with the
            same `run` share a part of their error, rows with the same `group` a floor, and each
            row counts `weights` times; these three columns may be absent.
        options: How to fit.

    Raises:
        UserError: If there are fewer rows than parameters, or all have one size or one length.

    >>> C = np.geomspace(1e18, 1e22, 20)
    >>> law = fit_table(pd.DataFrame({"flops": C, "loss": 1.7 + 2e3 / C**0.17}))
    >>> round(law.law.values["E"], 3), round(law.predict(flops=1e23).value, 3)
    (1.7, 1.946)
    """
    ray = None
    if {"params", "tokens"} <= set(values) and not options.forms and not _others(values):
        ray = _ray(values)
        if ray:
            flops = FLOPS * values["params"] * values["tokens"]
            values = values.drop(columns=["params", "tokens"]).assign(flops=flops)
    data = _observations(values)
    plain = not _others(values) or list(data.inputs) == ["flops"]
    alone = {int(values.index[at]): why for at, why in spoilers(data).items()} if plain else {}
    values = values.drop(index=list(alone))
    data = _observations(values)
    groups = tuple(sorted(set(values["group"]))) if "group" in values else ()
    forms = options.forms or suitable_forms(values)
    if groups:
        forms = _grouped(forms, len(groups))
    fewest = min(len(form.parameters) for form in forms)
    if len(data.values) <= fewest:
        raise UserError(
            f"{len(data.values)} rows: a law of {fewest} parameters needs at least {fewest + 1}"
        )
    with np.errstate(over="ignore", under="ignore"):
        law = fit_law(
            data,
            forms,
            _axes(data),
            delta=options.delta,
            draws=options.draws,
            seed=options.seed,
        )
    if law is None:
        names = " and ".join(form.name for form in forms)
        raise UserError(f"these rows cannot tell the parameters of {names}: no law can be fitted")
    return TableLaw(law, tuple(values.index), alone, ray, groups)


def suitable_forms(values: pd.DataFrame) -> tuple[Form, ...]:
    """Return the forms that suit the columns of a table: those that read all of its inputs."""
    inputs = set(_inputs(values))
    if inputs == {"flops"}:
        few = len(values) <= len(POWER.parameters)
        return (POWER_WITHOUT_FLOOR,) if few else (POWER, SIGMOID)
    if inputs & {"width", "depth", "blocks"}:
        return shape_forms(sorted(inputs))
    if "unique_tokens" in inputs:
        return (*SURFACE_FORMS, *repeated_forms(values["tokens"], values["unique_tokens"]))
    return (*SURFACE_FORMS, BATCH) if "batch" in inputs else SURFACE_FORMS


def _grouped(forms: Sequence[Form], count: int) -> tuple[Form, ...]:
    """Return forms with a floor for each group, and with coefficients for each group too."""
    together = []
    for form in forms:
        floor = [name for name in form.parameters if form.role_of(name) == "floor"]
        scale = [name for name in form.parameters if form.role_of(name) == "coefficient"]
        if floor:
            together += [grouped(form, count, own) for own in (floor, [*floor, *scale])]
    return tuple(together)


def hold_out(values: pd.DataFrame, share: float, options: Options = AUTO) -> HeldOut:
    """Fit the cheapest rows, and predict the others.

    Args:
        values: As in `fit_table`; rows of one run stay together.
        share: Share of the rows that the law sees, between 0 and 1.
        options: How to fit.

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
        part = fit_table(values[seen], options)
    except UserError as error:
        raise UserError(f"--holdout {share:g} leaves too little to fit: {error}") from None
    unseen = values[~seen]
    names = [*_inputs(values), *(["group"] if "group" in values else [])]
    predicted = [part.predict(**row) for row in unseen[names].to_dict("records")]
    achieved = unseen["loss"].to_numpy(float)
    value = np.array([item.value for item in predicted])
    lowest = float(values["loss"][seen].min())
    return HeldOut(
        rows=len(achieved),
        error=float(np.mean(np.abs(value / achieved - 1))),
        repeat_error=float(np.mean(np.abs(lowest / achieved - 1))),
        inside=sum(
            p.low <= loss <= p.high for p, loss in zip(predicted, achieved.tolist(), strict=True)
        ),
    )


def _inputs(values: pd.DataFrame) -> list[str]:
    """Return the columns that explain the loss."""
    return [str(name) for name in values if name not in ("loss", "run", "group", "weights")]


def _others(values: pd.DataFrame) -> bool:
    """Tell whether anything but params and tokens explains the loss."""
    return "group" in values or set(_inputs(values)) != {"params", "tokens"}


def _observations(values: pd.DataFrame) -> Observations:
    inputs = {name: values[name].to_numpy(float) for name in _inputs(values)}
    unique = inputs.pop("unique_tokens", np.inf)
    if "group" in values:
        inputs[GROUP] = np.unique(values["group"], return_inverse=True)[1].astype(float)
    return Observations(
        inputs,
        values["loss"].to_numpy(float),
        list(values["run"]) if "run" in values else None,
        weights=values["weights"].to_numpy(float) if "weights" in values else None,
        unique_tokens=unique,
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


def _compute(data: Observations) -> Array:
    """Return what orders the rows, (n,): their compute, or the largest one of their run."""
    if data.clusters is None:
        return data.compute
    compute = pd.Series(data.compute)
    largest: Array = compute.groupby(list(data.clusters)).transform("max").to_numpy(float)
    return largest


def _axes(data: Observations) -> dict[str, Array]:
    """Return the columns that roll-outs cut along; rows of one run stay together in compute."""
    return {"compute": _compute(data)} | {
        name: data.inputs[name] for name in ("params", "tokens") if name in data.inputs
    }
