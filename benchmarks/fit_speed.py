"""Compare the fits on 240 rows with a scipy multi-start, as in most published code.

Run with OMP_NUM_THREADS=1: `python benchmarks/fit_speed.py`. Bars: 200 starts under 2 s, 4000
refits under 15 s; of CPU time, the law of a table (all forms, roll-outs, 1000 draws) under 1.5 s,
of 10,000 rows under 6 s, and the findings of a study of 192 runs under 3 s.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from law_intervals import row_of
from scipy.optimize import minimize

from analysis.laws.fit import fit
from analysis.laws.forms import CHINCHILLA
from analysis.laws.observations import Observations
from analysis.study.findings import find
from analysis.table.law import fit_table
from sweeps.design.presets import load
from sweeps.design.study import grid

WIDTHS = (8, 16, 24, 32, 48, 64, 96, 128)
BUDGETS, SEEDS = tuple(np.geomspace(4e10, 1e12, 8)), 3
ROWS, MANY, STARTS, REFITS, SAMPLED = 240, 10_000, 200, 4000, 10


def table(rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the inputs and the noisy values of a planted surface."""
    rng = np.random.default_rng(0)
    params, tokens = 10 ** rng.uniform(5, 8, rows), 10 ** rng.uniform(7, 10, rows)
    values = 1.4 + 30 / params**0.34 + 90 / tokens**0.31
    return {"params": params, "tokens": tokens}, values * np.exp(0.004 * rng.normal(size=rows))


def seconds(call: Callable[[], object]) -> float:
    """Time one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the processor time of one call."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def tables() -> Iterator[pd.DataFrame]:
    """Return a table of runs, and a long one."""
    for rows in (ROWS, MANY):
        inputs, values = table(rows)
        yield pd.DataFrame({**inputs, "loss": values})


def study_of(widths: Sequence[int], budgets: Sequence[float], seeds: int) -> pd.DataFrame:
    """Return the runs of a grid, on a planted law."""
    preset = load("digits")
    study = replace(
        preset,
        sizes=tuple(replace(preset.sizes[0], channels=width) for width in widths),
        budgets=tuple(budgets),
        seeds=seeds,
        replicated=None,
        held_out=None,
        max_images=10**9,
    )
    runs = pd.DataFrame([row_of(run, study.train_images) for run in grid(study)])
    error = np.exp(0.003 * np.random.default_rng(0).normal(size=len(runs)))
    values = 1.2 + 30 / runs["params"] ** 0.4 + 60 / runs["tokens"] ** 0.4
    return runs.assign(bpd=values * error)


def scipy_starts(inputs: dict[str, np.ndarray], values: np.ndarray) -> tuple[float, float]:
    """Minimise the Huber loss (1e-3) of the log loss by L-BFGS-B from random starts.

    Returns:
        The seconds per start, and the share of starts that end within 1e-4 of the best.
    """
    n, d = np.log(inputs["params"]), np.log(inputs["tokens"])
    rng = np.random.default_rng(0)

    def objective(p: np.ndarray) -> float:
        terms = np.stack([p[0] - p[1] * n, p[2] - p[3] * d, np.full(ROWS, p[4])])
        size = np.abs(np.logaddexp.reduce(terms) - np.log(values))
        inner = np.minimum(size, 1e-3)
        return float(np.sum(inner * (size - inner / 2)))

    begin = time.perf_counter()
    results = [
        minimize(objective, rng.uniform([0, 0, 0, 0, -1], [25, 2, 25, 2, 1.5]), method="L-BFGS-B")
        for _ in range(SAMPLED)
    ]
    costs = np.array([result.fun for result in results])
    spent = (time.perf_counter() - begin) / SAMPLED
    return spent, float(np.mean(costs <= costs.min() * 1.0001))


def main() -> None:
    """Print the figures and the ratios."""
    inputs, values = table(ROWS)
    data = Observations(inputs, values)
    law = fit(CHINCHILLA, data, draws=0, starts=STARTS)
    starts = seconds(lambda: fit(CHINCHILLA, data, draws=0, starts=STARTS))
    both = seconds(lambda: fit(CHINCHILLA, data, draws=REFITS, starts=STARTS))
    whole, large = (cpu_seconds(lambda rows=rows: fit_table(rows)) for rows in tables())
    runs = study_of(WIDTHS, BUDGETS, SEEDS)
    study = cpu_seconds(lambda: find(runs, None))
    per_start, share = scipy_starts(inputs, values)
    print(f"{STARTS} starts     {starts:6.2f} s (bar 2 s), {law.agreement:.0%} reach the optimum")
    print(f"{REFITS} refits    {both - starts:6.2f} s (bar 15 s)")
    print(f"law of a table {whole:6.2f} s (bar 1.5 s), of CPU")
    print(f"  of {MANY} rows {large:4.2f} s (bar 6 s), {large / whole:.0f} times as long")
    print(f"findings       {study:6.2f} s (bar 3 s), of {len(runs)} runs")
    print(
        f"scipy L-BFGS-B {per_start * STARTS:6.2f} s for {STARTS} starts, scaled up from "
        f"{SAMPLED}; {share:.0%} reach the optimum"
    )
    print(f"ratio          {per_start * STARTS / starts:6.1f}")


if __name__ == "__main__":
    main()
