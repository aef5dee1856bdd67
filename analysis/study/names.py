"""Names of runs that a reader can decode, and of the likelihood that runs are scored with.

A run is named by size, shape and compute, then by what else sets it apart:
32 channels · 4x1 · 1.2e12 FLOPs · seed 1
"""

from collections.abc import Callable

import pandas as pd

from tarflow.human import bits_unit, bpd_name, number, power

APART: dict[str, Callable[[float], str]] = {  # what may set runs of one size and budget apart
    "noise_std": lambda value: f"noise {number(value)}",
    "lr": lambda value: f"learning rate {number(value)}",
    "patch": lambda value: f"patch {value:.0f}",
    "batch": lambda value: f"batch {value:.0f}",
    "seed": lambda value: f"seed {value:.0f}",
}

LATENT = "latent"  # value of `bpd_kind`


def run_names(runs: pd.DataFrame) -> list[str]:
    """Return a name of each run; two runs never share one.

    Args:
        runs: Rows of `tarflow.record.RUNS`.
    """
    split = layer_splits(runs)
    shapes = runs["blocks"].astype(int).astype(str) + "x" + runs["layers"].astype(int).astype(str)
    columns = (runs["channels"], split.where(split != "", shapes), runs["flops"])
    names = pd.Series(map(_name, *columns), index=runs.index, dtype=object)
    twice = names.duplicated(keep=False)
    groups = runs[twice].groupby(names[twice], sort=False)
    for column, write in APART.items():
        differs = groups[column].transform("nunique", dropna=False) > 1
        known = runs.loc[differs.index[differs], column].dropna()
        names[known.index] += [f" · {write(value)}" for value in known]
    for column in ("label", "run_id"):
        twice = names.duplicated(keep=False)
        names[twice] += [f" · {value}" for value in runs.loc[twice, column]]
    return names.tolist()


def layer_splits(runs: pd.DataFrame) -> pd.Series:
    """Return the layers of every block, such as 1-1-1-13; empty for runs whose blocks are alike.

    Args:
        runs: Rows of `tarflow.record.RUNS`; those of earlier releases lack the column.
    """
    split: pd.Series = runs.get("layer_split", pd.Series("", runs.index, dtype=object))
    return split.fillna("")


def deepest_layers(runs: pd.DataFrame) -> list[int]:
    """Return the layers of the block of each run that has most.

    >>> deepest_layers(pd.DataFrame({"layers": [4, 2], "layer_split": ["1-1-1-13", ""]}))
    [13, 2]
    """
    pairs = zip(layer_splits(runs), runs["layers"], strict=True)
    return [max(map(int, split.split("-"))) if split else int(layers) for split, layers in pairs]


def bits_unit_of(runs: pd.DataFrame) -> str:
    """Return the unit of the likelihoods of runs: bits per dimension, or per latent dimension.

    Args:
        runs: Rows of `tarflow.record.RUNS`, of one data set.
    """
    return bits_unit(_bpd_kind(runs))


def bpd_name_of(runs: pd.DataFrame) -> str:
    """Return the short name of the likelihoods of runs: BPD, or latent BPD."""
    return bpd_name(_bpd_kind(runs))


def are_latent(runs: pd.DataFrame) -> bool:
    """Tell whether the likelihoods of runs are those of latents."""
    return "bpd_kind" in runs and bool((runs["bpd_kind"] == LATENT).any())


def _bpd_kind(runs: pd.DataFrame) -> str:
    return LATENT if are_latent(runs) else ""


def _name(channels: float, shape: str, flops: float) -> str:
    return f"{channels:.0f} channels · {shape} · {power(flops)} FLOPs"
