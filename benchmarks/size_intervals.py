"""Count how often the interval of the compute-optimal size contains the true size.

Each planted study has six sizes at three budgets, three seeds at one point, and its own law:
exponents drawn from 0.25 to 0.5, both terms raised to a power of 0.8 to 1.4, a relative noise of
0.2%. The interval is that of the best size at 4 times the largest budget. One form's bootstrap is
compared with the draws of all forms that the roll-outs cannot distinguish.

Run with OMP_NUM_THREADS=1: `python benchmarks/size_intervals.py`; a minute or so.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.laws.allocation import Allocation, Sizes, allocate
from analysis.laws.fit import Observations, fit
from analysis.laws.forms import SURFACE_FORMS
from analysis.laws.validation import roll_out, score
from tarflow import cost
from tarflow.config import ModelConfig, RunConfig

MODEL = ModelConfig(image_size=28, patch=4, channels=32, head_dim=8, layers=1)
WIDTHS, BUDGETS = (8, 16, 24, 32, 48, 64), (4e10, 1.26e11, 4e11)
STUDIES, GROWTH, NOISE, DRAWS = 20, 4, 0.002, 300


@dataclass(frozen=True)
class Law:
    """The true law of a planted study."""

    a: float
    b: float
    g: float

    @classmethod
    def of(cls, seed: int) -> "Law":
        """Draw a law from a seed."""
        rng = np.random.default_rng([seed, 1])
        a, b = rng.uniform(0.25, 0.5, 2)
        return cls(float(a), float(b), float(rng.uniform(0.8, 1.4)))

    def __call__(self, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return bits per dimension; both terms are 0.3 at the middle of the study."""
        size, data = (5e4 / params) ** self.a, (4e5 / tokens) ** self.b
        return np.asarray(1.2 + 0.6 * ((size + data) / 2) ** self.g)

    def best_size(self, flops: float) -> float:
        """Return the size with the lowest loss at a budget of counted FLOPs."""
        params = np.geomspace(1e3, 1e8, 20_000)
        tokens = flops / Sizes(MODEL).flops_per_token(params)
        return float(params[np.argmin(self(params, tokens))])


def table(law: Law, seed: int) -> pd.DataFrame:
    """Return the runs of a study."""
    rng = np.random.default_rng([seed, 2])
    points = [(width, budget) for budget in BUDGETS for width in WIDTHS]
    rows: list[dict[str, float | str]] = []
    for width, budget in [*points, (24, BUDGETS[1]), (24, BUDGETS[1])]:
        model = replace(MODEL, channels=width)
        params, tokens = cost.params(model), budget / cost.training_flops(model) * model.tokens
        rows.append(
            {"run_id": str(len(rows)), "params": params, "tokens": tokens, "flops": budget}
        )
    runs = pd.DataFrame(rows)
    truth = law(runs["params"].to_numpy(float), runs["tokens"].to_numpy(float))
    noise = np.exp(NOISE * rng.standard_normal(len(runs)))
    return runs.assign(bpd=truth * noise, budget=[BUDGETS.index(flops) for flops in runs["flops"]])


def allocations(seed: int) -> tuple[float, Allocation, Allocation]:
    """Return the true size, and its allocation by one form and by all equally good forms."""
    law = Law.of(seed)
    runs = table(law, seed)
    data = Observations(
        {name: runs[name].to_numpy(float) for name in ("params", "tokens")},
        runs["bpd"].to_numpy(float),
        runs["run_id"].tolist(),
        NOISE,
    )
    axes = {name: runs[name].to_numpy(float) for name in ("flops", "params", "tokens")}
    rollouts = roll_out(SURFACE_FORMS, data, axes)
    fits = [fit(form, data, draws=DRAWS) for form in SURFACE_FORMS]
    scores = score(SURFACE_FORMS, fits, rollouts)
    chosen = next(fit for fit, item in zip(fits, scores, strict=True) if item.chosen)
    rivals = [fit for fit, item in zip(fits, scores, strict=True) if item.near and not item.chosen]
    flops = GROWTH * BUDGETS[-1]
    config = RunConfig(model=MODEL)
    alone = allocate(flops, runs, config, chosen, ())
    return law.best_size(flops), alone, allocate(flops, runs, config, chosen, (), rivals=rivals)


def main() -> None:
    """Print how often the intervals contain the true size, and how wide they are."""
    studies = [allocations(seed) for seed in range(STUDIES)]
    for name, index in (("one form", 0), ("forms that predict as well", 1)):
        estimates = [(truth, allocated[index]) for truth, *allocated in studies]
        laws = [(truth, item) for truth, item in estimates if item.source == "surface law"]
        inside = sum(
            item.params_interval[0] <= truth <= item.params_interval[1] for truth, item in laws
        )
        widths = [item.params_interval[1] / item.params_interval[0] for _, item in laws]
        print(
            f"{name}: true size inside the 90% interval in {inside} of {len(laws)} studies, "
            f"ends a factor {np.median(widths):.2f} apart (median); "
            f"{len(studies) - len(laws)} studies do not determine the law"
        )


if __name__ == "__main__":
    main()
