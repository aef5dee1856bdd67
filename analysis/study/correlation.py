"""Do runs with better likelihood have better samples? Rank correlation over runs.

Legend: `R` bootstrap draws, `n` runs.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, rankdata

from analysis.laws.forms import Array
from analysis.laws.intervals import Interval, interval_of
from analysis.study.settings import at_shared_setting

FEWEST = 5  # runs that a rank correlation needs
LEVEL = 0.95  # of its intervals
WORK = 1e6  # runs in all draws together, from where there are fewer draws
FEWEST_DRAWS = 100


@dataclass(frozen=True)
class Correlation:
    """Rank correlation between BPD and KID over runs, with 95% intervals."""

    runs: int
    spearman: float
    spearman_interval: Interval
    kendall: float
    kendall_interval: Interval


def correlate(
    runs: pd.DataFrame, evaluations: pd.DataFrame, seed: int = 0, draws: int = 1000
) -> Correlation | None:
    """Correlate BPD and KID over runs at the sampler setting most of them share.

    Guidance moves KID at equal BPD, so settings are never mixed. None with fewer than 5 runs.

    Args:
        runs: Rows of the runs table.
        evaluations: Rows of the evaluations table.
        seed: Seed of the bootstrap.
        draws: Number of its draws; fewer beyond 1,000 runs, whose intervals are narrow.
    """
    rows = at_shared_setting(evaluations[evaluations["run_id"].isin(runs["run_id"])])
    kid = rows.groupby("run_id")["kid"].mean()
    table = runs.set_index("run_id").loc[sorted(kid.index), "bpd"].to_frame().join(kid)
    if len(table) < FEWEST:
        return None
    x, y = table["bpd"].to_numpy(float), table["kid"].to_numpy(float)
    draws = min(draws, max(FEWEST_DRAWS, int(WORK / len(x))))
    again = np.random.default_rng(seed).integers(len(x), size=(draws, len(x)))
    again = np.concatenate([np.arange(len(x))[None], again])
    spearman, kendall = _spearman(x[again], y[again]), _kendall(x[again], y[again])
    return Correlation(
        runs=len(table),
        spearman=float(spearman[0]),
        spearman_interval=interval_of(_known(spearman[1:]), LEVEL),
        kendall=float(kendall[0]),
        kendall_interval=interval_of(_known(kendall[1:]), LEVEL),
    )


def _spearman(x: Array, y: Array) -> Array:
    """Return rank correlations of rows (R, n); nan where a row is constant."""
    x, y = rankdata(x, axis=1), rankdata(y, axis=1)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    return _ratio((x * y).sum(axis=1), (x * x).sum(axis=1), (y * y).sum(axis=1))


def _kendall(x: Array, y: Array) -> Array:
    """Return Kendall's tau-b of rows (R, n); nan where a row is constant."""
    with warnings.catch_warnings(action="ignore"):  # of constant rows
        pairs = zip(x, y, strict=True)
        return np.array([kendalltau(*pair, method="asymptotic").statistic for pair in pairs])


def _ratio(both: Array, one: Array, other: Array) -> Array:
    norm = np.sqrt(one * other)
    return np.asarray(np.where(norm > 0, both / np.where(norm > 0, norm, 1), np.nan), dtype=float)


def _known(draws: Array) -> Array:
    return draws[~np.isnan(draws)]
