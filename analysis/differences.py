"""Which runs sample quality tells apart: differences of KID beside their standard errors.

Runs share held-out images and noise, so their KIDs differ less by chance than independent ones
would. Both functions take them as independent, and so err towards finding no difference.
"""

import numpy as np
import pandas as pd
from scipy.stats import chi2

from analysis.laws.intervals import LEVEL, NORMAL_90


def told_apart(scored: pd.DataFrame) -> bool:
    """Return whether KIDs differ by more than their standard errors explain (Cochran's Q, 10%).

    Args:
        scored: One row per run: `kid` and `kid_se`.
    """
    known = scored.dropna(subset=["kid", "kid_se"])
    known = known[known["kid_se"] > 0]
    weights = 1 / known["kid_se"].to_numpy(float) ** 2
    kid = known["kid"].to_numpy(float)
    if len(kid) < 2:
        return False
    spread = float(weights @ (kid - weights @ kid / weights.sum()) ** 2)
    return spread > float(chi2.ppf(LEVEL, len(kid) - 1))


def as_low(scored: pd.DataFrame, row: pd.Series) -> pd.DataFrame:
    """Return the other runs whose KID is not higher than that of a row beyond a 90% interval.

    Args:
        scored: One row per run: `run_id`, `kid` and `kid_se`.
        row: The run to compare with.
    """
    others = scored[scored["run_id"] != row["run_id"]].dropna(subset=["kid"])
    errors = np.hypot(others["kid_se"].fillna(0.0), row["kid_se"])
    low: pd.DataFrame = others[others["kid"] - row["kid"] <= NORMAL_90 * errors]
    return low
