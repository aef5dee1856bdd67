"""Failure signatures: runs that rank high in likelihood and low in samples, or the reverse.

Legend: `R` draws, `n` runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from analysis.laws.forms import Array
from analysis.laws.intervals import Interval, interval_ends
from analysis.study.correlation import FEWEST

DRAWS = 1000
# Ranks only: the highest of the study may still be far from real images.
GOOD, POOR = "likelihood ranks above samples", "samples rank above likelihood"


@dataclass(frozen=True)
class Signature:
    """A run whose ranks by BPD and by KID disagree beyond their 90% intervals; 1 is the best."""

    run_id: str
    kind: str  # GOOD or POOR
    bpd_rank: float
    bpd_ranks: Interval
    kid_rank: float
    kid_ranks: Interval

    @property
    def gap(self) -> float:
        """Distance between the two ranks."""
        return abs(self.kid_rank - self.bpd_rank)


def signatures(
    scored: pd.DataFrame,
    images: Mapping[str, pd.DataFrame],
    noise: float = 0.0,
    seed: int = 0,
) -> tuple[Signature, ...]:
    """Return the runs whose two ranks disagree, the largest gap first; none with under 5 runs.

    Held-out images are resampled for all runs together, because all runs see the same ones. KID is
    redrawn within its standard error.

    Args:
        scored: One row per run: `run_id`, `bpd`, `bpd_se`, `kid`, `kid_se`.
        images: Per-image table of each run; if one is missing, `bpd_se` is used for all.
        noise: Standard deviation of BPD between runs that differ in the seed only.
        seed: Seed of the draws.
    """
    scored = scored.dropna(subset=["bpd", "kid"]).sort_values("run_id")
    if len(scored) < FEWEST:
        return ()
    rng = np.random.default_rng(seed)
    bpd = _bpd_draws(scored, images, rng)
    bpd = bpd + noise * rng.standard_normal(bpd.shape)
    error = scored["kid_se"].fillna(0.0).to_numpy(float)
    kid = scored["kid"].to_numpy(float) + error * rng.standard_normal(bpd.shape)
    ranks = [rankdata(scored[column]) for column in ("bpd", "kid")]
    ends = [interval_ends(rankdata(draws, axis=1)) for draws in (bpd, kid)]
    disagreeing = []
    for i, name in enumerate(scored["run_id"]):
        by_bpd, by_kid = ((float(low[i]), float(high[i])) for low, high in ends)
        if by_bpd[1] < by_kid[0] or by_kid[1] < by_bpd[0]:
            kind = GOOD if by_bpd[1] < by_kid[0] else POOR
            disagreeing.append(
                Signature(name, kind, float(ranks[0][i]), by_bpd, float(ranks[1][i]), by_kid)
            )
    return tuple(sorted(disagreeing, key=lambda item: (-item.gap, item.run_id)))


def _bpd_draws(
    scored: pd.DataFrame, images: Mapping[str, pd.DataFrame], rng: np.random.Generator
) -> Array:
    """Return (R, n) mean BPD over resampled images, the same images for every run."""
    names = scored["run_id"].tolist()
    columns = [images[name].set_index("index")["bpd"] for name in names if name in images]
    table = pd.concat(columns, axis=1, join="inner").dropna() if columns else pd.DataFrame()
    if len(columns) < len(names) or table.empty:
        error = scored["bpd_se"].fillna(0.0).to_numpy(float)
        drawn = scored["bpd"].to_numpy(float) + error * rng.standard_normal((DRAWS, len(names)))
        return np.asarray(drawn, dtype=float)
    times = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=DRAWS)
    means: Array = times @ table.to_numpy(float) / len(table)
    return means
