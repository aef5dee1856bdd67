"""What the users of a law see: values, and bands in which new runs fall.

Legend: `n` points, `R` draws.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from analysis.laws.extrapolation import Discrepancy
from analysis.laws.forms import Array
from analysis.laws.intervals import LEVEL, Interval, interval_ends
from analysis.laws.observations import Space
from tarflow.human import interval, number


class Predictor(ABC):
    """A law as its users see it: values, and bands in which new runs fall."""

    discrepancy: Discrepancy

    @property
    @abstractmethod
    def space(self) -> Space:
        """Whether residuals are those of the logarithm."""

    @abstractmethod
    def predict_draws(self, **inputs: ArrayLike) -> Array:
        """Return values (1 + R, n) at n points: of the law, then of each draw."""

    @abstractmethod
    def without_draws(self) -> Self:
        """Return the law without its draws, which tells values only."""

    @abstractmethod
    def noise_draws(self, **inputs: ArrayLike) -> Array:
        """Return the standard deviation (R, n) of one run at n points, of each draw."""

    @abstractmethod
    def distance(self, **inputs: ArrayLike) -> Array:
        """Return ln(compute / largest compute of the data) of each point, 0 within the data."""

    def predict(self, **inputs: ArrayLike) -> Array:
        """Return the law's values: predict(flops=...) or predict(params=..., tokens=...).

        Tokens are those seen, repeats counted; the law knows what repeats are worth. Points with
        another training set than the rows give its size, predict(..., unique_tokens=...). Inputs
        that the form does not read change nothing.
        """
        shape = np.broadcast_shapes(*(np.shape(column) for column in inputs.values()))
        value: Array = self.without_draws().predict_draws(**inputs)[0].reshape(shape)
        return value

    def band(self, level: float = LEVEL, **inputs: ArrayLike) -> tuple[Array, Array]:
        """Return the ends of the band in which one new run falls with probability `level`.

        It holds the spread of the draws and the noise of a run, wider or narrower as the
        roll-outs call for. If the noise is unknown, the band is unbounded.
        """
        shape = np.broadcast_shapes(*(np.shape(column) for column in inputs.values()))
        values, distance = self.predict_draws(**inputs), self.distance(**inputs)
        if len(values) == 1:
            return np.full(shape, -np.inf), np.full(shape, np.inf)
        values = np.log(values) if self.space == "log" else values
        unit = np.random.default_rng(0).standard_normal((len(values) - 1, 1))
        ends = np.stack(interval_ends(values[1:] + unit * self.noise_draws(**inputs), level))
        ends = values[0] + (ends - values[0]) * self.discrepancy.widening(distance)
        low, high = np.exp(ends) if self.space == "log" else ends
        return low.reshape(shape), high.reshape(shape)


def in_words(
    formula: str, rows: int, values: Mapping[str, float], intervals: Mapping[str, Interval]
) -> str:
    """Write a law as a line: its formula, and its parameters with their intervals."""
    parameters = (
        f"{name} = {number(value)} ({interval(intervals.get(name))})"
        for name, value in values.items()
    )
    return f"{formula}, fitted to {rows} rows: {', '.join(parameters)}"
