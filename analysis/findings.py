"""Everything a study shows, from its two tables: fits, hold-outs, minima, warnings.

Legend: `flops` training FLOPs of a run, `params` matrix-product weights, `tokens` images seen * T,
`bpd` bits per dimension. Pure: the same tables and seed give the same findings.
"""

from dataclasses import dataclass

import pandas as pd

from analysis.allocate import Allocation, IsoFlop
from analysis.fit import Fit
from analysis.validate import Baseline, Coverage, Influence, Rollout, Score

Interval = tuple[float, float]


@dataclass(frozen=True)
class LeftOut:
    """A row of the table that no law reads, and why."""

    run_id: str
    label: str
    reason: str  # a plain sentence


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


@dataclass(frozen=True)
class Correlation:
    """Rank correlation between BPD and a sample-quality score over runs; 95% intervals."""

    metric: str  # kid
    feature_extractor: str
    setting: str  # the one sampler setting compared, in words
    runs: int
    spearman: float
    spearman_interval: Interval
    kendall: float
    kendall_interval: Interval


@dataclass(frozen=True, eq=False)
class Findings:
    """What one study says. Fits are None when there are too few runs; `warnings` says so."""

    runs: pd.DataFrame  # rows the laws read, plus `budget` (index into budgets)
    finished: pd.DataFrame  # every finished row of the table, whatever its role
    left_out: tuple[LeftOut, ...]
    budgets: tuple[Budget, ...]  # ascending FLOPs
    frontier_points: pd.DataFrame  # run_id, label, flops, params, tokens, bpd: best per budget
    frontier: Fit | None  # L(C) on the frontier points, all budgets
    surface: Fit | None  # L(N, D), the chosen form, all runs
    surfaces: tuple[Fit, ...]  # every form that could be fitted, in the order of `scores`
    scores: tuple[Score, ...]  # form choice by roll-outs, one line per form
    rollouts: tuple[Rollout, ...]  # all forms, all windows
    baselines: tuple[Baseline, ...]
    coverage: tuple[Coverage, ...]  # of the chosen form's bands on the roll-outs
    influence: tuple[Influence, ...]  # leave one run out, largest effect first
    held_out: tuple[HeldOut, ...]  # by the frontier law, by the surface law (each if it exists)
    isoflops: tuple[IsoFlop, ...]  # per budget with at least three sizes
    noise: SeedNoise | None
    allocation: tuple[Allocation, ...]  # budgets 1x to 100x the largest
    correlation: Correlation | None
    warnings: tuple[str, ...]  # plain sentences


def find(
    runs: pd.DataFrame, evaluations: pd.DataFrame | None, seed: int = 0, draws: int = 1000
) -> Findings:
    """Fit, test and judge a study; takes seconds."""
    raise NotImplementedError
