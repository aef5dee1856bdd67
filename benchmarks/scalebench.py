"""How well a few chosen runs predict expensive ones, on the two tables of ScaleBench.

    python benchmarks/scalebench.py DIR [--inside]

DIR holds farseer_{train,test}.parquet and data_constrained_{train,test}.parquet of the repository
PlanarG/active-sl (Spend Less, Fit Better, arXiv 2604.22753). Runs of the training table are chosen
one after another by our rule until 1, 5 or 10% of the cost of all of them is spent (6 N D each);
only their inputs are known before. The law fitted to them predicts the test rows: R2, clipped to
[-1, 1], mean and standard deviation over seeds, which draw the first three runs.
Beside it: random runs, D-optimal runs (most information on the parameters and misfit per cost),
and all runs, with the same forms and the same fit.
The test rows are read for the score alone; with --inside they are not read at all, and expensive
rows of the training table stand in for them. Forms and constants were chosen that way.
"""

import argparse
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scalebench_forms import FARSEER, REPEATED, REPEATED_GAMMA, VARYING

from analysis.laws.belief import Belief, believe
from analysis.laws.forms import Array, Form
from analysis.laws.next_runs import WORTHWHILE, observe, reductions
from analysis.laws.observations import Observations

BUDGETS = (0.01, 0.05, 0.1)  # of the cost of all training rows
SEEDS = 5
FIRST, CHEAP = 3, 0.01  # runs drawn at random, each at most this share of the budget
STAGES, GROWTH = 12, 0.25  # refit after this part of the budget, or of the number of runs
RULES = [(rule, share) for rule in ("ours", "random", "D-optimal") for share in BUDGETS]
RULES.append(("all", 1.0))
BARS = {"farseer": (0.67, 0.88, 0.93), "data_constrained": (0.73, 0.85, 0.86)}
FORMS: Mapping[str, tuple[Form, ...]] = {
    "farseer": (VARYING, FARSEER),
    "data_constrained": (REPEATED, REPEATED_GAMMA),
}


@dataclass(frozen=True)
class Rows:
    """Runs by column, with their losses."""

    inputs: Mapping[str, Array]
    losses: Array

    @property
    def cost(self) -> Array:
        """Training FLOPs, (n,)."""
        return 6 * self.inputs["params"] * self.inputs["tokens"]

    def take(self, chosen: "Sequence[int] | Array") -> "Rows":
        """Return the rows at positions, or under a mask."""
        return Rows({name: x[chosen] for name, x in self.inputs.items()}, self.losses[chosen])


def read(folder: Path, name: str, part: str) -> Rows:
    """Read a table."""
    table = pd.read_parquet(folder / f"{name}_{part}.parquet")
    table = table.rename(columns={"N": "params", "D": "tokens"})
    names = FORMS[name][-1].inputs
    return Rows(
        {column: table[column].to_numpy(float) for column in names}, table["loss"].to_numpy()
    )


def inside(name: str, rows: Rows) -> list[tuple[Rows, Rows]]:
    """Return pools of cheap training rows, each with expensive rows to predict."""
    share = rows.cost / rows.cost.max()
    if name == "farseer":
        return [
            (rows.take(share <= pool), rows.take((share >= low) & (share <= high)))
            for pool, low, high in ((0.2, 0.5, 1.0), (0.04, 0.1, 0.3), (0.01, 0.02, 0.1))
        ]
    size, unique = rows.inputs["params"], rows.inputs["unique_tokens"]
    epochs = rows.inputs["tokens"] / unique
    small, large = size < 5e7, rows.cost > 3e20
    far = small & (epochs >= 910) | (size > 2e9) & large | (unique == 1.5e9) & (epochs >= 116)
    near = small & (epochs >= 140) & (epochs < 1000)
    near |= (size > 3e8) & (rows.cost > 7e19) & (rows.cost < 9e19) & (epochs < 32)
    near |= (unique == 4e8) & (epochs >= 100) & (size < 3e8)
    return [
        (rows.take(~far & (rows.cost < 1.3e20)), rows.take(far)),
        (rows.take(~near & (rows.cost < 1.6e19)), rows.take(near)),
    ]


def look(forms: Sequence[Form], pool: Rows, taken: Sequence[int], target: Rows) -> Belief:
    """Return what the runs taken say about the pool, then about the targets."""
    seen = pool.take(list(taken))
    names = pool.inputs
    points = {name: np.concatenate([pool.inputs[name], target.inputs[name]]) for name in names}
    return believe(forms, Observations(seen.inputs, seen.losses), points)


def acquire(
    rule: str, forms: Sequence[Form], pool: Rows, target: Rows, share: float, seed: int
) -> list[int]:
    """Return the positions of the runs that a rule buys; it never sees a loss of the target."""
    rng, count = np.random.default_rng(seed), len(pool.losses)
    budget = share * pool.cost.sum()
    left, free, taken = budget, np.ones(count, dtype=bool), list[int]()
    if rule == "all":
        return list(range(count))

    def take(run: int) -> None:
        nonlocal left
        taken.append(run)
        free[run], left = False, left - pool.cost[run]

    order = rng.permutation(count).tolist()
    if rule == "random":
        for run in order:
            if pool.cost[run] <= left:
                take(run)
        return taken
    for run in [run for run in order if pool.cost[run] <= CHEAP * budget][:FIRST]:
        take(run)
    targets = np.arange(count, count + len(target.losses))
    while (affordable := free & (pool.cost <= left)).any():
        belief = look(forms, pool, taken, target)
        spent, before = left, len(taken)
        while affordable.any():
            if rule == "ours":
                gain = reductions(belief, targets)[:count]
            else:
                gain = np.log1p(np.diag(belief.covariance)[:count] / belief.noise**2)
            worthwhile = affordable & (gain >= WORTHWHILE * gain[affordable].max())
            run = int(np.argmax(np.where(worthwhile, gain / pool.cost, -1.0)))
            take(run)
            if spent - left >= budget / STAGES or len(taken) - before >= GROWTH * before:
                break
            belief, affordable = observe(belief, run), free & (pool.cost <= left)
    return taken


def measure(
    job: tuple[str, str, Rows, Rows, float, int],
) -> tuple[float, float, float, int]:
    """Return R2, relative error, expected relative error, and number of runs of one trial."""
    name, rule, pool, target, share, seed = job
    warnings.simplefilter("ignore", RuntimeWarning)
    taken = acquire(rule, FORMS[name], pool, target, share, seed)
    belief = look(FORMS[name], pool, taken, target)
    targets = np.arange(len(pool.losses), len(belief.mean))
    predicted = np.exp(belief.mean[targets])
    square = float(np.sum((predicted - target.losses) ** 2))
    whole = float(np.sum((target.losses - target.losses.mean()) ** 2))
    error = float(np.sqrt(np.mean((predicted / target.losses - 1) ** 2)))
    score = float(np.clip(1 - square / whole, -1, 1))
    return score, error, belief.deviation(targets), len(taken)


def line(rule: str, share: float, trials: Sequence[tuple[float, float, float, int]]) -> str:
    """Return the mean over seeds, and of the score its standard deviation."""
    score, error, expected, runs = np.array(trials).T
    spent = "" if rule == "all" else f"{share:.0%}"
    return (
        f"  {rule:10}{spent:>4} R2 {score.mean():6.3f} +- {score.std():.3f}, "
        f"error {error.mean():.2%} (expected {expected.mean():.2%}), {runs.mean():.0f} runs"
    )


def main() -> None:
    """Print one line per table, rule and budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--inside", action="store_true", help="do not read the test rows")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    started = time.monotonic()
    with ProcessPoolExecutor(options.processes) as workers:
        for name, bars in BARS.items():
            rows = read(options.folder, name, "train")
            test = [] if options.inside else [(rows, read(options.folder, name, "test"))]
            for pool, target in test or inside(name, rows):
                print(f"{name}: {len(pool.losses)} runs to choose from, predict", end=" ")
                print(f"{len(target.losses)}; bars {bars}" if test else len(target.losses))
                for rule, share in RULES:
                    seeds = range(1 if rule == "all" else SEEDS)
                    jobs = [(name, rule, pool, target, share, seed) for seed in seeds]
                    print(line(rule, share, list(workers.map(measure, jobs))), flush=True)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
