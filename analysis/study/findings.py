"""What one study shows: its laws, predictions of held-out runs, minima and allocation.

The same tables and seed give the same findings.
Legend: `flops` training FLOPs of a run, `params` matrix-product weights, `tokens` images seen * T,
`bpd` bits per dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.allocation import Allocation, allocate, best_run
from analysis.laws.average import Law, fit_law
from analysis.laws.fit import Fit, fit
from analysis.laws.forms import POWER, POWER_WITHOUT_FLOOR, SURFACE_FORMS, Array
from analysis.laws.influence import Influence, influence
from analysis.laws.intervals import LEVEL, Interval
from analysis.laws.isoflop import IsoFlop, isoflop
from analysis.laws.observations import Observations
from analysis.laws.repetition import unique_tokens
from analysis.laws.validation import Baseline, Coverage, baselines, coverage
from analysis.study.correlation import Correlation, correlate
from analysis.study.names import bits_unit_of, bpd_name_of
from analysis.study.rows import (
    Budget,
    LeftOut,
    SeedNoise,
    best_of_budgets,
    choose,
    group_budgets,
    known_noise,
    read_config,
    seed_noise,
)
from tarflow.errors import UserError, check_seed
from tarflow.forecasts import Forecast
from tarflow.human import bits, interval

SIZES = 60  # among which the best one of a budget is searched
GROWTH = (1, 2, 4, 10, 30, 100)  # budgets of the allocation, times the largest of the study


@dataclass(frozen=True)
class HeldOut:
    """The best run of the largest budget, predicted by a law that has not seen that budget."""

    run_id: str
    flops: float
    law: Law | Fit  # fitted without any run of the largest budget
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
    frontier: Fit | None  # L(C) of the frontier points, moved to the best sizes
    surface: Law | None  # L(N, D), an average of forms, all runs
    baselines: tuple[Baseline, ...]  # on the roll-outs of the surface law
    coverage: tuple[Coverage, ...]  # of its bands on its roll-outs
    influence: tuple[Influence, ...]  # leave one run out, largest effect first
    held_out: tuple[HeldOut, ...]  # by the frontier law, by the surface law (each if it exists)
    isoflops: tuple[IsoFlop, ...]  # per budget with at least three sizes
    optima: tuple[Allocation, ...]  # by the surface law, at the budgets of `isoflops`
    noise: SeedNoise | None
    allocation: tuple[Allocation, ...]  # budgets 1x to 100x the largest
    correlation: Correlation | None
    forecasts: tuple[Forecast, ...] = ()  # of the study, in the order they were written

    @property
    def bits_unit(self) -> str:
        """Unit of the likelihoods of the study, which is another one for latents."""
        return bits_unit_of(self.finished)

    @property
    def bpd_name(self) -> str:
        """Short name of the likelihoods of the study, for tables."""
        return bpd_name_of(self.finished)

    @property
    def held_out_best(self) -> HeldOut | None:
        """The held-out run as the law of size and data predicts it, or else that of compute."""
        return self.held_out[-1] if self.held_out else None


def find(
    runs: pd.DataFrame,
    evaluations: pd.DataFrame | None,
    seed: int = 0,
    draws: int = 1000,
    forecasts: Sequence[Forecast] = (),
) -> Findings:
    """Fit, test and judge the laws of a study.

    The laws shown and the allocation are fitted to all runs; laws fitted without the largest
    budget predict it.

    Args:
        runs: Rows of `tarflow.record.RUNS`.
        evaluations: Rows of `tarflow.record.EVALUATIONS`, or None.
        seed: Seed of all draws.
        draws: Number of draws behind every interval.
        forecasts: Forecasts of the study.
    """
    check_seed(seed)
    rows, left_out = choose(runs)
    rows, budgets = group_budgets(rows)
    finished = runs[runs["status"] == "done"].sort_values("run_id").reset_index(drop=True)
    compared = rows if len(rows) else finished[finished["role"] == "ablation"]
    noise = seed_noise(compared)
    data = _observations(rows)
    surface = _surface(rows, data, draws, seed)
    points = best_of_budgets(rows)
    frontier = _frontier(rows, points, surface, noise, draws, seed)
    minima = [
        isoflop(part, noise.std, noise.freedom) if noise else isoflop(part)
        for _, part in rows.groupby("budget")
    ]
    isoflops = tuple(item for item in minima if item is not None)
    spend = partial(_allocate, rows, surface=surface, minima=isoflops, seed=seed)
    optima = spend([item.flops for item in isoflops])
    return Findings(
        runs=rows,
        compared=compared,
        finished=finished,
        left_out=left_out,
        budgets=budgets,
        frontier_points=points,
        frontier=frontier,
        surface=surface,
        baselines=baselines(surface.trials.windows, surface.sample) if surface else (),
        coverage=coverage(surface.rollouts) if surface else (),
        influence=influence(surface.heaviest) if surface else (),
        held_out=_hold_out(rows, data, points, noise, draws=draws, seed=seed),
        isoflops=isoflops,
        optima=tuple(item for item in optima if item.source == "surface law"),
        noise=noise,
        allocation=spend([times * budgets[-1].flops for times in GROWTH] if budgets else []),
        correlation=None if evaluations is None else correlate(compared, evaluations, seed, draws),
        forecasts=tuple(forecasts),
    )


def _observations(rows: pd.DataFrame) -> Observations:
    # Branches of one trunk share its training, so they share a part of their error.
    trunk = rows["parent_id"] if "parent_id" in rows else pd.Series(None, index=rows.index)
    clusters = [
        str(parent) if isinstance(parent, str) and parent else str(own)
        for parent, own in zip(trunk, rows["run_id"], strict=True)
    ]
    inputs = {name: rows[name].to_numpy(float) for name in ("params", "tokens")}
    bpd = rows["bpd"].to_numpy(float)
    return Observations(inputs, bpd, clusters, unique_tokens=unique_tokens(rows))


def _surface(rows: pd.DataFrame, data: Observations, draws: int, seed: int) -> Law | None:
    axes = {name: rows[name].to_numpy(float) for name in ("flops", "params", "tokens")}
    return fit_law(data, SURFACE_FORMS, axes, draws=draws, seed=seed) if len(rows) else None


def _hold_out(
    rows: pd.DataFrame,
    data: Observations,
    points: pd.DataFrame,
    noise: SeedNoise | None,
    *,
    draws: int,
    seed: int,
) -> tuple[HeldOut, ...]:
    """Predict the last of the best runs of the budgets by laws of the runs of smaller budgets."""
    if len(points) < 2:
        return ()
    before = (rows["budget"] < rows["budget"].max()).to_numpy()
    earlier, cheaper = rows[before], points.iloc[:-1]
    surface = _surface(earlier, data.take(before), draws, seed)
    frontier = _frontier(earlier, cheaper, surface, noise, draws, seed)
    laws = [law for law in (frontier, surface) if law is not None]
    return tuple(_held_out(law, points.iloc[-1], earlier) for law in laws)


def _frontier(
    rows: pd.DataFrame,
    points: pd.DataFrame,
    surface: Law | None,
    noise: SeedNoise | None,
    draws: int,
    seed: int,
) -> Fit | None:
    """Fit L(C), with a floor if more than three points or a known noise can support it.

    The best run of a budget is not quite of the best size. What it lacks is told by the law of
    size and data, and so is the noise; without that law, seeds may tell the noise.
    """
    if len(points) < 3:
        return None
    bpd, known = points["bpd"].to_numpy(float), known_noise(noise, rows)
    if surface is not None and surface.known:
        bpd, known = bpd / _excess(surface, rows, points), surface.general.residual_noise
    form = POWER if len(points) > 3 or known.freedom else POWER_WITHOUT_FLOOR
    inputs = {"flops": points["flops"].to_numpy(float)}
    data = Observations(inputs, bpd, list(points["run_id"]), known)
    law = fit(form, data, draws=draws, seed=seed)
    return replace(law, discrepancy=surface.discrepancy.widening_only) if surface else law


def _excess(surface: Law, rows: pd.DataFrame, points: pd.DataFrame) -> Array:
    """Return the losses of the best runs of budgets over those of the best sizes, (m,)."""
    sizes = np.log(rows["params"].to_numpy(float))
    order = np.argsort(sizes)
    price = np.log((rows["flops"] / rows["tokens"]).to_numpy(float))
    grid = np.linspace(sizes.min(), sizes.max(), SIZES)
    per_token = np.exp(np.interp(grid, sizes[order], price[order]))
    spent = points["flops"].to_numpy(float)[:, None]
    best = surface.predict(params=np.exp(grid), tokens=spent / per_token).min(axis=1)
    own = surface.predict(params=points["params"], tokens=points["tokens"])
    excess: Array = np.maximum(own / best, 1.0)
    return excess


def _held_out(law: Law | Fit, best: "pd.Series[Any]", earlier: pd.DataFrame) -> HeldOut:
    at = {name: float(best[name]) for name in law.form.inputs}
    predicted, achieved = float(law.predict(**at)), float(best["bpd"])
    low, high = (float(end) for end in law.band(LEVEL, **at))
    inside = low <= achieved <= high
    error = predicted / achieved - 1
    last = float(earlier["bpd"].min()) / achieved - 1
    ratio = float(best["flops"]) / float(earlier["flops"].max())
    unit = bits_unit_of(earlier)
    verdict = (
        f"Predicted {bits(predicted)} {unit} ({LEVEL:.0%}: "
        f"{interval((low, high), bits)}) "
        f"from runs with {ratio:.2g} times less compute, achieved {bits(achieved)}: "
        f"{'inside' if inside else 'outside'} the interval, {abs(error):.2%} too "
        f"{'high' if error > 0 else 'low'}; repeating the best value so far would be "
        f"{abs(last):.2%} off."
    )
    if not np.isfinite(high - low):
        verdict = (
            f"Predicted {bits(predicted)} {unit}, achieved {bits(achieved)}; "
            "too few runs for an interval."
        )
    return HeldOut(
        run_id=str(best["run_id"]),
        flops=float(best["flops"]),
        law=law,
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
    surface: Law | None,
    minima: Sequence[IsoFlop],
    seed: int,
) -> tuple[Allocation, ...]:
    """Return the compute-optimal model of each amount of training FLOPs."""
    if not spent:
        return ()
    try:
        template = read_config(best_run(rows))
    except UserError:  # a table from elsewhere: laws can be fitted, models cannot be built
        return ()
    return tuple(allocate(flops, rows, template, surface, minima, seed) for flops in spent)
