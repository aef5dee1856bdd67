"""Count how often 90% intervals of a study hold the truth, on planted studies of a real design.

The design is the preset `digits`: six sizes at three budgets, one run of a larger budget, three
seeds at one point. Three true laws (one exponent; .32 and .52; both terms to a power of .7) meet
three sizes of noise, independent or mostly shared by the branches of one trunk. Each study is
judged by `analysis.study.findings.find`, as a user would. Beside it, tables of five and six runs,
and of a few runs with twelve checkpoints each, which share none to nearly all of their noise.

The columns are the exponents of N and D, the best size and the loss at 4 times the largest budget,
the held-out run predicted by the law of size and data and by the law of compute, and the
root-mean-square error of ln(best size) at 10 times the compute, over that of a fit of
E + A / N^a + B / D^b alone.

Run with OMP_NUM_THREADS=1: `python benchmarks/law_intervals.py --studies 200`; 1 to 3 s a study.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pool

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.laws.allocation import Sizes, optimal_params
from analysis.laws.average import fit_law
from analysis.laws.forms import CHINCHILLA
from analysis.laws.repetition import effective_tokens
from analysis.study.findings import find
from analysis.table.law import FLOPS, Options, fit_table
from sweeps.design.presets import load
from sweeps.design.study import PlannedRun, grid
from tarflow import cost
from tarflow.config_files import to_dict
from tarflow.identity import run_id, with_hash

PerToken = Callable[[np.ndarray], np.ndarray]  # training FLOPs per token by size

EXPONENTS = {"tied": (0.4, 0.4, 1.0), "chinchilla": (0.32, 0.52, 1.0), "gamma": (0.4, 0.4, 0.7)}
NOISES, SHARED, DRAWS = (0.002, 0.005, 0.01), (0.0, 0.7), 500
FLOOR, REDUCIBLE = 1.0, 0.5  # bits per dimension: E, and the rest at the held-out run
COLUMNS = ("a", "b", "size 4x", "loss 4x", "held out", "by compute")
FEW = ("a", "size 4x", "told", "loss 4x")  # the size of all tables, and where it is told
CHECKPOINTS = 12  # of a run


@dataclass(frozen=True)
class Truth:
    """The planted law, whose best size at one point is the size of that point."""

    a: float
    b: float
    g: float
    params: float  # that point
    tokens: float
    marginal: float = 1.0  # d ln(worth of the tokens) / d ln(tokens seen) there

    def __call__(self, params: ArrayLike, tokens: ArrayLike) -> np.ndarray:
        """Return bits per dimension."""
        share = self.b * self.marginal / (self.a + self.b * self.marginal)
        size = share * (np.asarray(params) / self.params) ** -self.a
        data = (1 - share) * (np.asarray(tokens) / self.tokens) ** -self.b
        return np.asarray(FLOOR + REDUCIBLE * (size + data) ** self.g)

    def best_size(self, flops: float, per_token: PerToken, unique: float = np.inf) -> float:
        """Return the size with the lowest loss at a budget of training FLOPs."""
        params = np.geomspace(1e2, 1e12, 40_000)
        tokens = effective_tokens(flops / per_token(params), unique)
        return float(params[np.argmin(self(params, tokens))])


@dataclass(frozen=True, eq=False)
class Design:
    """The runs of the study `digits`, without their losses."""

    table: pd.DataFrame
    unique: float  # tokens of the training set

    @classmethod
    def of_digits(cls) -> "Design":
        """Return the design of the preset."""
        study = load("digits")
        rows = [row_of(run, study.train_images) for run in grid(study)]
        return cls(pd.DataFrame(rows), study.train_images * study.base.model.tokens)

    def truth(self, name: str) -> Truth:
        """Return a planted law."""
        held_out = self.table.loc[self.table["flops"].idxmax()]
        seen = float(held_out["tokens"])
        worth, more = effective_tokens([seen, 1.001 * seen], self.unique).tolist()
        marginal = float(np.log(more / worth) / np.log(1.001))
        return Truth(*EXPONENTS[name], float(held_out["params"]), worth, marginal)

    def runs(
        self, truth: Truth, noise: float, shared: float, rng: np.random.Generator
    ) -> pd.DataFrame:
        """Return the runs of one study."""
        tokens = effective_tokens(self.table["tokens"], self.unique)
        names = self.table["parent_id"].fillna(self.table["run_id"])
        trunks, trunk = np.unique(names, return_inverse=True)
        common = rng.standard_normal(len(trunks))[trunk]
        own = rng.standard_normal(len(self.table))
        error = noise * (np.sqrt(shared) * common + np.sqrt(1 - shared) * own)
        return self.table.assign(bpd=truth(self.table["params"], tokens) * np.exp(error))


def row_of(run: PlannedRun, train_images: int) -> dict[str, object]:
    """Return a row of the runs table without its loss."""
    config = with_hash(run.config, "5eed")
    model, tokens = config.model, config.images * config.model.tokens
    return {
        "run_id": run_id(config), "label": run.label, "role": "grid", "status": "done",
        "config": json.dumps(to_dict(config)),
        "parent_id": f"{model.channels}-{config.seed}" if run.trunk else None,
        "data_hash": "5eed", "classes": 10, "patch": 4, "channels": model.channels,
        "blocks": model.blocks, "layers": model.layers, "lr": config.optim.lr,
        "noise_type": "gaussian", "noise_std": 0.25, "bpd_kind": "bound", "numerics_version": 1,
        "params": cost.params(model), "tokens": tokens, "flops": cost.run_flops(config),
        "epochs": config.images / train_images, "bpd_se": 0.01, "bpd_median": 1.6,
        "bpd_p99": 2.3, "bpd_max": 2.6, "seed": config.seed,
    }  # fmt: skip


def study(cell: tuple[str, float, float, int]) -> dict[str, float]:
    """Return whether each interval of one study holds the truth, and two errors of ln(size)."""
    name, noise, shared, seed = cell
    design, rng = Design.of_digits(), np.random.default_rng([seed, int(1e4 * noise)])
    truth = design.truth(name)
    found = find(design.runs(truth, noise, shared, rng), None, seed=seed, draws=DRAWS)
    law, item = found.surface, found.allocation[2]
    sizes = Sizes(load("digits").base.model)
    largest = found.budgets[-1].flops

    def best(flops: float) -> float:
        return truth.best_size(flops, sizes.flops_per_token, design.unique)

    at = {
        "params": item.model_params,
        "tokens": item.flops / sizes.flops_per_token(np.array([float(item.model_params)]))[0],
    }
    loss = float(truth(at["params"], effective_tokens(at["tokens"], design.unique)))
    loss *= float(np.exp(noise * rng.standard_normal()))
    low, high = law.band(**at)
    held = {h.law.of_compute: float(h.inside) for h in found.held_out}
    alone = fit_law(law.data, (CHINCHILLA,), {}, draws=2)
    errors = [
        np.log(optimal_params(one, 10 * largest, sizes.flops_per_token)[0] / best(10 * largest))
        for one in (law.untied, alone)
    ]
    return {
        "a": _inside(law.intervals["a"], truth.a),
        "b": _inside(law.intervals["b"], truth.b) if "b" in law.intervals else np.nan,
        "size 4x": _inside(item.params_interval, best(item.flops)),
        "loss 4x": _inside((float(low), float(high)), loss),
        "held out": held.get(False, np.nan),
        "by compute": held.get(True, np.nan),
        "error": float(errors[0]),
        "alone": float(errors[1]),
    }


def small(cell: tuple[int, float, int]) -> dict[str, float]:
    """Return the same for a table of five or six runs of a law with one exponent."""
    rows, noise, seed = cell
    rng = np.random.default_rng([seed, rows, int(1e4 * noise)])
    truth = Truth(0.35, 0.35, 1.0, 1e9, 2e10)
    params = np.geomspace(1e8, 1e10, rows)
    tokens = 2e10 * np.exp(rng.uniform(-1.5, 1.5, rows))
    values = truth(params, tokens) * np.exp(noise * rng.standard_normal(rows))
    law = fit_table(pd.DataFrame({"params": params, "tokens": tokens, "loss": values}))
    if law.ray:
        return {}
    flops = 4 * FLOPS * float((params * tokens).max())
    ends = law.size_interval(flops)
    at = {"params": truth.best_size(flops, lambda size: FLOPS * size)}
    at["tokens"] = flops / FLOPS / at["params"]
    predicted = law.predict(**at)
    loss = float(truth(**at)) * np.exp(noise * rng.standard_normal())
    return {
        "a": _inside(law.law.intervals["a"], truth.a),
        "size 4x": np.nan if ends is None else _inside(ends, at["params"]),
        "told": np.nan if law.best_size(flops) is None else _inside(ends, at["params"]),
        "loss 4x": _inside((predicted.low, predicted.high), loss),
    }


def checkpoints(cell: tuple[int, float, int]) -> dict[str, float]:
    """Return the same for a table of a few runs with several checkpoints."""
    runs, shared, seed = cell
    rng = np.random.default_rng([seed, runs, int(100 * shared)])
    truth = Truth(0.2, 0.25, 1.0, 1e7, 1e9)
    params, tokens = np.meshgrid(
        np.geomspace(1e6, 1e8, runs), np.geomspace(1e8, 1e10, CHECKPOINTS)
    )
    common, own = rng.standard_normal(runs), rng.standard_normal(params.shape)
    error = 0.005 * (np.sqrt(shared) * common + np.sqrt(1 - shared) * own)
    losses = truth(params, tokens) * np.exp(error)
    inputs = {"params": params.ravel(), "tokens": tokens.ravel()}
    names = np.broadcast_to(np.arange(runs), params.shape).ravel()
    table = pd.DataFrame(inputs | {"loss": losses.ravel(), "run": names})
    law = fit_table(table, Options(forms=(CHINCHILLA,), draws=DRAWS))
    at = {"params": 1e8, "tokens": 4e10}
    predicted = law.predict(**at)
    loss = float(truth(**at)) * np.exp(0.005 * rng.standard_normal())
    return {
        "a": _inside(law.law.intervals["a"], truth.a),
        "b": _inside(law.law.intervals["b"], truth.b),
        "loss 4x": _inside((predicted.low, predicted.high), loss),
    }


def _inside(ends: tuple[float, float], value: float) -> float:
    return float(ends[0] <= value <= ends[1])


def main() -> None:
    """Print a line for each cell."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=20, help="planted studies in every cell")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    options = parser.parse_args()
    print(f"{'':28}" + "".join(f"{name:>11}" for name in COLUMNS) + f"{'rms size':>11}")
    with Pool(options.workers) as pool:
        everything = []
        for name in EXPONENTS:
            for noise in NOISES:
                for shared in SHARED:
                    cells = [(name, noise, shared, seed) for seed in range(options.studies)]
                    rows = pd.DataFrame(pool.map(study, cells, chunksize=1))
                    everything.append(rows)
                    _show(f"{name}, noise {noise:.1%}, shared {shared}", rows)
        pooled = pd.concat(everything)
        _show("all", pooled)
        print(f"\n{'':28}" + "".join(f"{name:>11}" for name in FEW))
        for count in (5, 6):
            for noise in NOISES:
                cells = [(count, noise, seed) for seed in range(options.studies)]
                rows = pd.DataFrame(pool.map(small, cells, chunksize=4))
                _show(f"{count} runs, noise {noise:.1%}", rows, FEW)
        print(f"\n{'':28}" + "".join(f"{name:>11}" for name in ("a", "b", "loss 4x")))
        for count in (3, 4, 12):
            for shared in (0.0, 0.7, 0.99):
                cells = [(count, shared, seed) for seed in range(options.studies)]
                rows = pd.DataFrame(pool.map(checkpoints, cells, chunksize=4))
                _show(f"{count} runs, shared {shared}", rows, ("a", "b", "loss 4x"))


def _show(name: str, rows: pd.DataFrame, columns: tuple[str, ...] = COLUMNS) -> None:
    shares = rows[list(columns)].mean()
    line = f"{name:28}" + "".join(f"{share:11.1%}" for share in shares)
    if "error" in rows:
        rms = np.sqrt(np.square(rows[["error", "alone"]]).mean())
        line += f"{rms['error'] / rms['alone']:11.2f}"
    print(line, flush=True)


if __name__ == "__main__":
    main()
