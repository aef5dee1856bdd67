"""Fit laws to any CSV or Parquet table, and compare two studies run by run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.fit import Fit, Observations, fit
from analysis.laws.forms import FRONTIER_FORMS, SURFACE_FORMS
from analysis.study import read_study
from tarflow.errors import UserError
from tarflow.record import read_table


def read_columns(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """Read columns of a CSV or Parquet file as numbers, without incomplete rows.

    Args:
        path: The file.
        columns: Column of the file by the name it gets here.

    Raises:
        UserError: If the file cannot be read, lacks a column, or has no complete row.
    """
    try:
        raw = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    for name in columns.values():
        if name not in raw:
            near = get_close_matches(name, [str(column) for column in raw], n=1, cutoff=0.0)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{path} has no column '{name}'{hint}")
    table = pd.DataFrame(
        {name: pd.to_numeric(raw[column], errors="coerce") for name, column in columns.items()}
    ).dropna()
    if table.empty:
        raise UserError(f"{path} has no row with a number in each of these columns")
    if (table <= 0).any(axis=None):
        bad = next(name for name in table if (table[name] <= 0).any())
        raise UserError(f"column '{columns[str(bad)]}' has values of 0 or less: not a power law")
    return table


def fit_table(columns: pd.DataFrame, inputs: Sequence[str], seed: int = 0) -> list[Fit]:
    """Fit every form with these inputs to a table with a column `loss`.

    Raises:
        UserError: If there are fewer rows than parameters.
    """
    forms = FRONTIER_FORMS if tuple(inputs) == ("flops",) else SURFACE_FORMS
    fewest = min(len(form.parameters) for form in forms)
    if len(columns) < fewest:
        raise UserError(f"{len(columns)} complete rows: a law needs at least {fewest}")
    data = Observations(
        {name: columns[name].to_numpy(float) for name in inputs},
        columns["loss"].to_numpy(float),
        [str(row) for row in range(len(columns))],
    )
    return [fit(form, data, seed=seed) for form in forms if len(form.parameters) <= len(columns)]


def to_plain(law: Fit) -> dict[str, Any]:
    """Return a fit as plain JSON values."""
    return {
        "name": law.name,
        "formula": law.formula,
        "status": law.status,
        "rows": law.rows,
        "scale": law.scale,
        "agreement": law.agreement,
        "parameters": {
            name: {
                "value": value,
                "interval": list(law.intervals[name]),
                "identified": law.identified[name],
                "reason": law.reasons[name],
            }
            for name, value in law.values.items()
        },
    }


@dataclass(frozen=True)
class Pair:
    """The same run in two studies."""

    label: str
    seed: int
    bpd_a: float
    bpd_b: float
    error: float  # standard error of the paired difference over images; nan without them

    @property
    def difference(self) -> float:
        """Bits per dimension of b minus those of a."""
        return self.bpd_b - self.bpd_a


def paired(a: Path, b: Path) -> list[Pair]:
    """Return the finished runs that two studies share by data, label and seed.

    Raises:
        UserError: If a folder holds no study, or none of their runs can be paired.
    """
    keys = ["data_hash", "split", "label", "seed"]
    first, second = (read_study(study)[0].query("status == 'done'") for study in (a, b))
    both = first.merge(second, on=keys, suffixes=("_a", "_b"))
    if both.empty:
        raise UserError(f"{a} and {b} share no finished run with the same data, label and seed")
    return [
        Pair(
            label=row["label"],
            seed=int(row["seed"]),
            bpd_a=row["bpd_a"],
            bpd_b=row["bpd_b"],
            error=_paired_error(a / "runs" / row["run_id_a"], b / "runs" / row["run_id_b"]),
        )
        for _, row in both.sort_values(["label", "seed"]).iterrows()
    ]


def _paired_error(a: Path, b: Path) -> float:
    """Return the standard error over images of the mean difference of two runs' BPD."""
    paths = [folder / "images.parquet" for folder in (a, b)]
    if not all(path.exists() for path in paths):
        return float("nan")
    first, second = (read_table(path).to_pandas().set_index("index")["bpd"] for path in paths)
    difference = (second - first).dropna()
    if len(difference) < 2:
        return float("nan")
    return float(difference.std(ddof=1) / np.sqrt(len(difference)))
