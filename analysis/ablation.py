"""What an ablation compares: its choices side by side, averaged over seeds.

Runs of the role `ablation` are read by no law. A choice is all that a config sets but its seed; a
setting is a way to sample from a run, which trains nothing.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from analysis.human import bits, interval, number
from analysis.laws.intervals import LEVEL
from analysis.rows import configs_but_seed
from analysis.settings import setting_in_words

UNIFORM_STD = float(np.sqrt(1 / 12) / 128)  # of noise that fills one of 256 bins of [-1, 1]
ERRORS = {"bpd": "bpd_se", "kid": "kid_se"}  # standard error of a score, where it has one
MOST = 3  # names in a sentence
WAYS = {  # to guide, and how they are named
    "rule": "{}",
    "guided_blocks": "blocks {}",
    "part": "{}",
    "temperature": "temperature {:g}",
}
KINDS = {"noise": ["noise_type", "noise_std"], "shape": ["blocks", "layers"]}


def ablated(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the finished runs that an ablation compares, with the name of their choice."""
    found = runs[(runs["role"] == "ablation") & (runs["status"] == "done")]
    keys = pd.Series(configs_but_seed(found), index=found.index, dtype=object)
    labels = zip(found["label"], found["seed"], strict=True)
    named = _without_common_end([str(label).removesuffix(f"-s{seed}") for label, seed in labels])
    return found.assign(choice=keys, named=named)


def _without_common_end(labels: Sequence[str]) -> list[str]:
    """Drop the parts, cut at hyphens, in which all labels end.

    >>> _without_common_end(["labels-c8-1e9", "none-c8-1e9"])
    ['labels', 'none']
    """
    parts = [label.split("-") for label in labels]
    while min(map(len, parts), default=1) > 1 and len({each[-1] for each in parts}) == 1:
        parts = [each[:-1] for each in parts]
    return ["-".join(each) for each in parts]


def kind(runs: pd.DataFrame) -> str:
    """Tell what runs differ in: `noise`, `shape`, both or something else as `choice`, or ``."""
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
    """Average a column over the rows that share some keys: over seeds.

    The interval of a mean is Student's, from the spread between seeds. That is pooled over all
    keys, in units of the rows' own standard errors where they have some: heavy tails and poor
    samples make the seeds differ more as well. It is never less than that error, but for BPD,
    whose error is of held-out images that all runs share.

    Args:
        rows: one per run, or per run and setting.
        keys: columns that name what is compared.
        column: to average.

    Returns:
        One row per key: the keys, `mean`, `low`, `high` (90%; nan if unknown) and `run_id`, a
        text that names the runs. Keys in ascending order.
    """
    rows = rows.dropna(subset=[column])
    error = ERRORS.get(column, "")
    unit = rows[error].astype(float) if error in rows else pd.Series(1.0, index=rows.index)
    groups = rows.assign(_unit=unit).groupby(list(keys), dropna=False, sort=True)
    found, squares, free = [], 0.0, 0
    for key, group in groups:
        values, own = group[column].to_numpy(float), float(np.sqrt(np.mean(group["_unit"] ** 2)))
        squares += float(np.sum((values - values.mean()) ** 2)) / own**2 if own > 0 else 0.0
        free += len(values) - 1
        names = ", ".join(sorted(group["run_id"]))
        found.append([*key, float(values.mean()), own / np.sqrt(len(values)), names])
    shown = pd.DataFrame(found, columns=[*keys, "mean", "own", "run_id"])
    spread = float(np.sqrt(squares / free)) if free else float("nan")
    half = spread * float(t.ppf((1 + LEVEL) / 2, free)) if free else float("nan")
    if error in rows and column != "bpd":
        half = float(np.nanmax([half, norm.ppf((1 + LEVEL) / 2)]))
    width = half * shown.pop("own")
    return shown.assign(low=shown["mean"] - width, high=shown["mean"] + width)


def titled(finished: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that an ablation compares, with the `title` of their choice."""
    runs = ablated(finished)
    what = kind(runs)
    return runs.assign(title=[title(run, what) for _, run in runs.iterrows()])


def title(row: pd.Series, kind: str) -> str:
    """Name the choice of a run for people."""
    if kind == "noise":
        gaussian = row["noise_type"] == "gaussian"
        return f"noise {row['noise_std']:g}" if gaussian else "uniform noise"
    if kind == "shape":
        blocks, layers = int(row["blocks"]), int(row["layers"])
        return f"{blocks} block{'s' * (blocks != 1)} × {layers} layer{'s' * (layers != 1)}"
    return str(row["named"])


def ways(scored: pd.DataFrame) -> list[str]:
    """Name how each row is guided, by what differs between the guided rows only."""
    guided = scored[scored["guidance"] > 0]
    varying = {name: words for name, words in WAYS.items() if guided[name].nunique() > 1}
    named = [
        ", ".join(words.format(row[name]) for name, words in varying.items())
        for _, row in scored.iterrows()
    ]
    return [name or "guided" for name in named]


def conclusions(finished: pd.DataFrame, scored: pd.DataFrame) -> list[str]:
    """Say in a line each which choice is best by likelihood, and which setting by samples."""
    runs = titled(finished)
    if runs.empty:
        return []
    lines = []
    if runs["title"].nunique() > 1:
        lines.append(best(averaged(runs, ["title"], "bpd"), "bits per dimension", bits))
    drawn = scored[scored["kid"].notna() & (scored["half"] == "all")]
    drawn = drawn.merge(runs[["run_id", "title"]], on="run_id")
    if len(drawn) > 1:
        words = [setting_in_words(row) for _, row in drawn.iterrows()]
        drawn = drawn.assign(title=drawn["title"] + ", " + pd.Series(words, index=drawn.index))
        lines.append(best(averaged(drawn, ["title"], "kid"), "KID", number))
    return lines


def best(points: pd.DataFrame, name: str, written: Callable[[float], str]) -> str:
    """Say which row has the lowest mean, and which others its interval cannot tell from it.

    Args:
        points: of `averaged`, with `title`.
        name: of the score.
        written: how a value is written.
    """
    points = points.dropna(subset=["mean"]).sort_values("mean")
    first = points.iloc[0]
    near = points.iloc[1:][points["low"].iloc[1:] <= first["high"]]["title"].tolist()
    text = f"Lowest {name}: {first['title']}, {written(first['mean'])}"
    if np.isfinite(first["high"]):
        text += f" ({interval((first['low'], first['high']), written)})"
    if near:
        others = ", ".join(near[:MOST]) + (
            f" and {len(near) - MOST} more" if len(near) > MOST else ""
        )
        text += f"; not told apart from {others}"
    return text + "."
