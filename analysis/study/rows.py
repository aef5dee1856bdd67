"""Which rows of the runs table the laws read, and how they are grouped: by budget, by seed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.noise import NOTHING_KNOWN, Known
from analysis.laws.validation import levels
from analysis.study.names import layer_splits
from tarflow.config import RunConfig
from tarflow.config_files import from_dict, to_dict
from tarflow.errors import UserError
from tarflow.human import bpd_name

GRID = ("grid", "branch")
ROLES = (*GRID, "final")  # searched runs were chosen by their results
MOVED = 0.01  # share of the mean that one image may move
TAIL = 10.0  # a maximum this many times as far from the median as the 99th percentile is isolated
JUDGED = (  # columns that may keep a row out of every law
    *("status", "error", "role", "split", "bpd", "flops", "params", "tokens"),
    *("bpd_kind", "bpd_leave_one_out", "bpd_se", "bpd_median", "bpd_p99", "bpd_max"),
)
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
    """A row of the table that no law reads."""

    run_id: str
    label: str
    reason: str  # a plain sentence


@dataclass(frozen=True)
class Budget:
    """Runs of nearly equal training FLOPs."""

    flops: float  # geometric mean
    run_ids: tuple[str, ...]  # smallest model first
    sizes: int  # number of different parameter counts


@dataclass(frozen=True)
class SeedNoise:
    """Spread between runs that differ in the seed only."""

    std: float  # bits per dimension, pooled
    groups: int  # configs with at least two seeds
    runs: int  # runs in these groups

    @property
    def freedom(self) -> int:
        """Degrees of freedom of `std`."""
        return self.runs - self.groups


def choose(runs: pd.DataFrame) -> tuple[pd.DataFrame, tuple[LeftOut, ...]]:
    """Split a runs table into the rows of one law and the rest.

    A final run counts if it was scored like the grid and differs from it in size and data only.

    Args:
        runs: Columns of `tarflow.record.RUNS`.

    Returns:
        The comparable rows, ordered by (flops, params, run_id), and the others with the reason.
    """
    runs = runs.sort_values(["flops", "params", "run_id"], kind="stable").reset_index(drop=True)
    judged = runs[[name for name in JUDGED if name in runs]].to_dict("records")
    reasons = pd.Series([_own_reason(row) for row in judged], dtype=object)
    open_rows = reasons == ""
    # Missing values form one group; the largest group is the study.
    kinds = as_text(runs[list(GROUP)])
    if open_rows.any():
        group = commonest(kinds[open_rows])
        for column, value in zip(GROUP, group, strict=True):
            differs = (reasons == "") & (kinds[column] != value)
            other = f"{GROUP[column]} ({column} " + kinds[column] + f", not {value})"
            reasons = reasons.mask(differs, other)
    grid = runs[(reasons == "") & runs["role"].isin(GRID)]
    for place in np.flatnonzero((reasons == "") & (runs["role"] == "final")).tolist():
        reasons.iloc[place] = _unlike(grid, runs.iloc[place])
    names = runs["name"] if "name" in runs else runs["label"]
    left = tuple(
        LeftOut(str(run_id), str(name), str(reason))
        for run_id, name, reason in zip(runs["run_id"], names, reasons, strict=True)
        if reason
    )
    return runs[reasons == ""].reset_index(drop=True), left


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame as strings, missing values too: pandas 3 leaves those out of counts."""
    text: pd.DataFrame = frame.astype(str).fillna("none")
    return text


def commonest(kinds: pd.DataFrame) -> tuple[str, ...]:
    """Return the most frequent row of a frame of strings, the first in order among equals."""
    counts = kinds.value_counts(sort=False)
    first: tuple[str, ...] = min(counts.index[counts == counts.max()])
    return first


def _own_reason(row: Mapping[Any, Any]) -> str:
    if row["status"] != "done":
        error = row.get("error")
        return f"{row['status']}: {error}" if isinstance(error, str) and error else "failed"
    if row["role"] not in ROLES:
        return f"role {row['role']}: laws read grid and final runs only"
    if row["role"] == "final" and row["split"] != "validation":
        return f"scored on {row['split']} images: laws read scores of validation images"
    numbers = np.array([row[name] for name in ("bpd", "flops", "params", "tokens")], float)
    if not np.all(np.isfinite(numbers) & (numbers > 0)):
        return "bpd, flops, params or tokens is missing or not positive"
    if _one_image_decides(row):
        name = bpd_name(row.get("bpd_kind", ""))
        return (
            f"one image moves the mean {name} by more than {MOVED:.0%} "
            f"(the largest of an image is {row['bpd_max']:.4g})"
        )
    return ""


def _one_image_decides(row: Mapping[Any, Any]) -> bool:
    """Tell whether leaving out a single image would move the mean by more than 1%.

    Runs of earlier releases did not record that change. One image moves their mean by at most one
    standard error; beyond that bound, an isolated maximum decides, which misses many cases.
    """
    names = ("bpd", "bpd_leave_one_out", "bpd_se", "bpd_median", "bpd_p99", "bpd_max")
    mean, moved, se, median, p99, largest = (
        float("nan") if row.get(name) is None else float(row[name]) for name in names
    )
    if np.isfinite(moved):
        return bool(moved > MOVED * mean)
    if not np.isfinite([se, median, p99, largest]).all() or se <= MOVED * mean:
        return False
    return bool(largest - median > TAIL * (p99 - median))


def group_budgets(rows: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Budget, ...]]:
    """Return the rows ordered by budget, with its number in the column `budget`, and the budgets.

    Runs of nearly equal FLOPs share a budget; number 0 is the smallest.
    """
    groups = levels(rows["flops"].to_numpy(float)) if len(rows) else []
    numbers = np.zeros(len(rows), dtype=int)
    for number, group in enumerate(groups):
        numbers[group] = number
    rows = rows.assign(budget=numbers).sort_values(["budget", "params", "run_id"])
    rows = rows.reset_index(drop=True)
    budgets = tuple(
        Budget(
            flops=float(np.exp(np.log(part["flops"].to_numpy(float)).mean())),
            run_ids=tuple(part["run_id"]),
            sizes=int(part["params"].nunique()),
        )
        for _, part in rows.groupby("budget")
    )
    return rows, budgets


def best_of_budgets(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the best config of every budget, its BPD averaged over seeds."""
    columns = ["run_id", "label", "flops", "params", "tokens", "bpd"]
    if rows.empty:
        return rows.reindex(columns=columns)
    mean = rows.assign(bpd=rows["bpd"].groupby(configs_but_seed(rows)).transform("mean"))
    best = mean.sort_values(["budget", "bpd", "run_id"]).drop_duplicates("budget")
    return best[columns].reset_index(drop=True)


def seed_noise(rows: pd.DataFrame) -> SeedNoise | None:
    """Pool the variance between runs that differ in the seed only; None without such runs."""
    bpd = rows["bpd"].groupby(configs_but_seed(rows))
    groups = [group for _, group in bpd if len(group) > 1]
    if not groups:
        return None
    square = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    members = sum(len(group) for group in groups)
    return SeedNoise(float(np.sqrt(square / (members - len(groups)))), len(groups), members)


def known_noise(noise: SeedNoise | None, rows: pd.DataFrame) -> Known:
    """Return what seeds tell of the noise of a run, relative to the mean BPD of the rows."""
    if noise is None:
        return NOTHING_KNOWN
    return Known(noise.std / float(rows["bpd"].mean()), noise.freedom)


def configs_but_seed(runs: pd.DataFrame) -> pd.Series:
    """Return a key per row that is equal for runs that differ in the seed only."""
    keys = [_key(*pair) for pair in zip(runs["config"], runs["run_id"], strict=True)]
    return pd.Series(keys, index=runs.index, dtype=object)


def _key(config: object, run_id: object) -> str:
    try:
        plain = json.loads(str(config))
    except json.JSONDecodeError:
        return str(run_id)
    for name in ("seed", "execution", "sampler"):
        plain.pop(name, None)
    return json.dumps(plain, sort_keys=True)


def read_config(row: "pd.Series[Any]") -> RunConfig:
    """Return the config that a row of the runs table holds as JSON.

    Raises:
        UserError: If it holds none.
    """
    try:
        plain = json.loads(str(row["config"]))
    except json.JSONDecodeError:
        raise UserError(f"run {row['run_id']} has no readable config in the table") from None
    return from_dict(RunConfig, plain, where=f"config of run {row['run_id']}")


def difference(grid: pd.DataFrame, config: RunConfig) -> str:
    """Say how a run differs from those of a grid, apart from size and data; empty if it does not.

    Raises:
        UserError: If the grid has no readable configs.
    """
    model = config.model
    known = set(zip(grid["blocks"], grid["layers"], layer_splits(grid), strict=True))
    if (model.blocks, model.mean_layers, model.layer_split) not in known:
        return (
            f"the grid has no {model.blocks} blocks of {model.layer_split or model.layers} layers"
        )
    largest = grid.sort_values(["flops", "bpd", "run_id"], ascending=[False, True, True]).iloc[0]
    shared = _shared_by_grid(read_config(largest))
    for name, value in _shared_by_grid(config).items():
        if shared[name] != value:
            return f"{name} is {shared[name]} in the grid, {value} in this run"
    return ""


def _shared_by_grid(config: RunConfig) -> dict[str, Any]:
    """Return the settings that all runs of a grid share, by name such as `noise.std`."""
    plain = to_dict(config)
    for name in ("channels", "blocks", "layers"):
        del plain["model"][name]
    del plain["optim"]["lr"]
    shared = {name: plain[name] for name in ("batch", "precision")}
    for part in ("model", "data", "noise", "optim"):
        shared |= {f"{part}.{name}": value for name, value in plain[part].items()}
    return shared


def _unlike(grid: pd.DataFrame, final: "pd.Series[Any]") -> str:
    """Say why a final run is not one more run of a grid; empty if it is."""
    if grid.empty:
        return "no grid beside this final run"
    try:
        return difference(grid, read_config(final))
    except UserError as error:
        return str(error)
