"""How far equal runs differ, drawn as uncertain as the rows leave it.

The residuals of a law give the size of the noise, how fast it falls with compute, and how much of
it rows of one run share. None of the three is taken as known: each draw of the errors takes values
that are as probable as these residuals make them (restricted likelihood, Patterson and Thompson
1971), so that few rows give Student's wide intervals, and checkpoints of one run do not count as
runs of their own.
Legend: `n` rows, `p` parameters, `R` draws.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.laws.forms import Array

# Variance of the mean of a run's rows, over that of as many rows of different runs. Each is as
# probable before the residuals are seen. Those below 1 keep intervals exact where rows share
# nothing: half of such tables show a ratio below 1.
RATIOS = tuple(2.0**power for power in range(-3, 15))
FALLS = (-0.4, -0.2, 0.0, 0.2, 0.4)  # powers of compute: noise proportional to compute^-fall
STEADY = 0.2  # standard deviation of the power expected before the residuals are seen
WILD = 3.0  # residuals count as no larger than this many robust standard deviations
LEAST_ROBUST = 5  # spare rows from which a wild residual can be told


@dataclass(frozen=True, eq=False)
class Noise:
    """Draws of the errors of the rows, and of the standard deviation of any other run."""

    errors: Array  # (R, n)
    scale: Array  # (R,) standard deviation at the middle of the rows' compute
    fall: Array  # (R,)
    middle: float  # mean ln(compute) of the rows
    ends: tuple[float, float]  # of ln(compute); beyond them, the noise stays as it is there

    def at(self, compute: Array) -> Array:
        """Return standard deviations (R, m) of runs of ln(compute) (m,)."""
        beyond = np.clip(compute, *self.ends) - self.middle
        falls, which = np.unique(self.fall, return_inverse=True)  # few: see FALLS
        return self.scale[:, None] * np.exp(-falls[:, None] * beyond)[which]

    def take(self, count: int) -> "Noise":
        """Return the first draws."""
        return Noise(
            self.errors[:count], self.scale[:count], self.fall[:count], self.middle, self.ends
        )


@dataclass(frozen=True)
class Known:
    """What is known of the noise besides the residuals: equal runs differ by this much."""

    std: float
    freedom: float  # degrees of freedom it was measured with; inf if it is exact


NOTHING_KNOWN = Known(0.0, 0.0)


def draw_noise(
    residuals: Array,
    columns: Array,
    compute: Array,
    *,
    clusters: NDArray[np.intp],
    weights: Array,
    known: Known,
    draws: int,
    rng: np.random.Generator,
) -> Noise | None:
    """Draw the errors of the rows.

    Args:
        residuals: (n,) of the fitted law.
        columns: (p, n) derivatives of the law with respect to its free parameters.
        compute: (n,) ln(compute).
        clusters: (n,) number of the run of each row.
        weights: (n,) how often each row counts.
        known: What is known besides.
        draws: R.
        rng: Source of random numbers.

    Returns:
        The draws; None if neither spare rows nor equal runs tell the noise.
    """
    p, n = columns.shape
    spare = max(n - p, 0)
    if not spare and not known.freedom:
        return None
    middle, ends = float(compute.mean()), (float(compute.min()), float(compute.max()))
    along = compute - middle
    scaled = tamed(residuals, spare) * np.sqrt(weights)
    cells, chances = _plausible(scaled, columns * np.sqrt(weights), along, clusters, known, spare)
    cell = cells[rng.choice(len(cells), draws, p=chances)]
    shared, fall, squares = cell[:, 0], cell[:, 1], cell[:, 2]
    if np.isinf(known.freedom):
        scale = np.full(draws, max(known.std, float(np.sqrt(squares.mean() / max(spare, 1)))))
    else:
        total = squares + known.freedom * known.std**2
        scale = np.sqrt(total / rng.chisquare(spare + known.freedom, draws))
    errors = rng.standard_normal((draws, n))  # changed in place: of a long table, they are large
    for value in np.unique(shared[shared != 0]):
        rows = shared == value
        errors[rows] = _correlated(errors[rows], float(value), clusters)
    noise = Noise(errors, scale, fall, middle, ends)
    errors *= noise.at(compute)
    errors /= np.sqrt(weights)
    return noise


def tamed(residuals: Array, spare: int) -> Array:
    """Return residuals (n,) of which none is wild; with few spare rows, as they are."""
    if spare < LEAST_ROBUST:
        return residuals
    absorbed = np.sqrt(len(residuals) / spare)  # parameters make residuals smaller than errors
    limit = WILD * 1.4826 * absorbed * float(np.median(np.abs(residuals)))
    return np.clip(residuals, -limit, limit) if limit > 0 else residuals


def _plausible(
    residuals: Array,
    columns: Array,
    along: Array,
    clusters: NDArray[np.intp],
    known: Known,
    spare: int,
) -> tuple[Array, Array]:
    """Return (shared, fall, sum of squares) of every combination (m, 3), and its chance (m,)."""
    members = np.bincount(clusters)
    largest = int(members.max())
    alone = largest == 1 or not spare
    ratios = (1.0,) if alone else RATIOS
    falls = FALLS if np.ptp(along) > 0 and spare else (0.0,)
    cells = []
    for fall in falls:
        size = np.exp(-fall * along)
        rows = np.vstack([residuals, columns]) / size
        for ratio in ratios:
            shared = (ratio - 1) / (ratio + largest - 1)  # of the variance, by rows of one run
            white = _whitened(rows, shared, clusters)
            basis, triangle = np.linalg.qr(white[1:].T)
            left = white[0] - basis @ (basis.T @ white[0])
            squares = float(left @ left) + known.std**2 * min(known.freedom, 1e6)
            volume = np.log(np.maximum(np.abs(np.diag(triangle)), 1e-300)).sum()
            own, common = np.log1p(-shared), np.log1p(shared * (members[members > 0] - 1))
            spread = ((len(along) - len(common)) * own + common.sum()) / 2 + np.log(size).sum()
            fit = (spare + min(known.freedom, 1e6)) / 2 * np.log(max(squares, 1e-300))
            before = (fall / STEADY) ** 2 / 2
            cells.append((shared, fall, float(left @ left), -fit - volume - spread - before))
    table = np.array(cells)
    chances = np.exp(table[:, 3] - table[:, 3].max())
    return table[:, :3], chances / chances.sum()


def _whitened(rows: Array, shared: float, clusters: NDArray[np.intp]) -> Array:
    """Return rows (m, n) in coordinates where the errors of one run are independent."""
    if not shared:
        return rows
    means, size = _means(rows, clusters)
    moved = 1 - np.sqrt((1 - shared) / (1 - shared + size * shared))
    white: Array = (rows - moved * means) / np.sqrt(1 - shared)
    return white


def _correlated(errors: Array, shared: float, clusters: NDArray[np.intp]) -> Array:
    """Return errors (R, n) of which the rows of one run share a part: `_whitened` undone."""
    means, size = _means(errors, clusters)
    moved = 1 - np.sqrt((1 - shared + size * shared) / (1 - shared))
    return np.asarray((errors - moved * means) * np.sqrt(1 - shared))


def _means(rows: Array, clusters: NDArray[np.intp]) -> tuple[Array, NDArray[np.intp]]:
    """Return the mean of each row's run, (m, n), and the number of its rows, (n,)."""
    members = np.bincount(clusters)
    sums = np.stack([np.bincount(clusters, row, len(members)) for row in rows])
    return (sums / np.maximum(members, 1))[:, clusters], members[clusters]
