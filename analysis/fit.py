"""Robust fits of the forms in `laws`, with intervals that say when a parameter is unknown."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law."""

    name: str  # of the form: "chinchilla", "tied", "gamma", "power", "power without floor"
    formula: str  # e.g. "E + A / N^a + B / D^b"
    status: str  # converged, bound-hit, multi-modal, rank-deficient or non-finite
    values: Mapping[str, float]  # natural parameters by name (E, A, a, ...)
    intervals: Mapping[str, Interval]  # 90% by bootstrap
    identified: Mapping[str, bool]
    reasons: Mapping[str, str]  # one plain sentence per parameter
    rows: int
    scale: float  # robust standard deviation of the residuals (log space: relative)
    residuals: NDArray[np.float64]  # (rows,) ln(achieved / predicted), or achieved - predicted
    agreement: float  # share of starts that ended at the best optimum
    discrepancy: float  # band widening per unit of ln(compute) beyond the data, from roll-outs

    def predict(self, **inputs: ArrayLike) -> NDArray[np.float64]:
        """Return the law's values: predict(flops=...) or predict(params=..., tokens=...)."""
        raise NotImplementedError

    def band(
        self, level: float = 0.9, **inputs: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the lower and upper end of the predictive band."""
        raise NotImplementedError
