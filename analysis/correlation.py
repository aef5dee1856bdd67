"""Does better likelihood go with better samples? Rank correlation over runs.

Legend: `R` bootstrap draws, `n` runs.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from analysis.laws.forms import Array
from analysis.laws.intervals import Interval
from analysis.rows import commonest
from analysis.settings import SETTING

WORDS = ("guidance", "temperature", "denoise")  # of the setting, that people are told
FEWEST = 5  # runs


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


def correlate(
    runs: pd.DataFrame, evaluations: pd.DataFrame, seed: int = 0, draws: int = 1000
) -> Correlation | None:
    """Correlate BPD and KID over runs at the sampler setting most of them share.

    Guidance moves KID at equal BPD, so settings are never mixed. None with fewer than 5 runs.
    """
    rows = evaluations[evaluations["kid"].notna() & (evaluations["half"] != "chosen")]
    rows = rows[rows["run_id"].isin(runs["run_id"])]
    if rows.empty:
        return None
    setting = rows[SETTING].astype(str)
    shared = commonest(setting)
    rows = rows[(setting == list(shared)).all(axis=1)]
    kid = rows.groupby("run_id")["kid"].mean()
    table = runs.set_index("run_id").loc[sorted(kid.index), "bpd"].to_frame().join(kid)
    if len(table) < FEWEST:
        return None
    x, y = table["bpd"].to_numpy(float), table["kid"].to_numpy(float)
    again = np.random.default_rng(seed).integers(len(x), size=(draws, len(x)))
    again = np.concatenate([np.arange(len(x))[None], again])
    spearman, kendall = _spearman(x[again], y[again]), _kendall(x[again], y[again])
    named = dict(zip(SETTING, shared, strict=True))
    return Correlation(
        metric="kid",
        feature_extractor=str(rows["feature_extractor"].iloc[0]),
        setting=", ".join(f"{name} {value}" for name, value in named.items() if name in WORDS),
        runs=len(table),
        spearman=float(spearman[0]),
        spearman_interval=_interval(spearman[1:]),
        kendall=float(kendall[0]),
        kendall_interval=_interval(kendall[1:]),
    )


def _spearman(x: Array, y: Array) -> Array:
    """Return rank correlations of rows (R, n); nan where a row is constant."""
    x, y = rankdata(x, axis=1), rankdata(y, axis=1)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    return _ratio((x * y).sum(axis=1), (x * x).sum(axis=1), (y * y).sum(axis=1))


def _kendall(x: Array, y: Array) -> Array:
    """Return Kendall's tau-b of rows (R, n); nan where a row is constant."""
    first, second = np.triu_indices(x.shape[1], 1)
    a, b = np.sign(x[:, first] - x[:, second]), np.sign(y[:, first] - y[:, second])
    return _ratio((a * b).sum(axis=1), (a * a).sum(axis=1), (b * b).sum(axis=1))


def _ratio(both: Array, one: Array, other: Array) -> Array:
    norm = np.sqrt(one * other)
    return np.asarray(np.where(norm > 0, both / np.where(norm > 0, norm, 1), np.nan), dtype=float)


def _interval(draws: Array) -> Interval:
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)
