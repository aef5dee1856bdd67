"""What each technique is worth by itself, from finished ablation studies.

A technique is noise, the shape of the model, denoising or guidance. Its share is the difference
between its best choice and doing without it, in a study in which little else differs. Differences
are paired by seed; for settings of the sampler, both sides sample the same model. KID is chosen on
one half of the draws and compared on the other, so that the best is not low by luck; BPD is not.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.comparing import ablation
from analysis.comparing.differences import mean_difference
from analysis.laws.intervals import Interval
from analysis.study.folder import read_study
from analysis.study.names import bits_unit_of
from analysis.study.settings import setting_in_words
from tarflow.errors import UserError

NAMES = {
    "noise": "training noise",
    "shape": "shape",
    "patch": "patch size",
    "choice": "variant",
}


@dataclass(frozen=True)
class Share:
    """What the best choice of a technique is worth, against doing without it."""

    study: str
    technique: str
    score: str  # unit of the likelihood, or KID; lower is better
    features: str  # extractor of the features of KID; empty for a likelihood
    best: str  # the choice, in words
    without: str  # what it is compared with
    among: int  # choices that the best is one of
    level: float  # the score without it
    difference: float  # the score of the best choice minus that without
    interval: Interval  # 90%; unbounded with one seed and no standard error

    @property
    def of_likelihood(self) -> bool:
        """Whether the score is of held-out images, not of samples."""
        return not self.features

    @property
    def share(self) -> float:
        """The difference as a share of the score without it; below 0 is better."""
        return self.difference / self.level

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.interval[0] <= 0 <= self.interval[1]


def shares(paths: Sequence[Path]) -> tuple[Share, ...]:
    """Return the shares of every technique that finished ablation studies compare.

    Args:
        paths: Folders of the studies.

    Raises:
        UserError: If a folder holds no ablation that compares anything.
    """
    found: list[Share] = []
    for path in paths:
        runs, evaluations = read_study(path)
        mine = list(_shares(path, runs, evaluations))
        if not mine:
            raise UserError(
                f"{path} compares nothing: name finished studies with `role: ablation`, such as "
                "those of the presets ablation-noise and ablation-guidance"
            )
        found += mine
    return tuple(found)


def labels(shares: Sequence[Share]) -> list[str]:
    """Return the technique of each share, with its study where several studies compare it."""
    studies: dict[str, set[str]] = {}
    for share in shares:
        studies.setdefault(share.technique, set()).add(share.study)
    return [
        share.technique + f" ({share.study})" * (len(studies[share.technique]) > 1)
        for share in shares
    ]


def _shares(path: Path, runs: pd.DataFrame, evaluations: pd.DataFrame) -> Iterator[Share]:
    trained = ablation.titled(runs)
    if trained.empty:
        return
    name, difference = path.resolve().name, ablation.kind(trained)
    scored = trained.merge(evaluations, on="run_id", suffixes=("", "_sampling"))
    if difference:
        technique, first = NAMES[difference], ablation.baseline(trained)
        if share := _of_likelihood(name, technique, trained, first, path):
            yield share
        plain = scored[scored["guidance"] == 0]
        own = plain["denoise"].mode()
        plain = plain[(plain["denoise"] == own.max()) | (plain["noise_type"] != "gaussian")]
        if share := _of_samples(name, technique, plain.assign(option=plain["title"]), first):
            yield share
    for title, rows in sorted(
        scored.groupby("title"), key=lambda group: _by_number(str(group[0]))
    ):
        suffix = f", {title}" if difference else ""
        unguided = rows[(rows["guidance"] == 0) & (rows["noise_type"] == "gaussian")]
        options = unguided.assign(option=[f"denoising {value:g}" for value in unguided["denoise"]])
        if share := _of_samples(name, f"denoising{suffix}", options, "denoising 0"):
            yield share
        guided = rows[rows["guidance"] > 0]
        without = rows[(rows["guidance"] == 0) & rows["denoise"].isin(guided["denoise"])]
        both = pd.concat([guided, without])
        words = [setting_in_words(row) for _, row in both.iterrows()]
        options = both.assign(option=words)
        base = [setting_in_words(row) for _, row in without.head(1).iterrows()]
        if base and (share := _of_samples(name, f"guidance{suffix}", options, base[0])):
            yield share


def _by_number(text: str) -> list[str | float]:
    """Return a key that sorts noise 0.05 before noise 0.4."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


def _of_likelihood(
    study: str, technique: str, runs: pd.DataFrame, first: str, path: Path
) -> Share | None:
    points = ablation.worth(runs, path)
    if points.empty or not ablation.likelihoods_compare(runs):
        return None
    best = points.sort_values("mean").iloc[0]
    level = float(runs.loc[runs["title"] == first, "bpd"].mean())
    return Share(
        study, technique, bits_unit_of(runs), "", str(best["title"]), first, len(points), level,
        float(best["mean"]), (float(best["low"]), float(best["high"])),
    )  # fmt: skip


def _of_samples(study: str, technique: str, rows: pd.DataFrame, first: str) -> Share | None:
    """Return what the best option is worth in KID; None without another option to compare."""
    rows = rows.dropna(subset=["kid"])
    halved = rows["half"].isin(["chosen", "scored"]).any()
    choosing = rows[rows["half"] == ("chosen" if halved else "all")]
    judging = rows[rows["half"] == ("scored" if halved else "all")]
    others = choosing[choosing["option"] != first]
    base = judging[judging["option"] == first]
    if others.empty or base.empty:
        return None
    best = str(others.groupby("option")["kid"].mean().idxmin())
    pairs = base.merge(
        judging[judging["option"] == best], on=["seed"], suffixes=("_without", "")
    ).drop_duplicates("seed")
    if pairs.empty:
        return None
    kid, error, base_kid, base_error = (
        pairs[name].to_numpy(float) for name in ("kid", "kid_se", "kid_without", "kid_se_without")
    )
    differences, errors = kid - base_kid, np.hypot(error, base_error)
    mean, ends = mean_difference(differences, errors)
    extractor = rows["feature_extractor"].iloc[0]
    return Share(
        study, technique, "KID", extractor, best, first, others["option"].nunique(),
        float(pairs["kid_without"].mean()), mean, ends,
    )  # fmt: skip
