"""What one study says: the types that `find` fills and every page reads.

Legend: `flops` training FLOPs of a run, `params` matrix-product weights, `tokens` images seen * T,
`bpd` bits per dimension.
"""

from dataclasses import dataclass

import pandas as pd

from analysis.allocate import Allocation
from analysis.bands import Coverage
from analysis.correlation import Correlation
from analysis.fit import Fit
from analysis.influence import Influence
from analysis.isoflop import IsoFlop
from analysis.rows import LeftOut
from analysis.validate import Baseline, Rollout, Score

Interval = tuple[float, float]


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
    warnings: tuple[str, ...]  # plain sentences

    @property
    def rivals(self) -> tuple[Fit, ...]:
        """The other surface laws that the roll-outs do not tell apart from the best."""
        near = [item.form for item in self.scores if item.near and not item.chosen]
        return tuple(law for law in self.surfaces if law.name in near)
