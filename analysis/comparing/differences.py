"""Differences between runs: of BPD image by image, of KID beside its standard errors.

Runs are scored on the same images with the same noise draws, so the error of a difference of BPD
is far smaller than the errors of both. Their KIDs also differ less by chance than independent ones
would; the functions of KID take them as independent, and so err towards finding no difference.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import chi2, t

from analysis.laws.forms import Array
from analysis.laws.intervals import LEVEL, NORMAL_90, Interval
from analysis.study.folder import tables_of_runs


def image_differences(first: Path, second: Path, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return how many bits per dimension the second run of a pair needs more, by image.

    Args:
        first: Folder of the study with the first run of every pair.
        second: Folder of the study with the second runs.
        pairs: Columns `run_id` and `other_id`.

    Returns:
        A row per image and a column per pair whose images are stored, numbered as the pairs.
    """
    ones = tables_of_runs(first, pairs, "images.parquet")
    twos = tables_of_runs(second, pairs.assign(run_id=pairs["other_id"]), "images.parquet")
    columns = {
        place: twos[two].set_index("index")["bpd"] - ones[one].set_index("index")["bpd"]
        for place, one, two in zip(pairs.index, pairs["run_id"], pairs["other_id"], strict=True)
        if one in ones and two in twos
    }
    return pd.DataFrame(columns)


def mean_interval(pairs: pd.DataFrame, images: pd.DataFrame) -> Interval:
    """Return the 90% interval of the mean difference of pairs, over images and over trainings.

    Runs of one size and seed may share a trunk, so they count as one training.

    Args:
        pairs: Columns `difference`, `params` and `seed`.
        images: Differences by image, as of `image_differences`; may be empty.
    """
    mean = float(pairs["difference"].mean())
    trainings = (pairs["difference"] - mean).groupby([pairs["params"], pairs["seed"]]).sum()
    number_of = len(trainings)
    if number_of < 2:
        return -np.inf, np.inf
    square = float((trainings**2).sum()) / len(pairs) ** 2 * number_of / (number_of - 1)
    by_image = images.mean(axis=1).dropna()
    over_images = float(by_image.var(ddof=1)) / len(by_image) if len(by_image) > 1 else 0.0
    half = float(t.ppf((1 + LEVEL) / 2, number_of - 1)) * float(np.sqrt(square + over_images))
    return mean - half, mean + half


def mean_difference(differences: Array, errors: Array) -> tuple[float, Interval]:
    """Return the mean difference of KID over seeds, and its 90% interval.

    It is Student's, from the spread between seeds, and no narrower than the errors say.

    Args:
        differences: KID of one run minus that of another of the same seed, (n,).
        errors: Their standard errors over images, (n,).
    """
    count, mean = len(differences), float(np.mean(differences))
    half = NORMAL_90 * float(np.sqrt(np.mean(errors**2) / count))
    if count > 1:
        spread = float(np.std(differences, ddof=1) / np.sqrt(count))
        half = max(half, spread * float(t.ppf((1 + LEVEL) / 2, count - 1)))
    return mean, (mean - half, mean + half)


def signed_difference(value: float) -> str:
    """Write a difference in bits per dimension, with its sign.

    >>> signed_difference(-0.0004)
    '-0.0004'
    """
    return f"{round(value, 4) + 0.0:+.4f}"  # no negative zero


def told_apart(scored: pd.DataFrame) -> bool:
    """Return whether KIDs differ by more than their standard errors explain (Cochran's Q, 10%).

    Args:
        scored: One row per run: `kid` and `kid_se`.
    """
    known = scored.dropna(subset=["kid", "kid_se"])
    known = known[known["kid_se"] > 0]
    weights = 1 / known["kid_se"].to_numpy(float) ** 2
    kid = known["kid"].to_numpy(float)
    if len(kid) < 2:
        return False
    spread = float(weights @ (kid - weights @ kid / weights.sum()) ** 2)
    return spread > float(chi2.ppf(LEVEL, len(kid) - 1))


def as_low(scored: pd.DataFrame, row: pd.Series) -> pd.DataFrame:
    """Return the other runs whose KID is not higher than that of a row beyond a 90% interval.

    Args:
        scored: One row per run: `run_id`, `kid` and `kid_se`.
        row: The run to compare with.
    """
    others = scored[scored["run_id"] != row["run_id"]].dropna(subset=["kid"])
    errors = np.hypot(others["kid_se"].fillna(0.0), row["kid_se"])
    low: pd.DataFrame = others[others["kid"] - row["kid"] <= NORMAL_90 * errors]
    return low
