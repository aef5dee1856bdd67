"""Which rows of the runs table the laws read, and why the others are left out."""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tarflow.config import RunConfig, from_dict
from tarflow.errors import UserError

ROLES = ("grid", "branch")  # searched and final runs are picked, not placed
MOVED = 0.01  # of the mean that one image may move
TAIL = 10.0  # a maximum that many times farther from the median than the 99th percentile is alone
GROUP = {  # columns that must agree within a law, and what to say if they do not
    "data_hash": "another data set",
    "classes": "other conditioning",
    "patch": "another patch size: its tokens are not comparable",
    "noise_type": "another noise type: only BPD may be compared across noise levels",
    "noise_std": "another noise level: only BPD may be compared across noise levels",
    "bpd_kind": "another kind of BPD",
    "numerics_version": "another numerics version",
}


@dataclass(frozen=True)
class LeftOut:
    """A row of the table that no law reads, and why."""

    run_id: str
    label: str
    reason: str  # a plain sentence


def choose(runs: pd.DataFrame) -> tuple[pd.DataFrame, tuple[LeftOut, ...]]:
    """Split a runs table into the rows of one law and the rest.

    Args:
        runs: columns of `tarflow.record.RUNS`.

    Returns:
        The comparable rows, ordered by (flops, params, run_id), and the others with the reason.
    """
    runs = runs.sort_values(["flops", "params", "run_id"], kind="stable").reset_index(drop=True)
    reasons = pd.Series([_own_reason(row) for _, row in runs.iterrows()], dtype=object)
    open_rows = reasons == ""
    # Missing values are one group of their own; the fullest group is the study.
    kinds = runs[list(GROUP)].astype(str)
    if open_rows.any():
        group = commonest(kinds[open_rows])
        for column, value in zip(GROUP, group, strict=True):
            differs = (reasons == "") & (kinds[column] != value)
            other = f"{GROUP[column]} ({column} " + kinds[column] + f", not {value})"
            reasons = reasons.mask(differs, other)
    left = tuple(
        LeftOut(str(row["run_id"]), str(row["label"]), str(reason))
        for (_, row), reason in zip(runs.iterrows(), reasons, strict=True)
        if reason
    )
    return runs[reasons == ""].reset_index(drop=True), left


def commonest(kinds: pd.DataFrame) -> tuple[str, ...]:
    """Return the most frequent row of a frame of strings, the first in order among equals."""
    counts = Counter(kinds.itertuples(index=False, name=None))
    return min(key for key, times in counts.items() if times == max(counts.values()))


def _own_reason(row: pd.Series) -> str:
    if row["status"] != "done":
        error = row.get("error")
        return f"{row['status']}: {error}" if isinstance(error, str) and error else "failed"
    if row["role"] not in ROLES:
        return f"role {row['role']}: laws read grid runs only"
    numbers = row[["bpd", "flops", "params", "tokens"]].to_numpy(float)
    if not np.all(np.isfinite(numbers) & (numbers > 0)):
        return "bpd, flops, params or tokens is missing or not positive"
    if _one_image_decides(row):
        return f"one image (BPD {row['bpd_max']:.4g}) moves the mean by more than {MOVED:.0%}"
    return ""


def _one_image_decides(row: pd.Series) -> bool:
    """Tell whether a single image moves the mean by more than 1%.

    The table holds no image count, but one image moves the mean by at most about one standard
    error; beyond that bound, an isolated maximum decides.
    """
    names = ["bpd", "bpd_se", "bpd_median", "bpd_p99", "bpd_max"]
    mean, se, median, p99, largest = (float(row.get(name, np.nan)) for name in names)
    if not np.isfinite([se, median, p99, largest]).all() or se <= MOVED * mean:
        return False
    return largest - median > TAIL * (p99 - median)


def configs_but_seed(runs: pd.DataFrame) -> list[str]:
    """Return a key per row that is equal for runs that differ in the seed only."""
    return [_key(row) for _, row in runs.iterrows()]


def _key(row: pd.Series) -> str:
    try:
        plain = json.loads(str(row["config"]))
    except json.JSONDecodeError:
        return str(row["run_id"])
    for name in ("seed", "execution", "sampler"):
        plain.pop(name, None)
    return json.dumps(plain, sort_keys=True)


def read_config(row: "pd.Series[Any]") -> RunConfig:
    """Return the config a row of the runs table holds as JSON."""
    try:
        plain = json.loads(str(row["config"]))
    except json.JSONDecodeError:
        raise UserError(f"run {row['run_id']} has no readable config in the table") from None
    return from_dict(RunConfig, plain, where=f"config of run {row['run_id']}")
