"""The candidates of a search in the order of their results, and what decided that order.

Ranks stand for results, so that candidates which were stopped early or diverged count as well: a
finished one is ahead of all that were stopped at 1/2 of their budget, these of those stopped at
1/4, and a diverged one is last. Among equals the lower BPD is ahead.
"""

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.study.names import deepest_layers, layer_splits

VARIED = {  # columns of runs that a search varies, and their names for readers
    "blocks": "blocks",
    "layers": "layers",
    "deepest": "layers of the deepest block",
    "channels": "channels",
    "lr": "learning rate",
    "noise_std": "noise",
}
LOG = ("lr", "noise_std")  # drawn on logarithmic axes
FEWEST = 8  # candidates that can tell what decided their order
SHUFFLES = 400
DIVERGED = "Diverged:"  # beginning of the error of a run that diverged
SAME_BUDGET = 1.5  # budgets of one search differ by less, those of two searches by more


def candidates(table: pd.DataFrame) -> pd.DataFrame:
    """Return the candidates of a search, the best first.

    Args:
        table: Every run of a study.

    Returns:
        Their rows, with the share of its budget that each has trained (`share`, 0 if it diverged).
        Of searches at several budgets, those at the commonest one.
    """
    error = table["error"].fillna("").astype(str)
    ended = table["status"].isin(("done", "pruned")) | error.str.startswith(DIVERGED)
    tried = table[(table["role"] == "search") & ended].copy()
    if tried.empty:
        return tried.assign(share=[], deepest=[])
    images = [json.loads(config)["images"] for config in tried["config"]]
    share = tried["images"] / images
    budgets = np.log(tried["flops"] / share).sort_values()
    search = (budgets.diff() > np.log(SAME_BUDGET)).cumsum()
    tried["share"] = share.where(tried["status"] != "failed", 0.0)
    alike = (layer_splits(tried) == "").all()
    tried["deepest"] = 0 if alike else deepest_layers(tried)
    commonest = tried.loc[search.index[search == search.mode()[0]]]
    ordered: pd.DataFrame = commonest.sort_values(["share", "bpd"], ascending=[False, True])
    return ordered.reset_index(drop=True)


def varied(tried: pd.DataFrame) -> list[str]:
    """Return the columns in which candidates differ."""
    return [name for name in VARIED if tried[name].nunique() > 1]


def importance(tried: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return how much of the order of candidates each hyperparameter alone explains.

    It is the share of the variance of their ranks that a quadratic curve in the rank of the
    hyperparameter explains. That of ranks in random order says what chance alone explains.

    Args:
        tried: Rows of `candidates`.
        seed: Seed of the random orders.

    Returns:
        Columns `name`, `explained` and `chance` (its 95th percentile), the largest first; empty
        if there are too few candidates.
    """
    names = varied(tried) if len(tried) >= FEWEST else []
    ranks = np.arange(len(tried), dtype=float)
    rng = np.random.default_rng(seed)
    orders = np.stack([ranks, *(rng.permutation(ranks) for _ in range(SHUFFLES))], axis=1)
    rows = []
    for name in names:
        explained = explained_by(tried[name].rank().to_list(), orders)
        rows.append((VARIED[name], explained[0], float(np.quantile(explained[1:], 0.95))))
    found = pd.DataFrame(rows, columns=["name", "explained", "chance"])
    return found.sort_values("explained", ascending=False, ignore_index=True)


def explained_by(values: Sequence[float], orders: np.ndarray) -> np.ndarray:
    """Return the share of the variance of each column that a quadratic curve explains.

    Args:
        values: (N,) what the curve is over.
        orders: (N, M) columns.
    """
    unit = np.asarray(values, float)
    unit = (unit - unit.mean()) / unit.std()
    degree = min(2, len(set(values)) - 1)
    basis, _ = np.linalg.qr(np.vander(unit, degree + 1, increasing=True))
    centred = orders - orders.mean(axis=0)
    share: np.ndarray = ((basis.T @ centred) ** 2).sum(axis=0) / (centred**2).sum(axis=0)
    return share
