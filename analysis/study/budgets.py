"""What other budgets would buy: the run to train with each, and what the laws expect of it.

Every plan is the recommendation for its budget, so a page that offers plans shows what
`analysis best` would write. Legend: `P` plans, `S` ratios of sizes, `R` draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.laws.allocation import Sizes, optimal_params
from analysis.laws.average import Law, fit_law
from analysis.laws.forms import SURFACE_FORMS, Array
from analysis.laws.intervals import LEVEL, Interval, interval_ends
from analysis.laws.observations import Observations
from analysis.laws.repetition import unique_tokens
from analysis.laws.validation import coverage
from analysis.study.advice import Recommendation, recommend_each
from analysis.study.findings import Findings
from analysis.study.settings import one_setting

STOPS = 40  # budgets, evenly in ln(compute), besides those of the study
FARTHEST = 100.0  # times the largest budget of the study
SAME = float(np.log(1.04))  # in ln(compute): budgets this near to each other are one stop
RATIOS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0)  # of sizes to the best one
LIMIT = 1000.0  # times a budget: how much more compute a wrong size is given to catch up
HALVINGS = 40  # of the interval in which that compute is searched
QUALITY_ROWS = 600  # of a long table that the law of sample quality reads
QUALITY_DRAWS = 300  # behind the band of the law of sample quality
FEWEST_ROLLOUTS = 5  # that must test a law of sample quality
COVERED = 0.75  # share of them that its 90% bands must hold


@dataclass(frozen=True)
class WrongSize:
    """What it costs to train a size other than the best one with the same compute."""

    ratio: float  # of its parameters to those of the best size
    params: float
    extra_bits: float  # bits per dimension by the law, above those of the best size
    interval: Interval  # 90%; unbounded if the noise is unknown
    compute: float  # times the budget to reach the bits of the best size; inf beyond LIMIT
    trained: bool  # whether the study trained models of about this size


@dataclass(frozen=True)
class Quality:
    """The sample quality that a law expects of a run."""

    kid: float
    interval: Interval  # 90%


@dataclass(frozen=True)
class Plan:
    """The run to train with one budget."""

    flops: float  # the budget, in training FLOPs
    following: bool  # whether it is the one recommended next
    recommendation: Recommendation
    nearest: str  # id of the trained run of the nearest budget, and there of the nearest size
    quality: Quality | None  # None if no law of sample quality has passed its roll-outs
    wrong_sizes: tuple[WrongSize, ...]  # empty if the law does not tell the best size

    @property
    def tested(self) -> bool:
        """Whether roll-outs have tested the law this far beyond the runs it saw."""
        return not self.recommendation.allocation.caution


def plans(
    findings: Findings, scored: pd.DataFrame, advice: Recommendation | None
) -> tuple[Plan, ...]:
    """Return plans from the smallest budget of the study to 100 times its largest, cheapest first.

    The budgets of the study and the one recommended next are among them. A study without a law of
    size and data, or whose runs name no config, has none.

    Args:
        findings: What the study shows.
        scored: Finished runs joined to their sample scores, one row per sampler setting.
        advice: The run recommended next, or None.
    """
    if findings.surface is None or not findings.allocation or advice is None:
        return ()
    following = advice.allocation.flops
    items = recommend_each(findings, _stops(findings, following))
    expected = _qualities(items, quality_law(findings, scored))
    costs = _wrong_sizes(findings, findings.surface, items)
    runs = findings.runs[["run_id", "params", "bpd"]]
    runs = runs.assign(spent=findings.runs.groupby("budget")["flops"].transform("mean"))
    return tuple(
        Plan(
            flops=item.allocation.flops,
            following=item.allocation.flops == following,
            recommendation=item,
            nearest=_nearest(runs, item),
            quality=quality,
            wrong_sizes=sizes,
        )
        for item, quality, sizes in zip(items, expected, costs, strict=True)
    )


def _stops(findings: Findings, following: float) -> list[float]:
    own = [budget.flops for budget in findings.budgets]
    exact = np.array([*own, following, FARTHEST * own[-1]])
    grid = np.geomspace(own[0], FARTHEST * own[-1], STOPS)
    apart = np.abs(np.log(grid[:, None] / exact)).min(axis=1) > SAME
    return sorted({*exact.tolist(), *grid[apart].tolist()})


def _nearest(runs: pd.DataFrame, item: Recommendation) -> str:
    away = np.log(runs["spent"] / item.allocation.flops).abs().round(6)
    near = runs[away == away.min()]
    sizes = np.log(near["params"] / item.allocation.model_params).abs().round(6)
    return str(near.assign(size=sizes).sort_values(["size", "bpd", "run_id"]).iloc[0]["run_id"])


def quality_law(findings: Findings, scored: pd.DataFrame) -> Law | None:
    """Return the law of KID over size and data at the sampler setting that most runs share.

    None unless its own roll-outs show that it predicts: KID may be flat, or negative by chance.

    Args:
        findings: What the study shows.
        scored: Finished runs joined to their sample scores, one row per sampler setting.
    """
    rows = one_setting(scored[scored["run_id"].isin(findings.runs["run_id"])])
    rows = rows.sort_values(["flops", "params", "run_id"])
    rows = rows.iloc[:: max(1, len(rows) // QUALITY_ROWS)]
    kid = rows["kid"].to_numpy(float)
    if not len(kid) or kid.min() <= 0:
        return None
    axes = {name: rows[name].to_numpy(float) for name in ("flops", "params", "tokens")}
    inputs = {name: axes[name] for name in ("params", "tokens")}
    data = Observations(
        inputs, kid, list(rows["run_id"]), unique_tokens=unique_tokens(findings.runs)
    )
    law = fit_law(data, SURFACE_FORMS, axes, draws=QUALITY_DRAWS)
    if law is None or not law.known:
        return None
    tested = coverage(law.rollouts)[-1]
    enough = tested.total >= FEWEST_ROLLOUTS and tested.achieved >= COVERED
    return law if enough else None


def _qualities(items: Sequence[Recommendation], law: Law | None) -> list[Quality | None]:
    if law is None:
        return [None] * len(items)
    at = {
        "params": [item.allocation.model_params for item in items],
        "tokens": [item.config.images * item.config.model.tokens for item in items],
    }
    low, high = law.band(LEVEL, **at)
    values = zip(law.predict(**at).tolist(), low.tolist(), high.tolist(), strict=True)
    return [Quality(kid, (least, most)) for kid, least, most in values]


def _wrong_sizes(
    findings: Findings, surface: Law, items: Sequence[Recommendation]
) -> list[tuple[WrongSize, ...]]:
    """Return the costs of wrong sizes of each plan, by the law that tells the best size."""
    law = surface.untied
    value = law.without_draws()
    per_token = Sizes(items[0].config.model).flops_per_token
    flops = np.array([item.allocation.flops for item in items])
    best = np.array([optimal_params(value, spent, per_token)[0] for spent in flops])
    params = best[:, None] * np.array(RATIOS)  # (P, S)
    tokens = flops[:, None] / per_token(params.ravel()).reshape(params.shape)
    drawn = law.predict_draws(params=params.ravel(), tokens=tokens.ravel())
    extra = drawn.reshape(-1, *params.shape)
    extra = extra - extra[:, :, [RATIOS.index(1.0)]]  # (1 + R, P, S)
    target = value.predict(params=params, tokens=tokens)[:, [RATIOS.index(1.0)]]
    compute = _to_catch_up(value, params, tokens, target)
    low, high = _ends(extra, law, params, tokens)
    smallest, largest = findings.runs["params"].min(), findings.runs["params"].max()
    return [
        tuple(
            WrongSize(
                ratio=ratio,
                params=float(params[p, s]),
                extra_bits=float(extra[0, p, s]),
                interval=(float(low[p, s]), float(high[p, s])),
                compute=float(compute[p, s]),
                trained=bool(smallest / 1.5 <= params[p, s] <= largest * 1.5),
            )
            for s, ratio in enumerate(RATIOS)
        )
        if item.allocation.source == "surface law"
        else ()
        for p, item in enumerate(items)
    ]


def _ends(extra: Array, law: Law, params: Array, tokens: Array) -> tuple[Array, Array]:
    """Return the ends (P, S) of the intervals of `extra`, wider beyond the runs as bands are."""
    if len(extra) == 1:
        return np.full(params.shape, -np.inf), np.full(params.shape, np.inf)
    drawn = extra[1:].reshape(len(extra) - 1, -1)
    away = law.distance(params=params.ravel(), tokens=tokens.ravel())
    centre, widening = extra[0].ravel(), law.discrepancy.widening(away)
    low, high = (centre + (end - centre) * widening for end in interval_ends(drawn))
    return low.reshape(params.shape), high.reshape(params.shape)


def _to_catch_up(law: Law, params: Array, tokens: Array, target: Array) -> Array:
    """Return by what factor (P, S) tokens must grow for the law to reach a target; inf if never.

    At one size, compute grows with tokens.
    """
    low, high = np.zeros(params.shape), np.full(params.shape, np.log(LIMIT))
    never = law.predict(params=params, tokens=tokens * LIMIT) > target
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        short = law.predict(params=params, tokens=tokens * np.exp(middle)) > target
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    factor: Array = np.where(never, np.inf, np.exp(high))
    return factor
