"""What one study shows: its fits, predictions of held-out runs, minima and allocation.

The same tables and seed give the same findings.
Legend: `flops` training FLOPs of a run, `params` matrix-product weights, `tokens` images seen * T,
`bpd` bits per dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.correlation import Correlation, correlate
from analysis.laws.allocation import Allocation, allocate, best_run
from analysis.laws.bands import Coverage, coverage, discrepancy
from analysis.laws.fit import Fit
from analysis.laws.forms import POWER, POWER_WITHOUT_FLOOR, SURFACE_FORMS, Form
from analysis.laws.influence import Influence, influence
from analysis.laws.intervals import LEVEL, Interval
from analysis.laws.isoflop import IsoFlop, isoflop
from analysis.laws.validation import (
    SPARE,
    Baseline,
    Mask,
    Rollout,
    Score,
    Table,
    baselines,
    levels,
    predict_rows,
    roll_out,
    score,
)
from analysis.rows import LeftOut, choose, configs_but_seed, read_config
from tarflow.errors import UserError

GROWTH = (1, 2, 4, 10, 30, 100)  # budgets of the allocation, times the largest of the study


@dataclass(frozen=True)
class Budget:
    """Runs of nearly equal training FLOPs."""

    flops: float  # geometric mean
    run_ids: tuple[str, ...]  # smallest model first
    sizes: int  # different parameter counts
    best_run_id: str  # lowest BPD


@dataclass(frozen=True)
class HeldOut:
    """The best run of the largest budget, predicted by a law that has not seen that budget."""

    run_id: str
    label: str
    flops: float
    fit: Fit  # fitted without any run of the largest budget
    predicted: float  # bits per dimension
    interval: Interval  # band of the prediction at `level`
    level: float
    achieved: float  # bits per dimension, mean over its seeds
    error: float  # predicted / achieved - 1
    inside: bool
    ratio: float  # its FLOPs over the largest FLOPs the fit has seen
    last_value_error: float  # of "the best value so far, repeated": predicted / achieved - 1
    verdict: str  # a plain sentence


@dataclass(frozen=True)
class SeedNoise:
    """Spread between runs that differ in the seed only."""

    std: float  # bits per dimension, pooled
    groups: int  # configs with at least two seeds
    runs: int  # runs in these groups


@dataclass(frozen=True, eq=False)
class Findings:
    """What one study says. Fits are None when there are too few runs; `warnings` says so."""

    runs: pd.DataFrame  # rows the laws read, cheapest first, plus `budget` (index into budgets)
    compared: pd.DataFrame  # the same; of a study without laws, the finished runs it compares
    finished: pd.DataFrame  # every finished row of the table, whatever its role
    left_out: tuple[LeftOut, ...]
    budgets: tuple[Budget, ...]  # ascending FLOPs
    frontier_points: pd.DataFrame  # run_id, label, flops, params, tokens, bpd: best per budget
    frontier: Fit | None  # L(C) on the frontier points, all budgets
    surface: Fit | None  # L(N, D), the chosen form, all runs
    surfaces: tuple[Fit, ...]  # every form that could be fitted, in the order of `scores`
    scores: tuple[Score, ...]  # form choice by roll-outs, one line per form
    rollouts: tuple[Rollout, ...]  # all forms, all windows, without the largest budget
    baselines: tuple[Baseline, ...]
    coverage: tuple[Coverage, ...]  # of the chosen form's bands on the roll-outs
    influence: tuple[Influence, ...]  # leave one run out, largest effect first
    held_out: tuple[HeldOut, ...]  # by the frontier law, by the surface law (each if it exists)
    isoflops: tuple[IsoFlop, ...]  # per budget with at least three sizes
    noise: SeedNoise | None
    allocation: tuple[Allocation, ...]  # budgets 1x to 100x the largest
    correlation: Correlation | None

    @property
    def rivals(self) -> tuple[Fit, ...]:
        """The other surface laws that the roll-outs do not tell apart from the best."""
        near = [item.form for item in self.scores if item.near and not item.chosen]
        return tuple(law for law in self.surfaces if law.name in near)


def find(
    runs: pd.DataFrame, evaluations: pd.DataFrame | None, seed: int = 0, draws: int = 1000
) -> Findings:
    """Fit, test and judge a study.

    The largest budget is held out of the choice of form and of the predictions it is compared
    with; the laws shown and the allocation are then fitted to all runs.

    Args:
        runs: rows of `tarflow.record.RUNS`.
        evaluations: rows of `tarflow.record.EVALUATIONS`, or None.
        seed: of every bootstrap.
        draws: per bootstrap.
    """
    rows, left_out = choose(runs)
    rows, budgets = _budgets(rows)
    finished = runs[runs["status"] == "done"].sort_values("run_id").reset_index(drop=True)
    compared = rows if len(rows) else finished[finished["role"] == "ablation"]
    noise = seed_noise(compared)
    relative = noise.std / float(compared["bpd"].mean()) if noise else None
    points = _frontier_points(rows)
    table = _table(rows, relative)
    before = _earlier(rows)
    earlier, axes = table.take(before), {
        name: rows[name].to_numpy(float)[before] for name in ("flops", "params", "tokens")
    }  # fmt: skip
    forms = _fitting(SURFACE_FORMS, earlier)
    rollouts = roll_out(forms, earlier, axes, seed) if forms else ()
    surfaces = [table.fit(form, draws=draws, seed=seed) for form in forms]
    scores = score(forms, surfaces, rollouts) if forms else ()
    name = next((item.form for item in scores if item.chosen), "")
    chosen = tuple(rollout for rollout in rollouts if rollout.form == name)
    miss = discrepancy(chosen)
    held_out = []
    known = points[points["flops"] < budgets[-1].flops / 1.1] if budgets else points
    frontier_before = _frontier(known, relative, miss, draws, seed)
    if frontier_before is not None and len(budgets) > 1:
        held_out.append(_held_out(frontier_before, rows, before))
    if name:
        law = surfaces[[form.name for form in forms].index(name)].form
        blind = earlier.fit(law, draws=draws, seed=seed)
        if len(budgets) > 1:
            held_out.append(_held_out(replace(blind, discrepancy=miss), rows, before))
            # What the largest budget taught about the form widens the bands beyond it.
            cutoff = float(rows[before]["flops"].max())
            last = predict_rows(blind, table, np.flatnonzero(~before), "flops", cutoff)
            miss = discrepancy((*chosen, *last))
    surfaces = [replace(law, discrepancy=miss) for law in surfaces]
    surface = next((law for law in surfaces if law.name == name), None)
    noise_bits = noise.std if noise else None
    minima = [isoflop(part, noise_bits, seed) for _, part in rows.groupby("budget")]
    isoflops = tuple(item for item in minima if item is not None)
    found = Findings(
        runs=rows,
        compared=compared,
        finished=finished,
        left_out=left_out,
        budgets=budgets,
        frontier_points=points,
        frontier=_frontier(points, relative, miss, draws, seed),
        surface=surface,
        surfaces=tuple(surfaces),
        scores=scores,
        rollouts=rollouts,
        baselines=baselines(rollouts, earlier, axes) if rollouts else (),
        coverage=coverage(chosen) if chosen else (),
        influence=influence(surface, table) if surface else (),
        held_out=tuple(held_out),
        isoflops=isoflops,
        noise=noise,
        allocation=(),
        correlation=None if evaluations is None else correlate(compared, evaluations, seed, draws),
    )
    return replace(found, allocation=_allocation(found, seed))


def seed_noise(rows: pd.DataFrame) -> SeedNoise | None:
    """Pool the variance between runs that differ in the seed only; None without such runs."""
    bpd = rows["bpd"].groupby(pd.Series(configs_but_seed(rows), index=rows.index, dtype=object))
    groups = [group for _, group in bpd if len(group) > 1]
    if not groups:
        return None
    square = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    members = sum(len(group) for group in groups)
    return SeedNoise(float(np.sqrt(square / (members - len(groups)))), len(groups), members)


def _budgets(rows: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Budget, ...]]:
    """Number the clusters of near-equal FLOPs and order the rows by them."""
    groups = levels(rows["flops"].to_numpy(float)) if len(rows) else []
    number = np.zeros(len(rows), dtype=int)
    for index, group in enumerate(groups):
        number[group] = index
    rows = rows.assign(budget=number).sort_values(["budget", "params", "run_id"])
    rows = rows.reset_index(drop=True)
    budgets = tuple(
        Budget(
            flops=float(np.exp(np.log(part["flops"].to_numpy(float)).mean())),
            run_ids=tuple(part["run_id"]),
            sizes=int(part["params"].nunique()),
            best_run_id=str(part.sort_values(["bpd", "run_id"])["run_id"].iloc[0]),
        )
        for _, part in rows.groupby("budget")
    )
    return rows, budgets


def _table(rows: pd.DataFrame, noise: float | None) -> Table:
    # Branches of one trunk share its training: they are one run to the bootstrap.
    trunk = rows["parent_id"] if "parent_id" in rows else pd.Series(None, index=rows.index)
    clusters = [
        str(parent) if isinstance(parent, str) and parent else str(own)
        for parent, own in zip(trunk, rows["run_id"], strict=True)
    ]
    inputs = {name: rows[name].to_numpy(float) for name in ("params", "tokens")}
    return Table(inputs, rows["bpd"].to_numpy(float), clusters, noise)


def _earlier(rows: pd.DataFrame) -> Mask:
    """Return the mask of rows below the largest budget; all rows when there is one budget."""
    before = (rows["budget"] < rows["budget"].max()).to_numpy()
    return before if before.any() else np.ones(len(rows), dtype=bool)


def _fitting(forms: Sequence[Form], table: Table) -> list[Form]:
    """Return the forms these rows can tell apart from others."""
    found = []
    for form in forms:
        if len(table.values) >= len(form.parameters) + SPARE:
            status = table.fit(form, starts=24, draws=0).status
            found += [form] if status not in ("rank-deficient", "non-finite") else []
    return found


def _frontier_points(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the best config of every budget, its BPD averaged over seeds."""
    columns = ["run_id", "label", "flops", "params", "tokens", "bpd"]
    if rows.empty:
        return rows.reindex(columns=columns)
    keys = pd.Series(configs_but_seed(rows), index=rows.index)
    mean = rows.assign(bpd=rows["bpd"].groupby(keys).transform("mean"))
    best = mean.sort_values(["budget", "bpd", "run_id"]).drop_duplicates("budget")
    return best[columns].reset_index(drop=True)


def _frontier(
    points: pd.DataFrame, noise: float | None, miss: float, draws: int, seed: int
) -> Fit | None:
    """Fit L(C): with a floor where points or a known noise leave something to judge it by."""
    count = len(points)
    if count < 3:
        return None
    form = POWER if count > 3 or noise else POWER_WITHOUT_FLOOR
    inputs = {"flops": points["flops"].to_numpy(float)}
    table = Table(inputs, points["bpd"].to_numpy(float), list(points["run_id"]), noise)
    return replace(table.fit(form, draws=draws, seed=seed), discrepancy=miss)


def _held_out(law: Fit, rows: pd.DataFrame, before: Mask) -> HeldOut:
    best = _frontier_points(rows[~before]).iloc[0]
    at = {name: float(best[name]) for name in law.form.inputs}
    predicted, achieved = float(law.predict(**at)), float(best["bpd"])
    low, high = (float(end) for end in law.band(LEVEL, **at))
    inside = low <= achieved <= high
    error = predicted / achieved - 1
    last = float(rows[before]["bpd"].min()) / achieved - 1
    ratio = float(best["flops"]) / float(rows[before]["flops"].max())
    verdict = (
        f"Predicted {predicted:.4g} bits ({LEVEL:.0%}: {low:.4g} to {high:.4g}) from runs "
        f"{ratio:.2g} times smaller, achieved {achieved:.4g}: "
        f"{'inside' if inside else 'outside'} the interval, {abs(error):.2%} too "
        f"{'high' if error > 0 else 'low'}; repeating the best value so far would be "
        f"{abs(last):.2%} off."
    )
    if not np.isfinite(high - low):
        verdict = (
            f"Predicted {predicted:.4g} bits, achieved {achieved:.4g}; "
            "too few runs for an interval."
        )
    return HeldOut(
        run_id=str(best["run_id"]),
        label=str(best["label"]),
        flops=float(best["flops"]),
        fit=law,
        predicted=predicted,
        interval=(low, high),
        level=LEVEL,
        achieved=achieved,
        error=error,
        inside=inside,
        ratio=ratio,
        last_value_error=last,
        verdict=verdict,
    )


def _allocation(found: Findings, seed: int) -> tuple[Allocation, ...]:
    rows, budgets = found.runs, found.budgets
    if not budgets:
        return ()
    try:
        template = read_config(best_run(rows))
    except UserError:  # a table from elsewhere: laws can be fitted, models cannot be built
        return ()
    return tuple(
        allocate(
            times * budgets[-1].flops,
            rows,
            template,
            found.surface,
            found.isoflops,
            seed,
            found.rivals,
        )
        for times in GROWTH
    )
