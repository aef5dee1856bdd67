"""How samples were drawn: sampler settings in words, and which settings and runs to compare.

A table here has one row per run and sampler setting: columns of `evaluations.parquet` beside those
of its run; `kid` is the kernel inception distance of the named extractor.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.study.rows import as_text, commonest
from tarflow.human import number

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
DEFAULTS = {
    "rule": "log-scale",
    "guided_blocks": "all",
    "part": "both",
}  # of guidance; words name others only


def setting_in_words(row: pd.Series | Mapping[str, Any]) -> str:
    """Return a sampler setting in words.

    >>> setting_in_words({"guidance": 0.5, "temperature": 0.3, "denoise": 1.0})
    'guidance 0.5, temperature 0.3, denoising 1'
    >>> setting_in_words({"guidance": 0.0, "temperature": 1.0, "denoise": 0.0})
    'no guidance, denoising 0'
    """
    guided = f"guidance {number(row['guidance'])}, temperature {number(row['temperature'])}"
    unusual = [row[name] for name, usual in DEFAULTS.items() if row.get(name, usual) != usual]
    guided = ", ".join([guided, *unusual]) if row["guidance"] else "no guidance"
    return f"{guided}, denoising {number(row['denoise'])}"


def run_and_setting(row: pd.Series | Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a key that samples share if they are of one run and drawn in the same way."""
    return row["run_id"], *(row.get(name) for name in SETTING)


def at_shared_setting(scored: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the KID of all draws, at the most frequent sampler setting."""
    known = scored[scored["kid"].notna() & (scored["half"] == "all")]
    if known.empty:
        return known
    setting = as_text(known[SETTING])
    return known[(setting == list(commonest(setting))).all(axis=1)]


def one_setting(scored: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run, all at the sampler setting that most runs share."""
    return at_shared_setting(scored).drop_duplicates("run_id")


def best_setting(scored: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run at its best sampler setting, scored on draws that did not choose it.

    The column `kid_chosen` holds the KID on the draws that chose the setting, independent of those
    of `kid`. Runs of tables without halves keep the row of lowest KID, which is low by luck too if
    they have several; their `kid_chosen` is NaN. Only the most frequent extractor counts, because
    distances in different features cannot be compared.
    """
    known = scored.dropna(subset=["kid", "bpd"])
    extractor = known["feature_extractor"].astype(str)
    known = known[extractor.isin(extractor.mode()[:1])].sort_values("kid", kind="stable")
    best = known[known["half"] == "chosen"].drop_duplicates("run_id")
    key = ["run_id", *SETTING]
    picked = best[[*key, "kid"]].rename(columns={"kid": "kid_chosen"})
    # In the order of the table, not of KID: a setting drawn twice would be low by luck again.
    fresh = known[known["half"] == "scored"].sort_index().merge(picked, on=key)
    known = pd.concat([fresh, known[~known["run_id"].isin(fresh["run_id"])]])
    return known.drop_duplicates("run_id")


def pareto_front(scored: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that no other row beats in both BPD and KID, in order of BPD.

    Rows with `kid_chosen` are judged by it, so that their `kid`, of other draws, is not low
    because it put them on the front.
    """
    known = scored.dropna(subset=["bpd", "kid"])
    judged = known.get("kid_chosen", known["kid"]).fillna(known["kid"])
    ordered = known.assign(judged=judged).sort_values(["bpd", "judged"])
    best = ordered["judged"].cummin().shift(fill_value=np.inf)
    return ordered[ordered["judged"] < best].drop(columns="judged")


def of_inner_search(scored: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a search for sampler settings, which scores the halves of draws only."""
    key = [scored[name] for name in ("run_id", "seed_sampling", *SETTING)]
    whole = (scored["half"] == "all").groupby(key, dropna=False).transform("any")
    return scored[~whole]
