"""How to spend a budget: compute-optimal sizes, IsoFLOP minima and the next run."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Interval = tuple[float, float]


@dataclass(frozen=True)
class IsoFlop:
    """A parabola through the runs of one budget: bpd against ln(params)."""

    flops: float
    run_ids: tuple[str, ...]
    sizes: int  # different parameter counts
    coefficients: tuple[float, float, float]  # bpd = c0 + c1 x + c2 x^2, x = ln(params / centre)
    centre: float  # params at x = 0
    params: float  # at the minimum; the best size tried when `edge` is set
    params_interval: Interval  # 90%
    tokens: float  # at the minimum
    bpd: float  # at the minimum
    edge: str  # "" inside the range; "smallest" or "largest": the minimum is not bracketed

    def predict(self, params: ArrayLike) -> NDArray[np.float64]:
        """Return the parabola's bits per dimension."""
        x = np.log(np.asarray(params, dtype=float) / self.centre)
        c0, c1, c2 = self.coefficients
        return c0 + c1 * x + c2 * x * x


@dataclass(frozen=True)
class Allocation:
    """The compute-optimal model of one budget."""

    flops: float
    source: str  # "surface law", "IsoFLOP minima" or "best run"
    params: float  # continuous optimum, intervals 90%
    params_interval: Interval
    tokens: float
    tokens_interval: Interval
    bpd: float | None  # predicted; None without a law
    bpd_interval: Interval | None
    channels: int  # nearest buildable model by counted FLOPs
    blocks: int
    layers: int
    model_params: int  # of the buildable model
    images: int  # of the buildable model, whole batches
    extrapolated: bool  # params or FLOPs beyond the runs of the study
    edge: str  # "" or why the optimum is only a bound
