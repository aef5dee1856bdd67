"""What an ablation compares: its choices side by side, averaged over seeds.

Laws do not read runs of the role `ablation`. A choice is everything a config sets except its seed.
A setting is a way to sample from a run, without training.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from analysis.comparing.differences import image_differences, mean_interval, signed_difference
from analysis.laws.intervals import LEVEL
from analysis.study.names import are_latent, bits_unit_of, deepest_layers, layer_splits
from analysis.study.rows import configs_but_seed
from analysis.study.settings import SETTING, setting_in_words
from tarflow.human import bits, interval, number, series

UNIFORM_STD = float(np.sqrt(1 / 12) / 128)  # standard deviation of uniform dequantisation noise
ERRORS = {"bpd": "bpd_se", "kid": "kid_se"}  # standard error of a score, where it has one
MOST_NAMES = 3  # in a sentence
WAYS = {  # settings of guidance, and how their values are named
    "rule": "{}",
    "guided_blocks": "blocks {}",
    "part": "{}",
    "temperature": "temperature {:g}",
}
KINDS = {  # columns in which the runs of a kind of ablation differ, in the order of its choices
    "noise": ["noise_type", "noise_std"],
    "shape": ["blocks", "deepest", "layer_split"],
    "patch": ["patch"],
}
UNIFORM_NOISE = "uniform noise"


def _ablated(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the finished runs that an ablation compares, with the name of their choice."""
    runs = runs[(runs["role"] == "ablation") & (runs["status"] == "done")]
    labels = zip(runs["label"], runs["seed"], strict=True)
    names = _without_common_end([str(label).removesuffix(f"-s{seed}") for label, seed in labels])
    return runs.assign(
        choice=configs_but_seed(runs),
        named=names,
        layer_split=layer_splits(runs),
        deepest=deepest_layers(runs),
    )


def _without_common_end(labels: Sequence[str]) -> list[str]:
    """Return labels without the hyphenated parts at their end that all of them share.

    >>> _without_common_end(["labels-c8-1e9", "none-c8-1e9"])
    ['labels', 'none']
    """
    parts = [label.split("-") for label in labels]
    while min(map(len, parts), default=1) > 1 and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    return ["-".join(part) for part in parts]


def kind(runs: pd.DataFrame) -> str:
    """Return what runs differ in: `noise`, `shape`, `choice` for anything else, or nothing."""
    if runs["choice"].nunique() < 2:
        return ""
    for name, columns in KINDS.items():
        if len(runs[columns].drop_duplicates()) == runs["choice"].nunique():
            return name
    return "choice"


def noise_level(rows: pd.DataFrame) -> pd.Series:
    """Return the standard deviation of the training noise, uniform noise included."""
    return rows["noise_std"].astype(float).where(rows["noise_type"] == "gaussian", UNIFORM_STD)


def averaged(rows: pd.DataFrame, keys: Sequence[str], column: str) -> pd.DataFrame:
    """Average a column over the rows that share some keys, that is over seeds.

    The interval of a mean is Student's, from the spread between seeds, pooled over all keys. If
    the rows have standard errors, the spread is measured in units of them, because heavy tails and
    poor samples make seeds differ more as well. The interval is then at least as wide as that
    error, except for BPD, whose error comes from held-out images that all runs share.

    Args:
        rows: One row per run, or per run and setting.
        keys: Columns that name what is compared.
        column: Column to average.

    Returns:
        One row per key in ascending order: the keys, `mean`, `low`, `high` (90%; nan if unknown)
        and `run_id`, a text that names the runs.
    """
    rows = rows.dropna(subset=[column])
    error = ERRORS.get(column, "")
    unit = rows[error].astype(float) if error in rows else pd.Series(1.0, index=rows.index)
    groups = rows.assign(_unit=unit).groupby(list(keys), dropna=False, sort=True)
    lines, squares, free = [], 0.0, 0
    for key, group in groups:
        values, scale = group[column].to_numpy(float), float(np.sqrt(np.mean(group["_unit"] ** 2)))
        squares += float(np.sum((values - values.mean()) ** 2)) / scale**2 if scale > 0 else 0.0
        free += len(values) - 1
        names = ", ".join(sorted(group["run_id"]))
        lines.append([*key, float(values.mean()), scale / np.sqrt(len(values)), names])
    means = pd.DataFrame(lines, columns=[*keys, "mean", "unit", "run_id"])
    spread = float(np.sqrt(squares / free)) if free else float("nan")
    half = spread * float(t.ppf((1 + LEVEL) / 2, free)) if free else float("nan")
    if error in rows and column != "bpd":
        half = float(np.nanmax([half, norm.ppf((1 + LEVEL) / 2)]))
    width = half * means.pop("unit")
    return means.assign(low=means["mean"] - width, high=means["mean"] + width)


def titled(finished: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that an ablation compares, with the `title` of their choice."""
    runs = _ablated(finished)
    difference, split = kind(runs), splits(runs)
    return runs.assign(title=[_title(run, difference, split) for _, run in runs.iterrows()])


def splits(runs: pd.DataFrame) -> bool:
    """Tell whether the blocks of some run differ in their layers."""
    return bool((runs["layer_split"] != "").any())


def split_of(row: pd.Series) -> str:
    """Return the layers of every block of a run, such as 4-4-4-4 or 1-1-1-13."""
    return str(row["layer_split"] or "-".join([str(int(row["deepest"]))] * int(row["blocks"])))


def _title(row: pd.Series, kind: str, splits: bool) -> str:
    """Return the choice of a run in words."""
    if kind == "noise":
        gaussian = row["noise_type"] == "gaussian"
        return f"noise {row['noise_std']:g}" if gaussian else UNIFORM_NOISE
    if kind == "shape" and splits:
        return f"layers {split_of(row)}"
    if kind == "shape":
        blocks, layers = int(row["blocks"]), int(row["layers"])
        return f"{blocks} block{'s' * (blocks != 1)} × {layers} layer{'s' * (layers != 1)}"
    if kind == "patch":
        return f"patch {int(row['patch'])}"
    return str(row["named"])


def baseline(runs: pd.DataFrame) -> str:
    """Return the title of the choice that the others are compared with.

    It is uniform noise or else the least noise; the fewest blocks and the most even split; the
    smallest patch; the first name of other choices.

    Args:
        runs: Rows of `titled` with at least two choices.
    """
    difference = kind(runs)
    if difference == "noise" and UNIFORM_NOISE in set(runs["title"]):
        return UNIFORM_NOISE
    return str(runs.sort_values(KINDS.get(difference, ["title"]))["title"].iloc[0])


def likelihoods_compare(runs: pd.DataFrame) -> bool:
    """Tell whether the BPD of runs measure the same: those of latents depend on the noise."""
    return not are_latent(runs) or len(runs[KINDS["noise"]].drop_duplicates()) < 2


def worth(runs: pd.DataFrame, study: Path) -> pd.DataFrame:
    """Return how far the BPD of every choice lies from that of the baseline, paired.

    Runs of one seed are compared image by image; intervals hold the noise between images and
    between trainings.

    Args:
        runs: Rows of `titled`.
        study: Folder with the BPD of every image.

    Returns:
        A row per choice in order, without the baseline: the columns of `averaged` for `title` and
        those of the choice's kind; `mean` is the difference. Empty without two choices, or without
        a seed that a choice shares with the baseline.
    """
    difference = kind(runs)
    keys = KINDS.get(difference, [])
    lines = []
    if difference:
        first = baseline(runs)
        base = runs.loc[runs["title"] == first, ["seed", "run_id", "bpd"]]
        for key, rows in runs[runs["title"] != first].groupby([*keys, "title"], dropna=False):
            pairs = base.merge(rows, on="seed", suffixes=("_first", ""))
            if pairs.empty:
                continue
            pairs = pairs.assign(
                difference=pairs["bpd"] - pairs["bpd_first"],
                other_id=pairs["run_id"],
                run_id=pairs["run_id_first"],
            )
            images = image_differences(study, study, pairs)
            names = ", ".join(sorted(pairs["other_id"]))
            ends = mean_interval(pairs, images)
            lines.append([*key, float(pairs["difference"].mean()), *ends, names])
    return pd.DataFrame(lines, columns=[*keys, "title", "mean", "low", "high", "run_id"])


def worth_in_words(points: pd.DataFrame, first: str, unit: str) -> list[str]:
    """Say what each choice is worth against a baseline.

    Args:
        points: Rows of `worth`.
        first: Title of the baseline.
        unit: Unit of the differences.
    """
    lines = []
    for _, row in points.iterrows():
        ends = signed_difference(row["mean"])
        ends += f" ({interval((row['low'], row['high']), signed_difference)})"
        if not np.isfinite(row["high"] - row["low"]):
            verdict = "one seed gives no interval"
        elif row["low"] > 0:
            verdict = "clearly worse"
        else:
            verdict = "clearly better" if row["high"] < 0 else "no clear difference"
        lines.append(
            f"{_capital(row['title'])} against {first}, on the same images and seeds: {ends} "
            f"{unit}, {verdict}."
        )
    return lines


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def ways(scored: pd.DataFrame) -> list[str]:
    """Return how each row is guided, in words for what differs between the guided rows."""
    guided = scored[scored["guidance"] > 0]
    varying = {name: words for name, words in WAYS.items() if guided[name].nunique() > 1}
    named = [
        ", ".join(words.format(row[name]) for name, words in varying.items())
        for _, row in scored.iterrows()
    ]
    return [name or "guided" for name in named]


def conclusions(finished: pd.DataFrame, scored: pd.DataFrame, study: Path) -> list[str]:
    """Say which choice has the lowest BPD, what each is worth, and which setting is best by KID.

    The setting is picked on one half of the draws, and its KID is that of the other half.

    Args:
        finished: Finished runs.
        scored: The same joined to their sample scores, one row per sampler setting.
        study: Folder with the BPD of every image.
    """
    runs = titled(finished)
    if runs.empty:
        return []
    lines = []
    if runs["title"].nunique() > 1 and likelihoods_compare(runs):
        unit = bits_unit_of(runs)
        lines.append(best(averaged(runs, ["title"], "bpd"), unit, bits))
        lines += worth_in_words(worth(runs, study), baseline(runs), unit)
    drawn = scored[scored["kid"].notna()].merge(runs[["run_id", "title"]], on="run_id")
    if drawn.drop_duplicates(["run_id", *SETTING]).shape[0] > 1:
        words = [setting_in_words(row) for _, row in drawn.iterrows()]
        drawn = drawn.assign(title=drawn["title"] + ", " + pd.Series(words, index=drawn.index))
        means = {half: averaged(rows, ["title"], "kid") for half, rows in drawn.groupby("half")}
        if "scored" in means and len(means["scored"]) == len(
            means["all"]
        ):  # older rows lack halves
            lines.append(best(means["scored"], "KID", number, means["chosen"]))
        else:
            lines.append(best(means["all"], "KID", number))
    return lines


def best(
    points: pd.DataFrame,
    name: str,
    write: Callable[[float], str],
    choosing: pd.DataFrame | None = None,
) -> str:
    """Say which row has the lowest mean, and which others may be as low.

    Args:
        points: Rows of `averaged`, with `title`.
        name: Name of the score.
        write: Writes a value.
        choosing: The same from other draws, which decide instead, so that the mean in `points`
            is not low by luck.
    """
    points = points.dropna(subset=["mean"]).sort_values("mean")
    by = points if choosing is None else choosing.sort_values("mean")
    lowest = points["title"] == by["title"].iloc[0]
    first, others = points[lowest].iloc[0], points[~lowest]
    near = others[others["low"] <= first["high"]]["title"].tolist()
    how = "" if choosing is None else " by one half of the draws"
    text = f"Lowest {name}{how}: {first['title']}, {write(first['mean'])}"
    text += " by the other" if how else ""
    if np.isfinite(first["high"]):
        text += f" ({interval((first['low'], first['high']), write)})"
    if near:
        more = len(near) - MOST_NAMES
        named = near if more <= 0 else [*near[:MOST_NAMES], f"{more} more"]
        text += f"; no clear difference from {series(named)}"
    return text + "."
