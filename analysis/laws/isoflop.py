"""The best size of one budget: the minimum of a parabola through its runs.

Legend: `R` draws.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.laws.forms import Array
from analysis.laws.intervals import Interval, interval_of

DRAWS = 1000  # of an IsoFLOP minimum


@dataclass(frozen=True)
class IsoFlop:
    """A parabola through the runs of one budget: bpd against ln(params)."""

    flops: float
    run_ids: tuple[str, ...]
    sizes: int  # different parameter counts
    coefficients: tuple[float, float, float]  # bpd = c0 + c1 x + c2 x^2, x = ln(params / centre)
    centre: float  # params at x = 0
    params: float  # at the minimum; the best size tried when `edge` is set
    params_interval: Interval  # 90%; (0, inf) if the noise is unknown
    tokens: float  # at the minimum
    bpd: float  # at the minimum
    edge: str  # "" inside the range; "smallest" or "largest": the minimum is not bracketed

    def predict(self, params: ArrayLike) -> NDArray[np.float64]:
        """Return the parabola's bits per dimension."""
        x = np.log(np.asarray(params, dtype=float) / self.centre)
        c0, c1, c2 = self.coefficients
        return np.asarray(c0 + c1 * x + c2 * x * x, dtype=float)


def isoflop(runs: pd.DataFrame, noise: float | None = None, seed: int = 0) -> IsoFlop | None:
    """Fit a parabola to the runs of one budget; None with fewer than three sizes.

    Args:
        runs: Rows with run_id, params, tokens, flops and bpd.
        noise: Known standard deviation between equal runs, in bits per dimension.
        seed: Seed of the draws of the interval.
    """
    runs = runs.sort_values(["params", "run_id"])
    params, bpd = runs["params"].to_numpy(float), runs["bpd"].to_numpy(float)
    sizes = np.unique(params)
    if len(sizes) < 3:
        return None
    centre = float(np.exp(np.log(sizes).mean()))
    x = np.log(params / centre)
    design = np.stack([np.ones_like(x), x, x * x], axis=1)
    solve = np.linalg.pinv(design)
    coefficients = solve @ bpd
    means = [float(bpd[params == size].mean()) for size in sizes]
    best = int(np.argmin(means))
    free = len(bpd) - 3
    scale = noise or 0.0
    if free > 0:
        scale = max(scale, float(np.sqrt(np.sum((bpd - design @ coefficients) ** 2) / free)))
    edge = {0: "smallest", len(sizes) - 1: "largest"}.get(best, "")
    low, high = float(np.log(sizes[0] / centre)), float(np.log(sizes[-1] / centre))
    vertex = _vertex(coefficients[:, None], low, high)[0]
    if not edge and vertex in (low, high):
        edge = "smallest" if vertex == low else "largest"
    at = float(np.log(sizes[best] / centre)) if edge else vertex
    interval = (0.0, float("inf"))
    if scale > 0:
        error = np.random.default_rng(seed).standard_normal((len(bpd), DRAWS)) * scale
        drawn = _vertex(solve @ ((design @ coefficients)[:, None] + error), low, high)
        ends = interval_of(drawn)
        interval = (float(centre * np.exp(ends[0])), float(centre * np.exp(ends[1])))
    flops = float(np.exp(np.log(runs["flops"].to_numpy(float)).mean()))
    per_token = np.log(runs["flops"].to_numpy(float) / runs["tokens"].to_numpy(float))
    size = centre * np.exp(at)
    return IsoFlop(
        flops=flops,
        run_ids=tuple(runs["run_id"]),
        sizes=len(sizes),
        coefficients=(float(coefficients[0]), float(coefficients[1]), float(coefficients[2])),
        centre=centre,
        params=float(size),
        params_interval=interval,
        tokens=float(flops / np.exp(np.interp(at, x, per_token))),
        bpd=means[best] if edge else float(coefficients @ [1, at, at * at]),
        edge=edge,
    )


def _vertex(coefficients: Array, low: float, high: float) -> Array:
    """Return where parabolas with coefficients (3, R) are least within [low, high], (R,)."""
    c0, c1, c2 = coefficients
    inside = np.clip(-c1 / (2 * np.where(c2 > 0, c2, np.inf)), low, high)
    falling = (c0 + c1 * high + c2 * high**2) < (c0 + c1 * low + c2 * low**2)
    return np.asarray(np.where(c2 > 0, inside, np.where(falling, high, low)), dtype=float)
