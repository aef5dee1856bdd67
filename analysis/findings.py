"""What one study shows: its laws, predictions of held-out runs, minima and allocation.

The same tables and seed give the same findings.
Legend: `flops` training FLOPs of a run, `params` matrix-product weights, `tokens` images seen * T,
`bpd` bits per dimension.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from analysis.correlation import Correlation, correlate
from analysis.laws.allocation import Allocation, allocate, best_run
from analysis.laws.extrapolation import Discrepancy
from analysis.laws.fit import Fit, Mask, Observations, fit
from analysis.laws.forms import POWER, POWER_WITHOUT_FLOOR, SURFACE_FORMS, Form
from analysis.laws.influence import Influence, influence
from analysis.laws.intervals import LEVEL, Interval
from analysis.laws.isoflop import IsoFlop, isoflop
from analysis.laws.repetition import unique_tokens
from analysis.laws.validation import (
    SPARE,
    STARTS,
    Baseline,
    Coverage,
    Rollout,
    Score,
    baselines,
    coverage,
    discrepancy,
    predict_rows,
    roll_out,
    score,
)
from analysis.rows import (
    Budget,
    LeftOut,
    SeedNoise,
    best_of_budgets,
    choose,
    group_budgets,
    read_config,
    seed_noise,
)
from tarflow.errors import UserError

GROWTH = (1, 2, 4, 10, 30, 100)  # budgets of the allocation, times the largest of the study


@dataclass(frozen=True)
class HeldOut:
    """The best run of the largest budget, predicted by a law that has not seen that budget."""

    run_id: str
    flops: float
    fit: Fit  # fitted without any run of the largest budget
    predicted: float  # bits per dimension
    interval: Interval  # 90% band of the prediction
    achieved: float  # bits per dimension, mean over its seeds
    error: float  # predicted / achieved - 1
    inside: bool
    ratio: float  # its FLOPs over the largest FLOPs the fit has seen
    last_value_error: float  # of "the best value so far, repeated": predicted / achieved - 1
    verdict: str  # a plain sentence


@dataclass(frozen=True, eq=False)
class Findings:
    """What one study shows. Fits are None when there are too few runs."""

    runs: pd.DataFrame  # rows the laws read, cheapest first, plus `budget` (index into budgets)
    compared: pd.DataFrame  # the same; in a study without laws, the finished runs it compares
    finished: pd.DataFrame  # every finished row of the table, whatever its role
    left_out: tuple[LeftOut, ...]
    budgets: tuple[Budget, ...]  # ascending FLOPs
    frontier_points: pd.DataFrame  # run_id, label, flops, params, tokens, bpd: best per budget
    frontier: Fit | None  # L(C) on the frontier points, all budgets
    surface: Fit | None  # L(N, D), the chosen form, all runs
    surfaces: tuple[Fit, ...]  # every form that could be fitted, in the order of `scores`
    rivals: tuple[Fit, ...]  # surface laws that predict as well as the chosen one
    scores: tuple[Score, ...]  # form choice by roll-outs, one line per form
    rollouts: tuple[Rollout, ...]  # all forms, all windows, without the largest budget
    baselines: tuple[Baseline, ...]
    coverage: tuple[Coverage, ...]  # of the chosen form's bands on the roll-outs
    influence: tuple[Influence, ...]  # leave one run out, largest effect first
    held_out: tuple[HeldOut, ...]  # by the frontier law, by the surface law (each if it exists)
    isoflops: tuple[IsoFlop, ...]  # per budget with at least three sizes
    optima: tuple[Allocation, ...]  # by the surface law, at the budgets of `isoflops`
    noise: SeedNoise | None
    allocation: tuple[Allocation, ...]  # budgets 1x to 100x the largest
    correlation: Correlation | None

    @property
    def held_out_by_compute(self) -> HeldOut | None:
        """The held-out run as the frontier law predicts it."""
        return next((item for item in self.held_out if item.fit.of_compute), None)


def find(
    runs: pd.DataFrame, evaluations: pd.DataFrame | None, seed: int = 0, draws: int = 1000
) -> Findings:
    """Fit, test and judge the laws of a study.

    The form is chosen without the largest budget, which laws that have not seen it then predict.
    The laws shown and the allocation are fitted to all runs.

    Args:
        runs: Rows of `tarflow.record.RUNS`.
        evaluations: Rows of `tarflow.record.EVALUATIONS`, or None.
        seed: Seed of every bootstrap.
        draws: Number of draws of every bootstrap.
    """
    rows, left_out = choose(runs)
    rows, budgets = group_budgets(rows)
    finished = runs[runs["status"] == "done"].sort_values("run_id").reset_index(drop=True)
    compared = rows if len(rows) else finished[finished["role"] == "ablation"]
    noise = seed_noise(compared)
    data = _observations(rows, noise.std / float(compared["bpd"].mean()) if noise else None)
    before = _before_the_largest(rows)
    earlier = data.take(before)
    axes = {name: rows[name].to_numpy(float)[before] for name in ("flops", "params", "tokens")}
    refit = partial(fit, draws=draws, seed=seed)

    forms = _distinct_forms(earlier)
    rollouts = roll_out(forms, earlier, axes, seed) if forms else ()
    surfaces = [refit(form, data) for form in forms]
    scores = score(forms, surfaces, rollouts) if forms else ()
    form = next((form for form, item in zip(forms, scores, strict=True) if item.chosen), None)
    own = tuple(rollout for rollout in rollouts if form and rollout.form == form.name)
    miss, held_out = _hold_out(rows, data, before, form, own, refit)

    points = best_of_budgets(rows)
    surfaces = [replace(law, discrepancy=miss) for law in surfaces]
    surface = next((law for law in surfaces if law.form is form), None)
    rivals = tuple(
        law for law, item in zip(surfaces, scores, strict=True) if item.near and not item.chosen
    )
    minima = [
        isoflop(part, noise.std, noise.freedom) if noise else isoflop(part)
        for _, part in rows.groupby("budget")
    ]
    isoflops = tuple(item for item in minima if item is not None)
    spend = partial(_allocate, rows, surface=surface, minima=isoflops, rivals=rivals, seed=seed)
    optima = spend([item.flops for item in isoflops])
    return Findings(
        runs=rows,
        compared=compared,
        finished=finished,
        left_out=left_out,
        budgets=budgets,
        frontier_points=points,
        frontier=_frontier(points, data.noise, miss, refit),
        surface=surface,
        surfaces=tuple(surfaces),
        rivals=rivals,
        scores=scores,
        rollouts=rollouts,
        baselines=baselines(rollouts, earlier, axes) if rollouts else (),
        coverage=coverage(own) if own else (),
        influence=influence(surface, data) if surface else (),
        held_out=held_out,
        isoflops=isoflops,
        optima=tuple(item for item in optima if item.source == "surface law"),
        noise=noise,
        allocation=spend([times * budgets[-1].flops for times in GROWTH] if budgets else []),
        correlation=None if evaluations is None else correlate(compared, evaluations, seed, draws),
    )


def _observations(rows: pd.DataFrame, noise: float | None) -> Observations:
    # Branches of one trunk share its training: they are one run to the bootstrap.
    trunk = rows["parent_id"] if "parent_id" in rows else pd.Series(None, index=rows.index)
    clusters = [
        str(parent) if isinstance(parent, str) and parent else str(own)
        for parent, own in zip(trunk, rows["run_id"], strict=True)
    ]
    inputs = {name: rows[name].to_numpy(float) for name in ("params", "tokens")}
    bpd = rows["bpd"].to_numpy(float)
    return Observations(inputs, bpd, clusters, noise, unique_tokens=unique_tokens(rows))


def _before_the_largest(rows: pd.DataFrame) -> Mask:
    """Return the mask of rows below the largest budget; all rows if there is one budget only."""
    before = (rows["budget"] < rows["budget"].max()).to_numpy()
    return before if before.any() else np.ones(len(rows), dtype=bool)


def _distinct_forms(data: Observations) -> list[Form]:
    """Return the surface forms whose parameters these rows can tell apart."""
    forms = [form for form in SURFACE_FORMS if len(data.values) >= len(form.parameters) + SPARE]
    return [
        form
        for form in forms
        if fit(form, data, starts=STARTS, draws=0).status not in ("rank-deficient", "non-finite")
    ]


def _hold_out(
    rows: pd.DataFrame,
    data: Observations,
    before: Mask,
    form: Form | None,
    rollouts: Sequence[Rollout],
    refit: Callable[[Form, Observations], Fit],
) -> tuple[Discrepancy, tuple[HeldOut, ...]]:
    """Predict the largest budget by laws that have not seen it.

    Returns:
        The discrepancy of the form, which the largest budget may have raised, and the predictions
        by the frontier law and by the surface law.
    """
    miss = discrepancy(rollouts)
    if before.all():
        return miss, ()
    laws = [_frontier(best_of_budgets(rows[before]), data.noise, miss, refit)]
    if form is not None:
        surface = refit(form, data.take(before))
        laws.append(replace(surface, discrepancy=miss))
        cutoff = float(rows[before]["flops"].max())
        last = predict_rows(surface, data, np.flatnonzero(~before), "flops", cutoff)
        miss = discrepancy((*rollouts, *last))
    return miss, tuple(_held_out(law, rows, before) for law in laws if law is not None)


def _frontier(
    points: pd.DataFrame,
    noise: float | None,
    miss: Discrepancy,
    refit: Callable[[Form, Observations], Fit],
) -> Fit | None:
    """Fit L(C), with a floor if more than three points or a known noise can support it."""
    if len(points) < 3:
        return None
    form = POWER if len(points) > 3 or noise else POWER_WITHOUT_FLOOR
    inputs = {"flops": points["flops"].to_numpy(float)}
    data = Observations(inputs, points["bpd"].to_numpy(float), list(points["run_id"]), noise)
    return replace(refit(form, data), discrepancy=miss)


def _held_out(law: Fit, rows: pd.DataFrame, before: Mask) -> HeldOut:
    best = best_of_budgets(rows[~before]).iloc[0]
    at = {name: float(best[name]) for name in law.form.inputs}
    predicted, achieved = float(law.predict(**at)), float(best["bpd"])
    low, high = (float(end) for end in law.band(LEVEL, **at))
    inside = low <= achieved <= high
    error = predicted / achieved - 1
    last = float(rows[before]["bpd"].min()) / achieved - 1
    ratio = float(best["flops"]) / float(rows[before]["flops"].max())
    verdict = (
        f"Predicted {predicted:.4g} bits per dimension ({LEVEL:.0%}: {low:.4g} to {high:.4g}) "
        f"from runs with {ratio:.2g} times less compute, achieved {achieved:.4g}: "
        f"{'inside' if inside else 'outside'} the interval, {abs(error):.2%} too "
        f"{'high' if error > 0 else 'low'}; repeating the best value so far would be "
        f"{abs(last):.2%} off."
    )
    if not np.isfinite(high - low):
        verdict = (
            f"Predicted {predicted:.4g} bits per dimension, achieved {achieved:.4g}; "
            "too few runs for an interval."
        )
    return HeldOut(
        run_id=str(best["run_id"]),
        flops=float(best["flops"]),
        fit=law,
        predicted=predicted,
        interval=(low, high),
        achieved=achieved,
        error=error,
        inside=inside,
        ratio=ratio,
        last_value_error=last,
        verdict=verdict,
    )


def _allocate(
    rows: pd.DataFrame,
    spent: Sequence[float],
    *,
    surface: Fit | None,
    minima: Sequence[IsoFlop],
    rivals: Sequence[Fit],
    seed: int,
) -> tuple[Allocation, ...]:
    """Return the compute-optimal model of each amount of training FLOPs."""
    if not spent:
        return ()
    try:
        template = read_config(best_run(rows))
    except UserError:  # a table from elsewhere: laws can be fitted, models cannot be built
        return ()
    return tuple(allocate(flops, rows, template, surface, minima, seed, rivals) for flops in spent)
