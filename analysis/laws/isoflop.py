"""The best size of one budget: the minimum of a curve through its runs.

The curve is a parabola in x = ln(params / best size tried), fitted to the sizes near the best one.
A law E + A / N^a + B / D^b is not quite a parabola: at its minimum, its third derivative is
(b - a) times the second, and its fourth (a^2 - ab + b^2) times. The curve therefore has a cubic
and a quartic term, held to the sizes that exponents of 0.25 to 0.5 give them. A plain parabola
puts the minimum of a skewed law a tenth off, with an interval that does not know it.
Legend: `n` runs, `G` places along x.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.polynomial.polynomial import polyder, polyroots, polyval, polyvander
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from analysis.laws.forms import Array
from analysis.laws.intervals import TAIL, Interval

FACTOR = 10.0  # sizes farther than this from the best size tried are left out
FEWEST = 5  # sizes that are kept however far away they are
BENDS = (0.07, 0.015)  # standard deviations of c3 / c2 and c4 / c2 over laws
PLACES = 1000  # at which the slope is tested


@dataclass(frozen=True)
class IsoFlop:
    """A curve through the runs of one budget: bpd against ln(params)."""

    flops: float
    run_ids: tuple[str, ...]
    sizes: int  # different parameter counts
    coefficients: tuple[float, ...]  # bpd = sum of c_i x^i, x = ln(params / centre)
    centre: float  # params at x = 0: the best size tried
    fitted: tuple[float, float]  # smallest and largest params that the curve is fitted to
    params: float  # at the minimum; with `edge`, the best size tried, which is no estimate
    params_interval: Interval  # 90%, (0, inf) if the noise is unknown; with `edge`, one-sided
    tokens: float  # at `params`
    bpd: float  # at `params`
    edge: str  # "", or which size tried may be the best: smallest, largest, smallest or largest

    def predict(self, params: ArrayLike) -> NDArray[np.float64]:
        """Return the bits per dimension of the curve."""
        x = np.log(np.asarray(params, dtype=float) / self.centre)
        return np.asarray(polyval(x, self.coefficients), dtype=float)


def isoflop(
    runs: pd.DataFrame, noise: float | None = None, freedom: float = np.inf
) -> IsoFlop | None:
    """Find the best size of one budget; None with fewer than three sizes.

    The interval holds the sizes at which the slope of the curve may be zero (Fieller 1954). The
    minimum is found if the curve falls at the smallest size and rises at the largest, both beyond
    the noise. Otherwise it is at the edge, and its interval has one end, or none.

    Args:
        runs: Rows with run_id, params, tokens, flops and bpd.
        noise: Standard deviation between equal runs, in bits per dimension; None if unknown.
        freedom: Degrees of freedom of `noise`; infinite if it is exact.
    """
    runs = runs.sort_values(["params", "run_id"])
    params, bpd = runs["params"].to_numpy(float), runs["bpd"].to_numpy(float)
    sizes = np.unique(params)
    if len(sizes) < 3:
        return None
    means = [float(bpd[params == size].mean()) for size in sizes]
    best = int(np.argmin(means))
    x = np.log(params / sizes[best])
    reach = max(np.log(FACTOR), np.sort(np.abs(np.log(sizes / sizes[best])))[:FEWEST][-1])
    near = np.abs(x) <= reach
    curve = _fit(x[near], bpd[near], noise, freedom)
    places = np.linspace(x[near][0], x[near][-1], PLACES)
    sign = curve.slope_signs(places)
    falls, rises = bool(sign[0] < 0 < best), bool(sign[-1] > 0 and best < len(sizes) - 1)
    edge = " or ".join(["smallest"] * (not falls) + ["largest"] * (not rises))
    at = 0.0 if edge else curve.minimum(places)
    level = places[sign == 0] if (sign == 0).any() else np.array([at])
    low, high = sizes[best] * np.exp(level[[0, -1]])
    known = curve.freedom > 0
    flops = float(np.exp(np.log(runs["flops"].to_numpy(float)).mean()))
    per_token = np.log(runs["flops"].to_numpy(float) / runs["tokens"].to_numpy(float))
    return IsoFlop(
        flops=flops,
        run_ids=tuple(runs["run_id"]),
        sizes=len(sizes),
        coefficients=tuple(curve.coefficients.tolist()),
        centre=float(sizes[best]),
        fitted=(float(params[near][0]), float(params[near][-1])),
        params=float(sizes[best] * np.exp(at)),
        params_interval=(
            float(low) if falls and known else 0.0,
            float(high) if rises and known else float("inf"),
        ),
        tokens=float(flops / np.exp(np.interp(at, x, per_token))),
        bpd=means[best] if edge else float(polyval(at, curve.coefficients)),
        edge=edge,
    )


@dataclass(frozen=True, eq=False)
class _Curve:
    """A quartic and the covariance of its coefficients, zero if the noise is unknown."""

    coefficients: Array  # (5,)
    covariance: Array  # (5, 5)
    freedom: float  # degrees of freedom of the covariance

    def slope_signs(self, places: Array) -> Array:
        """Return the sign of the slope, (G,); 0 where noise may have made the slope."""
        rows = polyvander(places, 3) @ np.eye(4, 5, 1) * np.arange(5)
        slope = rows @ self.coefficients
        error = np.sqrt(np.sum(rows @ self.covariance * rows, axis=1))
        margin = student.ppf(1 - TAIL, self.freedom) if self.freedom else 0.0
        return np.where(np.abs(slope) > margin * error, np.sign(slope), 0.0)

    def minimum(self, places: Array) -> float:
        """Return the least point of the curve between the first place and the last."""
        turns = polyroots(polyder(self.coefficients))
        inside = [x.real for x in turns if places[0] <= x.real <= places[-1]]
        points = np.array([*inside, places[0], places[-1]])
        return float(points[np.argmin(polyval(points, self.coefficients))])


def _fit(x: Array, bpd: Array, noise: float | None, freedom: float) -> _Curve:
    """Fit the curve to runs at x (n,)."""
    rows, free = polyvander(x, 4), len(x) - 3
    known = 0.0 if noise is None else freedom
    parabola = np.linalg.lstsq(rows[:, :3], bpd, rcond=None)[0]
    misfit = float(np.sum((bpd - rows[:, :3] @ parabola) ** 2))
    scale = _pooled(noise, known, misfit, free)
    # A bound on a term is one more row: its error, relative to noise, of an observed 0.
    bend = max(parabola[2], 1e-6 * float(np.ptp(bpd)))
    bounds = np.diag(max(scale, 1e-6 * bend) / bend / np.array([*BENDS]))
    rows = np.vstack([rows, np.pad(bounds, ((0, 0), (3, 0)))])
    bpd = np.append(bpd, np.zeros(len(BENDS)))
    inverse = np.linalg.pinv(rows)
    coefficients = inverse @ bpd
    misfit = float(np.sum((bpd - rows @ coefficients) ** 2))
    scale = _pooled(noise, known, misfit, free)
    return _Curve(coefficients, inverse @ inverse.T * scale**2, known + free)


def _pooled(noise: float | None, known: float, misfit: float, free: int) -> float:
    """Return the standard deviation of a run, from equal runs and from a sum of squares."""
    if noise is None or np.isinf(known):
        return noise or np.sqrt(misfit / max(free, 1))
    return float(np.sqrt((known * noise**2 + misfit) / (known + free)))
