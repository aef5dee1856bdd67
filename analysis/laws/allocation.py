"""How to spend a budget: compute-optimal sizes and models.

FLOPs are counted by `tarflow.cost`, not taken as 6ND, because attention costs up to a quarter of
a small model.
Legend: `R` draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.laws.average import Law
from analysis.laws.forms import Array
from analysis.laws.intervals import LEVEL, NORMAL_90, Interval, interval_of
from analysis.laws.isoflop import IsoFlop
from analysis.laws.repetition import unique_tokens
from tarflow import cost
from tarflow.config import RunConfig, round_images
from tarflow.model_config import ModelConfig

DRAWS = 1000  # of a power law through the minima
CREDIBLE = 10.0  # largest ratio of the ends of an interval of the optimal size that is used
ROUNDING = 1.01  # ratio within which two sizes are equal
SPAN = float(np.log(1e4))  # in ln(params): sizes searched around those of the runs
SIZES = 300  # sizes among which the best one is searched, within SPAN


@dataclass(frozen=True)
class Allocation:
    """The compute-optimal model of one budget."""

    flops: float
    source: str  # "surface law", "IsoFLOP minima" or "best run"
    params: float  # continuous optimum, intervals 90%
    params_interval: Interval
    tokens: float
    tokens_interval: Interval
    bpd: float | None  # predicted for the buildable model; None without a surface law
    bpd_interval: Interval | None
    channels: int  # nearest buildable model by parameters
    blocks: int
    layers: int  # in each block; the rounded mean if they differ
    layer_split: str  # layers of each block, such as 1-1-1-13, if they differ
    model_params: int  # of the buildable model
    images: int  # of the buildable model, whole batches
    epochs: float  # passes over the training set; 0 if its size is unknown
    extrapolated: bool  # size or FLOPs beyond the runs of the study
    edge: str  # "" or why the optimum is only a bound
    caution: str  # "" or that the interval of the bits per dimension lies beyond the roll-outs


@dataclass(frozen=True, eq=False)
class Sizes:
    """The models that can be built: one model at every multiple of its head width."""

    model: ModelConfig

    def widths(self, params: float) -> NDArray[np.int_]:
        """Return all widths up to the first one with at least `params` parameters."""
        return np.arange(1, self._heads(params) + 1) * self.model.head_dim

    def _heads(self, params: float) -> int:
        """Return a number of heads, less than twice too many, that gives `params` parameters."""
        count = 1
        while cost.params(self.build(count * self.model.head_dim)) < params:
            count *= 2
        return count

    def build(self, channels: int) -> ModelConfig:
        """Return the model of a width."""
        return replace(self.model, channels=int(channels))

    def nearest(self, params: float) -> ModelConfig:
        """Return the model whose parameters are nearest by ratio."""
        models = [self.build(width) for width in self.widths(params)]
        return min(models, key=lambda model: abs(np.log(cost.params(model) / params)))

    def flops_per_token(self, params: Array) -> Array:
        """Return training FLOPs per token at any size, between buildable ones by interpolation."""
        widest = self._heads(params.max()) * self.model.head_dim
        widths = np.unique(np.geomspace(1, widest, 60).round().astype(int))
        # Widths between multiples of the head width cannot be built; their cost is still a number.
        any_width = replace(self.model, head_dim=1, positions="learned")  # of the same cost
        models = [replace(any_width, channels=int(width)) for width in widths]
        # Draws of few runs reach sizes whose parameters fill no integer of numpy.
        x = np.log([float(cost.params(model)) for model in models])
        y = np.log([cost.training_flops(model) / model.tokens for model in models])
        return np.exp(np.interp(np.log(params), x, y))


def allocate(
    flops: float,
    runs: pd.DataFrame,
    template: RunConfig,
    surface: Law | None,
    isoflops: Sequence[IsoFlop],
    seed: int = 0,
) -> Allocation:
    """Choose size and images for a budget by the best source the study offers.

    That is the surface law if its optimum is known within a factor of ten; otherwise the power law
    through the IsoFLOP minima inside their range, if there are two or more; otherwise the best
    size of the largest budget. It is never smaller than the smallest model trained.

    Args:
        flops: The budget, in training FLOPs.
        runs: Rows with run_id, params, flops, bpd and `budget`.
        template: Run whose model is widened or narrowed, and whose batch is kept.
        surface: L(N, D), or None.
        isoflops: Minima of the study.
        seed: Seed of the draws.
    """
    sizes = Sizes(template.model)
    draws = None
    if surface is not None and surface.known:
        draws = optimal_params(surface.untied, flops, sizes.flops_per_token)
    source, edge = "surface law", ""
    if draws is None or not credible(interval_of(draws[1:])):
        source = "IsoFLOP minima"
        draws = _minima_draws(flops, isoflops, seed)
    elif surface is not None:
        beyond = max(0.0, float(np.log(flops / runs["flops"].max())))
        spread = np.log(draws / draws[0]) * surface.discrepancy.widening(beyond)
        draws = draws[0] * np.exp(np.clip(spread, -SPAN, SPAN))  # the rest is no model
    if draws is None:
        source = "best run"
        best = best_run(runs)
        draws = np.array([float(best["params"])])
        edge = next((i.edge for i in isoflops if str(best["run_id"]) in i.run_ids), "")
        edge = edge and f"the {edge} size tried may be the best: the optimum may lie beyond it"
    smallest = float(runs["params"].min())
    if draws[0] < smallest / ROUNDING:
        edge = "the smallest model trained, because the optimum is smaller than any that was"
    draws = np.maximum(draws, smallest)
    params = draws[0]
    tokens = flops / sizes.flops_per_token(draws)
    model = sizes.nearest(params)
    images = round_images(flops / cost.training_flops(model), template.batch)
    bpd, interval, caution = None, None, ""
    if surface is not None:
        at = {"params": [cost.params(model)], "tokens": [images * model.tokens]}
        low, high = surface.band(LEVEL, **at)
        bpd, interval = float(surface.predict(**at)[0]), (float(low[0]), float(high[0]))
        caution = surface.discrepancy.caution(float(np.log(flops / runs["flops"].max())))
    return Allocation(
        flops=flops,
        source=source,
        params=float(params),
        params_interval=interval_of(draws[1:]),
        tokens=float(tokens[0]),
        tokens_interval=interval_of(tokens[1:]),
        bpd=bpd,
        bpd_interval=interval,
        channels=model.channels,
        blocks=model.blocks,
        layers=model.mean_layers,
        layer_split=model.layer_split,
        model_params=cost.params(model),
        images=images,
        epochs=images * model.tokens / unique_tokens(runs),
        extrapolated=bool(
            flops > 1.2 * runs["flops"].max()
            or not smallest / ROUNDING <= params <= ROUNDING * runs["params"].max()
        ),
        edge=edge,
        caution=caution,
    )


def best_run(runs: pd.DataFrame) -> "pd.Series[Any]":
    """Return the row with the lowest BPD of the largest budget."""
    largest = runs[runs["budget"] == runs["budget"].max()]
    best: pd.Series[Any] = largest.sort_values(["bpd", "run_id"]).iloc[0]
    return best


def optimal_params(law: Law, flops: float, flops_per_token: Callable[[Array], Array]) -> Array:
    """Return the best size at a budget, (1 + R,): of the law, then of each of its draws.

    The search is numeric, because the closed form holds for one form and 6 N D only.

    Args:
        law: A law of params and tokens.
        flops: The budget, in training FLOPs.
        flops_per_token: Training FLOPs per token by size.
    """
    middle = float(np.log(law.data.inputs["params"]).mean())
    step = 2 * SPAN / (SIZES - 1)
    # With repeated data, far more compute may call for a model that is larger by as much.
    beyond = max(0.0, float(np.log(flops / 6)) - law.general.reach)
    grid = middle - SPAN + step * np.arange(SIZES + int(beyond / step))
    params = np.exp(grid)
    value = law.predict_draws(params=params, tokens=flops / flops_per_token(params))
    best = np.clip(value.argmin(axis=1), 1, len(grid) - 2)
    rows = np.arange(len(value))
    left, mid, right = (value[rows, best + step] for step in (-1, 0, 1))
    bend = left - 2 * mid + right
    shift = np.where(bend > 0, (left - right) / 2 / np.where(bend > 0, bend, 1.0), 0.0)
    optimum: Array = np.exp(grid[best] + np.clip(shift, -1, 1) * step)
    return optimum


def credible(interval: Interval) -> bool:
    """Tell whether an interval of the optimal size is narrow enough to be used."""
    low, high = interval
    return high <= CREDIBLE * low


def _minima_draws(flops: float, isoflops: Sequence[IsoFlop], seed: int) -> Array | None:
    """Return sizes from ln N = c + s ln C through the bracketed minima, (1 + R,)."""
    inside = [item for item in isoflops if not item.edge]
    if len(inside) < 2:
        return None
    x = np.log([item.flops for item in inside])
    y = np.log([item.params for item in inside])
    ends = np.log([np.clip(i.params_interval, i.params / 10, i.params * 10) for i in inside])
    spread = (ends[:, 1] - ends[:, 0]) / 2 / NORMAL_90
    error = np.random.default_rng(seed).standard_normal((DRAWS, len(x))) * spread
    drawn = np.concatenate([y[None], y + error])
    slope = (
        (drawn - drawn.mean(axis=1, keepdims=True)) @ (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    )
    slope = np.clip(slope, 0, 1)  # more compute never calls for fewer parameters or fewer tokens
    sizes: Array = np.exp(drawn.mean(axis=1) + slope * (np.log(flops) - x.mean()))
    return sizes
