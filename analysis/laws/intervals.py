"""Intervals of estimates: central, 90% unless a level is given.

Legend: `R` draws, `m` quantities.
"""

import numpy as np

from analysis.laws.forms import Array

Interval = tuple[float, float]

LEVEL = 0.9  # probability of every interval that names no other
TAIL = (1 - LEVEL) / 2  # probability on either side of it
NORMAL_90 = 1.6449  # half width of a 90% interval in standard deviations


def interval_ends(draws: Array, level: float = LEVEL) -> tuple[Array, Array]:
    """Return the lower and upper ends (m,) of the central interval of draws (R, m)."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def interval_of(draws: Array, level: float = LEVEL) -> Interval:
    """Return the central interval of draws (R,); unbounded if there are none."""
    if not len(draws):
        return -np.inf, np.inf
    low, high = interval_ends(draws, level)
    return float(low), float(high)
