"""Count how often the interval of an IsoFLOP minimum contains the true best size.

Each planted study has four budgets that grow by half a decade, six sizes over a 45-fold range at
each, and a law E + A / N^a + B / D^b on 6ND. Its noise is estimated from three runs of one
config. The sizes lie around the best one (centred), a factor of 3 or 5 above it (large, too large)
or below it (small, too small), stay the same for all budgets (fixed), or drift from a factor of 3
below to a factor of 3 above. With a factor of 5, the best size is near the first or last one
tried. Minima at the edge have bounds instead of intervals and are counted separately.

Run with OMP_NUM_THREADS=1: `python benchmarks/isoflop_intervals.py`; a minute or two.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.laws.isoflop import IsoFlop, isoflop

STUDIES, BUDGETS, SIZES, RANGE = 200, 4, 6, 45.0
LAWS = {"a = b": (0.4, 0.4), "a > b": (0.5, 0.28), "a < b": (0.28, 0.5)}
NOISES = (0.002, 0.005, 0.01)  # relative
GRIDS = ("centred", "large", "small", "fixed", "drifting", "too large", "too small")


@dataclass(frozen=True)
class Law:
    """1.2 + 0.3 (n^-a + d^-b): n and d are parameters and tokens, over reference values."""

    a: float
    b: float

    def __call__(self, size: np.ndarray, budget: float) -> np.ndarray:
        """Return losses at ln(n) and a budget ln(n d)."""
        return np.asarray(
            1.2 + 0.3 * np.exp(-self.a * size) + 0.3 * np.exp(-self.b * (budget - size))
        )

    def best(self, budget: float) -> float:
        """Return the ln(n) of the lowest loss."""
        return float((np.log(self.a / self.b) + self.b * budget) / (self.a + self.b))


def study(law: Law, grid: str, noise: float, seed: int) -> Iterator[tuple[float, IsoFlop]]:
    """Return the true ln(n) and the minimum at every budget of a planted study."""
    rng = np.random.default_rng(seed)
    steps = np.log(RANGE) * np.linspace(-0.5, 0.5, SIZES)
    steps += (steps[1] - steps[0]) * rng.uniform(-0.5, 0.5)
    known = noise * law(np.array(law.best(0)), 0) * np.sqrt(rng.chisquare(2) / 2)
    budgets = 0.5 * np.log(10) * np.arange(BUDGETS)
    shifts = {
        "centred": np.zeros(BUDGETS),
        "large": np.full(BUDGETS, np.log(3)),
        "small": np.full(BUDGETS, -np.log(3)),
        "too large": np.full(BUDGETS, np.log(5)),
        "too small": np.full(BUDGETS, -np.log(5)),
        "fixed": law.best(budgets.mean()) - np.array([law.best(budget) for budget in budgets]),
        "drifting": np.log(3) * np.linspace(-1, 1, BUDGETS),
    }
    for budget, shift in zip(budgets, shifts[grid], strict=True):
        size = law.best(budget) + shift + steps
        bpd = law(size, budget) * np.exp(noise * rng.standard_normal(SIZES))
        columns = {"params": np.exp(size), "tokens": np.exp(budget - size), "bpd": bpd}
        runs = pd.DataFrame(columns | {"flops": 6 * np.exp(budget), "run_id": np.arange(SIZES)})
        minimum = isoflop(runs, float(known), freedom=2)
        assert minimum
        yield law.best(budget), minimum


def main() -> None:
    """Print coverage, the share at the edge, the median error, and how often bounds hold."""
    print("cover: share of 90% intervals that hold the best size; bounds: the same at the edge")
    print("width: ratio of the ends of the interval; error: of the size at the minimum (medians)")
    print("noise  grid      law    cover  at the edge  bounds  width  error")
    for noise in NOISES:
        for grid in GRIDS:
            for name, exponents in LAWS.items():
                law = Law(*exponents)
                pairs = [pair for seed in range(STUDIES) for pair in study(law, grid, noise, seed)]
                print(f"{noise:5.1%}  {grid:9} {name:6}", _line(pairs), flush=True)


def _line(pairs: list[tuple[float, IsoFlop]]) -> str:
    held = np.array(
        [i.params_interval[0] <= np.exp(truth) <= i.params_interval[1] for truth, i in pairs]
    )
    edge = np.array([bool(item.edge) for _, item in pairs])
    found = [(truth, item) for truth, item in pairs if not item.edge]
    widths = [item.params_interval[1] / item.params_interval[0] for _, item in found]
    errors = [item.params / np.exp(truth) - 1 for truth, item in found]
    bounds = f"{held[edge].mean():.2f}" if edge.any() else "-"
    return (
        f"{held[~edge].mean():6.2f} {edge.mean():12.0%} {bounds:>7} "
        f"{np.median(widths):6.2f} {np.median(errors):+6.1%}"
    )


if __name__ == "__main__":
    main()
