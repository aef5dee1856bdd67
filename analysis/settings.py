"""How samples were drawn: sampler settings by name, and which one of a run to compare.

A table here has one row per run and sampler setting: columns of `evaluations.parquet` beside those
of its run; `kid` is the kernel inception distance of the named extractor.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.human import number
from analysis.rows import commonest

SETTING = [  # columns that say how samples were drawn; how the flow was inverted does not matter
    "feature_extractor",
    "guidance",
    "rule",
    "part",
    "guided_blocks",
    "annealed",
    "temperature",
    "denoise",
]
USUAL = {"rule": "log-scale", "guided_blocks": "all", "part": "both"}  # of guidance


def setting_in_words(row: pd.Series | Mapping[str, Any]) -> str:
    """Name a sampler setting.

    >>> setting_in_words({"guidance": 0.5, "temperature": 0.3, "denoise": 1.0})
    'guidance 0.5, temperature 0.3, denoising 1'
    >>> setting_in_words({"guidance": 0.0, "temperature": 1.0, "denoise": 0.0})
    'no guidance, denoising 0'
    """
    guided = f"guidance {number(row['guidance'])}, temperature {number(row['temperature'])}"
    unusual = [row[name] for name, usual in USUAL.items() if row.get(name, usual) != usual]
    guided = ", ".join([guided, *unusual]) if row["guidance"] else "no guidance"
    return f"{guided}, denoising {number(row['denoise'])}"


def one_setting(scored: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run, all at the sampler setting most runs share; as `correlate` does."""
    known = scored[scored["kid"].notna() & (scored["half"] != "chosen")]
    if known.empty:
        return known
    setting = known[SETTING].astype(str)
    return known[(setting == list(commonest(setting))).all(axis=1)].drop_duplicates("run_id")


def best_setting(scored: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run: its best sampler setting, as scored on draws it was not chosen by.

    A run that was sampled in one way only is shown as it is.
    """
    known = scored.dropna(subset=["kid", "bpd"]).sort_values("kid")
    best = known[known["half"] == "chosen"].drop_duplicates("run_id")
    key = ["run_id", *SETTING]
    fresh = known[known["half"] == "scored"].merge(best[key], on=key)
    known = pd.concat([fresh, known[~known["run_id"].isin(fresh["run_id"])]])
    return known.drop_duplicates("run_id")


def pareto_front(scored: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that no other row beats in both BPD and KID, ascending BPD."""
    ordered = scored.dropna(subset=["bpd", "kid"]).sort_values(["bpd", "kid"])
    best = ordered["kid"].cummin().shift(fill_value=np.inf)
    return ordered[ordered["kid"] < best]
