"""The lowest loss of every budget by one law, and the compute that reaches a loss.

Legend: `m` budgets, `R` draws.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analysis.laws.extrapolation import Discrepancy
from analysis.laws.forms import Array
from analysis.laws.intervals import LEVEL, interval_ends
from analysis.laws.predictor import Predictor

BEYOND = 100.0  # times the largest budget: how far a law is asked
STEPS = 80  # budgets of the grid; between them, logarithms are interpolated
SIZES = 100  # sizes among which the best one of a budget is searched


@dataclass(frozen=True, eq=False)
class Frontier:
    """The lowest loss of every budget, from the smallest of the runs to far beyond the largest."""

    flops: Array  # (m,) training FLOPs, ascending
    values: Array  # (1 + R, m) lowest loss: of the law, then of each of its draws; none rises
    largest: float  # training FLOPs of the largest run
    discrepancy: Discrepancy  # how much less certain the law is beyond that

    @property
    def known(self) -> bool:
        """Whether there are draws, so that intervals can be given."""
        return len(self.values) > 1

    def at(self, flops: ArrayLike) -> Array:
        """Return the lowest loss of budgets (n,): (1 + R, n), of the law, then of each draw."""
        x, grid = np.log(np.atleast_1d(np.asarray(flops, float))), np.log(self.flops)
        return np.stack([np.interp(x, grid, row) for row in self.values])

    def band(self, flops: ArrayLike) -> tuple[Array, Array]:
        """Return the 90% interval (n,) of the lowest loss of budgets, without the noise of runs.

        It widens beyond the runs as the law's roll-outs call for.
        """
        values = np.log(self.at(flops))
        ends = np.stack(interval_ends(values[1:], LEVEL))
        low, high = np.exp(values[0] + (ends - values[0]) * self._widening(flops))
        return low, high

    def compute_for(self, losses: ArrayLike) -> Array:
        """Return the training FLOPs that reach losses, (1 + R,): by the law, then by each draw.

        Infinite where the budgets of the grid do not reach a loss, and 0 where all of them do.
        Beyond the runs, draws lie as much farther from the law as its roll-outs call for.

        Args:
            losses: (1 + R,) one for the law and each draw, or a number for all.
        """
        grid = np.log(self.flops)
        each = np.broadcast_to(np.asarray(losses, float), len(self.values))
        logs = np.array([_crossing(*pair, grid) for pair in zip(each, self.values, strict=True)])
        if np.isfinite(logs[0]):
            logs[1:] = logs[0] + (logs[1:] - logs[0]) * self._widening(np.exp(logs[0]))
        reached: Array = np.exp(logs)
        return reached

    def _widening(self, flops: ArrayLike) -> Array:
        away = np.maximum(0.0, np.log(np.asarray(flops, float) / self.largest))
        return self.discrepancy.widening(away)


def frontier_of(
    law: Predictor,
    flops: tuple[float, float],
    params: tuple[float, float] | None = None,
    flops_per_token: Callable[[Array], Array] | None = None,
) -> Frontier:
    """Return the frontier of a law of compute, or of one of size and data at its best sizes.

    Args:
        law: The law.
        flops: Training FLOPs of the smallest and the largest run.
        params: Smallest and largest size of the runs, if the law reads sizes. Smaller models are
            not considered.
        flops_per_token: Training FLOPs per token by size, if the law reads sizes.
    """
    grid = np.geomspace(flops[0], BEYOND * flops[1], STEPS)
    if params is None or flops_per_token is None:
        values = law.predict_draws(flops=grid)
    else:
        sizes = np.geomspace(params[0], BEYOND * params[1], SIZES)
        price = flops_per_token(sizes)
        values = np.stack(
            [law.predict_draws(params=sizes, tokens=spent / price).min(axis=1) for spent in grid],
            axis=1,
        )
    falling = np.minimum.accumulate(values, axis=1)
    return Frontier(grid, falling, flops[1], law.discrepancy)


def _crossing(loss: float, falling: Array, grid: Array) -> float:
    """Return where a falling curve (m,) reaches a loss: -inf before the grid, inf after it."""
    if falling[0] <= loss:
        return -np.inf
    if falling[-1] > loss:
        return np.inf
    return float(np.interp(-loss, -falling, grid))
